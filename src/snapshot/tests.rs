use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use proptest::prelude::*;

use super::*;
use crate::encoding::{DecodeError, Encoder};
use crate::layer::{Encoding, Timestamp};
use crate::tree::Tree;

/// Keeps packs in memory.
#[derive(Debug, Default)]
struct Packs(RefCell<HashMap<Digest, Vec<u8>>>);

impl PackSink for &Packs {
    type Out = Vec<u8>;

    fn begin(&mut self) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn finish(&mut self, out: Vec<u8>, digest: &Digest, size: u64) -> io::Result<()> {
        assert_eq!((Digest::of(&out), out.len() as u64), (*digest, size));
        self.0.borrow_mut().insert(*digest, out);
        Ok(())
    }
}

impl Packs {
    /// What extents stand for.
    fn read(&self, packs: &[Pack], extents: &[Extent]) -> Vec<u8> {
        let mut content = Vec::new();
        for extent in extents {
            let Some(place) = extent.pack else {
                content.resize(content.len() + extent.length as usize, 0);
                continue;
            };
            let pack = &packs[place as usize];
            let bytes = self.0.borrow()[&pack.digest].clone();
            let (mut raw, mut at) = (Vec::new(), 0);
            for frame in &pack.frames {
                let piece = bytes[at..at + frame.size as usize].to_vec();
                assert!(frame.id.matches(&piece) && frame.raw_size <= 1 << 20);
                raw.extend(frame.decode(Encoding::Zstd, piece).unwrap());
                at += frame.size as usize;
            }
            assert_eq!(at, bytes.len());
            content.extend(&raw[extent.offset as usize..][..extent.length as usize]);
        }
        content
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Extents of each file, packs, index part, new bytes.
type Stored = (Vec<Vec<Extent>>, Vec<Pack>, Option<Vec<u8>>, u64);

fn write(packs: &Packs, before: Vec<Pack>, known: ChunkIndex, files: &[&[u8]]) -> Stored {
    let mut writer = Writer::new(before, known, 2, packs);
    let extents =
        files.iter().map(|file| writer.file(b"file", file.len() as u64, &mut &file[..]).unwrap()).collect();
    let Written { packs, index, new_bytes, .. } = writer.finish().unwrap();
    (extents, packs, index, new_bytes)
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    let mtime = Timestamp { seconds: 1_700_000_000, nanos: 5 };
    let metadata = Metadata { mode: 0o644, uid: 1, gid: 2, mtime, xattrs: BTreeMap::new() };
    Entry { path: path.as_bytes().to_vec(), metadata, used: 470_000, kind }
}

fn sample() -> Snapshot {
    let frame = |name: &str, raw_size, size| Frame { id: Digest::of(name), raw_size, size };
    let pack =
        Pack { digest: Digest::of("pack"), size: 70, frames: vec![frame("a", 300, 30), frame("b", 200, 40)] };
    let extents = vec![
        Extent { pack: Some(0), offset: 10, length: 300 },
        Extent { pack: None, offset: 0, length: 5000 },
    ];
    let file = EntryKind::File { size: 5300, extents };
    Snapshot {
        packs: vec![pack],
        index: vec![Digest::of("index")],
        entries: vec![
            entry("", EntryKind::Directory),
            entry("a", EntryKind::Directory),
            entry("a/file", file),
            entry("a-link", EntryKind::HardLink { target: b"a/file".to_vec() }),
        ],
    }
}

/// The bytes are put together by hand, from the page that describes them.
#[test]
fn golden_bytes() {
    let mut payload = b"\x01\x00".to_vec();
    payload.extend(Digest::of("pack").as_bytes());
    payload.extend(b"\x02\x00");
    payload.extend(Digest::of("a").as_bytes());
    payload.extend(b"\xac\x02\x1e\x00");
    payload.extend(Digest::of("b").as_bytes());
    payload.extend(b"\xc8\x01\x28\x01\x00");
    payload.extend(Digest::of("index").as_bytes());
    payload.push(4);
    let metadata = b"\xa4\x03\x01\x02\x80\xc4\x9f\xd5\x0c\x05\x00\xf0\xd7\x1c";
    payload.extend(b"\x00\x00");
    payload.extend(metadata);
    payload.extend(b"\x00\x00\x01a");
    payload.extend(metadata);
    payload.extend(b"\x00\x01\x05/file");
    payload.extend(metadata);
    payload.extend(b"\x01\xb4\x29\x02\x01\x0a\xac\x02\x00\x00\x88\x27\x01\x05-link");
    payload.extend(metadata);
    payload.extend(b"\x02\x06a/file");
    let encoded = sample().encode().unwrap();
    let head =
        [&b"crossdock-snapshot\n\x01"[..], &[payload.len() as u8 & 0x7f | 0x80, (payload.len() >> 7) as u8]]
            .concat();
    assert_eq!(encoded[..head.len()], head);
    assert_eq!(zstd::decode_all(&encoded[head.len()..]).unwrap(), payload);
    assert_eq!(Snapshot::decode(&encoded).unwrap(), sample());

    let mut ledger = Ledger { is_partial: true, ..Ledger::default() };
    let time = Timestamp { seconds: -1, nanos: 7 };
    ledger.sights.insert(b"src/a".to_vec(), Sight { identity: [3; 16], time });
    ledger.sights.insert(b"src/b".to_vec(), Sight { identity: [4; 16], time });
    let payload =
        [&b"\x01\x02\x00\x05src/a\x10"[..], &[3; 16], b"\x01\x07", b"\x04\x01b\x10", &[4; 16], b"\x01\x07"]
            .concat();
    let encoded = ledger.encode().unwrap();
    let head = [&b"crossdock-ledger\n\x01"[..], &[payload.len() as u8]].concat();
    assert_eq!(encoded[..head.len()], head);
    assert_eq!(zstd::decode_all(&encoded[head.len()..]).unwrap(), payload);
    assert_eq!(Ledger::decode(&encoded).unwrap(), ledger);

    let packs = Packs::default();
    let (_, written, index, _) = write(&packs, Vec::new(), ChunkIndex::default(), &[b"chunk"]);
    let expected = [
        &b"crossdock-chunks\n\x01\x01\x00"[..],
        written[0].digest.as_bytes(),
        b"\x01\x00",
        Digest::of("chunk").as_bytes(),
        b"\x05",
    ]
    .concat();
    assert_eq!(index.unwrap(), expected);
}

/// Where large files are cut is part of the format.
#[test]
fn golden_chunks() {
    let data = noise(1, 1 << 20);
    let mut ends = Vec::new();
    let mut at = 0;
    while at < data.len() {
        at += chunk::chunk_length(&data[at..]);
        ends.push(at);
    }
    assert_eq!(Digest::of(format!("{ends:?}")).hex()[..16], *GOLDEN_ENDS, "{ends:?}");
    let lengths = ends.iter().scan(0, |before, end| Some(end - std::mem::replace(before, *end)));
    assert!(lengths.clone().all(|length| length <= 128 << 10), "{ends:?}");
    assert!((20..60).contains(&lengths.count()), "{ends:?}");
}

const GOLDEN_ENDS: &str = "65dcb27a528c1497";

#[test]
fn contents_come_back_and_are_stored_once() {
    let packs = Packs::default();
    let large = noise(7, 3 << 20);
    let (small, zeros) = (b"some text".to_vec(), vec![0; 300_000]);
    let files: [&[u8]; 6] = [&large, &small, &zeros, b"", &large, &small];
    let (extents, written, index, new) = write(&packs, Vec::new(), ChunkIndex::default(), &files);
    for (file, extents) in files.iter().zip(&extents) {
        assert_eq!(packs.read(&written, extents), *file);
    }
    assert_eq!((&extents[0], &extents[1]), (&extents[4], &extents[5]));
    assert_eq!(
        (extents[0].len(), &extents[2][..]),
        (1, &[Extent { pack: None, offset: 0, length: 300_000 }][..])
    );
    assert!(extents[3].is_empty() && (3 << 20..(3 << 20) + 10_000).contains(&new), "{new}");

    // One byte more in the middle: what is around is known.
    let mut known = ChunkIndex::default();
    known.add_part(&index.unwrap()).unwrap();
    let mut edited = large.clone();
    edited.insert(1_500_000, 7);
    let (extents, all, index, new) = write(&packs, written.clone(), known, &[&edited]);
    assert_eq!(packs.read(&all, &extents[0]), edited);
    assert!(new < 300_000, "{new}");
    assert_eq!(all[..written.len()], written);

    // Packs that are not among those that the snapshot has do not count.
    let mut known = ChunkIndex::default();
    known.add_part(&index.unwrap()).unwrap();
    let (extents, all, _, _) = write(&packs, Vec::new(), known, &[&edited]);
    assert_eq!(packs.read(&all, &extents[0]), edited);
}

/// A line more in the middle of a text: what is stored anew is a chunk or two.
#[test]
fn an_edited_line_of_a_large_text_adds_little() {
    use std::fmt::Write as _;
    let text =
        noise(3, 2 * 140_000).chunks(2).enumerate().fold(String::new(), |mut text, (number, chance)| {
            writeln!(text, "line {number} has {:05} and {:03}", u32::from(chance[0]) * 251, chance[1])
                .unwrap();
            text
        });
    assert!(text.len() > 4_000_000);
    let packs = Packs::default();
    let (_, written, index, _) = write(&packs, Vec::new(), ChunkIndex::default(), &[text.as_bytes()]);
    let mut known = ChunkIndex::default();
    known.add_part(&index.unwrap()).unwrap();
    let edited = text.replace("line 70000 has", "line 70000 had");
    assert_ne!(text, edited);
    let (extents, all, _, _) = write(&packs, written.clone(), known, &[edited.as_bytes()]);
    assert_eq!(packs.read(&all, &extents[0]), edited.as_bytes());
    let new = all[written.len()..].iter().map(Pack::raw_size).sum::<u64>();
    assert!(new <= 2 * chunk::CHUNK_MAX as u64, "{new}");
}

/// Raw sizes of the frames of each pack.
fn frames(packs: &[Pack]) -> Vec<Vec<u64>> {
    packs.iter().map(|pack| pack.frames.iter().map(|frame| frame.raw_size).collect()).collect()
}

/// Where frames and packs end, as `docs/formats.md` has it.
#[test]
fn frames_and_packs_end_where_the_page_says() {
    const KIB: usize = 1 << 10;
    let packs = Packs::default();
    let store = |files: &[Vec<u8>]| {
        let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
        let (extents, written, _, _) = write(&packs, Vec::new(), ChunkIndex::default(), &files);
        // Reading a file reads its whole pack.
        for (file, extents) in files.iter().zip(&extents).take(3) {
            assert_eq!(packs.read(&written, extents), *file);
        }
        written
    };
    let files = |size: usize, count: u64| (0..count).map(|seed| noise(seed + 1, size)).collect::<Vec<_>>();
    // A file's first chunk begins a frame if the one before has 256 KiB, and not if it has a byte less.
    let two = |size: usize| [noise(1, size), noise(2, size), noise(3, size)];
    assert_eq!(frames(&store(&two(128 * KIB))), [[256 << 10, 128 << 10]]);
    assert_eq!(frames(&store(&two(128 * KIB - 1))), [[3 * ((128 << 10) - 1)]]);
    // The small neighbours of a large file are not in its frames, which end behind the chunk that fills them.
    let large = frames(&store(&[noise(1, 100 * KIB), noise(2, 4000 * KIB), noise(3, 100 * KIB)]));
    let [large] = &large[..] else { panic!("{large:?}") };
    let [full @ .., end, neighbour] = &large[..] else { panic!("{large:?}") };
    assert!(full.len() > 5 && full.iter().all(|size| (512 << 10..640 << 10).contains(size)), "{large:?}");
    assert!(*end >= 256 << 10 && *neighbour == 100 << 10, "{large:?}");
    // A pack ends at 32 MiB.
    let many = store(&files(100 * KIB, 700));
    let sizes: Vec<u64> = many.iter().map(Pack::raw_size).collect();
    assert_eq!(sizes, [33_587_200, 33_587_200, 700 * 102_400 - 2 * 33_587_200]);
    assert!(frames(&many).iter().flatten().all(|size| *size <= 300 << 10));
}

/// Zeros are a hole from 4 KiB on, and holes are joined.
#[test]
fn zeros_are_holes_from_four_kib_on() {
    let packs = Packs::default();
    let store = |file: &[u8]| {
        let (mut extents, written, _, _) = write(&packs, Vec::new(), ChunkIndex::default(), &[file]);
        assert_eq!(packs.read(&written, &extents[0]), file);
        extents.remove(0)
    };
    assert_eq!(store(&[0; 4095]), [Extent { pack: Some(0), offset: 0, length: 4095 }]);
    assert_eq!(store(&[0; 4096]), [Extent { pack: None, offset: 0, length: 4096 }]);
    let mut sparse = vec![0; 3 << 20];
    sparse[1 << 20..][..100_000].copy_from_slice(&noise(1, 100_000));
    let extents = store(&sparse);
    assert!(matches!(extents[..], [Extent { pack: None, .. }, .., Extent { pack: None, .. }]), "{extents:?}");
    let stored: u64 = extents.iter().filter(|extent| extent.pack.is_some()).map(|extent| extent.length).sum();
    assert!((100_000..100_000 + 3 * chunk::CHUNK_MAX as u64).contains(&stored), "{extents:?}");
}

#[test]
fn files_that_change_are_refused() {
    let packs = Packs::default();
    let mut writer = Writer::new(Vec::new(), ChunkIndex::default(), 1, &packs);
    for (size, content) in [(3, &b"ab"[..]), (1, b"ab")] {
        let error = writer.file(b"dir/f", size, &mut &*content).unwrap_err();
        assert!(error.to_string().contains("dir/f changed"), "{error}");
    }
}

#[test]
fn indexes_are_merged() {
    let packs = Packs::default();
    let (_, first, a, _) = write(&packs, Vec::new(), ChunkIndex::default(), &[b"one"]);
    let (_, second, b, _) = write(&packs, Vec::new(), ChunkIndex::default(), &[b"two"]);
    let parts = [a.unwrap(), b.unwrap()];
    let alive: HashSet<Digest> = HashSet::from([first[0].digest]);
    let merged = merge_index(&parts, |pack| alive.contains(pack)).unwrap();
    assert_eq!(merged, parts[0]);
    let both = HashSet::from([first[0].digest, second[0].digest]);
    let mut index = ChunkIndex::default();
    index.add_part(&merge_index(&parts, |pack| both.contains(pack)).unwrap()).unwrap();
    assert!(index.len() == 2 && !index.is_empty());
    for at in 0..parts[0].len() {
        assert!(ChunkIndex::default().add_part(&parts[0][..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn what_is_alive_is_counted_once_and_the_rest_is_dropped() {
    let mut snapshot = sample();
    snapshot.packs.insert(0, Pack { digest: Digest::of("other"), ..snapshot.packs[0].clone() });
    for entry in &mut snapshot.entries {
        if let EntryKind::File { extents, .. } = &mut entry.kind {
            extents[0].pack = Some(1);
        }
    }
    let twice =
        EntryKind::File { size: 200, extents: vec![Extent { pack: Some(1), offset: 210, length: 200 }] };
    snapshot.entries.push(entry("z", twice));
    snapshot.validate().unwrap();
    assert_eq!(snapshot.alive(), [0, 400]);
    snapshot.drop_unused_packs();
    snapshot.validate().unwrap();
    assert_eq!((snapshot.packs.len(), snapshot.alive()), (1, vec![400]));
}

#[test]
fn hostile_tables_are_refused() {
    let broken = |change: &dyn Fn(&mut Snapshot)| {
        let mut snapshot = sample();
        change(&mut snapshot);
        assert!(snapshot.validate().is_err() && snapshot.encode().is_err(), "{snapshot:?}");
    };
    let set = |snapshot: &mut Snapshot, extents: Vec<Extent>| {
        let size = extents.iter().fold(0_u64, |sum, extent| sum.wrapping_add(extent.length));
        snapshot.entries[2].kind = EntryKind::File { size, extents };
    };
    let extent = |pack, offset, length| Extent { pack, offset, length };
    broken(&|snapshot| drop(snapshot.entries.remove(0)));
    broken(&|snapshot| drop(snapshot.entries.remove(1)));
    broken(&|snapshot| snapshot.entries.swap(1, 3));
    broken(&|snapshot| snapshot.entries.insert(1, snapshot.entries[1].clone()));
    broken(&|snapshot| snapshot.entries[2].path = b"a/../file".to_vec());
    broken(&|snapshot| snapshot.entries[2].path = b"a//file".to_vec());
    broken(&|snapshot| snapshot.entries[2].path = b"/file".to_vec());
    broken(&|snapshot| snapshot.entries[1].kind = EntryKind::Fifo);
    broken(&|snapshot| snapshot.entries[3].kind = EntryKind::HardLink { target: b"a".to_vec() });
    broken(&|snapshot| snapshot.entries[3].kind = EntryKind::HardLink { target: b"b".to_vec() });
    broken(&|snapshot| snapshot.entries.push(entry("b", EntryKind::HardLink { target: b"a-link".to_vec() })));
    broken(&|snapshot| snapshot.entries[1].metadata.mode = 0o10_000);
    broken(&|snapshot| snapshot.entries[1].metadata.mtime.nanos = 1_000_000_000);
    broken(&|snapshot| snapshot.packs[0].size += 1);
    broken(&|snapshot| snapshot.packs[0].frames[0].raw_size = u64::MAX);
    broken(&|snapshot| {
        snapshot.packs[0].frames.push(Frame { id: Digest::of("c"), raw_size: 0, size: 0 });
    });
    broken(&|snapshot| {
        snapshot.packs[0].frames[0].size = 0;
        snapshot.packs[0].size = 40;
    });
    broken(&|snapshot| snapshot.packs.clear());
    for target in [vec![], vec![b'a'; 4096], b"a\0b".to_vec()] {
        broken(&|snapshot| snapshot.entries.push(entry("b", EntryKind::Symlink { target: target.clone() })));
    }
    broken(&|snapshot| set(snapshot, vec![extent(Some(0), 400, 101)]));
    broken(&|snapshot| set(snapshot, vec![extent(Some(0), u64::MAX, 2)]));
    broken(&|snapshot| set(snapshot, vec![extent(Some(1), 0, 1)]));
    broken(&|snapshot| set(snapshot, vec![extent(None, 1, 1)]));
    broken(&|snapshot| set(snapshot, vec![extent(Some(0), 0, 0)]));
    broken(&|snapshot| set(snapshot, vec![extent(Some(0), 0, 5), extent(Some(0), 5, 5)]));
    broken(&|snapshot| set(snapshot, vec![extent(None, 0, 5), extent(None, 0, 5)]));
    broken(&|snapshot| set(snapshot, vec![extent(None, 0, u64::MAX), extent(Some(0), 0, 2)]));
    broken(&|snapshot| snapshot.entries[2].kind = EntryKind::File { size: 1, extents: Vec::new() });
}

/// Who adds up the sizes of everything with a name gets a number.
#[test]
fn sizes_together_have_a_limit() {
    let zeros =
        |length| EntryKind::File { size: length, extents: vec![Extent { pack: None, offset: 0, length }] };
    let half = (i64::MAX.cast_unsigned() - 5300 * 2).div_euclid(2);
    let mut snapshot = sample();
    snapshot.entries.extend([entry("b", zeros(half)), entry("c", zeros(half))]);
    snapshot.validate().unwrap();
    snapshot.entries.push(entry("d", zeros(2)));
    assert!(matches!(snapshot.validate(), Err(SnapshotError::Limit { .. })));
    snapshot.entries.pop();
    snapshot.entries.push(entry("d", EntryKind::HardLink { target: b"b".to_vec() }));
    assert!(matches!(snapshot.validate(), Err(SnapshotError::Limit { .. })));
}

/// A table may say, in a few kB, that it has more of something than there is memory for.
#[test]
fn what_grows_in_memory_is_refused_before_it_is_read() {
    const COUNT: usize = 1 << 20;
    let numbers = |list: &[u64]| {
        let mut encoder = Encoder::new();
        for number in list {
            encoder.uint(*number);
        }
        encoder.finish()
    };
    let count = COUNT as u64;
    // Shared, rest, mode, owner, group, seconds, nanoseconds; attributes; time of use, kind, size; extents.
    let cases = [
        ("entries", numbers(&[0, 0, count]), 10),
        ("extents", numbers(&[0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, count]), 3),
        ("attributes", numbers(&[0, 0, 1, 0, 0, 0, 0, 0, 0, 0, count]), 2),
        ("index", numbers(&[0, count]), 33),
        ("packs", numbers(&[count]), 34),
        ("frames", [numbers(&[1]), vec![0; 33], numbers(&[count])].concat(), 35),
    ];
    for (what, head, size) in cases {
        let payload = [&head[..], &vec![0; COUNT * size]].concat();
        assert!(sealed::encode(b"", 1, &payload).unwrap().len() < 10_000, "{what}");
        // Half a dozen bytes of memory for each, which is less than any of them takes.
        let error = codec::parse(&payload, codec::Room::of(6 * COUNT)).unwrap_err();
        let DecodeError::Malformed { at, .. } = error else { panic!("{what}: {error}") };
        let read = if what == "entries" { COUNT / 2 } else { 0 };
        assert!(at < head.len() + read, "{what} at {at} of {}: {error}", payload.len());
    }
    let payload = [numbers(&[0, 0, (crate::layer::ENTRIES_MAX + 1) as u64]), vec![0; 50 << 20]].concat();
    let wrapped = sealed::encode(b"crossdock-snapshot\n", 1, &payload).unwrap();
    let error = Snapshot::decode(&wrapped).unwrap_err();
    let SnapshotError::Malformed { source: DecodeError::Malformed { what, at: 2 }, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(what, "number of entries");
}

/// What is written can be read: the same things count in both directions.
#[test]
fn room_is_counted_alike_when_writing_and_reading() {
    let mut snapshot = sample();
    snapshot.entries[1].metadata.xattrs.insert(b"user.a".to_vec(), b"value".to_vec());
    let encoded = snapshot.encode().unwrap();
    let payload = sealed::decode(
        "snapshot",
        b"crossdock-snapshot\n",
        1,
        &encoded,
        sealed::Limits { bytes: 1 << 20, raw: 1 << 20 },
    );
    let payload = payload.unwrap();
    let needed = codec::Room::needed(&snapshot);
    assert_eq!(codec::parse(&payload, codec::Room::of(needed)).unwrap(), snapshot);
    assert!(codec::parse(&payload, codec::Room::of(needed - 1)).is_err());
}

#[test]
fn damage_is_noticed_or_harmless() {
    for bytes in [sample().encode().unwrap(), Ledger::default().encode().unwrap()] {
        for at in 0..bytes.len() {
            assert!(Snapshot::decode(&bytes[..at]).is_err() && Ledger::decode(&bytes[..at]).is_err());
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let _ = Snapshot::decode(&damaged);
                let _ = Ledger::decode(&damaged);
            }
        }
    }
    for mut bytes in [sample().encode().unwrap(), Ledger::default().encode().unwrap()] {
        bytes.push(0);
        assert!(Snapshot::decode(&bytes).is_err() && Ledger::decode(&bytes).is_err());
    }
    // A length that nothing stands for.
    let claim =
        [&b"crossdock-snapshot\n\x01\xff\xff\xff\xff\x03"[..], &zstd::encode_all(&b""[..], 3).unwrap()]
            .concat();
    assert!(Snapshot::decode(&claim).is_err());
}

#[test]
fn paths_are_ordered_as_directories_are_walked() {
    let mut paths = ["a-b", "a/b/c", "", "a", "a/b", "a.c", "b", "a/c"];
    paths.sort_by(|a, b| compare_paths(a.as_bytes(), b.as_bytes()));
    assert_eq!(paths, ["", "a", "a/b", "a/b/c", "a/c", "a-b", "a.c", "b"]);
}

#[test]
fn identities_are_of_kind_mode_and_content() {
    use crate::layer::{Entry, EntryKind, Toc};
    let tree = |mode, content: &str, owner, seconds, names: &[&str]| {
        let metadata =
            Metadata { mode, uid: owner, mtime: Timestamp { seconds, nanos: 0 }, ..Metadata::default() };
        let file = |path: String| {
            let kind = EntryKind::File { size: 1, content: Digest::of(content), offset: 512 };
            Entry { path: path.into_bytes(), metadata: metadata.clone(), kind }
        };
        let mut tree = Tree::empty();
        let entries = names.iter().map(|name| file(format!("d/{name}"))).collect();
        tree.apply(0, &Toc { entries, frames: Vec::new() }).unwrap();
        let crate::tree::Child::Directory(d) = tree.root().child(b"d").unwrap() else { panic!() };
        let file = d.child(names[0].as_bytes()).unwrap();
        (identity(&crate::tree::Child::Directory(d)), identity(&file))
    };
    let (dir, file) = tree(0o644, "1", 0, 5, &["a", "b"]);
    assert_eq!(tree(0o644, "1", 7, 9, &["a", "b"]), (dir, file));
    assert_ne!(tree(0o600, "1", 0, 5, &["a", "b"]).1, file);
    let other = tree(0o644, "2", 0, 5, &["a", "b"]);
    assert!(other.0 == dir && other.1 != file);
    let other = tree(0o644, "1", 0, 5, &["a", "c"]);
    assert!(other.0 != dir && other.1 == file);
}

fn any_extents() -> impl Strategy<Value = Vec<Extent>> {
    // Between two from packs come zeros, so that none could be joined.
    proptest::collection::vec((0_u32..2, 0_u64..250, 1_u64..250, 1_u64..9000), 0..4).prop_map(|list| {
        list.into_iter()
            .flat_map(|(pack, offset, length, zeros)| {
                [Extent { pack: Some(pack), offset, length }, Extent { pack: None, offset: 0, length: zeros }]
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn tables_round_trip(
        files in proptest::collection::btree_map("[a-c]{1,2}(/[a-c]{1,2}){0,2}", (any_extents(), any::<i64>(), 0_u32..1_000_000_000, 0_u32..0o10_000), 0..9),
    ) {
        let mut entries: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
        entries.insert(Vec::new(), entry("", EntryKind::Directory));
        for (path, (extents, seconds, nanos, mode)) in files {
            let mut parents = path.match_indices('/').map(|(at, _)| &path[..at]);
            if parents.clone().any(|parent| entries.get(parent.as_bytes()).is_some_and(|entry| entry.kind != EntryKind::Directory)) {
                continue;
            }
            for parent in &mut parents {
                entries.entry(parent.as_bytes().to_vec()).or_insert_with(|| entry(parent, EntryKind::Directory));
            }
            if entries.contains_key(path.as_bytes()) {
                continue;
            }
            let size = extents.iter().map(|extent| extent.length).sum();
            let mut file = entry(&path, EntryKind::File { size, extents });
            file.metadata.mtime = Timestamp { seconds, nanos };
            file.metadata.mode = mode;
            entries.insert(path.into_bytes(), file);
        }
        let mut entries: Vec<Entry> = entries.into_values().collect();
        entries.sort_by(|a, b| compare_paths(&a.path, &b.path));
        let pack = sample().packs.remove(0);
        let other = Pack { digest: Digest::of("other"), ..pack.clone() };
        let snapshot = Snapshot { packs: vec![pack, other], index: Vec::new(), entries };
        prop_assert_eq!(Snapshot::decode(&snapshot.encode().unwrap()).unwrap(), snapshot);
    }

    #[test]
    fn hostile_bytes_never_panic(bytes: Vec<u8>) {
        let _ = Snapshot::decode(&bytes);
        let _ = ChunkIndex::default().add_part(&[b"crossdock-chunks\n\x01", &bytes[..]].concat());
        for magic in ["snapshot", "ledger"] {
            let magic = format!("crossdock-{magic}\n");
            let wrapped = sealed::encode(magic.as_bytes(), 1, &bytes).unwrap();
            let _ = Snapshot::decode(&wrapped);
            let _ = Ledger::decode(&wrapped);
        }
    }

    #[test]
    fn any_content_comes_back(seed: u64, length in 0_usize..700_000, zeros in 0_usize..100_000, repeat in 1_usize..4) {
        let mut content = noise(seed, length);
        content.extend(vec![0; zeros]);
        let content = content.repeat(repeat);
        let packs = Packs::default();
        let (extents, written, _, _) = write(&packs, Vec::new(), ChunkIndex::default(), &[&content]);
        prop_assert_eq!(packs.read(&written, &extents[0]), content);
    }
}
