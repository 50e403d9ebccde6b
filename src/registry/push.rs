//! Pushing an image to a registry: only what it does not have.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::{Either, select};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::auth::Access;
use super::client::{Client, ManifestHead, MountOutcome, UploadSession};
use super::destination::{BlobProvider, DestinationError, ImageBundle, ImageSet, PushLayer, PushReport};
use super::source::Progress;
use crate::digest::Digest;
use crate::image::Descriptor;
use crate::reference::Reference;
use crate::store::BlobSource;

/// How many blobs are asked for side by side: where an answer is far away, all of an ordinary image.
const QUESTIONS: usize = 8;

/// How many blobs are sent side by side. More gains nothing on one connection, and registries count.
const UPLOADS: usize = 4;

/// How many repositories are asked for one layer. The first that had it will do.
const MOUNTS_MAX: usize = 3;

/// Which way a blob came to the registry.
enum Moved {
    Mounted,
    Uploaded(u64),
}

/// A blob of an image.
#[derive(Clone, Copy)]
enum Part<'i> {
    Layer(&'i PushLayer),
    Config(&'i ImageBundle),
}

impl<'i> Part<'i> {
    fn descriptor(self) -> &'i Descriptor {
        match self {
            Self::Layer(layer) => &layer.descriptor,
            Self::Config(image) => &image.config_descriptor,
        }
    }
}

/// Pushes `images` to `reference`: layers and configurations, then the manifests, then the index if there is one, so that
/// whoever sees a manifest finds everything that it names. If the tag points at this manifest already, nothing is sent at all.
///
/// Nothing waits for an answer that it does not need: an image with new blobs takes four round trips, of which the first asks what
/// is there, the second and the third send blobs, and the last the manifest.
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
    let total = AtomicU64::new(0);
    let push = Push { client, reference, blobs, total: &total, progress };
    let mut seen = HashSet::new();
    let mut parts: Vec<Part<'_>> = Vec::new();
    for image in images.images() {
        let layers = image.layers.iter().filter(|layer| is_distributable(&layer.descriptor));
        let all = layers.map(Part::Layer).chain([Part::Config(image)]);
        parts.extend(all.filter(|part| seen.insert(part.descriptor().digest)));
    }
    let Some(missing) = push.missing(report.digest, &parts).await? else {
        report.unchanged = true;
        return Ok(report);
    };
    report.existed = u32::try_from(parts.len() - missing.len()).unwrap_or(u32::MAX);
    let moved: Vec<Moved> = stream::iter(missing.into_iter().map(|part| push.send(part)))
        .buffer_unordered(UPLOADS)
        .try_collect()
        .await?;
    for moved in moved {
        match moved {
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
    /// Those parts that the registry does not have; `None` if the tag points at this manifest already. All is asked at once.
    async fn missing<'i>(
        &self,
        manifest: Digest,
        parts: &[Part<'i>],
    ) -> Result<Option<Vec<Part<'i>>>, DestinationError> {
        let access = Access::push(self.reference.repository());
        let head = pin!(self.client.head_manifest_as(self.reference, access, self.client.retry()));
        let missing = stream::iter(parts.iter().map(async |part| {
            let is_there = self.client.has_blob(self.reference, &part.descriptor().digest).await?;
            Ok::<_, DestinationError>((!is_there).then_some(*part))
        }));
        let missing = pin!(missing.buffered(QUESTIONS).try_filter_map(async |part| Ok(part)).try_collect());
        let is_unchanged =
            |head: Option<ManifestHead>| head.is_some_and(|head| head.digest == Some(manifest));
        match select(head, missing).await {
            Either::Left((head, missing)) => {
                if is_unchanged(head?) {
                    Ok(None)
                } else {
                    missing.await.map(Some)
                }
            }
            Either::Right((missing, head)) => {
                if is_unchanged(head.await?) {
                    Ok(None)
                } else {
                    missing.map(Some)
                }
            }
        }
    }

    async fn send(&self, part: Part<'_>) -> Result<Moved, DestinationError> {
        match part {
            Part::Layer(layer) => self.layer(layer).await,
            Part::Config(image) => {
                let source = BlobSource::Bytes(image.config.clone());
                self.upload(part.descriptor(), &source, None).await
            }
        }
    }

    async fn layer(&self, layer: &PushLayer) -> Result<Moved, DestinationError> {
        let descriptor = &layer.descriptor;
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
        self.upload(descriptor, &source, session).await
    }

    async fn upload(
        &self,
        blob: &Descriptor,
        source: &BlobSource,
        session: Option<UploadSession>,
    ) -> Result<Moved, DestinationError> {
        let progress = self.counter();
        self.client.upload_blob(self.reference, blob, source, session, &progress).await?;
        Ok(Moved::Uploaded(blob.size))
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
