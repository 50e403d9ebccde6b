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

/// The length of the first chunk of `data`, which is the rest of a file, or at least [`CHUNK_MAX`] bytes of it.
/// FastCDC (Xia et al., 2016) with a normalised size.
pub(crate) fn chunk_length(data: &[u8]) -> usize {
    let end = data.len().min(CHUNK_MAX);
    if end <= CHUNK_MIN {
        return end;
    }
    let normal = end.min(CHUNK_NORMAL);
    let mut hash = 0_u64;
    for (at, byte) in data[CHUNK_MIN..normal].iter().enumerate() {
        hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
        if hash & MASK_EARLY == 0 {
            return CHUNK_MIN + at + 1;
        }
    }
    for (at, byte) in data[normal..end].iter().enumerate() {
        hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
        if hash & MASK_LATE == 0 {
            return normal + at + 1;
        }
    }
    end
}

/// Decides where groups of small entries end, from the entries' paths and sizes alone.
#[derive(Debug, Default)]
pub(crate) struct Grouping {
    weight: u64,
}

impl Grouping {
    /// Whether a new group begins with the entry `path`, with `size` bytes of content in the group.
    pub(crate) fn cuts_before(&mut self, path: &[u8], size: u64) -> bool {
        let weight = 512 + size.next_multiple_of(512);
        let chance = u64::MAX / GROUP_SPAN * weight;
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
