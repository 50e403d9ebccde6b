//! Which chunks are in which packs (`docs/formats.md`, "Index parts").

use std::collections::{HashMap, HashSet};

use super::error::SnapshotError;
use crate::digest::Digest;
use crate::encoding::{DecodeError, Decoder, Encoder};

const MAGIC: &[u8] = b"crossdock-chunks\n";
const VERSION: u64 = 1;

/// An index part may have this many bytes: millions of chunks.
pub const INDEX_BYTES_MAX: u64 = 256 << 20;

/// A pack with its chunks, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Indexed {
    pub(super) pack: Digest,
    pub(super) chunks: Vec<(Digest, u64)>,
}

/// Where chunks are.
#[derive(Debug, Default)]
pub struct ChunkIndex {
    packs: Vec<Digest>,
    /// Pack, offset and length, by the chunk's digest.
    chunks: HashMap<Digest, (usize, u64, u64)>,
}

impl ChunkIndex {
    /// Adds what an index part says.
    ///
    /// # Errors
    /// If it is none.
    pub fn add_part(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        for Indexed { pack, chunks } in decode(bytes)? {
            let place = self.packs.len();
            self.packs.push(pack);
            let mut offset = 0_u64;
            for (digest, length) in chunks {
                self.chunks.entry(digest).or_insert((place, offset, length));
                offset = offset.saturating_add(length);
            }
        }
        Ok(())
    }

    /// How many chunks are known.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The chunks with the digests of their packs, offsets and lengths.
    pub(super) fn into_chunks(self) -> impl Iterator<Item = (Digest, Digest, u64, u64)> {
        let packs = self.packs;
        self.chunks
            .into_iter()
            .map(move |(digest, (pack, offset, length))| (digest, packs[pack], offset, length))
    }
}

/// Makes one part of several, without the packs that are not alive.
///
/// # Errors
/// If one of them is none.
pub fn merge_index(parts: &[Vec<u8>], is_alive: impl Fn(&Digest) -> bool) -> Result<Vec<u8>, SnapshotError> {
    let mut merged = Vec::new();
    let mut known = HashSet::new();
    for part in parts {
        let packs = decode(part)?.into_iter();
        merged.extend(packs.filter(|indexed| is_alive(&indexed.pack) && known.insert(indexed.pack)));
    }
    Ok(encode(&merged))
}

pub(super) fn encode(packs: &[Indexed]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.uint(VERSION);
    encoder.list(packs, |e, indexed| {
        e.digest(&indexed.pack);
        e.list(&indexed.chunks, |e, (digest, length)| {
            e.digest(digest).uint(*length);
        });
    });
    [MAGIC, &encoder.finish()].concat()
}

fn decode(bytes: &[u8]) -> Result<Vec<Indexed>, SnapshotError> {
    read(bytes).map_err(SnapshotError::malformed("index part"))
}

fn read(bytes: &[u8]) -> Result<Vec<Indexed>, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    if bytes.len() as u64 > INDEX_BYTES_MAX || decoder.take(MAGIC.len())? != MAGIC {
        return Err(DecodeError::Malformed { what: "index part", at: 0 });
    }
    let found = decoder.uint()?;
    if found != VERSION {
        return Err(DecodeError::Version { what: "index part", found, known: VERSION });
    }
    let packs = decoder.list(|d| {
        let pack = d.digest()?;
        let mut raw = 0_u64;
        let chunks = d.list(|d| {
            let (digest, length) = (d.digest()?, d.uint()?);
            raw = raw.checked_add(length).filter(|_| length > 0).ok_or_else(|| d.malformed("chunk"))?;
            Ok((digest, length))
        })?;
        Ok(Indexed { pack, chunks })
    })?;
    decoder.finish()?;
    Ok(packs)
}
