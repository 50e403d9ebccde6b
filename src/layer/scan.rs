//! Reads a layer, or any tar, once: everything that can be known of it, and what a visitor makes of it, in one pass.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::decompress::{Encoding, decompress};
use super::error::LayerError;
use super::header::{OPAQUE_NAME, WHITEOUT_PREFIX};
use super::index::Index;
use super::tar_read::{RawEntry, RawKind, TarReader};
use super::toc::{Entry, EntryKind, Metadata, Toc};
use super::toc_codec::{ENTRIES_MAX, path_problem};
use crate::digest::{Digest, Hasher, Hashing};

/// Sees the entries of a layer, in the order of the tar.
pub trait LayerVisitor {
    /// Called for each entry. `path` obeys the rules of [`Entry::path`] but may come again: the later entry counts.
    /// `content` is empty but for files, of which it may be read in part or not at all.
    fn visit(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        item: Item<'_>,
        content: &mut dyn Read,
    ) -> Result<(), LayerError>;
}

/// A visitor that only lets itself be visited.
impl LayerVisitor for () {
    fn visit(&mut self, _: &[u8], _: &Metadata, _: Item<'_>, _: &mut dyn Read) -> Result<(), LayerError> {
        Ok(())
    }
}

/// What a visitor sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// A directory.
    Directory,
    /// What lower layers have in this directory is hidden. An item of its own, before or after the directory's or
    /// without one.
    Opaque,
    /// A regular file.
    File {
        /// Length of the content.
        size: u64,
    },
    /// Another name of `target`, which came before or is in a lower layer.
    HardLink {
        /// A path.
        target: &'a [u8],
    },
    /// A symbolic link.
    Symlink {
        /// Its text.
        target: &'a [u8],
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// What lower layers have at this path is hidden; the path may be used again.
    Whiteout,
}

/// How a stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanOptions {
    /// Whether `.wh.` names mean removal, as in layers. In other archives they are names.
    pub whiteouts: bool,
    /// The most bytes that the tar may have, and the files in it together, holes included.
    pub max_raw_size: u64,
    /// The most entries.
    pub max_entries: usize,
}

impl Default for ScanOptions {
    /// A layer of up to 1 TiB.
    fn default() -> Self {
        Self { whiteouts: true, max_raw_size: 1 << 40, max_entries: ENTRIES_MAX }
    }
}

/// What is known of a stream that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Length of the uncompressed tar.
    pub raw_size: u64,
    /// Digest of the stream as it came.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// How it was compressed.
    pub encoding: Encoding,
    /// What is in it, with later entries winning over earlier ones of the same path; without frames.
    pub toc: Toc,
}

/// Bytes that one thread hands to another at a time.
const PIECE: usize = 256 << 10;

/// Pieces under way between two threads: 2 MiB.
const PIECES: usize = 8;

/// Reads the layer or tar `input`, compressed or not, to its end. `visitor` sees each entry as it comes; if it fails,
/// reading stops with its error. Decompressing and hashing are done by threads of their own.
pub fn scan(
    input: impl Read + Send,
    options: &ScanOptions,
    visitor: &mut dyn LayerVisitor,
) -> Result<Scanned, LayerError> {
    scan_with(input, options, visitor, &mut ())
}

/// Sees the bytes of the tar, and what they are, in their order.
pub(super) trait Tap {
    /// The next bytes.
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// What has come since the end of the entry before is the headers of this one; its content comes next.
    fn entry(&mut self, entry: &RawEntry) -> io::Result<()>;

    /// The entry is over, with its padding.
    fn end(&mut self);
}

impl Tap for () {
    fn bytes(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn entry(&mut self, _: &RawEntry) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self) {}
}

/// The same with a `tap` on the uncompressed tar.
pub(super) fn scan_with<T: Tap>(
    input: impl Read + Send,
    options: &ScanOptions,
    visitor: &mut dyn LayerVisitor,
    tap: &mut T,
) -> Result<Scanned, LayerError> {
    std::thread::scope(|scope| {
        let (send, pieces) = sync_channel(PIECES);
        let source = scope.spawn(move || decompress_into(input, &send));
        let (to_hash, hashed) = sync_channel::<Arc<Vec<u8>>>(PIECES);
        let hasher = scope.spawn(move || {
            let mut hasher = Hasher::default();
            for piece in hashed {
                hasher.update(&piece);
            }
            hasher.finish()
        });
        let pieces = Pieces {
            pieces,
            to_hash,
            piece: Arc::default(),
            at: 0,
            raw_size: 0,
            limit: options.max_raw_size,
            failed: false,
            tap,
        };
        let walked = walk(pieces, options, visitor);
        // `walk` has dropped the channels by now, so both threads end.
        let diff_id = hasher.join().map_err(|_| LayerError::Pipeline)?;
        let source = source.join().map_err(|_| LayerError::Pipeline)?;
        let (toc, raw_size) = walked?;
        let (encoding, digest, size) = source.map_err(LayerError::io("reading the layer"))?;
        if options.whiteouts && encoding.media_type().is_none() {
            return Err(LayerError::UnknownCompression);
        }
        Ok(Scanned { diff_id, raw_size, digest, size, encoding, toc })
    })
}

/// Reads `input` to its end, which is what gives its digest, and sends what it decompresses to.
fn decompress_into(
    input: impl Read + Send,
    send: &SyncSender<io::Result<Vec<u8>>>,
) -> io::Result<(Encoding, Digest, u64)> {
    let mut input = Hashing::new(input);
    let encoding = send_pieces(&mut input, send)?;
    io::copy(&mut input, &mut io::sink())?;
    let (_, digest, size) = input.finish();
    Ok((encoding, digest, size))
}

/// An error goes to the receiver, which reports it; then, or if the receiver is gone because of an error of its own,
/// what is returned is only the sign that there was one.
fn send_pieces(input: impl Read + Send, send: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<Encoding> {
    let gone = || io::Error::from(io::ErrorKind::InvalidData);
    let (encoding, mut stream) = match decompress(input) {
        Ok(opened) => opened,
        Err(error) => {
            send.send(Err(error)).map_err(|_| gone())?;
            return Err(gone());
        }
    };
    loop {
        let mut piece = vec![0; PIECE];
        match super::write::fill(&mut stream, &mut piece) {
            Ok(0) => return Ok(encoding),
            Ok(length) => {
                piece.truncate(length);
                send.send(Ok(piece)).map_err(|_| gone())?;
            }
            Err(error) => {
                send.send(Err(error)).map_err(|_| gone())?;
                return Err(gone());
            }
        }
    }
}

/// Reads what [`decompress_into`] sends, and has it hashed.
struct Pieces<'t, T> {
    pieces: Receiver<io::Result<Vec<u8>>>,
    to_hash: SyncSender<Arc<Vec<u8>>>,
    piece: Arc<Vec<u8>>,
    at: usize,
    raw_size: u64,
    limit: u64,
    failed: bool,
    tap: &'t mut T,
}

/// The message of the error that [`Pieces`] gives when the stream is too long.
#[derive(Debug, thiserror::Error)]
#[error("the uncompressed layer is too large")]
struct TooLarge;

impl<T: Tap> Read for Pieces<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            if self.failed {
                return Err(io::ErrorKind::InvalidData.into());
            }
            // The sender is gone after the last piece.
            let Ok(piece) = self.pieces.recv() else { return Ok(0) };
            let piece = piece.inspect_err(|_| self.failed = true)?;
            self.raw_size += piece.len() as u64;
            if self.raw_size > self.limit {
                self.failed = true;
                return Err(io::Error::other(TooLarge));
            }
            self.piece = Arc::new(piece);
            self.at = 0;
            let sent = self.to_hash.send(Arc::clone(&self.piece));
            sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.tap.bytes(&buffer[..count])?;
        self.at += count;
        Ok(count)
    }
}

fn walk<T: Tap>(
    pieces: Pieces<'_, T>,
    options: &ScanOptions,
    visitor: &mut dyn LayerVisitor,
) -> Result<(Toc, u64), LayerError> {
    let limit = options.max_raw_size;
    let too_large = |error| match error {
        LayerError::Io { source, .. }
            if source.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<TooLarge>) =>
        {
            LayerError::Limit { what: "a size", limit }
        }
        error => error,
    };
    let mut tar = TarReader::new(pieces);
    let mut index = Index::default();
    let mut content_size = 0_u64;
    while let Some(entry) = tar.next().map_err(too_large)? {
        if index.len() >= options.max_entries {
            return Err(LayerError::Limit { what: "a number of entries", limit: options.max_entries as u64 });
        }
        content_size = content_size.saturating_add(entry.size);
        if content_size > options.max_raw_size {
            return Err(LayerError::Limit { what: "a size", limit });
        }
        tar.input().tap.entry(&entry).map_err(LayerError::io("writing a copy of the layer"))?;
        visit(&mut tar, &entry, options, &mut index, visitor).map_err(too_large)?;
        tar.input().tap.end();
    }
    let mut pieces = tar.into_inner();
    let rest = io::copy(&mut pieces, &mut io::sink());
    rest.map_err(LayerError::io("reading the layer")).map_err(too_large)?;
    let toc = index.finish();
    toc.validate()?;
    Ok((toc, pieces.raw_size))
}

fn visit<T: Tap>(
    tar: &mut TarReader<Pieces<'_, T>>,
    raw: &RawEntry,
    options: &ScanOptions,
    index: &mut Index,
    visitor: &mut dyn LayerVisitor,
) -> Result<(), LayerError> {
    let path = normalise(&raw.name)?;
    let mut metadata = raw.metadata.clone();
    if options.whiteouts {
        // These are how overlayfs itself marks removals: no layer may bring its own.
        metadata.xattrs.retain(|name, _| !is_overlay_xattr(name));
    }
    let mut content = tar.content(raw);
    let removal = if options.whiteouts { removal(&path)? } else { None };
    let nothing: &mut dyn Read = &mut io::empty();
    if let Some(removal) = removal {
        if !matches!(raw.kind, RawKind::File | RawKind::HardLink) {
            return Err(LayerError::entry(&path, "is a whiteout, but no file"));
        }
        io::copy(&mut content, &mut io::sink()).map_err(LayerError::io("reading the layer"))?;
        content.finish()?;
        return match removal {
            Removal::Ignored => Ok(()),
            Removal::Opaque(directory) => {
                visitor.visit(&directory, &Metadata::default(), Item::Opaque, nothing)?;
                index.opaque(directory);
                Ok(())
            }
            Removal::Whiteout(path) => {
                visitor.visit(&path, &Metadata::default(), Item::Whiteout, nothing)?;
                index.whiteout(path);
                Ok(())
            }
        };
    }
    if path.is_empty() && raw.kind != RawKind::Directory {
        return Err(LayerError::entry(&raw.name, "is the root, but no directory"));
    }
    let (major, minor) = raw.device;
    if options.whiteouts && raw.kind == RawKind::CharDevice && (major, minor) == (0, 0) {
        return Err(LayerError::entry(&path, "is the device 0:0, which means removal to overlayfs"));
    }
    let link = match raw.kind {
        RawKind::HardLink => {
            let target = normalise(&raw.link)?;
            if target.is_empty() || options.whiteouts && removal_in(&target) {
                return Err(LayerError::entry(&path, "is a hard link to what cannot be linked"));
            }
            target
        }
        RawKind::Symlink if raw.link.is_empty() || raw.link.contains(&0) => {
            return Err(LayerError::entry(&path, "has an impossible link target"));
        }
        _ => raw.link.clone(),
    };
    let (item, kind) = match raw.kind {
        RawKind::File => {
            let mut hashed = Hashing::new(&mut content);
            visitor.visit(&path, &metadata, Item::File { size: raw.size }, &mut hashed)?;
            let rest = io::copy(&mut hashed, &mut io::sink());
            rest.map_err(LayerError::io(format!("reading {}", super::display_path(&path))))?;
            let (_, digest, _) = hashed.finish();
            content.finish()?;
            let offset = if raw.sparse.is_some() { 0 } else { raw.offset };
            let kind = EntryKind::File { size: raw.size, content: digest, offset };
            return index.add(Entry { path, metadata, kind });
        }
        RawKind::Directory => (Item::Directory, EntryKind::Directory { opaque: false, implied: false }),
        RawKind::HardLink => (Item::HardLink { target: &link }, EntryKind::HardLink { target: link.clone() }),
        RawKind::Symlink => (Item::Symlink { target: &link }, EntryKind::Symlink { target: link.clone() }),
        RawKind::CharDevice => (Item::CharDevice { major, minor }, EntryKind::CharDevice { major, minor }),
        RawKind::BlockDevice => (Item::BlockDevice { major, minor }, EntryKind::BlockDevice { major, minor }),
        RawKind::Fifo => (Item::Fifo, EntryKind::Fifo),
    };
    visitor.visit(&path, &metadata, item, nothing)?;
    index.add(Entry { path, metadata, kind })
}

/// Whether overlayfs gives the attribute `name` a meaning of its own.
pub(crate) fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// A tar's name as a path: without slashes at the ends, doubled slashes and `.`. What has `..` is refused.
fn normalise(name: &[u8]) -> Result<Vec<u8>, LayerError> {
    let components: Vec<&[u8]> =
        name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    let path = components.join(&b'/');
    match path_problem(&path) {
        None => Ok(path),
        Some(problem) => Err(LayerError::entry(name, problem)),
    }
}

enum Removal {
    Whiteout(Vec<u8>),
    /// Of this directory.
    Opaque(Vec<u8>),
    /// What AUFS kept for itself.
    Ignored,
}

fn removal_in(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|name| name.starts_with(WHITEOUT_PREFIX))
}

/// What a path that has a `.wh.` name in it removes.
fn removal(path: &[u8]) -> Result<Option<Removal>, LayerError> {
    if !removal_in(path) {
        return Ok(None);
    }
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (directory, name) = (&path[..start.saturating_sub(1)], &path[start..]);
    if path.split(|byte| *byte == b'/').any(|name| name.starts_with(b".wh..wh.") && name != OPAQUE_NAME) {
        return Ok(Some(Removal::Ignored));
    }
    if removal_in(directory) {
        return Err(LayerError::entry(path, "lies below a whiteout's name"));
    }
    if name == OPAQUE_NAME {
        return Ok(Some(Removal::Opaque(directory.to_vec())));
    }
    let hidden = &name[WHITEOUT_PREFIX.len()..];
    if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(LayerError::entry(path, "removes nothing that could have a name"));
    }
    Ok(Some(Removal::Whiteout([&path[..start], hidden].concat())))
}
