//! Following symbolic links inside a tree, as a process whose root it is would.

use super::node::{NodeKind, NodeRef, Tree, components};
use crate::layer::{NAME_MAX, PATH_MAX, display_path};

/// How many symbolic links are followed in one path. BuildKit's limit; Linux's own is 40.
const LINKS_MAX: u32 = 255;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved<'a> {
    /// The path without symbolic links, `.` and `..`, relative to the root, whether it exists or not.
    pub path: Vec<u8>,
    /// What is there.
    pub node: Option<NodeRef<'a>>,
    /// The longest part of `path` that exists; `path` itself where `node` is there. It is a directory then, unless it
    /// is `path`.
    pub existing: Vec<u8>,
}

/// Why a path leads nowhere.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ResolveError {
    /// Too many symbolic links.
    #[error("`{0}` leads through more than 255 symbolic links")]
    Loop(String),
    /// Something in the middle is no directory.
    #[error("`{path}` leads through `{at}`, which is not a directory")]
    NotADirectory {
        /// The path asked for.
        path: String,
        /// What is in the way.
        at: String,
    },
    /// Longer than any file system takes.
    #[error("`{0}` is too long for a path")]
    TooLong(String),
}

impl crate::hint::Hint for ResolveError {}

impl Tree {
    /// Follows `path` (absolute or not, always from the root) through symbolic links, also the last component if
    /// `follow_last`. `..` stops at the root. What does not exist is kept as it is, `..` taking away one component.
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> Result<Resolved<'_>, ResolveError> {
        let mut done: Vec<Vec<u8>> = Vec::new();
        // How many components of `done` exist.
        let mut existing = 0;
        let mut links = 0;
        if path.len() > PATH_MAX {
            return Err(ResolveError::TooLong(display_path(path)));
        }
        let mut todo: Vec<Vec<u8>> = components(path).map(<[u8]>::to_vec).rev().collect();
        // A trailing slash asks for a directory, hence for what a link leads to.
        let follow_last = follow_last || path.ends_with(b"/");
        while let Some(name) = todo.pop() {
            match &*name {
                b"." => continue,
                b".." => {
                    done.pop();
                    existing = existing.min(done.len());
                    continue;
                }
                _ if name.len() > NAME_MAX => return Err(ResolveError::TooLong(display_path(path))),
                _ => {}
            }
            let missing = existing < done.len();
            done.push(name);
            if missing {
                continue;
            }
            let Some(node) = self.get(&done.join(&b'/')) else { continue };
            existing = done.len();
            let last = todo.is_empty();
            match &node.node.kind {
                NodeKind::Symlink { target } if !last || follow_last => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(ResolveError::Loop(display_path(path)));
                    }
                    if target.starts_with(b"/") {
                        done.clear();
                    } else {
                        done.pop();
                    }
                    existing = done.len();
                    todo.extend(components(target).map(<[u8]>::to_vec).rev());
                    if todo.iter().map(|name| name.len() + 1).sum::<usize>() > 2 * PATH_MAX {
                        return Err(ResolveError::TooLong(display_path(path)));
                    }
                }
                NodeKind::Directory => {}
                _ if last => {}
                _ => {
                    let at = display_path(&done.join(&b'/'));
                    return Err(ResolveError::NotADirectory { path: display_path(path), at });
                }
            }
        }
        let path = done.join(&b'/');
        let node = if existing == done.len() { self.get(&path) } else { None };
        Ok(Resolved { existing: done[..existing].join(&b'/'), path, node })
    }
}
