//! Looking up paths in a tree as a program in it would: symbolic links resolved, never leaving the root.

use crate::layer::{EntryKind, Metadata};

/// A file, directory or anything else in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) metadata: Metadata,
    /// Never a whiteout; a hard link appears as the file that it names.
    pub(crate) kind: EntryKind,
}

impl Node {
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.kind, EntryKind::Directory { .. })
    }
}

/// Something that paths can be looked up in. Paths have no leading slash; the root is the empty path.
pub(crate) trait View {
    /// What is at `path`, without following a link there. The parents of `path` are real directories.
    fn lookup(&self, path: &[u8]) -> Option<Node>;
}

/// As many links as containerd's `fs.RootPath` follows.
const LINKS_MAX: u32 = 255;

/// Too many symbolic links on the way to a path.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("too many levels of symbolic links in `/{0}`")]
pub(crate) struct TooManyLinks(pub(crate) String);

/// Resolves `path` below the directory `root` (`continuity/fs/path.go`, `RootPath`): links are followed, the
/// last one too if `follow_last`; `..` and absolute links stop at `root`; components that do not exist are kept
/// as they are.
pub(crate) fn resolve(
    view: &impl View,
    root: &[u8],
    path: &[u8],
    follow_last: bool,
) -> Result<Vec<u8>, TooManyLinks> {
    let mut links = 0;
    let mut todo: Vec<Vec<u8>> = components(&clean(path)).rev().map(<[u8]>::to_vec).collect();
    let mut done: Vec<Vec<u8>> = Vec::new();
    while let Some(component) = todo.pop() {
        match component.as_slice() {
            b"" | b"." => continue,
            b".." => {
                done.pop();
                continue;
            }
            _ => {}
        }
        done.push(component);
        let here = join(root, &done.join(&b'/'));
        if todo.is_empty() && !follow_last {
            break;
        }
        if let Some(Node { kind: EntryKind::Symlink { target }, .. }) = view.lookup(&here) {
            links += 1;
            if links > LINKS_MAX {
                return Err(TooManyLinks(String::from_utf8_lossy(path).into_owned()));
            }
            done.pop();
            if target.starts_with(b"/") {
                done.clear();
            }
            todo.extend(components(&target).rev().map(<[u8]>::to_vec));
        }
    }
    Ok(join(root, &done.join(&b'/')))
}

/// The components of a path; empty ones and `.` are left out.
pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// The path without `.`, `..` and doubled slashes, and without a leading slash: Go's `filepath.Clean` of it
/// below the root.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in components(path) {
        if part == b".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join(&b'/')
}

/// `base/name`, or the one that is not empty.
pub(crate) fn join(base: &[u8], name: &[u8]) -> Vec<u8> {
    match (base, name) {
        (b"", name) => name.to_vec(),
        (base, b"") => base.to_vec(),
        (base, name) => [base, b"/", name].concat(),
    }
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |at| &path[..at])
}

/// The last component of `path`.
pub(crate) fn base_name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(path, |at| &path[at + 1..])
}

/// The path as text for messages.
pub(crate) fn display(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A view for tests: directories end in `/`, links are `name -> target`, anything else is a file.
    pub(crate) struct Sample(BTreeMap<Vec<u8>, EntryKind>);

    impl Sample {
        pub(crate) fn new(lines: &[&str]) -> Self {
            let entry = |line: &&str| match line.split_once(" -> ") {
                Some((path, target)) => {
                    (path.as_bytes().to_vec(), EntryKind::Symlink { target: target.as_bytes().to_vec() })
                }
                None if line.ends_with('/') => (
                    line.trim_end_matches('/').as_bytes().to_vec(),
                    EntryKind::Directory { opaque: false, implied: false },
                ),
                None => (
                    line.as_bytes().to_vec(),
                    EntryKind::File { size: 0, content: crate::digest::Digest::of(""), offset: 0 },
                ),
            };
            Self(lines.iter().map(entry).collect())
        }
    }

    impl View for Sample {
        fn lookup(&self, path: &[u8]) -> Option<Node> {
            self.0.get(path).map(|kind| Node { metadata: Metadata::default(), kind: kind.clone() })
        }
    }

    #[test]
    fn links_stay_inside_the_root() {
        let view = Sample::new(&[
            "a/",
            "a/up -> ../../../b",
            "abs -> /a",
            "b/",
            "loop -> loop",
            "x/",
            "x/a/",
            "x/abs -> /a",
        ]);
        let go = |path: &str, last| resolve(&view, b"", path.as_bytes(), last).map(|p| display(&p));
        assert_eq!(go("/abs/f", true).unwrap(), "a/f");
        assert_eq!(go("abs", false).unwrap(), "abs");
        assert_eq!(go("abs", true).unwrap(), "a");
        assert_eq!(go("a/up/c/d", true).unwrap(), "b/c/d");
        assert_eq!(go("../../etc", true).unwrap(), "etc");
        assert!(go("loop/x", true).is_err());
        assert_eq!(resolve(&view, b"x", b"abs/f", true).unwrap(), b"x/a/f");
    }

    #[test]
    fn paths_are_cleaned_as_go_does() {
        assert_eq!(clean(b"/a//b/../c/./"), b"a/c");
        assert_eq!(clean(b"../.."), b"");
        assert_eq!((parent(b"a/b"), base_name(b"a/b"), parent(b"a")), (&b"a"[..], &b"b"[..], &b""[..]));
    }
}
