//! The stable encoding of a [`Toc`] and the check of its invariants (`docs/formats.md`, "TOC").

use std::collections::{BTreeMap, HashMap};

use super::toc::{Entry, EntryKind, Frame, Metadata, Timestamp, Toc};
use crate::encoding::{DecodeError, Decoder, Encoder};

/// Begins every encoded TOC.
const MAGIC: &[u8] = b"crossdock-toc\n";

/// The version that is written, and the newest that is read.
const VERSION: u64 = 1;

/// The longest path, in bytes: Linux's `PATH_MAX` less its final NUL. What is longer cannot be unpacked anyway.
pub const PATH_MAX: usize = 4095;

/// The longest component of a path, in bytes: Linux's `NAME_MAX`.
pub const NAME_MAX: usize = 255;

/// The most entries of one layer. The largest layers seen have some 10⁵; a TOC of this many takes about 1 GiB.
pub const ENTRIES_MAX: usize = 4 << 20;

/// Why a [`Toc`] breaks its invariants.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TocError {
    /// The bytes are not an encoded TOC.
    #[error("not a readable table of contents: {0}")]
    Decode(#[from] DecodeError),
    /// An entry is not acceptable.
    #[error("the layer's entry `{path}` {problem}")]
    Entry {
        /// Its path.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The frames do not fit together.
    #[error("the layer's frames {0}")]
    Frames(&'static str),
}

impl crate::hint::Hint for TocError {
    fn hint(&self) -> Option<String> {
        Some("the layer was damaged or written by a faulty tool; build or fetch it again".to_owned())
    }
}

/// A path for messages.
pub(crate) fn display(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { path.escape_ascii().to_string() }
}

/// What is wrong with `path` as an [`Entry::path`]; `None` if it is fine. The empty path is.
pub fn path_problem(path: &[u8]) -> Option<&'static str> {
    if path.is_empty() {
        return None;
    }
    if path.len() > PATH_MAX {
        return Some("has a path longer than 4095 bytes");
    }
    if path.contains(&0) {
        return Some("has a NUL in its path");
    }
    path.split(|byte| *byte == b'/').find_map(|component| match component {
        b"" => Some("has an empty component or a slash at an end"),
        b"." | b".." => Some("has a component `.` or `..`"),
        _ if component.len() > NAME_MAX => Some("has a component longer than 255 bytes"),
        _ => None,
    })
}

/// The path of the directory that `path` is in: empty for what is in the root, `None` for the root itself.
pub(crate) fn parent(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    Some(path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |slash| &path[..slash]))
}

impl Toc {
    /// Length of the uncompressed tar, as far as frames say.
    pub fn raw_size(&self) -> u64 {
        self.frames.iter().map(|frame| frame.raw_size).sum()
    }

    /// The encoded form.
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.uint(VERSION);
        let mut before: &[u8] = &[];
        encoder.list(&self.entries, |e, entry| {
            let shared = before.iter().zip(&entry.path).take_while(|(a, b)| a == b).count();
            e.uint(shared as u64).bytes(&entry.path[shared..]);
            encode_kind(e, &entry.kind);
            if entry.kind != EntryKind::Whiteout {
                encode_metadata(e, &entry.metadata);
            }
            before = &entry.path;
        });
        encoder.list(&self.frames, |e, frame| {
            e.digest(&frame.id).uint(frame.raw_size).uint(frame.size);
        });
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&encoder.finish());
        bytes
    }

    /// Reads what [`Toc::encode`] wrote, from bytes that may be anything, and checks the invariants.
    pub fn decode(bytes: &[u8]) -> Result<Self, TocError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(DecodeError::Malformed { what: "magic", at: 0 })?;
        let mut decoder = Decoder::new(rest);
        let version = decoder.uint()?;
        if version != VERSION {
            return Err(DecodeError::Version { what: "the TOC", found: version, known: VERSION }.into());
        }
        let mut before: Vec<u8> = Vec::new();
        let entries = decoder.list(|d| {
            let shared: usize = d.small("path")?;
            let suffix = d.bytes()?;
            if shared > before.len() || shared + suffix.len() > PATH_MAX {
                return Err(d.malformed("path"));
            }
            // The shortest form only: equal TOCs have equal bytes.
            if before.get(shared).is_some_and(|byte| suffix.first() == Some(byte)) {
                return Err(d.malformed("path"));
            }
            before.truncate(shared);
            before.extend_from_slice(suffix);
            let kind = decode_kind(d)?;
            let metadata =
                if kind == EntryKind::Whiteout { Metadata::default() } else { decode_metadata(d)? };
            Ok(Entry { path: before.clone(), metadata, kind })
        })?;
        let frames = decoder.list(|d| Ok(Frame { id: d.digest()?, raw_size: d.uint()?, size: d.uint()? }))?;
        decoder.finish()?;
        let toc = Self { entries, frames };
        toc.validate()?;
        Ok(toc)
    }

    /// Checks the invariants.
    pub fn validate(&self) -> Result<(), TocError> {
        let fail = |entry: &Entry, problem| Err(TocError::Entry { path: display(&entry.path), problem });
        if self.entries.len() > ENTRIES_MAX {
            return Err(DecodeError::Malformed { what: "number of entries", at: 0 }.into());
        }
        let mut raw_size = 0_u64;
        for frame in &self.frames {
            if frame.raw_size == 0 || frame.size == 0 {
                return Err(TocError::Frames("have an empty one among them"));
            }
            raw_size =
                raw_size.checked_add(frame.raw_size).ok_or(TocError::Frames("are too large together"))?;
        }
        self.frames
            .iter()
            .try_fold(0_u64, |sum, frame| sum.checked_add(frame.size))
            .ok_or(TocError::Frames("are too large together"))?;
        let mut index: HashMap<&[u8], usize> = HashMap::with_capacity(self.entries.len());
        for (number, entry) in self.entries.iter().enumerate() {
            if let Some(problem) = path_problem(&entry.path) {
                return fail(entry, problem);
            }
            if index.insert(&entry.path, number).is_some() {
                return fail(entry, "occurs twice");
            }
            if entry.metadata.mode > 0o7777 {
                return fail(entry, "has a mode outside 0..=07777");
            }
            if entry.metadata.mtime.nanos >= 1_000_000_000 {
                return fail(entry, "has a time with too many nanoseconds");
            }
            if entry.path.is_empty() && !matches!(entry.kind, EntryKind::Directory { .. }) {
                return fail(entry, "is not a directory");
            }
            match &entry.kind {
                EntryKind::File { size, offset, .. } => {
                    let end = offset.checked_add(*size);
                    // What is not in one piece may have holes, and be longer than the tar.
                    let is_limited = !self.frames.is_empty() && *offset > 0;
                    if end.is_none_or(|end| is_limited && end > raw_size) {
                        return fail(entry, "has content outside the layer");
                    }
                }
                EntryKind::Symlink { target }
                    if target.is_empty() || target.len() > PATH_MAX || target.contains(&0) =>
                {
                    return fail(entry, "has an impossible link target");
                }
                EntryKind::HardLink { target } if path_problem(target).is_some() || target.is_empty() => {
                    return fail(entry, "links to an impossible path");
                }
                EntryKind::Whiteout if entry.metadata != Metadata::default() => {
                    return fail(entry, "is a whiteout with metadata");
                }
                _ => {}
            }
        }
        let mut parent_seen: &[u8] = &[];
        for (number, entry) in self.entries.iter().enumerate() {
            if let EntryKind::HardLink { target } = &entry.kind
                && let Some(at) = index.get(target.as_slice())
            {
                let first = &self.entries[*at].kind;
                if *at >= number {
                    return fail(entry, "links to an entry behind it");
                }
                if matches!(
                    first,
                    EntryKind::Directory { .. } | EntryKind::HardLink { .. } | EntryKind::Whiteout
                ) {
                    return fail(entry, "links to what is not a file");
                }
            }
            let mut ancestor = parent(&entry.path);
            if ancestor == Some(parent_seen) {
                continue;
            }
            parent_seen = ancestor.unwrap_or_default();
            while let Some(path) = ancestor {
                if let Some(at) = index.get(path) {
                    if !matches!(self.entries[*at].kind, EntryKind::Directory { .. }) {
                        return fail(entry, "lies below an entry that is not a directory");
                    }
                    break;
                }
                ancestor = parent(path);
            }
        }
        Ok(())
    }
}

fn encode_kind(e: &mut Encoder, kind: &EntryKind) {
    match kind {
        EntryKind::Directory { opaque, implied } => {
            e.uint(u64::from(*opaque) | u64::from(*implied) << 1);
        }
        EntryKind::File { size, content, offset } => {
            e.uint(4).uint(*size).digest(content).uint(*offset);
        }
        EntryKind::HardLink { target } => {
            e.uint(5).bytes(target);
        }
        EntryKind::Symlink { target } => {
            e.uint(6).bytes(target);
        }
        EntryKind::CharDevice { major, minor } => {
            e.uint(7).uint((*major).into()).uint((*minor).into());
        }
        EntryKind::BlockDevice { major, minor } => {
            e.uint(8).uint((*major).into()).uint((*minor).into());
        }
        EntryKind::Fifo => {
            e.uint(9);
        }
        EntryKind::Whiteout => {
            e.uint(10);
        }
    }
}

fn decode_kind(d: &mut Decoder<'_>) -> Result<EntryKind, DecodeError> {
    Ok(match d.uint()? {
        flags @ 0..=3 => EntryKind::Directory { opaque: flags & 1 != 0, implied: flags & 2 != 0 },
        4 => EntryKind::File { size: d.uint()?, content: d.digest()?, offset: d.uint()? },
        5 => EntryKind::HardLink { target: d.bytes()?.to_vec() },
        6 => EntryKind::Symlink { target: d.bytes()?.to_vec() },
        7 => EntryKind::CharDevice { major: d.small("device")?, minor: d.small("device")? },
        8 => EntryKind::BlockDevice { major: d.small("device")?, minor: d.small("device")? },
        9 => EntryKind::Fifo,
        10 => EntryKind::Whiteout,
        _ => return Err(d.malformed("kind of entry")),
    })
}

/// Appends metadata: mode, owner, group, seconds, nanoseconds, extended attributes.
pub(crate) fn encode_metadata(e: &mut Encoder, metadata: &Metadata) {
    e.uint(metadata.mode.into()).uint(metadata.uid.into()).uint(metadata.gid.into());
    e.int(metadata.mtime.seconds).uint(metadata.mtime.nanos.into());
    encode_xattrs(e, &metadata.xattrs);
}

/// Appends extended attributes: a count, then name and value of each, in the order of the names.
pub(crate) fn encode_xattrs(e: &mut Encoder, xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) {
    e.list(xattrs, |e, (name, value)| {
        e.bytes(name).bytes(value);
    });
}

/// Reads what [`encode_metadata`] wrote.
pub(crate) fn decode_metadata(d: &mut Decoder<'_>) -> Result<Metadata, DecodeError> {
    let (mode, uid, gid) = (d.small("mode")?, d.small("owner")?, d.small("group")?);
    let mtime = Timestamp { seconds: d.int()?, nanos: d.small("time")? };
    let list = d.list(|d| Ok((d.bytes()?.to_vec(), d.bytes()?.to_vec())))?;
    if !list.is_sorted_by(|(a, _), (b, _)| a < b) {
        return Err(d.malformed("extended attributes"));
    }
    Ok(Metadata { mode, uid, gid, mtime, xattrs: list.into_iter().collect() })
}
