//! Pushing an image to a registry: only what it does not have.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::auth::Access;
use super::client::{Client, MountOutcome};
use super::destination::{BlobProvider, DestinationError, ImageBundle, ImageSet, PushLayer, PushReport};
use super::source::Progress;
use crate::image::Descriptor;
use crate::reference::Reference;
use crate::store::BlobSource;

/// How many blobs are asked for or sent side by side. More gains nothing on one connection, and registries count.
const PARALLEL: usize = 4;

/// How many repositories are asked for one layer. The first that had it will do.
const MOUNTS_MAX: usize = 3;

/// Which way a blob came to the registry.
enum Moved {
    Existed,
    Mounted,
    Uploaded(u64),
}

/// Pushes `images` to `reference`: layers, then the configurations, then the manifests, then the index if there is one, so
/// that whoever sees a document finds everything that it names. If the tag points at this manifest already, nothing is sent at all.
///
/// `blobs` is asked only for layers that have to be sent. `progress` is told the bytes sent in all.
pub async fn push(
    client: &Client,
    reference: &Reference,
    images: &ImageSet,
    blobs: &dyn BlobProvider,
    progress: Progress<'_>,
) -> Result<PushReport, DestinationError> {
    let mut report = PushReport {
        digest: images.descriptor().digest,
        uploaded_bytes: 0,
        uploaded: 0,
        mounted: 0,
        existed: 0,
        unchanged: false,
    };
    let access = Access::push(reference.repository());
    if let Some(head) = client.head_manifest_as(reference, access, client.retry()).await?
        && head.digest == Some(report.digest)
    {
        report.unchanged = true;
        return Ok(report);
    }
    let total = AtomicU64::new(0);
    let push = Push { client, reference, blobs, total: &total, progress };
    let mut seen = HashSet::new();
    let layers: Vec<&PushLayer> = images
        .images()
        .iter()
        .flat_map(|image| &image.layers)
        .filter(|layer| seen.insert(layer.descriptor.digest) && is_distributable(&layer.descriptor))
        .collect();
    let mut moved: Vec<Moved> = stream::iter(layers.into_iter().map(|layer| push.layer(layer)))
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await?;
    for image in images.images() {
        moved.push(push.config(image).await?);
    }
    for moved in moved {
        match moved {
            Moved::Existed => report.existed += 1,
            Moved::Mounted => report.mounted += 1,
            Moved::Uploaded(bytes) => {
                report.uploaded += 1;
                report.uploaded_bytes += bytes;
            }
        }
    }
    if images.single().is_none() {
        for image in images.images() {
            // Without a tag: the index names it by its digest.
            client.push_manifest_untagged(reference, &image.media_type, image.manifest.clone()).await?;
            report.uploaded_bytes += image.manifest.len() as u64;
        }
    }
    let document = images.document();
    client.push_manifest(reference, &images.descriptor().media_type, document.clone()).await?;
    report.uploaded_bytes += document.len() as u64;
    Ok(report)
}

/// Whether registries may have the layer. Those of Windows base images stay with Microsoft.
fn is_distributable(layer: &Descriptor) -> bool {
    !layer.media_type.contains(".foreign.") && !layer.media_type.contains(".nondistributable.")
}

struct Push<'a> {
    client: &'a Client,
    reference: &'a Reference,
    blobs: &'a dyn BlobProvider,
    total: &'a AtomicU64,
    progress: Progress<'a>,
}

impl Push<'_> {
    async fn layer(&self, layer: &PushLayer) -> Result<Moved, DestinationError> {
        let descriptor = &layer.descriptor;
        if self.client.has_blob(self.reference, &descriptor.digest).await? {
            return Ok(Moved::Existed);
        }
        let mut session = None;
        for repository in self.mount_candidates(layer) {
            match self.client.mount_blob(self.reference, &descriptor.digest, repository).await? {
                MountOutcome::Mounted => return Ok(Moved::Mounted),
                MountOutcome::Upload(opened) => session = Some(opened),
                MountOutcome::Refused => {}
            }
        }
        let source = self
            .blobs
            .open(descriptor)
            .await
            .map_err(|source| DestinationError::Blob { digest: descriptor.digest, source })?;
        let progress = self.counter();
        self.client.upload_blob(self.reference, descriptor, &source, session, &progress).await?;
        Ok(Moved::Uploaded(descriptor.size))
    }

    fn mount_candidates<'l>(&self, layer: &'l PushLayer) -> impl Iterator<Item = &'l str> {
        let (registry, own) = (self.reference.registry().to_owned(), self.reference.repository().to_owned());
        let mut seen = HashSet::new();
        layer
            .mount_candidates
            .iter()
            .filter(move |(at, repository)| {
                *at == registry && *repository != own && seen.insert(repository.clone())
            })
            .map(|(_, repository)| repository.as_str())
            .take(MOUNTS_MAX)
    }

    async fn config(&self, bundle: &ImageBundle) -> Result<Moved, DestinationError> {
        let descriptor = &bundle.config_descriptor;
        if self.client.has_blob(self.reference, &descriptor.digest).await? {
            return Ok(Moved::Existed);
        }
        let source = BlobSource::Bytes(bundle.config.clone());
        let progress = self.counter();
        self.client.upload_blob(self.reference, descriptor, &source, None, &progress).await?;
        Ok(Moved::Uploaded(descriptor.size))
    }

    /// Adds the progress of one blob to that of all. A blob that starts again takes its bytes back first.
    fn counter(&self) -> impl Fn(u64) + Send + Sync {
        let last = AtomicU64::new(0);
        let (total, progress) = (self.total, self.progress);
        move |bytes| {
            let before = last.swap(bytes, Ordering::Relaxed);
            let sum = if bytes >= before {
                total.fetch_add(bytes - before, Ordering::Relaxed) + (bytes - before)
            } else {
                total.fetch_sub(before - bytes, Ordering::Relaxed) - (before - bytes)
            };
            progress(sum);
        }
    }
}
