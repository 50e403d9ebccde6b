//! Digests: names of bytes, as in the OCI image specification ("Digests" in `descriptor.md`).

mod pair;
mod sha256;

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use sha2::Digest as _;

use self::sha256::Sha256;

/// The hash algorithm of a [`Digest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, the algorithm of everything that Crossdock writes.
    Sha256,
    /// SHA-512, accepted where others name content with it.
    Sha512,
}

impl Algorithm {
    /// The algorithm's registered name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

/// The digest of some bytes: an algorithm and a value of exactly that algorithm's length.
///
/// Its text form is `sha256:` followed by 64 lowercase hexadecimal digits (128 for `sha512:`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// A SHA-256 value.
    Sha256([u8; 32]),
    /// A SHA-512 value.
    Sha512([u8; 64]),
}

/// Why a text is not a [`Digest`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DigestError {
    /// There is no `algorithm:` prefix.
    #[error("digest `{0}` has no algorithm (expected `sha256:<64 hex digits>`)")]
    NoAlgorithm(String),
    /// The algorithm is not one that is known here.
    #[error("digest `{0}` uses an unknown algorithm (known are sha256 and sha512)")]
    UnknownAlgorithm(String),
    /// The value is not lowercase hexadecimal of the right length.
    #[error("digest `{0}` is malformed: expected {1} lowercase hexadecimal digits")]
    Malformed(String, usize),
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self::Sha256(sha2::Sha256::digest(bytes.as_ref()).into())
    }

    /// The digest of `bytes` by an algorithm.
    pub fn with(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// This digest's algorithm.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw value.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(value) => value,
            Self::Sha512(value) => value,
        }
    }

    /// The value in lowercase hexadecimal.
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(self.as_bytes().len() * 2);
        for byte in self.as_bytes() {
            text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
            text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
        }
        text
    }

    /// The first 12 hexadecimal digits, for messages.
    pub fn short(&self) -> String {
        let mut text = self.hex();
        text.truncate(12);
        text
    }

    /// Whether `bytes` have this digest.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::new(self.algorithm());
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) =
            text.split_once(':').ok_or_else(|| DigestError::NoAlgorithm(text.to_owned()))?;
        match algorithm {
            "sha256" => decode_hex(hex).map(Self::Sha256),
            "sha512" => decode_hex(hex).map(Self::Sha512),
            _ => return Err(DigestError::UnknownAlgorithm(text.to_owned())),
        }
        .ok_or_else(|| DigestError::Malformed(text.to_owned(), if algorithm == "sha256" { 64 } else { 128 }))
    }
}

fn decode_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let hex = hex.as_bytes();
    if hex.len() != N * 2 {
        return None;
    }
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut value = [0; N];
    for (byte, pair) in value.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(value)
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a [`Digest`] piece by piece.
#[derive(Clone)]
pub struct Hasher(HasherState);

#[derive(Clone)]
enum HasherState {
    Sha256(Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// The algorithm of the digest that it will give.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            HasherState::Sha256(_) => Algorithm::Sha256,
            HasherState::Sha512(_) => Algorithm::Sha512,
        }
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new(Algorithm::Sha256)
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

impl Hasher {
    /// A hasher that has seen no bytes.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => HasherState::Sha256(Sha256::default()),
            Algorithm::Sha512 => HasherState::Sha512(sha2::Sha512::new()),
        })
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            HasherState::Sha256(state) => state.update(bytes),
            HasherState::Sha512(state) => state.update(bytes),
        }
    }

    /// Adds `bytes` to both: what is hashed as part of a whole and for itself costs little more than one of them.
    pub fn update_both(&mut self, other: &mut Self, bytes: &[u8]) {
        match (&mut self.0, &mut other.0) {
            (HasherState::Sha256(one), HasherState::Sha256(two)) => one.update_both(two, bytes),
            _ => {
                self.update(bytes);
                other.update(bytes);
            }
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self.0 {
            HasherState::Sha256(state) => Digest::Sha256(state.finish()),
            HasherState::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

/// A reader or writer that hashes and counts what passes through it.
#[derive(Debug)]
pub struct Hashing<T> {
    inner: T,
    hasher: Hasher,
    length: u64,
}

impl<T> Hashing<T> {
    /// Wraps `inner`; hashes with SHA-256.
    pub fn new(inner: T) -> Self {
        Self { inner, hasher: Hasher::default(), length: 0 }
    }

    /// How many bytes have passed.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The wrapped value, the digest, and the number of bytes that passed.
    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, self.hasher.finish(), self.length)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.length += read as u64;
        Ok(read)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Digest {
    /// The SHA-256 of all that `content` gives.
    ///
    /// # Errors
    /// The first that reading gives.
    pub fn of_reader(mut content: impl Read) -> io::Result<Self> {
        let mut hashing = Hashing::new(io::sink());
        io::copy(&mut content, &mut hashing)?;
        Ok(hashing.finish().1)
    }
}

/// A reader that reports the end of its input only if size and digest are what they should be.
///
/// It never hands out more than the expected number of bytes. A consumer must read to the end (a read that
/// returns 0) before it may use what it read.
#[derive(Debug)]
pub struct Verifying<R> {
    inner: R,
    hasher: Option<Hasher>,
    expected: Digest,
    remaining: u64,
    size: u64,
}

impl<R> Verifying<R> {
    /// Wraps `inner`, which must yield exactly `size` bytes with the digest `expected`.
    pub fn new(inner: R, expected: Digest, size: u64) -> Self {
        Self { inner, hasher: Some(Hasher::new(expected.algorithm())), expected, remaining: size, size }
    }
}

impl<R: Read> Read for Verifying<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.remaining == 0 {
            if let Some(hasher) = self.hasher.take() {
                let mut probe = [0];
                if self.inner.read(&mut probe)? != 0 {
                    return Err(mismatch(&self.expected, &format!("more than {} bytes", self.size)));
                }
                let actual = hasher.finish();
                if actual != self.expected {
                    return Err(mismatch(&self.expected, &actual.to_string()));
                }
            }
            return Ok(0);
        }
        let limit = buffer.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut buffer[..limit])?;
        if read == 0 {
            let got = self.size - self.remaining;
            return Err(mismatch(&self.expected, &format!("{got} bytes instead of {}", self.size)));
        }
        self.remaining -= read as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        Ok(read)
    }
}

fn mismatch(expected: &Digest, got: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("content does not match {expected}: got {got}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_form_round_trips() {
        assert_eq!(Digest::of("").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(""));
        let long = format!("sha512:{}", "0f".repeat(64));
        assert_eq!(long.parse::<Digest>().unwrap().to_string(), long);
    }

    #[test]
    fn malformed_texts_are_refused() {
        for bad in ["", "sha256", "sha256:", "sha256:E3", &EMPTY.to_uppercase(), &EMPTY[..70], "md5:00"] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn verifying_reader_refuses_short_long_and_wrong_input() {
        let digest = Digest::of("hello");
        let read = |bytes: &[u8], size| {
            let mut out = Vec::new();
            Verifying::new(bytes, digest, size).read_to_end(&mut out).map(|_| out)
        };
        assert_eq!(read(b"hello", 5).unwrap(), b"hello");
        assert!(read(b"hell", 5).is_err());
        assert!(read(b"hello!", 5).is_err());
        assert!(read(b"hullo", 5).is_err());
    }
}
