//! What runs in the helper processes, before any thread exists.
//!
//! The *supervisor* holds the step's namespaces open, waits for the command and kills it when the executor
//! hangs up (which it does even when it is killed). It starts *init*, which is process 1 of the step: it
//! builds the root filesystem, gives up its privileges and becomes the command.

mod bundle;
mod init;
mod mounts;
mod once;
mod privileges;
mod rootfs;
mod supervisor;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use rustix::fd::{AsFd, OwnedFd};

pub(super) use init::DEFAULT_HOSTNAME;
pub use once::Once;
pub(super) use rootfs::{modified, mount_overlay};
pub(super) use supervisor::{OWN_NETWORK, mount_fuse};

use crate::exec::ExecError;
use crate::exec::protocol::{INIT, MAP_IDS, ONCE, Report, SUPERVISOR, send, send_with};

/// Runs the helper that `args` (without the program's name) asks for; `None` if they are for somebody else.
///
/// `main` must call this before it starts any thread or reads anything from standard input.
pub fn helper_main(args: &[OsString]) -> Option<ExitCode> {
    let (name, rest) = args.split_first()?;
    match name.to_str()? {
        SUPERVISOR => Some(supervisor::main(rest)),
        INIT => Some(init::main()),
        ONCE => Some(once::main()),
        MAP_IDS => Some(crate::exec::userns::map_ids_main(rest)),
        _ => None,
    }
}

/// Why the sandbox cannot be set up.
#[derive(Debug)]
pub(super) struct SetupError {
    what: String,
    reason: String,
    advice: Option<String>,
}

impl SetupError {
    fn new(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { what: what.into(), reason: reason.into(), advice: None }
    }

    fn with_advice(mut self, advice: &str) -> Self {
        self.advice = Some(advice.to_owned());
        self
    }

    /// For who is no helper.
    pub(super) fn into_exec(self) -> ExecError {
        ExecError::Setup { what: self.what, reason: self.reason, advice: self.advice }
    }
}

/// Says what was being done when a call failed.
trait Doing<T> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, SetupError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, SetupError> {
        self.map_err(|error| SetupError::new(what(), error.into().to_string()))
    }
}

/// The executor's end of the conversation, on a descriptor that the command does not inherit.
#[derive(Debug)]
struct Channel(UnixStream);

impl Channel {
    /// Takes over standard input, which is how helpers get the socket.
    fn from_stdin() -> io::Result<Self> {
        let fd: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        Ok(Self(UnixStream::from(fd)))
    }

    /// A report that cannot be delivered has no reader any more, and the hang-up ends the run.
    fn report(&self, report: &Report) {
        let _ = send(&self.0, report);
    }

    /// The executor must get this one.
    fn hand_over(&self, report: &Report, device: &OwnedFd) -> io::Result<()> {
        send_with(&self.0, report, device)
    }

    fn note(&self, text: impl Into<String>) {
        self.report(&Report::Note(text.into()));
    }

    fn fail(&self, error: SetupError) {
        self.report(&Report::Failed { what: error.what, reason: error.reason, advice: error.advice });
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Replaces standard input by an empty file.
fn stdin_from(null: &Path) -> io::Result<()> {
    let null = File::open(null)?;
    Ok(rustix::stdio::dup2_stdin(&null)?)
}
