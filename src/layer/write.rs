//! Writes a layer: entries in, blob and table of contents out.

use std::io::{ErrorKind, Read, Write};

use super::chunk::{CHUNK_MAX, Grouping, LARGE_FILE, chunk_end};
use super::error::LayerError;
use super::header::{BLOCK, Header, OPAQUE_NAME, WHITEOUT_PREFIX, pad};
use super::pipeline::{Compression, Pipeline, compressor};
use super::toc::{Entry, EntryKind, LayerDescriptor, MediaType, Metadata, Timestamp, Toc};
use super::toc_codec::{ENTRIES_MAX, parent, path_problem};
use super::trailer;
use crate::digest::{Digest, Hasher};

/// How a layer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerOptions {
    /// Its compression.
    pub compression: Compression,
    /// How many threads compress; between 1 and 6.
    pub threads: usize,
}

impl Default for LayerOptions {
    /// zstd at level 3, on two threads.
    fn default() -> Self {
        Self { compression: Compression::default(), threads: 2 }
    }
}

/// A layer that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedLayer {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Digest of the blob.
    pub digest: Digest,
    /// Length of the blob.
    pub size: u64,
    /// How the blob is encoded.
    pub media_type: MediaType,
    /// What is in it.
    pub toc: Toc,
    /// The encoded `toc`, to be stored as a blob of its own.
    pub toc_bytes: Vec<u8>,
    /// Digest of `toc_bytes`.
    pub toc_digest: Digest,
    /// Length of the uncompressed tar.
    pub raw_size: u64,
}

impl FinishedLayer {
    /// The layer's name for manifests, records and stores.
    pub fn descriptor(&self) -> LayerDescriptor {
        LayerDescriptor {
            diff_id: self.diff_id,
            digest: self.digest,
            size: self.size,
            media_type: self.media_type,
            toc: self.toc_digest,
        }
    }
}

/// Room for a group of small entries as most of them are, so that it is not moved while it grows.
const GROUP_CAPACITY: usize = 512 << 10;

/// How much of a large file is read at a time.
const READ_SIZE: u64 = 128 << 10;

/// Writes a layer blob, entry by entry, in the caller's order.
///
/// Times are cut to whole seconds, as Docker's and BuildKit's layers have them. The same entries in the same order
/// give the same tar, hence the same diff ID; with the same version of the compressor also the same blob.
pub struct LayerWriter<W: Write> {
    pipeline: Pipeline<W>,
    options: LayerOptions,
    /// The frame that small entries are gathered in.
    group: Vec<u8>,
    grouping: Grouping,
    /// Length of the tar before `group`.
    flushed: u64,
    /// Hashes the tar: everything before `group`, and this many bytes of it.
    tar: Hasher,
    hashed: usize,
    entries: Vec<Entry>,
}

impl<W: Write> std::fmt::Debug for LayerWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerWriter").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl<W: Write> LayerWriter<W> {
    /// A writer of a layer without entries; the blob goes to `out`.
    pub fn new(out: W, options: LayerOptions) -> Result<Self, LayerError> {
        let pipeline = Pipeline::new(out, options.compression, options.threads)?;
        Ok(Self {
            pipeline,
            options,
            group: Vec::new(),
            grouping: Grouping::default(),
            flushed: 0,
            tar: Hasher::default(),
            hashed: 0,
            entries: Vec::new(),
        })
    }

    /// Adds a directory; the empty path is the root. `opaque` and `implied` as in [`EntryKind::Directory`].
    pub fn directory(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        opaque: bool,
        implied: bool,
    ) -> Result<(), LayerError> {
        let name = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
        self.begin(path, &name, metadata, b'5', 0, b"", (0, 0))?;
        if opaque {
            let name = if path.is_empty() { OPAQUE_NAME.to_vec() } else { [&name, OPAQUE_NAME].concat() };
            self.header(&name, &Metadata::default(), b'0', 0, b"", (0, 0))?;
        }
        self.push(path, metadata, EntryKind::Directory { opaque, implied });
        Ok(())
    }

    /// Adds a regular file of exactly `size` bytes, read from `content` up to its end; returns the content's digest.
    pub fn file(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<Digest, LayerError> {
        self.begin(path, path, metadata, b'0', size, b"", (0, 0))?;
        let offset = self.flushed + self.group.len() as u64;
        let digest = if size >= LARGE_FILE {
            self.large(path, size, content)?
        } else {
            let start = self.group.len();
            let found = content.take(size).read_to_end(&mut self.group);
            let found = found.map_err(LayerError::io(format!("reading {}", super::display_path(path))))?;
            if (found as u64) < size {
                return Err(changed(path, size, found as u64));
            }
            self.tar.update(&self.group[self.hashed..start]);
            self.hashed = self.group.len();
            let mut hasher = Hasher::default();
            self.tar.update_both(&mut hasher, &self.group[start..]);
            hasher.finish()
        };
        expect_end(path, size, content)?;
        pad(&mut self.group, size);
        self.push(path, metadata, EntryKind::File { size, content: digest, offset });
        Ok(digest)
    }

    /// Adds another name of `target`, a path that was added before and is neither directory nor hard link.
    pub fn hard_link(&mut self, path: &[u8], metadata: &Metadata, target: &[u8]) -> Result<(), LayerError> {
        self.begin(path, path, metadata, b'1', 0, target, (0, 0))?;
        self.push(path, metadata, EntryKind::HardLink { target: target.to_vec() });
        Ok(())
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &[u8], metadata: &Metadata, target: &[u8]) -> Result<(), LayerError> {
        self.begin(path, path, metadata, b'2', 0, target, (0, 0))?;
        self.push(path, metadata, EntryKind::Symlink { target: target.to_vec() });
        Ok(())
    }

    /// Adds a character device; not 0:0, which overlayfs takes for a whiteout.
    pub fn char_device(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        major: u32,
        minor: u32,
    ) -> Result<(), LayerError> {
        if (major, minor) == (0, 0) {
            return Err(LayerError::entry(path, "is the device 0:0, which means removal to overlayfs"));
        }
        self.begin(path, path, metadata, b'3', 0, b"", (major, minor))?;
        self.push(path, metadata, EntryKind::CharDevice { major, minor });
        Ok(())
    }

    /// Adds a block device.
    pub fn block_device(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        major: u32,
        minor: u32,
    ) -> Result<(), LayerError> {
        self.begin(path, path, metadata, b'4', 0, b"", (major, minor))?;
        self.push(path, metadata, EntryKind::BlockDevice { major, minor });
        Ok(())
    }

    /// Adds a named pipe.
    pub fn fifo(&mut self, path: &[u8], metadata: &Metadata) -> Result<(), LayerError> {
        self.begin(path, path, metadata, b'6', 0, b"", (0, 0))?;
        self.push(path, metadata, EntryKind::Fifo);
        Ok(())
    }

    /// Takes `path` away from what lower layers have.
    pub fn whiteout(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let parent = parent(path).ok_or_else(|| LayerError::entry(path, "cannot be removed"))?;
        let start = if parent.is_empty() { 0 } else { parent.len() + 1 };
        let name = [&path[..start], WHITEOUT_PREFIX, &path[start..]].concat();
        let metadata = Metadata::default();
        self.begin(path, &name, &metadata, b'0', 0, b"", (0, 0))?;
        self.push(path, &metadata, EntryKind::Whiteout);
        Ok(())
    }

    /// Adds an entry as a [`Toc`] has it; `content` is needed for a file that is not empty.
    pub fn entry(&mut self, entry: &Entry, content: Option<&mut dyn Read>) -> Result<(), LayerError> {
        let Entry { path, metadata, kind } = entry;
        match kind {
            EntryKind::Directory { opaque, implied } => self.directory(path, metadata, *opaque, *implied),
            EntryKind::File { size, .. } => {
                let empty: &mut dyn Read = &mut std::io::empty();
                self.file(path, metadata, *size, content.unwrap_or(empty)).map(drop)
            }
            EntryKind::HardLink { target } => self.hard_link(path, metadata, target),
            EntryKind::Symlink { target } => self.symlink(path, metadata, target),
            EntryKind::CharDevice { major, minor } => self.char_device(path, metadata, *major, *minor),
            EntryKind::BlockDevice { major, minor } => self.block_device(path, metadata, *major, *minor),
            EntryKind::Fifo => self.fifo(path, metadata),
            EntryKind::Whiteout => self.whiteout(path),
        }
    }

    /// How many entries were added.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Ends the tar, writes what is left, and flushes the output.
    pub fn finish(mut self) -> Result<FinishedLayer, LayerError> {
        self.group.resize(self.group.len() + 2 * BLOCK, 0);
        self.flush()?;
        let finished = self.pipeline.finish()?;
        let toc = Toc { entries: self.entries, frames: finished.frames };
        toc.validate()?;
        let toc_bytes = toc.encode();
        let toc_digest = Digest::of(&toc_bytes);
        let mut out = finished.out;
        let media_type = match self.options.compression {
            Compression::Zstd { .. } => MediaType::Zstd,
            Compression::Gzip { .. } => MediaType::Gzip,
            Compression::None => MediaType::Tar,
        };
        if media_type == MediaType::Zstd {
            let compressed = compressor(3).and_then(|mut compressor| compressor.compress(&toc_bytes));
            let compressed = compressed.map_err(LayerError::io("compressing the layer"))?;
            let trailer = trailer::encode(&compressed, toc_bytes.len() as u64, &toc_digest, out.length());
            // A TOC that is too large for a skippable frame is a blob of its own only.
            if let Some(trailer) = trailer {
                out.write_all(&trailer).map_err(LayerError::io("writing the layer"))?;
            }
        }
        out.flush().map_err(LayerError::io("writing the layer"))?;
        let (_, digest, size) = out.finish();
        Ok(FinishedLayer {
            diff_id: self.tar.finish(),
            digest,
            size,
            media_type,
            toc,
            toc_bytes,
            toc_digest,
            raw_size: self.flushed,
        })
    }

    /// Checks an entry, decides whether it begins a frame, and writes its header.
    #[expect(clippy::too_many_arguments, reason = "the fields of a header")]
    fn begin(
        &mut self,
        path: &[u8],
        name: &[u8],
        metadata: &Metadata,
        typeflag: u8,
        size: u64,
        link: &[u8],
        device: (u32, u32),
    ) -> Result<(), LayerError> {
        if let Some(problem) = path_problem(path) {
            return Err(LayerError::entry(path, problem));
        }
        if path.split(|byte| *byte == b'/').any(|component| component.starts_with(WHITEOUT_PREFIX)) {
            let problem = "cannot be in a layer: names that begin with `.wh.` mean removal there";
            return Err(LayerError::entry(path, problem));
        }
        if metadata.mode > 0o7777 {
            return Err(LayerError::entry(path, "has a mode outside 0..=07777"));
        }
        if self.entries.len() >= ENTRIES_MAX {
            return Err(LayerError::Limit { what: "a number of entries", limit: ENTRIES_MAX as u64 });
        }
        if self.grouping.cuts_before(path, if size < LARGE_FILE { size } else { 0 }) {
            self.flush()?;
        }
        self.header(name, metadata, typeflag, size, link, device)
    }

    fn header(
        &mut self,
        name: &[u8],
        metadata: &Metadata,
        typeflag: u8,
        size: u64,
        link: &[u8],
        device: (u32, u32),
    ) -> Result<(), LayerError> {
        Header { name, metadata, typeflag, size, link, device, is_exact: false }.append(&mut self.group)
    }

    fn push(&mut self, path: &[u8], metadata: &Metadata, kind: EntryKind) {
        let mut metadata = metadata.clone();
        metadata.mtime = Timestamp { seconds: metadata.mtime.seconds, nanos: 0 };
        if kind == EntryKind::Whiteout {
            metadata = Metadata::default();
        }
        self.entries.push(Entry { path: path.to_vec(), metadata, kind });
    }

    fn flush(&mut self) -> Result<(), LayerError> {
        self.tar.update(&self.group[self.hashed..]);
        self.hashed = 0;
        self.flushed += self.group.len() as u64;
        let group = std::mem::replace(&mut self.group, Vec::with_capacity(GROUP_CAPACITY));
        self.pipeline.frame(group)
    }

    /// The content of a large file, in frames of its own.
    fn large(&mut self, path: &[u8], size: u64, content: &mut dyn Read) -> Result<Digest, LayerError> {
        self.flush()?;
        self.grouping.restart();
        let mut hasher = Hasher::default();
        let mut chunk = Vec::with_capacity(CHUNK_MAX);
        let mut read = 0;
        let mut searched = 0;
        loop {
            // Little is read at a time: it is hashed and searched while it is in the processor's cache, and little of
            // it belongs to the next chunk.
            let end = loop {
                if let Some(end) = chunk_end(&chunk, searched) {
                    break end;
                }
                searched = chunk.len();
                let wanted = (size - read).min(READ_SIZE);
                if wanted == 0 {
                    break chunk.len();
                }
                let found = (&mut *content).take(wanted).read_to_end(&mut chunk);
                let found =
                    found.map_err(LayerError::io(format!("reading {}", super::display_path(path))))?;
                read += found as u64;
                if (found as u64) < wanted {
                    return Err(changed(path, size, read));
                }
                self.tar.update_both(&mut hasher, &chunk[searched..]);
            };
            if end == 0 {
                return Ok(hasher.finish());
            }
            let mut next = Vec::with_capacity(CHUNK_MAX);
            next.extend_from_slice(&chunk[end..]);
            chunk.truncate(end);
            self.flushed += end as u64;
            self.pipeline.frame(std::mem::replace(&mut chunk, next))?;
            searched = 0;
        }
    }
}

/// Reads until `buffer` is full or the input ends; how many bytes were read.
pub(crate) fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn expect_end(path: &[u8], size: u64, content: &mut dyn Read) -> Result<(), LayerError> {
    let more = fill(content, &mut [0]);
    let more = more.map_err(LayerError::io(format!("reading {}", super::display_path(path))))?;
    if more == 0 {
        return Ok(());
    }
    Err(LayerError::Changed { path: super::display_path(path), expected: size, found: "more".to_owned() })
}

fn changed(path: &[u8], expected: u64, found: u64) -> LayerError {
    LayerError::Changed { path: super::display_path(path), expected, found: found.to_string() }
}
