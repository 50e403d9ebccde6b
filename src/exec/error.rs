//! Why a step could not be run.

use std::io;
use std::path::PathBuf;

use crate::hint::Hint;

/// A step could not be run at all, or was stopped. A command that ran and failed is no error here.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The caller's [`CancelToken`](crate::exec::CancelToken) was cancelled.
    #[error("the step was cancelled")]
    Cancelled,
    /// The helper process could not be started.
    #[error("cannot start the step's helper process {program}", program = program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Talking to the helper process failed.
    #[error("lost contact with the step's helper process while {doing}")]
    Channel {
        /// What was going on.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The helper process could not prepare the sandbox.
    #[error("cannot set up the step's sandbox: {what}: {reason}")]
    Setup {
        /// What it was doing, with the paths.
        what: String,
        /// What the kernel said.
        reason: String,
        /// What the reader can do.
        advice: Option<String>,
    },
    /// The helper process ended without saying how the command did.
    #[error("the step's helper process ended unexpectedly ({status})")]
    HelperDied {
        /// Its exit status.
        status: String,
    },
    /// The step asks for what cannot be done here.
    #[error("{what}")]
    Unsupported {
        /// One sentence.
        what: String,
        /// What the reader can do.
        advice: String,
    },
    /// What the executor had created in `upper` could not be removed again.
    #[error("cannot remove the mount point {path} from the step's result", path = path.display())]
    Cleanup {
        /// The path inside the root.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Hint for ExecError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Setup { advice, .. } => advice.clone(),
            Self::Unsupported { advice, .. } => Some(advice.clone()),
            Self::Spawn { .. } => {
                Some("check that the crossdock program file still exists and may be executed".to_owned())
            }
            Self::HelperDied { .. } => Some(
                "it may have been killed for lack of memory; `dmesg` and `crossdock doctor` tell more"
                    .to_owned(),
            ),
            Self::Cancelled | Self::Channel { .. } | Self::Cleanup { .. } => None,
        }
    }
}
