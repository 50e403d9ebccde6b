//! Whether there was room for what a command wrote: one that does not look at its errors ends well on a full disk, and
//! leaves half of its files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// A disk with less than this is full: no file system gives away its last bytes.
const BYTES_MIN: u64 = 1 << 20;

/// How often the disk is looked at: whoever fills it and clears it again within less than this is not seen.
const INTERVAL: Duration = Duration::from_millis(50);

/// Watches the disk of a directory while a command runs.
#[derive(Debug)]
pub(super) struct Room {
    directory: PathBuf,
    was_full: Arc<AtomicBool>,
    /// Dropped to end the watch.
    end: Option<Sender<()>>,
    watch: Option<JoinHandle<()>>,
}

impl Room {
    /// Begins to watch the disk that has `directory`. If there can be no thread for it, it is looked at in the end only.
    pub(super) fn watch(directory: &Path) -> Self {
        let was_full = Arc::new(AtomicBool::new(false));
        let (end, ended) = channel();
        let (place, full) = (directory.to_owned(), Arc::clone(&was_full));
        let watch = std::thread::Builder::new().name("room".to_owned()).spawn(move || {
            while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if is_full(&place) {
                    full.store(true, Ordering::Relaxed);
                }
            }
        });
        Self { directory: directory.to_owned(), was_full, end: Some(end), watch: watch.ok() }
    }

    /// Ends the watch: whether the disk was full at any time.
    pub(super) fn was_full(mut self) -> bool {
        self.stop();
        self.was_full.load(Ordering::Relaxed) || is_full(&self.directory)
    }

    fn stop(&mut self) {
        drop(self.end.take());
        if let Some(watch) = self.watch.take() {
            // It does nothing that could panic.
            let _ = watch.join();
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether the disk that has `directory` is full. One that does not say is taken for one that is not.
fn is_full(directory: &Path) -> bool {
    let Ok(disk) = rustix::fs::statvfs(directory) else { return false };
    // The last blocks of some file systems are root's.
    let free = if rustix::process::geteuid().is_root() { disk.f_bfree } else { disk.f_bavail };
    // Some file systems have no fixed number of files, and say 0 of 0.
    let files_are_out = disk.f_files > 0 && disk.f_ffree == 0;
    disk.f_blocks > 0 && free.saturating_mul(disk.f_frsize) < BYTES_MIN || files_are_out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_disk_is_not_full() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!Room::watch(directory.path()).was_full());
        assert!(!is_full(&directory.path().join("missing")));
    }
}
