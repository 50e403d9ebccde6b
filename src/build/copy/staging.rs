//! The entries that a step adds to a tree, collected before they are written as a layer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::path::PathBuf;

use super::CopyError;
use super::view::{Node, View, components, display, join, parent, resolve};
use crate::digest::Digest;
use crate::layer::{EntryKind, Metadata, Timestamp};

/// Where the bytes of a file that is added come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// It is no file, or an empty one.
    None,
    /// In memory.
    Bytes(Vec<u8>),
    /// The file at this path of one of the step's sources.
    Source {
        /// Which one: 0 is what the files are copied from, others are what was fetched.
        origin: usize,
        /// The path in it.
        path: Vec<u8>,
    },
    /// The file at this path of the tree that the entries are added to.
    Base {
        /// The path in it.
        path: Vec<u8>,
    },
    /// A part of a file on disk.
    Spooled {
        /// The file.
        file: PathBuf,
        /// Where the content begins in it.
        offset: u64,
    },
}

/// One entry that is added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Staged {
    pub(crate) node: Node,
    pub(crate) content: Content,
}

/// A tree with entries added to it.
pub(crate) struct Staging<'a, V> {
    tree: &'a V,
    added: BTreeMap<Vec<u8>, Staged>,
    /// Files among `added` with more than one name, and whose names these are. While entries are added, only the holder
    /// has the file; what the others say of it counts when all is finished. So an archive may have a million names of a
    /// file, and replace it a million times.
    groups: Vec<Group>,
    group_of: HashMap<Vec<u8>, usize>,
}

/// The names of a file.
#[derive(Debug)]
struct Group {
    holder: Vec<u8>,
    others: BTreeSet<Vec<u8>>,
}

/// Owner and mode of directories that are made on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewDirectory {
    pub(crate) mode: u32,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) mtime: Timestamp,
}

impl NewDirectory {
    /// The directory, made in `above`: that one's setgid bit goes on, with its group unless an owner is given.
    fn node(self, above: Option<&Node>) -> Node {
        let inherited = above.map(|above| &above.metadata).filter(|above| above.mode & 0o2000 != 0);
        let mode = self.mode | inherited.map_or(0, |_| 0o2000);
        let (uid, gid) = self.owner.unwrap_or((0, inherited.map_or(0, |above| above.gid)));
        Node {
            metadata: Metadata { mode, uid, gid, mtime: self.mtime, xattrs: BTreeMap::new() },
            kind: EntryKind::Directory { opaque: false, implied: false },
        }
    }
}

impl<V: View> View for Staging<'_, V> {
    fn lookup(&self, path: &[u8]) -> Option<Node> {
        if let Some(staged) = self.added.get(path) {
            return Some(self.target_of(path, staged));
        }
        // Something else than a directory that was added on the way hides what the tree has below it.
        let mut above = parent(path);
        while !above.is_empty() {
            if let Some(staged) = self.added.get(above)
                && !staged.node.is_directory()
            {
                return None;
            }
            above = parent(above);
        }
        self.tree.lookup(path)
    }
}

impl<'a, V: View> Staging<'a, V> {
    pub(crate) fn new(tree: &'a V) -> Self {
        Self { tree, added: BTreeMap::new(), groups: Vec::new(), group_of: HashMap::new() }
    }

    /// The name that holds the file of which `path`, or else `target`, is a name.
    fn holder<'p>(&'p self, path: &[u8], target: &'p [u8]) -> &'p [u8] {
        self.group_of.get(path).map_or(target, |group| &self.groups[*group].holder)
    }

    fn target_of(&self, path: &[u8], staged: &Staged) -> Node {
        match &staged.node.kind {
            EntryKind::HardLink { target } => match self.added.get(self.holder(path, target)) {
                Some(first) => first.node.clone(),
                None => staged.node.clone(),
            },
            _ => staged.node.clone(),
        }
    }

    /// Adds an entry, replacing one that was added before.
    ///
    /// What was added below it goes, unless both are directories; other names of a file that is replaced take over
    /// its content.
    pub(crate) fn add(&mut self, path: Vec<u8>, staged: Staged) {
        if !staged.node.is_directory() {
            self.remove_below(&path);
        }
        self.forget(&path);
        if let EntryKind::HardLink { target } = &staged.node.kind {
            let group = *self.group_of.entry(target.clone()).or_insert_with(|| {
                self.groups.push(Group { holder: target.clone(), others: BTreeSet::new() });
                self.groups.len() - 1
            });
            self.groups[group].others.insert(path.clone());
            self.group_of.insert(path.clone(), group);
        }
        self.added.insert(path, staged);
    }

    /// The name under which the file at `path` is kept: the path itself, or the target of the link there. What the tree
    /// has there is added to begin with, as a union file system copies up what gets another name; its other names in
    /// the tree stay what they are. `None` if there is nothing, or a directory.
    pub(crate) fn first_name(&mut self, path: &[u8]) -> Option<Vec<u8>> {
        if !self.added.contains_key(path) {
            let node = self.lookup(path).filter(|node| !node.is_directory())?;
            let content = match node.kind {
                EntryKind::File { size: 1.., .. } => Content::Base { path: path.to_vec() },
                _ => Content::None,
            };
            self.added.insert(path.to_vec(), Staged { node, content });
        }
        match &self.added.get(path)?.node.kind {
            EntryKind::HardLink { target } => Some(self.holder(path, target).to_vec()),
            EntryKind::Directory { .. } => None,
            _ => Some(path.to_vec()),
        }
    }

    /// Replaces the metadata of a directory that is there.
    pub(crate) fn set_metadata(&mut self, path: &[u8], metadata: Metadata) {
        let kind = EntryKind::Directory { opaque: false, implied: false };
        self.added.insert(path.to_vec(), Staged { node: Node { metadata, kind }, content: Content::None });
    }

    /// Changes the metadata of the file that is added at `holder`, which all its names share. Extended attributes stay,
    /// but for a capability, which the kernel takes away when the owner is set; the mode of a symbolic link stays too.
    pub(crate) fn set_file_metadata(&mut self, holder: &[u8], metadata: &Metadata) {
        let Some(staged) = self.added.get_mut(holder) else { return };
        let old = std::mem::replace(&mut staged.node.metadata, metadata.clone());
        let xattrs = &mut staged.node.metadata.xattrs;
        for (name, value) in old.xattrs {
            if name != b"security.capability" {
                xattrs.entry(name).or_insert(value);
            }
        }
        if matches!(staged.node.kind, EntryKind::Symlink { .. }) {
            staged.node.metadata.mode = old.mode;
        }
    }

    fn remove_below(&mut self, path: &[u8]) {
        let from = join(path, b"\0");
        let below: Vec<Vec<u8>> = self
            .added
            .range::<[u8], _>((Bound::Included(&from[..from.len() - 1]), Bound::Unbounded))
            .map(|(below, _)| below)
            .take_while(|below| below.starts_with(&from[..from.len() - 1]))
            .cloned()
            .collect();
        for path in below {
            self.forget(&path);
        }
    }

    /// Removes what was added at `path`. If that is a file with other names, the next of them holds it from now on.
    fn forget(&mut self, path: &[u8]) {
        let Some(gone) = self.added.remove(path) else { return };
        let Some(group) = self.group_of.remove(path).and_then(|group| self.groups.get_mut(group)) else {
            return;
        };
        if group.holder != path {
            group.others.remove(path);
        } else if let Some(next) = group.others.pop_first() {
            group.holder.clone_from(&next);
            self.added.insert(next, gone);
        }
    }

    /// Makes the directory `path` and whatever is missing above it (Go's `MkdirAll` below a root that may hold
    /// symbolic links); returns the path with links resolved.
    pub(crate) fn make_directories(&mut self, path: &[u8], new: NewDirectory) -> Result<Vec<u8>, CopyError> {
        let path = resolve(self, b"", path, true)?;
        let mut here = Vec::new();
        for component in components(&path) {
            here = join(&here, component);
            match self.lookup(&here) {
                None => {
                    let node = new.node(self.lookup(parent(&here)).as_ref());
                    self.add(here.clone(), Staged { node, content: Content::None });
                }
                Some(node) if node.is_directory() => {}
                Some(_) => return Err(CopyError::NotADirectory { path: display(&here) }),
            }
        }
        Ok(path)
    }

    /// Everything that was added, in an order in which a tar can hold it: parents first, the target of a hard link
    /// before it. Parents that were not added come as implied directories with the tree's metadata, because stock
    /// clients make missing ones with modes of their own.
    pub(crate) fn finish(mut self) -> Vec<(Vec<u8>, Staged)> {
        // The first name in this order must hold the file.
        for Group { holder, mut others } in self.groups {
            let Some(file) = self.added.get(&holder).cloned() else { continue };
            others.insert(holder);
            let Some(first) = others.pop_first() else { continue };
            for name in others {
                let kind = EntryKind::HardLink { target: first.clone() };
                let node = Node { metadata: file.node.metadata.clone(), kind };
                self.added.insert(name, Staged { node, content: Content::None });
            }
            self.added.insert(first, file);
        }
        let mut all = self.added;
        let mut implied = BTreeMap::new();
        for path in all.keys() {
            let mut above = parent(path);
            while !above.is_empty() && !all.contains_key(above) && !implied.contains_key(above) {
                if let Some(mut node) = self.tree.lookup(above) {
                    node.kind = EntryKind::Directory { opaque: false, implied: true };
                    implied.insert(above.to_vec(), Staged { node, content: Content::None });
                }
                above = parent(above);
            }
        }
        all.append(&mut implied);
        all.into_iter().collect()
    }
}

impl Staged {
    /// A file with `content` in memory.
    pub(crate) fn file(metadata: Metadata, bytes: Vec<u8>) -> Self {
        let kind = EntryKind::File { size: bytes.len() as u64, content: Digest::of(&bytes), offset: 0 };
        Self { node: Node { metadata, kind }, content: Content::Bytes(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::Sample;
    use super::*;

    const NEW: NewDirectory =
        NewDirectory { mode: 0o755, owner: None, mtime: Timestamp { seconds: 1, nanos: 0 } };

    fn file(text: &str) -> Staged {
        Staged::file(Metadata::default(), text.as_bytes().to_vec())
    }

    fn link(target: &str) -> Staged {
        let kind = EntryKind::HardLink { target: target.as_bytes().to_vec() };
        Staged { node: Node { metadata: Metadata::default(), kind }, content: Content::None }
    }

    fn names(staged: &[(Vec<u8>, Staged)]) -> Vec<String> {
        let mark = |staged: &Staged| match &staged.node.kind {
            EntryKind::Directory { implied: true, .. } => "implied ",
            EntryKind::Directory { .. } => "dir ",
            EntryKind::HardLink { .. } => "link ",
            _ => "",
        };
        staged.iter().map(|(path, staged)| format!("{}{}", mark(staged), display(path))).collect()
    }

    #[test]
    fn parents_are_made_or_implied() {
        let tree = Sample::new(&["usr/", "usr/lib/", "lib -> usr/lib"]);
        let mut staging = Staging::new(&tree);
        let made = staging.make_directories(b"/lib/a/b", NEW).unwrap();
        assert_eq!(made, b"usr/lib/a/b");
        staging.add(join(&made, b"f"), file("x"));
        assert_eq!(
            names(&staging.finish()),
            ["implied usr", "implied usr/lib", "dir usr/lib/a", "dir usr/lib/a/b", "usr/lib/a/b/f"]
        );
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let tree = Sample::new(&["a"]);
        assert!(Staging::new(&tree).make_directories(b"a/b", NEW).is_err());
    }

    #[test]
    fn what_is_replaced_hides_the_tree_and_hard_links_survive() {
        let tree = Sample::new(&["d/", "d/below"]);
        let mut staging = Staging::new(&tree);
        staging.add(b"d".to_vec(), file("now a file"));
        assert!(staging.lookup(b"d/below").is_none());
        staging.add(b"one".to_vec(), file("shared"));
        staging.add(b"a".to_vec(), link("one"));
        staging.add(b"z".to_vec(), link("one"));
        staging.add(b"one".to_vec(), file("new"));
        let done = staging.finish();
        assert_eq!(names(&done), ["a", "d", "one", "link z"]);
        assert_eq!(done[0].1.content, Content::Bytes(b"shared".to_vec()));
        assert_eq!(done[3].1.node.kind, EntryKind::HardLink { target: b"a".to_vec() });
    }

    #[test]
    fn the_first_name_of_a_file_holds_it() {
        let tree = Sample::new(&[]);
        let mut staging = Staging::new(&tree);
        staging.add(b"m".to_vec(), file("shared"));
        staging.add(b"a".to_vec(), link("m"));
        staging.add(b"z".to_vec(), link("m"));
        let done = staging.finish();
        assert_eq!(names(&done), ["a", "link m", "link z"]);
        assert_eq!(done[2].1.node.kind, EntryKind::HardLink { target: b"a".to_vec() });
    }
}
