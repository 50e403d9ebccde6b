//! The bytes of a table of contents (`docs/formats.md`, "Snapshots").

use std::collections::HashMap;

use super::error::SnapshotError;
use super::sealed::{self, Limits};
use super::{Entry, EntryKind, Extent, Pack, Snapshot, compare_paths};
use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::layer::{ENTRIES_MAX, Frame, decode_metadata, encode_metadata, parent_path, path_problem};

const MAGIC: &[u8] = b"crossdock-snapshot\n";
const VERSION: u64 = 1;

/// An encoded table of contents may have this many bytes. One of a million files has about 20 MB.
pub const SNAPSHOT_BYTES_MAX: u64 = 256 << 20;

const LIMITS: Limits = Limits { bytes: SNAPSHOT_BYTES_MAX, raw: 1 << 30 };

impl Snapshot {
    /// The table of contents as bytes. Equal ones have equal bytes, as long as the compressor is the same.
    ///
    /// # Errors
    /// If it breaks its invariants.
    pub fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        self.validate()?;
        let mut encoder = Encoder::new();
        encoder.list(&self.packs, |e, pack| {
            e.digest(&pack.digest);
            e.list(&pack.frames, |e, frame| {
                e.digest(&frame.id).uint(frame.raw_size).uint(frame.size);
            });
        });
        encoder.list(&self.index, |e, part| {
            e.digest(part);
        });
        let mut before: &[u8] = b"";
        encoder.list(&self.entries, |e, entry| {
            write_path(e, &entry.path, before);
            before = &entry.path;
            write_entry(e, entry);
        });
        sealed::encode(MAGIC, VERSION, &encoder.finish()).map_err(SnapshotError::io("compressing a snapshot"))
    }

    /// Reads what [`Snapshot::encode`] wrote. Time and memory are bounded by the length of `bytes` and what they say of
    /// themselves, which is bounded.
    ///
    /// # Errors
    /// Anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let snapshot = read(bytes).map_err(SnapshotError::malformed("snapshot"))?;
        snapshot.validate()?;
        Ok(snapshot)
    }

    /// Checks the invariants.
    ///
    /// # Errors
    /// The first one that does not hold.
    pub fn validate(&self) -> Result<(), SnapshotError> {
        let raw_sizes = self.packs.iter().enumerate().map(|(number, pack)| raw_size(number, pack));
        let raw_sizes = raw_sizes.collect::<Result<Vec<_>, _>>()?;
        if self.entries.len() > ENTRIES_MAX {
            return Err(SnapshotError::Limit { what: "a number of entries", limit: ENTRIES_MAX as u64 });
        }
        let root = self.entries.first();
        if !root.is_some_and(|root| root.path.is_empty() && root.kind == EntryKind::Directory) {
            return Err(SnapshotError::entry(b"", "is not the first, or no directory"));
        }
        let mut leaves: HashMap<&[u8], bool> = HashMap::new();
        // The directories that the last entry is in, with itself.
        let mut above: Vec<&[u8]> = Vec::new();
        let mut before: Option<&[u8]> = None;
        for entry in &self.entries {
            let wrong = |problem| SnapshotError::entry(&entry.path, problem);
            if let Some(problem) = path_problem(&entry.path) {
                return Err(wrong(problem));
            }
            if before.is_some_and(|before| compare_paths(before, &entry.path).is_ge()) {
                return Err(wrong("is not in its place, or is there twice"));
            }
            before = Some(&entry.path);
            if let Some(parent) = parent_path(&entry.path) {
                while above.last().is_some_and(|last| *last != parent) {
                    above.pop();
                }
                if above.is_empty() {
                    return Err(wrong("is in no directory"));
                }
            }
            if entry.metadata.mode > 0o7777 || entry.metadata.mtime.nanos >= 1_000_000_000 {
                return Err(wrong("has a mode or a time that there is not"));
            }
            match &entry.kind {
                EntryKind::Directory => above.push(&entry.path),
                EntryKind::HardLink { target } => {
                    if leaves.get(&target[..]) != Some(&true) {
                        return Err(wrong("is another name of nothing that comes before it"));
                    }
                    leaves.insert(&entry.path, false);
                }
                EntryKind::File { size, extents } => {
                    if !are_right(extents, *size, &raw_sizes) {
                        return Err(wrong("has a content that cannot be"));
                    }
                    leaves.insert(&entry.path, true);
                }
                _ => {
                    leaves.insert(&entry.path, true);
                }
            }
        }
        Ok(())
    }
}

fn raw_size(number: usize, pack: &Pack) -> Result<u64, SnapshotError> {
    let add = |sum: Option<(u64, u64)>, frame: &Frame| {
        let (raw, size) = sum?;
        Some((raw.checked_add(frame.raw_size)?, size.checked_add(frame.size)?))
    };
    let sums = pack.frames.iter().fold(Some((0, 0)), add);
    let (raw, _) = sums
        .filter(|(raw, size)| *raw > 0 && *size == pack.size)
        .ok_or(SnapshotError::Pack { number, problem: "is not the sum of its frames" })?;
    Ok(raw)
}

/// Whether extents make up a file of this size.
fn are_right(extents: &[Extent], size: u64, raw_sizes: &[u64]) -> bool {
    let mut sum = 0_u64;
    let mut before: Option<&Extent> = None;
    for extent in extents {
        let lies_within = match extent.pack {
            None => extent.offset == 0,
            Some(pack) => raw_sizes
                .get(pack as usize)
                .is_some_and(|raw| extent.offset.checked_add(extent.length).is_some_and(|end| end <= *raw)),
        };
        if !lies_within || extent.length == 0 || before.is_some_and(|before| before.joins(extent)) {
            return false;
        }
        let Some(more) = sum.checked_add(extent.length) else { return false };
        sum = more;
        before = Some(extent);
    }
    sum == size
}

fn write_path(e: &mut Encoder, path: &[u8], before: &[u8]) {
    // Neighbours have most of their path in common.
    let shared = path.iter().zip(before).take_while(|(a, b)| a == b).count();
    e.uint(shared as u64).bytes(&path[shared..]);
}

fn write_entry(e: &mut Encoder, entry: &Entry) {
    encode_metadata(e, &entry.metadata);
    e.uint(entry.used.into());
    match &entry.kind {
        EntryKind::Directory => {
            e.uint(0);
        }
        EntryKind::File { size, extents } => {
            e.uint(1).uint(*size);
            e.list(extents, |e, extent| {
                e.uint(extent.pack.map_or(0, |pack| u64::from(pack) + 1))
                    .uint(extent.offset)
                    .uint(extent.length);
            });
        }
        EntryKind::HardLink { target } => {
            e.uint(2).bytes(target);
        }
        EntryKind::Symlink { target } => {
            e.uint(3).bytes(target);
        }
        EntryKind::CharDevice { major, minor } => {
            e.uint(4).uint((*major).into()).uint((*minor).into());
        }
        EntryKind::BlockDevice { major, minor } => {
            e.uint(5).uint((*major).into()).uint((*minor).into());
        }
        EntryKind::Fifo => {
            e.uint(6);
        }
    }
}

fn read(bytes: &[u8]) -> Result<Snapshot, DecodeError> {
    let payload = sealed::decode("snapshot", MAGIC, VERSION, bytes, LIMITS)?;
    let mut decoder = Decoder::new(&payload);
    let packs = decoder.list(|d| {
        let digest = d.digest()?;
        let frames = d.list(|d| Ok(Frame { id: d.digest()?, raw_size: d.uint()?, size: d.uint()? }))?;
        let size = frames.iter().try_fold(0_u64, |sum, frame| sum.checked_add(frame.size));
        Ok(Pack { digest, size: size.ok_or_else(|| d.malformed("pack"))?, frames })
    })?;
    let index = decoder.list(Decoder::digest)?;
    let mut before: Vec<u8> = Vec::new();
    // Common parts are written once and would be stored many times.
    let mut left = LIMITS.raw;
    let entries = decoder.list(|d| {
        let shared: usize = d.small("path")?;
        let suffix = d.bytes()?;
        let path = [before.get(..shared).ok_or_else(|| d.malformed("path"))?, suffix].concat();
        let is_longest = before.get(shared).is_none_or(|byte| suffix.first() != Some(byte));
        left = left.checked_sub(path.len()).filter(|_| is_longest).ok_or_else(|| d.malformed("path"))?;
        before.clone_from(&path);
        read_entry(d, path)
    })?;
    decoder.finish()?;
    Ok(Snapshot { packs, index, entries })
}

fn read_entry(d: &mut Decoder<'_>, path: Vec<u8>) -> Result<Entry, DecodeError> {
    let metadata = decode_metadata(d)?;
    let used = d.small("time of use")?;
    let kind = match d.uint()? {
        0 => EntryKind::Directory,
        1 => EntryKind::File {
            size: d.uint()?,
            extents: d.list(|d| {
                let pack = match d.uint()? {
                    0 => None,
                    place => Some(u32::try_from(place - 1).map_err(|_| d.malformed("pack"))?),
                };
                Ok(Extent { pack, offset: d.uint()?, length: d.uint()? })
            })?,
        },
        2 => EntryKind::HardLink { target: d.bytes()?.to_vec() },
        3 => EntryKind::Symlink { target: d.bytes()?.to_vec() },
        4 => EntryKind::CharDevice { major: d.small("device")?, minor: d.small("device")? },
        5 => EntryKind::BlockDevice { major: d.small("device")?, minor: d.small("device")? },
        6 => EntryKind::Fifo,
        _ => return Err(d.malformed("kind")),
    };
    Ok(Entry { path, metadata, used, kind })
}
