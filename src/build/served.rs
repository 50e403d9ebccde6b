//! What a command sees, served from layers while it runs instead of being unpacked before; and what it looked at.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain::Chain;
use super::contents::Contents;
use super::contexts::ContextTree;
use super::copy::view;
use super::engine::Engine;
use super::error::BuildError;
use super::inputs::InputTree;
use super::layers::Layers;
use super::mounts::{ContentTimes, Known, Place};
use crate::context::open::open_file;
use crate::digest::Digest;
use crate::exec::ServedTree;
use crate::layer::{Timestamp, display_path};
use crate::record::{Looks, Readers, Shape};
use crate::trace::{self, ServeOptions, Serving, TracedTree};
use crate::tree::{Look, Node, NodeKind, Tree, child_path};

/// Threads that answer for one tree. Most of the time they wait: for a frame, or for a question.
const THREADS: usize = 3;

/// The trees of one step.
#[derive(Debug)]
pub(crate) struct Served {
    /// The one that the step starts from, then what its mounts show, in their order.
    trees: Vec<Part>,
    /// A directory for the places where they are mounted.
    home: PathBuf,
    /// What the step sees the times of, it sees the content of.
    follows_times: bool,
}

#[derive(Debug)]
struct Part {
    traced: Arc<TracedTree>,
    tree: Arc<Tree>,
    place: PathBuf,
    origin: Origin,
    /// Where in the step it is seen, and what of it, without slashes at the beginning.
    target: Vec<u8>,
    source: Vec<u8>,
    /// Which of its layers were copied; `None` if all of it was.
    copied: Option<Vec<bool>>,
}

/// Where contents come from.
#[derive(Debug)]
enum Origin {
    Layers(Arc<Contents>),
    Context(Arc<ContextTree>),
}

impl Served {
    /// Nothing yet. `home` is an empty directory.
    pub(crate) fn new(home: PathBuf) -> Self {
        Self { trees: Vec::new(), home, follows_times: false }
    }

    /// Adds a tree, of which the step sees `source` at `target`, and returns the place where it is mounted for the step.
    pub(crate) async fn add(
        &mut self,
        engine: &Engine,
        layers: &Layers,
        input: &InputTree,
        source: &str,
        target: &str,
    ) -> Result<PathBuf, BuildError> {
        let tree = layers.input_tree(engine, input).await?;
        let mut copied = None;
        let (origin, contents): (Origin, Arc<dyn trace::Contents>) = match input {
            InputTree::Directory(context) => {
                let context = Arc::clone(context);
                (Origin::Context(Arc::clone(&context)), Arc::new(ContextFiles(context)))
            }
            InputTree::Chain(_) | InputTree::Empty => {
                let chain = match input {
                    InputTree::Chain(chain) => Arc::clone(chain),
                    _ => Chain::empty(),
                };
                let contents = layers.contents(engine, &chain).await?;
                copied = Some(chain.layers().iter().map(|layer| layer.is_copied).collect());
                (Origin::Layers(Arc::clone(&contents)), Arc::new(LayerFiles(contents)))
            }
        };
        let options = ServeOptions { threads: THREADS, single_id: engine.ownership.single_id };
        let traced = TracedTree::new(&tree, contents, options);
        let place = self.home.join(self.trees.len().to_string());
        fs_err::create_dir(&place)
            .map_err(|error| BuildError::cache("making a temporary directory", error))?;
        // One that is not there is found out about when it is mounted.
        let source = view::resolve(&*tree, b"", source.as_bytes(), true).unwrap_or_default();
        let target = view::clean(target.as_bytes());
        self.trees.push(Part { traced, tree, place: place.clone(), origin, target, source, copied });
        Ok(place)
    }

    /// The step uses cache mounts: what is in them may depend on all that it sees the times of.
    pub(crate) fn follow_times(&mut self) {
        self.follows_times = true;
    }

    /// What the times of a step depend on that began at `now` and uses mounts of which this is `known`.
    pub(crate) fn content_times(&self, now: Timestamp, known: Vec<Known>) -> Arc<ContentTimes> {
        let place = |part: &Part| Place {
            tree: Arc::clone(&part.tree),
            target: part.target.clone(),
            source: part.source.clone(),
            copied: part.copied.clone(),
        };
        ContentTimes::new(now, known, self.trees.iter().map(place).collect())
    }

    /// Shows these times to the step.
    pub(crate) fn show_times(&self, times: &Arc<ContentTimes>) {
        for (number, part) in self.trees.iter().enumerate() {
            part.traced.show_times(times.of(number));
        }
    }

    /// What the step itself looked at, in each tree.
    pub(crate) fn own_looks(&self) -> Vec<BTreeMap<Vec<u8>, Look>> {
        self.trees.iter().map(|part| part.traced.looks()).collect()
    }

    /// Where the trees are mounted.
    pub(crate) fn places(&self) -> Vec<PathBuf> {
        self.trees.iter().map(|part| part.place.clone()).collect()
    }

    /// The trees for the executor, in the same order.
    pub(crate) fn trees(&self) -> Vec<Arc<dyn ServedTree>> {
        let serving = |part: &Part| Arc::new(Serving(Arc::clone(&part.traced))) as Arc<dyn ServedTree>;
        self.trees.iter().map(serving).collect()
    }

    /// What is shown, to be waited for at the step's end.
    pub(crate) fn traced(&self) -> Vec<Arc<TracedTree>> {
        self.trees.iter().map(|part| Arc::clone(&part.traced)).collect()
    }

    /// Begins to fetch what the step is likely to read: what it did `last` time.
    pub(crate) fn read_ahead(&self, last: &Shape) {
        for (part, looks) in self.trees.iter().zip(&last.trees) {
            let Origin::Layers(contents) = &part.origin else { continue };
            let read = looks.iter().filter(|(_, look)| look.has(Look::CONTENT));
            contents.prefetch(read.filter_map(|(path, _)| Some(part.tree.get(path)?.node)));
        }
    }

    /// What went wrong while they were served: the step has seen errors then that are not its own. If that is no more than
    /// a loss, with it which file could not be read and why.
    pub(crate) fn failure(&self) -> Option<(BuildError, Option<String>)> {
        self.trees.iter().find_map(|part| {
            let reason = part.traced.failure();
            if let Origin::Layers(contents) = &part.origin
                && let Some(error) = contents.failure()
            {
                return Some((error.clone().into(), reason));
            }
            Some((BuildError::cache("serving a step's files", reason?), None))
        })
    }

    /// What the step looked at, and the executor and the builder on its behalf: `files` of the first tree. `None` if that
    /// cannot be told.
    ///
    /// # Errors
    /// If a context has changed while it was read.
    pub(crate) fn looks(&self, files: &[&str]) -> Result<Option<ReadSet>, BuildError> {
        let mut trees = Vec::with_capacity(self.trees.len());
        let mut readers = Readers::default();
        for (number, part) in self.trees.iter().enumerate() {
            let mut looks = part.traced.looks();
            if self.follows_times {
                for (path, look) in &mut looks {
                    if part.tree.get(path).is_some_and(|node| node.content().is_some()) {
                        *look = look.and(Look::CONTENT);
                    }
                }
            }
            if let Origin::Context(context) = &part.origin {
                verify(context, &looks)?;
            }
            if number == 0 {
                for file in files {
                    if !look_up(&part.tree, file.as_bytes(), &mut looks) {
                        return Ok(None);
                    }
                }
            }
            let mut known = part.traced.readers();
            readers.0.extend(looks.keys().map(|path| known.remove(path)));
            trees.push(looks.into_iter().collect::<Looks>());
        }
        Ok(Some(ReadSet { shape: Shape { trees }, readers }))
    }
}

/// What a step looked at, and what it is not keyed on: which programs did.
#[derive(Debug, Default)]
pub(crate) struct ReadSet {
    pub(crate) shape: Shape,
    pub(crate) readers: Readers,
}

#[cfg(debug_assertions)]
impl Served {
    /// The shape as it would be without one rule.
    pub(crate) fn blinded(&self, mut shape: Shape, rule: &str) -> ReadSet {
        for (number, (part, looks)) in self.trees.iter().zip(&mut shape.trees).enumerate() {
            let is_directory = |path: &[u8]| part.tree.get(path).is_some_and(|node| node.is_directory());
            match rule {
                "absent" => looks.retain(|(path, _)| part.tree.get(path).is_some()),
                "nodes" => looks.retain(|(path, look)| {
                    *look != Look::NODE || part.tree.get(path).is_none() || is_directory(path)
                }),
                "directories" => looks.retain(|(path, look)| *look != Look::NODE || !is_directory(path)),
                "content" => looks.iter_mut().for_each(|(_, look)| *look = look.without(Look::CONTENT)),
                "names" => looks.iter_mut().for_each(|(_, look)| *look = look.without(Look::NAMES)),
                "mounts" if number > 0 => looks.clear(),
                _ => {}
            }
        }
        // Nobody asks who has seen what is left.
        ReadSet { shape, readers: Readers::default() }
    }
}

/// Adds what is seen by reading the file at `path`; `false` if a link leads elsewhere.
fn look_up(tree: &Tree, path: &[u8], looks: &mut BTreeMap<Vec<u8>, Look>) -> bool {
    let mut here = Vec::new();
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        here = child_path(&here, name);
        let node = tree.get(&here);
        let look = looks.entry(here.clone()).or_default();
        *look = look.and(Look::NODE);
        match node.map(|node| &node.node.kind) {
            Some(NodeKind::Directory) => {}
            Some(NodeKind::File { .. }) => *look = look.and(Look::CONTENT),
            Some(NodeKind::Symlink { .. }) => return false,
            _ => break,
        }
    }
    true
}

/// Contents of layers.
#[derive(Debug)]
struct LayerFiles(Arc<Contents>);

impl trace::Contents for LayerFiles {
    fn read(&self, _: &[u8], node: &Node, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let count = self.0.read(node, at, buffer).map_err(io::Error::other)?;
        if count < buffer.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// Contents of a directory of the host.
#[derive(Debug)]
struct ContextFiles(Arc<ContextTree>);

impl trace::Contents for ContextFiles {
    fn read(&self, path: &[u8], _: &Node, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        open_file(&on_disk(&self.0.root, path))?.read_exact_at(buffer, at)
    }
}

fn on_disk(root: &Path, path: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path))
}

/// A step may not have seen another content than its key is made of: what it read is compared with what was scanned.
fn verify(context: &ContextTree, looks: &BTreeMap<Vec<u8>, Look>) -> Result<(), BuildError> {
    for (path, _) in looks.iter().filter(|(_, look)| look.has(Look::CONTENT)) {
        let Some(node) = context.tree.get(path) else { continue };
        let Some(expected) = node.content() else { continue };
        let changed = || BuildError::changed(&display_path(path));
        let digest = open_file(&on_disk(&context.root, path)).and_then(Digest::of_reader);
        if digest.map_err(|_| changed())? != *expected {
            return Err(changed());
        }
    }
    Ok(())
}
