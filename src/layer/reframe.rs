//! Writes a copy of a layer that can be read from anywhere in it: the same tar, byte for byte, in frames of ours.

use std::io::{self, Read, Write};

use super::chunk::{CHUNK_MAX, Grouping, LARGE_FILE, chunk_end};
use super::error::LayerError;
use super::header::BLOCK;
use super::pipeline::{Compression, Pipeline};
use super::scan::{LayerVisitor, ScanOptions, Scanned, Tap, scan_with};
use super::tar_read::{RawEntry, RawKind};
use super::write::LayerOptions;
use crate::digest::Digest;

/// A group is cut here whatever it is of: headers, or what follows the tar's end, can be of any length.
const GROUP_BYTES_MAX: usize = 4 << 20;

/// So much of a large file is looked at at a time.
const SEARCH_STEP: usize = 128 << 10;

/// What is known of a copy, and of the layer that it is one of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reframed {
    /// The layer. Its TOC has the frames of the copy: the offsets of files are the same in both.
    pub scanned: Scanned,
    /// Digest of the copy.
    pub digest: Digest,
    /// Length of the copy.
    pub size: u64,
}

/// Reads a layer as [`scan`](super::scan) does, and writes a copy of it to `out`: frames one behind the other, and nothing
/// after them, as zstd or whatever `layer` says.
pub fn reframe<W: Write>(
    input: impl Read + Send,
    options: &ScanOptions,
    visitor: &mut dyn LayerVisitor,
    out: W,
    layer: LayerOptions,
) -> Result<Reframed, LayerError> {
    let writing = LayerError::io("writing a copy of the layer");
    let mut framer = Framer::new(out, layer.compression, layer.threads)?;
    let mut scanned = scan_with(input, options, visitor, &mut framer)?;
    framer.cut().map_err(writing)?;
    let finished = framer.pipeline.finish()?;
    let mut out = finished.out;
    out.flush().map_err(LayerError::io("writing a copy of the layer"))?;
    let (_, digest, size) = out.finish();
    scanned.toc.frames = finished.frames;
    scanned.toc.validate()?;
    Ok(Reframed { scanned, digest, size })
}

/// Cuts a tar into frames along its files, much as they are cut in layers of our own.
struct Framer<W> {
    pipeline: Pipeline<W>,
    /// The frame that small entries are gathered in.
    group: Vec<u8>,
    grouping: Grouping,
    /// Where in `group` the entry that comes next begins.
    mark: usize,
    large: Option<Large>,
}

/// A large file that is on its way.
struct Large {
    left: u64,
    chunk: Vec<u8>,
    searched: usize,
}

impl<W: Write> Framer<W> {
    fn new(out: W, compression: Compression, threads: usize) -> Result<Self, LayerError> {
        let pipeline = Pipeline::new(out, compression, threads)?;
        Ok(Self { pipeline, group: Vec::new(), grouping: Grouping::default(), mark: 0, large: None })
    }

    fn frame(&mut self, raw: Vec<u8>) -> io::Result<()> {
        self.pipeline.frame(raw).map_err(io::Error::other)
    }

    /// Ends the group.
    fn cut(&mut self) -> io::Result<()> {
        self.mark = 0;
        let group = std::mem::take(&mut self.group);
        self.frame(group)
    }

    /// Takes the bytes of a large file, and gives back what follows it.
    fn large<'b>(&mut self, large: &mut Large, bytes: &'b [u8]) -> io::Result<&'b [u8]> {
        let count = usize::try_from(large.left).unwrap_or(usize::MAX).min(bytes.len());
        let (own, rest) = bytes.split_at(count);
        large.chunk.extend_from_slice(own);
        large.left -= count as u64;
        if large.left > 0 && large.chunk.len() - large.searched < SEARCH_STEP {
            return Ok(rest);
        }
        while let Some(end) = chunk_end(&large.chunk, large.searched) {
            let mut next = Vec::with_capacity(CHUNK_MAX);
            next.extend_from_slice(&large.chunk[end..]);
            large.chunk.truncate(end);
            self.frame(std::mem::replace(&mut large.chunk, next))?;
            large.searched = 0;
        }
        large.searched = large.chunk.len();
        if large.left == 0 {
            self.frame(std::mem::take(&mut large.chunk))?;
        }
        Ok(rest)
    }
}

impl<W: Write> Tap for Framer<W> {
    fn bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if let Some(mut large) = self.large.take() {
            bytes = self.large(&mut large, bytes)?;
            self.large = (large.left > 0).then_some(large);
        }
        self.group.extend_from_slice(bytes);
        if self.group.len() >= GROUP_BYTES_MAX { self.cut() } else { Ok(()) }
    }

    fn entry(&mut self, entry: &RawEntry) -> io::Result<()> {
        let is_large = entry.kind == RawKind::File && entry.stored >= LARGE_FILE;
        let content = if is_large { 0 } else { entry.stored };
        let weight = (self.group.len() - self.mark) as u64 + content.next_multiple_of(BLOCK as u64);
        if self.grouping.cuts(&entry.name, content, weight) {
            let next = self.group.split_off(self.mark);
            self.cut()?;
            self.group = next;
        }
        if is_large {
            self.cut()?;
            self.grouping.restart();
            self.large = Some(Large { left: entry.stored, chunk: Vec::new(), searched: 0 });
        }
        Ok(())
    }

    fn end(&mut self) {
        self.mark = self.group.len();
    }
}
