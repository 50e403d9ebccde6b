//! What somebody who looked at a path of a tree saw (`docs/formats.md`, "Read sets").

use std::collections::HashMap;
use std::sync::OnceLock;

use super::digest::names_of_groups;
use super::node::{Node, NodeKind, NodeRef, Tree};
use crate::digest::{Digest, Hasher};
use crate::encoding::Encoder;
use crate::layer::encode_xattrs;

/// Begins the preimage of every value.
const MAGIC: &[u8] = b"crossdock-observed-1\n";

/// How a path was looked at: any of these together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Look(u8);

impl Look {
    /// Whether there is anything, and its kind, mode, owner, size, link target, device number, extended attributes and
    /// other names. Whatever else is looked at, this is too.
    pub const NODE: Self = Self(1);
    /// A file's content.
    pub const CONTENT: Self = Self(2);
    /// The names in a directory, with their kinds.
    pub const NAMES: Self = Self(4);

    /// All of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Without `other`.
    #[cfg(debug_assertions)]
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether `other` is part of it.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// As a number of a format.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The reverse; `None` if these are not ways of looking at something.
    pub fn of_bits(bits: u8) -> Option<Self> {
        let look = Self(bits);
        (bits < 8 && look.has(Self::NODE)).then_some(look)
    }
}

/// What was seen, as the first half of a digest: 128 bits tell apart all that anybody could make.
pub type Seen = [u8; 16];

/// Sees what a tree shows.
#[derive(Debug)]
pub struct Observer<'t> {
    tree: &'t Tree,
    /// The digest of the names of each hard-link group, once one of them is looked at.
    groups: OnceLock<HashMap<u64, Digest>>,
}

impl<'t> Observer<'t> {
    /// Somebody who looks at `tree`.
    pub fn new(tree: &'t Tree) -> Self {
        Self { tree, groups: OnceLock::new() }
    }

    /// What is seen of `path`, which leads through directories only: where one of them is none, there is nothing.
    pub fn see(&self, path: &[u8], look: Look) -> Seen {
        let mut encoder = Encoder::new();
        let node = self.tree.get(path);
        encoder.option(node, |e, node| self.node(e, node));
        if let Some(node) = node {
            if look.has(Look::CONTENT) {
                encoder.option(node.content(), |e, content| {
                    e.digest(content);
                });
            }
            if look.has(Look::NAMES) {
                for (name, child) in self.tree.children(path) {
                    encoder.bytes(name).uint(kind_number(&child).into());
                }
            }
        }
        let mut hasher = Hasher::default();
        hasher.update(MAGIC);
        hasher.update(&[look.bits()]);
        hasher.update(&encoder.finish());
        let mut seen = Seen::default();
        seen.copy_from_slice(&hasher.finish().as_bytes()[..16]);
        seen
    }

    fn node(&self, e: &mut Encoder, node: NodeRef<'_>) {
        e.uint(kind_number(&node).into());
        match &node.kind {
            NodeKind::File { size, .. } => {
                e.uint(*size);
            }
            NodeKind::Symlink { target } => {
                e.bytes(target);
            }
            NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
                e.uint((*major).into()).uint((*minor).into());
            }
            NodeKind::Directory | NodeKind::Fifo => {}
        }
        let metadata = &node.metadata;
        e.uint(metadata.mode.into()).uint(metadata.uid.into()).uint(metadata.gid.into());
        encode_xattrs(e, &metadata.xattrs);
        let names = node.group.and_then(|group| self.names(group));
        e.option(names, |e, names| {
            e.digest(&names);
        });
    }

    /// The digest of all names that a group has.
    fn names(&self, group: u64) -> Option<Digest> {
        let groups = self.groups.get_or_init(|| {
            let digest = |names: Vec<Vec<u8>>| {
                let mut encoder = Encoder::new();
                for name in &names {
                    encoder.bytes(name);
                }
                Digest::of(encoder.finish())
            };
            let groups = names_of_groups(&self.tree.root).into_iter();
            groups.map(|(group, names)| (group, digest(names))).collect()
        });
        groups.get(&group).copied()
    }
}

/// What kind a node is, as a number of a format.
pub(crate) fn kind_number(node: &Node) -> u8 {
    match node.kind {
        NodeKind::Directory => 0,
        NodeKind::File { .. } => 1,
        NodeKind::Symlink { .. } => 2,
        NodeKind::CharDevice { .. } => 3,
        NodeKind::BlockDevice { .. } => 4,
        NodeKind::Fifo => 5,
    }
}
