//! What the tests of layers share.

mod disk;
mod format;
mod hostile;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::digest::Digest;

/// An entry with its content.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) entry: Entry,
    pub(crate) content: Vec<u8>,
}

pub(crate) fn metadata(mode: u32) -> Metadata {
    Metadata { mode, mtime: Timestamp { seconds: 1_700_000_000, nanos: 0 }, ..Metadata::default() }
}

pub(crate) fn sample(path: &str, kind: EntryKind) -> Sample {
    let metadata = if kind == EntryKind::Whiteout { Metadata::default() } else { metadata(0o644) };
    Sample { entry: Entry { path: path.into(), metadata, kind }, content: Vec::new() }
}

pub(crate) fn directory(path: &str) -> Sample {
    let mut sample = sample(path, EntryKind::Directory { opaque: false, implied: false });
    sample.entry.metadata.mode = 0o755;
    sample
}

pub(crate) fn file(path: &str, content: impl Into<Vec<u8>>) -> Sample {
    let content = content.into();
    let kind = EntryKind::File { size: content.len() as u64, content: Digest::of(&content), offset: 0 };
    Sample { content, ..sample(path, kind) }
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(mut seed: u64, length: usize) -> Vec<u8> {
    std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 32) as u8
    })
    .take(length)
    .collect()
}

pub(crate) fn write(samples: &[Sample], compression: Compression) -> (FinishedLayer, Vec<u8>) {
    let mut blob = Vec::new();
    let mut writer = LayerWriter::new(&mut blob, LayerOptions { compression, threads: 2 }).unwrap();
    for sample in samples {
        writer.entry(&sample.entry, Some(&mut &*sample.content)).unwrap();
    }
    (writer.finish().unwrap(), blob)
}

/// The TOC that scanning a written layer must give: marks that a tar has no place for are lost.
pub(crate) fn as_scanned(toc: &Toc) -> Toc {
    let mut entries = toc.entries.clone();
    for entry in &mut entries {
        if let EntryKind::Directory { implied, .. } = &mut entry.kind {
            *implied = false;
        }
    }
    Toc { entries, frames: Vec::new() }
}

/// Valid entry lists: a small set of names, so that things meet; parents need not be there.
pub(crate) fn samples() -> impl Strategy<Value = Vec<Sample>> {
    let component = prop_oneof![
        Just(b"a".to_vec()),
        Just(b"b".to_vec()),
        Just(b"c-\xff\xfe".to_vec()),
        Just("ü".repeat(60).into_bytes()),
        Just(vec![b'x'; 200]),
    ];
    let path = prop::collection::vec(component, 1..4).prop_map(|parts| parts.join(&b'/'));
    let kind = prop_oneof![
        4 => any::<bool>().prop_map(|opaque| (0, u64::from(opaque))),
        4 => prop_oneof![0_u64..2000, 65_000_u64..66_000, Just(1_500_000)].prop_map(|size| (1, size)),
        1 => Just((2, 0)),
        1 => Just((3, 0)),
        1 => Just((4, 0)),
        1 => Just((5, 0)),
        2 => Just((6, 0)),
        2 => any::<u64>().prop_map(|seed| (7, seed)),
    ];
    let xattrs = prop_oneof![
        3 => Just(BTreeMap::new()),
        1 => Just(BTreeMap::from([(b"user.note".to_vec(), b"line\nline\0=".to_vec())])),
    ];
    let metadata =
        (0_u32..0o10000, prop_oneof![Just(0), Just(1000), Just(4_000_000)], -5_i64..1 << 34, xattrs)
            .prop_map(|(mode, id, seconds, xattrs)| Metadata {
                mode,
                uid: id,
                gid: id,
                mtime: Timestamp { seconds, nanos: 0 },
                xattrs,
            });
    prop::collection::vec((path, kind, metadata), 0..25).prop_map(|list| {
        let mut kept: Vec<Sample> = Vec::new();
        for (path, (kind, value), mut metadata) in list {
            let is_directory = |s: &Sample| matches!(s.entry.kind, EntryKind::Directory { .. });
            let below = |a: &[u8], b: &[u8]| a.len() > b.len() && a.starts_with(b) && a[b.len()] == b'/';
            let clash = kept.iter().any(|s| {
                s.entry.path == path
                    || below(&path, &s.entry.path) && !is_directory(s)
                    || below(&s.entry.path, &path) && kind != 0
            });
            if clash {
                continue;
            }
            let mut content = Vec::new();
            let kind = match kind {
                0 => EntryKind::Directory { opaque: value == 1, implied: false },
                1 => {
                    content = noise(value + 1, value as usize);
                    EntryKind::File { size: value, content: Digest::of(&content), offset: 0 }
                }
                2 => EntryKind::Symlink { target: b"../somewhere".to_vec() },
                3 => EntryKind::Fifo,
                4 => EntryKind::CharDevice { major: 5, minor: 1 },
                5 => EntryKind::BlockDevice { major: 8, minor: 300 },
                6 => EntryKind::Whiteout,
                _ => {
                    let files: Vec<&Sample> =
                        kept.iter().filter(|s| matches!(s.entry.kind, EntryKind::File { .. })).collect();
                    if files.is_empty() {
                        continue;
                    }
                    let first = files[(value % files.len() as u64) as usize];
                    metadata = first.entry.metadata.clone();
                    EntryKind::HardLink { target: first.entry.path.clone() }
                }
            };
            if kind == EntryKind::Whiteout {
                metadata = Metadata::default();
            }
            kept.push(Sample { entry: Entry { path, metadata, kind }, content });
        }
        kept
    })
}
