//! The Merkle digest of a tree (`docs/formats.md`, "Tree digest").

use std::collections::BTreeMap;

use super::node::{Dir, Node, NodeKind, Slot, Summary, Tree, child_path, components};
use crate::digest::{Digest, Hasher};
use crate::encoding::Encoder;
use crate::layer::encode_xattrs;

/// Begins the preimage of a directory's digest.
const DIRECTORY_MAGIC: &[u8] = b"crossdock-directory-1\n";

/// Begins the preimage of a tree's digest.
const TREE_MAGIC: &[u8] = b"crossdock-tree-1\n";

impl Tree {
    /// The digest of the whole tree: over kind, mode, owner, size, content, link target, extended attributes, device
    /// numbers and hard-link groups of everything in it, the root included. Times are no part of it, nor is the way
    /// in which layers made it.
    pub fn digest(&self) -> Digest {
        hash_tree(&Slot::Dir(self.root.clone()))
    }

    /// The digest of what is at `path` as if it were a whole tree: its own metadata is included, its name and whatever
    /// lies outside is not, and hard links count only among names within it. `None` if there is nothing.
    pub fn subtree_digest(&self, path: &[u8]) -> Option<Digest> {
        Some(match self.slot(path)? {
            None => self.digest(),
            Some(slot) => hash_tree(slot),
        })
    }

    /// Whether anything in the tree has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.root.summary().xattrs
    }

    /// The paths below `path`, relative to it, of each hard-link group with at least two of them; sorted.
    pub(super) fn link_groups(&self, path: &[u8]) -> Vec<Vec<Vec<u8>>> {
        let mut dir = &self.root;
        for name in components(path) {
            let Some(Slot::Dir(inner)) = dir.children.get(name) else { return Vec::new() };
            dir = inner;
        }
        groups(dir)
    }
}

fn hash_tree(slot: &Slot) -> Digest {
    let mut encoder = Encoder::new();
    let groups = match slot {
        Slot::Dir(dir) => groups(dir),
        Slot::Leaf { .. } => Vec::new(),
    };
    encode_slot(&mut encoder, slot);
    encoder.list(groups, |e, paths| {
        e.list(paths, |e, path| {
            e.bytes(path);
        });
    });
    hash(TREE_MAGIC, &encoder.finish())
}

fn hash(magic: &[u8], data: &[u8]) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(magic);
    hasher.update(data);
    hasher.finish()
}

/// The names of the groups in `dir`, each sorted.
pub(super) fn names_of_groups(dir: &Dir) -> BTreeMap<u64, Vec<Vec<u8>>> {
    fn collect(dir: &Dir, path: &[u8], found: &mut BTreeMap<u64, Vec<Vec<u8>>>) {
        if !dir.summary().linked {
            return;
        }
        for (name, slot) in &dir.children {
            match slot {
                Slot::Dir(inner) => collect(inner, &child_path(path, name), found),
                Slot::Leaf { group: Some(group), .. } => {
                    found.entry(*group).or_default().push(child_path(path, name));
                }
                Slot::Leaf { group: None, .. } => {}
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(dir, &[], &mut found);
    for paths in found.values_mut() {
        paths.sort();
    }
    found
}

/// The groups in `dir` with at least two names, each sorted, in the order of their first paths.
fn groups(dir: &Dir) -> Vec<Vec<Vec<u8>>> {
    let mut groups: Vec<_> = names_of_groups(dir).into_values().filter(|paths| paths.len() > 1).collect();
    groups.sort();
    groups
}

impl Dir {
    /// The summary, computed where it is not known yet. Paths are bounded, hence the depth of the recursion too.
    pub(super) fn summary(&self) -> Summary {
        *self.summary.get_or_init(|| {
            let mut encoder = Encoder::new();
            encode_metadata(&mut encoder, &self.node);
            let mut linked = false;
            let mut xattrs = !self.node.metadata.xattrs.is_empty();
            encoder.list(&self.children, |e, (name, slot)| {
                e.bytes(name);
                encode_slot(e, slot);
                let inner = match slot {
                    Slot::Dir(dir) => {
                        let Summary { linked, xattrs, .. } = dir.summary();
                        (linked, xattrs)
                    }
                    Slot::Leaf { node, group } => (group.is_some(), !node.metadata.xattrs.is_empty()),
                };
                linked |= inner.0;
                xattrs |= inner.1;
            });
            Summary { digest: hash(DIRECTORY_MAGIC, &encoder.finish()), linked, xattrs }
        })
    }
}

fn encode_slot(e: &mut Encoder, slot: &Slot) {
    match slot {
        Slot::Dir(dir) => {
            e.uint(0).digest(&dir.summary().digest);
        }
        Slot::Leaf { node, .. } => encode_leaf(e, node),
    }
}

fn encode_leaf(e: &mut Encoder, node: &Node) {
    match &node.kind {
        NodeKind::Directory => unreachable!("directories are no leaves"),
        NodeKind::File { size, content } => e.uint(1).uint(*size).digest(content),
        NodeKind::Symlink { target } => e.uint(2).bytes(target),
        NodeKind::CharDevice { major, minor } => e.uint(3).uint((*major).into()).uint((*minor).into()),
        NodeKind::BlockDevice { major, minor } => e.uint(4).uint((*major).into()).uint((*minor).into()),
        NodeKind::Fifo => e.uint(5),
    };
    encode_metadata(e, node);
}

/// Never the time.
fn encode_metadata(e: &mut Encoder, node: &Node) {
    let metadata = &node.metadata;
    e.uint(metadata.mode.into()).uint(metadata.uid.into()).uint(metadata.gid.into());
    encode_xattrs(e, &metadata.xattrs);
}
