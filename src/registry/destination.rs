//! What it takes to write an image somewhere.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;

use super::RegistryError;
use crate::digest::Digest;
use crate::hint::Hint;
use crate::image::{Descriptor, ImageConfig, Index, media_types};
use crate::store::BlobSource;

/// Any error of a [`BlobProvider`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Supplies the layers of an image that is being written, when they are needed and only then.
#[async_trait]
pub trait BlobProvider: Send + Sync {
    /// The bytes that `blob` names. A file must stay as it is until the writing has ended.
    async fn open(&self, blob: &Descriptor) -> Result<BlobSource, BoxError>;
}

/// A layer to push.
#[derive(Debug, Clone)]
pub struct PushLayer {
    /// The layer, as the manifest has it.
    pub descriptor: Descriptor,
    /// Registries and repositories that may have it. Those on the destination's registry are asked to mount it.
    pub mount_candidates: Vec<(String, String)>,
}

/// One image to write somewhere.
#[derive(Debug, Clone)]
pub struct ImageBundle {
    /// The manifest, byte for byte.
    pub manifest: Bytes,
    /// Its media type.
    pub media_type: String,
    /// The configuration, byte for byte, and its media type.
    pub config: Bytes,
    /// The configuration's descriptor, as the manifest has it.
    pub config_descriptor: Descriptor,
    /// The layers. One that occurs twice is sent once.
    pub layers: Vec<PushLayer>,
}

impl ImageBundle {
    /// The digest under which the image will be known.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// The descriptor of the manifest, with the platform that the configuration says.
    pub fn descriptor(&self) -> Descriptor {
        let mut descriptor = Descriptor::of(&self.media_type, &self.manifest);
        descriptor.platform = ImageConfig::parse(&self.config).ok().and_then(|config| config.platform());
        descriptor
    }
}

/// What is known under one name: an image, or an index of images for several platforms.
#[derive(Debug, Clone)]
pub struct ImageSet {
    images: Vec<ImageBundle>,
    document: Bytes,
    /// The media type of the index, if it is one.
    index: Option<String>,
    /// Annotations of the descriptor by which a layout's or archive's own index names it.
    pub annotations: BTreeMap<String, String>,
}

impl ImageSet {
    /// One image.
    pub fn one(image: ImageBundle) -> Self {
        let document = image.manifest.clone();
        Self { images: vec![image], document, index: None, annotations: BTreeMap::new() }
    }

    /// The images that `index` names.
    pub fn indexed(images: Vec<ImageBundle>, index: &Index) -> Self {
        let document = Bytes::from(index.to_bytes());
        let media_type = index.media_type().to_owned();
        Self { images, document, index: Some(media_type), annotations: BTreeMap::new() }
    }

    /// The images.
    pub fn images(&self) -> &[ImageBundle] {
        &self.images
    }

    /// The image, if it is one and no index.
    pub fn single(&self) -> Option<&ImageBundle> {
        self.images.first().filter(|_| self.index.is_none())
    }

    /// The index or else the manifest, byte for byte.
    pub fn document(&self) -> &Bytes {
        &self.document
    }

    /// The descriptor of that document.
    pub fn descriptor(&self) -> Descriptor {
        match (self.single(), &self.index) {
            (Some(image), _) => image.descriptor(),
            (None, index) => {
                Descriptor::of(index.as_deref().unwrap_or(media_types::OCI_INDEX), &self.document)
            }
        }
    }
}

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushReport {
    /// The digest of the manifest.
    pub digest: Digest,
    /// Bytes of blobs and manifests that were sent.
    pub uploaded_bytes: u64,
    /// Blobs that were sent.
    pub uploaded: u32,
    /// Blobs that the registry took over from another of its repositories.
    pub mounted: u32,
    /// Blobs that were there already.
    pub existed: u32,
    /// The tag pointed at this very manifest already, and nothing was sent.
    pub unchanged: bool,
}

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The provider could not supply a layer.
    #[error("layer {digest} is not available")]
    Blob {
        /// The layer.
        digest: Digest,
        /// The cause.
        source: BoxError,
    },
    /// The image cannot be expressed in the output's format.
    #[error("cannot write {location}: {reason}")]
    Unsupported {
        /// The output.
        location: String,
        /// Why not.
        reason: String,
    },
    /// Writing failed.
    #[error("{action} failed: {source}")]
    Io {
        /// What was being done, with the path.
        action: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl Hint for DestinationError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(error) => error.hint(),
            _ => None,
        }
    }
}
