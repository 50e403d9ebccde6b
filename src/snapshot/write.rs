//! Storing the content of files in packs.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use super::chunk::{CHUNK_MAX, chunk_length};
use super::error::SnapshotError;
use super::index::{self, ChunkIndex, Indexed};
use super::{Extent, Pack};
use crate::digest::Digest;
use crate::layer::{Compression, Pipeline, display_path};

/// A frame ends at the end of a chunk that gives it this many bytes…
const FRAME_FULL: usize = 512 << 10;

/// …or before the first chunk of a file if it has this many: whoever reads a large file is not to fetch many neighbours.
const FRAME_CUT: usize = 256 << 10;

/// A pack ends when it has this many bytes, uncompressed: large enough to be few, small enough to be sent again when a
/// connection breaks.
const PACK_RAW: u64 = 32 << 20;

/// What is not worth being left out.
const HOLE_MIN: usize = 4 << 10;

/// Takes packs as they are written.
pub trait PackSink {
    /// Takes the bytes of one pack.
    type Out: Write;

    /// Begins a pack.
    ///
    /// # Errors
    /// If that is not possible.
    fn begin(&mut self) -> io::Result<Self::Out>;

    /// Takes a pack that is whole: `size` bytes with this digest.
    ///
    /// # Errors
    /// If it cannot be kept.
    fn finish(&mut self, out: Self::Out, digest: &Digest, size: u64) -> io::Result<()>;
}

/// Stores the content of files in packs, each chunk once. Memory is bounded by the frames under way (some tens of MiB) and by
/// what is known of chunks, whatever the files are.
pub struct Writer<S: PackSink> {
    packs: Vec<Pack>,
    known: HashMap<Digest, Extent>,
    indexed: Vec<Indexed>,
    open: Option<OpenPack<S::Out>>,
    threads: usize,
    new_bytes: u64,
    sink: S,
}

impl<S: PackSink> std::fmt::Debug for Writer<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("packs", &self.packs.len()).finish_non_exhaustive()
    }
}

/// The pack that is being written: the one behind all others.
struct OpenPack<W> {
    pipeline: Pipeline<W>,
    /// What is in it, uncompressed, with what is in `frame`.
    raw: u64,
    frame: Vec<u8>,
    chunks: Vec<(Digest, u64)>,
}

/// What a [`Writer`] has written.
#[derive(Debug)]
pub struct Written<S> {
    /// The packs that were there already, and the new ones behind them.
    pub packs: Vec<Pack>,
    /// The index part about the new ones, if there are any.
    pub index: Option<Vec<u8>>,
    /// Bytes of the new ones.
    pub new_bytes: u64,
    /// Where they went.
    pub sink: S,
}

impl<S: PackSink> Writer<S> {
    /// A writer that goes on from `packs`, whose places stay what they are, and of which these chunks are `known`. Chunks of
    /// other packs do not count. Frames are compressed by so many `threads`.
    pub fn new(packs: Vec<Pack>, known: ChunkIndex, threads: usize, sink: S) -> Self {
        let places: HashMap<Digest, (u32, u64)> =
            (0..).zip(&packs).map(|(place, pack)| (pack.digest, (place, pack.raw_size()))).collect();
        let extent = |(digest, pack, offset, length): (Digest, Digest, u64, u64)| {
            let (place, raw_size) = *places.get(&pack)?;
            // An index that says what is not so is of no use.
            offset.checked_add(length).filter(|end| *end <= raw_size)?;
            Some((digest, Extent { pack: Some(place), offset, length }))
        };
        let known = known.into_chunks().filter_map(extent).collect();
        Self { packs, known, indexed: Vec::new(), open: None, threads, new_bytes: 0, sink }
    }

    /// Stores a file's content, of which there are `size` bytes.
    ///
    /// # Errors
    /// If it has another length, cannot be read, or cannot be stored. After the last, some of what other files refer to
    /// may be stored nowhere: the writer is to be given up.
    pub fn file(
        &mut self,
        path: &[u8],
        size: u64,
        content: &mut dyn Read,
    ) -> Result<Vec<Extent>, SnapshotError> {
        let changed =
            |found: String| SnapshotError::Changed { path: display_path(path), expected: size, found };
        let mut extents: Vec<Extent> = Vec::new();
        let mut buffer = Vec::new();
        let mut read = 0_u64;
        loop {
            // Enough for the longest chunk, and for some more, so that little is moved.
            let wanted = (size - read).min((8 * CHUNK_MAX - buffer.len()) as u64);
            let found = (&mut *content).take(wanted).read_to_end(&mut buffer);
            let found = found.map_err(SnapshotError::io(format!("reading {}", display_path(path))))? as u64;
            read += found;
            if found < wanted {
                return Err(changed(read.to_string()));
            }
            let is_end = read == size;
            let mut at = 0;
            while at < buffer.len() && (is_end || buffer.len() - at >= CHUNK_MAX) {
                let rest = &buffer[at..];
                let length = if size <= CHUNK_MAX as u64 { rest.len() } else { chunk_length(rest) };
                let extent = self.chunk(&rest[..length], extents.is_empty())?;
                at += length;
                match extents.last_mut() {
                    Some(last) if last.joins(&extent) => last.length += extent.length,
                    _ => extents.push(extent),
                }
            }
            buffer.drain(..at);
            if is_end {
                break;
            }
        }
        let mut more = [0];
        let more = crate::layer::fill(content, &mut more);
        match more.map_err(SnapshotError::io(format!("reading {}", display_path(path))))? {
            0 => Ok(extents),
            _ => Err(changed("more".to_owned())),
        }
    }

    fn chunk(&mut self, bytes: &[u8], is_first: bool) -> Result<Extent, SnapshotError> {
        let length = bytes.len() as u64;
        if bytes.len() >= HOLE_MIN && bytes.iter().all(|byte| *byte == 0) {
            return Ok(Extent { pack: None, offset: 0, length });
        }
        let digest = Digest::of(bytes);
        if let Some(known) = self.known.get(&digest)
            && known.length == length
        {
            return Ok(*known);
        }
        if self.open.as_ref().is_some_and(|open| open.raw >= PACK_RAW) {
            self.end_pack()?;
        }
        let place = u32::try_from(self.packs.len())
            .map_err(|_| SnapshotError::Limit { what: "a number of packs", limit: u32::MAX.into() })?;
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let out = self.sink.begin().map_err(SnapshotError::io("beginning a pack"))?;
                let pipeline = Pipeline::new(out, Compression::default(), self.threads)?;
                self.open.insert(OpenPack { pipeline, raw: 0, frame: Vec::new(), chunks: Vec::new() })
            }
        };
        if open.frame.len() >= if is_first { FRAME_CUT } else { FRAME_FULL } {
            open.pipeline.frame(std::mem::take(&mut open.frame))?;
        }
        let extent = Extent { pack: Some(place), offset: open.raw, length };
        open.frame.extend_from_slice(bytes);
        open.raw += length;
        open.chunks.push((digest, length));
        self.known.insert(digest, extent);
        Ok(extent)
    }

    fn end_pack(&mut self) -> Result<(), SnapshotError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.pipeline.frame(open.frame)?;
        let finished = open.pipeline.finish()?;
        let (out, digest, size) = finished.out.finish();
        self.sink.finish(out, &digest, size).map_err(SnapshotError::io("keeping a pack"))?;
        self.packs.push(Pack { digest, size, frames: finished.frames });
        self.indexed.push(Indexed { pack: digest, chunks: open.chunks });
        self.new_bytes += size;
        Ok(())
    }

    /// Ends the last pack.
    ///
    /// # Errors
    /// If it cannot be kept.
    pub fn finish(mut self) -> Result<Written<S>, SnapshotError> {
        self.end_pack()?;
        let index = (!self.indexed.is_empty()).then(|| index::encode(&self.indexed));
        Ok(Written { packs: self.packs, index, new_bytes: self.new_bytes, sink: self.sink })
    }
}
