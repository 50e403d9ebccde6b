//! Cache mounts as tars.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use super::change::{Item, Items};
use crate::build::contents::PackContents;
use crate::digest::{Digest, Hashing};
use crate::layer::{
    self, ArchiveWriter, LayerError, LayerVisitor, Metadata, ScanOptions, Timestamp, is_overlay_xattr,
    parent_path,
};
use crate::snapshot::{EntryKind, Extent, PackSink, Snapshot, Writer};
use crate::tree::Tree;

/// What a tar has, with its contents in the packs of `writer`. Later entries win; directories that are missing are made.
///
/// It is read as layers are, by the same rules, to its very end: nothing is known of a compressed stream before.
pub(super) fn read<S: PackSink>(
    input: impl Read + Send,
    writer: &mut Writer<S>,
    now: Timestamp,
    used: u32,
) -> Result<Items, LayerError> {
    let options = ScanOptions { whiteouts: false, ..ScanOptions::default() };
    let mut storing = Storing { writer, stored: HashMap::new() };
    let scanned = layer::scan(input, &options, &mut storing)?;
    let stored = storing.stored;
    // What a command that failed has left in a pipe. An empty tar has a block of zeros at least.
    if scanned.raw_size == 0 {
        return Err(LayerError::Tar { at: 0, problem: "there is nothing".to_owned() });
    }
    let new = Metadata { mode: 0o755, mtime: now, ..Metadata::default() };
    let directory = Item { metadata: new, used, kind: EntryKind::Directory, group: None };
    let mut items = Items::default();
    items.insert(b"", directory.clone());
    for entry in scanned.toc.entries {
        let mut above = parent_path(&entry.path);
        let mut missing = Vec::new();
        while let Some(path) = above.filter(|path| items.get(path).is_none()) {
            missing.push(path);
            above = parent_path(path);
        }
        for path in missing.into_iter().rev() {
            items.insert(path, directory.clone());
        }
        let wrong = |problem: &str| LayerError::entry(&entry.path, problem);
        let kind = match entry.kind {
            layer::EntryKind::HardLink { target } => {
                let first =
                    items.link(&target).ok_or_else(|| wrong("is a hard link to what is not there"))?;
                items.insert(&entry.path, first);
                continue;
            }
            layer::EntryKind::Directory { .. } => EntryKind::Directory,
            layer::EntryKind::File { size, content, .. } => {
                let extents = stored.get(&content).ok_or_else(|| wrong("has a content that was not read"))?;
                EntryKind::File { size, extents: extents.clone() }
            }
            layer::EntryKind::Symlink { target } => EntryKind::Symlink { target },
            layer::EntryKind::CharDevice { major: 0, minor: 0 } | layer::EntryKind::Whiteout => {
                return Err(wrong("is the device 0:0, which means removal to overlayfs"));
            }
            layer::EntryKind::CharDevice { major, minor } => EntryKind::CharDevice { major, minor },
            layer::EntryKind::BlockDevice { major, minor } => EntryKind::BlockDevice { major, minor },
            layer::EntryKind::Fifo => EntryKind::Fifo,
        };
        let mut metadata = entry.metadata;
        // As of what a step leaves: everything that comes next must be newer.
        metadata.mtime = metadata.mtime.min(now);
        // These are how overlayfs marks what is removed, and the mount is shown through one.
        metadata.xattrs.retain(|name, _| !is_overlay_xattr(name));
        items.insert(&entry.path, Item { metadata, used, kind, group: None });
    }
    Ok(items)
}

/// Stores contents as they come: which path has which one is known at the end.
struct Storing<'s, S: PackSink> {
    writer: &'s mut Writer<S>,
    stored: HashMap<Digest, Vec<Extent>>,
}

impl<S: PackSink> LayerVisitor for Storing<'_, S> {
    fn visit(
        &mut self,
        path: &[u8],
        _: &Metadata,
        item: layer::Item<'_>,
        content: &mut dyn Read,
    ) -> Result<(), LayerError> {
        if let layer::Item::File { size } = item {
            let mut hashed = Hashing::new(content);
            let extents = self.writer.file(path, size, &mut hashed).map_err(|error| {
                LayerError::io(format!("storing {}", layer::display_path(path)))(io::Error::other(error))
            })?;
            let (_, digest, _) = hashed.finish();
            self.stored.insert(digest, extents);
        }
        Ok(())
    }
}

/// Writes a snapshot's entries, with all that is known of them.
pub(super) fn write<W: Write>(
    tree: &Tree,
    snapshot: &Snapshot,
    contents: &PackContents,
    out: W,
) -> Result<W, LayerError> {
    let mut tar = ArchiveWriter::new(out);
    for entry in &snapshot.entries {
        let nothing: &mut dyn Read = &mut io::empty();
        let mut reader;
        let (item, content) = match &entry.kind {
            EntryKind::File { size, .. } => {
                let gone = || LayerError::entry(&entry.path, "is not in its own snapshot");
                let node = tree.get(&entry.path).ok_or_else(gone)?.node;
                reader = contents.reader(node);
                (layer::Item::File { size: *size }, &mut reader as &mut dyn Read)
            }
            EntryKind::Directory => (layer::Item::Directory, nothing),
            EntryKind::HardLink { target } => (layer::Item::HardLink { target }, nothing),
            EntryKind::Symlink { target } => (layer::Item::Symlink { target }, nothing),
            EntryKind::CharDevice { major, minor } => {
                (layer::Item::CharDevice { major: *major, minor: *minor }, nothing)
            }
            EntryKind::BlockDevice { major, minor } => {
                (layer::Item::BlockDevice { major: *major, minor: *minor }, nothing)
            }
            EntryKind::Fifo => (layer::Item::Fifo, nothing),
        };
        tar.entry(&entry.path, &entry.metadata, item, content)?;
    }
    tar.finish()
}
