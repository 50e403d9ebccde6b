//! Anything that an image can be read from.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Client, RegistryError};
use crate::digest::Digest;
use crate::hint::Hint;
use crate::image::{
    Descriptor, Document, ImageConfig, ImageError, Index, Manifest, NoSuchPlatform, select_platform,
};
use crate::platform::Platform;
use crate::reference::Reference;

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
        source: Box<NoSuchPlatform>,
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

/// Reads small documents by descriptor: what [`resolve_from`] needs of a source.
#[async_trait]
pub(super) trait Documents: Send + Sync {
    /// The verified bytes of a manifest, an index or a configuration, at most `limit` of them.
    async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, SourceError>;
}

/// Goes from a manifest or an index down to the image for `platform`.
pub(super) async fn resolve_from(
    documents: &dyn Documents,
    name: String,
    digest: Digest,
    bytes: Bytes,
    platform: &Platform,
) -> Result<ResolvedImage, SourceError> {
    // An index in an index is legal; deeper nesting than this is not seen outside of tests.
    const DEPTH_MAX: usize = 4;
    let image_error = |source| SourceError::Image { name: name.clone(), source };
    let (mut digest, mut bytes, mut index_digest) = (digest, bytes, None);
    for _ in 0..DEPTH_MAX {
        match Document::parse(&bytes).map_err(image_error)? {
            Document::Index(index) => {
                let descriptor = select_in(&index, platform, &name)?;
                index_digest.get_or_insert(digest);
                digest = descriptor.digest;
                bytes = documents.document(descriptor, crate::image::MANIFEST_BYTES_MAX).await?;
            }
            Document::Manifest(manifest) => {
                let config_bytes =
                    documents.document(&manifest.config, crate::image::CONFIG_BYTES_MAX).await?;
                let config = ImageConfig::parse(&config_bytes).map_err(image_error)?;
                check(&name, &manifest, &config)?;
                return Ok(ResolvedImage {
                    name,
                    manifest_digest: digest,
                    manifest: *manifest,
                    manifest_bytes: bytes,
                    config,
                    config_bytes,
                    index_digest,
                });
            }
        }
    }
    Err(SourceError::Inconsistent { name, reason: "its indexes are nested too deeply".to_owned() })
}

fn select_in<'a>(index: &'a Index, platform: &Platform, name: &str) -> Result<&'a Descriptor, SourceError> {
    match select_platform(index, platform) {
        Ok(descriptor) => Ok(descriptor),
        // An index whose only content is another index, as layouts have it.
        Err(source) => match index.manifests.as_slice() {
            [only] if only.media_type == index.media_type() && only.platform.is_none() => Ok(only),
            _ => Err(SourceError::Platform { name: name.to_owned(), source: source.into() }),
        },
    }
}

fn check(name: &str, manifest: &Manifest, config: &ImageConfig) -> Result<(), SourceError> {
    let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    if layers == diff_ids {
        return Ok(());
    }
    let kind = &manifest.config.media_type;
    let reason = if crate::image::media_types::OCI_CONFIG == kind
        || crate::image::media_types::DOCKER_CONFIG == kind
    {
        format!("its manifest has {layers} layers, its configuration {diff_ids}")
    } else {
        let kind: String = kind.chars().take(100).collect();
        format!("it is no container image: its configuration is of type `{kind}`")
    };
    Err(SourceError::Inconsistent { name: name.to_owned(), reason })
}

/// The neighbour of `destination` that bytes are written to until they are verified.
pub(super) fn partial_path(destination: &Path) -> PathBuf {
    let mut name = destination.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// An image in a registry.
#[derive(Debug, Clone)]
pub struct RegistrySource {
    client: Client,
    reference: Reference,
}

impl RegistrySource {
    /// The image that `reference` names; nothing is asked yet.
    pub fn new(client: Client, reference: Reference) -> Self {
        Self { client, reference }
    }

    /// The image's reference.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }
}

#[async_trait]
impl Documents for RegistrySource {
    async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, SourceError> {
        let manifest = matches!(
            descriptor.media_type.as_str(),
            crate::image::media_types::OCI_MANIFEST
                | crate::image::media_types::OCI_INDEX
                | crate::image::media_types::DOCKER_MANIFEST
                | crate::image::media_types::DOCKER_INDEX
        );
        if manifest {
            let reference = self.reference.with_digest(descriptor.digest);
            Ok(self.client.manifest(&reference).await?.bytes)
        } else {
            Ok(self.client.blob_bytes(&self.reference, descriptor, limit).await?)
        }
    }
}

#[async_trait]
impl ImageSource for RegistrySource {
    async fn resolve(&self, platform: &Platform) -> Result<ResolvedImage, SourceError> {
        let manifest = self.client.manifest(&self.reference).await?;
        resolve_from(self, self.reference.familiar(), manifest.digest, manifest.bytes, platform).await
    }

    async fn fetch_layer(
        &self,
        layer: &Descriptor,
        destination: &Path,
        progress: Progress<'_>,
    ) -> Result<(), SourceError> {
        Ok(self.client.fetch_blob(&self.reference, layer, destination, progress).await?)
    }

    fn mount_from(&self) -> Option<(String, String)> {
        Some((self.reference.registry().to_owned(), self.reference.repository().to_owned()))
    }
}
