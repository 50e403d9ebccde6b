//! Files that appear under their name when they are complete.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Writes the file `path` completely or not at all: under another name in the same directory, which must exist, and
/// then renamed. It has the permissions that the user's umask leaves.
///
/// What is there and no regular file (a device, a pipe, `/dev/stdout`) is written to and not replaced; a directory is an
/// error.
pub fn replace_file<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    match fs_err::metadata(path) {
        Ok(there) if there.is_dir() => {
            return Err(
                io::Error::new(io::ErrorKind::IsADirectory, "there is a directory of this name").into()
            );
        }
        Ok(there) if !there.is_file() => {
            return write(&mut fs_err::OpenOptions::new().write(true).open(path)?);
        }
        // What is not there, or cannot be looked at: creating a file beside it tells why.
        _ => {}
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let permissions = std::fs::Permissions::from_mode(0o666);
    let mut file =
        tempfile::Builder::new().prefix(".crossdock-").permissions(permissions).tempfile_in(directory)?;
    write(file.as_file_mut())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt as _;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs_err::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_replaced_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        replace_file(&path, |file| file.write_all(b"one")).unwrap();
        let failed = replace_file(&path, |file| {
            file.write_all(b"half of two")?;
            assert_eq!(fs_err::read(&path).unwrap(), b"one");
            Err(io::Error::other("no space"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no space");
        assert_eq!(fs_err::read(&path).unwrap(), b"one");
        assert_eq!(names(directory.path()), ["file"]);
        let missing = directory.path().join("missing/file");
        assert!(replace_file::<io::Error>(&missing, |_| panic!("there is nowhere to write to")).is_err());
    }

    #[test]
    fn what_is_no_file_stays_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let error = replace_file::<io::Error>(directory.path(), |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs_err::read(pipe).unwrap()
        });
        replace_file(&pipe, |file| file.write_all(b"through")).unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(fs_err::metadata(&pipe).unwrap().file_type().is_fifo());
        assert_eq!(names(directory.path()), ["pipe"]);
    }
}
