//! Where frames begin: part of the format (`docs/formats.md`, "Layer frames"), hence pinned by golden vectors.

/// A file of at least this many bytes has its data in frames of its own.
pub(crate) const LARGE_FILE: u64 = 64 << 10;

/// No group of small entries is cut before it has this many bytes…
const GROUP_MIN: u64 = 64 << 10;

/// …or goes on when it would have more than this many…
const GROUP_MAX: u64 = 1 << 20;

/// …and in between it is cut so often that it has `GROUP_MIN` and this many bytes on average.
const GROUP_SPAN: u64 = 192 << 10;

/// No chunk of a large file but its last is smaller.
const CHUNK_MIN: usize = 256 << 10;

/// Up to this size a chunk's end must match [`MASK_EARLY`], then [`MASK_LATE`].
const CHUNK_NORMAL: usize = 512 << 10;

/// No chunk is larger.
pub(crate) const CHUNK_MAX: usize = 1 << 20;

/// 21 bits, the highest ones: those that the most bytes have an influence on.
const MASK_EARLY: u64 = ((1 << 21) - 1) << 43;

/// 17 bits.
const MASK_LATE: u64 = ((1 << 17) - 1) << 47;

/// SplitMix64 (Steele, Lea and Flood, 2014), one step.
const fn split_mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The gear table: the first 256 values of SplitMix64 from the seed `crossdoc` read as a little-endian number.
static GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let mut state = u64::from_le_bytes(*b"crossdoc");
    let mut i = 0;
    while i < 256 {
        state = state.wrapping_add(GOLDEN_GAMMA);
        table[i] = split_mix(state);
        i += 1;
    }
    table
};

/// How far ahead of each other the places are that [`find`] looks at side by side.
const LANE: usize = 1 << 10;

/// Bytes that have an influence on the hash at a place.
const WINDOW: usize = 64;

/// The length of the chunk that `data` begins with, the rest of a file or as much of it as is there; `None` if it does
/// not end within `data`. Nothing ends within the first `searched` bytes. FastCDC (Xia et al., 2016) with a normalised
/// size.
pub(crate) fn chunk_end(data: &[u8], searched: usize) -> Option<usize> {
    let end = data.len().min(CHUNK_MAX);
    find(data, searched.max(CHUNK_MIN), end.min(CHUNK_NORMAL), MASK_EARLY)
        .or_else(|| find(data, searched.max(CHUNK_NORMAL), end, MASK_LATE))
        .or_else(|| (end == CHUNK_MAX).then_some(end))
}

/// The first place in `from..to` behind which the hash matches. The hash depends on the last 64 bytes only, so that four
/// places can be looked at side by side, which takes two thirds of the time.
fn find(data: &[u8], from: usize, to: usize, mask: u64) -> Option<usize> {
    let mut at = from;
    while let Some(lanes) = data.get(at..to).and_then(|data| data.as_chunks::<LANE>().0.first_chunk::<4>()) {
        let mut hashes = [0, 1, 2, 3].map(|lane| hash_before(data, at + lane * LANE));
        let mut least = u64::MAX;
        for (((a, b), c), d) in lanes[0].iter().zip(&lanes[1]).zip(&lanes[2]).zip(&lanes[3]) {
            for (hash, byte) in hashes.iter_mut().zip([a, b, c, d]) {
                *hash = step(*hash, *byte);
                least = least.min(*hash & mask);
            }
        }
        if least == 0 {
            break;
        }
        at += 4 * LANE;
    }
    let mut hash = hash_before(data, at);
    data.get(at..to)?.iter().enumerate().find_map(|(place, byte)| {
        hash = step(hash, *byte);
        (hash & mask == 0).then_some(at + place + 1)
    })
}

/// The hash before the byte at `at`: of the bytes from [`CHUNK_MIN`] on, of which no more than a window count.
fn hash_before(data: &[u8], at: usize) -> u64 {
    let start = at.saturating_sub(WINDOW).max(CHUNK_MIN);
    data.get(start..at).unwrap_or_default().iter().fold(0, |hash, byte| step(hash, *byte))
}

/// The hash after one more byte.
pub(crate) fn step(hash: u64, byte: u8) -> u64 {
    (hash << 1).wrapping_add(GEAR[usize::from(byte)])
}

/// Decides where groups of small entries end, from the entries' paths and sizes alone.
#[derive(Debug, Default)]
pub(crate) struct Grouping {
    weight: u64,
}

impl Grouping {
    /// Whether a new group begins with the entry `path`, with `size` bytes of content in the group.
    pub(crate) fn cuts_before(&mut self, path: &[u8], size: u64) -> bool {
        self.cuts(path, size, 512 + size.next_multiple_of(512))
    }

    /// The same for an entry that takes `weight` bytes of the tar in the group.
    pub(crate) fn cuts(&mut self, path: &[u8], size: u64, weight: u64) -> bool {
        let chance = (u64::MAX / GROUP_SPAN).saturating_mul(weight);
        let full = self.weight + weight > GROUP_MAX;
        let cut = full || self.weight >= GROUP_MIN && hash(path, size) < chance;
        self.weight = if cut { weight } else { self.weight + weight };
        cut
    }

    /// A group has ended because the data of a large file follows.
    pub(crate) fn restart(&mut self) {
        self.weight = 0;
    }
}

/// FNV-1a over the path and the size (8 bytes, little-endian), finished by SplitMix64 so that the high bits are good.
fn hash(path: &[u8], size: u64) -> u64 {
    let fnv = path.iter().chain(&size.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    split_mix(fnv)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the papers have it: byte by byte.
    fn plainly(data: &[u8]) -> Option<usize> {
        let mut hash = 0;
        for (at, byte) in data.iter().enumerate().take(CHUNK_MAX).skip(CHUNK_MIN) {
            hash = step(hash, *byte);
            if hash & if at < CHUNK_NORMAL { MASK_EARLY } else { MASK_LATE } == 0 {
                return Some(at + 1);
            }
        }
        (data.len() >= CHUNK_MAX).then_some(CHUNK_MAX)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Side by side and piece by piece, the end is the same. Where bytes repeat, matches are many.
        #[test]
        fn the_end_is_found_in_pieces_too(
            seed: u64, length in CHUNK_MIN - 10..CHUNK_MAX + 100, period in 1_usize..5000, pieces in 1_usize..9,
        ) {
            let data: Vec<u8> =
                (0..length).map(|at| split_mix(seed.wrapping_add((at % (period * period)) as u64)) as u8).collect();
            let expected = plainly(&data);
            prop_assert_eq!(chunk_end(&data, 0), expected);
            let mut searched = 0;
            let found = (1..=pieces).find_map(|piece| {
                let there = &data[..length * piece / pieces];
                let end = chunk_end(there, searched);
                searched = there.len();
                end
            });
            prop_assert_eq!(found, expected);
        }
    }
}
