//! Which entries of a source a COPY selects, and the digest of them.

use std::collections::HashMap;

use super::CopyError;
use super::view::{Node, View, base_name, clean, components, display, join, resolve};
use crate::context::ignore::Ignore;
use crate::context::pattern;
use crate::digest::Digest;
use crate::encoding::Encoder;
use crate::layer::EntryKind;
use crate::tree::{NodeKind, Tree};

/// A tree that can be listed, not only looked up in.
pub(crate) trait Source: View {
    /// The names in the directory `path`, sorted bytewise.
    fn list(&self, path: &[u8]) -> Vec<Vec<u8>>;

    /// What the file at `path` has in common with its other hard links; `None` if it has only one name.
    fn link_group(&self, path: &[u8]) -> Option<u64>;
}

/// One thing to copy: a match of a source pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Match {
    /// The path as it was matched; its last component names the copy.
    pub(crate) named: Vec<u8>,
    /// Where it really is, links followed.
    pub(crate) path: Vec<u8>,
}

/// Filters of what is copied below a match.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    /// Only what matches (`--parents`).
    pub(crate) include: Option<Ignore>,
    /// Nothing that matches (`--exclude`).
    pub(crate) exclude: Option<Ignore>,
}

impl Filter {
    /// Whether the entry at `relative` (to the match; empty for the match itself) is copied.
    pub(crate) fn includes(&self, relative: &[u8]) -> bool {
        relative.is_empty()
            || self.include.as_ref().is_none_or(|include| include.is_excluded(relative))
                && !self.excludes(relative)
    }

    fn excludes(&self, relative: &[u8]) -> bool {
        self.exclude.as_ref().is_some_and(|exclude| exclude.is_excluded(relative))
    }

    /// Whether the directory at `relative` has to be entered.
    pub(crate) fn enters(&self, relative: &[u8]) -> bool {
        relative.is_empty()
            || !self.excludes(relative)
            || self.exclude.as_ref().is_some_and(|exclude| exclude.may_keep_beneath(relative))
    }
}

/// The matches of a source pattern (`fsutil/copy`, `ResolveWildcards`). A pattern without wildcards gives one
/// match, whether it exists or not; one with wildcards only what exists, perhaps nothing.
pub(crate) fn matches(source: &impl Source, pattern: &[u8]) -> Result<Vec<Match>, CopyError> {
    let pattern = clean(pattern);
    let parts: Vec<&[u8]> = components(&pattern).collect();
    let literal = parts.iter().take_while(|part| !pattern::has_wildcard(part)).count();
    if literal == parts.len() {
        let path = resolve(source, b"", &pattern, true)?;
        return Ok(vec![Match { named: pattern, path }]);
    }
    let base = resolve(source, b"", &parts[..literal].join(&b'/'), true)?;
    if source.lookup(&base).is_none() && !base.is_empty() {
        return Err(CopyError::NotFound { path: display(&parts[..literal].join(&b'/')) });
    }
    let wild = parts[literal..].join(&b'/');
    let bad = |_| CopyError::BadPattern { pattern: display(&wild) };
    let mut found = Vec::new();
    let mut todo = vec![Vec::new()];
    while let Some(relative) = todo.pop() {
        let here = join(&base, &relative);
        if !relative.is_empty() {
            if pattern::matches(&wild, &relative).map_err(bad)? {
                let path = resolve(source, b"", &here, true)?;
                found.push(Match { named: here, path });
                continue;
            }
            if !source.lookup(&here).is_some_and(|node| node.is_directory()) {
                continue;
            }
        }
        // A pattern of n components matches nothing deeper.
        if components(&relative).count() < parts.len() - literal {
            todo.extend(source.list(&here).into_iter().rev().map(|name| join(&relative, &name)));
        }
    }
    Ok(found)
}

/// The digest of everything that copying `selected` reads: names, metadata without times, contents, hard links
/// among what is copied.
pub(crate) fn digest(
    source: &impl Source,
    selected: &[Match],
    filter: &Filter,
    fallback: impl Fn(&[u8]) -> CopyError,
) -> Result<Digest, CopyError> {
    let mut encoder = Encoder::new();
    encoder.text("crossdock-selection-1");
    for item in selected {
        // Hard links are named by the order in which they are met, among what is copied with this match.
        let mut groups: HashMap<u64, u64> = HashMap::new();
        let node = lookup(source, &item.path).ok_or_else(|| fallback(&item.named))?;
        let mut todo = vec![(Vec::new(), node)];
        encoder.bytes(base_name(&item.named));
        // Directories that are not included themselves are made, with their metadata, for what is included below
        // them.
        let mut pending: Vec<(Vec<u8>, Node)> = Vec::new();
        while let Some((relative, node)) = todo.pop() {
            let here = join(&item.path, &relative);
            pending.retain(|(directory, _)| is_below(&relative, directory));
            if filter.includes(&relative) {
                for (directory, node) in pending.drain(..) {
                    encoder.uint(1).bytes(&directory);
                    encode_node(&mut encoder, &node);
                }
                encoder.uint(2).bytes(&relative);
                encode_node(&mut encoder, &node);
                encoder.option(source.link_group(&here), |e, group| {
                    let next = groups.len() as u64;
                    e.uint(*groups.entry(group).or_insert(next));
                });
            } else if node.is_directory() {
                pending.push((relative.clone(), node.clone()));
            }
            if node.is_directory() && filter.enters(&relative) {
                for name in source.list(&here).into_iter().rev() {
                    let child = join(&relative, &name);
                    if let Some(node) = lookup(source, &join(&item.path, &child)) {
                        todo.push((child, node));
                    }
                }
            }
        }
    }
    Ok(Digest::of(encoder.finish()))
}

/// Whether `path` is below `directory`.
fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
}

/// Looks up `path`; the root of a source always exists.
pub(crate) fn lookup(source: &impl View, path: &[u8]) -> Option<Node> {
    source.lookup(path).or_else(|| {
        path.is_empty().then(|| Node {
            metadata: crate::layer::Metadata { mode: 0o755, ..Default::default() },
            kind: EntryKind::Directory { opaque: false, implied: false },
        })
    })
}

fn encode_node(encoder: &mut Encoder, node: &Node) {
    let metadata = &node.metadata;
    encoder.uint(metadata.mode.into()).uint(metadata.uid.into()).uint(metadata.gid.into());
    encoder.list(&metadata.xattrs, |e, (name, value)| {
        e.bytes(name).bytes(value);
    });
    match &node.kind {
        EntryKind::Directory { .. } => encoder.uint(1),
        EntryKind::File { size, content, .. } => encoder.uint(2).uint(*size).digest(content),
        EntryKind::Symlink { target } => encoder.uint(3).bytes(target),
        EntryKind::CharDevice { major, minor } => encoder.uint(4).uint((*major).into()).uint((*minor).into()),
        EntryKind::BlockDevice { major, minor } => {
            encoder.uint(5).uint((*major).into()).uint((*minor).into())
        }
        EntryKind::Fifo => encoder.uint(6),
        EntryKind::HardLink { target } => encoder.uint(7).bytes(target),
        EntryKind::Whiteout => encoder.uint(8),
    };
}

impl Source for Tree {
    fn list(&self, path: &[u8]) -> Vec<Vec<u8>> {
        self.children(path).map(|(name, _)| name.to_vec()).collect()
    }

    fn link_group(&self, path: &[u8]) -> Option<u64> {
        self.get(path)?.group
    }
}

impl View for Tree {
    fn lookup(&self, path: &[u8]) -> Option<Node> {
        let node = self.get(path)?;
        let kind = match node.kind.clone() {
            NodeKind::Directory => EntryKind::Directory { opaque: false, implied: false },
            NodeKind::File { size, content } => EntryKind::File { size, content, offset: 0 },
            NodeKind::Symlink { target } => EntryKind::Symlink { target },
            NodeKind::CharDevice { major, minor } => EntryKind::CharDevice { major, minor },
            NodeKind::BlockDevice { major, minor } => EntryKind::BlockDevice { major, minor },
            NodeKind::Fifo => EntryKind::Fifo,
        };
        Some(Node { metadata: node.metadata.clone(), kind })
    }
}
