//! SHA-256's block function for two states that take in the same blocks.
//!
//! Everything in a layer is hashed at least twice, as part of its tar and as a file's content. The rounds of one hash
//! wait for each other; the rounds of a second one fit into the gaps, and both need the same message schedule, so two
//! together cost 1.4 times what one costs. Where the processor has no instructions for it, one is done after the other;
//! and in debug builds, because these instructions are slower there than the library's optimised function.

use sha2::block_api::compress256;

use super::sha256::BLOCK;

/// Takes `blocks` into both states.
pub(super) fn compress(one: &mut [u32; 8], two: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
    if cfg!(debug_assertions) || !try_together(one, two, blocks) {
        compress256(one, blocks);
        compress256(two, blocks);
    }
}

/// Whether the processor could do it.
fn try_together(one: &mut [u32; 8], two: &mut [u32; 8], blocks: &[[u8; BLOCK]]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sha") && std::arch::is_x86_feature_detected!("sse4.1") {
        #[expect(
            unsafe_code,
            reason = "calls a function that needs instructions which not every processor has"
        )]
        // SAFETY: the processor has just been asked for them.
        unsafe {
            x86::compress(one, two, blocks);
        };
        return true;
    }
    let _ = (one, two, blocks);
    false
}

/// As in Intel's "New Instructions Supporting the Secure Hash Algorithm on Intel Architecture Processors" (2013), which
/// the `sha2` crate follows for one state.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
        _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
        _mm_shuffle_epi8, _mm_shuffle_epi32,
    };

    use super::BLOCK;

    /// FIPS 180-4, section 4.2.2, four to a row.
    const K: [[u32; 4]; 16] = [
        [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
        [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
        [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
        [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
        [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
        [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
        [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
        [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
        [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
        [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
        [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
        [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
        [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
    ];

    #[target_feature(enable = "sse2")]
    fn words(high: u32, upper: u32, lower: u32, low: u32) -> __m128i {
        _mm_set_epi32(high.cast_signed(), upper.cast_signed(), lower.cast_signed(), low.cast_signed())
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    pub(super) fn compress(one: &mut [u32; 8], two: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
        let swap_bytes = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let mut abef = [&*one, &*two].map(|s| words(s[0], s[1], s[4], s[5]));
        let mut cdgh = [&*one, &*two].map(|s| words(s[2], s[3], s[6], s[7]));
        for block in blocks {
            let before = (abef, cdgh);
            let mut schedule = [_mm_setzero_si128(); 4];
            for (words, bytes) in schedule.iter_mut().zip(block.as_chunks().0) {
                let bytes = i128::from_le_bytes(*bytes);
                *words = _mm_shuffle_epi8(_mm_set_epi64x((bytes >> 64) as i64, bytes as i64), swap_bytes);
            }
            // Two loops, so that the places in the schedule are known to the compiler: it is kept in registers.
            for rounds in 0..4 {
                for place in 0..4 {
                    if rounds > 0 {
                        let at = |ahead: usize| schedule[(place + ahead) % 4];
                        let sum = _mm_add_epi32(
                            _mm_sha256msg1_epu32(at(0), at(1)),
                            _mm_alignr_epi8(at(3), at(2), 4),
                        );
                        schedule[place] = _mm_sha256msg2_epu32(sum, at(3));
                    }
                    let k = K[4 * rounds + place];
                    let low = _mm_add_epi32(schedule[place], words(k[3], k[2], k[1], k[0]));
                    let high = _mm_shuffle_epi32(low, 0x0e);
                    cdgh[0] = _mm_sha256rnds2_epu32(cdgh[0], abef[0], low);
                    cdgh[1] = _mm_sha256rnds2_epu32(cdgh[1], abef[1], low);
                    abef[0] = _mm_sha256rnds2_epu32(abef[0], cdgh[0], high);
                    abef[1] = _mm_sha256rnds2_epu32(abef[1], cdgh[1], high);
                }
            }
            for state in 0..2 {
                abef[state] = _mm_add_epi32(abef[state], before.0[state]);
                cdgh[state] = _mm_add_epi32(cdgh[state], before.1[state]);
            }
        }
        for (s, (abef, cdgh)) in [one, two].into_iter().zip(abef.into_iter().zip(cdgh)) {
            s[0] = _mm_extract_epi32(abef, 3).cast_unsigned();
            s[1] = _mm_extract_epi32(abef, 2).cast_unsigned();
            s[2] = _mm_extract_epi32(cdgh, 3).cast_unsigned();
            s[3] = _mm_extract_epi32(cdgh, 2).cast_unsigned();
            s[4] = _mm_extract_epi32(abef, 1).cast_unsigned();
            s[5] = _mm_extract_epi32(abef, 0).cast_unsigned();
            s[6] = _mm_extract_epi32(cdgh, 1).cast_unsigned();
            s[7] = _mm_extract_epi32(cdgh, 0).cast_unsigned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn together_is_as_one_after_the_other() {
        let blocks: Vec<[u8; BLOCK]> = (0..50_u8)
            .map(|n| std::array::from_fn(|at| n.wrapping_mul(37) ^ (at as u8).wrapping_mul(11)))
            .collect();
        for count in [0, 1, 2, 50] {
            let (mut one, mut two) = ([7; 8], std::array::from_fn(|word| word as u32 * 0x1234_5678));
            let (mut first, mut second) = (one, two);
            if !try_together(&mut one, &mut two, &blocks[..count]) {
                eprintln!("skipped: this processor has no instructions for SHA-256");
                return;
            }
            compress256(&mut first, &blocks[..count]);
            compress256(&mut second, &blocks[..count]);
            assert_eq!((one, two), (first, second), "{count} blocks");
        }
    }
}
