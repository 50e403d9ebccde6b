//! What a tree is made of, and how it is looked at.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use crate::digest::Digest;
use crate::layer::{Lower, Metadata};

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// Digest of the content.
        content: Digest,
    },
    /// A symbolic link.
    Symlink {
        /// The link's text.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Where a node comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    /// The number that was given to [`Tree::apply`] with the layer.
    pub layer: u32,
    /// Where the content begins in the layer's uncompressed tar; 0 for what is no file.
    pub offset: u64,
}

/// Something in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its metadata.
    pub metadata: Metadata,
    /// Its kind.
    pub kind: NodeKind,
    /// Where it comes from.
    pub origin: Origin,
}

impl Node {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == NodeKind::Directory
    }

    /// The content digest, if it is a regular file.
    pub fn content(&self) -> Option<&Digest> {
        match &self.kind {
            NodeKind::File { content, .. } => Some(content),
            _ => None,
        }
    }

    /// The length, if it is a regular file; else 0.
    pub fn size(&self) -> u64 {
        match self.kind {
            NodeKind::File { size, .. } => size,
            _ => 0,
        }
    }

    /// The link's text, if it is a symbolic link.
    pub fn target(&self) -> Option<&[u8]> {
        match &self.kind {
            NodeKind::Symlink { target } => Some(target),
            _ => None,
        }
    }
}

/// A [`Node`] as it stands in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeRef<'a> {
    /// The node.
    pub node: &'a Node,
    /// How many names it has in the whole tree; 1 for directories.
    pub nlink: u32,
    /// Names the hard-link group within this tree, where `nlink` is more than 1. Meaningless in other trees.
    pub group: Option<u64>,
}

impl Deref for NodeRef<'_> {
    type Target = Node;

    fn deref(&self) -> &Node {
        self.node
    }
}

/// A directory with all that is in it.
#[derive(Debug)]
pub(super) struct Dir {
    pub(super) node: Node,
    pub(super) children: BTreeMap<Arc<[u8]>, Slot>,
    /// Derived from the rest; reset by every change.
    pub(super) summary: OnceLock<Summary>,
}

/// What is known of a directory with all that is in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Summary {
    /// Its Merkle digest, without hard-link groups.
    pub(super) digest: Digest,
    /// Whether anything in it has a group.
    pub(super) linked: bool,
    /// Whether it, or anything in it, has extended attributes.
    pub(super) xattrs: bool,
}

impl Clone for Dir {
    /// A copy to be changed: it has no summary.
    fn clone(&self) -> Self {
        Self { node: self.node.clone(), children: self.children.clone(), summary: OnceLock::new() }
    }
}

/// One name's meaning.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    /// A directory.
    Dir(Arc<Dir>),
    /// Anything else.
    Leaf {
        node: Arc<Node>,
        /// The hard-link group, if it ever had another name.
        group: Option<u64>,
    },
}

impl Slot {
    pub(super) fn node(&self) -> &Node {
        match self {
            Self::Dir(dir) => &dir.node,
            Self::Leaf { node, .. } => node,
        }
    }

    pub(super) fn group(&self) -> Option<u64> {
        match self {
            Self::Dir(_) => None,
            Self::Leaf { group, .. } => *group,
        }
    }
}

/// The merged view of layers.
#[derive(Debug, Clone)]
pub struct Tree {
    pub(super) root: Arc<Dir>,
    /// How many names each hard-link group has.
    pub(super) groups: Arc<HashMap<u64, u32>>,
    pub(super) next_group: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Self::empty()
    }
}

/// A directory that no layer describes, but that must be there: what stock clients make of a missing parent.
pub(super) fn bare_directory(layer: u32) -> Dir {
    Dir {
        node: Node {
            metadata: Metadata { mode: 0o755, ..Metadata::default() },
            kind: NodeKind::Directory,
            origin: Origin { layer, offset: 0 },
        },
        children: BTreeMap::new(),
        summary: OnceLock::new(),
    }
}

/// The components of a path; a leading, trailing or doubled slash counts for nothing.
pub(super) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
}

impl Tree {
    /// The tree of no layers: a root directory, 0755, owned by 0:0.
    pub fn empty() -> Self {
        Self { root: Arc::new(bare_directory(0)), groups: Arc::default(), next_group: 0 }
    }

    /// What is at `path`, without following any symbolic link. The empty path and `/` are the root.
    pub fn get(&self, path: &[u8]) -> Option<NodeRef<'_>> {
        let Some(slot) = self.slot(path)? else { return Some(self.root_ref()) };
        Some(self.slot_ref(slot))
    }

    /// What is in the directory at `path`, sorted by name; nothing if it is no directory.
    pub fn children(&self, path: &[u8]) -> impl Iterator<Item = (&[u8], NodeRef<'_>)> {
        let dir = match self.slot(path) {
            Some(None) => Some(&self.root),
            Some(Some(Slot::Dir(dir))) => Some(dir),
            _ => None,
        };
        let children = dir.into_iter().flat_map(|dir| &dir.children);
        children.map(|(name, slot)| (&**name, self.slot_ref(slot)))
    }

    /// Everything from `path` on, itself included, parents before what is in them, siblings sorted by name. Paths are
    /// relative to the tree's root.
    pub fn walk(&self, path: &[u8]) -> Walk<'_> {
        let path = components(path).collect::<Vec<_>>().join(&b'/');
        let next = match self.slot(&path) {
            None => None,
            Some(None) => Some((path, self.root_ref(), Some(&*self.root))),
            Some(Some(slot)) => {
                let dir = match slot {
                    Slot::Dir(dir) => Some(&**dir),
                    Slot::Leaf { .. } => None,
                };
                Some((path, self.slot_ref(slot), dir))
            }
        };
        Walk { tree: self, next, stack: Vec::new() }
    }

    /// `Some(None)` for the root.
    #[expect(clippy::option_option, reason = "absent, the root, or a slot")]
    pub(super) fn slot(&self, path: &[u8]) -> Option<Option<&Slot>> {
        let mut dir = &self.root;
        let mut found = None;
        let mut components = components(path).peekable();
        while let Some(name) = components.next() {
            let slot = dir.children.get(name)?;
            match slot {
                Slot::Dir(inner) => dir = inner,
                Slot::Leaf { .. } if components.peek().is_some() => return None,
                Slot::Leaf { .. } => {}
            }
            found = Some(slot);
        }
        Some(found)
    }

    fn root_ref(&self) -> NodeRef<'_> {
        NodeRef { node: &self.root.node, nlink: 1, group: None }
    }

    pub(super) fn slot_ref<'a>(&self, slot: &'a Slot) -> NodeRef<'a> {
        let nlink = slot.group().map_or(1, |group| self.names_in_group(group));
        NodeRef { node: slot.node(), nlink, group: slot.group().filter(|_| nlink > 1) }
    }
}

impl Lower for Tree {
    fn exists(&self, path: &[u8]) -> bool {
        self.get(path).is_some()
    }

    fn directory(&self, path: &[u8]) -> Option<&Metadata> {
        let node = self.get(path)?.node;
        node.is_directory().then_some(&node.metadata)
    }
}

type Children<'a> = std::collections::btree_map::Iter<'a, Arc<[u8]>, Slot>;

/// Iterates over a tree: see [`Tree::walk`].
#[derive(Debug)]
pub struct Walk<'a> {
    tree: &'a Tree,
    next: Option<(Vec<u8>, NodeRef<'a>, Option<&'a Dir>)>,
    stack: Vec<(Vec<u8>, Children<'a>)>,
}

impl<'a> Iterator for Walk<'a> {
    type Item = (Vec<u8>, NodeRef<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (path, node, dir) = self.next.take()?;
        if let Some(dir) = dir {
            self.stack.push((path.clone(), dir.children.iter()));
        }
        while let Some((prefix, children)) = self.stack.last_mut() {
            let Some((name, slot)) = children.next() else {
                self.stack.pop();
                continue;
            };
            let child = child_path(prefix, name);
            let dir = match slot {
                Slot::Dir(dir) => Some(&**dir),
                Slot::Leaf { .. } => None,
            };
            self.next = Some((child, self.tree.slot_ref(slot), dir));
            break;
        }
        Some((path, node))
    }
}

/// The path of `name` in the directory `path`.
pub fn child_path(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    if !path.is_empty() {
        joined.extend_from_slice(path);
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}
