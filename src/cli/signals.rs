//! SIGINT and SIGTERM: the first asks the build to stop and clean up, the second ends the program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use super::error::ExitStatus;
use super::report::Reporter;

/// Which signal came, if any.
#[derive(Debug, Clone, Default)]
pub(super) struct Received(Arc<AtomicU8>);

impl Received {
    /// The exit code that the first signal asks for.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        match self.0.load(Ordering::SeqCst) {
            0 => None,
            code if code == ExitStatus::Terminated.code() => Some(ExitStatus::Terminated),
            _ => Some(ExitStatus::Interrupted),
        }
    }
}

/// Listens from now on: the first signal calls `cancel`. Must be called inside the runtime.
pub(super) fn listen(
    reporter: Arc<dyn Reporter>,
    cancel: impl FnOnce() + Send + 'static,
) -> std::io::Result<Received> {
    let received = Received::default();
    // A file that may not get so large is an error of the write, and no reason to die. What is handled, unlike what is
    // ignored, is not handed down to the commands of steps.
    drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let shared = received.clone();
    tokio::spawn(async move {
        let first = next(&mut interrupts, &mut terminations).await;
        shared.0.store(first.code(), Ordering::SeqCst);
        reporter.note("stopping and cleaning up; interrupt again to end at once");
        cancel();
        let second = next(&mut interrupts, &mut terminations).await;
        reporter.close();
        leave(second);
    });
    Ok(received)
}

#[expect(clippy::exit, reason = "the user asked twice: no destructor may delay it")]
fn leave(status: ExitStatus) {
    std::process::exit(status.code().into());
}

async fn next(
    interrupts: &mut tokio::signal::unix::Signal,
    terminations: &mut tokio::signal::unix::Signal,
) -> ExitStatus {
    tokio::select! {
        _ = interrupts.recv() => ExitStatus::Interrupted,
        _ = terminations.recv() => ExitStatus::Terminated,
    }
}
