//! Anything that an image can be read from.

use std::fmt::Debug;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;

use super::RegistryError;
use crate::digest::Digest;
use crate::hint::Hint;
use crate::image::{Descriptor, ImageConfig, ImageError, Manifest, NoSuchPlatform};
use crate::platform::Platform;

/// Told how many bytes of the current transfer have arrived or left so far. Called often, and from the task that
/// transfers: it must return at once.
pub type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// An image, resolved to one platform. Its documents are verified; its layers have not been looked at.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// The image's name for messages.
    pub name: String,
    /// The digest of the manifest.
    pub manifest_digest: Digest,
    /// The manifest.
    pub manifest: Manifest,
    /// The manifest as it was read.
    pub manifest_bytes: Bytes,
    /// The configuration. It has as many diff ids as the manifest has layers.
    pub config: ImageConfig,
    /// The configuration as it was read.
    pub config_bytes: Bytes,
    /// The digest of the index that the manifest was selected from, if there was one.
    pub index_digest: Option<Digest>,
}

/// Somewhere that an image can be read from.
#[async_trait]
pub trait ImageSource: Debug + Send + Sync {
    /// Finds the image for `platform` and reads its documents.
    async fn resolve(&self, platform: &Platform) -> Result<ResolvedImage, SourceError>;

    /// Writes the blob of `layer`, one of a resolved image's, to the file `destination`, which is created or
    /// replaced. The file appears when its size and digest have been verified, and not at all on an error; until
    /// then the bytes are in a neighbour of it named `….partial`.
    async fn fetch_layer(
        &self,
        layer: &Descriptor,
        destination: &Path,
        progress: Progress<'_>,
    ) -> Result<(), SourceError>;

    /// The registry and repository that has this image's layers, from where a push to the same registry can mount
    /// them.
    fn mount_from(&self) -> Option<(String, String)> {
        None
    }
}

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A document is not what it should be.
    #[error("cannot use {name}: {source}")]
    Image {
        /// The image.
        name: String,
        /// The cause.
        source: ImageError,
    },
    /// The image does not exist for the platform.
    #[error("cannot use {name}: {source}")]
    Platform {
        /// The image.
        name: String,
        /// The cause.
        source: NoSuchPlatform,
    },
    /// The documents contradict each other, or something that they name is missing.
    #[error("cannot use {name}: {reason}")]
    Inconsistent {
        /// The image.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A layout or archive does not have the image.
    #[error("{location} has no image {wanted}{}", listed(available))]
    NotFound {
        /// The layout or archive.
        location: String,
        /// What was looked for.
        wanted: String,
        /// The images that are there.
        available: Vec<String>,
    },
    /// A layout or archive cannot be read as one.
    #[error("{location} cannot be read as an image: {reason}")]
    Malformed {
        /// The layout or archive.
        location: String,
        /// What is wrong.
        reason: String,
    },
    /// Reading or writing a file failed.
    #[error("{action} failed: {source}")]
    Io {
        /// What was being done, with the path.
        action: String,
        /// The cause.
        source: std::io::Error,
    },
}

fn listed(available: &[String]) -> String {
    match available {
        [] => " (it has none with a name)".to_owned(),
        names => {
            // As many as fit a message.
            let shown = names.iter().take(20).cloned().collect::<Vec<_>>().join(", ");
            format!(" (it has {shown}{})", if names.len() > 20 { ", …" } else { "" })
        }
    }
}

impl Hint for SourceError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(error) => error.hint(),
            Self::Image { source, .. } => source.hint(),
            Self::Platform { source, .. } => source.hint(),
            Self::NotFound { wanted, available, .. } => {
                crate::hint::did_you_mean(wanted, available.iter().map(String::as_str))
                    .map(|name| format!("did you mean `{name}`?"))
            }
            Self::Malformed { .. } => Some(
                "expected an OCI layout directory, or a tar made by `docker save`, `podman save` or `skopeo copy`"
                    .to_owned(),
            ),
            Self::Inconsistent { .. } | Self::Io { .. } => None,
        }
    }
}
