//! The bytes of a table of contents (`docs/formats.md`, "Snapshots").

use std::collections::HashMap;

use super::error::SnapshotError;
use super::sealed::{self, Limits};
use super::{Entry, EntryKind, Extent, Pack, Snapshot, compare_paths};
use crate::digest::Digest;
use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::layer::{
    ENTRIES_MAX, Frame, PATH_MAX, decode_metadata, encode_metadata, parent_path, path_problem,
};

const MAGIC: &[u8] = b"crossdock-snapshot\n";
const VERSION: u64 = 1;

/// An encoded table of contents may have this many bytes. One of a million files has about 20 MB.
pub const SNAPSHOT_BYTES_MAX: u64 = 256 << 20;

const LIMITS: Limits = Limits { bytes: SNAPSHOT_BYTES_MAX, raw: 1 << 30 };

/// Bytes of memory that a table may take, besides link texts and attributes' bytes, which are no more than the payload.
/// Two bytes of a payload can stand for a hundred in memory, and a payload can be thirty thousand times as long as what
/// it is compressed to: without a limit of its own, some kB would take all memory there is. [`ENTRIES_MAX`] files with
/// paths of 100 bytes and an extent each take about half of it.
const MEMORY_MAX: usize = 2 << 30;

/// What an extended attribute takes, without the bytes of its name and value: two vectors, twice while it is read.
const XATTR_MEMORY: usize = 4 * size_of::<Vec<u8>>();

/// All names of all files together may stand for this many bytes: what the kernel allows for one file. Whoever adds up
/// sizes need not fear an overflow.
const CONTENT_MAX: u64 = i64::MAX.cast_unsigned();

/// What is left of [`MEMORY_MAX`].
#[derive(Debug)]
pub(super) struct Room(usize);

impl Room {
    /// Takes room for `count` things of `size` bytes, and for `more` bytes.
    fn take(&mut self, count: u64, size: usize, more: usize) -> Option<()> {
        let bytes = usize::try_from(count).ok()?.checked_mul(size)?.checked_add(more)?;
        self.0 = self.0.checked_sub(bytes)?;
        Some(())
    }

    /// Takes room for the list that is next, before any of it is read.
    fn take_list(&mut self, d: &Decoder<'_>, size: usize) -> Result<(), DecodeError> {
        let count = d.clone().uint()?;
        self.take(count, size, 0).ok_or_else(|| d.malformed("count"))
    }

    /// Takes room for what is not an entry.
    fn take_blobs(&mut self, packs: &[Pack], index: &[Digest]) -> Option<()> {
        self.take(packs.len() as u64, size_of::<Pack>(), 0)?;
        let frames = packs.iter().map(|pack| pack.frames.len() as u64).sum();
        self.take(frames, size_of::<Frame>(), 0)?;
        self.take(index.len() as u64, size_of::<Digest>(), 0)
    }

    /// Takes room for an entry.
    fn take_entry(&mut self, entry: &Entry) -> Option<()> {
        self.take(1, size_of::<Entry>(), entry.path.len())?;
        self.take(entry.metadata.xattrs.len() as u64, XATTR_MEMORY, 0)?;
        match &entry.kind {
            EntryKind::File { extents, .. } => self.take(extents.len() as u64, size_of::<Extent>(), 0),
            _ => Some(()),
        }
    }
}

#[cfg(test)]
impl Room {
    /// So many bytes.
    pub(super) fn of(bytes: usize) -> Self {
        Self(bytes)
    }

    /// What a table takes.
    pub(super) fn needed(snapshot: &Snapshot) -> usize {
        let mut room = Self(MEMORY_MAX);
        let taken = room.take_blobs(&snapshot.packs, &snapshot.index);
        let taken = taken.and_then(|()| snapshot.entries.iter().try_for_each(|entry| room.take_entry(entry)));
        assert_eq!(taken, Some(()));
        MEMORY_MAX - room.0
    }
}

impl Snapshot {
    /// The table of contents as bytes. Equal ones have equal bytes, as long as the compressor is the same.
    ///
    /// # Errors
    /// If it breaks its invariants, or is so large that [`Snapshot::decode`] would refuse it.
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
        let payload = encoder.finish();
        if payload.len() > LIMITS.raw {
            return Err(SnapshotError::Limit { what: "a table of contents", limit: LIMITS.raw as u64 });
        }
        let bytes =
            sealed::encode(MAGIC, VERSION, &payload).map_err(SnapshotError::io("compressing a snapshot"))?;
        if bytes.len() as u64 > LIMITS.bytes {
            let what = "a compressed table of contents";
            return Err(SnapshotError::Limit { what, limit: LIMITS.bytes });
        }
        Ok(bytes)
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
        let full =
            || SnapshotError::Limit { what: "a table of contents in memory", limit: MEMORY_MAX as u64 };
        let mut room = Room(MEMORY_MAX);
        room.take_blobs(&self.packs, &self.index).ok_or_else(full)?;
        // How long each file is that may have other names (0 if it is no regular one); what is another name has none.
        let mut leaves: HashMap<&[u8], Option<u64>> = HashMap::new();
        let mut content = 0_u64;
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
            room.take_entry(entry).ok_or_else(full)?;
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
            let (length, names) = match &entry.kind {
                EntryKind::Directory => {
                    above.push(&entry.path);
                    continue;
                }
                EntryKind::HardLink { target } => {
                    let first = leaves.get(&target[..]).copied().flatten();
                    let first =
                        first.ok_or_else(|| wrong("is another name of nothing that comes before it"))?;
                    (first, None)
                }
                EntryKind::File { size, extents } => {
                    if !are_right(extents, *size, &raw_sizes) {
                        return Err(wrong("has a content that cannot be"));
                    }
                    (*size, Some(*size))
                }
                EntryKind::Symlink { target } => {
                    if target.is_empty() || target.len() > PATH_MAX || target.contains(&0) {
                        return Err(wrong("is a link with a text that cannot be"));
                    }
                    (0, Some(0))
                }
                EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } | EntryKind::Fifo => {
                    (0, Some(0))
                }
            };
            leaves.insert(&entry.path, names);
            content = content
                .checked_add(length)
                .filter(|content| *content <= CONTENT_MAX)
                .ok_or(SnapshotError::Limit { what: "files", limit: CONTENT_MAX })?;
        }
        Ok(())
    }
}

fn raw_size(number: usize, pack: &Pack) -> Result<u64, SnapshotError> {
    if pack.frames.iter().any(|frame| frame.raw_size == 0 || frame.size == 0) {
        return Err(SnapshotError::Pack { number, problem: "has an empty frame" });
    }
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
    parse(&payload, Room(MEMORY_MAX))
}

/// Reads a payload. Nothing is allocated for entries that there is no room for.
pub(super) fn parse(payload: &[u8], mut room: Room) -> Result<Snapshot, DecodeError> {
    let mut decoder = Decoder::new(payload);
    room.take_list(&decoder, size_of::<Pack>())?;
    let packs = decoder.list(|d| {
        let digest = d.digest()?;
        room.take_list(d, size_of::<Frame>())?;
        let frames = d.list(|d| Ok(Frame { id: d.digest()?, raw_size: d.uint()?, size: d.uint()? }))?;
        let size = frames.iter().try_fold(0_u64, |sum, frame| sum.checked_add(frame.size));
        Ok(Pack { digest, size: size.ok_or_else(|| d.malformed("pack"))?, frames })
    })?;
    room.take_list(&decoder, size_of::<Digest>())?;
    let index = decoder.list(Decoder::digest)?;
    let mut before: Vec<u8> = Vec::new();
    if decoder.clone().uint()? > ENTRIES_MAX as u64 {
        return Err(decoder.malformed("number of entries"));
    }
    let entries = decoder.list(|d| {
        let shared: usize = d.small("path")?;
        let suffix = d.bytes()?;
        let common = before.get(..shared).ok_or_else(|| d.malformed("path"))?;
        let is_longest = before.get(shared).is_none_or(|byte| suffix.first() != Some(byte));
        // Common parts are written once and stored many times.
        room.take(1, size_of::<Entry>(), shared + suffix.len())
            .filter(|()| is_longest)
            .ok_or_else(|| d.malformed("path"))?;
        let path = [common, suffix].concat();
        before.clone_from(&path);
        read_entry(d, path, &mut room)
    })?;
    decoder.finish()?;
    Ok(Snapshot { packs, index, entries })
}

fn read_entry(d: &mut Decoder<'_>, path: Vec<u8>, room: &mut Room) -> Result<Entry, DecodeError> {
    // Mode, owner, group, seconds and nanoseconds come before the attributes.
    let mut ahead = d.clone();
    for _ in 0..5 {
        ahead.uint()?;
    }
    room.take_list(&ahead, XATTR_MEMORY)?;
    let metadata = decode_metadata(d)?;
    let used = d.small("time of use")?;
    let kind = match d.uint()? {
        0 => EntryKind::Directory,
        1 => {
            let size = d.uint()?;
            room.take_list(d, size_of::<Extent>())?;
            let extents = d.list(|d| {
                let pack = match d.uint()? {
                    0 => None,
                    place => Some(u32::try_from(place - 1).map_err(|_| d.malformed("pack"))?),
                };
                Ok(Extent { pack, offset: d.uint()?, length: d.uint()? })
            })?;
            EntryKind::File { size, extents }
        }
        2 => EntryKind::HardLink { target: d.bytes()?.to_vec() },
        3 => EntryKind::Symlink { target: d.bytes()?.to_vec() },
        4 => EntryKind::CharDevice { major: d.small("device")?, minor: d.small("device")? },
        5 => EntryKind::BlockDevice { major: d.small("device")?, minor: d.small("device")? },
        6 => EntryKind::Fifo,
        _ => return Err(d.malformed("kind")),
    };
    Ok(Entry { path, metadata, used, kind })
}
