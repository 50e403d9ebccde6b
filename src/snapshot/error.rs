//! Why a snapshot cannot be written or read.

use crate::encoding::DecodeError;
use crate::layer::LayerError;

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Bytes are not what they should be.
    #[error("a {what} is not one, or is damaged")]
    Malformed {
        /// What they should be.
        what: &'static str,
        /// What is wrong with them.
        #[source]
        source: DecodeError,
    },
    /// An entry breaks the rules.
    #[error("the entry `{path}` of a snapshot {problem}")]
    Entry {
        /// Its path.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A pack breaks the rules.
    #[error("the pack {number} of a snapshot {problem}")]
    Pack {
        /// Its place.
        number: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Something is larger than anything real is.
    #[error("a snapshot cannot have {what} of more than {limit}")]
    Limit {
        /// What.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A file is not as long as it was said to be.
    #[error("{path} changed while it was read: {expected} bytes were expected, and there are {found}")]
    Changed {
        /// The file.
        path: String,
        /// Its length.
        expected: u64,
        /// What was found.
        found: String,
    },
    /// Reading or writing failed.
    #[error("{action} failed")]
    Io {
        /// What was being done.
        action: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Compressing failed.
    #[error("compressing a pack failed")]
    Compress(#[from] LayerError),
}

impl SnapshotError {
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    pub(super) fn malformed(what: &'static str) -> impl FnOnce(DecodeError) -> Self {
        move |source| Self::Malformed { what, source }
    }

    pub(super) fn entry(path: &[u8], problem: &'static str) -> Self {
        Self::Entry { path: crate::layer::display_path(path), problem }
    }
}
