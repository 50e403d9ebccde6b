//! What tables of contents and ledgers are wrapped in: magic, version, length, and one zstd frame.

use std::io::{self, Read as _};

use crate::encoding::{DecodeError, Decoder, Encoder};

/// How large something may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Compressed.
    pub(super) bytes: u64,
    /// Uncompressed.
    pub(super) raw: usize,
}

/// Wraps a payload.
pub(crate) fn encode(magic: &[u8], version: u64, payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut head = Encoder::new();
    head.uint(version).uint(payload.len() as u64);
    Ok([magic, &head.finish(), &zstd::bulk::compress(payload, 3)?].concat())
}

/// Unwraps a payload. No more is allocated for it than `limits` say, and than its beginning says.
pub(super) fn decode(
    what: &'static str,
    magic: &[u8],
    version: u64,
    bytes: &[u8],
    limits: Limits,
) -> Result<Vec<u8>, DecodeError> {
    let mut head = Decoder::new(bytes);
    if bytes.len() as u64 > limits.bytes || head.take(magic.len())? != magic {
        return Err(DecodeError::Malformed { what, at: 0 });
    }
    let found = head.uint()?;
    if found != version {
        return Err(DecodeError::Version { what, found, known: version });
    }
    let length = head.small::<usize>("length")?;
    // It grows as bytes really arrive: neither the length nor what the frame says of itself is believed.
    let payload = Some(length).filter(|length| *length <= limits.raw).and_then(|length| {
        let decoder = zstd::stream::read::Decoder::with_buffer(&bytes[head.position()..]).ok()?;
        let mut payload = Vec::with_capacity(length.min(1 << 20));
        let mut limited = decoder.single_frame().take(length as u64 + 1);
        limited.read_to_end(&mut payload).ok()?;
        let is_all = limited.into_inner().finish().is_empty();
        (payload.len() == length && is_all).then_some(payload)
    });
    payload.ok_or_else(|| head.malformed(what))
}
