//! COPY and ADD on trees: BuildKit's `fsutil/copy` without a file system.

use std::collections::HashMap;

use super::CopyError;
use super::select::{Filter, Match, Source, lookup};
use super::staging::{Content, NewDirectory, Staged, Staging};
use super::view::{Node, View, base_name, display, join, parent, resolve};
use crate::dockerfile::Chmod;
use crate::layer::{EntryKind, Metadata, Timestamp};

/// How entries are changed on the way.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// `--chown`, resolved.
    pub(crate) owner: Option<(u32, u32)>,
    /// `--chmod`.
    pub(crate) chmod: Option<Chmod>,
    /// The time of directories that are made on the way.
    pub(crate) now: Timestamp,
    /// No time later than this (`SOURCE_DATE_EPOCH`).
    pub(crate) epoch: Option<Timestamp>,
}

impl Rules {
    /// What a directory that is made on the way gets.
    pub(crate) fn new_directory(&self) -> NewDirectory {
        let mode = match &self.chmod {
            // Go's `MkdirAll` takes the permission bits only.
            Some(Chmod::Absolute(mode)) => *mode & 0o777,
            _ => 0o755,
        };
        NewDirectory { mode, owner: self.owner, mtime: self.clamp(self.now) }
    }

    fn clamp(&self, time: Timestamp) -> Timestamp {
        self.epoch.map_or(time, |epoch| time.min(epoch))
    }

    /// The metadata of the copy of `node`.
    pub(crate) fn apply(&self, node: &Node) -> Metadata {
        let mut metadata = node.metadata.clone();
        if let Some((uid, gid)) = self.owner {
            (metadata.uid, metadata.gid) = (uid, gid);
        }
        if let Some(chmod) = &self.chmod
            && !matches!(node.kind, EntryKind::Symlink { .. })
        {
            metadata.mode = chmod.apply(metadata.mode, node.is_directory());
        }
        metadata.mtime = self.clamp(metadata.mtime);
        metadata
    }
}

/// Makes the parents of a destination (`fsutil/copy`, the first part of `Copy`): the destination itself if it ends
/// in a slash, else the directory that it is in. Returns the destination with links resolved.
pub(crate) fn prepare<V: View>(
    staging: &mut Staging<'_, V>,
    destination: &[u8],
    rules: &Rules,
) -> Result<Vec<u8>, CopyError> {
    let ends_as_directory = destination.ends_with(b"/") || destination.ends_with(b"/.");
    let trimmed = super::view::clean(destination);
    let ensure = if ends_as_directory { trimmed.as_slice() } else { parent(&trimmed) };
    staging.make_directories(ensure, rules.new_directory())?;
    Ok(resolve(staging, b"", &trimmed, true)?)
}

/// Copies one match of `source`, the step's source number `origin`, to `destination` (as [`prepare`] returned it).
pub(crate) fn copy<V: View>(
    staging: &mut Staging<'_, V>,
    (source, origin): (&impl Source, usize),
    item: &Match,
    destination: &[u8],
    filter: &Filter,
    rules: &Rules,
) -> Result<(), CopyError> {
    let node =
        lookup(source, &item.path).ok_or_else(|| CopyError::NotFound { path: display(&item.named) })?;
    let mut target = destination.to_vec();
    let existing = lookup(&*staging, destination);
    if !node.is_directory() && existing.as_ref().is_some_and(Node::is_directory) {
        target = join(destination, base_name(&item.named));
    }
    let make = if node.is_directory() && existing.is_none() { &target } else { parent(&target) };
    staging.make_directories(make, rules.new_directory())?;
    let mut copier = Copier { staging, source, origin, item, filter, rules, groups: HashMap::new() };
    copier.copy(&[], &target, &mut Vec::new())
}

struct Copier<'c, 't, V, S> {
    staging: &'c mut Staging<'t, V>,
    source: &'c S,
    origin: usize,
    item: &'c Match,
    filter: &'c Filter,
    rules: &'c Rules,
    /// The first copied name of each hard-linked file.
    groups: HashMap<u64, Vec<u8>>,
}

/// A directory on the way that is only made if something below it is copied.
struct Pending {
    node: Node,
    target: Vec<u8>,
    done: bool,
}

impl<V: View, S: Source> Copier<'_, '_, V, S> {
    /// Copies the entry at `relative` below the match to `target`. Recursion is as deep as the source's
    /// directories, which a path's length bounds.
    fn copy(&mut self, relative: &[u8], target: &[u8], above: &mut Vec<Pending>) -> Result<(), CopyError> {
        let path = join(&self.item.path, relative);
        let Some(node) = lookup(self.source, &path) else {
            return Err(CopyError::NotFound { path: display(&path) });
        };
        let included = self.filter.includes(relative);
        if !node.is_directory() {
            if !included {
                return Ok(());
            }
            self.make_pending(above)?;
            return self.copy_file(&path, &node, target);
        }
        if included {
            self.make_pending(above)?;
            self.copy_directory(&node, target, relative.is_empty())?;
        }
        above.push(Pending { node, target: target.to_vec(), done: included });
        if self.filter.enters(relative) {
            for name in self.source.list(&path) {
                self.copy(&join(relative, &name), &join(target, &name), above)?;
            }
        }
        above.pop();
        Ok(())
    }

    fn make_pending(&mut self, above: &mut [Pending]) -> Result<(), CopyError> {
        for directory in above {
            if !directory.done {
                directory.done = true;
                let (node, target) = (directory.node.clone(), directory.target.clone());
                self.copy_directory(&node, &target, false)?;
            }
        }
        Ok(())
    }

    /// Makes or merges a directory. The top one keeps the metadata that it has, and takes the source's time.
    fn copy_directory(&mut self, node: &Node, target: &[u8], top: bool) -> Result<(), CopyError> {
        match lookup(&*self.staging, target) {
            Some(existing) if !existing.is_directory() => {
                Err(CopyError::NotADirectory { path: display(target) })
            }
            // The root of an image is in no layer.
            Some(_) if top && target.is_empty() => Ok(()),
            Some(existing) if top => {
                let mtime = self.rules.clamp(node.metadata.mtime);
                self.staging.set_metadata(target, Metadata { mtime, ..existing.metadata });
                Ok(())
            }
            Some(_) => {
                self.staging.set_metadata(target, self.rules.apply(node));
                Ok(())
            }
            None => {
                let kind = EntryKind::Directory { opaque: false, implied: false };
                let node = Node { metadata: self.rules.apply(node), kind };
                self.staging.add(target.to_vec(), Staged { node, content: Content::None });
                Ok(())
            }
        }
    }

    fn copy_file(&mut self, path: &[u8], node: &Node, target: &[u8]) -> Result<(), CopyError> {
        if self.staging.lookup(target).is_some_and(|existing| existing.is_directory()) {
            return Err(CopyError::IsADirectory { path: display(target) });
        }
        let mut staged = Staged {
            node: Node { metadata: self.rules.apply(node), kind: node.kind.clone() },
            content: Content::None,
        };
        if let EntryKind::File { size, .. } = node.kind {
            if let Some(group) = self.source.link_group(path) {
                if let Some(first) = self.groups.get(&group).filter(|first| first.as_slice() != target) {
                    staged.node.kind = EntryKind::HardLink { target: first.clone() };
                    self.staging.add(target.to_vec(), staged);
                    return Ok(());
                }
                self.groups.insert(group, target.to_vec());
            }
            if size > 0 {
                staged.content = Content::Source { origin: self.origin, path: path.to_vec() };
            }
        }
        self.staging.add(target.to_vec(), staged);
        Ok(())
    }
}
