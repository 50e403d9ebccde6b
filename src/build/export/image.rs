//! One image: configuration and manifest.

use async_trait::async_trait;
use bytes::Bytes;

use super::super::chain::ChainLayer;
use super::super::engine::Engine;
use super::super::error::BuildError;
use super::super::inputs::Inputs;
use super::super::layers::Layers;
use super::super::options::{AnnotationPlace, BuildRequest, ImageFormat};
use super::super::plan::{Plan, PlannedStage, Start};
use super::compress::converted;
use super::{Built, annotations};
use crate::image::{Descriptor, History, ImageConfig, Manifest, media_types};
use crate::layer::{LayerDescriptor, MediaType, Timestamp};
use crate::registry::{BlobProvider, BoxError, ImageBundle, PushLayer};
use crate::store::BlobSource;

/// An image, ready to be written.
pub(super) struct Image {
    pub(super) bundle: ImageBundle,
    /// Where the blob of each layer comes from.
    pub(super) layers: Vec<ChainLayer>,
}

impl Image {
    pub(super) async fn assemble(
        engine: &Engine,
        request: &BuildRequest,
        layers: &Layers,
        built: &Built<'_>,
        format: ImageFormat,
    ) -> Result<Self, BuildError> {
        let stage = &built.plan.stages[built.plan.target];
        let mut chain_layers = built.chain.layers();
        let (base_history, base_layers) = base_of(built.plan, built.inputs, stage);
        let mut config = configuration(stage, &chain_layers, base_history, request.source_date_epoch);
        if built.platform.is_some() {
            config.os.clone_from(&stage.platform.os);
            config.architecture.clone_from(&stage.platform.architecture);
            config.variant.clone_from(&stage.platform.variant);
        } else {
            let platform = config.platform().unwrap_or_else(|| stage.platform.clone());
            config.os = platform.os;
            config.architecture = platform.architecture;
            config.variant = platform.variant;
        }
        let kept = if format.force { 0 } else { base_layers };
        for layer in chain_layers.iter_mut().skip(kept) {
            layer.descriptor = converted(engine, layers, layer, format).await?;
        }
        let (manifest_type, config_type) = if format.docker_media_types {
            (media_types::DOCKER_MANIFEST, media_types::DOCKER_CONFIG)
        } else {
            (media_types::OCI_MANIFEST, media_types::OCI_CONFIG)
        };
        let descriptor = |layer: &LayerDescriptor| {
            let media_type = match layer.media_type {
                own if !format.docker_media_types => own.as_str(),
                MediaType::Tar => media_types::DOCKER_LAYER,
                MediaType::Gzip => media_types::DOCKER_LAYER_GZIP,
                MediaType::Zstd => media_types::DOCKER_LAYER_ZSTD,
            };
            Descriptor::new(media_type, layer.digest, layer.size)
        };
        let config_bytes = config.to_bytes();
        let config_descriptor = Descriptor::of(config_type, &config_bytes);
        let mut manifest = Manifest::new(
            config_descriptor.clone(),
            chain_layers.iter().map(|layer| descriptor(&layer.descriptor)).collect(),
        );
        manifest.media_type = Some(manifest_type.to_owned());
        manifest.annotations = annotations(request, AnnotationPlace::Manifest, built.platform);
        let push_layers = chain_layers
            .iter()
            .map(|layer| {
                let foreign = layers.foreign(&layer.descriptor.digest);
                let from = foreign.and_then(|(_, image)| image.source.mount_from());
                PushLayer {
                    descriptor: descriptor(&layer.descriptor),
                    mount_candidates: from.into_iter().collect(),
                }
            })
            .collect();
        let bundle = ImageBundle {
            manifest: Bytes::from(manifest.to_bytes()),
            media_type: manifest_type.to_owned(),
            config: Bytes::from(config_bytes),
            config_descriptor,
            layers: push_layers,
        };
        Ok(Self { bundle, layers: chain_layers })
    }
}

/// Supplies layers to whoever writes images.
pub(super) struct Provider<'p> {
    pub(super) engine: &'p Engine,
    pub(super) layers: &'p Layers,
    pub(super) images: &'p [Image],
}

#[async_trait]
impl BlobProvider for Provider<'_> {
    async fn open(&self, blob: &Descriptor) -> Result<BlobSource, BoxError> {
        let mut layers = self.images.iter().flat_map(|image| &image.layers);
        let Some(layer) = layers.find(|layer| layer.descriptor.digest == blob.digest) else {
            return Err(format!("{} is no layer of the image", blob.digest).into());
        };
        let path = self.layers.blob(self.engine, layer).await;
        let path = path.map_err(|error| -> BoxError { Box::new(error) })?;
        Ok(BlobSource::File(path))
    }
}

/// The history of the base image that a stage goes back to, and how many layers it has.
fn base_of<'b>(plan: &Plan, inputs: &'b Inputs, stage: &PlannedStage) -> (&'b [History], usize) {
    let mut start = stage.start;
    while let Start::Stage(base) = start {
        start = plan.stages[base].start;
    }
    match start {
        Start::Source(source) => inputs.image(source).map_or((&[], 0), |input| {
            (input.image.config.history.as_slice(), input.image.manifest.layers.len())
        }),
        Start::Empty | Start::Stage(_) => (&[], 0),
    }
}

/// The image's configuration with layers and times filled in, as BuildKit's exporter does it
/// (`exporter/containerimage/writer.go`, `normalizeLayersAndHistory` and `patchImageConfig`). All times come from records,
/// so that a build from the cache gives the same image again.
fn configuration(
    stage: &PlannedStage,
    layers: &[ChainLayer],
    base_history: &[History],
    epoch: Option<Timestamp>,
) -> ImageConfig {
    let mut config = stage.image.clone();
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.descriptor.diff_id).collect();
    let mut history = config.history.clone();
    let mut with_layer = history.iter().filter(|entry| !entry.empty_layer).count();
    // A history that claims more layers than there are is a base image's mistake.
    for entry in &mut history {
        if with_layer > layers.len() && !entry.empty_layer {
            entry.empty_layer = true;
            with_layer -= 1;
        }
    }
    let missing = layers.iter().skip(with_layer);
    history.extend(missing.map(|layer| History {
        created: layer.created,
        comment: "buildkit.exporter.image.v0".to_owned(),
        ..History::default()
    }));
    let mut next = layers.iter();
    for entry in history.iter_mut().filter(|entry| !entry.empty_layer) {
        let layer = next.next();
        if entry.created.is_none() {
            entry.created = layer.and_then(|layer| layer.created);
        }
    }
    // The first new layer's time; failing that, the last known one.
    let mut created = None;
    let mut is_missing = false;
    for entry in &history {
        match entry.created {
            Some(time) => {
                created = Some(time);
                if is_missing {
                    break;
                }
            }
            None => is_missing = true,
        }
    }
    let mut is_missing = false;
    for entry in &mut history {
        match entry.created {
            Some(time) if is_missing => created = Some(time),
            Some(_) => {}
            None => {
                is_missing = true;
                entry.created = created;
            }
        }
    }
    if let Some(epoch) = epoch {
        let same = history.iter().zip(base_history).take_while(|(ours, base)| ours == base).count();
        for entry in history.iter_mut().skip(same) {
            entry.created = Some(entry.created.map_or(epoch, |time| time.min(epoch)));
        }
    }
    config.created = history.iter().rev().find_map(|entry| entry.created);
    config.history = history;
    config
}
