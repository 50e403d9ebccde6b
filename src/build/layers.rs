//! Layers at work: fetched, indexed, unpacked for commands, read for copies, written from what steps made.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::chain::{Chain, ChainLayer};
use super::contents::Contents;
use super::copy::staging::{Content, Staged};
use super::copy::view::{display, parent};
use super::copy::{CopyError, Opener};
use super::engine::Engine;
use super::error::BuildError;
use super::framed::{Framed, copy_keys};
use super::inputs::{ImageInput, InputTree};
use super::stop::UntilCancelled;
use crate::context::open::open_file;
use crate::digest::Digest;
use crate::event::{Event, StepId};
use crate::hint::Hint as _;
use crate::image::Descriptor;
use crate::layer::{
    self, Compression, EntryKind, FinishedLayer, LayerDescriptor, LayerError, LayerOptions, LayerWriter,
    MediaType, Reframed, ScanOptions, Scanned, Toc, UnpackOptions, Unpacker, Whiteouts,
};
use crate::record::{Key, Preimage, Record};
use crate::registry::ImageSource;
use crate::tree::{Node, Tree};

/// The largest table of contents that is read: some millions of entries.
pub(crate) const TOC_BYTES_MAX: u64 = 1 << 30;

/// A layer may unpack to at most this many bytes: more is taken for a decompression bomb.
const RAW_BYTES_MAX: u64 = 1 << 40;

/// How copies of base images are compressed: the first build waits for it, and level 3 takes twice as long to save a tenth.
const COPY_COMPRESSION: Compression = Compression::Zstd { level: 1 };

/// A base image's layer and where it can be had.
type ForeignLayer = (Descriptor, ImageInput);

/// The layers that one build works with.
#[derive(Debug)]
pub(crate) struct Layers {
    /// Layers of base images, which are fetched from where the image is.
    foreign: Mutex<HashMap<Digest, ForeignLayer>>,
    tocs: Mutex<HashMap<Digest, Arc<Toc>>>,
    unpacked: Mutex<HashMap<Digest, Arc<OnceCell<PathBuf>>>>,
    unpacked_root: PathBuf,
    /// What [`Layers::parents`] found, by the digest of the base's tree.
    parents: Mutex<HashMap<Digest, Option<PathBuf>>>,
    pub(super) framed: Framed,
    /// Bytes of base images that were fetched although they were indexed before.
    pub(super) downloaded: AtomicU64,
}

/// What was found out about a base image's layer.
pub(super) struct Indexed {
    /// The layer, by its own blob.
    pub(super) layer: LayerDescriptor,
    pub(super) copy: LayerDescriptor,
}

/// What the record of what is in a base image's layer is found by.
fn index_key(layer: &Descriptor) -> Preimage {
    let mut preimage = Preimage::default();
    preimage.add("kind", "layer-index").add("layer", layer.digest);
    preimage
}

/// The directories that a layer puts something into without having them itself.
fn missing_parents(toc: &Toc) -> BTreeSet<Vec<u8>> {
    let own: HashSet<&[u8]> = toc.entries.iter().map(|entry| entry.path.as_slice()).collect();
    let mut missing = BTreeSet::new();
    for entry in &toc.entries {
        let mut above = parent(&entry.path);
        while !above.is_empty() && !own.contains(above) && missing.insert(above.to_vec()) {
            above = parent(above);
        }
    }
    missing
}

impl Layers {
    pub(crate) fn new(engine: &Engine) -> Result<Self, BuildError> {
        let name = if engine.ownership.user_namespace { "unpacked-user" } else { "unpacked" };
        let unpacked_root = engine
            .cache
            .local()
            .state_dir(name)
            .map_err(|error| BuildError::cache("opening the local cache", error))?;
        Ok(Self {
            foreign: Mutex::default(),
            tocs: Mutex::default(),
            unpacked: Mutex::default(),
            unpacked_root,
            parents: Mutex::default(),
            framed: Framed::new(engine)?,
            downloaded: AtomicU64::new(0),
        })
    }

    /// Says where a base image's layer can be had.
    pub(crate) fn add_foreign(&self, layer: Descriptor, image: ImageInput) {
        lock(&self.foreign).insert(layer.digest, (layer, image));
    }

    /// Where a base image's layer can be had.
    pub(crate) fn foreign(&self, digest: &Digest) -> Option<ForeignLayer> {
        lock(&self.foreign).get(digest).cloned()
    }

    /// The table of contents of a layer.
    pub(crate) async fn toc(&self, engine: &Engine, layer: &LayerDescriptor) -> Result<Arc<Toc>, BuildError> {
        if let Some(toc) = lock(&self.tocs).get(&layer.toc) {
            return Ok(Arc::clone(toc));
        }
        let lost = || BuildError::Lost { digest: layer.toc, keys: Vec::new() };
        let bytes = engine.cache.read_blob(&layer.toc, TOC_BYTES_MAX).await.ok_or_else(lost)?;
        let toc =
            Toc::decode(&bytes).map_err(|error| BuildError::cache("reading a layer's contents", error))?;
        let toc = Arc::new(toc);
        lock(&self.tocs).insert(layer.toc, Arc::clone(&toc));
        Ok(toc)
    }

    /// The merged tree of a chain.
    pub(crate) async fn tree(&self, engine: &Engine, chain: &Arc<Chain>) -> Result<Arc<Tree>, BuildError> {
        let mut above: Vec<&Arc<Chain>> = Vec::new();
        let mut here = chain;
        let mut tree = loop {
            if let Some(tree) = here.tree.get() {
                break Arc::clone(tree);
            }
            above.push(here);
            match here.split() {
                Some((parent, _)) => here = parent,
                None => break Arc::new(Tree::empty()),
            }
        };
        // All at once: each may have to be fetched.
        let layers = above.iter().filter_map(|chain| Some(chain.split()?.1));
        let tocs = layers.map(|layer| async {
            self.toc(engine, &layer.descriptor).await.map_err(|error| with_key(error, layer.key))
        });
        futures_util::future::try_join_all(tocs).await?;
        while let Some(next) = above.pop() {
            let Some((_, layer)) = next.split() else { continue };
            let number = u32::try_from(chain.layers().len() - above.len() - 1).unwrap_or(u32::MAX);
            let toc = self.toc(engine, &layer.descriptor).await?;
            let mut merged = (*tree).clone();
            merged.apply(number, &toc).map_err(|error| BuildError::cache("merging layers", error))?;
            tree = Arc::new(merged);
            let _ = next.tree.set(Arc::clone(&tree));
        }
        Ok(tree)
    }

    /// The tree of an input.
    pub(crate) async fn input_tree(
        &self,
        engine: &Engine,
        input: &InputTree,
    ) -> Result<Arc<Tree>, BuildError> {
        match input {
            InputTree::Empty => Ok(Arc::new(Tree::empty())),
            InputTree::Chain(chain) => self.tree(engine, chain).await,
            InputTree::Directory(context) => Ok(Arc::clone(&context.tree)),
        }
    }

    /// The blob of a layer, on this machine: from the cache, or, for a base image's layer, from its registry.
    pub(crate) async fn blob(&self, engine: &Engine, layer: &ChainLayer) -> Result<PathBuf, BuildError> {
        let descriptor = &layer.descriptor;
        if let Some(path) = engine.cache.blob_file(&descriptor.digest, descriptor.size).await {
            return Ok(path);
        }
        if let Some((foreign, image)) = self.foreign(&descriptor.digest) {
            let fetched = fetch(engine, &foreign, &*image.source, None, &AtomicU64::new(0)).await;
            return fetched.map_err(|error| image.name(error));
        }
        Err(BuildError::Lost { digest: descriptor.digest, keys: layer.key.into_iter().collect() })
    }

    /// Finds out what is in a base image's layer. If nobody has done so before, it is fetched, and copied into frames on the
    /// way: one pass over the bytes.
    pub(crate) async fn index_foreign(
        &self,
        engine: &Engine,
        layer: &Descriptor,
        step: StepId,
        downloaded: &AtomicU64,
    ) -> Result<LayerDescriptor, BuildError> {
        if let Some(hit) = engine.cache.lookup(&index_key(layer).key()).await
            && let [descriptor] = hit.record.layers[..]
        {
            return Ok(descriptor);
        }
        Ok(self.index_blob(engine, layer, Some(step), downloaded).await?.layer)
    }

    /// The same without asking whether it was done before.
    pub(super) async fn index_blob(
        &self,
        engine: &Engine,
        layer: &Descriptor,
        step: Option<StepId>,
        downloaded: &AtomicU64,
    ) -> Result<Indexed, BuildError> {
        let started = std::time::Instant::now();
        let created = engine.now();
        let media_type = MediaType::parse(&layer.media_type).unwrap_or(MediaType::Gzip);
        let path = match engine.cache.blob_file(&layer.digest, layer.size).await {
            Some(path) => path,
            None => {
                let Some((foreign, image)) = self.foreign(&layer.digest) else {
                    return Err(BuildError::Lost { digest: layer.digest, keys: Vec::new() });
                };
                fetch(engine, &foreign, &*image.source, step, downloaded).await?
            }
        };
        if let Some(step) = step {
            let status = format!("indexing {}", layer.digest.short());
            engine.events.emit(Event::StepStatus { step, status });
        }
        let (size, digest) = (layer.size, layer.digest);
        let shared = engine.clone();
        let (descriptor, copy, toc) = engine
            .blocking(move || {
                let Reframed { scanned, digest: copy, size: copy_size } = copy_blob(&shared, &path, &digest)?;
                let toc = shared
                    .cache
                    .local()
                    .store_bytes(scanned.toc.encode())
                    .map_err(|error| BuildError::cache("storing a layer's contents", error))?;
                let layer = LayerDescriptor { diff_id: scanned.diff_id, digest, size, media_type, toc };
                let copy =
                    LayerDescriptor { digest: copy, size: copy_size, media_type: MediaType::Zstd, ..layer };
                Ok((layer, copy, scanned.toc))
            })
            .await?;
        lock(&self.tocs).insert(descriptor.toc, Arc::new(toc));
        let preimage = index_key(layer);
        let record = Record {
            foreign: true,
            ..engine.record(preimage, vec![descriptor], descriptor.diff_id, created, started)
        };
        self.publish_copy(engine, &layer.digest, copy, &record).await?;
        let published = engine.cache.publish(record, false).await;
        let record =
            published.map_err(|error| BuildError::storing("storing the index of a base image", error))?;
        let layer = record.layers.first().copied().unwrap_or(descriptor);
        Ok(Indexed { layer, copy })
    }

    /// The directory with a layer unpacked for overlayfs.
    pub(crate) async fn unpacked(&self, engine: &Engine, layer: &ChainLayer) -> Result<PathBuf, BuildError> {
        let diff_id = layer.descriptor.diff_id;
        let cell = Arc::clone(lock(&self.unpacked).entry(diff_id).or_default());
        let path = cell.get_or_try_init(|| self.unpack(engine, layer)).await?;
        Ok(path.clone())
    }

    async fn unpack(&self, engine: &Engine, layer: &ChainLayer) -> Result<PathBuf, BuildError> {
        let final_path = self.unpacked_root.join(layer.descriptor.diff_id.hex());
        if final_path.join("fs").is_dir() {
            engine.cache.local().touch_state(&final_path);
            return Ok(final_path.join("fs"));
        }
        // Another build on this machine may be unpacking it: waiting is cheaper than doing it twice.
        let name = format!("unpack-{}", layer.descriptor.diff_id.hex());
        let local = engine.cache.local().clone();
        let _lock = local.lock(&name).await.map_err(|error| BuildError::cache("locking a layer", error))?;
        if final_path.join("fs").is_dir() {
            return Ok(final_path.join("fs"));
        }
        let (path, digest, keys) = self.tar(engine, layer).await?;
        let diff_id = layer.descriptor.diff_id;
        let shared = engine.clone();
        let root = self.unpacked_root.clone();
        engine
            .blocking(move || {
                let lost = |keys| BuildError::Lost { digest, keys };
                let unpacked = match unpack_blob(&shared, &path, &digest) {
                    Ok(unpacked) if unpacked.scanned.diff_id == diff_id => unpacked,
                    Ok(_) | Err(UnpackError::Damaged) => return Err(lost(keys)),
                    Err(UnpackError::Build(error)) => return Err(error),
                    Err(UnpackError::Layer(error)) => {
                        return Err(BuildError::cache("unpacking a layer", error));
                    }
                };
                unpacked.keep(&root)?;
                Ok(root.join(diff_id.hex()).join("fs"))
            })
            .await
    }

    /// A blob on this machine that has a layer's tar, with its digest, and the records that promise it. Of a base image's
    /// layer it is the framed copy, if there is one: that is nearer than the image, and faster to decompress.
    async fn tar(
        &self,
        engine: &Engine,
        layer: &ChainLayer,
    ) -> Result<(PathBuf, Digest, Vec<Key>), BuildError> {
        if let Some((foreign, image)) = self.foreign(&layer.descriptor.digest)
            && let Some(copy) = self.copy(engine, &foreign, &image).await
            && let Some(path) = engine.cache.blob_file(&copy.digest, copy.size).await
        {
            return Ok((path, copy.digest, copy_keys(&foreign, &image)));
        }
        let path = self.blob(engine, layer).await?;
        Ok((path, layer.descriptor.digest, layer.key.into_iter().collect()))
    }

    /// The directories of a chain's layers for overlayfs, topmost first, unpacked.
    pub(crate) async fn lowers(
        &self,
        engine: &Engine,
        chain: &Arc<Chain>,
    ) -> Result<Vec<PathBuf>, BuildError> {
        let layers = chain.layers();
        let unpacked = layers.iter().rev().map(|layer| self.unpacked(engine, layer));
        let mut lowers = futures_util::future::try_join_all(unpacked).await?;
        if let Some(parents) = self.parents(engine, chain).await? {
            let base = layers.iter().take_while(|layer| layer.created.is_none()).count();
            lowers.insert(layers.len() - base, parents);
        }
        Ok(lowers)
    }

    /// A directory to be put on top of a base image's layers, if one of them has entries whose parent directories it
    /// does not have itself. Unpacked alone, such a layer shows parents with a mode and owner of their own, and
    /// overlayfs shows the topmost: what is on top here says what the merged tree says.
    async fn parents(&self, engine: &Engine, chain: &Arc<Chain>) -> Result<Option<PathBuf>, BuildError> {
        let mut base = Arc::clone(chain);
        while let Some((below, layer)) = base.split() {
            if layer.created.is_none() {
                break;
            }
            base = Arc::clone(below);
        }
        if let Some(known) = lock(&self.parents).get(&base.digest) {
            return Ok(known.clone());
        }
        let mut missing = BTreeSet::new();
        for layer in base.layers() {
            let toc =
                self.toc(engine, &layer.descriptor).await.map_err(|error| with_key(error, layer.key))?;
            missing.append(&mut missing_parents(&toc));
        }
        let made = if missing.is_empty() {
            None
        } else {
            let tree = self.tree(engine, &base).await?;
            let home = self.unpacked_root.join(format!("parents-{}", base.digest.hex()));
            if !home.join("fs").is_dir() {
                let local = engine.cache.local().clone();
                let (target, chown) = (home.clone(), !engine.ownership.single_id);
                engine
                    .blocking(move || {
                        let store = |error| BuildError::cache("unpacking a layer", error);
                        let io = |error: std::io::Error| BuildError::cache("unpacking a layer", error);
                        let directory = local.tmp_dir().map_err(store)?;
                        let new = directory.path().join("fs");
                        super::materialise::directories(&tree, &missing, &new, chown).map_err(io)?;
                        keep_directory(&new, &target).map_err(io)
                    })
                    .await?;
            }
            engine.cache.local().touch_state(&home);
            Some(home.join("fs"))
        };
        lock(&self.parents).insert(base.digest, made.clone());
        Ok(made)
    }

    /// Where unpacked layers are kept.
    pub(crate) fn unpacked_root(&self) -> PathBuf {
        self.unpacked_root.clone()
    }

    /// Opens files of an input. What will be read is fetched ahead.
    pub(crate) async fn opener(
        &self,
        engine: &Engine,
        input: &InputTree,
        reads: Reads<'_>,
    ) -> Result<InputFiles, BuildError> {
        Ok(match input {
            InputTree::Empty => InputFiles::Empty,
            InputTree::Directory(context) => InputFiles::Directory(context.root.clone()),
            // Where nothing is read, nothing needs to be there.
            InputTree::Chain(_) if matches!(reads, Reads::These([])) => InputFiles::Empty,
            InputTree::Chain(chain) => {
                let tree = self.tree(engine, chain).await?;
                let contents = self.contents(engine, chain).await?;
                let nodes: Vec<&Node> = match reads {
                    Reads::All => tree.walk(b"").map(|(_, node)| node.node).collect(),
                    Reads::These(paths) => {
                        paths.iter().filter_map(|path| Some(tree.get(path)?.node)).collect()
                    }
                    Reads::Few => Vec::new(),
                };
                contents.expect(&nodes).await;
                InputFiles::Layers { tree, contents }
            }
        })
    }

    /// Reads a small file of a chain's tree, links followed; nothing if there is none.
    pub(crate) async fn read_small(
        &self,
        engine: &Engine,
        chain: &Arc<Chain>,
        path: &str,
    ) -> Result<Vec<u8>, BuildError> {
        let tree = self.tree(engine, chain).await?;
        let Ok(resolved) = tree.resolve(path.as_bytes(), true) else { return Ok(Vec::new()) };
        let Some(node) = resolved.node.filter(|node| node.size() > 0) else { return Ok(Vec::new()) };
        let contents = self.contents(engine, chain).await?;
        let node = node.node.clone();
        engine
            .blocking(move || {
                let mut content = vec![0; node.size().min(USER_FILE_MAX) as usize];
                let count = contents.read(&node, 0, &mut content)?;
                content.truncate(count);
                Ok(content)
            })
            .await
    }
}

/// More of a user database is not read; the resolver refuses it.
const USER_FILE_MAX: u64 = 32 << 20;

/// Adds the record that a layer came from, if it came from one, to a loss.
pub(crate) fn with_key(error: BuildError, key: Option<Key>) -> BuildError {
    match error {
        BuildError::Lost { digest, mut keys } => {
            keys.extend(key);
            BuildError::Lost { digest, keys }
        }
        other => other,
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How overlayfs marks what is removed.
pub(crate) fn whiteouts(ownership: super::engine::Ownership) -> Whiteouts {
    if ownership.user_namespace { Whiteouts::OverlayUser } else { Whiteouts::OverlayRoot }
}

fn unpack_options(ownership: super::engine::Ownership) -> UnpackOptions {
    UnpackOptions { whiteouts: whiteouts(ownership), chown: !ownership.single_id }
}

/// A layer that was unpacked into a directory that goes away if it is not kept.
struct UnpackedLayer {
    scanned: Scanned,
    directory: tempfile::TempDir,
}

/// Why a layer could not be unpacked.
enum UnpackError {
    /// Its blob is not what its digest says; it has been set aside.
    Damaged,
    /// It is no layer that can be unpacked.
    Layer(LayerError),
    /// This machine is in the way.
    Build(BuildError),
}

impl UnpackedLayer {
    /// Puts it to where others find it.
    fn keep(&self, root: &Path) -> Result<Digest, BuildError> {
        let diff_id = self.scanned.diff_id;
        keep_unpacked(&self.directory.path().join("fs"), root, &diff_id)
            .map_err(|error| BuildError::cache("unpacking a layer", error))?;
        Ok(diff_id)
    }
}

/// Unpacks the blob at `path`, which must have the digest `digest`.
fn unpack_blob(engine: &Engine, path: &Path, digest: &Digest) -> Result<UnpackedLayer, UnpackError> {
    let build = |error: Box<dyn std::error::Error + Send + Sync>| {
        UnpackError::Build(BuildError::cache("unpacking a layer", error))
    };
    let local = engine.cache.local();
    let directory = local.tmp_dir().map_err(|error| build(error.into()))?;
    let target = directory.path().join("fs");
    let open = || {
        fs_err::create_dir(&target)?;
        Ok::<_, std::io::Error>((fs_err::File::open(path)?, File::open(&target)?))
    };
    let (blob, target) = open().map_err(|error| build(error.into()))?;
    let blob = UntilCancelled::new(blob, &engine.cancel);
    let unpack = || {
        let mut unpacker = Unpacker::new(target, unpack_options(engine.ownership))?;
        let options = ScanOptions { max_raw_size: RAW_BYTES_MAX, ..ScanOptions::default() };
        let scanned = layer::scan(blob, &options, &mut unpacker)?;
        unpacker.finish()?;
        Ok(scanned)
    };
    match unpack() {
        Ok(scanned) if scanned.digest == *digest => Ok(UnpackedLayer { scanned, directory }),
        Ok(_) => {
            local.quarantine_blob(digest);
            Err(UnpackError::Damaged)
        }
        Err(_) if engine.cancel.is_cancelled() => Err(UnpackError::Build(BuildError::Cancelled)),
        // Damage shows in many ways. What is sound and still fails is the layer's, or the disk's, own fault.
        Err(error) => match fs_err::File::open(path).and_then(Digest::of_reader) {
            Ok(actual) if actual == *digest => Err(UnpackError::Layer(error)),
            _ => {
                local.quarantine_blob(digest);
                Err(UnpackError::Damaged)
            }
        },
    }
}

/// Copies the blob at `path`, a base image's layer, which must have the digest `digest`, into frames.
fn copy_blob(engine: &Engine, path: &Path, digest: &Digest) -> Result<Reframed, BuildError> {
    let local = engine.cache.local();
    let build = |error: Box<dyn std::error::Error + Send + Sync>| {
        BuildError::cache("copying a base image's layer", error)
    };
    let directory = local.tmp_dir().map_err(|error| build(error.into()))?;
    let target = directory.path().join("copy");
    let open = || Ok::<_, std::io::Error>((fs_err::File::open(path)?, File::create(&target)?));
    let (blob, out) = open().map_err(|error| build(error.into()))?;
    let blob = UntilCancelled::new(blob, &engine.cancel);
    let options = ScanOptions { max_raw_size: RAW_BYTES_MAX, ..ScanOptions::default() };
    let frames = LayerOptions { compression: COPY_COMPRESSION, ..LayerOptions::default() };
    let lost = || {
        local.quarantine_blob(digest);
        BuildError::Lost { digest: *digest, keys: Vec::new() }
    };
    match layer::reframe(blob, &options, &mut (), out, frames) {
        Ok(copy) if copy.scanned.digest == *digest => {
            local.adopt_blob(&target, &copy.digest).map_err(|error| build(error.into()))?;
            Ok(copy)
        }
        Ok(_) => Err(lost()),
        Err(_) if engine.cancel.is_cancelled() => Err(BuildError::Cancelled),
        // Damage shows in many ways. What is sound and still fails is the layer's, or the disk's, own fault.
        Err(error) => match fs_err::File::open(path).and_then(Digest::of_reader) {
            Ok(actual) if actual == *digest => {
                let (place, image, hint) = (String::new(), String::new(), error.hint());
                Err(BuildError::Image { place, image, source: Box::new(error), hint })
            }
            _ => Err(lost()),
        },
    }
}

/// Moves an unpacked layer to where others find it. One that is there already is as good.
pub(crate) fn keep_unpacked(directory: &Path, root: &Path, diff_id: &Digest) -> std::io::Result<PathBuf> {
    keep_directory(directory, &root.join(diff_id.hex()))
}

fn keep_directory(directory: &Path, home: &Path) -> std::io::Result<PathBuf> {
    let target = home.join("fs");
    fs_err::create_dir_all(home)?;
    match fs_err::rename(directory, &target) {
        Ok(()) => Ok(target),
        Err(_) if target.is_dir() => Ok(target),
        Err(error) => Err(error),
    }
}

/// Fetches a base image's layer into the local store.
async fn fetch(
    engine: &Engine,
    layer: &Descriptor,
    source: &dyn ImageSource,
    step: Option<StepId>,
    downloaded: &AtomicU64,
) -> Result<PathBuf, BuildError> {
    let local = engine.cache.local();
    let failed = |error| BuildError::cache("storing a base image's layer", error);
    let directory = local.tmp_dir().map_err(failed)?;
    let target = directory.path().join("blob");
    let events = Arc::clone(&engine.events);
    let what = layer.digest.short();
    let total = layer.size;
    let progress = move |current: u64| {
        if let Some(step) = step {
            events.emit(Event::StepProgress { step, what: what.clone(), current, total: Some(total) });
        }
    };
    source.fetch_layer(layer, &target, &progress).await.map_err(|error| {
        let hint = error.hint();
        BuildError::Image { place: String::new(), image: String::new(), source: Box::new(error), hint }
    })?;
    downloaded.fetch_add(layer.size, Ordering::Relaxed);
    local.adopt_blob(&target, &layer.digest).map_err(failed)?;
    Ok(local.blob_path(&layer.digest))
}

/// What will be read of an input.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reads<'p> {
    /// All files.
    All,
    /// These files and no others.
    These(&'p [Vec<u8>]),
    /// A few files; which ones will be seen.
    Few,
}

/// The files of an input, ready to be opened.
#[derive(Debug)]
pub(crate) enum InputFiles {
    /// There are none.
    Empty,
    /// A directory of the host.
    Directory(PathBuf),
    /// One file, whatever its name.
    File(Arc<File>),
    /// Those of layers.
    Layers { tree: Arc<Tree>, contents: Arc<Contents> },
}

impl Opener for InputFiles {
    fn is_context(&self) -> bool {
        matches!(self, Self::Directory(_))
    }

    fn failure(&self) -> Option<BuildError> {
        match self {
            Self::Layers { contents, .. } => contents.failure().cloned().map(BuildError::from),
            _ => None,
        }
    }

    fn open(&self, path: &[u8]) -> Result<Box<dyn Read + Send>, CopyError> {
        let name = std::ffi::OsStr::from_bytes(path);
        let not_found = || CopyError::NotFound { path: display(path) };
        let path = match self {
            Self::Empty => return Err(not_found()),
            Self::Directory(root) => root.join(name),
            Self::File(file) => {
                // Opened anew, it has a position of its own. The name is a link to what is open already.
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&**file));
                let opened = fs_err::File::open(&path).map_err(|source| CopyError::Io { path, source })?;
                return Ok(Box::new(opened.into_parts().0));
            }
            Self::Layers { tree, contents } => {
                let node = tree.get(path).ok_or_else(not_found)?;
                return Ok(Box::new(contents.reader(node.node)));
            }
        };
        // Whoever reads it has a buffer; a second one for each of many small files would cost more than it saves.
        let file =
            open_file(&path).map_err(|source| CopyError::Io { path: path.display().to_string(), source })?;
        Ok(Box::new(file))
    }
}

/// Writes staged entries as a layer into the local store. Contents are checked against the digests that they were
/// staged with: a context that changes under the build must not give a layer that its key does not describe.
pub(crate) fn write_staged(
    engine: &Engine,
    entries: &[(Vec<u8>, Staged)],
    openers: &[&dyn Opener],
) -> Result<FinishedLayer, BuildError> {
    let written = write_layer(engine, Compression::default(), |writer| {
        for (path, staged) in entries {
            let entry = layer::Entry {
                path: path.clone(),
                metadata: staged.node.metadata.clone(),
                kind: staged.node.kind.clone(),
            };
            let is_context = match &staged.content {
                Content::Source { origin, .. } => {
                    openers.get(*origin).is_some_and(|opener| opener.is_context())
                }
                _ => false,
            };
            let mut content = super::copy::step::open_content(staged, openers).map_err(|error| {
                if is_context {
                    return BuildError::changed(&display(path));
                }
                BuildError::cache(format!("reading `{}`", display(path)), error)
            })?;
            let failed = |error| match error {
                LayerError::Changed { .. } if is_context => BuildError::changed(&display(path)),
                error => BuildError::cache("writing a layer", error),
            };
            match &entry.kind {
                EntryKind::File { size, content: expected, .. } => {
                    let actual = writer.file(path, &entry.metadata, *size, &mut *content).map_err(failed)?;
                    if actual != *expected && is_context {
                        return Err(BuildError::changed(&display(path)));
                    }
                    if actual != *expected {
                        let message = format!("`{}` changed while it was being copied", display(path));
                        return Err(BuildError::cache("writing a layer", message));
                    }
                }
                _ => writer.entry(&entry, None).map_err(failed)?,
            }
        }
        Ok(())
    });
    // What came of a read that failed only the reader knows.
    written.map_err(|error| openers.iter().find_map(|opener| opener.failure()).unwrap_or(error))
}

/// Writes a layer into the local store, with its table of contents.
pub(crate) fn write_layer(
    engine: &Engine,
    compression: Compression,
    fill: impl FnOnce(&mut LayerWriter<UntilCancelled<File>>) -> Result<(), BuildError>,
) -> Result<FinishedLayer, BuildError> {
    let local = engine.cache.local();
    let store = |error| BuildError::cache("storing a layer", error);
    let directory = local.tmp_dir().map_err(store)?;
    let path = directory.path().join("layer");
    let file = File::create(&path).map_err(|error| BuildError::cache("creating a layer", error))?;
    let options = LayerOptions { compression, ..LayerOptions::default() };
    let failed = |error: LayerError| BuildError::cache("writing a layer", error);
    let file = UntilCancelled::new(file, &engine.cancel);
    let mut writer = LayerWriter::new(file, options).map_err(failed)?;
    fill(&mut writer)?;
    let finished = writer.finish().map_err(failed)?;
    local.adopt_blob(&path, &finished.digest).map_err(store)?;
    local.store_bytes(finished.toc_bytes.clone()).map_err(store)?;
    Ok(finished)
}
