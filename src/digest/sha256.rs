//! SHA-256 (FIPS 180-4) over the `sha2` crate's block function, so that two states can take in the same bytes at once.

use sha2::block_api::compress256;

use super::pair;

/// The size of what is taken in at once, in bytes.
pub(super) const BLOCK: usize = 64;

/// FIPS 180-4, section 5.3.3.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// A hash that is being computed.
#[derive(Clone)]
pub(super) struct Sha256 {
    state: [u32; 8],
    /// What does not fill a block yet: the first `length % BLOCK` bytes count.
    rest: [u8; BLOCK],
    /// Bytes taken in.
    length: u64,
}

impl Default for Sha256 {
    fn default() -> Self {
        Self { state: INITIAL, rest: [0; BLOCK], length: 0 }
    }
}

impl Sha256 {
    fn filled(&self) -> usize {
        (self.length % BLOCK as u64) as usize
    }

    /// Takes in `bytes`.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        let bytes = self.complete(bytes);
        let (blocks, rest) = bytes.as_chunks();
        compress256(&mut self.state, blocks);
        self.keep(bytes.len(), rest);
    }

    /// Takes `bytes` into both: in one pass where both are at the same place of a block.
    pub(super) fn update_both(&mut self, other: &mut Self, bytes: &[u8]) {
        if self.filled() != other.filled() {
            self.update(bytes);
            other.update(bytes);
            return;
        }
        let after = self.complete(bytes);
        other.complete(bytes);
        let (blocks, rest) = after.as_chunks();
        pair::compress(&mut self.state, &mut other.state, blocks);
        self.keep(after.len(), rest);
        other.keep(after.len(), rest);
    }

    /// Fills up a block that was begun; what of `bytes` that does not take.
    fn complete<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let filled = self.filled();
        if filled == 0 {
            return bytes;
        }
        let (head, after) = bytes.split_at(bytes.len().min(BLOCK - filled));
        self.rest[filled..filled + head.len()].copy_from_slice(head);
        self.length += head.len() as u64;
        if self.filled() == 0 {
            compress256(&mut self.state, &[self.rest]);
        }
        after
    }

    /// Counts `length` bytes whose blocks were taken in, and keeps the `rest` of them. A block that was begun before is
    /// complete, unless there are no bytes at all.
    fn keep(&mut self, length: usize, rest: &[u8]) {
        if length > 0 {
            self.length += length as u64;
            self.rest[..rest.len()].copy_from_slice(rest);
        }
    }

    /// The hash of everything taken in.
    pub(super) fn finish(mut self) -> [u8; 32] {
        let bits = self.length.wrapping_mul(8);
        let filled = self.filled();
        self.rest[filled] = 0x80;
        self.rest[filled + 1..].fill(0);
        if filled + 1 > BLOCK - 8 {
            compress256(&mut self.state, &[self.rest]);
            self.rest = [0; BLOCK];
        }
        self.rest[BLOCK - 8..].copy_from_slice(&bits.to_be_bytes());
        compress256(&mut self.state, &[self.rest]);
        let mut hash = [0; 32];
        for (bytes, word) in hash.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        hash
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::Digest as _;

    use super::*;

    fn reference(bytes: &[u8]) -> [u8; 32] {
        sha2::Sha256::digest(bytes).into()
    }

    #[test]
    fn every_length_around_the_blocks_is_padded_as_it_should_be() {
        let bytes: Vec<u8> = (0..=255).collect();
        for length in 0..=200 {
            let mut hash = Sha256::default();
            hash.update(&bytes[..length]);
            assert_eq!(hash.finish(), reference(&bytes[..length]), "{length}");
        }
    }

    proptest! {
        /// Any sequence of updates, alone and together, at the same and at different places of a block, gives what the
        /// library gives for each.
        #[test]
        fn two_together_are_each_what_they_are_alone(
            before in proptest::collection::vec(any::<u8>(), 0..200),
            pieces in proptest::collection::vec(
                (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..12
            ),
        ) {
            let (mut one, mut two) = (Sha256::default(), Sha256::default());
            let (mut one_bytes, mut two_bytes) = (before.clone(), Vec::new());
            one.update(&before);
            for (both, piece) in &pieces {
                one_bytes.extend(piece);
                if *both {
                    one.update_both(&mut two, piece);
                    two_bytes.extend(piece);
                } else {
                    one.update(piece);
                }
            }
            prop_assert_eq!(one.finish(), reference(&one_bytes));
            prop_assert_eq!(two.finish(), reference(&two_bytes));
        }
    }

    #[test]
    fn long_input_is_hashed_in_one_pass_and_the_same() {
        let bytes: Vec<u8> = (0..1_000_003_u32).map(|n| (n % 251) as u8).collect();
        let (mut one, mut two) = (Sha256::default(), Sha256::default());
        one.update(&bytes[..128]);
        one.update_both(&mut two, &bytes);
        assert_eq!(one.finish(), reference(&[&bytes[..128], &bytes].concat()));
        assert_eq!(two.finish(), reference(&bytes));
    }
}
