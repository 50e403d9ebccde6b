//! Cache mounts as tars.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::change::{Item, Items};
use crate::build::contents::PackContents;
use crate::build::copy::view::clean;
use crate::layer::{
    self, LayerError, Metadata, RawEntry, RawKind, TarReader, Timestamp, display_path, path_problem,
};
use crate::snapshot::{Entry, EntryKind, PackSink, Snapshot, SnapshotError, Writer};
use crate::tree::Tree;

/// A tar that unpacks to more bytes than this is taken for a bomb.
const BYTES_MAX: u64 = 1 << 40;

/// Why a tar cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub(super) enum TarError {
    /// It is none, or one that nobody could unpack.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// What is in it cannot be stored.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// An entry leads elsewhere.
    #[error("the entry `{path}` {problem}")]
    Entry {
        /// Its name.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Reading failed.
    #[error("reading failed")]
    Io(#[from] io::Error),
}

/// Takes in what a tar has. Later entries win; directories that are missing are made.
pub(super) fn read<S: PackSink>(
    input: impl Read + Send,
    items: &mut Items,
    writer: &mut Writer<S>,
    now: Timestamp,
    used: u32,
) -> Result<(), TarError> {
    let directory = |mode| Item {
        metadata: Metadata { mode, mtime: now, ..Metadata::default() },
        used,
        kind: EntryKind::Directory,
        group: None,
    };
    items.insert(b"", directory(0o755));
    let (_, reader) = layer::decompress(input)?;
    let mut tar = TarReader::new(reader);
    let mut bytes = 0_u64;
    while let Some(entry) = tar.next()? {
        bytes = bytes.saturating_add(entry.size);
        if bytes > BYTES_MAX {
            return Err(LayerError::Limit { what: "a tar with a number of bytes", limit: BYTES_MAX }.into());
        }
        let path = place(&entry.name)?;
        let mut content = tar.content(&entry);
        let kind = match entry.kind {
            RawKind::File => {
                let extents = writer.file(&path, entry.size, &mut content)?;
                EntryKind::File { size: entry.size, extents }
            }
            RawKind::Directory => EntryKind::Directory,
            RawKind::Symlink => EntryKind::Symlink { target: entry.link.clone() },
            RawKind::CharDevice => EntryKind::CharDevice { major: entry.device.0, minor: entry.device.1 },
            RawKind::BlockDevice => EntryKind::BlockDevice { major: entry.device.0, minor: entry.device.1 },
            RawKind::Fifo => EntryKind::Fifo,
            RawKind::HardLink => {
                link(items, &path, &entry)?;
                content.finish()?;
                continue;
            }
        };
        content.finish()?;
        parents(items, &path, &directory(0o755))?;
        let mut metadata = entry.metadata.clone();
        metadata.mtime = metadata.mtime.min(now);
        if path.is_empty() && kind != EntryKind::Directory {
            return Err(wrong(&entry.name, "stands for the mount itself and is no directory"));
        }
        items.insert(&path, Item { metadata, used, kind, group: None });
    }
    Ok(())
}

fn wrong(path: &[u8], problem: impl Into<String>) -> TarError {
    TarError::Entry { path: display_path(path), problem: problem.into() }
}

/// The path that an entry's name stands for.
fn place(name: &[u8]) -> Result<Vec<u8>, TarError> {
    if name.split(|byte| *byte == b'/').any(|part| part == b"..") || name.contains(&0) {
        return Err(wrong(name, "leads out of the tar"));
    }
    let path = clean(name);
    match path_problem(&path) {
        None => Ok(path),
        Some(problem) => Err(wrong(name, problem)),
    }
}

/// Makes the directories that a path is in. What is in their way is an error: a link there would lead elsewhere.
fn parents(items: &mut Items, path: &[u8], directory: &Item) -> Result<(), TarError> {
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        match items.get(&path[..at]) {
            None => items.insert(&path[..at], directory.clone()),
            Some(item) if item.kind == EntryKind::Directory => {}
            Some(_) => {
                return Err(wrong(
                    path,
                    format!("lies in `{}`, which is no directory", display_path(&path[..at])),
                ));
            }
        }
    }
    Ok(())
}

fn link(items: &mut Items, path: &[u8], entry: &RawEntry) -> Result<(), TarError> {
    let target = place(&entry.link)?;
    let missing = || {
        wrong(
            &entry.name,
            format!("is another name of `{}`, which is no file before it", display_path(&entry.link)),
        )
    };
    let group = match items.get(&target) {
        Some(item) if item.kind == EntryKind::Directory || target == path => return Err(missing()),
        Some(item) => item.group,
        None => return Err(missing()),
    };
    let group = group.unwrap_or_else(|| items.new_group());
    let Some(first) = items.get_mut(&target) else { return Err(missing()) };
    first.group = Some(group);
    let first = first.clone();
    let directory = Item {
        kind: EntryKind::Directory,
        metadata: Metadata { mode: 0o755, ..first.metadata.clone() },
        group: None,
        ..first.clone()
    };
    parents(items, path, &directory)?;
    items.insert(path, first);
    Ok(())
}

/// Writes a snapshot's entries: PAX, with times to the nanosecond and extended attributes.
pub(super) fn write(
    tree: &Tree,
    snapshot: &Snapshot,
    contents: &PackContents,
    out: impl Write,
) -> io::Result<()> {
    let mut builder = ::tar::Builder::new(out);
    for entry in &snapshot.entries {
        let name = [b"./", &entry.path[..]].concat();
        let name = Path::new(OsStr::from_bytes(&name));
        let Metadata { mode, uid, gid, mtime, xattrs } = &entry.metadata;
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        if mtime.nanos > 0 || mtime.seconds < 0 {
            pax.push(("mtime".to_owned(), pax_time(*mtime).into_bytes()));
        }
        for (attribute, value) in xattrs {
            pax.push((format!("SCHILY.xattr.{}", String::from_utf8_lossy(attribute)), value.clone()));
        }
        if !pax.is_empty() {
            builder.append_pax_extensions(pax.iter().map(|(key, value)| (key.as_str(), &value[..])))?;
        }
        let mut header = ::tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_uid((*uid).into());
        header.set_gid((*gid).into());
        header.set_mtime(u64::try_from(mtime.seconds).unwrap_or(0));
        header.set_size(0);
        append(&mut builder, &mut header, name, entry, tree, contents)?;
    }
    builder.into_inner()?.flush()
}

fn append(
    builder: &mut ::tar::Builder<impl Write>,
    header: &mut ::tar::Header,
    name: &Path,
    entry: &Entry,
    tree: &Tree,
    contents: &PackContents,
) -> io::Result<()> {
    use ::tar::EntryType;
    let device = |header: &mut ::tar::Header, major, minor| {
        header.set_device_major(major)?;
        header.set_device_minor(minor)
    };
    let link = |target: &[u8]| Path::new(OsStr::from_bytes(target)).to_owned();
    match &entry.kind {
        EntryKind::Directory => {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(header, name.join(""), io::empty())
        }
        EntryKind::File { size, .. } => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(*size);
            let Some(node) = tree.get(&entry.path) else { return Err(io::ErrorKind::NotFound.into()) };
            builder.append_data(header, name, contents.reader(node.node))
        }
        EntryKind::HardLink { target } => {
            header.set_entry_type(EntryType::Link);
            builder.append_link(header, name, Path::new("./").join(link(target)))
        }
        EntryKind::Symlink { target } => {
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(header, name, link(target))
        }
        EntryKind::CharDevice { major, minor } => {
            header.set_entry_type(EntryType::Char);
            device(header, *major, *minor)?;
            builder.append_data(header, name, io::empty())
        }
        EntryKind::BlockDevice { major, minor } => {
            header.set_entry_type(EntryType::Block);
            device(header, *major, *minor)?;
            builder.append_data(header, name, io::empty())
        }
        EntryKind::Fifo => {
            header.set_entry_type(EntryType::Fifo);
            builder.append_data(header, name, io::empty())
        }
    }
}

/// A time as PAX has it: seconds with a fraction.
fn pax_time(time: Timestamp) -> String {
    // The fraction of a time before 1970 counts the other way.
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    format!("{sign}{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}
