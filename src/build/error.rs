//! Why a build failed.

use std::fmt;

use crate::digest::Digest;
use crate::dockerfile::DockerfileError;
use crate::hint::Hint;
use crate::record::Key;
use crate::store::StoreError;

/// Why a build failed. Everything that a user can act on names the place in the Dockerfile.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Dockerfile, or what it says of the context, is wrong.
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    /// A command failed.
    #[error(transparent)]
    Step(#[from] StepFailure),
    /// A base image could not be had.
    #[error("{place}: could not get the image `{image}`")]
    Image {
        /// Where it is used: `Dockerfile:3`.
        place: String,
        /// The image.
        image: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A URL or a git repository could not be had.
    #[error("{place}: could not get `{address}`")]
    Source {
        /// Where it is used: `Dockerfile:3`, or `build context`.
        place: String,
        /// What was to be fetched, without what may be secret.
        address: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        /// What to do about it.
        hint: Option<String>,
    },
    /// This machine cannot run commands.
    #[error("{place}: could not run `{instruction}`")]
    Execute {
        /// Where: `Dockerfile:3`.
        place: String,
        /// The instruction.
        instruction: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The build context, or another directory that is copied from, could not be read, or changed meanwhile.
    #[error("{action} failed")]
    Context {
        /// What was being done.
        action: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The local cache cannot be used.
    #[error("{action} failed")]
    Cache {
        /// What was being done.
        action: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The result could not be written to where it was wanted.
    #[error("could not write the result to {destination}")]
    Export {
        /// Where.
        destination: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A blob that a record names is gone. The build is tried again without that record; reaching the user, it means
    /// that the cache lost things faster than they could be made.
    #[error("the cache lost {digest} while the build was using it")]
    Lost {
        /// The blob.
        digest: Digest,
        /// The records that need it.
        keys: Vec<Key>,
    },
    /// The Dockerfile's own `# check=error=true` makes findings errors.
    #[error("{rules}")]
    Checks {
        /// Which rules, as a sentence.
        rules: String,
    },
    /// The build was interrupted.
    #[error("the build was cancelled")]
    Cancelled,
}

/// A command that failed.
#[derive(Debug)]
pub struct StepFailure {
    /// Where: `Dockerfile:12`.
    pub place: String,
    /// The instruction, as written.
    pub instruction: String,
    /// `exit code 2`, `killed by signal 9 (SIGKILL)`.
    pub outcome: String,
    /// Exit code, if it ended by itself.
    pub exit_code: Option<i32>,
    /// The last lines that it printed.
    pub tail: Vec<String>,
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}` failed: {}", self.place, self.instruction, self.outcome)?;
        if !self.tail.is_empty() {
            write!(f, "\nits last output was:")?;
        }
        for line in &self.tail {
            write!(f, "\n  | {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StepFailure {}

impl Hint for BuildError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Dockerfile(error) => error.hint(),
            Self::Step(failure) => match failure.exit_code {
                Some(127) => {
                    Some("the command was not found: is it installed in an earlier step, and on PATH?".into())
                }
                Some(126) => Some(
                    "the command was found but cannot be executed: check its mode and interpreter".into(),
                ),
                Some(137) => Some("the process was killed, perhaps because memory ran out".into()),
                _ => None,
            },
            Self::Image { hint, .. }
            | Self::Source { hint, .. }
            | Self::Execute { hint, .. }
            | Self::Context { hint, .. }
            | Self::Export { hint, .. } => hint.clone(),
            Self::Cache { .. } => {
                Some("`crossdock cache verify --repair` checks and mends the local cache".into())
            }
            Self::Lost { .. } => Some("build again, with `--no-cache` if it happens again".into()),
            Self::Checks { .. } => Some(
                "the warnings say what was found; `# check=skip=Rule` in the Dockerfile switches a rule off"
                    .into(),
            ),
            Self::Cancelled => None,
        }
    }
}

impl BuildError {
    /// A file of the context that is another one now.
    pub(crate) fn changed(path: &str) -> Self {
        let hint = crate::context::scan::LEAVE_ALONE.to_owned();
        let source = "it changed while it was being copied".into();
        Self::Context { action: format!("copying `{path}`"), source, hint: Some(hint) }
    }

    /// A record could not be stored. If that is because something is gone that it names, which was promised by the record that
    /// it was made from, this is a loss like any other.
    pub(crate) fn storing(action: impl Into<String>, error: StoreError) -> Self {
        match error {
            StoreError::Incomplete { missing, .. } => Self::Lost { digest: missing, keys: Vec::new() },
            error => Self::cache(action, error),
        }
    }

    /// A failure of the local cache.
    pub(crate) fn cache(
        action: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Cache { action: action.into(), source: source.into() }
    }
}
