//! What follows the frames of a zstd blob: the TOC and a footer that locates it, both in skippable frames
//! (RFC 8878, 3.1.2), which decoders pass over.

use std::io::{Read, Seek, SeekFrom};

use super::error::LayerError;
use super::toc::Toc;
use crate::digest::Digest;

/// The magic number of our skippable frames, `0x184D2A5C`: one of the sixteen that there are.
const SKIPPABLE: [u8; 4] = [0x5c, 0x2a, 0x4d, 0x18];

/// Ends every blob; the last byte is the version.
const FOOTER_MAGIC: &[u8; 16] = b"crossdock-layer\x01";

/// Bytes of the footer's content: offset, length and raw length of the TOC, its SHA-256, magic.
const FOOTER_CONTENT: usize = 8 + 8 + 8 + 32 + 16;

/// Bytes of the footer with its skippable frame's header.
const FOOTER: usize = 8 + FOOTER_CONTENT;

/// The largest TOC that is read from a blob: what [`super::ENTRIES_MAX`] entries of 64 bytes take.
const TOC_MAX: u64 = 256 << 20;

/// The trailer of a blob whose frames take `frames_size` bytes; `None` if the TOC is too large for it.
pub(super) fn encode(
    compressed_toc: &[u8],
    raw_length: u64,
    toc: &Digest,
    frames_size: u64,
) -> Option<Vec<u8>> {
    if raw_length > TOC_MAX {
        return None;
    }
    let length = u32::try_from(compressed_toc.len()).ok()?;
    let mut bytes = Vec::with_capacity(8 + compressed_toc.len() + FOOTER);
    bytes.extend_from_slice(&SKIPPABLE);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(compressed_toc);
    bytes.extend_from_slice(&SKIPPABLE);
    bytes.extend_from_slice(&(FOOTER_CONTENT as u32).to_le_bytes());
    bytes.extend_from_slice(&(frames_size + 8).to_le_bytes());
    bytes.extend_from_slice(&u64::from(length).to_le_bytes());
    bytes.extend_from_slice(&raw_length.to_le_bytes());
    bytes.extend_from_slice(toc.as_bytes());
    bytes.extend_from_slice(FOOTER_MAGIC);
    Some(bytes)
}

impl Toc {
    /// Reads the TOC at the end of a zstd blob that [`super::LayerWriter`] wrote; `None` if the blob has none, as
    /// other people's have.
    pub fn from_blob(blob: &mut (impl Read + Seek)) -> Result<Option<Self>, LayerError> {
        let reading = || LayerError::io("reading the layer's table of contents");
        let end = blob.seek(SeekFrom::End(0)).map_err(reading())?;
        let Some(start) = end.checked_sub(FOOTER as u64) else { return Ok(None) };
        let mut footer = [0; FOOTER];
        blob.seek(SeekFrom::Start(start)).map_err(reading())?;
        blob.read_exact(&mut footer).map_err(reading())?;
        let number = |at: usize| footer[at..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        let (offset, length, raw_length) = (number(8), number(16), number(24));
        let fits = offset.checked_add(length) == Some(start) && raw_length <= TOC_MAX;
        if footer[..4] != SKIPPABLE || !footer.ends_with(FOOTER_MAGIC) || !fits {
            return Ok(None);
        }
        let mut compressed = Vec::new();
        blob.seek(SeekFrom::Start(offset)).map_err(reading())?;
        blob.by_ref().take(length).read_to_end(&mut compressed).map_err(reading())?;
        let bytes = zstd::bulk::decompress(&compressed, raw_length as usize).map_err(reading())?;
        let expected: [u8; 32] = std::array::from_fn(|at| footer[32 + at]);
        let (expected, actual) = (Digest::Sha256(expected), Digest::of(&bytes));
        if expected != actual {
            let what = "the layer's table of contents".to_owned();
            return Err(LayerError::damaged(what, expected, actual));
        }
        Ok(Some(Self::decode(&bytes)?))
    }
}
