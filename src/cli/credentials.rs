//! The files that `docker login` and `podman login` write.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::CliError;
use crate::registry::{CredentialFile, CredentialSources, Credentials};

/// A file has some hundred bytes for each registry; more than this is something else.
const BYTES_MAX: u64 = 1 << 20;

/// Reads those of the files that are there.
pub(super) fn read(files: &[PathBuf]) -> Result<CredentialSources, CliError> {
    let mut sources = CredentialSources::default();
    for path in files {
        if let Some(text) = text(path)? {
            let file = CredentialFile::parse(&path.display().to_string(), &text);
            let source: Arc<dyn Credentials> = Arc::new(file.map_err(CliError::failure)?);
            sources.0.push(source);
        }
    }
    Ok(sources)
}

fn text(path: &Path) -> Result<Option<String>, CliError> {
    let file = match fs_err::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CliError::failure(error)),
    };
    let mut text = String::new();
    let length = file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(CliError::failure)?;
    if length as u64 > BYTES_MAX {
        let path = path.display();
        return Err(CliError::message(format!("{path} is no file with credentials: it has more than 1 MiB")));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Credential, Secret};

    #[tokio::test]
    async fn files_are_asked_in_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs_err::write(path("first"), r#"{"auths": {"a": {"auth": "MTpw"}}}"#).unwrap();
        fs_err::write(path("second"), r#"{"auths": {"a": {"auth": "Mjpw"}, "b": {"auth": "Mjpw"}}}"#)
            .unwrap();
        let sources = read(&[path("absent"), path("first"), path("second")]).unwrap();
        let user = |name: &str| Credential::Basic { username: name.to_owned(), password: Secret::new("p") };
        assert_eq!(sources.lookup("a", "x").await, Ok(user("1")));
        assert_eq!(sources.lookup("b", "x").await, Ok(user("2")));
    }

    #[test]
    fn what_is_no_such_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth.json");
        for content in ["{", "[1]", &" ".repeat(2 << 20)] {
            fs_err::write(&path, content).unwrap();
            let shown = read(std::slice::from_ref(&path)).unwrap_err().render(false);
            assert!(shown.contains("auth.json"), "{shown}");
        }
    }
}
