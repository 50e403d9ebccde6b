//! What the fuzzers feed: one function for everything that reads what others wrote.
//!
//! Only tests have this (`tests.rs` replays the corpus and changes it at random), and the coverage-guided fuzzers of
//! `tests/fuzz`, which compile the library with `--cfg fuzzing`. A target panics where something is wrong: where what it
//! calls panics, where what was decoded does not encode to the same again, and where an input takes more memory
//! than its length explains. Time is watched by whoever calls.

mod addresses;
mod documents;
mod layers;
mod limits;
#[cfg(test)]
mod tests;
mod text;

/// Something that can be fed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: the folder of its corpus below `tests/fuzz/corpus`.
    pub name: &'static str,
    /// The longest input worth trying, in bytes.
    pub length_max: usize,
    /// Words that its inputs are made of, for mutations.
    pub words: &'static [&'static str],
    feed: fn(&[u8]),
}

impl Target {
    /// Feeds one input, and holds it to the bound on memory.
    pub fn run(&self, input: &[u8]) {
        limits::bounded(input.len(), || (self.feed)(input));
    }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "dockerfile", length_max: 4 << 10, words: text::DOCKERFILE_WORDS, feed: text::dockerfile },
    Target { name: "expand", length_max: 512, words: text::EXPAND_WORDS, feed: text::expand },
    Target { name: "ignore", length_max: 1 << 10, words: text::PATTERN_WORDS, feed: text::ignore },
    Target { name: "words", length_max: 256, words: text::WORDS, feed: text::words },
    Target { name: "arguments", length_max: 256, words: text::ARGUMENTS, feed: text::arguments },
    Target { name: "addresses", length_max: 512, words: addresses::WORDS, feed: addresses::addresses },
    Target { name: "settings", length_max: 1 << 10, words: addresses::SETTINGS, feed: addresses::settings },
    Target { name: "users", length_max: 512, words: text::USERS, feed: text::users },
    Target { name: "tar", length_max: 16 << 10, words: layers::TAR_WORDS, feed: layers::tar },
    Target { name: "unpack", length_max: 16 << 10, words: layers::TAR_WORDS, feed: layers::unpack },
    Target { name: "add", length_max: 16 << 10, words: layers::TAR_WORDS, feed: layers::add },
    Target { name: "compressed", length_max: 4 << 10, words: &[], feed: layers::compressed },
    Target { name: "toc", length_max: 4 << 10, words: &[], feed: layers::toc },
    Target { name: "blob", length_max: 4 << 10, words: &[], feed: layers::blob },
    Target { name: "record", length_max: 2 << 10, words: &[], feed: documents::record },
    Target { name: "shape", length_max: 1 << 10, words: &[], feed: documents::shape },
    Target { name: "snapshot", length_max: 2 << 10, words: &[], feed: documents::snapshot },
    Target { name: "hashes", length_max: 1 << 10, words: &[], feed: documents::hashes },
    Target { name: "image", length_max: 4 << 10, words: documents::JSON_WORDS, feed: documents::image },
    Target { name: "archive", length_max: 16 << 10, words: documents::JSON_WORDS, feed: documents::archive },
    Target { name: "registry", length_max: 1 << 10, words: documents::JSON_WORDS, feed: documents::registry },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
