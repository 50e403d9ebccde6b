//! Reads single files out of a blob by its table of contents, and whole layers without parsing a tar.

use std::io::{self, Read, Seek, SeekFrom};

use super::decompress::{Encoding, decode};
use super::error::LayerError;
use super::scan::{Item, LayerVisitor};
use super::toc::{Entry, EntryKind, Frame, MediaType, Metadata, Toc};
use crate::digest::{Digest, Hasher};

/// The largest frame that is read, raw or compressed. Ours have at most some 2 MiB; this bounds what a faulty TOC can
/// make the reader allocate.
const FRAME_MAX: u64 = 64 << 20;

impl Frame {
    /// What `bytes`, which have been found to be this frame, decompress to.
    ///
    /// # Errors
    /// If they are not of this encoding, or of another size than the TOC says, or of one that no frame has.
    pub fn decode(&self, encoding: Encoding, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        if self.raw_size.max(self.size) > FRAME_MAX {
            return Err(io::Error::other(LayerError::Limit { what: "a frame", limit: FRAME_MAX }));
        }
        let raw = match encoding {
            Encoding::Plain => bytes,
            // In one go: a stream would copy everything once more.
            Encoding::Zstd => zstd::bulk::decompress(&bytes, self.raw_size as usize)?,
            _ => {
                let mut raw = Vec::with_capacity(self.raw_size as usize);
                decode(&*bytes, encoding)?.take(self.raw_size + 1).read_to_end(&mut raw)?;
                raw
            }
        };
        if raw.len() as u64 == self.raw_size {
            return Ok(raw);
        }
        let problem = "a frame of the layer does not have the size that its TOC says";
        Err(io::Error::new(io::ErrorKind::InvalidData, problem))
    }
}

/// Gives parts of a blob: a file, or a store that is asked for ranges.
pub trait ReadRange {
    /// Exactly `length` bytes at `offset`.
    fn read_range(&mut self, offset: u64, length: u64) -> io::Result<Vec<u8>>;
}

impl<T: Read + Seek> ReadRange for T {
    fn read_range(&mut self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        self.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        self.take(length).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
    }
}

/// Reads the files of one layer from its frames. Each frame is verified when it is read; the last one is kept, so
/// that reading the files in the order of the TOC reads each frame once.
#[derive(Debug)]
pub struct TocReader<'a, B> {
    toc: &'a Toc,
    encoding: Encoding,
    blob: B,
    /// Where each frame begins: in the tar, and in the blob.
    starts: Vec<(u64, u64)>,
    /// The last frame that was read.
    last: Option<(usize, Vec<u8>)>,
}

impl<'a, B: ReadRange> TocReader<'a, B> {
    /// A reader of `blob`, a layer of this media type whose table of contents is `toc`; `None` if that has no frames,
    /// as of other people's layers: these can only be read from their beginning, with [`super::scan`].
    pub fn new(toc: &'a Toc, media_type: MediaType, blob: B) -> Option<Self> {
        if toc.frames.is_empty() {
            return None;
        }
        let mut at = (0_u64, 0_u64);
        let mut starts = Vec::with_capacity(toc.frames.len());
        for frame in &toc.frames {
            starts.push(at);
            at = (at.0.checked_add(frame.raw_size)?, at.1.checked_add(frame.size)?);
        }
        Some(Self { toc, encoding: Encoding::of(media_type), blob, starts, last: None })
    }

    /// The content of the file `entry`, which is one of the TOC's. Its end is an error if the content does not have
    /// the digest that the TOC says. Empty for what is no file.
    pub fn content<'r>(&'r mut self, entry: &'r Entry) -> FileReader<'r, 'a, B> {
        let (offset, size, digest) = match &entry.kind {
            EntryKind::File { size, content, offset } => (*offset, *size, Some(content)),
            _ => (0, 0, None),
        };
        FileReader {
            reader: self,
            path: &entry.path,
            at: offset,
            left: size,
            digest,
            hasher: Hasher::default(),
        }
    }

    /// Shows all entries to `visitor`, in the order of the tar.
    pub fn visit(&mut self, visitor: &mut dyn LayerVisitor) -> Result<(), LayerError> {
        let toc = self.toc;
        for entry in &toc.entries {
            let Entry { path, metadata, kind } = entry;
            let nothing: &mut dyn Read = &mut io::empty();
            match kind {
                EntryKind::File { size, .. } => {
                    let mut content = self.content(entry);
                    visitor.visit(path, metadata, Item::File { size: *size }, &mut content)?;
                }
                EntryKind::Directory { opaque, .. } => {
                    visitor.visit(path, metadata, Item::Directory, nothing)?;
                    if *opaque {
                        visitor.visit(path, &Metadata::default(), Item::Opaque, nothing)?;
                    }
                }
                EntryKind::HardLink { target } => {
                    visitor.visit(path, metadata, Item::HardLink { target }, nothing)?;
                }
                EntryKind::Symlink { target } => {
                    visitor.visit(path, metadata, Item::Symlink { target }, nothing)?;
                }
                EntryKind::CharDevice { major, minor } => {
                    let item = Item::CharDevice { major: *major, minor: *minor };
                    visitor.visit(path, metadata, item, nothing)?;
                }
                EntryKind::BlockDevice { major, minor } => {
                    let item = Item::BlockDevice { major: *major, minor: *minor };
                    visitor.visit(path, metadata, item, nothing)?;
                }
                EntryKind::Fifo => visitor.visit(path, metadata, Item::Fifo, nothing)?,
                EntryKind::Whiteout => visitor.visit(path, metadata, Item::Whiteout, nothing)?,
            }
        }
        Ok(())
    }

    /// The raw bytes of the frame that has the tar's byte `at`, and where in the tar it begins.
    fn frame(&mut self, at: u64) -> io::Result<(u64, &[u8])> {
        let number = self.starts.partition_point(|(start, _)| *start <= at).saturating_sub(1);
        let (raw_start, start) = self.starts[number];
        if self.last.as_ref().is_none_or(|(last, _)| *last != number) {
            let frame = self.toc.frames[number];
            if frame.size > FRAME_MAX {
                return Err(io::Error::other(LayerError::Limit { what: "a frame", limit: FRAME_MAX }));
            }
            let bytes = self.blob.read_range(start, frame.size)?;
            if !frame.id.matches(&bytes) {
                let what = format!("frame {number} of the layer");
                return Err(io::Error::other(LayerError::damaged(what, frame.id, Digest::of(&bytes))));
            }
            let raw = frame.decode(self.encoding, bytes)?;
            self.last = Some((number, raw));
        }
        let raw = self.last.as_ref().map_or(&[][..], |(_, raw)| raw);
        Ok((raw_start, raw))
    }
}

/// Reads one file: see [`TocReader::content`].
#[derive(Debug)]
pub struct FileReader<'r, 'a, B> {
    reader: &'r mut TocReader<'a, B>,
    path: &'r [u8],
    at: u64,
    left: u64,
    digest: Option<&'r Digest>,
    hasher: Hasher,
}

impl<B: ReadRange> Read for FileReader<'_, '_, B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.left == 0 {
            return Ok(0);
        }
        let (start, raw) = self.reader.frame(self.at)?;
        let data = raw.get((self.at - start) as usize..).unwrap_or_default();
        let count = data.len().min(buffer.len()).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer[..count].copy_from_slice(&data[..count]);
        self.hasher.update(&buffer[..count]);
        self.at += count as u64;
        self.left -= count as u64;
        if self.left == 0
            && let Some(expected) = self.digest.take()
        {
            let actual = std::mem::take(&mut self.hasher).finish();
            if actual != *expected {
                let what = super::display_path(self.path);
                return Err(io::Error::other(LayerError::damaged(what, *expected, actual)));
            }
        }
        Ok(count)
    }
}
