//! The result, to where the user wants it: configuration and manifest, registries, layouts, archives, files.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::chain::{Chain, ChainLayer};
use super::engine::Engine;
use super::error::BuildError;
use super::inputs::{InputTree, Inputs};
use super::layers::Layers;
use super::materialise::copy_out;
use super::options::{BuildRequest, Destination, LayerCompression, Output};
use super::plan::{Plan, PlannedStage, Start};
use super::stop::UntilCancelled;
use crate::digest::{Digest, Hashing};
use crate::event::Event;
use crate::exec::CancelToken;
use crate::hint::Hint as _;
use crate::image::{Descriptor, History, ImageConfig, Manifest, media_types};
use crate::layer::{
    self, Compression, EntryKind, LayerDescriptor, LayerOptions, LayerWriter, MediaType, Timestamp,
};
use crate::record::Preimage;
use crate::registry::{self, BlobProvider, BoxError, DestinationError, ImageBundle, PushLayer};
use crate::store::{BlobSource, replace_file};
use crate::tree::NodeKind;

/// What an export did.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    /// The manifest, if an image was made.
    pub(crate) manifest: Option<Descriptor>,
    /// The digest of its configuration.
    pub(crate) config: Option<Digest>,
    /// Bytes sent to registries.
    pub(crate) uploaded: u64,
}

/// Exports the target's result to everything that the request names.
pub(crate) async fn export(
    engine: &Engine,
    request: &BuildRequest,
    plan: &Plan,
    inputs: &Inputs,
    layers: &Layers,
    chain: &Arc<Chain>,
) -> Result<Exported, BuildError> {
    let mut exported = Exported::default();
    let is_files = |output: &Output| matches!(output, Output::Tar { .. } | Output::Local { .. });
    if request.outputs.is_empty() || !request.outputs.iter().all(is_files) {
        let image =
            Image::assemble(engine, request, plan, inputs, layers, chain, request.compression).await?;
        exported.manifest = Some(Descriptor::of(media_types::OCI_MANIFEST, &image.bundle.manifest));
        exported.config = Some(image.bundle.config_descriptor.digest);
        image.keep(engine).await?;
        for output in &request.outputs {
            match output {
                Output::Image { push, names } => {
                    let names = if names.is_empty() { &request.tags } else { names };
                    if *push {
                        exported.uploaded += image.push(engine, layers, names).await?;
                    }
                }
                Output::Oci { destination, tar } => {
                    image.oci(engine, layers, &request.tags, destination, *tar).await?;
                }
                Output::Docker { destination } => {
                    // Every Docker reads plain layers; base layers stay as they are, which every Docker could pull.
                    let compression = match request.compression {
                        LayerCompression::Gzip => LayerCompression::Gzip,
                        _ => LayerCompression::Uncompressed,
                    };
                    let image =
                        Image::assemble(engine, request, plan, inputs, layers, chain, compression).await?;
                    image.docker(engine, layers, &request.tags, destination).await?;
                }
                Output::Load { engine: target } => {
                    let image = Image::assemble(
                        engine,
                        request,
                        plan,
                        inputs,
                        layers,
                        chain,
                        LayerCompression::Uncompressed,
                    )
                    .await?;
                    let directory = engine.cache.local().tmp_dir();
                    let directory = directory
                        .map_err(|error| BuildError::cache("making a temporary directory", error))?;
                    let archive = directory.path().join("image.tar");
                    let destination = Destination::Path(archive.clone());
                    image.docker(engine, layers, &request.tags, &destination).await?;
                    registry::load(&archive, target).await.map_err(|error| {
                        let hint =
                            Some("`-o type=docker,dest=image.tar` writes the image to a file".to_owned());
                        BuildError::Export { destination: target.to_string(), source: Box::new(error), hint }
                    })?;
                    let names = request.tags.iter().map(crate::reference::Reference::familiar).collect();
                    engine.events.emit(Event::Loaded { engine: target.to_string(), names });
                }
                Output::Tar { .. } | Output::Local { .. } => {}
            }
        }
    }
    for output in &request.outputs {
        match output {
            Output::Tar { destination } => tar(engine, layers, chain, destination).await?,
            Output::Local { destination } => local(engine, layers, chain, destination).await?,
            _ => {}
        }
    }
    Ok(exported)
}

/// An image, ready to be written.
struct Image {
    bundle: ImageBundle,
    /// Where the blob of each layer comes from.
    layers: Vec<ChainLayer>,
}

impl Image {
    async fn assemble(
        engine: &Engine,
        request: &BuildRequest,
        plan: &Plan,
        inputs: &Inputs,
        layers: &Layers,
        chain: &Arc<Chain>,
        compression: LayerCompression,
    ) -> Result<Self, BuildError> {
        let stage = &plan.stages[plan.target];
        let mut chain_layers = chain.layers();
        let (base_history, base_layers) = base_of(plan, inputs, stage);
        let mut config = configuration(stage, &chain_layers, base_history, request.source_date_epoch);
        if request.platform.is_some() {
            config.os.clone_from(&stage.platform.os);
            config.architecture.clone_from(&stage.platform.architecture);
            config.variant.clone_from(&stage.platform.variant);
        } else {
            let platform = config.platform().unwrap_or_else(|| stage.platform.clone());
            config.os = platform.os;
            config.architecture = platform.architecture;
            config.variant = platform.variant;
        }
        for layer in chain_layers.iter_mut().skip(base_layers) {
            layer.descriptor = converted(engine, layers, layer, compression).await?;
        }
        let descriptor =
            |layer: &LayerDescriptor| Descriptor::new(layer.media_type.as_str(), layer.digest, layer.size);
        let config_bytes = config.to_bytes();
        let config_descriptor = Descriptor::of(media_types::OCI_CONFIG, &config_bytes);
        let mut manifest = Manifest::new(
            config_descriptor.clone(),
            chain_layers.iter().map(|layer| descriptor(&layer.descriptor)).collect(),
        );
        manifest.annotations.clone_from(&request.annotations);
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
            media_type: media_types::OCI_MANIFEST.to_owned(),
            config: Bytes::from(config_bytes),
            config_descriptor,
            layers: push_layers,
        };
        Ok(Self { bundle, layers: chain_layers })
    }

    /// Keeps manifest and configuration in the local store, where other commands find them.
    async fn keep(&self, engine: &Engine) -> Result<(), BuildError> {
        use crate::store::Store as _;
        for bytes in [&self.bundle.config, &self.bundle.manifest] {
            let stored =
                engine.cache.local().write_blob(&Digest::of(bytes), BlobSource::Bytes(bytes.clone())).await;
            stored.map_err(|error| BuildError::cache("storing the image", error))?;
        }
        Ok(())
    }

    async fn push(
        &self,
        engine: &Engine,
        layers: &Layers,
        names: &[crate::reference::Reference],
    ) -> Result<u64, BuildError> {
        let provider = Provider { engine, layers, image: self };
        let mut uploaded = 0;
        for name in names {
            let report = registry::push(&engine.registry, name, &self.bundle, &provider, &|_| {}).await;
            uploaded += report.map_err(|error| failed(name.familiar(), error))?.uploaded_bytes;
        }
        Ok(uploaded)
    }

    async fn oci(
        &self,
        engine: &Engine,
        layers: &Layers,
        names: &[crate::reference::Reference],
        destination: &Destination,
        tar: bool,
    ) -> Result<(), BuildError> {
        let provider = Provider { engine, layers, image: self };
        let result = match destination {
            Destination::Path(path) if !tar => {
                registry::export_oci_layout(path, &self.bundle, names, &provider).await
            }
            _ => registry::export_oci_archive(output(destination), &self.bundle, names, &provider).await,
        };
        result.map_err(|error| failed(describe(destination), error))
    }

    async fn docker(
        &self,
        engine: &Engine,
        layers: &Layers,
        names: &[crate::reference::Reference],
        destination: &Destination,
    ) -> Result<(), BuildError> {
        let provider = Provider { engine, layers, image: self };
        let result =
            registry::export_docker_archive(output(destination), &self.bundle, names, &provider).await;
        result.map_err(|error| failed(describe(destination), error))
    }
}

fn failed(destination: String, error: DestinationError) -> BuildError {
    // A layer that is gone is no failure of the destination: the build is tried again without its record.
    let error = match error {
        DestinationError::Blob { digest, source } => match source.downcast::<BuildError>() {
            Ok(inner) => return *inner,
            Err(source) => DestinationError::Blob { digest, source },
        },
        error => error,
    };
    let hint = error.hint();
    BuildError::Export { destination, source: Box::new(error), hint }
}

fn output(destination: &Destination) -> registry::Output {
    match destination {
        Destination::Path(path) => registry::Output::File(path.clone()),
        Destination::Stdout => registry::Output::Stream(Box::new(std::io::stdout())),
    }
}

fn describe(destination: &Destination) -> String {
    match destination {
        Destination::Path(path) => format!("`{}`", path.display()),
        Destination::Stdout => "standard output".to_owned(),
    }
}

/// Supplies layers to whoever writes an image.
struct Provider<'p> {
    engine: &'p Engine,
    layers: &'p Layers,
    image: &'p Image,
}

#[async_trait]
impl BlobProvider for Provider<'_> {
    async fn open(&self, blob: &Descriptor) -> Result<BlobSource, BoxError> {
        let layer = self.image.layers.iter().find(|layer| layer.descriptor.digest == blob.digest);
        let Some(layer) = layer else {
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

/// A layer in another compression. Made once: the result is a record like any other.
async fn converted(
    engine: &Engine,
    layers: &Layers,
    layer: &ChainLayer,
    compression: LayerCompression,
) -> Result<LayerDescriptor, BuildError> {
    let wanted = match compression {
        LayerCompression::Zstd => MediaType::Zstd,
        LayerCompression::Gzip => MediaType::Gzip,
        LayerCompression::Uncompressed => MediaType::Tar,
    };
    if layer.descriptor.media_type == wanted {
        return Ok(layer.descriptor);
    }
    let mut preimage = Preimage::default();
    preimage.add("kind", "convert").add("layer", layer.descriptor.digest).add("media-type", wanted.as_str());
    if let Some(hit) = engine.cache.lookup(&preimage.key()).await
        && let [descriptor] = hit.record.layers[..]
    {
        return Ok(descriptor);
    }
    let started = std::time::Instant::now();
    let created = engine.now();
    let source = layers.blob(engine, layer).await?;
    let toc = layers.toc(engine, &layer.descriptor).await?;
    let local = engine.cache.local().clone();
    let (diff_id, cancel) = (layer.descriptor.diff_id, engine.cancel.clone());
    let (digest, size) = engine
        .blocking(move || {
            let io = |error: std::io::Error| BuildError::cache("converting a layer", error);
            let store = |error| BuildError::cache("converting a layer", error);
            let directory = local.tmp_dir().map_err(store)?;
            let target = directory.path().join("layer");
            let pieces: Vec<u64> = toc.frames.iter().map(|frame| frame.raw_size).collect();
            let (actual, digest, size) =
                recompress(&source, &target, &pieces, wanted, &cancel).map_err(io)?;
            if actual != diff_id {
                return Err(BuildError::cache(
                    "converting a layer",
                    format!("it has diff ID {actual}, not {diff_id}"),
                ));
            }
            local.adopt_blob(&target, &digest).map_err(store)?;
            Ok((digest, size))
        })
        .await?;
    let descriptor = LayerDescriptor { digest, size, media_type: wanted, ..layer.descriptor };
    let record = engine.record(preimage, vec![descriptor], diff_id, created, started);
    let published = engine.cache.publish(record, false).await;
    published.map_err(|error| BuildError::cache("storing a converted layer", error))?;
    Ok(descriptor)
}

/// Writes the blob `source` to `target` in another compression, in pieces as the frames are. Returns the digest of the tar,
/// and digest and size of the new blob.
fn recompress(
    source: &Path,
    target: &Path,
    pieces: &[u64],
    wanted: MediaType,
    cancel: &CancelToken,
) -> std::io::Result<(Digest, Digest, u64)> {
    let source = UntilCancelled::new(fs_err::File::open(source)?, cancel);
    let (_, reader) = layer::decompress(source)?;
    let mut raw = Hashing::new(reader);
    let mut out = Hashing::new(std::io::BufWriter::new(fs_err::File::create(target)?));
    for piece in pieces.iter().copied().chain([u64::MAX]) {
        let mut part = (&mut raw).take(piece);
        match wanted {
            MediaType::Tar => {
                std::io::copy(&mut part, &mut out)?;
            }
            MediaType::Gzip => {
                let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                if std::io::copy(&mut part, &mut member)? > 0 {
                    out.write_all(&member.finish()?)?;
                }
            }
            MediaType::Zstd => {
                let mut frame = zstd::Encoder::new(Vec::new(), 3)?;
                if std::io::copy(&mut part, &mut frame)? > 0 {
                    out.write_all(&frame.finish()?)?;
                }
            }
        }
    }
    out.flush()?;
    let (_, diff_id, _) = raw.finish();
    let (_, digest, size) = out.finish();
    Ok((diff_id, digest, size))
}

/// `type=local`: the files of the result, owned by the user.
async fn local(
    engine: &Engine,
    layers: &Layers,
    chain: &Arc<Chain>,
    destination: &Path,
) -> Result<(), BuildError> {
    let tree = layers.tree(engine, chain).await?;
    let files = layers.opener(engine, &InputTree::Chain(Arc::clone(chain)), None).await?;
    let target = destination.to_owned();
    let result = engine
        .blocking(move || {
            let write = || {
                fs_err::create_dir_all(&target)?;
                copy_out(&tree, &files, b"", &target, false)
            };
            Ok(write())
        })
        .await?;
    let destination = format!("`{}`", destination.display());
    result.map_err(|error| BuildError::Export { destination, source: Box::new(error), hint: None })
}

/// `type=tar`: the files of the result as one tar.
async fn tar(
    engine: &Engine,
    layers: &Layers,
    chain: &Arc<Chain>,
    destination: &Destination,
) -> Result<(), BuildError> {
    use super::copy::Opener as _;
    let tree = layers.tree(engine, chain).await?;
    let files = layers.opener(engine, &InputTree::Chain(Arc::clone(chain)), None).await?;
    let name = describe(destination);
    let (destination, cancel) = (destination.clone(), engine.cancel.clone());
    let result = engine
        .blocking(move || {
            let write = |out: &mut dyn Write| -> Result<(), BoxError> {
                let options = LayerOptions { compression: Compression::None, ..LayerOptions::default() };
                let mut writer = LayerWriter::new(UntilCancelled::new(out, &cancel), options)?;
                let mut first_names = std::collections::HashMap::new();
                for (path, node) in tree.walk(b"").filter(|(path, _)| !path.is_empty()) {
                    let kind = match (&node.kind, node.group.and_then(|group| first_names.get(&group))) {
                        (_, Some(target)) => EntryKind::HardLink { target: Vec::clone(target) },
                        (NodeKind::Directory, _) => EntryKind::Directory { opaque: false, implied: false },
                        (NodeKind::File { size, content }, _) => {
                            EntryKind::File { size: *size, content: *content, offset: 0 }
                        }
                        (NodeKind::Symlink { target }, _) => EntryKind::Symlink { target: target.clone() },
                        (NodeKind::CharDevice { major, minor }, _) => {
                            EntryKind::CharDevice { major: *major, minor: *minor }
                        }
                        (NodeKind::BlockDevice { major, minor }, _) => {
                            EntryKind::BlockDevice { major: *major, minor: *minor }
                        }
                        (NodeKind::Fifo, _) => EntryKind::Fifo,
                    };
                    if let Some(group) = node.group {
                        first_names.entry(group).or_insert_with(|| path.clone());
                    }
                    let needs_content = matches!(kind, EntryKind::File { size, .. } if size > 0);
                    let mut content: Box<dyn Read + Send> =
                        if needs_content { files.open(&path)? } else { Box::new(std::io::empty()) };
                    let entry = layer::Entry { path, metadata: node.metadata.clone(), kind };
                    writer.entry(&entry, Some(&mut *content))?;
                }
                writer.finish()?;
                Ok(())
            };
            Ok(write_to(&destination, write))
        })
        .await?;
    result.map_err(|source| BuildError::Export { destination: name, source, hint: None })
}

/// Writes a file completely or not at all, with the directories that it needs, or standard output.
fn write_to(
    destination: &Destination,
    write: impl FnOnce(&mut dyn Write) -> Result<(), BoxError>,
) -> Result<(), BoxError> {
    let path: &PathBuf = match destination {
        Destination::Stdout => return write(&mut std::io::stdout().lock()),
        Destination::Path(path) => path,
    };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs_err::create_dir_all(directory)?;
    replace_file(path, write)
}
