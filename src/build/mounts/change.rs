//! What a snapshot becomes when something in it is changed.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::layer::Metadata;
use crate::snapshot::{Entry, EntryKind, Extent, Snapshot};

/// Something in a mount.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) metadata: Metadata,
    /// Hours since the Unix epoch.
    pub(super) used: u32,
    /// What it is: no hard link.
    pub(super) kind: EntryKind,
    /// What it shares with the other names of the same file.
    pub(super) group: Option<u64>,
}

impl Item {
    /// How many bytes it has.
    pub(super) fn size(&self) -> u64 {
        match self.kind {
            EntryKind::File { size, .. } => size,
            _ => 0,
        }
    }

    fn extents(&self) -> &[Extent] {
        match &self.kind {
            EntryKind::File { extents, .. } => extents,
            _ => &[],
        }
    }

    /// Whether some of its content is in one of these packs.
    pub(super) fn is_in(&self, packs: &HashSet<u32>) -> bool {
        self.extents().iter().any(|extent| extent.pack.is_some_and(|pack| packs.contains(&pack)))
    }
}

/// Everything in a mount, by path: with NUL, which is in no path, for the slash, so that what is in a directory follows it.
#[derive(Debug, Default)]
pub(super) struct Items {
    items: BTreeMap<Vec<u8>, Item>,
    groups: u64,
}

impl Items {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let mut items = Self::default();
        for entry in &snapshot.entries {
            if let EntryKind::HardLink { target } = &entry.kind {
                // A snapshot has no link to nothing.
                if let Some(first) = items.link(target) {
                    items.insert(&entry.path, first);
                }
                continue;
            }
            let item = Item {
                metadata: entry.metadata.clone(),
                used: entry.used,
                kind: entry.kind.clone(),
                group: None,
            };
            items.items.insert(key(&entry.path), item);
        }
        items
    }

    /// The items by path, parents first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Vec<u8>, &Item)> {
        self.items.iter().map(|(key, item)| (path(key), item))
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<&Item> {
        self.items.get(&key(path))
    }

    pub(super) fn get_mut(&mut self, path: &[u8]) -> Option<&mut Item> {
        self.items.get_mut(&key(path))
    }

    /// A number that no group has.
    fn new_group(&mut self) -> u64 {
        self.groups += 1;
        self.groups - 1
    }

    /// What another name of the file at `path` is; `None` if there is none there.
    pub(super) fn link(&mut self, path: &[u8]) -> Option<Item> {
        let first = self.get(path).filter(|item| item.kind != EntryKind::Directory)?;
        let group = match first.group {
            Some(group) => group,
            None => self.new_group(),
        };
        let first = self.get_mut(path)?;
        first.group = Some(group);
        Some(first.clone())
    }

    pub(super) fn insert(&mut self, path: &[u8], item: Item) {
        if !matches!(item.kind, EntryKind::Directory) {
            self.remove_children(path);
        }
        self.items.insert(key(path), item);
    }

    /// Removes a path and what is in it.
    pub(super) fn remove(&mut self, path: &[u8]) {
        self.remove_children(path);
        self.items.remove(&key(path));
    }

    /// Removes what is in a directory.
    pub(super) fn remove_children(&mut self, path: &[u8]) {
        let mut first = key(path);
        if first.is_empty() {
            self.items.retain(|key, _| key.is_empty());
            return;
        }
        first.push(0);
        let mut beyond = first.clone();
        if let Some(last) = beyond.last_mut() {
            *last = 1;
        }
        let inside: Vec<Vec<u8>> = self.items.range(first..beyond).map(|(key, _)| key.clone()).collect();
        for key in inside {
            self.items.remove(&key);
        }
    }

    /// As a snapshot lists them.
    pub(super) fn into_entries(self) -> Vec<Entry> {
        let mut firsts: HashMap<u64, Vec<u8>> = HashMap::new();
        let entry = |(key, item): (Vec<u8>, Item)| {
            let path = path(&key);
            let mut kind = item.kind;
            if let Some(group) = item.group {
                match firsts.get(&group) {
                    Some(first) => kind = EntryKind::HardLink { target: first.clone() },
                    None => {
                        firsts.insert(group, path.clone());
                    }
                }
            }
            Entry { path, metadata: item.metadata, used: item.used, kind }
        };
        self.items.into_iter().map(entry).collect()
    }
}

fn key(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

fn path(key: &[u8]) -> Vec<u8> {
    key.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect()
}
