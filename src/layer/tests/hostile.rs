//! Layers that want to do harm. Each is refused, and leaves nothing outside the directory.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A tar made by hand, without any of the writer's checks.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn add(mut self, name: &[u8], kind: u8, link: &[u8], content: &[u8]) -> Self {
        self.header(name, kind, link, content.len() as u64);
        self.0.extend_from_slice(content);
        header::pad(&mut self.0, content.len() as u64);
        self
    }

    fn header(&mut self, name: &[u8], kind: u8, link: &[u8], size: u64) {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.as_mut_bytes()[156] = kind;
        if kind == b'3' || kind == b'4' {
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
    }

    fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..rest + 9).find(|n| rest + n.to_string().len() == *n).unwrap();
            writeln!(data, "{length} {key}={value}").unwrap();
        }
        self.add(b"pax", b'x', b"", &data)
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.add(name.as_bytes(), b'0', b"", content.as_bytes())
    }

    fn dir(self, name: &str) -> Self {
        self.add(name.as_bytes(), b'5', b"", b"")
    }

    fn scan(&self) -> Result<Toc, LayerError> {
        let options = ScanOptions { max_raw_size: 16 << 20, ..ScanOptions::default() };
        scan(&*self.0, &options, &mut ()).map(|scanned| scanned.toc)
    }

    /// Unpacks into `layer` below a directory with a file `outside` that must stay as it is.
    fn unpack(&self) -> (Result<Toc, LayerError>, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs_err::write(&outside, "precious").unwrap();
        fs_err::set_permissions(&outside, std::fs::Permissions::from_mode(0o600)).unwrap();
        let target = directory.path().join("layer");
        fs_err::create_dir(&target).unwrap();
        let root = fs_err::File::open(&target).unwrap();
        let options = UnpackOptions { whiteouts: Whiteouts::OverlayUser, chown: false };
        let mut unpacker = Unpacker::new(root.file(), options).unwrap();
        let scanned = scan(&*self.0, &ScanOptions::default(), &mut unpacker);
        let result = scanned.and_then(|scanned| unpacker.finish().map(|_| scanned.toc));
        assert_eq!(fs_err::read_to_string(&outside).unwrap(), "precious");
        assert_eq!(fs_err::metadata(&outside).unwrap().permissions().mode() & 0o7777, 0o600);
        let names = fs_err::read_dir(directory.path()).unwrap().count();
        assert_eq!(names, 2, "something appeared beside the layer");
        (result, directory)
    }

    fn refused(&self, why: &str) {
        let unpacked = self.unpack().0.expect_err("unpacking must be refused").to_string();
        let scanned = self.scan().map_or_else(|error| error.to_string(), |_| String::new());
        assert!(unpacked.contains(why) || scanned.contains(why), "{unpacked} / {scanned}");
    }
}

fn paths(toc: &Toc) -> Vec<String> {
    toc.entries.iter().map(|entry| String::from_utf8(entry.path.clone()).unwrap()).collect()
}

#[test]
fn dot_dot_is_refused() {
    Tar::default().file("../outside", "x").refused("..");
    Tar::default().file("a/../../outside", "x").refused("..");
    Tar::default().dir("a").file("a/..", "x").refused("..");
    Tar::default().pax(&[("path", "../outside")]).file("fine", "x").refused("..");
}

#[test]
fn absolute_paths_stay_inside() {
    let (toc, directory) = Tar::default().file("/outside", "x").file(".//./b", "y").unpack();
    assert_eq!(paths(&toc.unwrap()), ["outside", "b"]);
    assert_eq!(fs_err::read_to_string(directory.path().join("layer/outside")).unwrap(), "x");
}

#[test]
fn writing_through_a_symlink_is_refused() {
    for target in ["..", "/", "../outside", "."] {
        let tar = Tar::default().add(b"link", b'2', target.as_bytes(), b"").file("link/outside", "x");
        tar.refused("link");
        let tar = Tar::default().add(b"link", b'2', target.as_bytes(), b"").dir("link/new");
        tar.refused("link");
    }
}

#[test]
fn a_file_in_place_of_a_symlink_replaces_it() {
    let tar = Tar::default().add(b"link", b'2', b"../outside", b"").file("link", "x");
    let (toc, directory) = tar.unpack();
    assert_eq!(paths(&toc.unwrap()), ["link"]);
    assert_eq!(fs_err::read_to_string(directory.path().join("layer/link")).unwrap(), "x");
}

#[test]
fn a_directory_in_place_of_a_symlink_changes_no_mode_elsewhere() {
    // CVE-2026-33056 in the tar crate: chmod through the link.
    let tar = Tar::default().add(b"link", b'2', b"../outside", b"").dir("link").file("link/a", "x");
    let (toc, directory) = tar.unpack();
    assert_eq!(paths(&toc.unwrap()), ["link", "link/a"]);
    assert!(directory.path().join("layer/link").symlink_metadata().unwrap().is_dir());
}

#[test]
fn hard_links_stay_inside() {
    Tar::default().add(b"link", b'1', b"../outside", b"").refused("..");
    let absolute = Tar::default().add(b"link", b'1', b"/outside", b"");
    assert!(absolute.unpack().0.unwrap_err().to_string().contains("no file of this layer"));
    let through = Tar::default().add(b"d", b'2', b"..", b"").add(b"link", b'1', b"d/outside", b"");
    assert!(through.unpack().0.is_err());
    Tar::default().dir("d").add(b"link", b'1', b"d", b"").refused("hard link");
    Tar::default().file("f", "x").add(b"f", b'1', b"f", b"").refused("hard link");
}

#[test]
fn a_hard_link_into_a_lower_layer_is_known_but_not_unpacked_alone() {
    let tar = Tar::default().add(b"link", b'1', b"lower/file", b"");
    assert_eq!(tar.scan().unwrap().entries[0].kind, EntryKind::HardLink { target: b"lower/file".to_vec() });
    assert!(tar.unpack().0.is_err());
}

#[test]
fn of_duplicates_the_later_wins() {
    let tar = Tar::default()
        .file("f", "old")
        .add(b"other", b'1', b"f", b"")
        .add(b"third", b'1', b"other", b"")
        .file("f", "newer")
        .dir("d")
        .file("d/inner", "x")
        .file("d", "file")
        .file("e", "x")
        .dir("e")
        .file("e/inner", "x");
    let (toc, directory) = tar.unpack();
    let toc = toc.unwrap();
    assert_eq!(paths(&toc), ["other", "third", "f", "d", "e", "e/inner"]);
    assert!(matches!(toc.entries[0].kind, EntryKind::File { size: 3, .. }));
    assert_eq!(toc.entries[1].kind, EntryKind::HardLink { target: b"other".to_vec() });
    let read = |name| fs_err::read_to_string(directory.path().join("layer").join(name)).unwrap();
    assert_eq!((read("f"), read("other"), read("third")), ("newer".into(), "old".into(), "old".into()));
    assert_eq!(read("d"), "file");
}

#[test]
fn whiteout_tricks_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.", ".wh.a/b"] {
        Tar::default().file(name, "").refused("");
        assert!(Tar::default().file(name, "").scan().is_err(), "{name}");
    }
    assert!(Tar::default().dir(".wh.a").scan().is_err());
    assert!(Tar::default().add(b".wh.a", b'2', b"b", b"").scan().is_err());
    assert!(Tar::default().add(b"f", b'1', b".wh.a", b"").scan().is_err());
    Tar::default().add(b"device", b'3', b"", b"").refused("removal");
    let smuggled = Tar::default().pax(&[("SCHILY.xattr.trusted.overlay.redirect", "/etc")]).dir("d");
    assert!(smuggled.scan().unwrap().entries[0].metadata.xattrs.is_empty());
}

#[test]
fn whiteouts_are_about_lower_layers_only() {
    let tar = Tar::default()
        .file("f", "x")
        .file(".wh.f", "")
        .dir("d")
        .file("d/inner", "x")
        .file(".wh.d", "")
        .file(".wh.gone", "")
        .file("new/.wh..wh..opq", "")
        .file("new/a", "x")
        .file(".wh.again", "")
        .file("again/a", "x")
        .file(".wh..wh.aufs", "");
    let toc = tar.scan().unwrap();
    assert_eq!(paths(&toc), ["f", "d", "d/inner", "gone", "new", "new/a", "again", "again/a"]);
    assert_eq!(toc.entries[1].kind, EntryKind::Directory { opaque: true, implied: false });
    assert_eq!(toc.entries[3].kind, EntryKind::Whiteout);
    assert_eq!(toc.entries[4].kind, EntryKind::Directory { opaque: true, implied: true });
    assert_eq!(toc.entries[6].kind, EntryKind::Directory { opaque: true, implied: false });
}

#[test]
fn two_sizes_are_refused() {
    // CVE-2025-62518: the PAX size hides a header from one of two readers.
    for size in ["0", "1", "512", "1536"] {
        Tar::default().pax(&[("size", size)]).file("f", "1234").refused("two different sizes");
    }
    assert!(Tar::default().pax(&[("size", "4")]).file("f", "1234").scan().is_ok());
}

#[test]
fn what_is_no_file_has_no_size() {
    for kind in [b'2', b'3', b'4', b'5', b'6'] {
        assert!(Tar::default().add(b"f", kind, b"target", b"content").scan().is_err(), "{kind}");
    }
}

#[test]
fn lying_sizes_are_an_error() {
    let mut tar = Tar::default();
    tar.header(b"f", b'0', b"", 1 << 30);
    tar.0.extend_from_slice(b"short");
    assert!(tar.scan().is_err());
    let mut tar = Tar::default();
    tar.header(b"f", b'0', b"", 1000);
    tar.0.extend_from_slice(b"short");
    assert!(tar.unpack().0.unwrap_err().to_string().contains("unpacking f"));
    let mut pax = Tar::default();
    pax.header(b"x", b'x', b"", u64::from(u32::MAX));
    assert!(matches!(pax.scan(), Err(LayerError::Limit { .. })));
}

#[test]
fn bombs_stop_at_the_limit() {
    let zeros = vec![0; 64 << 20];
    let tar = Tar::default().add(b"f", b'0', b"", &zeros);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&tar.0).unwrap();
    let options = ScanOptions { max_raw_size: 16 << 20, ..ScanOptions::default() };
    let zstd = zstd::bulk::compress(&tar.0, 1).unwrap();
    for bomb in [gzip.finish().unwrap(), zstd] {
        assert!(matches!(scan(&*bomb, &options, &mut ()), Err(LayerError::Limit { .. })));
    }
    // Zeros behind the end of the archive count as well.
    let mut long = Tar::default().file("f", "x").0;
    long.resize(32 << 20, 0);
    assert!(matches!(scan(&*long, &options, &mut ()), Err(LayerError::Limit { .. })));
    let sparse = Tar::default()
        .pax(&[("GNU.sparse.map", "0,1"), ("GNU.sparse.size", "9000000000000000000")])
        .file("f", "x");
    assert!(matches!(sparse.scan(), Err(LayerError::Limit { .. })));
    let many = ScanOptions { max_entries: 2, ..ScanOptions::default() };
    let tar = Tar::default().file("a", "").file("b", "").file("c", "");
    assert!(matches!(scan(&*tar.0, &many, &mut ()), Err(LayerError::Limit { .. })));
}

#[test]
fn damaged_and_cut_streams_are_errors() {
    let (_, blob) = write(&[file("f", noise(3, 300_000))], Compression::Gzip { level: 1 });
    assert!(scan(&blob[..blob.len() - 9], &ScanOptions::default(), &mut ()).is_err());
    let (layer, blob) = write(&[file("f", noise(3, 300_000))], Compression::default());
    let frames: u64 = layer.toc.frames.iter().map(|frame| frame.size).sum();
    assert!(scan(&blob[..frames as usize - 1], &ScanOptions::default(), &mut ()).is_err());
    assert!(scan(&b"this is no tar, but text that is long"[..], &ScanOptions::default(), &mut ()).is_err());
    let xz_magic = [0xfd, b'7', b'z', b'X', b'Z', 0, 0, 0];
    assert!(scan(&xz_magic[..], &ScanOptions::default(), &mut ()).is_err());
}

#[test]
fn a_damaged_frame_is_noticed() {
    let (layer, mut blob) = write(&[file("f", noise(3, 300_000))], Compression::default());
    let at = layer.toc.frames[0].size as usize + 100_000;
    blob[at] ^= 1;
    let mut reader = TocReader::new(&layer.toc, layer.media_type, std::io::Cursor::new(&blob)).unwrap();
    let mut content = reader.content(&layer.toc.entries[0]);
    assert!(std::io::copy(&mut content, &mut std::io::sink()).is_err());
}

#[test]
fn other_peoples_tars_are_understood() {
    // Without the zero blocks at the end, with a GNU long name, and without slashes behind directories.
    let long = "long/".repeat(30) + "name";
    let mut name = long.clone().into_bytes();
    name.push(0);
    let tar = Tar::default().add(b"././@LongLink", b'L', b"", &name).file("cut", "x").dir("d");
    assert_eq!(paths(&tar.scan().unwrap()), [long.as_str(), "d"]);
    let with_zeros = [tar.0.clone(), vec![0; 512]].concat();
    assert_eq!(scan(&*with_zeros, &ScanOptions::default(), &mut ()).unwrap().toc, tar.scan().unwrap());
    let times = Tar::default().pax(&[("mtime", "-1.25"), ("uid", "3000000")]).file("f", "");
    let metadata = times.scan().unwrap().entries[0].metadata.clone();
    assert_eq!(metadata.mtime, Timestamp { seconds: -2, nanos: 750_000_000 });
    assert_eq!(metadata.uid, 3_000_000);
    // In an archive that is no layer, `.wh.` is a name like any other.
    let archive = ScanOptions { whiteouts: false, ..ScanOptions::default() };
    let scanned = scan(&*Tar::default().file(".wh.a", "").0, &archive, &mut ()).unwrap();
    assert_eq!(paths(&scanned.toc), [".wh.a"]);
}

#[test]
fn sparse_entries_have_their_holes() {
    let expected = [b"ab".to_vec(), vec![0; 998], b"cd".to_vec(), vec![0; 98]].concat();
    let size = [("GNU.sparse.size", "1100"), ("GNU.sparse.map", "0,2,1000,2")];
    let one = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.realsize", "1100"),
        ("GNU.sparse.name", "f"),
    ];
    let data = format!("2\n0\n2\n1000\n2\n{}abcd", "\0".repeat(512 - 13));
    let old = {
        let mut tar = Tar::default();
        tar.header(b"f", b'S', b"", 4);
        let start = tar.0.len() - 512;
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes().copy_from_slice(&tar.0[start..]);
        header.as_mut_bytes()[257..265].copy_from_slice(b"ustar  \0");
        let fields = ["0", "2", "1750", "2"].map(|octal| format!("{octal:0>11}\0"));
        header.as_mut_bytes()[386..434].copy_from_slice(fields.concat().as_bytes());
        header.as_mut_bytes()[483..495].copy_from_slice(b"00000002114\0");
        header.set_cksum();
        tar.0[start..].copy_from_slice(header.as_bytes());
        tar.0.extend_from_slice(b"abcd");
        header::pad(&mut tar.0, 4);
        tar
    };
    for tar in [
        Tar::default().pax(&size).file("f", "abcd"),
        Tar::default().pax(&one).file("GNUSparseFile.0/f", &data),
        old,
    ] {
        let toc = tar.file("after", "x").scan().unwrap();
        let content = Digest::of(&expected);
        assert_eq!(toc.entries[0].kind, EntryKind::File { size: 1100, content, offset: 0 });
        assert_eq!(paths(&toc), ["f", "after"]);
    }
    let bad = [("GNU.sparse.size", "1100"), ("GNU.sparse.map", "1000,2,0,2")];
    assert!(Tar::default().pax(&bad).file("f", "abcd").scan().is_err());
}
