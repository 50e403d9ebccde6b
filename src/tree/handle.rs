//! Looking at a tree one name at a time, as a file system is asked.

use std::sync::Arc;

use super::node::{Dir, Node, Slot, Tree};

/// A directory of a tree. Holding it keeps it as it is, whatever becomes of the tree.
#[derive(Debug, Clone)]
pub struct DirHandle(Arc<Dir>);

/// What a name in a directory means.
#[derive(Debug, Clone)]
pub enum Child {
    /// A directory.
    Directory(DirHandle),
    /// Anything else.
    Leaf {
        /// What it is.
        node: Arc<Node>,
        /// Its hard-link group, if it has, or ever had, another name. It names the group within this tree only.
        group: Option<u64>,
    },
}

impl Tree {
    /// The root directory.
    pub fn root(&self) -> DirHandle {
        DirHandle(Arc::clone(&self.root))
    }

    /// How many names a hard-link group has.
    pub fn names_in_group(&self, group: u64) -> u32 {
        self.groups.get(&group).copied().unwrap_or(1)
    }
}

impl DirHandle {
    /// The directory itself.
    pub fn node(&self) -> &Node {
        &self.0.node
    }

    /// What is called `name` in it.
    pub fn child(&self, name: &[u8]) -> Option<Child> {
        self.0.children.get(name).map(Child::of)
    }

    /// Everything in it, by name.
    pub fn children(&self) -> impl Iterator<Item = (&[u8], Child)> {
        self.0.children.iter().map(|(name, slot)| (&**name, Child::of(slot)))
    }
}

impl Child {
    fn of(slot: &Slot) -> Self {
        match slot {
            Slot::Dir(dir) => Self::Directory(DirHandle(Arc::clone(dir))),
            Slot::Leaf { node, group } => Self::Leaf { node: Arc::clone(node), group: *group },
        }
    }

    /// The node.
    pub fn node(&self) -> &Node {
        match self {
            Self::Directory(dir) => dir.node(),
            Self::Leaf { node, .. } => node,
        }
    }
}
