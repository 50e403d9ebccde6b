//! Keeps the values of secrets out of logs.

/// Replaces secret values in a stream of bytes, wherever it is cut into pieces.
#[derive(Debug)]
pub(crate) struct Masker {
    secrets: Vec<Vec<u8>>,
    held: Vec<u8>,
}

/// What stands in a log where a secret was.
const MASK: &[u8] = b"***";

/// Shorter values are not masked: they are everywhere, and guessing them from their absence would be easy.
const LENGTH_MIN: usize = 4;

impl Masker {
    /// Masks `secrets`, and each of their lines.
    pub(crate) fn new<'s>(secrets: impl IntoIterator<Item = &'s [u8]>) -> Self {
        let mut all: Vec<Vec<u8>> = Vec::new();
        for secret in secrets {
            let trimmed = secret.trim_ascii();
            all.extend(trimmed.split(|byte| *byte == b'\n').map(|line| line.trim_ascii().to_vec()));
            all.push(trimmed.to_vec());
        }
        all.retain(|secret| secret.len() >= LENGTH_MIN);
        all.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        all.dedup();
        Self { secrets: all, held: Vec::new() }
    }

    /// Takes a piece of the stream; returns what can be shown. The end of a piece that may be the beginning of a secret
    /// is held back.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        if self.secrets.is_empty() {
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
            if let Some(secret) = self.secrets.iter().find(|secret| rest.starts_with(secret)) {
                out.extend_from_slice(MASK);
                at += secret.len();
            } else if !all && self.secrets.iter().any(|secret| secret.starts_with(rest)) {
                break;
            } else {
                out.push(rest[0]);
                at += 1;
            }
        }
        self.held.drain(..at);
        out
    }
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
