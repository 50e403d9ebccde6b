//! What is different between two trees, to explain why a step runs again.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::node::{Dir, NodeKind, Slot, Tree, child_path};

/// How a path is different.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChangeKind {
    /// Only the new tree has it. Of a directory, what is in it is not listed.
    Added,
    /// Only the old tree has it. Of a directory, what is in it is not listed.
    Removed,
    /// Kind, content, link target or device number differ.
    Content,
    /// Mode, owner, extended attributes, or which other names it has.
    Metadata,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path.
    pub path: Vec<u8>,
    /// How it is different.
    pub kind: ChangeKind,
}

/// The differences between two trees, as far as their digests see them, sorted by path; at most `limit`. Equal
/// subtrees cost nothing.
pub fn changes(old: &Tree, new: &Tree, limit: usize) -> Vec<Change> {
    let mut found = Vec::new();
    compare_nodes(&old.root, &new.root, &[], &mut found, limit);
    if found.len() < limit && old.digest() != new.digest() {
        let (before, after) = (old.link_groups(b""), new.link_groups(b""));
        let before: BTreeSet<_> = before.into_iter().collect();
        let after: BTreeSet<_> = after.into_iter().collect();
        let relinked: BTreeSet<Vec<u8>> = before
            .symmetric_difference(&after)
            .flatten()
            .filter(|path| new.get(path).is_some())
            .cloned()
            .collect();
        let known: BTreeSet<Vec<u8>> = found.iter().map(|change| change.path.clone()).collect();
        let relinked = relinked.into_iter().filter(|path| !known.contains(path));
        found.extend(
            relinked.map(|path| Change { path, kind: ChangeKind::Metadata }).take(limit - found.len()),
        );
        found.sort_by(|a, b| a.path.cmp(&b.path));
    }
    found
}

fn compare_nodes(old: &Arc<Dir>, new: &Arc<Dir>, path: &[u8], found: &mut Vec<Change>, limit: usize) {
    if found.len() >= limit || Arc::ptr_eq(old, new) || old.summary().digest == new.summary().digest {
        return;
    }
    if !same_metadata(&Slot::Dir(Arc::clone(old)), &Slot::Dir(Arc::clone(new))) {
        found.push(Change { path: path.to_vec(), kind: ChangeKind::Metadata });
    }
    let names: BTreeSet<&Arc<[u8]>> = old.children.keys().chain(new.children.keys()).collect();
    for name in names {
        if found.len() >= limit {
            return;
        }
        let path = child_path(path, name);
        let kind = match (old.children.get(name), new.children.get(name)) {
            (Some(Slot::Dir(old)), Some(Slot::Dir(new))) => {
                compare_nodes(old, new, &path, found, limit);
                continue;
            }
            (None, _) => ChangeKind::Added,
            (_, None) => ChangeKind::Removed,
            (Some(old), Some(new)) if !same_kind(&old.node().kind, &new.node().kind) => ChangeKind::Content,
            (Some(old), Some(new)) if !same_metadata(old, new) => ChangeKind::Metadata,
            _ => continue,
        };
        found.push(Change { path, kind });
    }
}

fn same_kind(old: &NodeKind, new: &NodeKind) -> bool {
    old == new
}

fn same_metadata(old: &Slot, new: &Slot) -> bool {
    let (old, new) = (&old.node().metadata, &new.node().metadata);
    (old.mode, old.uid, old.gid, &old.xattrs) == (new.mode, new.uid, new.gid, &new.xattrs)
}
