//! Randomness that can be had again.

use std::fmt::Debug;

/// SplitMix64: small, and good enough to choose among a dozen things.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    /// With `CROSSDOCK_TEST_SEED`, or another one in each run. It is printed: a failed test shows it.
    #[expect(clippy::print_stdout, reason = "the test harness shows it if the test fails")]
    pub(crate) fn new(what: &str) -> Self {
        let seed = number("CROSSDOCK_TEST_SEED").unwrap_or_else(|| {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos().into()
        });
        println!("{what}: CROSSDOCK_TEST_SEED={seed}");
        Self(seed)
    }

    /// One that always goes the same way.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// Another one, which follows from this.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.below(u64::MAX))
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// An index of something with `length` elements.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }

    /// One of them.
    pub(crate) fn of<'a, T: Debug>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.index(choices.len())]
    }
}

/// How many rounds a randomised test takes: `CROSSDOCK_TEST_ROUNDS`, or as many as leave the suite quick.
pub(crate) fn rounds(few: u64) -> u64 {
    number("CROSSDOCK_TEST_ROUNDS").unwrap_or(few)
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var_os(variable)?;
    Some(
        value
            .to_str()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| panic!("{variable} is no number")),
    )
}
