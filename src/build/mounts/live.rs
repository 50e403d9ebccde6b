//! A mount that steps use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::head::{self, Head};
use super::times::Known;
use super::{CacheMountOptions, Initial, MountName};
use crate::build::contents::{ContentError, PackContents};
use crate::build::copy::{Opener as _, view};
use crate::build::engine::Engine;
use crate::build::error::BuildError;
use crate::build::layers::{Layers, Reads};
use crate::exec::{ServedTree, WritableMount};
use crate::layer::Metadata;
use crate::store::Lock;
use crate::trace::{ServeOptions, Serving, TracedTree};
use crate::tree::Tree;

/// Threads that answer for one mount.
const THREADS: usize = 2;

/// A mount with its snapshot below and what steps write above. It is unmounted, and what was written is gone, when this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Live {
    pub(super) name: MountName,
    pub(super) options: CacheMountOptions,
    pub(super) head: Option<Head>,
    /// It began with files from elsewhere.
    pub(super) is_seeded: bool,
    /// Mode and owner of its root directory as it began.
    pub(super) root: (u32, u32, u32),
    pub(super) tree: Arc<Tree>,
    pub(super) traced: Arc<TracedTree>,
    pub(super) contents: Arc<PackContents>,
    mount: WritableMount,
    pub(super) upper: PathBuf,
    /// Has all of it.
    _directory: tempfile::TempDir,
    _locks: Vec<Lock>,
}

impl Live {
    pub(super) async fn open(
        engine: &Engine,
        layers: &Layers,
        options: CacheMountOptions,
        name: MountName,
        head: Option<Head>,
        initial: &Initial<'_>,
        locks: Vec<Lock>,
    ) -> Result<Self, BuildError> {
        let failed = |error| BuildError::cache("opening a cache mount", error);
        let directory = engine.cache.local().tmp_dir().map_err(failed)?;
        let upper = directory.path().join("upper");
        fs_err::create_dir(&upper).map_err(|error| BuildError::cache("opening a cache mount", error))?;
        let shown = head.as_ref().map(|head| head::tree_of(&head.snapshot)).transpose();
        let (tree, files) =
            shown.map_err(|error| BuildError::cache("opening a cache mount", error))?.unwrap_or_default();
        let tree = Arc::new(tree);
        let is_seeded = head.is_none() && !initial.input.is_empty();
        match tree.get(b"").filter(|_| head.is_some()) {
            Some(root) => be(&upper, &root.metadata, engine.ownership.single_id)
                .map_err(|error| BuildError::cache("opening a cache mount", error))?,
            None => fill(engine, layers, initial, &upper).await?,
        }
        let root = root_of(&upper).map_err(|error| BuildError::cache("opening a cache mount", error))?;
        let contents = head::contents(layers, head.as_ref(), files);
        let serve = ServeOptions { threads: THREADS, single_id: engine.ownership.single_id };
        let traced = TracedTree::new(&tree, Arc::clone(&contents) as _, serve);
        let served: Arc<dyn ServedTree> = Arc::new(Serving(Arc::clone(&traced)));
        let (place, user_namespace) = (directory.path().to_owned(), engine.ownership.user_namespace);
        let above = upper.clone();
        let mount = engine
            .blocking(move || {
                WritableMount::new(&served, &above, &place, user_namespace)
                    .map_err(|error| BuildError::cache("mounting a cache", error))
            })
            .await?;
        Ok(Self {
            name,
            options,
            head,
            is_seeded,
            root,
            tree,
            traced,
            contents,
            mount,
            upper,
            _directory: directory,
            _locks: locks,
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.mount.path()
    }

    pub(super) fn known(&self) -> Option<Known> {
        match &self.head {
            Some(head) => Some(Known { ledger: Arc::new(head.ledger.clone()), horizon: head.horizon }),
            // Nobody knows what these were made from, and when.
            None if self.is_seeded => Some(Known::unknown()),
            None => None,
        }
    }

    pub(super) fn failure(&self) -> Option<(ContentError, Option<String>)> {
        Some((self.contents.failure()?.clone(), self.traced.failure()))
    }
}

fn root_of(directory: &Path) -> std::io::Result<(u32, u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs_err::metadata(directory)?;
    Ok((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()))
}

/// Gives a directory the attributes of another one.
fn be(directory: &Path, metadata: &Metadata, single_id: bool) -> std::io::Result<()> {
    if !single_id {
        std::os::unix::fs::chown(directory, Some(metadata.uid), Some(metadata.gid))?;
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(metadata.mode);
    fs_err::set_permissions(directory, mode)?;
    let times = std::fs::FileTimes::new().set_modified(metadata.mtime.into());
    fs_err::File::open(directory)?.file().set_times(times)
}

/// Fills a new mount.
pub(crate) async fn fill(
    engine: &Engine,
    layers: &Layers,
    initial: &Initial<'_>,
    directory: &Path,
) -> Result<(), BuildError> {
    let Initial { input, source, mode, uid, gid } = initial;
    let io = |error: std::io::Error| BuildError::cache("making a cache mount", error);
    if !input.is_empty() {
        let files = layers.opener(engine, input, Reads::All).await?;
        let tree = layers.input_tree(engine, input).await?;
        let (source, new) = ((*source).to_owned(), directory.to_owned());
        let chown = !engine.ownership.single_id;
        engine
            .blocking(move || {
                let path = view::resolve(&*tree, b"", source.as_bytes(), true)
                    .map_err(|error| BuildError::cache("making a cache mount", error))?;
                crate::build::materialise::copy_out(&tree, &files, &path, &new, chown).map_err(|error| {
                    let lost = files.failure();
                    lost.unwrap_or_else(|| BuildError::cache("making a cache mount", error))
                })
            })
            .await?;
    }
    if mode.is_some() || uid.is_some() || gid.is_some() || input.is_empty() {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode.unwrap_or(0o755));
        fs_err::set_permissions(directory, permissions).map_err(io)?;
        if !engine.ownership.single_id {
            std::os::unix::fs::chown(directory, Some(uid.unwrap_or(0)), Some(gid.unwrap_or(0)))
                .map_err(io)?;
        }
    }
    Ok(())
}
