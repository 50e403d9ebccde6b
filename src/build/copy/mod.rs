//! COPY, ADD and WORKDIR on trees: nothing is mounted or unpacked for them. Destination links, `--chown` names and
//! existing directories are looked up in the tree, and only what they add is written.

pub(crate) mod archive;
pub(crate) mod copier;
pub(crate) mod select;
pub(crate) mod staging;
pub(crate) mod step;
pub(crate) mod view;

pub(crate) use view::TooManyLinks;

use super::error::BuildError;

/// Opens the files of a source tree.
pub(crate) trait Opener {
    /// The content of the regular file at `path`.
    fn open(&self, path: &[u8]) -> Result<Box<dyn std::io::Read + Send>, CopyError>;

    /// Whether the files are somebody's own, who may change them at any time.
    fn is_context(&self) -> bool {
        false
    }

    /// Why reading failed, if it was not the reader's own fault.
    fn failure(&self) -> Option<BuildError> {
        None
    }
}

/// A source whose files are not needed, only what they are.
pub(crate) struct NoFiles;

impl Opener for NoFiles {
    fn open(&self, path: &[u8]) -> Result<Box<dyn std::io::Read + Send>, CopyError> {
        Err(CopyError::NotFound { path: view::display(path) })
    }
}

/// Why files could not be copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error(
        "`{path}` cannot be in an image: names that begin with `.wh.` mean there that something is removed"
    )]
    Reserved { path: String },
    /// The source does not exist.
    #[error("`{path}` not found")]
    NotFound {
        /// The path in the source.
        path: String,
    },
    /// A pattern is malformed.
    #[error("`{pattern}` is not a valid pattern")]
    BadPattern {
        /// The pattern.
        pattern: String,
    },
    /// A directory is needed where something else is.
    #[error("cannot copy to non-directory `/{path}`")]
    NotADirectory {
        /// The path in the destination.
        path: String,
    },
    /// A file would replace a directory.
    #[error("cannot replace directory `/{path}` with a file")]
    IsADirectory {
        /// The path in the destination.
        path: String,
    },
    /// Links lead in a circle.
    #[error(transparent)]
    TooManyLinks(#[from] TooManyLinks),
    /// An archive that is to be unpacked is damaged or hostile.
    #[error("could not unpack `{path}`")]
    Archive {
        /// The archive's path in the source.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be read or spooled.
    #[error("could not read `{path}`")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}
