//! Makes a table of contents of a foreign layer, which may say things twice or in any order.
//!
//! The rules are those of the OCI image specification and, where it is silent, of containerd: a later entry replaces
//! an earlier one of the same path, with all that is below it unless both are directories; whiteouts and opaque marks
//! are about lower layers only, wherever they stand.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use super::error::LayerError;
use super::toc::{Entry, EntryKind, Metadata, Toc};
use super::toc_codec::parent;

#[derive(Debug)]
enum Slot {
    Entry(Entry),
    Whiteout(Vec<u8>),
    Opaque(Vec<u8>),
}

/// A table of contents in the making.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// In the order of the tar; what was replaced is gone.
    slots: Vec<Option<Slot>>,
    /// The entries' places in `slots`.
    paths: BTreeMap<Vec<u8>, usize>,
    /// The places of the hard links to the entry at a place.
    links: HashMap<usize, Vec<usize>>,
    /// A directory that has only directories above it.
    good_parent: Vec<u8>,
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn whiteout(&mut self, path: Vec<u8>) {
        self.slots.push(Some(Slot::Whiteout(path)));
    }

    pub(super) fn opaque(&mut self, path: Vec<u8>) {
        self.slots.push(Some(Slot::Opaque(path)));
    }

    /// Adds an entry that is no whiteout.
    pub(super) fn add(&mut self, mut entry: Entry) -> Result<(), LayerError> {
        self.check_parent(&entry.path)?;
        let directory = matches!(entry.kind, EntryKind::Directory { .. });
        let old = self.paths.get(&entry.path).copied();
        if let Some(old) = old
            && directory
            && let Some(Some(Slot::Entry(before))) = self.slots.get_mut(old)
            && matches!(before.kind, EntryKind::Directory { .. })
        {
            before.metadata = entry.metadata;
            return Ok(());
        }
        let mut linked = None;
        if let EntryKind::HardLink { target } = &mut entry.kind {
            if *target == entry.path {
                return Err(LayerError::entry(&entry.path, "is a hard link to itself"));
            }
            if let Some(at) = self.paths.get(target) {
                linked = Some(*at);
                match &self.slots[*at] {
                    Some(Slot::Entry(Entry { kind: EntryKind::Directory { .. }, .. })) => {
                        return Err(LayerError::entry(&entry.path, "is a hard link to a directory"));
                    }
                    // A link to a link is one to the first name. If that is in a lower layer, so is this link's.
                    Some(Slot::Entry(Entry { kind: EntryKind::HardLink { target: first }, .. })) => {
                        if *first == entry.path {
                            return Err(LayerError::entry(&entry.path, "is a hard link to itself"));
                        }
                        target.clone_from(first);
                        linked = self.paths.get(first.as_slice()).copied();
                    }
                    _ => {}
                }
            }
        }
        if let Some(old) = old {
            self.paths.remove(&entry.path);
            // Replacing a name of a group with another name of the same group changes nothing.
            if linked == Some(old) {
                self.paths.insert(entry.path, old);
                return Ok(());
            }
            self.drop_slot(old);
        }
        if !directory {
            self.drop_below(&entry.path);
        }
        let at = self.slots.len();
        // Dropping may have made another name the first one.
        if let (EntryKind::HardLink { target }, Some(first)) = (&mut entry.kind, linked)
            && let Some(Some(Slot::Entry(first_entry))) = self.slots.get(first)
        {
            target.clone_from(&first_entry.path);
            self.links.entry(first).or_default().push(at);
        }
        self.paths.insert(entry.path.clone(), at);
        self.slots.push(Some(Slot::Entry(entry)));
        Ok(())
    }

    fn check_parent(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let Some(above) = parent(path) else { return Ok(()) };
        if above == self.good_parent {
            return Ok(());
        }
        let mut ancestor = Some(above);
        while let Some(dir) = ancestor {
            if let Some(at) = self.paths.get(dir)
                && let Some(Some(Slot::Entry(entry))) = self.slots.get(*at)
                && !matches!(entry.kind, EntryKind::Directory { .. })
            {
                return Err(LayerError::entry(path, "lies below an entry that is not a directory"));
            }
            ancestor = parent(dir);
        }
        self.good_parent = above.to_vec();
        Ok(())
    }

    /// Removes the entries below `path`.
    fn drop_below(&mut self, path: &[u8]) {
        let prefix = [path, b"/"].concat();
        if self.good_parent == path || self.good_parent.starts_with(&prefix) {
            self.good_parent.clear();
        }
        let range = (Bound::Included(prefix.clone()), Bound::Unbounded);
        let below = self.paths.range::<Vec<u8>, _>(range);
        let below: Vec<_> =
            below.take_while(|(path, _)| path.starts_with(&prefix)).map(|(p, at)| (p.clone(), *at)).collect();
        for (path, at) in below {
            self.paths.remove(&path);
            self.drop_slot(at);
        }
    }

    /// Removes an entry whose path is no longer in `paths`. If it has other names, the first of them takes its place.
    fn drop_slot(&mut self, at: usize) {
        let Some(Slot::Entry(dropped)) = self.slots[at].take() else { return };
        let mut others = self.links.remove(&at).unwrap_or_default().into_iter();
        let first = others.find(|other| matches!(self.slots[*other], Some(Slot::Entry(_))));
        let Some(first) = first else { return };
        if let Some(Slot::Entry(entry)) = &mut self.slots[first] {
            entry.kind = dropped.kind;
            entry.metadata = dropped.metadata;
            let path = entry.path.clone();
            let others: Vec<usize> = others.collect();
            for other in &others {
                if let Some(Slot::Entry(Entry { kind: EntryKind::HardLink { target }, .. })) =
                    &mut self.slots[*other]
                {
                    target.clone_from(&path);
                }
            }
            self.links.insert(first, others);
        }
    }

    /// The table of contents, without frames.
    pub(super) fn finish(self) -> Toc {
        let Self { mut slots, mut paths, .. } = self;
        let mut marks: Vec<(usize, Vec<u8>, bool)> = Vec::new();
        for (at, slot) in slots.iter_mut().enumerate() {
            match slot {
                Some(Slot::Whiteout(path)) => marks.push((at, std::mem::take(path), true)),
                Some(Slot::Opaque(path)) => marks.push((at, std::mem::take(path), false)),
                _ => continue,
            }
            *slot = None;
        }
        // Parents first, so that a mark below another one sees what became of it.
        marks.sort_by(|a, b| a.1.cmp(&b.1).then(a.0.cmp(&b.0)));
        for (at, path, whiteout) in marks {
            if let Some(there) = paths.get(&path) {
                if let Some(Slot::Entry(entry)) = &mut slots[*there]
                    && let EntryKind::Directory { opaque, .. } = &mut entry.kind
                {
                    *opaque = true;
                }
                continue;
            }
            let mut above = parent(&path);
            let mut hidden = false;
            while let Some(dir) = above {
                if let Some(there) = paths.get(dir)
                    && let Some(Slot::Entry(entry)) = &slots[*there]
                {
                    hidden = !matches!(entry.kind, EntryKind::Directory { .. });
                    break;
                }
                above = parent(dir);
            }
            if hidden {
                continue;
            }
            let prefix = [path.as_slice(), b"/"].concat();
            let range = (Bound::Included(prefix.clone()), Bound::Unbounded);
            let used =
                paths.range::<Vec<u8>, _>(range).next().is_some_and(|(path, _)| path.starts_with(&prefix));
            let bare = Metadata { mode: 0o755, ..Metadata::default() };
            let (metadata, kind) = if !whiteout {
                (bare, EntryKind::Directory { opaque: true, implied: true })
            } else if used {
                // Something new in a directory that is removed and not described: a new directory.
                (bare, EntryKind::Directory { opaque: true, implied: false })
            } else {
                (Metadata::default(), EntryKind::Whiteout)
            };
            paths.insert(path.clone(), at);
            slots[at] = Some(Slot::Entry(Entry { path, metadata, kind }));
        }
        let entries = slots.into_iter().filter_map(|slot| match slot {
            Some(Slot::Entry(entry)) => Some(entry),
            _ => None,
        });
        Toc { entries: entries.collect(), frames: Vec::new() }
    }
}
