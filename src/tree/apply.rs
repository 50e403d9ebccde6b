//! Merging a layer into a tree.

use std::sync::Arc;

use super::node::{Dir, Node, NodeKind, Origin, Slot, Tree, bare_directory, components};
use crate::layer::{Entry, EntryKind, Toc, TocError, display_path};

/// Why a layer cannot be merged.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TreeError {
    /// A hard link leads nowhere.
    #[error("layer {layer} links `{path}` to `{target}`, which neither it nor a layer below it has")]
    LinkTarget {
        /// The layer's number.
        layer: u32,
        /// The link.
        path: String,
        /// What it should be another name of.
        target: String,
    },
    /// The TOC breaks its invariants.
    #[error("layer {layer} cannot be merged")]
    Toc {
        /// The layer's number.
        layer: u32,
        /// Why.
        #[source]
        source: TocError,
    },
}

impl crate::hint::Hint for TreeError {
    fn hint(&self) -> Option<String> {
        Some(
            "the image's layers do not belong together or are damaged; pull or build the image again"
                .to_owned(),
        )
    }
}

impl Tree {
    /// Merges the layer `toc` into the tree, on top of what is there; `layer` is remembered as the [`Origin`] of its
    /// nodes. On an error the tree is as it was.
    ///
    /// Whiteouts and opaque directories take away only what lower layers have, wherever they stand in the layer. A
    /// path whose parent is missing, or is no directory, gets one with mode 0755.
    pub fn apply(&mut self, layer: u32, toc: &Toc) -> Result<(), TreeError> {
        toc.validate().map_err(|source| TreeError::Toc { layer, source })?;
        let mut merged = self.clone();
        for entry in &toc.entries {
            match entry.kind {
                EntryKind::Whiteout => merged.remove(&entry.path),
                EntryKind::Directory { opaque: true, .. } => merged.remove_children(&entry.path),
                _ => {}
            }
        }
        for entry in &toc.entries {
            merged.add(self, layer, entry)?;
        }
        *self = merged;
        Ok(())
    }

    fn add(&mut self, before: &Self, layer: u32, entry: &Entry) -> Result<(), TreeError> {
        let origin = Origin { layer, offset: 0 };
        let leaf = |kind, origin| {
            let node = Arc::new(Node { metadata: entry.metadata.clone(), kind, origin });
            Slot::Leaf { node, group: None }
        };
        let slot = match &entry.kind {
            EntryKind::Whiteout => return Ok(()),
            EntryKind::Directory { implied, .. } => {
                self.add_directory(layer, entry, *implied);
                return Ok(());
            }
            EntryKind::HardLink { target } => {
                let found = self.link(target).or_else(|| before.leaf(target));
                found.ok_or_else(|| TreeError::LinkTarget {
                    layer,
                    path: display_path(&entry.path),
                    target: display_path(target),
                })?
            }
            EntryKind::File { size, content, offset } => {
                let origin = Origin { layer, offset: *offset };
                leaf(NodeKind::File { size: *size, content: *content }, origin)
            }
            EntryKind::Symlink { target } => leaf(NodeKind::Symlink { target: target.clone() }, origin),
            EntryKind::CharDevice { major, minor } => {
                leaf(NodeKind::CharDevice { major: *major, minor: *minor }, origin)
            }
            EntryKind::BlockDevice { major, minor } => {
                leaf(NodeKind::BlockDevice { major: *major, minor: *minor }, origin)
            }
            EntryKind::Fifo => leaf(NodeKind::Fifo, origin),
        };
        if let Some(group) = slot.group() {
            *Arc::make_mut(&mut self.groups).entry(group).or_default() += 1;
        }
        let Some((dirs, name)) = split(&entry.path) else { return Ok(()) };
        let old = self.directory_mut(layer, dirs).children.insert(name.into(), slot);
        self.forget(old);
        Ok(())
    }

    fn add_directory(&mut self, layer: u32, entry: &Entry, implied: bool) {
        let exists = matches!(self.slot(&entry.path), Some(None | Some(Slot::Dir(_))));
        let dir = self.directory_mut(layer, &entry.path);
        if !(implied && exists) {
            dir.node.metadata = entry.metadata.clone();
            dir.node.origin = Origin { layer, offset: 0 };
        }
    }

    /// The slot for another name of what is at `target`, which becomes part of a group.
    fn link(&mut self, target: &[u8]) -> Option<Slot> {
        let Some(Some(Slot::Leaf { node, group })) = self.slot(target) else { return None };
        let node = Arc::clone(node);
        if let Some(group) = *group {
            return Some(Slot::Leaf { node, group: Some(group) });
        }
        let group = self.next_group;
        self.next_group += 1;
        Arc::make_mut(&mut self.groups).insert(group, 1);
        let linked = Slot::Leaf { node, group: Some(group) };
        let (dirs, name) = split(target)?;
        self.directory_mut(0, dirs).children.insert(name.into(), linked.clone());
        Some(linked)
    }

    /// The slot for a copy of what is at `target`, in no group.
    fn leaf(&self, target: &[u8]) -> Option<Slot> {
        match self.slot(target) {
            Some(Some(Slot::Leaf { node, .. })) => Some(Slot::Leaf { node: Arc::clone(node), group: None }),
            _ => None,
        }
    }

    /// The directory at `path`, to be changed. What is missing of it is made; what is in its way is replaced.
    fn directory_mut(&mut self, layer: u32, path: &[u8]) -> &mut Dir {
        let mut replaced = Vec::new();
        let mut dir = Arc::make_mut(&mut self.root);
        dir.summary.take();
        for name in components(path) {
            if !matches!(dir.children.get(name), Some(Slot::Dir(_))) {
                let old = dir.children.insert(name.into(), Slot::Dir(Arc::new(bare_directory(layer))));
                replaced.extend(old.as_ref().and_then(Slot::group));
            }
            let Some(Slot::Dir(inner)) = dir.children.get_mut(name) else { unreachable!("made above") };
            dir = Arc::make_mut(inner);
            dir.summary.take();
        }
        for group in replaced {
            release(&mut self.groups, group);
        }
        dir
    }

    fn remove(&mut self, path: &[u8]) {
        let Some((dirs, name)) = split(path) else { return };
        if !matches!(self.slot(path), Some(Some(_))) {
            return;
        }
        let old = self.directory_mut(0, dirs).children.remove(name);
        self.forget(old);
    }

    fn remove_children(&mut self, path: &[u8]) {
        if !matches!(self.slot(path), Some(None | Some(Slot::Dir(_)))) {
            return;
        }
        let children = std::mem::take(&mut self.directory_mut(0, path).children);
        for old in children.into_values() {
            self.forget(Some(old));
        }
    }

    /// Takes the names in `old`, which is no longer part of the tree, out of their groups.
    fn forget(&mut self, old: Option<Slot>) {
        match old {
            Some(Slot::Leaf { group: Some(group), .. }) => release(&mut self.groups, group),
            // Paths are bounded, hence also the depth of this recursion.
            Some(Slot::Dir(dir)) if dir.summary.get().is_none_or(|summary| summary.linked) => {
                for slot in dir.children.values() {
                    self.forget(Some(slot.clone()));
                }
            }
            _ => {}
        }
    }
}

fn release(groups: &mut Arc<std::collections::HashMap<u64, u32>>, group: u64) {
    let groups = Arc::make_mut(groups);
    if let Some(count) = groups.get_mut(&group) {
        *count -= 1;
        if *count == 0 {
            groups.remove(&group);
        }
    }
}

/// A path's directory and last component; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let dirs = crate::layer::parent_path(path)?;
    let name = if dirs.is_empty() { path } else { &path[dirs.len() + 1..] };
    Some((dirs, name))
}
