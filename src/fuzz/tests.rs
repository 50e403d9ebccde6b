//! Replays the corpus, and tries random changes of it for a moment. `./test --long` does it for longer and with
//! libFuzzer, which sees which changes lead somewhere new.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::*;

/// How long the random part of each target takes.
const MOMENT: Duration = Duration::from_millis(1200);

/// How long one input may take: a debug build on a busy machine, so this is about what hangs.
const INPUT_MAX: Duration = Duration::from_secs(20);

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

/// The inputs of a target, by file name.
fn inputs(name: &str) -> Vec<(String, Vec<u8>)> {
    let mut inputs: Vec<_> = fs_err::read_dir(corpus().join(name))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.display().to_string(), fs_err::read(&path).unwrap())
        })
        .collect();
    inputs.sort();
    inputs
}

/// Runs one input. What fails is written into the target directory, to be looked at and put into the corpus.
#[track_caller]
fn feed(target: &Target, input: &[u8], what: &str) {
    let started = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| target.run(input)));
    let elapsed = started.elapsed();
    if result.is_ok() && elapsed < INPUT_MAX {
        return;
    }
    let name = format!("fuzz-{}-{}", target.name, crate::digest::Digest::of(input).short());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(name);
    fs_err::write(&path, input).unwrap();
    let problem = if result.is_ok() { format!("took {elapsed:?}") } else { "panicked, see above".to_owned() };
    panic!(
        "{what} {problem}\nthe input is in {}; put it into tests/fuzz/corpus/{}",
        path.display(),
        target.name
    );
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % limit.max(1) as u64).unwrap()
    }

    /// A part of `bytes`, mostly a short one.
    fn part<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let start = self.below(bytes.len() + 1);
        let longest = if self.below(4) == 0 { bytes.len() - start } else { (bytes.len() - start).min(16) };
        &bytes[start..start + self.below(longest + 1)]
    }
}

/// One change of `input`.
fn mutate(chance: &mut Chance, input: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    let at = chance.below(input.len() + 1);
    let end = (at + chance.below(24)).min(input.len());
    match chance.below(10) {
        0 if at < input.len() => input[at] ^= 1 << chance.below(8),
        1 if at < input.len() => input[at] = chance.below(256) as u8,
        2 => drop(input.drain(at..end)),
        3 => input.truncate(at),
        4 => {
            let copied = chance.part(input).to_vec();
            drop(input.splice(at..at, copied));
        }
        5 => {
            let copied = chance.part(other).to_vec();
            drop(input.splice(at..end, copied));
        }
        6 => {
            input.truncate(at);
            input.extend_from_slice(&other[chance.below(other.len() + 1)..]);
        }
        7 => {
            const NUMBERS: [&[u8]; 7] =
                [&[0xff; 4], &[0xff; 10], &[0; 8], &[0x80], &[0x7f, 0xff], b"99999999999", b"-1"];
            let number = NUMBERS[chance.below(NUMBERS.len())];
            drop(input.splice(at..end.min(at + number.len()), number.iter().copied()));
        }
        _ if !words.is_empty() => {
            let word = words[chance.below(words.len())].as_bytes();
            drop(input.splice(at..at, word.iter().copied()));
        }
        _ => input.push(chance.below(256) as u8),
    }
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

fn fuzz(name: &str) {
    let target = target(name).unwrap();
    let inputs = inputs(name);
    assert!(!inputs.is_empty(), "{name} has no corpus");
    for (path, input) in &inputs {
        feed(target, input, path);
    }
    let seed = number("CROSSDOCK_TEST_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into());
    println!("{name}: CROSSDOCK_TEST_SEED={seed}");
    let mut chance = Chance(seed);
    let started = Instant::now();
    let mut round = 0_u64;
    while started.elapsed() < MOMENT {
        let mut input = inputs[chance.below(inputs.len())].1.clone();
        let other = &inputs[chance.below(inputs.len())].1;
        for _ in 0..=chance.below(4) {
            mutate(&mut chance, &mut input, other, target.words);
        }
        input.truncate(target.length_max);
        round += 1;
        feed(target, &input, &format!("round {round} with seed {seed}"));
    }
    println!("{name}: {round} inputs");
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        /// The tests of this file, by their target.
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(#[test]
        fn $name() {
            fuzz(stringify!($name));
        })*
    };
}

targets!(
    dockerfile, expand, ignore, words, arguments, addresses, settings, users, tar, unpack, add, compressed,
    toc, blob, record, shape, snapshot, hashes, image, archive, registry,
);

#[test]
fn every_target_is_tested_and_has_a_corpus() {
    let names: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names, TESTED.iter().map(|name| (*name).to_owned()).collect());
    let folders: BTreeSet<String> = fs_err::read_dir(corpus())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(folders, names);
    for name in names {
        let size: usize = inputs(&name).iter().map(|(_, input)| input.len()).sum();
        assert!(size < 200 << 10, "the corpus of {name} has {size} bytes; keep it small");
    }
}
