//! What can go wrong with a layer.

use std::io;

use super::toc_codec::TocError;
use crate::digest::Digest;

/// Why a layer cannot be written, read or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Reading or writing failed.
    #[error("{action} failed")]
    Io {
        /// What was being done: `reading the content of usr/bin/tool`.
        action: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file did not have the length that was announced for it.
    #[error("`{path}` changed while it was read: it had {expected} bytes, then {found}")]
    Changed {
        /// The file.
        path: String,
        /// The length announced.
        expected: u64,
        /// What was found: a number, or that there was more.
        found: String,
    },
    /// An entry cannot be part of a layer, or not in this place.
    #[error("the entry `{path}` {problem}")]
    Entry {
        /// Its path, as it was found.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The stream is no tar, or a damaged one.
    #[error("the layer is not a valid tar at byte {at}: {problem}")]
    Tar {
        /// The offset in the uncompressed tar.
        at: u64,
        /// What is wrong.
        problem: String,
    },
    /// Something is larger than the caller, or this program, allows.
    #[error("the layer has {what} above the limit of {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Bytes do not have the digest by which they are known.
    #[error("{what} is damaged: expected {expected}, found {actual}")]
    Damaged {
        /// What was read.
        what: String,
        /// The digest that it should have.
        expected: Box<Digest>,
        /// The digest that it has.
        actual: Box<Digest>,
    },
    /// The table of contents breaks its invariants.
    #[error("the layer's table of contents is not valid")]
    Toc(#[from] TocError),
    /// The compression of the stream is not one that is known here.
    #[error("the layer is compressed in an unknown way (known are gzip, zstd and none)")]
    UnknownCompression,
    /// A thread of the writer ended early.
    #[error("compressing the layer ended unexpectedly")]
    Pipeline,
}

impl LayerError {
    /// For `map_err`: an input or output error with what was being done.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { action: action.into(), source }
    }

    /// An error about bytes that are not what their digest says.
    pub(crate) fn damaged(what: String, expected: Digest, actual: Digest) -> Self {
        Self::Damaged { what, expected: Box::new(expected), actual: Box::new(actual) }
    }

    /// An error about the entry `path`.
    pub(crate) fn entry(path: &[u8], problem: impl Into<String>) -> Self {
        Self::Entry { path: super::display_path(path), problem: problem.into() }
    }
}

impl crate::hint::Hint for LayerError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Changed { .. } => "let nothing write to the files while they are being packed",
            Self::Tar { .. } | Self::Toc(_) | Self::Damaged { .. } => {
                "the layer was damaged or written by a faulty tool; build or fetch it again"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
