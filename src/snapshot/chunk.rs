//! Where chunks end: part of the format, hence pinned by golden vectors.

use crate::layer::gear_step;

/// A file of up to this many bytes is one chunk; no chunk is larger.
pub(super) const CHUNK_MAX: usize = 128 << 10;

/// No chunk of a larger file but its last is smaller.
const CHUNK_MIN: usize = 8 << 10;

/// Up to this size a chunk's end must match [`MASK_EARLY`], then [`MASK_LATE`]. It is about the average.
const CHUNK_NORMAL: usize = 32 << 10;

/// 17 bits, the highest ones: those that the most bytes have an influence on.
const MASK_EARLY: u64 = ((1 << 17) - 1) << 47;

/// 13 bits.
const MASK_LATE: u64 = ((1 << 13) - 1) << 51;

/// The length of the chunk that `data` begins with: the rest of a file, or at least [`CHUNK_MAX`] bytes of it. FastCDC (Xia et
/// al., 2016) with a normalised size.
pub(super) fn chunk_length(data: &[u8]) -> usize {
    let longest = data.len().min(CHUNK_MAX);
    let mut hash = 0;
    for (at, byte) in data.iter().enumerate().take(longest).skip(CHUNK_MIN) {
        hash = gear_step(hash, *byte);
        let mask = if at < CHUNK_NORMAL { MASK_EARLY } else { MASK_LATE };
        if hash & mask == 0 {
            return at + 1;
        }
    }
    longest
}
