//! Opening files of a context, which is somebody's working directory: what is a file one moment may be something else
//! the next.

use std::fs::File;
use std::io::{self, Read as _};

use std::path::Path;

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::OFlags;

/// Opens the regular file `path`. Anything else is an error, at once: a FIFO would wait for a writer, a device might
/// never end.
pub fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let file = fs_err::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let (file, _) = file?.into_parts();
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_a_file()) }
}

/// Reads a small file, following links; `None` if it is not there. More than `limit` bytes are an error.
pub fn read_small(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let real = match fs_err::canonicalize(path) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    open_file(&real)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {limit} bytes")));
    }
    Ok(Some(bytes))
}

fn not_a_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_opened_and_nothing_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs_err::write(path("file"), "content").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
        let fifo = std::process::Command::new("mkfifo").arg(path("fifo")).status().unwrap();
        assert!(fifo.success());
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        assert!(open_file(&path("file")).is_ok());
        for other in ["link", "dangling", "fifo", "socket", "."] {
            assert!(open_file(&path(other)).is_err(), "{other}");
        }
        assert_eq!(read_small(&path("link"), 7).unwrap().unwrap(), b"content");
        assert!(read_small(&path("dangling"), 7).unwrap().is_none());
        assert!(read_small(&path("file"), 6).unwrap_err().to_string().contains("larger than 6 bytes"));
        assert!(read_small(&path("fifo"), 6).unwrap_err().to_string().contains("not a regular file"));
        assert!(read_small(Path::new("/dev/zero"), 6).is_err());
    }
}
