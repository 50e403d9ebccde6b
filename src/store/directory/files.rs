//! What the parts of the directory store do with single files.

use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use tempfile::NamedTempFile;

/// Opens a file of a store for reading. Where somebody put a pipe, which would wait for a writer, it is empty.
pub(in crate::store) fn open(path: &Path) -> io::Result<fs_err::File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    fs_err::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Reads a whole file of a store.
pub(in crate::store) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A new file in `directory`, which exists, with the permissions that the user's umask leaves: a store shared
/// by a group is readable by the group.
pub(super) fn new_file_in(directory: &Path) -> io::Result<NamedTempFile> {
    let permissions = std::fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix("new-").permissions(permissions).tempfile_in(directory)
}

/// Does `publish`; if it finds no directory to put the file in, makes `path`'s parent and does it again.
pub(super) fn with_parent<T>(path: &Path, mut publish: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match publish() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                fs_err::create_dir_all(parent)?;
            }
            publish()
        }
        other => other,
    }
}

/// Marks `path` as used now, if the last mark is older than `every`. Best effort: the store may be read-only.
pub(super) fn mark_used(path: &Path, modified: SystemTime, now: SystemTime, every: Duration) {
    if now.duration_since(modified).is_ok_and(|age| age >= every) {
        let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let times = Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) };
        let _ = rustix::fs::utimensat(CWD, path, &times, AtFlags::empty());
    }
}

/// Whether `path` still names the file that `file` was opened from.
pub(super) fn still_names(path: &Path, file: &fs_err::File) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs_err::symlink_metadata(path) {
        Ok(named) => Ok(named.ino() == opened.ino() && named.dev() == opened.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Moves `path` to `name` without replacing what has that name; `false` if something has.
pub(super) fn publish_first(path: &Path, name: &Path) -> io::Result<bool> {
    let linked = match fs_err::hard_link(path, name) {
        Err(error) if no_hard_links(&error) => {
            // Vfat, some network and container file systems.
            rustix::fs::renameat_with(CWD, path, CWD, name, rustix::fs::RenameFlags::NOREPLACE)
                .map_err(io::Error::from)
        }
        other => other,
    };
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn no_hard_links(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS | libc::EMLINK))
}
