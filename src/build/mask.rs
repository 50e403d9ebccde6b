//! Keeps the values of secrets out of logs.

use std::collections::{BTreeSet, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

/// Replaces secret values in a stream of bytes, wherever it is cut into pieces.
#[derive(Debug)]
pub(crate) struct Masker {
    /// What is masked, by its first bytes; of the same beginning the longest first.
    patterns: HashMap<[u8; LENGTH_MIN], Vec<Vec<u8>>>,
    /// What a pattern may begin with, for the last bytes of a piece: shorter than the keys of `patterns`.
    beginnings: BTreeSet<Vec<u8>>,
    held: Vec<u8>,
}

/// What stands in a log where a secret was.
const MASK: &[u8] = b"***";

/// Shorter values are not masked: they are everywhere, and guessing them from their absence would be easy.
const LENGTH_MIN: usize = 4;

/// Shorter encoded values are not masked, for the same reason: they do not stand for a whole value.
const ENCODED_MIN: usize = 8;

/// Where `base64`, and PEM, begin a new line.
const WRAPS: [usize; 2] = [76, 64];

impl Masker {
    /// Masks `secrets`, each of their lines, and both as programs are known to encode them: in base64, wherever in an
    /// encoded text they stand, in URLs and in JSON.
    pub(crate) fn new<'s>(secrets: impl IntoIterator<Item = &'s [u8]>) -> Self {
        let mut all: BTreeSet<Vec<u8>> = BTreeSet::new();
        for secret in secrets {
            let trimmed = secret.trim_ascii();
            let lines = trimmed.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
            for part in lines.chain([trimmed]).filter(|part| part.len() >= LENGTH_MIN) {
                if all.insert(part.to_vec()) {
                    all.extend(encoded(part));
                }
            }
            all.extend(wrapped(secret));
        }
        let mut patterns: HashMap<_, Vec<Vec<u8>>> = HashMap::new();
        let mut beginnings = BTreeSet::new();
        for pattern in all {
            if let Some(first) = pattern.first_chunk::<LENGTH_MIN>() {
                beginnings.extend((1..LENGTH_MIN).map(|length| pattern[..length].to_vec()));
                patterns.entry(*first).or_default().push(pattern);
            }
        }
        for same in patterns.values_mut() {
            same.sort_by_key(|pattern| std::cmp::Reverse(pattern.len()));
        }
        Self { patterns, beginnings, held: Vec::new() }
    }

    /// Takes a piece of the stream; returns what can be shown. The end of a piece that may be the beginning of a secret
    /// is held back.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        if self.patterns.is_empty() {
            return piece.to_vec();
        }
        self.held.extend_from_slice(piece);
        self.drain(false)
    }

    /// The rest of the stream.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        self.drain(true)
    }

    fn drain(&mut self, all: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.held.len());
        let mut at = 0;
        while at < self.held.len() {
            let rest = &self.held[at..];
            let candidates = rest.first_chunk().and_then(|first| self.patterns.get(first));
            let candidates = candidates.map_or(&[][..], Vec::as_slice);
            // A longer one may still come to its end; then the shorter one in it is not what is masked.
            let may_be_longer = match rest.len() {
                ..LENGTH_MIN => self.beginnings.contains(rest),
                length => candidates.iter().any(|one| one.len() > length && one.starts_with(rest)),
            };
            if may_be_longer && !all {
                break;
            }
            if let Some(secret) = candidates.iter().find(|secret| rest.starts_with(secret)) {
                out.extend_from_slice(MASK);
                at += secret.len();
            } else {
                out.push(rest[0]);
                at += 1;
            }
        }
        self.held.drain(..at);
        out
    }
}

/// A value as it stands in texts that encode it. What of base64 also depends on the neighbours is left out.
fn encoded(value: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for shift in 0..3 {
        let shifted = [&[0; 2][..shift], value].concat();
        // Characters that hold bits of what is before, and whole characters altogether.
        let (skip, whole) = ([0, 2, 3][shift], shifted.len() * 8 / 6);
        for text in [STANDARD_NO_PAD.encode(&shifted), URL_SAFE_NO_PAD.encode(&shifted)] {
            all.extend(text.as_bytes().get(skip..whole).map(<[u8]>::to_vec));
        }
    }
    all.push(percent_encode(value, NON_ALPHANUMERIC).to_string().into_bytes());
    if let Ok(text) = std::str::from_utf8(value) {
        let quoted = serde_json::Value::from(text).to_string().into_bytes();
        all.extend(quoted.get(1..quoted.len() - 1).map(<[u8]>::to_vec));
    }
    all.retain(|pattern| pattern.len() >= ENCODED_MIN);
    all
}

/// The lines of base64 of a whole value that is too long for one.
fn wrapped(value: &[u8]) -> Vec<Vec<u8>> {
    let text = STANDARD_NO_PAD.encode(value).into_bytes();
    let long = WRAPS.into_iter().filter(|width| text.len() > *width);
    let lines = long.flat_map(|width| text.chunks(width)).filter(|line| line.len() >= ENCODED_MIN);
    lines.map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_are_masked_however_the_stream_is_cut() {
        let text = b"token=hunter2hunter2; hunter is fine";
        for cut in 0..text.len() {
            let mut masker = Masker::new([&b"hunter2\n"[..]]);
            let mut out = masker.push(&text[..cut]);
            out.extend(masker.push(&text[cut..]));
            out.extend(masker.finish());
            assert_eq!(String::from_utf8(out).unwrap(), "token=******; hunter is fine");
        }
    }

    fn masked(secret: &[u8], text: &str) -> String {
        let mut masker = Masker::new([secret]);
        let mut out = Vec::new();
        for piece in text.as_bytes().chunks(3) {
            out.extend(masker.push(piece));
        }
        out.extend(masker.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn encoded_secrets_are_masked() {
        let secret = b"p@ss \"word\"/1234567";
        // What `base64`, `jq -R`, `jq -sRr @uri` print, and the header of `curl -u`.
        assert_eq!(masked(secret, "cEBzcyAid29yZCIvMTIzNDU2Nw=="), "***w==");
        assert_eq!(masked(secret, "dXNlcjpwQHNzICJ3b3JkIi8xMjM0NTY3"), "dXNlcjp***");
        assert_eq!(masked(secret, "YTpwQHNzICJ3b3JkIi8xMjM0NTY3Ong="), "YTp***Ong=");
        assert_eq!(masked(secret, r#"{"a": "p@ss \"word\"/1234567"}"#), r#"{"a": "***"}"#);
        assert_eq!(masked(secret, "p%40ss%20%22word%22%2F1234567&b"), "***&b");
        let long: Vec<u8> = (0..100).collect();
        let text = base64::engine::general_purpose::STANDARD.encode(&long);
        let lines: Vec<String> =
            text.as_bytes().chunks(76).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect();
        assert_eq!(masked(&long, &lines.join("\n")), "***\n***==");
    }

    #[test]
    fn the_longest_is_masked_wherever_the_stream_is_cut() {
        let secret = b"abcd\nabcdefgh\n";
        for (text, expected) in [
            ("abcdefgh", "***"),
            ("abcdefg!", "***efg!"),
            ("abcd", "***"),
            ("ab", "ab"),
            ("abcd\nabcdefgh", "***"),
            ("abcd\nabcdefgx", "***\n***efgx"),
        ] {
            for cut in 0..text.len() {
                let mut masker = Masker::new([&secret[..]]);
                let mut out = masker.push(&text.as_bytes()[..cut]);
                out.extend(masker.push(&text.as_bytes()[cut..]));
                out.extend(masker.finish());
                assert_eq!(String::from_utf8(out).unwrap(), expected, "{text} cut at {cut}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_else_changes(pieces: Vec<Vec<u8>>) {
            let mut masker = Masker::new([&b"\x01\x02\x03\x04\x05"[..]]);
            let mut out = Vec::new();
            for piece in &pieces {
                out.extend(masker.push(piece));
            }
            out.extend(masker.finish());
            let whole = pieces.concat();
            prop_assume!(!whole.windows(5).any(|window| window == b"\x01\x02\x03\x04\x05"));
            prop_assert_eq!(out, whole);
        }
    }
}
