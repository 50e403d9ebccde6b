//! Snapshots: a directory with all that is in it, as a table of contents and packs (`docs/formats.md`, "Snapshots").
//!
//! Files are cut into *chunks*, which are stored once each, one behind the other, in *packs*. A pack is a row of compressed
//! frames, each of which can be fetched and verified by itself. The table of contents says for every file in which packs its
//! content lies, and where. *Index parts* say which chunks the packs have, so that whoever makes the next snapshot stores
//! only what is new.

mod chunk;
mod codec;
mod error;
mod index;
mod ledger;
pub(crate) mod sealed;
mod write;

use std::cmp::Ordering;

use crate::digest::Digest;
use crate::layer::{Frame, Metadata};

pub use codec::SNAPSHOT_BYTES_MAX;
pub use error::SnapshotError;
pub use index::{ChunkIndex, INDEX_BYTES_MAX, merge_index};
pub use ledger::{Identity, LEDGER_BYTES_MAX, Ledger, Sight, identity};
pub use write::{PackSink, Writer, Written};

/// The table of contents of a directory.
///
/// Invariants ([`Snapshot::validate`] checks them, and decoding does so by itself): entries are sorted by [`compare_paths`] and
/// unique; the first one is the root directory, whose path is empty; whatever is not the root lies in a directory that is
/// there; extents lie within their packs, add up to their file's size, and none could be joined with the next; no frame is
/// empty; link texts are such as Linux allows; and the sizes of all names of files add up to less than 2⁶³.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The packs that extents refer to.
    pub packs: Vec<Pack>,
    /// The blobs that say which chunks are in the packs.
    pub index: Vec<Digest>,
    /// Everything in the directory.
    pub entries: Vec<Entry>,
}

/// A blob with the content of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes: the sum of the frames'.
    pub size: u64,
    /// Its frames (zstd), one behind the other, without anything between them.
    pub frames: Vec<Frame>,
}

/// Something in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, relative to the directory, by the rules of [`layer::Entry::path`](crate::layer::Entry::path).
    pub path: Vec<u8>,
    /// Its metadata; the time to the nanosecond.
    pub metadata: Metadata,
    /// When it was used last, in hours since the Unix epoch.
    pub used: u32,
    /// What it is.
    pub kind: EntryKind,
}

/// See [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its length in bytes.
        size: u64,
        /// Its content, from the beginning to the end.
        extents: Vec<Extent>,
    },
    /// Another name of an earlier entry that is neither a directory nor a hard link.
    HardLink {
        /// That entry's path.
        target: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// The link's text, as it is.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The place among [`Snapshot::packs`] of the pack that has it; `None` for zeros, which are stored nowhere.
    pub pack: Option<u32>,
    /// Where in the pack it begins, in uncompressed bytes; 0 for zeros.
    pub offset: u64,
    /// How many bytes it has: at least one.
    pub length: u64,
}

impl Extent {
    /// Whether `next`, which follows it in a file, follows it in the pack too.
    fn joins(&self, next: &Self) -> bool {
        self.pack == next.pack
            && (self.pack.is_none() || self.offset.checked_add(self.length) == Some(next.offset))
    }
}

impl Pack {
    /// Its length without compression.
    pub fn raw_size(&self) -> u64 {
        self.frames.iter().fold(0, |sum: u64, frame| sum.saturating_add(frame.raw_size))
    }
}

impl Snapshot {
    /// The blobs that have the rest of it.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> + '_ {
        self.index.iter().copied().chain(self.packs.iter().map(|pack| pack.digest))
    }

    /// How many uncompressed bytes of each pack some file has.
    pub fn alive(&self) -> Vec<u64> {
        let mut ranges: Vec<Vec<(u64, u64)>> = vec![Vec::new(); self.packs.len()];
        for extent in self.extents() {
            if let Some(ranges) = extent.pack.and_then(|pack| ranges.get_mut(pack as usize)) {
                ranges.push((extent.offset, extent.offset.saturating_add(extent.length)));
            }
        }
        let alive = |mut ranges: Vec<(u64, u64)>| {
            ranges.sort_unstable();
            let (mut sum, mut beyond) = (0, 0);
            for (start, end) in ranges {
                sum += end.saturating_sub(start.max(beyond));
                beyond = beyond.max(end);
            }
            sum
        };
        ranges.into_iter().map(alive).collect()
    }

    /// Leaves out packs that no file has anything in.
    pub fn drop_unused_packs(&mut self) {
        let mut is_used = vec![false; self.packs.len()];
        for pack in self.extents().filter_map(|extent| extent.pack) {
            if let Some(is_used) = is_used.get_mut(pack as usize) {
                *is_used = true;
            }
        }
        let mut places = Vec::with_capacity(is_used.len());
        let mut next = 0;
        for is_used in &is_used {
            places.push(next);
            next += u32::from(*is_used);
        }
        let mut used = is_used.iter();
        self.packs.retain(|_| used.next().copied().unwrap_or(false));
        for entry in &mut self.entries {
            if let EntryKind::File { extents, .. } = &mut entry.kind {
                for pack in extents.iter_mut().filter_map(|extent| extent.pack.as_mut()) {
                    *pack = places.get(*pack as usize).copied().unwrap_or(*pack);
                }
            }
        }
    }

    fn extents(&self) -> impl Iterator<Item = &Extent> {
        self.entries.iter().flat_map(|entry| match &entry.kind {
            EntryKind::File { extents, .. } => &extents[..],
            _ => &[],
        })
    }
}

/// The order of entries: what is in a directory comes right behind it, and siblings are sorted by the bytes of their names.
pub fn compare_paths(a: &[u8], b: &[u8]) -> Ordering {
    // NUL, which no path has, is below all other bytes.
    let byte = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(byte).cmp(b.iter().map(byte))
}

#[cfg(test)]
mod tests;
