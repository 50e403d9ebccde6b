//! Trees: the merged view of an ordered list of layers, held as TOCs.
//!
//! A [`Tree`] is persistent: cloning is cheap, and applying a layer copies only the directories that it changes. The
//! digest of a directory is kept with it, so that the digest of a tree costs what changed since it was last asked for.

mod apply;
mod changes;
mod digest;
mod handle;
mod node;
mod observe;
mod resolve;

pub use apply::TreeError;
pub use changes::{Change, ChangeKind, changes};
pub use handle::{Child, DirHandle};
pub use node::{Node, NodeKind, NodeRef, Origin, Tree, Walk, child_path};
pub(crate) use observe::kind_number;
pub use observe::{Look, Observer, Seen};
pub use resolve::{ResolveError, Resolved};

#[cfg(test)]
mod tests;
