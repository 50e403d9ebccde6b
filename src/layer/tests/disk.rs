//! Unpacking and reading back what overlayfs would have in its upper directory.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;

/// A lower tree that is one list of entries.
#[derive(Default)]
struct Below(Vec<Entry>);

impl Lower for Below {
    fn exists(&self, path: &[u8]) -> bool {
        self.0.iter().any(|entry| entry.path == path)
    }

    fn directory(&self, path: &[u8]) -> Option<&Metadata> {
        let is_directory = |entry: &&Entry| matches!(entry.kind, EntryKind::Directory { .. });
        self.0.iter().filter(is_directory).find(|entry| entry.path == path).map(|entry| &entry.metadata)
    }
}

fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped, since it needs root: {what}");
    }
    root
}

fn unpack(layer: &FinishedLayer, blob: &[u8], into: &Path, root: bool) -> Unpacked {
    let directory = fs_err::File::open(into).unwrap();
    let whiteouts = if root { Whiteouts::OverlayRoot } else { Whiteouts::OverlayUser };
    let mut unpacker = Unpacker::new(directory.file(), UnpackOptions { whiteouts, chown: root }).unwrap();
    TocReader::new(&layer.toc, layer.media_type, Cursor::new(blob)).unwrap().visit(&mut unpacker).unwrap();
    unpacker.finish().unwrap()
}

fn diff(upper: &Path, lower: &Below, options: &DiffOptions) -> (Toc, usize) {
    let mut writer = LayerWriter::new(Vec::new(), LayerOptions::default()).unwrap();
    let directory = fs_err::File::open(upper).unwrap();
    let changed = diff_upper(directory.file(), lower, options, &mut writer).unwrap();
    (writer.finish().unwrap().toc, changed)
}

fn paths(toc: &Toc) -> Vec<String> {
    toc.entries.iter().map(|entry| entry.path.escape_ascii().to_string()).collect()
}

/// The entries with all parents, in the order of a walk, and hard links to the first name in it.
fn complete(samples: Vec<Sample>) -> Vec<Sample> {
    let mut all = samples;
    let known: BTreeSet<Vec<u8>> = all.iter().map(|s| s.entry.path.clone()).collect();
    let mut missing = BTreeSet::new();
    for path in &known {
        let mut at = path.as_slice();
        while let Some(above) = parent_path(at).filter(|above| !above.is_empty()) {
            if !known.contains(above) {
                missing.insert(above.to_vec());
            }
            at = above;
        }
    }
    for path in missing {
        let mut sample = directory("");
        sample.entry.path = path;
        all.push(sample);
    }
    for sample in &mut all {
        // The lower tree is empty: nothing there to be hidden.
        if let EntryKind::Directory { opaque, .. } = &mut sample.entry.kind {
            *opaque = false;
        }
        sample.entry.metadata.mtime.seconds = sample.entry.metadata.mtime.seconds.clamp(0, 1 << 31);
        // Linux gives symbolic links no mode, and no `user.` attributes to what is neither file nor directory.
        if matches!(sample.entry.kind, EntryKind::Symlink { .. }) {
            sample.entry.metadata.mode = 0o777;
        }
        if !matches!(
            sample.entry.kind,
            EntryKind::File { .. } | EntryKind::Directory { .. } | EntryKind::HardLink { .. }
        ) {
            sample.entry.metadata.xattrs.clear();
        }
    }
    all.retain(|sample| sample.entry.kind != EntryKind::Whiteout);
    all.sort_by_key(|sample| {
        sample.entry.path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>()
    });
    let mut firsts: BTreeMap<Vec<u8>, Sample> = BTreeMap::new();
    let originals: BTreeMap<Vec<u8>, Sample> =
        all.iter().map(|s| (s.entry.path.clone(), s.clone())).collect();
    for sample in &mut all {
        let name = match &sample.entry.kind {
            EntryKind::HardLink { target } => target.clone(),
            EntryKind::File { .. } => sample.entry.path.clone(),
            _ => continue,
        };
        let path = sample.entry.path.clone();
        let original = &originals[&name];
        sample.entry.metadata = original.entry.metadata.clone();
        match firsts.get(&name) {
            None => {
                sample.entry.kind = original.entry.kind.clone();
                sample.content = original.content.clone();
                firsts.insert(
                    name,
                    Sample { entry: Entry { path, ..original.entry.clone() }, content: Vec::new() },
                );
            }
            Some(first) => {
                sample.entry.kind = EntryKind::HardLink { target: first.entry.path.clone() };
                sample.content = Vec::new();
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_unpacked_is_found_again(samples in samples()) {
        if !is_root("unpacking with owners, devices and all modes") {
            return Ok(());
        }
        let (layer, blob) = write(&complete(samples), Compression::default());
        let directory = tempfile::tempdir().unwrap();
        unpack(&layer, &blob, directory.path(), true);
        let options = DiffOptions { exclude: [Vec::new()].into(), ..DiffOptions::default() };
        let (found, changed) = diff(directory.path(), &Below::default(), &options);
        prop_assert_eq!(found, layer.toc.clone());
        prop_assert_eq!(changed, layer.toc.entries.len());
    }
}

#[test]
fn ordinary_users_unpack_what_they_may() {
    let mut tool = file("d/tool", "x");
    tool.entry.metadata = Metadata { mode: 0o4755, uid: 123, gid: 123, ..metadata(0) };
    tool.entry.metadata.xattrs.insert(b"user.note".to_vec(), b"kept".to_vec());
    let mut locked = directory("d");
    locked.entry.metadata.mode = 0o500;
    let (layer, blob) = write(&[locked, tool], Compression::default());
    let target = tempfile::tempdir().unwrap();
    unpack(&layer, &blob, target.path(), false);
    let tool = fs_err::metadata(target.path().join("d/tool")).unwrap();
    assert_eq!(tool.permissions().mode() & 0o7777, 0o4755);
    assert_eq!(tool.uid(), rustix::process::geteuid().as_raw());
    let locked = fs_err::metadata(target.path().join("d")).unwrap();
    assert_eq!((locked.permissions().mode() & 0o7777, locked.mtime()), (0o500, 1_700_000_000));
    fs_err::set_permissions(target.path().join("d"), std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn long_runs_of_zeros_become_holes() {
    let mut content = vec![0; 8 << 20];
    content[5 << 20] = 1;
    let (layer, blob) =
        write(&[file("sparse", content.clone()), file("zeros", vec![0; 1 << 20])], Compression::default());
    let target = tempfile::tempdir().unwrap();
    unpack(&layer, &blob, target.path(), false);
    assert_eq!(fs_err::read(target.path().join("sparse")).unwrap(), content);
    assert!(fs_err::metadata(target.path().join("sparse")).unwrap().blocks() * 512 < 1 << 20);
    assert_eq!(fs_err::metadata(target.path().join("zeros")).unwrap().len(), 1 << 20);
}

#[test]
fn whiteouts_become_what_overlayfs_understands() {
    if !is_root("making whiteouts") {
        return;
    }
    let opaque = sample("d", EntryKind::Directory { opaque: true, implied: false });
    let (layer, blob) = write(
        &[opaque, sample("gone", EntryKind::Whiteout), sample("e/gone", EntryKind::Whiteout)],
        Compression::default(),
    );
    let target = tempfile::tempdir().unwrap();
    unpack(&layer, &blob, target.path(), true);
    let gone = fs_err::symlink_metadata(target.path().join("gone")).unwrap();
    assert_eq!((gone.mode() & 0o170_000, gone.rdev()), (0o020_000, 0));
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(target.path().join("d"), "trusted.overlay.opaque", &mut value).unwrap();
    assert_eq!(&value[..length], b"y");
    // And read back: only where there is something to remove.
    let below = [directory("d"), file("d/old", "x"), file("gone", "x"), directory("e")];
    let lower = Below(below.into_iter().map(|sample| sample.entry).collect());
    let options = DiffOptions { exclude: [Vec::new()].into(), ..DiffOptions::default() };
    let (found, changed) = diff(target.path(), &lower, &options);
    assert_eq!(paths(&found), ["d", "gone"]);
    assert_eq!(found.entries[0].kind, EntryKind::Directory { opaque: true, implied: false });
    assert_eq!(changed, 2);
    let (found, changed) = diff(target.path(), &Below::default(), &options);
    assert_eq!(paths(&found), ["d", "e"], "nothing to be hidden below");
    assert_eq!(found.entries[0].kind, EntryKind::Directory { opaque: false, implied: false });
    assert_eq!(changed, 2);
}

/// A lower tree whose directories belong to whoever runs the test.
fn lower(upper: &Path) -> Below {
    let owner = fs_err::metadata(upper).unwrap();
    let directory = |path: &str| {
        let mut sample = directory(path);
        sample.entry.metadata.uid = owner.uid();
        sample.entry.metadata.gid = owner.gid();
        sample.entry
    };
    Below(["", "etc", "usr", "usr/bin", "proc"].map(directory).into())
}

#[test]
fn a_layer_holds_only_what_changed() {
    let upper = tempfile::tempdir().unwrap();
    let at = |path: &str| upper.path().join(path);
    for path in ["", "etc", "usr", "usr/bin", "proc", "new"] {
        fs_err::create_dir_all(at(path)).unwrap();
        fs_err::set_permissions(at(path), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs_err::write(at("usr/bin/tool"), "x").unwrap();
    fs_err::hard_link(at("usr/bin/tool"), at("usr/bin/other")).unwrap();
    fs_err::write(at("etc/resolv.conf"), "the executor's").unwrap();
    symlink("nowhere", at("new/link")).unwrap();
    let exclude: BTreeSet<Vec<u8>> = [b"etc/resolv.conf".to_vec(), b"proc".to_vec()].into();
    let options = DiffOptions { exclude: exclude.clone(), ..DiffOptions::default() };
    let lower = lower(upper.path());
    let (toc, changed) = diff(upper.path(), &lower, &options);
    assert_eq!(paths(&toc), ["new", "new/link", "usr", "usr/bin", "usr/bin/other", "usr/bin/tool"]);
    assert_eq!(changed, 4);
    assert_eq!(toc.entries[2].kind, EntryKind::Directory { opaque: false, implied: true });
    assert_eq!(toc.entries[2].metadata.mtime.seconds, 1_700_000_000, "an implied directory is as it was");
    assert_eq!(toc.entries[5].kind, EntryKind::HardLink { target: b"usr/bin/other".to_vec() });
    // A changed mode is a change.
    fs_err::set_permissions(at("etc"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let (toc, _) = diff(upper.path(), &lower, &options);
    assert_eq!(paths(&toc)[0], "etc");
    assert_eq!(toc.entries[0].metadata.mode, 0o700);
    // Times are clamped, owners mapped.
    let clamp = Some(Timestamp { seconds: 1_000_000_000, nanos: 0 });
    let (toc, _) = diff(upper.path(), &lower, &DiffOptions { clamp, single_id: true, exclude, ..options });
    let file = toc.entries.iter().find(|entry| entry.path == b"usr/bin/other").unwrap();
    assert_eq!((file.metadata.mtime.seconds, file.metadata.uid, file.metadata.gid), (1_000_000_000, 0, 0));
}

#[test]
fn nothing_changed_is_an_empty_layer() {
    let upper = tempfile::tempdir().unwrap();
    fs_err::create_dir_all(upper.path().join("usr/bin")).unwrap();
    for path in ["", "usr", "usr/bin"] {
        fs_err::set_permissions(upper.path().join(path), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (toc, changed) = diff(upper.path(), &lower(upper.path()), &DiffOptions::default());
    assert_eq!((toc.entries.len(), changed), (0, 0));
}

#[test]
fn a_time_that_was_given_to_a_directory_is_a_change() {
    let upper = tempfile::tempdir().unwrap();
    fs_err::create_dir_all(upper.path().join("usr/bin")).unwrap();
    for path in ["", "usr", "usr/bin"] {
        fs_err::set_permissions(upper.path().join(path), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let lower = lower(upper.path());
    let given = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs_err::File::open(upper.path().join("usr/bin")).unwrap().file().set_modified(given).unwrap();
    let started =
        |seconds| DiffOptions { started: Some(Timestamp { seconds, nanos: 0 }), ..DiffOptions::default() };
    let (toc, changed) = diff(upper.path(), &lower, &started(1_100_000_000));
    assert_eq!((paths(&toc), changed), (vec!["usr".to_owned(), "usr/bin".to_owned()], 1));
    assert_eq!(toc.entries[1].metadata.mtime.seconds, 1_000_000_000);
    // A time from when the step ran comes with what it did in there.
    let (toc, _) = diff(upper.path(), &lower, &started(1_000_000_000));
    assert!(toc.entries.is_empty());
}

#[test]
fn a_file_of_more_than_8_gib_is_read_in_pieces() {
    // Sparse, and only the first pieces of it: a whole one would take half a minute.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("big");
    let big = fs_err::File::create(&path).unwrap();
    big.set_len(9 << 30).unwrap();
    big.file().write_at(b"end", (9 << 30) - 3).unwrap();
    let mut writer = LayerWriter::new(Vec::new(), LayerOptions::default()).unwrap();
    let mut start = std::io::Read::take(fs_err::File::open(&path).unwrap(), 3 << 20);
    let error = writer.file(b"big", &metadata(0o644), 9 << 30, &mut start).unwrap_err();
    assert!(matches!(error, LayerError::Changed { expected, .. } if expected == 9 << 30));
}
