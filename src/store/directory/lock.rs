//! Locks between processes: `flock` on a file, which the kernel releases when its owner dies.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::files;
use crate::store::StoreError;

/// How long a waiter sleeps at most before it tries again. A blocking `flock` would occupy a thread that
/// nothing can cancel.
const POLL_MAX: Duration = Duration::from_millis(50);

/// How often an attempt starts over because the file's last owner removed it at that moment.
const ATTEMPTS: u32 = 100;

/// Holds a lock until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it releases the lock"]
pub struct Lock {
    path: PathBuf,
    /// Open as long as the lock is held.
    _file: fs_err::File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is still locked, so that nobody else's is: who has it open sees that it lost its name.
        let _ = fs_err::remove_file(&self.path);
    }
}

/// Takes the lock `name` in `directory` if it is free.
pub(super) fn attempt(directory: &Path, name: &str) -> io::Result<Option<Lock>> {
    let path = directory.join(name);
    for _ in 0..ATTEMPTS {
        let file = files::with_parent(&path, || open(&path))?;
        if !try_flock(&file)? {
            return Ok(None);
        }
        if files::still_names(&path, &file)? {
            return Ok(Some(Lock { path, _file: file }));
        }
    }
    Ok(None)
}

/// Repeats `attempt` until it gets the lock.
pub(super) async fn wait(attempt: impl Fn() -> Result<Option<Lock>, StoreError>) -> Result<Lock, StoreError> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(lock) = attempt()? {
            return Ok(lock);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_MAX);
    }
}

pub(super) fn open(path: &Path) -> io::Result<fs_err::File> {
    fs_err::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// `false` if somebody else has it. A file system without locks grants every one: they save work, they do not
/// protect the store.
pub(super) fn try_flock(file: &fs_err::File) -> io::Result<bool> {
    use rustix::io::Errno;
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
