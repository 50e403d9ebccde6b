//! Round trips and golden vectors.

use std::io::{Cursor, Read, Write};

use super::*;
use crate::layer::chunk::chunk_end;

fn golden() -> Vec<Sample> {
    let mut tool = file("usr/bin/tool", noise(7, 700_000));
    tool.entry.metadata.mode = 0o4755;
    tool.entry.metadata.xattrs.insert(b"security.capability".to_vec(), vec![1, 0, 0, 2, 10]);
    vec![
        sample("usr", EntryKind::Directory { opaque: false, implied: true }),
        sample("usr/bin", EntryKind::Directory { opaque: true, implied: false }),
        tool,
        sample("usr/bin/same", EntryKind::HardLink { target: b"usr/bin/tool".to_vec() }),
        sample("usr/bin/link", EntryKind::Symlink { target: b"tool".to_vec() }),
        file("usr/hello", "hello\n"),
        sample("gone", EntryKind::Whiteout),
        sample("null", EntryKind::CharDevice { major: 1, minor: 3 }),
        file(&"long/".repeat(40), ""),
    ]
    .into_iter()
    .map(|mut sample| {
        while sample.entry.path.ends_with(b"/") {
            sample.entry.path.pop();
        }
        sample
    })
    .collect()
}

/// The tar and its table of contents never change by themselves: caches hold them, and keys are made of them.
#[test]
fn golden_layer() {
    let (layer, _) = write(&golden(), Compression::default());
    let sizes: Vec<_> = layer.toc.frames.iter().map(|frame| frame.raw_size).collect();
    pinned("diff ID", &layer.diff_id.to_string(), GOLDEN_DIFF_ID);
    pinned("frames", &format!("{sizes:?}"), GOLDEN_FRAMES);
    // Names and sizes of frames are the compressor's: without them.
    let mut toc = layer.toc.clone();
    toc.frames.iter_mut().for_each(|frame| (frame.id, frame.size) = (Digest::of(""), 1));
    pinned("TOC", &Digest::of(toc.encode()).to_string(), GOLDEN_TOC);
}

fn pinned(what: &str, found: &str, expected: &str) {
    assert_eq!(found, expected, "{what} changed: that is a new version of the format");
}

const GOLDEN_DIFF_ID: &str = "sha256:f5feaf8d11a846d968c0f34f94e49916df5ec1e6fcc787512a228271a12a2645";
const GOLDEN_FRAMES: &str = "[3072, 553906, 146094, 5024]";
const GOLDEN_TOC: &str = "sha256:ccdc40b08d810c1a182ae5ae2aa08772359beb9a49d7a050297398cc1712d0d6";

#[test]
fn golden_toc_bytes() {
    let toc = Toc {
        entries: vec![directory("a").entry, file("a/b", "x").entry, sample("a/c", EntryKind::Whiteout).entry],
        frames: Vec::new(),
    };
    let mut expected = b"crossdock-toc\n".to_vec();
    let mtime = [0x80, 0xc4, 0x9f, 0xd5, 0x0c, 0];
    expected.extend([1, 3, 0, 1, b'a', 0, 0xed, 3, 0, 0]);
    expected.extend(mtime);
    expected.extend([0, 1, 2, b'/', b'b', 4, 1, 0]);
    expected.extend(Digest::of("x").as_bytes());
    expected.extend([0, 0xa4, 3, 0, 0]);
    expected.extend(mtime);
    expected.extend([0, 2, 1, b'c', 10, 0]);
    assert_eq!(toc.encode(), expected);
    assert_eq!(Toc::decode(&expected).unwrap(), toc);
}

#[test]
fn golden_chunks() {
    let data = noise(1, 4 << 20);
    let mut lengths = Vec::new();
    let mut rest = &*data;
    while !rest.is_empty() {
        let length = chunk_end(rest, 0).unwrap_or(rest.len());
        lengths.push(length);
        rest = &rest[length..];
    }
    assert_eq!(lengths, GOLDEN_CHUNKS);
}

const GOLDEN_CHUNKS: &[usize] = &[586_763, 801_222, 572_911, 630_565, 540_797, 819_220, 242_826];

#[test]
fn an_insertion_moves_only_the_chunks_around_it() {
    let data = noise(2, 8 << 20);
    let (before, _) = write(&[file("f", data.clone())], Compression::default());
    let changed = [&data[..3 << 20], b"inserted", &data[3 << 20..]].concat();
    let (after, _) = write(&[file("f", changed)], Compression::default());
    let known: Vec<Digest> = before.toc.frames.iter().map(|frame| frame.id).collect();
    let new = after.toc.frames.iter().filter(|frame| !known.contains(&frame.id)).count();
    assert!(before.toc.frames.len() > 10);
    // The header with the size, the chunk with the insertion, and at most the two behind it.
    assert!(new <= 4, "{new} new frames");
}

#[test]
fn a_new_time_costs_no_data_of_large_files() {
    let samples = golden();
    let mut touched = golden();
    for sample in &mut touched {
        if sample.entry.kind != EntryKind::Whiteout {
            sample.entry.metadata.mtime.seconds += 1;
        }
    }
    let (before, _) = write(&samples, Compression::default());
    let (after, _) = write(&touched, Compression::default());
    assert_ne!(before.diff_id, after.diff_id);
    let shared = after.toc.frames.iter().filter(|frame| before.toc.frames.contains(frame));
    assert_eq!(shared.map(|frame| frame.raw_size).sum::<u64>(), 700_000);
}

#[test]
fn groups_follow_paths_and_sizes_and_are_bounded() {
    let files = |from: usize| -> Vec<Sample> {
        (from..3000).map(|n| file(&format!("dir/{n}"), vec![b'a'; n % 5000])).collect()
    };
    let (all, _) = write(&files(0), Compression::default());
    let (most, _) = write(&files(100), Compression::default());
    let known: Vec<Digest> = all.toc.frames.iter().map(|frame| frame.id).collect();
    let new = most.toc.frames.iter().filter(|frame| !known.contains(&frame.id)).count();
    assert!(new <= 3, "{new} of {} frames are new", most.toc.frames.len());
    let average = all.raw_size / all.toc.frames.len() as u64;
    assert!((128 << 10..512 << 10).contains(&average), "{average}");
    assert!(all.toc.frames.iter().all(|frame| frame.raw_size <= (1 << 20) + 1024));
}

#[test]
fn a_blob_is_a_plain_stream_to_others_and_carries_its_toc() {
    for compression in [Compression::default(), Compression::Gzip { level: 6 }, Compression::None] {
        let (layer, blob) = write(&golden(), compression);
        assert_eq!(Digest::of(&blob), layer.digest);
        assert_eq!(blob.len() as u64, layer.size);
        let mut tar = Vec::new();
        let (encoding, mut stream) = decompress(&*blob).unwrap();
        stream.read_to_end(&mut tar).unwrap();
        assert_eq!(encoding.media_type(), Some(layer.media_type));
        assert_eq!(Digest::of(&tar), layer.diff_id);
        assert_eq!(tar.len() as u64, layer.raw_size);
        let names: Vec<_> = tar::Archive::new(&*tar)
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path_bytes().escape_ascii().to_string())
            .collect();
        assert!(names.contains(&"usr/bin/.wh..wh..opq".to_owned()), "{names:?}");
        assert!(names.contains(&".wh.gone".to_owned()));
        assert!(names.contains(&["long"; 40].join("/")));
        let embedded = Toc::from_blob(&mut Cursor::new(&blob)).unwrap();
        assert_eq!(embedded.is_some(), layer.media_type == MediaType::Zstd);
        assert!(embedded.is_none_or(|toc| toc == layer.toc));
    }
}

#[test]
fn a_damaged_embedded_toc_is_noticed() {
    let (layer, mut blob) = write(&golden(), Compression::default());
    let frames: u64 = layer.toc.frames.iter().map(|frame| frame.size).sum();
    blob[frames as usize + 40] ^= 1;
    assert!(Toc::from_blob(&mut Cursor::new(&blob)).is_err());
}

#[test]
fn every_member_and_frame_is_read() {
    let mut gzip = Vec::new();
    for part in ["one ", "two"] {
        let mut encoder = flate2::write::GzEncoder::new(&mut gzip, flate2::Compression::fast());
        encoder.write_all(part.as_bytes()).unwrap();
        encoder.finish().unwrap();
    }
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
    let zstd = [
        zstd::bulk::compress(b"one ", 3).unwrap(),
        skippable.to_vec(),
        zstd::bulk::compress(b"two", 3).unwrap(),
        skippable.to_vec(),
    ]
    .concat();
    let leading = [skippable.to_vec(), zstd.clone()].concat();
    for blob in [gzip, zstd, leading, b"one two".to_vec()] {
        let mut text = String::new();
        decompress(&*blob).unwrap().1.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error() {
    for (announced, content) in [(10, 9), (10, 11), (100_000, 99_999), (100_000, 100_001), (0, 1)] {
        let mut writer = LayerWriter::new(Vec::new(), LayerOptions::default()).unwrap();
        let content = vec![1; content];
        let error = writer.file(b"f", &metadata(0o644), announced, &mut &*content).unwrap_err();
        assert!(matches!(error, LayerError::Changed { expected, .. } if expected == announced), "{error}");
    }
}

#[test]
fn sizes_above_8_gib_and_large_ids_go_into_pax() {
    let mut header = Vec::new();
    let metadata = Metadata { mode: 0o644, uid: 3_000_000, gid: 3_000_000, ..Metadata::default() };
    let header_of = header::Header {
        name: b"big",
        metadata: &metadata,
        typeflag: b'0',
        size: 9 << 30,
        link: b"",
        device: (0, 0),
        is_exact: false,
    };
    header_of.append(&mut header).unwrap();
    let mut reader = TarReader::new(&*header);
    let entry = reader.next().unwrap().unwrap();
    assert_eq!((entry.size, entry.metadata.uid, entry.metadata.gid), (9 << 30, 3_000_000, 3_000_000));
}

#[test]
fn a_toc_is_decoded_in_milliseconds() {
    let entries = (0..12_000).map(|n| file(&format!("usr/lib/directory-{}/file-{n}", n / 50), "x").entry);
    let toc = Toc { entries: entries.collect(), frames: Vec::new() };
    let bytes = toc.encode();
    let start = std::time::Instant::now();
    assert_eq!(Toc::decode(&bytes).unwrap(), toc);
    // Some 5 ms optimised; this is a debug build on a busy machine.
    assert!(start.elapsed().as_millis() < 1000, "{:?}", start.elapsed());
    assert!(bytes.len() < 12_000 * 64, "{}", bytes.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_is_read(samples in samples(), gzip: bool) {
        let compression = if gzip { Compression::Gzip { level: 1 } } else { Compression::default() };
        let (layer, blob) = write(&samples, compression);
        prop_assert_eq!(Toc::decode(&layer.toc_bytes).unwrap(), layer.toc.clone());
        for (sample, entry) in samples.iter().zip(&layer.toc.entries) {
            prop_assert_eq!(&sample.entry.path, &entry.path);
            prop_assert_eq!(&sample.entry.metadata, &entry.metadata);
        }
        let scanned = scan(&*blob, &ScanOptions::default(), &mut ()).unwrap();
        prop_assert_eq!((scanned.diff_id, scanned.digest), (layer.diff_id, layer.digest));
        prop_assert_eq!((scanned.raw_size, scanned.size), (layer.raw_size, layer.size));
        prop_assert_eq!(scanned.toc, as_scanned(&layer.toc));
        let mut reader = TocReader::new(&layer.toc, layer.media_type, Cursor::new(&blob)).unwrap();
        for (sample, entry) in samples.iter().zip(&layer.toc.entries).rev() {
            let mut content = Vec::new();
            reader.content(entry).read_to_end(&mut content).unwrap();
            prop_assert_eq!(&content, &sample.content);
        }
        let (again, _) = write(&samples, compression);
        prop_assert_eq!(again, layer);
    }

    /// A copy is the same tar, and its files can be read one by one.
    #[test]
    fn a_framed_copy_is_the_same_tar(samples in samples(), gzip: bool) {
        let compression = if gzip { Compression::Gzip { level: 1 } } else { Compression::None };
        let mut samples = samples;
        samples.push(file("large", noise(7, 1_500_000)));
        samples.extend((0..40).map(|number| file(&format!("many/{number}"), noise(number, 9000))));
        let (finished, blob) = write(&samples, compression);
        let mut copy = Vec::new();
        let layer = LayerOptions { compression: Compression::Zstd { level: 1 }, threads: 2 };
        let reframed = reframe(&*blob, &ScanOptions::default(), &mut (), &mut copy, layer).unwrap();
        prop_assert_eq!((reframed.digest, reframed.size), (Digest::of(&copy), copy.len() as u64));
        let Scanned { diff_id, digest, toc, .. } = reframed.scanned;
        prop_assert_eq!((diff_id, digest), (finished.diff_id, finished.digest));
        prop_assert_eq!(&toc.entries, &as_scanned(&finished.toc).entries);
        prop_assert_eq!(scan(&*copy, &ScanOptions::default(), &mut ()).unwrap().diff_id, finished.diff_id);
        prop_assert_eq!(toc.frames.iter().map(|frame| frame.size).sum::<u64>(), copy.len() as u64);
        prop_assert!(toc.frames.iter().all(|frame| frame.raw_size <= 2 << 20));
        let large = toc.entries.iter().find(|entry| entry.path == b"large").unwrap();
        let EntryKind::File { offset, .. } = large.kind else { panic!() };
        let mut at = 0;
        let starts: Vec<u64> = toc.frames.iter().map(|frame| { at += frame.raw_size; at }).collect();
        prop_assert!(starts.contains(&offset), "a large file begins a frame");
        prop_assert!(starts.contains(&(offset + 1_500_000)), "and ends one");
        let mut reader = TocReader::new(&toc, MediaType::Zstd, Cursor::new(&copy)).unwrap();
        for entry in toc.entries.iter().rev() {
            std::io::copy(&mut reader.content(entry), &mut std::io::sink()).unwrap();
        }
    }

    #[test]
    fn damaged_tocs_never_panic(samples in samples(), at: prop::sample::Index, value: u8, cut: bool) {
        let (layer, _) = write(&samples, Compression::None);
        let mut bytes = layer.toc_bytes;
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = value }
        if let Ok(toc) = Toc::decode(&bytes) {
            prop_assert_eq!(toc.encode(), bytes);
        }
    }

    #[test]
    fn damaged_layers_never_panic(samples in samples(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let (_, mut blob) = write(&samples, Compression::None);
        for (at, value) in damage {
            let at = at.index(blob.len());
            blob[at] = value;
        }
        let _ = scan(&*blob, &ScanOptions { max_raw_size: 64 << 20, ..ScanOptions::default() }, &mut ());
    }
}

/// Runs `command` in a shell with `input`; `None`, and a notice, if one of `tools` is missing.
fn shell(tools: &[&str], command: &str, input: &[u8]) -> Option<String> {
    use std::process::{Command, Stdio};
    for tool in tools {
        if Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("skipped, since there is no {tool}");
            return None;
        }
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), input).unwrap();
    let stdin = fs_err::File::open(file.path()).unwrap();
    let output = Command::new("sh").args(["-c", command]).stdin(stdin.into_parts().0).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn stock_tools_read_a_layer() {
    let blobs = [
        (Compression::default(), "zstd -dc", vec!["zstd", "tar"]),
        (Compression::Gzip { level: 6 }, "gzip -dc", vec!["gzip", "tar"]),
    ];
    for (compression, decompress, tools) in blobs {
        let (layer, blob) = write(&golden(), compression);
        let Some(sum) = shell(&tools, &format!("{decompress} | sha256sum"), &blob) else { continue };
        assert!(layer.diff_id.to_string().ends_with(sum.split_whitespace().next().unwrap()));
        let list = shell(&tools, &format!("{decompress} | tar -tf -"), &blob).unwrap();
        let expected = format!(
            "usr/\nusr/bin/\nusr/bin/.wh..wh..opq\nusr/bin/tool\nusr/bin/same\nusr/bin/link\nusr/hello\n.wh.gone\nnull\n{}\n",
            ["long"; 40].join("/")
        );
        assert_eq!(list, expected);
    }
}

#[test]
fn what_stock_tar_writes_is_read() {
    let directory = tempfile::tempdir().unwrap();
    fs_err::create_dir_all(directory.path().join("a/b")).unwrap();
    fs_err::write(directory.path().join("a/b/text"), "content").unwrap();
    let sparse = fs_err::File::create(directory.path().join("a/sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(sparse.file(), b"middle", 1 << 20).unwrap();
    let long = "n".repeat(200);
    fs_err::write(directory.path().join("a").join(&long), "long").unwrap();
    let mut content = vec![0; 3 << 20];
    content[1 << 20..(1 << 20) + 6].copy_from_slice(b"middle");
    for format in [
        "gnu --sparse",
        "pax --sparse",
        "pax --sparse --sparse-version=0.1",
        "pax --sparse --sparse-version=0.0",
        "ustar",
    ] {
        let at = directory.path().display();
        if format == "ustar" {
            fs_err::remove_file(directory.path().join("a").join(&long)).unwrap();
        }
        let out = tempfile::NamedTempFile::new().unwrap();
        let command = format!("tar --format={format} -C {at} -cf {} .", out.path().display());
        if shell(&["tar"], &command, b"").is_none() {
            return;
        }
        let scanned =
            scan(fs_err::File::open(out.path()).unwrap(), &ScanOptions::default(), &mut ()).unwrap();
        let find =
            |path: &str| scanned.toc.entries.iter().find(|e| e.path == path.as_bytes()).map(|e| &e.kind);
        let sparse = find("a/sparse").unwrap();
        assert!(
            matches!(sparse, EntryKind::File { size: 3_145_728, content: found, .. } if *found == Digest::of(&content)),
            "{format}: {sparse:?}"
        );
        assert!(matches!(find("a/b/text"), Some(EntryKind::File { size: 7, .. })), "{format}");
        assert_eq!(find(&format!("a/{long}")).is_some(), format != "ustar");
    }
}

#[test]
fn archives_have_exact_times_and_names_that_mean_something_in_layers() {
    let at = |seconds, nanos| Metadata { mtime: Timestamp { seconds, nanos }, ..metadata(0o640) };
    let long = [b"d/".to_vec(), vec![b'n'; 200]].concat();
    let noted = Metadata {
        xattrs: BTreeMap::from([(b"user.note".to_vec(), b"a\nnote".to_vec())]),
        ..at(1_700_000_000, 123_456_789)
    };
    let entries: [(&[u8], Metadata, Item<'_>); 7] = [
        (b"", at(5, 0), Item::Directory),
        (b"d", at(-1, 500_000_000), Item::Directory),
        (b"d/.wh.file", noted, Item::File { size: 3 }),
        (&long, at(i64::from(u32::MAX) * 9, 1), Item::HardLink { target: b"d/.wh.file" }),
        (b"link", at(-7, 0), Item::Symlink { target: b".//some/../where/" }),
        (b"device", at(0, 0), Item::BlockDevice { major: 8, minor: 1 }),
        (b"pipe", at(0, 999_999_999), Item::Fifo),
    ];
    let mut archive = ArchiveWriter::new(Vec::new());
    for (path, metadata, item) in &entries {
        archive.entry(path, metadata, *item, &mut &b"abc"[..]).unwrap();
    }
    let tar = archive.finish().unwrap();
    let options = ScanOptions { whiteouts: false, ..ScanOptions::default() };
    let toc = scan(&*tar, &options, &mut ()).unwrap().toc;
    assert_eq!(toc.entries.len(), entries.len());
    for (found, (path, metadata, item)) in toc.entries.iter().zip(&entries) {
        assert_eq!((&found.path[..], &found.metadata), (*path, metadata));
        match (&found.kind, item) {
            (EntryKind::File { size: 3, content, .. }, Item::File { .. }) => {
                assert_eq!(*content, Digest::of("abc"));
            }
            (EntryKind::Symlink { target: found }, Item::Symlink { target })
            | (EntryKind::HardLink { target: found }, Item::HardLink { target }) => {
                assert_eq!(found, target);
            }
            (EntryKind::Directory { .. }, Item::Directory)
            | (EntryKind::Fifo, Item::Fifo)
            | (EntryKind::BlockDevice { major: 8, minor: 1 }, Item::BlockDevice { .. }) => {}
            (found, wanted) => panic!("{found:?} instead of {wanted:?}"),
        }
    }
    let short =
        ArchiveWriter::new(Vec::new()).entry(b"f", &at(0, 0), Item::File { size: 4 }, &mut &b"abc"[..]);
    assert!(matches!(short, Err(LayerError::Changed { .. })), "{short:?}");
}
