use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::change::{Item, Items};
use super::commit::evict;
use super::head::Head;
use super::times::{ContentTimes, Known, Place};
use crate::digest::Digest;
use crate::layer::{self, ArchiveWriter, LayerError, Metadata, Timestamp, Toc};
use crate::record::Key;
use crate::snapshot::{ChunkIndex, Entry, EntryKind, Ledger, PackSink, Snapshot, Writer};
use crate::tree::{Look, Tree};

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 500 }
}

/// Files by path and content, in layers of which some were copied; what they are in has its time from the layer.
fn tree(layers: &[&[(&str, &str)]]) -> Arc<Tree> {
    let mut tree = Tree::empty();
    for (number, files) in (0..).zip(layers) {
        let entry = |(path, content): &(&str, &str)| layer::Entry {
            path: path.as_bytes().to_vec(),
            metadata: Metadata { mode: 0o644, mtime: at(50), ..Metadata::default() },
            kind: layer::EntryKind::File { size: 1, content: Digest::of(content), offset: 512 },
        };
        let toc = Toc { entries: files.iter().map(entry).collect(), frames: Vec::new() };
        tree.apply(number, &toc).unwrap();
    }
    Arc::new(tree)
}

/// The first layer is an image's, the second a copy.
fn times(now: i64, known: Vec<Known>, tree: &Arc<Tree>) -> Arc<ContentTimes> {
    let copied = Some(vec![false, true]);
    let place = Place { tree: Arc::clone(tree), target: Vec::new(), source: Vec::new(), copied };
    ContentTimes::new(at(now), known, vec![place])
}

/// What a step sees that begins at `now` and looks at these paths, in seconds; and what is known then.
fn step(now: i64, known: &[Known], tree: &Arc<Tree>, paths: &[&str]) -> (Vec<i64>, Ledger) {
    let times = times(now, known.to_vec(), tree);
    let looks: BTreeMap<Vec<u8>, Look> =
        paths.iter().map(|path| (path.as_bytes().to_vec(), Look::NODE)).collect();
    let (seen, _) = times.seen([&looks]);
    let mut ledger = known.first().map(|known| (*known.ledger).clone()).unwrap_or_default();
    times.note(&mut ledger, &seen);
    (paths.iter().map(|path| seen[path.as_bytes()].time.seconds).collect(), ledger)
}

/// A mount in which nothing is later.
fn known(ledger: Ledger, horizon: i64) -> Known {
    Known { ledger: Arc::new(ledger), horizon: at(horizon) }
}

#[test]
fn a_path_keeps_its_time_as_long_as_it_is_what_was_seen() {
    let first = tree(&[&[("usr/lib", "1")], &[("src/a", "1"), ("src/b", "1")]]);
    let all = ["src", "src/a", "src/b", "usr/lib"];
    let (seen, ledger) = step(100, &[], &first, &all);
    // What was copied has no time of its own.
    assert_eq!(seen, [100, 100, 100, 50]);
    let (seen, _) = step(200, &[known(ledger.clone(), 150)], &first, &all);
    assert_eq!(seen, [100, 100, 100, 50]);

    let second = tree(&[&[("usr/lib", "2")], &[("src/a", "2"), ("src/b", "1"), ("src/c", "1")]]);
    let (seen, after) = step(200, &[known(ledger, 150)], &second, &all);
    assert_eq!(seen, [200, 200, 100, 200], "the directory has another name in it");
    // Back again: as new as anything.
    let (seen, after) = step(300, &[known(after, 250)], &first, &all);
    assert_eq!(seen, [300, 300, 100, 300]);
    let (seen, _) = step(400, &[known(after, 350)], &first, &all);
    assert_eq!(seen, [300, 300, 100, 300]);
}

#[test]
fn what_is_gone_is_new_when_it_comes_back() {
    let there = tree(&[&[("usr/x", "1")], &[("src/a", "1")]]);
    let gone = tree(&[&[], &[("src/b", "1")]]);
    let (_, ledger) = step(100, &[], &there, &["src/a", "usr/x"]);
    // Nobody looks for it while it is gone.
    let (_, ledger) = step(200, &[known(ledger, 150)], &gone, &["src/b"]);
    let (seen, _) = step(300, &[known(ledger.clone(), 250)], &there, &["src/a", "usr/x"]);
    assert_eq!(seen, [300, 300]);
    // What was looked for in vain is new too when it is there.
    let (_, ledger) = step(300, &[known(ledger, 250)], &gone, &["usr/y"]);
    let appeared = tree(&[&[("usr/y", "1")]]);
    assert_eq!(step(400, &[known(ledger, 350)], &appeared, &["usr/y"]).0, [400]);
}

#[test]
fn an_images_files_that_nobody_looked_at_keep_their_own_time() {
    let image = tree(&[&[("usr/lib/a.py", "1"), ("usr/lib/b.py", "1")], &[("src/a", "1"), ("src/b", "1")]]);
    let (_, ledger) = step(100, &[], &image, &["", "usr", "usr/lib", "usr/lib/a.py", "src", "src/a"]);
    let (seen, _) = step(200, &[known(ledger.clone(), 150)], &image, &["usr/lib/b.py", "src/b"]);
    assert_eq!(seen, [50, 200]);
    // A directory has another name in it: whatever is new there may be just that.
    let other = tree(&[&[("usr/lib/a.py", "1"), ("usr/lib/b.py", "1"), ("usr/lib/c.py", "1")]]);
    let (seen, _) = step(200, &[known(ledger.clone(), 150)], &other, &["usr/lib/a.py", "usr/lib/c.py"]);
    assert_eq!(seen, [50, 200]);
    // Some steps' looks are not known: anything may have been looked at.
    let partial = Ledger { is_partial: true, ..ledger };
    let (seen, _) = step(200, &[known(partial, 150)], &image, &["usr/lib/a.py", "usr/lib/b.py"]);
    assert_eq!(seen, [50, 200]);
    assert_eq!(step(200, &[Known::unknown()], &image, &["usr/lib/a.py"]).0, [200]);
}

#[test]
fn with_several_mounts_a_time_must_be_right_for_each() {
    let first = tree(&[&[], &[("src/a", "1")]]);
    let second = tree(&[&[], &[("src/a", "2")]]);
    let (_, one) = step(100, &[], &first, &["src/a"]);
    let (_, two) = step(200, &[known(one.clone(), 150)], &second, &["src/a"]);
    // Both mounts are used: the first saw another content, and has something that is later than what the second saw.
    let both = [known(one.clone(), 250), known(two.clone(), 250)];
    assert_eq!(step(300, &both, &second, &["src/a"]).0, [300]);
    // Nothing in the first is later: made from the other content it looks older all the same.
    let both = [known(one, 150), known(two, 250)];
    assert_eq!(step(300, &both, &second, &["src/a"]).0, [200]);
}

#[test]
fn whole_seconds_are_told_apart() {
    let first = tree(&[&[("usr/a", "1")], &[("src/a", "1")]]);
    let (_, ledger) = step(100, &[], &first, &["", "src", "src/a", "usr", "usr/a"]);
    let is_too_soon =
        |now, horizon, tree: &Arc<Tree>| times(now, vec![known(ledger.clone(), horizon)], tree).is_too_soon();
    let changed = tree(&[&[("usr/a", "1")], &[("src/a", "2")]]);
    let added = tree(&[&[("usr/a", "1")], &[("src/a", "1"), ("src/b", "1")]]);
    for (tree, expected) in [(&first, false), (&changed, true), (&added, true)] {
        assert_eq!(is_too_soon(200, 200, tree), expected);
        assert!(!is_too_soon(200, 199, tree));
    }
    // Shown a moment ago, with another content.
    assert!(is_too_soon(100, 99, &changed) && !is_too_soon(100, 99, &first));
}

#[test]
fn mounts_show_what_they_show() {
    let (root, bound) =
        (tree(&[&[("src/a", "1"), ("bin", "1")]]), tree(&[&[("sub/a", "2"), ("other", "2")]]));
    let place = |tree: &Arc<Tree>, target: &str, source: &str| Place {
        tree: Arc::clone(tree),
        target: target.as_bytes().to_vec(),
        source: source.as_bytes().to_vec(),
        copied: None,
    };
    let times = ContentTimes::new(at(9), Vec::new(), vec![place(&root, "", ""), place(&bound, "src", "sub")]);
    let looks = |paths: &[&str]| -> BTreeMap<Vec<u8>, Look> {
        paths.iter().map(|path| (path.as_bytes().to_vec(), Look::NODE)).collect()
    };
    let (seen, _) = times.seen([&looks(&["src/a", "bin"]), &looks(&["sub/a", "other", "sub"])]);
    let paths: Vec<&[u8]> = seen.keys().map(Vec::as_slice).collect();
    assert_eq!(
        paths,
        [&b"bin"[..], b"src", b"src/a"],
        "what is below a mount is not seen, nor what is beside its source"
    );
}

fn head(horizon: i64) -> Head {
    let metadata = Metadata { mtime: at(horizon), ..Metadata::default() };
    let root = Entry { path: Vec::new(), metadata, used: 0, kind: EntryKind::Directory };
    let mut ledger = Ledger::default();
    ledger.sights.insert(b"a".to_vec(), crate::snapshot::Sight { identity: [1; 16], time: at(horizon - 10) });
    let snapshot = Snapshot { entries: vec![root], ..Snapshot::default() };
    Head { key: Key(Digest::of("")), snapshot, ledger, horizon: at(horizon) }
}

/// A clock that is an hour behind another machine's.
#[tokio::test]
async fn what_another_machines_clock_has_made_is_moved_into_the_past() {
    let (mut ahead, mut other) = (head(4600), head(900));
    Head::be_past(vec![&mut ahead, &mut other], || at(1000)).await;
    assert!(ahead.horizon < at(1000) && ahead.horizon.seconds >= 998, "{:?}", ahead.horizon);
    let moved = 4600 - ahead.horizon.seconds;
    assert_eq!(ahead.snapshot.entries[0].metadata.mtime, at(4600 - moved));
    assert_eq!(ahead.ledger.sights[&b"a"[..]].time, at(4590 - moved));
    assert_eq!(other.horizon, at(900 - moved), "what is older than what stays the same");
    // What is a little ahead is waited for; what is past is as it is.
    let before = tokio::time::Instant::now();
    let mut near = head(1001);
    Head::be_past(vec![&mut near], || at(1000)).await;
    let waited = before.elapsed().as_millis();
    assert!((1000..1100).contains(&waited) && near.horizon == at(1001), "{waited}");
    let mut past = head(900);
    Head::be_past(vec![&mut past], || at(1000)).await;
    assert_eq!((before.elapsed().as_millis(), past.horizon), (waited, at(900)));
}

fn item(kind: EntryKind, used: u32) -> Item {
    Item { metadata: Metadata::default(), used, kind, group: None }
}

fn file(size: u64) -> EntryKind {
    let extents = vec![crate::snapshot::Extent { pack: None, offset: 0, length: size }];
    EntryKind::File { size, extents }
}

fn paths(items: &Items) -> Vec<String> {
    items.iter().map(|(path, _)| String::from_utf8(path).unwrap()).collect()
}

#[test]
fn what_is_in_a_directory_goes_with_it() {
    let mut items = Items::default();
    for path in ["", "a", "a/b", "a-b", "a/b/c", "ab"] {
        let is_file = path.ends_with('c');
        items.insert(path.as_bytes(), item(if is_file { file(5) } else { EntryKind::Directory }, 1));
    }
    assert_eq!(paths(&items), ["", "a", "a/b", "a/b/c", "a-b", "ab"]);
    items.insert(b"a/b", item(EntryKind::Fifo, 1));
    assert_eq!(paths(&items), ["", "a", "a/b", "a-b", "ab"]);
    items.remove(b"a");
    assert_eq!(paths(&items), ["", "a-b", "ab"]);
    items.remove_children(b"");
    assert_eq!(paths(&items), [""]);
}

#[test]
fn names_of_a_file_stay_together_when_the_first_is_gone() {
    let entry = |path: &str, kind| Entry {
        path: path.as_bytes().to_vec(),
        metadata: Metadata::default(),
        used: 3,
        kind,
    };
    let link = || EntryKind::HardLink { target: b"b".to_vec() };
    let entries =
        vec![entry("", EntryKind::Directory), entry("b", file(9)), entry("c", link()), entry("d", link())];
    let snapshot = Snapshot { entries, ..Snapshot::default() };
    assert_eq!(Items::of(&snapshot).into_entries(), snapshot.entries);
    let mut items = Items::of(&snapshot);
    items.remove(b"b");
    let entries = items.into_entries();
    let expected =
        [("", EntryKind::Directory), ("c", file(9)), ("d", EntryKind::HardLink { target: b"c".to_vec() })];
    assert_eq!(entries, expected.map(|(path, kind)| entry(path, kind)));
    Snapshot { entries, ..Snapshot::default() }.validate().unwrap();
}

#[test]
fn the_least_recently_used_files_go_first() {
    let mut items = Items::default();
    items.insert(b"", item(EntryKind::Directory, 0));
    for (path, size, used) in [("a", 400, 5), ("b", 300, 2), ("c", 300, 9), ("d", 200, 3)] {
        items.insert(path.as_bytes(), item(file(size), used));
    }
    evict(&mut items, 1200);
    assert_eq!(paths(&items), ["", "a", "b", "c", "d"]);
    // When it is too large, it becomes somewhat smaller than it may be.
    evict(&mut items, 1000);
    assert_eq!(paths(&items), ["", "a", "c", "d"]);
    evict(&mut items, 100);
    assert_eq!(paths(&items), [""]);
}

/// Packs that nobody reads.
struct Nowhere;

impl PackSink for Nowhere {
    type Out = io::Sink;

    fn begin(&mut self) -> io::Result<io::Sink> {
        Ok(io::sink())
    }

    fn finish(&mut self, _: io::Sink, _: &Digest, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// What becomes of a tar with these entries, whose contents are `abc`, that is read at 100 seconds.
fn import(entries: &[(&str, Metadata, layer::Item<'_>)]) -> Result<Snapshot, LayerError> {
    let mut archive = ArchiveWriter::new(Vec::new());
    for (path, metadata, item) in entries {
        archive.entry(path.as_bytes(), metadata, *item, &mut &b"abc"[..])?;
    }
    read_tar(&archive.finish()?)
}

fn read_tar(bytes: &[u8]) -> Result<Snapshot, LayerError> {
    let mut writer = Writer::new(Vec::new(), ChunkIndex::default(), 1, Nowhere);
    let items = super::tar::read(bytes, &mut writer, at(100), 7)?;
    let snapshot =
        Snapshot { packs: writer.finish().unwrap().packs, index: Vec::new(), entries: items.into_entries() };
    snapshot.validate().unwrap();
    Ok(snapshot)
}

fn of(mode: u32, seconds: i64) -> Metadata {
    Metadata { mode, uid: 5, gid: 6, mtime: at(seconds), xattrs: BTreeMap::new() }
}

#[test]
fn a_tar_becomes_a_snapshot() {
    use layer::Item::{Directory, File, HardLink, Symlink};
    let mut marked = of(0o600, 20);
    marked.xattrs = [("user.note", "1"), ("user.overlay.opaque", "y"), ("trusted.overlay.redirect", "/etc")]
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        .into();
    let snapshot = import(&[
        // Before the directory that it is in, and deeper than any that there is.
        ("z/new/file", of(0o644, 10), File { size: 3 }),
        ("z", of(0o700, 11), Directory),
        ("b", marked, File { size: 2 }),
        ("a", of(0o600, 12), HardLink { target: b"b" }),
        ("later", of(0o600, 1_000_000), File { size: 3 }),
        // A first name that is replaced leaves the file to the others.
        ("x", of(0o640, 13), File { size: 3 }),
        ("y", of(0o640, 13), HardLink { target: b"x" }),
        ("x", of(0o777, 14), Symlink { target: b"../../elsewhere" }),
    ])
    .unwrap();
    let shown: Vec<(String, u32, i64, u32)> = snapshot
        .entries
        .iter()
        .map(|entry| {
            let Metadata { mode, uid, mtime, .. } = entry.metadata;
            assert_eq!(entry.used, 7);
            (String::from_utf8(entry.path.clone()).unwrap(), mode, mtime.seconds, uid)
        })
        .collect();
    let expected = [
        // What no tar says something of belongs to root, and is as of now.
        ("", 0o755, 100, 0),
        ("a", 0o600, 20, 5),
        ("b", 0o600, 20, 5),
        // Nothing that comes next may be older.
        ("later", 0o600, 100, 5),
        ("x", 0o777, 14, 5),
        ("y", 0o640, 13, 5),
        ("z", 0o700, 11, 5),
        ("z/new", 0o755, 100, 0),
        ("z/new/file", 0o644, 10, 5),
    ];
    let expected: Vec<_> = expected.iter().map(|(path, a, b, c)| ((*path).to_owned(), *a, *b, *c)).collect();
    assert_eq!(shown, expected);
    let entry = |path: &str| snapshot.entries.iter().find(|entry| entry.path == path.as_bytes()).unwrap();
    assert_eq!(entry("b").kind, EntryKind::HardLink { target: b"a".to_vec() });
    assert!(matches!(entry("y").kind, EntryKind::File { size: 3, .. }));
    let names: Vec<_> = entry("a").metadata.xattrs.keys().cloned().collect();
    assert_eq!(names, [b"user.note".to_vec()], "what overlayfs would take for its own is gone");
}

#[test]
fn what_is_no_good_tar_is_refused() {
    use layer::Item::{CharDevice, Directory, Fifo, File, HardLink, Symlink};
    let any = || of(0o644, 1);
    let refused = |entries: &[(&str, Metadata, layer::Item<'_>)], problem: &str| {
        let error = import(entries).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    };
    refused(&[("../out", any(), File { size: 3 })], "`..`");
    refused(&[("a/../../out", any(), File { size: 3 })], "`..`");
    refused(&[("a", any(), Symlink { target: b"/etc" }), ("a/passwd", any(), File { size: 3 })], "directory");
    refused(&[("a", any(), HardLink { target: b"/etc/passwd" })], "not there");
    refused(&[("a", any(), HardLink { target: b"../a" })], "`..`");
    refused(&[("d", any(), Directory), ("a", any(), HardLink { target: b"d" })], "directory");
    refused(&[("", any(), Fifo)], "root");
    refused(&[("a", any(), CharDevice { major: 0, minor: 0 })], "0:0");
    assert!(read_tar(b"").unwrap_err().to_string().contains("there is nothing"));
    let nothing = zstd::bulk::compress(b"", 3).unwrap();
    assert!(read_tar(&nothing).unwrap_err().to_string().contains("there is nothing"));
    assert!(read_tar(&[b'x'; 2000]).is_err());
    // A compressed tar that was cut off behind its last entry is damaged all the same.
    let mut archive = ArchiveWriter::new(Vec::new());
    archive.entry(b"a", &any(), File { size: 3 }, &mut &b"abc"[..]).unwrap();
    let whole = zstd::bulk::compress(&archive.finish().unwrap(), 3).unwrap();
    assert!(read_tar(&whole).is_ok());
    assert!(read_tar(&whole[..whole.len() - 1]).is_err());
}
