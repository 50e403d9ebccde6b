//! Merging against a simple model, digests, lookups.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::digest::Digest;
use crate::layer::tests::{Sample, directory, file, sample, samples};
use crate::layer::{Entry, EntryKind, Metadata, Toc};

fn toc(samples: &[Sample]) -> Toc {
    Toc { entries: samples.iter().map(|sample| sample.entry.clone()).collect(), frames: Vec::new() }
}

fn tree(layers: &[Vec<Sample>]) -> Tree {
    let mut tree = Tree::empty();
    for (number, layer) in layers.iter().enumerate() {
        tree.apply(number as u32, &toc(layer)).unwrap();
    }
    tree
}

fn link(path: &str, target: &str) -> Sample {
    sample(path, EntryKind::Symlink { target: target.into() })
}

fn hard_link(path: &str, target: &str) -> Sample {
    sample(path, EntryKind::HardLink { target: target.into() })
}

fn opaque(path: &str, implied: bool) -> Sample {
    sample(path, EntryKind::Directory { opaque: true, implied })
}

/// A file system as a map from paths to inode numbers.
#[derive(Default)]
struct Model {
    paths: BTreeMap<Vec<u8>, usize>,
    inodes: Vec<(Metadata, EntryKind)>,
}

const DIRECTORY: EntryKind = EntryKind::Directory { opaque: false, implied: false };

impl Model {
    fn remove_below(&mut self, path: &[u8]) {
        let prefix = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
        self.paths.retain(|other, _| !other.starts_with(&prefix));
    }

    fn set(&mut self, path: &[u8], metadata: Metadata, kind: EntryKind) {
        self.inodes.push((metadata, kind));
        self.paths.insert(path.to_vec(), self.inodes.len() - 1);
    }

    fn is_directory(&self, path: &[u8]) -> bool {
        path.is_empty() || self.paths.get(path).is_some_and(|inode| self.inodes[*inode].1 == DIRECTORY)
    }

    fn apply(&mut self, toc: &Toc) {
        for entry in &toc.entries {
            match entry.kind {
                EntryKind::Whiteout => {
                    self.remove_below(&entry.path);
                    self.paths.remove(&entry.path);
                }
                EntryKind::Directory { opaque: true, .. } if self.is_directory(&entry.path) => {
                    self.remove_below(&entry.path);
                }
                _ => {}
            }
        }
        for Entry { path, metadata, kind } in &toc.entries {
            if *kind == EntryKind::Whiteout {
                continue;
            }
            for (slash, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                if !self.is_directory(&path[..slash]) {
                    self.set(&path[..slash], Metadata { mode: 0o755, ..Metadata::default() }, DIRECTORY);
                }
            }
            match kind {
                EntryKind::Directory { implied, .. } => {
                    if !(*implied && self.is_directory(path)) {
                        self.set(path, metadata.clone(), DIRECTORY);
                    }
                }
                EntryKind::HardLink { target } => {
                    self.remove_below(path);
                    self.paths.insert(path.clone(), self.paths[target]);
                }
                kind => {
                    self.remove_below(path);
                    self.set(path, metadata.clone(), kind.clone());
                }
            }
        }
    }
}

/// What a tree shows of a path: metadata, kind, and the names of the same file.
fn shown(tree: &Tree) -> BTreeMap<Vec<u8>, (Metadata, NodeKind, u32)> {
    tree.walk(b"")
        .skip(1)
        .map(|(path, node)| (path, (node.metadata.clone(), node.kind.clone(), node.nlink)))
        .collect()
}

fn shown_of_model(model: &Model) -> BTreeMap<Vec<u8>, (Metadata, NodeKind, u32)> {
    let mut result = BTreeMap::new();
    for (path, inode) in &model.paths {
        let (metadata, kind) = &model.inodes[*inode];
        let kind = match kind.clone() {
            EntryKind::Directory { .. } => NodeKind::Directory,
            EntryKind::File { size, content, .. } => NodeKind::File { size, content },
            EntryKind::Symlink { target } => NodeKind::Symlink { target },
            EntryKind::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
            EntryKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
            EntryKind::Fifo => NodeKind::Fifo,
            other => panic!("{other:?} is no node"),
        };
        let names = model.paths.values().filter(|other| *other == inode).count() as u32;
        result.insert(path.clone(), (metadata.clone(), kind, names));
    }
    result
}

/// One layer that makes the whole tree, in another order than the layers that made it.
fn squashed(tree: &Tree) -> Toc {
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let entries = tree.walk(b"").map(|(path, node)| {
        let kind = match node.kind.clone() {
            NodeKind::Directory => DIRECTORY,
            NodeKind::File { size, content } => EntryKind::File { size, content, offset: 0 },
            NodeKind::Symlink { target } => EntryKind::Symlink { target },
            NodeKind::CharDevice { major, minor } => EntryKind::CharDevice { major, minor },
            NodeKind::BlockDevice { major, minor } => EntryKind::BlockDevice { major, minor },
            NodeKind::Fifo => EntryKind::Fifo,
        };
        let kind = match node.group {
            Some(group) if first.contains_key(&group) => {
                EntryKind::HardLink { target: first[&group].clone() }
            }
            Some(group) => {
                first.insert(group, path.clone());
                kind
            }
            None => kind,
        };
        let mut metadata = node.metadata.clone();
        metadata.mtime.seconds += 1;
        Entry { path, metadata, kind }
    });
    Toc { entries: entries.collect(), frames: Vec::new() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn merging_does_what_the_model_does(layers in prop::collection::vec(samples(), 1..5)) {
        let mut model = Model::default();
        let mut merged = Tree::empty();
        for (number, layer) in layers.iter().enumerate() {
            model.apply(&toc(layer));
            merged.apply(number as u32, &toc(layer)).unwrap();
            // Digests that are computed in between must not go stale.
            merged.digest();
        }
        prop_assert_eq!(shown(&merged), shown_of_model(&model));
        for (path, node) in merged.walk(b"") {
            prop_assert_eq!(merged.get(&path), Some(node));
        }
    }

    #[test]
    fn the_digest_does_not_see_layers_or_times(layers in prop::collection::vec(samples(), 1..5)) {
        let merged = tree(&layers);
        let mut one = Tree::empty();
        one.apply(9, &squashed(&merged)).unwrap();
        prop_assert_eq!(one.digest(), merged.digest());
        prop_assert_eq!(changes(&merged, &one, 100), []);
        for (path, _) in merged.walk(b"") {
            prop_assert_eq!(one.subtree_digest(&path), merged.subtree_digest(&path));
        }
    }

    #[test]
    fn the_digest_sees_everything_else(layer in samples(), at: prop::sample::Index, what in 0..5) {
        prop_assume!(!layer.is_empty());
        let before = tree(std::slice::from_ref(&layer));
        let mut all = squashed(&before);
        let at = at.index(all.entries.len());
        let entry = &mut all.entries[at];
        prop_assume!(!matches!(entry.kind, EntryKind::HardLink { .. }));
        match (what, &mut entry.kind) {
            (0, _) => entry.metadata.mode ^= 1,
            (1, _) => entry.metadata.uid += 1,
            (2, _) => entry.metadata.gid += 1,
            (3, _) => drop(entry.metadata.xattrs.insert(b"user.new".to_vec(), Vec::new())),
            (_, EntryKind::File { content, .. }) => *content = Digest::of("other"),
            (_, EntryKind::Symlink { target }) => target.push(b'x'),
            (_, EntryKind::CharDevice { minor, .. } | EntryKind::BlockDevice { minor, .. }) => *minor += 1,
            (_, EntryKind::Fifo) => entry.kind = EntryKind::Symlink { target: b"x".to_vec() },
            (..) => entry.metadata.mode ^= 2,
        }
        let mut after = Tree::empty();
        after.apply(0, &all).unwrap();
        prop_assert_ne!(after.digest(), before.digest());
        prop_assert!(!changes(&before, &after, 100).is_empty());
    }
}

#[test]
fn golden_digest() {
    let layer = vec![
        directory("bin"),
        file("bin/sh", "#!"),
        hard_link("bin/bash", "bin/sh"),
        link("lib", "usr/lib"),
        sample("null", EntryKind::CharDevice { major: 1, minor: 3 }),
    ];
    let found = [Tree::empty().digest().to_string(), tree(&[layer]).digest().to_string()];
    assert_eq!(
        found, GOLDEN_DIGESTS,
        "cache keys are made of these: a change is a new version of the format"
    );
}

const GOLDEN_DIGESTS: [&str; 2] = [
    "sha256:10b712785e53285d40955b24a2d04c014690cdfc7cf57fbb1ad0473d971c1d1c",
    "sha256:bfe3c92e0003276e0f159f410f1ddd93fd907b08ee6070757122229b4f6658cc",
];

#[test]
fn hard_link_groups_are_part_of_the_digest_where_they_are_within() {
    let linked = tree(&[vec![file("a/x", "1"), hard_link("a/y", "a/x"), hard_link("b", "a/x")]]);
    let separate = tree(&[vec![file("a/x", "1"), file("a/y", "1"), hard_link("b", "a/x")]]);
    assert_ne!(linked.digest(), separate.digest());
    assert_ne!(linked.subtree_digest(b"a"), separate.subtree_digest(b"a"));
    let outside = tree(&[vec![file("a/x", "1"), file("a/y", "1")]]);
    assert_eq!(outside.subtree_digest(b"a"), separate.subtree_digest(b"a"));
    assert_eq!((linked.get(b"b").unwrap().nlink, outside.get(b"a/x").unwrap().nlink), (3, 1));
    // Replacing a name ends its being one of the group.
    let mut after = linked.clone();
    after.apply(1, &toc(&[file("b", "2"), sample("a/y", EntryKind::Whiteout)])).unwrap();
    assert_eq!(after.get(b"a/x").unwrap().nlink, 1);
    assert_eq!(linked.get(b"a/x").unwrap().nlink, 3);
    assert_eq!(changes(&linked, &separate, 10).len(), 3);
}

#[test]
fn a_link_to_a_file_of_a_lower_layer_joins_its_group() {
    let merged = tree(&[vec![file("lower", "1")], vec![hard_link("upper", "lower")]]);
    assert_eq!(merged.get(b"lower").unwrap().group, merged.get(b"upper").unwrap().group);
    assert_eq!(merged.get(b"upper").unwrap().origin.layer, 0);
    let mut merged = Tree::empty();
    let before = merged.digest();
    let error = merged.apply(3, &toc(&[file("a", "1"), hard_link("b", "missing")])).unwrap_err();
    assert!(matches!(error, TreeError::LinkTarget { layer: 3, .. }));
    assert_eq!(merged.digest(), before, "nothing of a refused layer is left");
}

#[test]
fn whiteouts_opaque_and_implied_directories() {
    let base = vec![directory("d"), file("d/a", "1"), file("d/b", "2"), file("f", "3")];
    let mut changed = directory("d");
    changed.entry.kind = EntryKind::Directory { opaque: false, implied: true };
    changed.entry.metadata.mode = 0o700;
    let merged = tree(&[base.clone(), vec![changed, sample("d/a", EntryKind::Whiteout), file("d/c", "4")]]);
    let names = |tree: &Tree| tree.children(b"d").map(|(name, _)| name.to_vec()).collect::<Vec<_>>();
    assert_eq!(names(&merged), [b"b", b"c"]);
    assert_eq!(merged.get(b"d").unwrap().metadata.mode, 0o755);
    let merged = tree(&[base.clone(), vec![opaque("d", true), file("d/c", "4")]]);
    assert_eq!(names(&merged), [b"c"]);
    assert_eq!(merged.get(b"d").unwrap().metadata.mode, 0o755);
    // A file in place of a directory, and the other way round.
    let merged = tree(&[base, vec![file("d", "5"), file("f/inner", "6")]]);
    assert_eq!(merged.get(b"d").unwrap().size(), 1);
    assert!(merged.get(b"d/a").is_none());
    assert!(merged.get(b"f").unwrap().is_directory());
}

#[test]
fn paths_are_resolved_as_in_a_root() {
    let tree = tree(&[vec![
        directory("usr"),
        directory("usr/lib"),
        link("lib", "usr/lib"),
        link("usr/lib/up", "../../../../usr"),
        link("abs", "/usr/lib/new/deep"),
        link("loop", "loop"),
        link("missing", "nowhere/at/all"),
        file("file", "x"),
    ]]);
    let path = |text: &str| {
        let resolved = tree.resolve(text.as_bytes(), true).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(resolved.node.is_some(), resolved.path == resolved.existing);
        (text(resolved.path), text(resolved.existing))
    };
    let known = |text: &str| (text.to_owned(), text.to_owned());
    assert_eq!(path("/lib"), known("usr/lib"));
    assert_eq!(path("lib/up/./lib//"), known("usr/lib"));
    assert_eq!(path("../../lib/.."), known("usr"));
    assert_eq!(path("/"), known(""));
    assert_eq!(path("abs/x"), ("usr/lib/new/deep/x".into(), "usr/lib".into()));
    assert_eq!(path("abs/../../other"), ("usr/lib/other".into(), "usr/lib".into()));
    assert_eq!(path("missing"), ("nowhere/at/all".into(), String::new()));
    assert_eq!(tree.resolve(b"lib", false).unwrap().path, b"lib");
    assert_eq!(tree.resolve(b"lib/", false).unwrap().path, b"usr/lib");
    assert!(matches!(tree.resolve(b"loop", true), Err(ResolveError::Loop(_))));
    assert!(tree.resolve(b"loop", false).is_ok());
    assert!(matches!(tree.resolve(b"file/x", true), Err(ResolveError::NotADirectory { .. })));
    assert!(matches!(tree.resolve(&[b'a'; 5000], true), Err(ResolveError::TooLong(_))));
}

#[test]
fn changes_name_what_is_different() {
    let old =
        tree(&[vec![file("a", "1"), file("b", "1"), directory("d"), file("d/gone", "1"), file("m", "1")]]);
    let mut mode = file("m", "1");
    mode.entry.metadata.mode = 0o755;
    let mut new = old.clone();
    let layer = [file("b", "2"), sample("d/gone", EntryKind::Whiteout), file("d/new", "1"), mode];
    new.apply(1, &toc(&layer)).unwrap();
    let found: Vec<_> = changes(&old, &new, 10).into_iter().map(|c| (c.path, c.kind)).collect();
    let expected = [
        (b"b".to_vec(), ChangeKind::Content),
        (b"d/gone".to_vec(), ChangeKind::Removed),
        (b"d/new".to_vec(), ChangeKind::Added),
        (b"m".to_vec(), ChangeKind::Metadata),
    ];
    assert_eq!(found, expected);
    assert_eq!(changes(&old, &new, 2).len(), 2);
    assert_eq!(changes(&old, &old.clone(), 10), []);
}
