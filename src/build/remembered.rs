//! What image names meant the last time, for the day when a registry does not answer.
//!
//! A tag is looked up at its registry in every build, because it may have moved. A registry that is down is no reason to
//! fail a build, though, if the image is known: then what the tag meant last is used, and said so. A name with a digest
//! cannot have moved and is not looked up again at all.

use std::path::PathBuf;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::engine::Engine;
use crate::context::open::read_small;
use crate::digest::Digest;
use crate::image::{CONFIG_BYTES_MAX, ImageConfig, MANIFEST_BYTES_MAX, Manifest};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::{RegistryErrorKind, ResolvedImage, SourceError};
use crate::store::{BlobSource, Store as _, replace_file};

/// Three digests take a few hundred bytes.
const REMEMBERED_BYTES_MAX: u64 = 64 << 10;

/// The documents of an image, which are blobs in the local store.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    manifest: Digest,
    config: Digest,
    index: Option<Digest>,
}

/// Where the meaning of `reference` on `platform` is kept.
fn place(engine: &Engine, reference: &Reference, platform: &Platform) -> Option<PathBuf> {
    let directory = engine.cache.local().state_dir("references").ok()?;
    Some(directory.join(Digest::of(format!("{reference}\n{platform}")).hex()))
}

/// Remembers what `reference` means. Only a convenience: its loss is no error.
pub(crate) async fn keep(engine: &Engine, reference: &Reference, platform: &Platform, image: &ResolvedImage) {
    let local = engine.cache.local();
    let config = Digest::of(&image.config_bytes);
    for (digest, bytes) in [(&image.manifest_digest, &image.manifest_bytes), (&config, &image.config_bytes)] {
        if local.write_blob(digest, BlobSource::Bytes(bytes.clone())).await.is_err() {
            return;
        }
    }
    let remembered = Remembered { manifest: image.manifest_digest, config, index: image.index_digest };
    if let (Some(path), Ok(text)) = (place(engine, reference, platform), serde_json::to_vec(&remembered)) {
        let _ = replace_file(&path, |file| file.write_all(&text));
    }
}

/// What `reference` meant last, if that is known and its documents are still here.
pub(crate) async fn recall(
    engine: &Engine,
    reference: &Reference,
    platform: &Platform,
) -> Option<ResolvedImage> {
    let text = read_small(&place(engine, reference, platform)?, REMEMBERED_BYTES_MAX).ok()??;
    let remembered: Remembered = serde_json::from_slice(&text).ok()?;
    let local = engine.cache.local();
    let manifest_bytes: Bytes = local.read_blob(&remembered.manifest, MANIFEST_BYTES_MAX).await.ok()??;
    let config_bytes: Bytes = local.read_blob(&remembered.config, CONFIG_BYTES_MAX).await.ok()??;
    Some(ResolvedImage {
        name: reference.familiar(),
        manifest_digest: remembered.manifest,
        manifest: Manifest::parse(&manifest_bytes).ok()?,
        manifest_bytes,
        config: ImageConfig::parse(&config_bytes).ok()?,
        config_bytes,
        index_digest: remembered.index,
    })
}

/// Whether the registry is to blame, and may answer another time.
pub(crate) fn is_outage(error: &SourceError) -> bool {
    let SourceError::Registry(error) = error else { return false };
    match &error.kind {
        RegistryErrorKind::Transport { .. } | RegistryErrorKind::Timeout { .. } => true,
        RegistryErrorKind::Status { status, .. } => *status == 429 || *status >= 500,
        _ => false,
    }
}
