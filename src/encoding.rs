//! The stable binary encoding of keys, records and TOCs (`docs/formats.md`, "Encoding").
//!
//! Little-endian base-128 integers, length-prefixed byte strings, counts before lists. It is ours, and not a
//! serialisation library's, because cache keys are digests of it: it may never change by itself.

use crate::digest::Digest;

/// Appends values to a buffer.
#[derive(Debug, Default, Clone)]
pub struct Encoder {
    buffer: Vec<u8>,
}

impl Encoder {
    /// An empty encoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an unsigned integer: seven bits a byte, least significant first, high bit = more follows.
    pub fn uint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.buffer.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.buffer.push(value as u8);
        self
    }

    /// Appends a signed integer in zigzag form.
    pub fn int(&mut self, value: i64) -> &mut Self {
        self.uint(value.cast_unsigned() << 1 ^ (value >> 63).cast_unsigned())
    }

    /// Appends a byte string with its length before it.
    pub fn bytes(&mut self, value: impl AsRef<[u8]>) -> &mut Self {
        let value = value.as_ref();
        self.uint(value.len() as u64);
        self.buffer.extend_from_slice(value);
        self
    }

    /// Appends a text as its UTF-8 bytes.
    pub fn text(&mut self, value: &str) -> &mut Self {
        self.bytes(value)
    }

    /// Appends a digest: 0 for SHA-256 or 1 for SHA-512, then its raw value.
    pub fn digest(&mut self, value: &Digest) -> &mut Self {
        self.buffer.push(u8::from(matches!(value, Digest::Sha512(_))));
        self.buffer.extend_from_slice(value.as_bytes());
        self
    }

    /// Appends `0` for nothing, or `1` and then what `write` appends.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        match value {
            None => self.buffer.push(0),
            Some(value) => {
                self.buffer.push(1);
                write(self, value);
            }
        }
        self
    }

    /// Appends a count, then each item by `write`.
    pub fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
        mut write: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        let items = items.into_iter();
        self.uint(items.len() as u64);
        for item in items {
            write(self, item);
        }
        self
    }

    /// The encoded bytes.
    pub fn finish(self) -> Vec<u8> {
        self.buffer
    }
}

/// Why bytes are not what a decoder expected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The input ends inside a value.
    #[error("the data ends too early, at byte {0}")]
    Truncated(usize),
    /// A value is out of its range or malformed.
    #[error("{what} at byte {at} is malformed")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// Where, in bytes from the start.
        at: usize,
    },
    /// The format's version is not one that this program knows.
    #[error("{what} has version {found}, this program knows up to {known}")]
    Version {
        /// Which format.
        what: &'static str,
        /// The version found.
        found: u64,
        /// The newest version known.
        known: u64,
    },
    /// Bytes are left over.
    #[error("{0} bytes are left over after the end")]
    Trailing(usize),
}

/// Reads values from bytes that may be anything: every length is checked before it is used.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    /// A decoder at the start of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }

    /// The position, in bytes from the start.
    pub fn position(&self) -> usize {
        self.at
    }

    /// An error about `what` at the current position.
    pub fn malformed(&self, what: &'static str) -> DecodeError {
        DecodeError::Malformed { what, at: self.at }
    }

    /// Takes exactly `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.data.len());
        let end = end.ok_or(DecodeError::Truncated(self.data.len()))?;
        let bytes = &self.data[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// Reads one byte.
    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    /// Reads what [`Encoder::uint`] wrote. Only the shortest form is accepted, so that equal values have equal
    /// bytes.
    pub fn uint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 || shift > 0 && byte == 0 {
                return Err(self.malformed("integer"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed("integer"))
    }

    /// Reads an unsigned integer that fits `T`.
    pub fn small<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, DecodeError> {
        let value = self.uint()?;
        T::try_from(value).map_err(|_| self.malformed(what))
    }

    /// Reads what [`Encoder::int`] wrote.
    pub fn int(&mut self) -> Result<i64, DecodeError> {
        let value = self.uint()?;
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    /// Reads a byte string.
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.uint()?;
        let length = usize::try_from(length).map_err(|_| self.malformed("length"))?;
        self.take(length)
    }

    /// Reads a text.
    pub fn text(&mut self) -> Result<&'a str, DecodeError> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map_err(|_| self.malformed("text"))
    }

    /// Reads a digest.
    pub fn digest(&mut self) -> Result<Digest, DecodeError> {
        let malformed = self.malformed("digest");
        match self.byte()? {
            0 => Ok(Digest::Sha256(self.take(32)?.try_into().map_err(|_| malformed)?)),
            1 => Ok(Digest::Sha512(self.take(64)?.try_into().map_err(|_| malformed)?)),
            _ => Err(malformed),
        }
    }

    /// Reads what [`Encoder::option`] wrote.
    pub fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        match self.byte()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(self.malformed("option")),
        }
    }

    /// Reads what [`Encoder::list`] wrote. A count that the rest of the data cannot hold is refused before
    /// anything is allocated for it.
    pub fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.uint()?;
        let rest = self.data.len() - self.at;
        let count = usize::try_from(count).ok().filter(|count| *count <= rest);
        let count = count.ok_or_else(|| self.malformed("count"))?;
        // An item may be much larger in memory than encoded: grow as items really arrive.
        let mut items = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            items.push(read(self)?);
        }
        Ok(items)
    }

    /// Checks that everything was read.
    pub fn finish(&self) -> Result<(), DecodeError> {
        match self.data.len() - self.at {
            0 => Ok(()),
            left => Err(DecodeError::Trailing(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let mut encoder = Encoder::new();
        encoder.uint(0).uint(127).uint(128).uint(u64::MAX).int(-1).int(1).text("né").option(
            Some(7),
            |e, v| {
                e.uint(v);
            },
        );
        let expected =
            [0, 127, 128, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 1, 2, 3, b'n', 0xc3, 0xa9, 1, 7];
        assert_eq!(encoder.finish(), expected);
    }

    #[test]
    fn hostile_counts_and_long_forms_are_refused() {
        assert!(Decoder::new(&[255, 255, 255, 255, 15]).list(Decoder::byte).is_err());
        assert!(Decoder::new(&[255, 255, 255, 255, 15]).bytes().is_err());
        assert!(Decoder::new(&[0x80, 0]).uint().is_err());
        assert!(Decoder::new(&[0xff; 11]).uint().is_err());
    }

    proptest! {
        #[test]
        fn integers_round_trip(unsigned: u64, signed: i64) {
            let mut encoder = Encoder::new();
            encoder.uint(unsigned).int(signed);
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            prop_assert_eq!(decoder.uint().unwrap(), unsigned);
            prop_assert_eq!(decoder.int().unwrap(), signed);
            prop_assert!(decoder.finish().is_ok());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Decoder::new(&bytes).list(|d| d.text().map(str::to_owned));
            let _ = Decoder::new(&bytes).digest();
        }
    }
}
