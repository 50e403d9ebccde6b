//! The files that `docker login` and `podman login` write.

use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::CliError;
use crate::registry::{CredentialFile, CredentialSources, Credentials};

/// A file has some hundred bytes for each registry; more than this is something else.
const BYTES_MAX: u64 = 1 << 20;

/// Reads those of the files that are there. One that belongs to somebody else, because HOME or XDG_RUNTIME_DIR do, is left
/// out with a warning, as by Docker's client.
pub(super) fn read(files: &[PathBuf], warn: impl Fn(String)) -> Result<CredentialSources, CliError> {
    let mut sources = CredentialSources::default();
    for path in files {
        let text = match text(path) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                warn(format!("no credentials are read from {}: permission denied", path.display()));
                continue;
            }
            read => read.map_err(CliError::failure)?,
        };
        if let Some(text) = text {
            let file = CredentialFile::parse(&path.display().to_string(), &text);
            let source: Arc<dyn Credentials> = Arc::new(file.map_err(CliError::failure)?);
            sources.0.push(source);
        }
    }
    Ok(sources)
}

/// The file's text; `None` if it is not there.
fn text(path: &Path) -> std::io::Result<Option<String>> {
    let file = match fs_err::File::open(path) {
        Ok(file) => file,
        // `/dev/null` as a directory is how some say that there is none.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    if file.take(BYTES_MAX + 1).read_to_string(&mut text)? as u64 > BYTES_MAX {
        let path = path.display();
        return Err(std::io::Error::other(format!(
            "{path} is no file with credentials: it has more than {BYTES_MAX} bytes"
        )));
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
        let sources =
            read(&[path("absent"), path("first/below"), path("first"), path("second")], |_| unreachable!())
                .unwrap();
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
            let shown = read(std::slice::from_ref(&path), |_| unreachable!()).unwrap_err().render(false);
            assert!(shown.contains("auth.json"), "{shown}");
        }
    }
}
