//! What a build takes from outside: images, resolved and indexed, and directory contexts, scanned.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::try_join_all;
use tokio::sync::OnceCell;

use super::chain::{Chain, ChainLayer};
use super::contexts::{self, ContextTree};
use super::engine::Engine;
use super::error::BuildError;
use super::layers::Layers;
use super::options::{BuildRequest, ContextSource};
use super::plan::{Draft, ImageSpec, Plan, SourceSpec};
use super::remembered;
use super::remotes::Remotes;
use crate::context::scan::Wanted;
use crate::digest::Digest;
use crate::dockerfile::Dockerfile;
use crate::event::{Event, StepId};
use crate::hint::Hint as _;
use crate::layer::{LayerDescriptor, MediaType};
use crate::platform::Platform;
use crate::record::{BundleStep, Preimage, Record};
use crate::reference::Reference;
use crate::registry::{
    ArchiveSource, ImageSource, LayoutReference, LayoutReferenceError, OciLayoutSource, RegistrySource,
    ResolvedImage, SourceError,
};

/// A tree that a step reads besides the one that it starts from.
#[derive(Debug, Clone)]
pub(crate) enum InputTree {
    /// Nothing.
    Empty,
    /// Another stage, or an image.
    Chain(Arc<Chain>),
    /// A directory.
    Directory(Arc<ContextTree>),
}

impl InputTree {
    /// Whether there is nothing at all.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

/// A resolved image.
#[derive(Debug, Clone)]
pub(crate) struct ImageInput {
    pub(crate) source: Arc<dyn ImageSource>,
    pub(crate) image: Arc<ResolvedImage>,
    /// Where it is used first: `Dockerfile:3`.
    pub(crate) place: String,
}

impl ImageInput {
    /// The error with the image's name and place, if it is about an image and has none.
    pub(crate) fn name(&self, error: BuildError) -> BuildError {
        match error {
            BuildError::Image { place, image, source, hint } if place.is_empty() || image.is_empty() => {
                let (place, image) = (self.place.clone(), self.image.name.clone());
                BuildError::Image { place, image, source, hint }
            }
            other => other,
        }
    }
}

/// The directory contexts of a build, scanned once: its platforms read mostly the same.
#[derive(Debug, Default)]
pub(crate) struct Contexts(Mutex<HashMap<ContextKey, Arc<OnceCell<Arc<ContextTree>>>>>);

/// A directory, whether it is the main context, with its ignore file, and what is wanted of it.
type ContextKey = (PathBuf, bool, Wanted);

impl Contexts {
    fn cell(&self, key: ContextKey) -> Arc<OnceCell<Arc<ContextTree>>> {
        let mut contexts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(contexts.entry(key).or_default())
    }
}

/// What the steps of a build for one platform take from outside.
#[derive(Debug)]
pub(crate) struct Inputs {
    images: HashMap<usize, ImageInput>,
    contexts: Arc<Contexts>,
    chains: Vec<OnceCell<Arc<Chain>>>,
    context: ContextSource,
    ignore: Option<(String, Vec<u8>)>,
    downloaded: Arc<AtomicU64>,
    /// What is in the images, by their sources.
    indexes: Mutex<BTreeMap<usize, Record>>,
}

impl Inputs {
    /// Resolves the images that `draft` needs, round by round, because triggers of one may name another.
    pub(crate) async fn resolve(
        engine: &Engine,
        request: &BuildRequest,
        dockerfile: &Dockerfile,
        draft: &mut Draft<'_>,
    ) -> Result<HashMap<usize, ImageInput>, BuildError> {
        let mut images = HashMap::new();
        loop {
            let wanted: Vec<(usize, SourceSpec)> =
                draft.unresolved().into_iter().map(|(number, spec)| (number, spec.clone())).collect();
            let resolved = try_join_all(wanted.iter().map(|(number, spec)| {
                let (lines, _) = draft.place_of(*number);
                let place = format!("{}:{lines}", dockerfile.name);
                async move {
                    Ok::<_, BuildError>((*number, resolve_image(engine, request.pull, spec, place).await?))
                }
            }))
            .await?;
            for (number, input) in resolved {
                if let Some(input) = input {
                    draft.resolve(number, input.image.config.clone());
                    images.insert(number, input);
                }
            }
            if !draft.add_triggers()? {
                return Ok(images);
            }
        }
    }

    pub(crate) fn new(
        plan: &Plan,
        images: HashMap<usize, ImageInput>,
        request: &BuildRequest,
        contexts: Arc<Contexts>,
    ) -> Self {
        Self {
            images,
            contexts,
            chains: plan.sources.iter().map(|_| OnceCell::new()).collect(),
            context: request.context.clone(),
            ignore: request.dockerfile.ignore.clone(),
            downloaded: Arc::default(),
            indexes: Mutex::default(),
        }
    }

    /// Bytes fetched from registries.
    pub(crate) fn downloaded(&self) -> u64 {
        self.downloaded.load(Ordering::Relaxed)
    }

    /// The image number `source`, if it is one.
    pub(crate) fn image(&self, source: usize) -> Option<&ImageInput> {
        self.images.get(&source)
    }

    /// The tree of source number `source`.
    pub(crate) async fn tree(
        &self,
        engine: &Engine,
        layers: &Layers,
        remotes: &Remotes<'_>,
        plan: &Plan,
        source: usize,
        step: StepId,
    ) -> Result<InputTree, BuildError> {
        let root = match &plan.sources[source] {
            SourceSpec::Image { .. } => {
                return Ok(InputTree::Chain(self.chain(engine, layers, source, step).await?));
            }
            SourceSpec::Context => match &self.context {
                ContextSource::Empty => return Ok(InputTree::Empty),
                ContextSource::Directory(root) => root.clone(),
                ContextSource::Archive(_) | ContextSource::Remote(_) => {
                    return Ok(remotes.context().await?.map_or(InputTree::Empty, InputTree::Chain));
                }
            },
            SourceSpec::Remote(spec) => {
                return Ok(InputTree::Chain(remotes.get(spec, Some(step)).await?));
            }
            SourceSpec::Directory(root) => root.clone(),
        };
        let is_main = plan.sources[source] == SourceSpec::Context;
        let wanted = contexts::wanted(plan, source);
        let cell = self.contexts.cell((root.clone(), is_main, wanted.clone()));
        let context = cell.get_or_try_init(|| self.scan(engine, wanted, root, is_main)).await?;
        Ok(InputTree::Directory(Arc::clone(context)))
    }

    async fn scan(
        &self,
        engine: &Engine,
        wanted: Wanted,
        root: PathBuf,
        is_main: bool,
    ) -> Result<Arc<ContextTree>, BuildError> {
        let ignore = self.ignore.clone().filter(|_| is_main);
        let hashes = engine.cache.local().state_dir("contexts");
        let hashes = hashes.map_err(|error| BuildError::cache("opening the local cache", error))?;
        let (now, cancel) = (engine.now(), engine.cancel.clone());
        let loaded = engine
            .blocking(move || {
                contexts::load(&root, ignore.as_ref(), &wanted, &hashes, now, &cancel).map_err(|error| {
                    let (action, hint) = ("reading the build context".to_owned(), error.hint());
                    BuildError::Context { action, source: Box::new(error), hint }
                })
            })
            .await?;
        Ok(Arc::new(loaded))
    }

    /// The chain of the image number `source`, indexed once for everybody.
    pub(crate) async fn chain(
        &self,
        engine: &Engine,
        layers: &Layers,
        source: usize,
        step: StepId,
    ) -> Result<Arc<Chain>, BuildError> {
        let Some(input) = self.images.get(&source) else { return Ok(Chain::empty()) };
        let index = || async {
            let (chain, record) = self.index(engine, layers, input, step).await?;
            self.indexes.lock().unwrap_or_else(PoisonError::into_inner).insert(source, record);
            Ok(chain)
        };
        let chain = self.chains[source].get_or_try_init(index).await;
        let chain = chain.map_err(|error| input.name(error))?;
        Ok(Arc::clone(chain))
    }

    /// The records of what is in the images that were looked into, for the build's bundle.
    pub(crate) fn indexes(&self) -> Vec<BundleStep> {
        let indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        let step = |(source, record): (&usize, &Record)| BundleStep {
            slot: format!("image {source}"),
            record: record.clone(),
        };
        indexes.iter().map(step).collect()
    }

    /// The records of the framed copies of these images, as far as they are known; in the places of the others.
    pub(crate) fn copies(&self, layers: &Layers) -> Vec<BundleStep> {
        let indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        let copies = indexes.keys().filter_map(|source| {
            let record = layers.copies_record(self.images.get(source)?)?;
            Some(BundleStep { slot: format!("image {source}"), record })
        });
        copies.collect()
    }

    async fn index(
        &self,
        engine: &Engine,
        layers: &Layers,
        input: &ImageInput,
        step: StepId,
    ) -> Result<(Arc<Chain>, Record), BuildError> {
        let image = &input.image;
        for layer in &image.manifest.layers {
            layers.add_foreign(layer.clone(), input.clone());
        }
        let mut preimage = Preimage::default();
        let blobs: Vec<Digest> = image.manifest.layers.iter().map(|layer| layer.digest).collect();
        preimage.add("kind", "image-index").add("layers", blobs);
        if let Some(hit) = engine.cache.lookup(&preimage.key()).await
            && hit.record.layers.len() == image.manifest.layers.len()
        {
            let key = preimage.key();
            let mut chain = Chain::empty();
            for descriptor in &hit.record.layers {
                let layer =
                    ChainLayer { descriptor: *descriptor, created: None, key: Some(key), is_copied: false };
                chain = chain.with(layer, hit.record.tree);
            }
            return Ok((chain, hit.record));
        }
        let started = std::time::Instant::now();
        let created = engine.now();
        let indexed: Vec<LayerDescriptor> = try_join_all(image.manifest.layers.iter().map(|layer| {
            let status = format!("indexing {}", layer.digest.short());
            engine.events.emit(Event::StepStatus { step, status });
            layers.index_foreign(engine, layer, step, &self.downloaded)
        }))
        .await?;
        for (descriptor, expected) in indexed.iter().zip(&image.config.rootfs.diff_ids) {
            if descriptor.diff_id != *expected {
                let message = format!(
                    "its layer {} has diff ID {}, its configuration says {expected}",
                    descriptor.digest, descriptor.diff_id
                );
                return Err(image_error(String::new(), &image.name, message, None));
            }
        }
        let mut tree = crate::tree::Tree::empty();
        let mut chain = Chain::empty();
        for (number, descriptor) in indexed.iter().enumerate() {
            let toc = layers.toc(engine, descriptor).await?;
            tree.apply(u32::try_from(number).unwrap_or(u32::MAX), &toc)
                .map_err(|error| image_error(String::new(), &image.name, error.to_string(), None))?;
            let layer = ChainLayer { descriptor: *descriptor, created: None, key: None, is_copied: false };
            chain = chain.with(layer, tree.digest());
            let _ = chain.tree.set(Arc::new(tree.clone()));
        }
        let record =
            Record { foreign: true, ..engine.record(preimage, indexed, chain.digest, created, started) };
        let published = engine.cache.publish(record, false).await;
        let record =
            published.map_err(|error| BuildError::cache("storing the index of a base image", error))?;
        layers.publish_copies(engine, input, &record).await?;
        Ok((chain, record))
    }
}

fn image_error(place: String, image: &str, message: String, hint: Option<String>) -> BuildError {
    BuildError::Image { place, image: image.to_owned(), source: message.into(), hint }
}

pub(super) async fn resolve_image(
    engine: &Engine,
    pull: bool,
    spec: &SourceSpec,
    place: String,
) -> Result<Option<ImageInput>, BuildError> {
    let SourceSpec::Image { image, platform } = spec else { return Ok(None) };
    let name = match image {
        ImageSpec::Registry(reference) => reference.familiar(),
        ImageSpec::Layout(location) => format!("oci-layout://{location}"),
        ImageSpec::Archive(path) => path.display().to_string(),
    };
    let failed = |error: SourceError| {
        let hint = error.hint();
        BuildError::Image { place: place.clone(), image: name.clone(), source: Box::new(error), hint }
    };
    let source: Arc<dyn ImageSource> = match image {
        ImageSpec::Registry(reference) => {
            Arc::new(RegistrySource::new(engine.registry.clone(), reference.clone()))
        }
        ImageSpec::Layout(location) => {
            let reference: LayoutReference = location.parse().map_err(|error: LayoutReferenceError| {
                image_error(place.clone(), &name, error.to_string(), None)
            })?;
            Arc::new(OciLayoutSource::new(reference))
        }
        ImageSpec::Archive(path) => {
            let spool = engine.cache.local().state_dir("archives");
            let spool = spool.map_err(|error| BuildError::cache("opening the local cache", error))?;
            Arc::new(ArchiveSource::open(path, None, &spool).await.map_err(failed)?)
        }
    };
    let resolved = match image {
        ImageSpec::Registry(reference) => {
            resolve_reference(engine, pull, reference, platform, &*source).await.map_err(failed)?
        }
        ImageSpec::Layout(_) | ImageSpec::Archive(_) => source.resolve(platform).await.map_err(failed)?,
    };
    for layer in &resolved.manifest.layers {
        if MediaType::parse(&layer.media_type).is_none() {
            let message =
                format!("its layer {} has the unknown media type `{}`", layer.digest, layer.media_type);
            return Err(image_error(place, &name, message, None));
        }
    }
    Ok(Some(ImageInput { source, image: Arc::new(resolved), place }))
}

/// Asks the registry what `reference` means, unless the name itself says it and it is known, and falls back on what it
/// meant last where the registry does not answer. With `pull` only the registry's own answer counts.
async fn resolve_reference(
    engine: &Engine,
    pull: bool,
    reference: &Reference,
    platform: &Platform,
    source: &dyn ImageSource,
) -> Result<ResolvedImage, SourceError> {
    if reference.digest().is_some()
        && !pull
        && let Some(image) = remembered::recall(engine, reference, platform).await
    {
        return Ok(image);
    }
    match source.resolve(platform).await {
        Ok(image) => {
            remembered::keep(engine, reference, platform, &image).await;
            Ok(image)
        }
        Err(error) if !pull && remembered::is_outage(&error) => {
            let Some(image) = remembered::recall(engine, reference, platform).await else {
                return Err(error);
            };
            let message = format!(
                "{} was not looked up ({}); it is taken for what it was last: {}",
                reference.familiar(),
                crate::hint::with_causes(&error),
                image.manifest_digest
            );
            engine.events.emit(Event::Warning { message });
            Ok(image)
        }
        Err(error) => Err(error),
    }
}
