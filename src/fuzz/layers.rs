//! Layers and archives: tars, compressed streams, tables of contents, blobs.

use std::io::{Cursor, Read};
use std::path::Path;

use crate::build::copy::copier::Rules;
use crate::build::copy::{CopyError, Opener, step};
use crate::build::plan::{CopyOp, Input};
use crate::digest::Digest;
use crate::layer::{
    self, Encoding, Entry, EntryKind, Item, LayerError, LayerVisitor, MediaType, Metadata, ScanOptions,
    Timestamp, Toc, TocReader, UnpackOptions, Unpacker, Whiteouts,
};
use crate::tree::Tree;

pub(super) const TAR_WORDS: &[&str] = &[
    "ustar\x0000",
    "ustar  \0",
    "path=",
    "linkpath=",
    "size=",
    "mtime=",
    "uid=",
    "SCHILY.xattr.user.a=",
    "GNU.sparse.major=1",
    "GNU.sparse.minor=0",
    "GNU.sparse.realsize=",
    "GNU.sparse.map=0,1,2,3",
    "GNU.sparse.name=",
    "../",
    "/",
    ".wh.",
    ".wh..wh..opq",
    "0",
    "1",
    "2",
    "3",
    "5",
    "6",
    "x",
    "g",
    "L",
    "K",
    "S",
    "0000644\0",
    "77777777777",
    "\u{80}",
];

/// The longest tar, unpacked, that is looked at.
const RAW_MAX: u64 = 4 << 20;

/// The most entries of one.
const ENTRIES_MAX: usize = 10_000;

/// Blocks of a tar that are no data: their checksums are made right, because nobody would guess one.
fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for block in bytes.chunks_exact_mut(512) {
        // Where an input begins to be a header it has this magic.
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

/// What is true of each table of contents that was accepted.
fn check(toc: &Toc) {
    assert_eq!(toc.validate(), Ok(()));
    let encoded = toc.encode();
    assert_eq!(Toc::decode(&encoded).as_ref(), Ok(toc));
    let mut tree = Tree::empty();
    if tree.apply(0, toc).is_ok() {
        let digest = tree.digest();
        // A layer upon itself changes nothing.
        if tree.apply(1, toc).is_ok() {
            assert_eq!(tree.digest(), digest);
        }
        assert!(
            tree.walk(b"").count() <= toc.entries.iter().map(|entry| entry.path.len() + 1).sum::<usize>() + 1
        );
    }
}

/// A tar, as a layer and as any archive.
pub(super) fn tar(input: &[u8]) {
    let bytes = with_checksums(input);
    for whiteouts in [true, false] {
        let options = ScanOptions { whiteouts, max_raw_size: RAW_MAX, max_entries: ENTRIES_MAX };
        match layer::scan(&*bytes, &options, &mut ()) {
            Ok(scanned) => {
                assert_eq!((scanned.digest, scanned.size), (Digest::of(&bytes), bytes.len() as u64));
                assert!(scanned.raw_size <= RAW_MAX);
                check(&scanned.toc);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// A tar, unpacked. Nothing appears outside.
pub(super) fn unpack(input: &[u8]) {
    let bytes = with_checksums(input);
    let outside = tempfile::tempdir().expect("a directory");
    let inside = outside.path().join("inside");
    fs_err::create_dir(&inside).expect("a directory");
    fs_err::write(outside.path().join("precious"), "precious").expect("a file");
    let root = fs_err::File::open(&inside).expect("a directory");
    let options = UnpackOptions { whiteouts: Whiteouts::OverlayUser, chown: false };
    let mut unpacker = Unpacker::new(root.file(), options).expect("a directory");
    let scan = ScanOptions { whiteouts: true, max_raw_size: RAW_MAX, max_entries: ENTRIES_MAX };
    let scanned = layer::scan(&*bytes, &scan, &mut unpacker);
    if let Ok(scanned) = scanned.and_then(|scanned| unpacker.finish().map(|_| scanned)) {
        for entry in &scanned.toc.entries {
            let there = inside.join(Path::new(std::ffi::OsStr::new(&*String::from_utf8_lossy(&entry.path))));
            if entry.path.is_ascii()
                && matches!(entry.kind, EntryKind::File { .. } | EntryKind::Directory { .. })
            {
                assert!(fs_err::symlink_metadata(&there).is_ok(), "{}", there.display());
            }
        }
    }
    let mut names: Vec<_> = fs_err::read_dir(outside.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["inside", "precious"]);
    let precious = outside.path().join("precious");
    assert_eq!(fs_err::read(&precious).expect("a file"), b"precious");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&fs_err::metadata(&precious).expect("a file")), 1);
}

/// Gives one file, whatever is asked for.
struct OneFile(Vec<u8>);

impl Opener for OneFile {
    fn open(&self, _: &[u8]) -> Result<Box<dyn Read + Send>, CopyError> {
        Ok(Box::new(Cursor::new(self.0.clone())))
    }
}

/// An archive that ADD unpacks onto a tree with directories and links in it.
pub(super) fn add(input: &[u8]) {
    let bytes = with_checksums(input);
    let file = |path: &[u8]| {
        let kind = EntryKind::File { size: bytes.len() as u64, content: Digest::of(&bytes), offset: 0 };
        Entry { path: path.to_vec(), metadata: Metadata { mode: 0o644, ..Metadata::default() }, kind }
    };
    let link = |path: &[u8], target: &[u8]| Entry {
        path: path.to_vec(),
        metadata: Metadata { mode: 0o777, ..Metadata::default() },
        kind: EntryKind::Symlink { target: target.to_vec() },
    };
    let tree = |entries: Vec<Entry>| {
        let mut tree = Tree::empty();
        tree.apply(0, &Toc { entries, frames: Vec::new() }).expect("a tree");
        tree
    };
    let source = tree(vec![file(b"a.tar")]);
    let image =
        tree(vec![file(b"x/f"), link(b"x/l", b"../../../y"), link(b"x/round", b"round"), file(b"y/f")]);
    let operation = CopyOp {
        input: Input::Empty,
        sources: vec!["a.tar".to_owned()],
        files: Vec::new(),
        destination: "/x/".to_owned(),
        owner: None,
        chmod: None,
        parents: false,
        link: false,
        exclude: Vec::new(),
        unpack: true,
        remotes: Vec::new(),
    };
    let rules = Rules { owner: None, chmod: None, now: Timestamp::default(), epoch: None };
    let spool = tempfile::tempdir().expect("a directory");
    let opener = OneFile(bytes.clone());
    match step::copy(&image, Some((&source, &opener)), &[], &operation, &rules, spool.path()) {
        Ok(staged) => {
            let entries: Vec<Entry> = staged
                .into_iter()
                .map(|(path, staged)| Entry { path, metadata: staged.node.metadata, kind: staged.node.kind })
                .collect();
            let mut merged = image.clone();
            let toc = Toc { entries, frames: Vec::new() };
            assert_eq!(toc.validate(), Ok(()));
            assert!(merged.apply(1, &toc).is_ok());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A compressed stream: the first byte says of which kind, so that mutations need not find the magic again.
pub(super) fn compressed(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let magic: &[u8] = match kind % 5 {
        0 => &[0x1f, 0x8b, 8],
        1 => &[0x28, 0xb5, 0x2f, 0xfd],
        2 => b"BZh9",
        3 => &[0xfd, b'7', b'z', b'X', b'Z', 0],
        _ => &[],
    };
    let stream = [magic, rest].concat();
    let Ok((encoding, reader)) = layer::decompress(&*stream) else { return };
    assert_eq!(encoding, Encoding::sniff(&stream));
    let _ = std::io::copy(&mut reader.take(RAW_MAX), &mut std::io::sink());
}

/// An encoded table of contents.
pub(super) fn toc(input: &[u8]) {
    const MAGIC: &[u8] = b"crossdock-toc\n\x01";
    let bytes = [MAGIC, input].concat();
    match Toc::decode(&bytes) {
        Ok(toc) => {
            assert_eq!(toc.encode(), bytes, "there is one encoding of each table");
            check(&toc);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // As it would be without the magic.
    let _ = Toc::decode(input);
}

/// Reads every file to its end.
struct ReadAll;

impl LayerVisitor for ReadAll {
    fn visit(
        &mut self,
        _: &[u8],
        _: &Metadata,
        _: Item<'_>,
        content: &mut dyn Read,
    ) -> Result<(), LayerError> {
        // Files are longer than anything that is in an input, if they lie.
        std::io::copy(&mut content.take(RAW_MAX), &mut std::io::sink())
            .map(drop)
            .map_err(LayerError::io("reading"))
    }
}

/// A blob and, behind it, a table of contents: the last two bytes are the table's length. Its frames are given the
/// digests of what they cover, so that what is behind the check of these is reached.
pub(super) fn blob(input: &[u8]) {
    let _ = Toc::from_blob(&mut Cursor::new(input));
    let Some((rest, length)) = input.split_last_chunk::<2>() else { return };
    let at = rest.len().saturating_sub(usize::from(u16::from_le_bytes(*length)));
    let (blob, table) = rest.split_at(at);
    let Ok(mut toc) = Toc::decode(table) else { return };
    let mut start = 0_usize;
    for frame in &mut toc.frames {
        let end = start.saturating_add(usize::try_from(frame.size).unwrap_or(usize::MAX));
        frame.id = Digest::of(blob.get(start..end).unwrap_or_default());
        start = end;
    }
    for media_type in [MediaType::Zstd, MediaType::Gzip, MediaType::Tar] {
        if let Some(mut reader) = TocReader::new(&toc, media_type, Cursor::new(blob)) {
            let _ = reader.visit(&mut ReadAll);
        }
    }
}
