//! Compressed streams, told apart by how they begin, and read to their very end.

use std::io::{self, BufRead, BufReader, Read};

use super::toc::MediaType;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Not at all, as far as its beginning tells.
    Plain,
    /// gzip, of any number of members.
    Gzip,
    /// zstd, of any number of frames.
    Zstd,
    /// bzip2, of any number of streams.
    Bzip2,
    /// xz, of any number of streams.
    Xz,
}

/// How many bytes [`Encoding::sniff`] wants to see.
pub const SNIFF_LENGTH: usize = 6;

/// The largest dictionary of an xz stream, in KiB: what `xz -9` uses. More is hostile.
const XZ_MEMORY_KIB: u32 = 128 << 10;

/// The largest zstd window, as a power of two: 128 MiB, which is what decoders accept unasked.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

impl Encoding {
    /// The encoding of a stream that begins with `start`, of which the first [`SNIFF_LENGTH`] bytes count.
    pub fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::Plain,
        }
    }

    /// The encoding that a media type stands for.
    pub fn of(media_type: MediaType) -> Self {
        match media_type {
            MediaType::Tar => Self::Plain,
            MediaType::Gzip => Self::Gzip,
            MediaType::Zstd => Self::Zstd,
        }
    }

    /// The media type of a layer with this encoding; `None` where there is none.
    pub fn media_type(self) -> Option<MediaType> {
        match self {
            Self::Plain => Some(MediaType::Tar),
            Self::Gzip => Some(MediaType::Gzip),
            Self::Zstd => Some(MediaType::Zstd),
            Self::Bzip2 | Self::Xz => None,
        }
    }
}

/// Decompresses `input`, by what it begins with. All members, frames or streams are read; a stream that ends in the
/// middle is an error.
pub fn decompress<'a>(input: impl Read + Send + 'a) -> io::Result<(Encoding, Box<dyn Read + Send + 'a>)> {
    let mut input = input;
    let mut start = [0; SNIFF_LENGTH];
    let length = super::write::fill(&mut input, &mut start)?;
    let encoding = Encoding::sniff(&start[..length]);
    let input = io::Cursor::new(start).take(length as u64).chain(input);
    let input = BufReader::with_capacity(128 << 10, input);
    Ok((encoding, decode(input, encoding)?))
}

/// Decompresses `input`, which is encoded so.
pub(super) fn decode<'a>(
    input: impl BufRead + Send + 'a,
    encoding: Encoding,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match encoding {
        Encoding::Plain => Box::new(input),
        Encoding::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Encoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        Encoding::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Encoding::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY_KIB)),
    })
}
