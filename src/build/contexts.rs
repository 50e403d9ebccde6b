//! Directory contexts as trees: what of them a plan needs, scanned once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::copy::view::{clean, components};
use super::plan::{Input, Op, Plan};
use crate::context::hashes::HashCache;
use crate::context::ignore::{Ignore, IgnoreError};
use crate::context::open::read_small;
use crate::context::pattern::has_wildcard;
use crate::context::scan::{ScanError, Wanted, scan};
use crate::digest::Digest;
use crate::dockerfile::Mount;
use crate::exec::CancelToken;
use crate::hint::Hint;
use crate::layer::{Timestamp, Toc};
use crate::store::replace_file;
use crate::tree::{Tree, TreeError};

/// An ignore file larger than this is a mistake; the Dockerfile has the same bound.
const IGNORE_BYTES_MAX: u64 = 16 << 20;

/// More remembered digests are not read: those of some millions of files.
const HASHES_BYTES_MAX: u64 = 1 << 30;

/// A scanned directory context.
#[derive(Debug)]
pub(crate) struct ContextTree {
    pub(crate) root: PathBuf,
    pub(crate) tree: Arc<Tree>,
    pub(crate) ignore: Ignore,
    /// The ignore file's name, for messages.
    pub(crate) ignore_name: String,
}

impl ContextTree {
    /// Names beside the missing `path` that it may have been meant to be.
    pub(crate) fn similar(&self, path: &[u8]) -> Vec<String> {
        let directory = super::copy::view::parent(path);
        self.tree
            .children(directory)
            .map(|(name, _)| String::from_utf8_lossy(&super::copy::view::join(directory, name)).into_owned())
            .collect()
    }
}

/// Why a context could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContextError {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("could not read `{}`", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
}

impl Hint for ContextError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Scan(error) => error.hint(),
            Self::Ignore(error) => error.hint(),
            Self::Tree(_) | Self::Io { .. } => None,
        }
    }
}

/// What the plan's steps read of the source `number`: only that is scanned, as BuildKit transfers only that.
pub(crate) fn wanted(plan: &Plan, number: usize) -> Wanted {
    let mut paths: Vec<Vec<u8>> = Vec::new();
    let this = Input::Source(number);
    for step in plan.stages.iter().flat_map(|stage| &stage.steps) {
        match &step.op {
            Op::Copy(copy) if copy.input == this => {
                paths.extend(copy.sources.iter().map(|source| literal_prefix(source.as_bytes())));
            }
            Op::Run(run) => {
                for mount in run.mounts.iter().filter(|mount| mount.input == this) {
                    if let Mount::Bind { source, .. } | Mount::Cache { source, .. } = &mount.mount {
                        paths.push(clean(source.as_bytes()));
                    }
                }
            }
            _ => {}
        }
    }
    if paths.iter().any(Vec::is_empty) { Wanted::Everything } else { Wanted::Below(paths) }
}

/// The path up to the first component with a wildcard.
fn literal_prefix(pattern: &[u8]) -> Vec<u8> {
    let cleaned = clean(pattern);
    let literal: Vec<&[u8]> = components(&cleaned).take_while(|part| !has_wildcard(part)).collect();
    literal.join(&b'/')
}

/// The rules for the context `root`, and the name of the file that they are from: `ignore`, which goes with the
/// Dockerfile, or else the directory's own `.dockerignore`.
pub(crate) fn ignore_rules(
    root: &Path,
    ignore: Option<&(String, Vec<u8>)>,
) -> Result<(Ignore, String), ContextError> {
    let (name, text) = match ignore {
        Some((name, text)) => (name.clone(), text.clone()),
        None => {
            let path = root.join(".dockerignore");
            match read_small(&path, IGNORE_BYTES_MAX) {
                Ok(text) => (".dockerignore".to_owned(), text.unwrap_or_default()),
                Err(source) => return Err(ContextError::Io { path, source }),
            }
        }
    };
    Ok((Ignore::parse(&name, &text)?, name))
}

/// Scans the directory `root`. `ignore` is the ignore file that goes with the Dockerfile, if there is one; else the
/// directory's own `.dockerignore` is used. `hashes_file` remembers digests from run to run; losing it costs time only.
pub(crate) fn load(
    root: &Path,
    ignore: Option<&(String, Vec<u8>)>,
    wanted: &Wanted,
    hashes_dir: &Path,
    now: Timestamp,
    cancel: &CancelToken,
) -> Result<ContextTree, ContextError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| ContextError::Io { path, source }
    };
    let root = fs_err::canonicalize(root).map_err(io(root))?;
    let (ignore, ignore_name) = ignore_rules(&root, ignore)?;
    let name = Digest::of(std::os::unix::ffi::OsStrExt::as_bytes(root.as_os_str()));
    let hashes_file = hashes_dir.join(name.hex());
    let mut hashes = read_small(&hashes_file, HASHES_BYTES_MAX)
        .ok()
        .flatten()
        .and_then(|data| HashCache::decode(&data).ok())
        .unwrap_or_default();
    let entries = scan(&root, &ignore, wanted, &mut hashes, now, &|| cancel.is_cancelled())?;
    if hashes.is_changed() {
        // A cache of a cache: a build goes on without it.
        let _ = replace_file(&hashes_file, |file| file.write_all(&hashes.encode()));
    }
    let mut tree = Tree::empty();
    tree.apply(0, &Toc { entries, frames: Vec::new() })?;
    Ok(ContextTree { root, tree: Arc::new(tree), ignore, ignore_name })
}
