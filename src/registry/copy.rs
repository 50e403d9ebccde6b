//! Copying a blob between local files, verified.

use std::io::{self, Read, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::source::{Progress, SourceError, partial_path};
use crate::digest::Verifying;
use crate::image::Descriptor;

/// How much is copied at once, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// How often the progress is reported.
const REPORT_INTERVAL: Duration = Duration::from_millis(50);

/// Runs blocking work elsewhere, so that it does not hold up the tasks of this thread.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, io::Error> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Tells the copying thread to stop when nobody waits for it any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Copies what `open` yields to the file `destination`, which appears when it is known to be `blob`.
pub(super) async fn copy_verified<R: Read + Send + 'static>(
    open: impl FnOnce() -> io::Result<R> + Send + 'static,
    location: &str,
    blob: &Descriptor,
    destination: &Path,
    progress: Progress<'_>,
) -> Result<(), SourceError> {
    let copied = Arc::new(AtomicU64::new(0));
    let stop = StopOnDrop(Arc::default());
    let work = {
        let (copied, stop) = (Arc::clone(&copied), Arc::clone(&stop.0));
        let (digest, size) = (blob.digest, blob.size);
        let destination = destination.to_owned();
        move || {
            let partial = partial_path(&destination);
            let result = (|| {
                let mut reader = Verifying::new(open()?, digest, size);
                let mut file = fs_err::File::create(&partial)?;
                let mut piece = vec![0; PIECE_BYTES];
                loop {
                    if stop.load(Ordering::Relaxed) {
                        return Err(io::Error::new(io::ErrorKind::Interrupted, "nobody waits for the copy"));
                    }
                    match reader.read(&mut piece)? {
                        0 => break,
                        read => {
                            file.write_all(&piece[..read])?;
                            copied.fetch_add(read as u64, Ordering::Relaxed);
                        }
                    }
                }
                fs_err::rename(&partial, &destination)
            })();
            if result.is_err() {
                // The first error is the one that counts.
                let _ = fs_err::remove_file(&partial);
            }
            result
        }
    };
    let mut working = std::pin::pin!(blocking(work));
    let result = loop {
        let outcome = tokio::time::timeout(REPORT_INTERVAL, &mut working).await;
        progress(copied.load(Ordering::Relaxed));
        if let Ok(result) = outcome {
            break result;
        }
    };
    drop(stop);
    result.and_then(|copied| copied).map_err(|source| SourceError::Io {
        action: format!("reading blob {} of {location}", blob.digest),
        source,
    })
}
