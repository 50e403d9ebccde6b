//! ADD of local archives: unpacked into the destination as Docker's `archive.Untar` does it, in memory and by way of a
//! spool file, never onto a file system.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::copier::Rules;
use super::select::{Match, Source, lookup};
use super::staging::{Content, NewDirectory, Staged, Staging};
use super::view::{Node, View, base_name, clean, display, join, parent, resolve};
use super::{CopyError, Opener};
use crate::digest::Hashing;
use crate::layer::{self, EntryKind, Metadata, Timestamp};

/// An archive that unpacks to more bytes than this is taken for a bomb.
const BYTES_MAX: u64 = 64 << 30;

/// An archive with more entries than this is taken for a bomb.
const ENTRIES_MAX: u64 = 5_000_000;

/// Unpacks the file that `item` names into `destination`, if it is an archive: a tar, plain or compressed, told by its
/// content. `false`, and nothing done, if it is none.
pub(crate) fn unpack<V: View>(
    staging: &mut Staging<'_, V>,
    (source, opener): (&impl Source, &dyn Opener),
    item: &Match,
    destination: &[u8],
    rules: &Rules,
    spool: &Path,
) -> Result<bool, CopyError> {
    let Some(Node { kind: EntryKind::File { .. }, .. }) = source.lookup(&item.path) else { return Ok(false) };
    let name = display(&item.named);
    let failed = |source: std::io::Error| CopyError::Archive { path: name.clone(), source };
    let Ok((_, reader)) = layer::decompress(opener.open(&item.path)?) else { return Ok(false) };
    let mut archive = tar::Archive::new(reader);
    let mut entries = archive.entries().map_err(failed)?;
    // As in Docker, what has no readable first header is no archive.
    let Some(Ok(first)) = entries.next() else { return Ok(false) };
    // --chmod is for what is copied, not for what is unpacked.
    let new = NewDirectory { mode: 0o755, ..rules.new_directory() };
    let root = staging.make_directories(destination, new)?;
    let io = |source: std::io::Error| CopyError::Io { path: spool.display().to_string(), source };
    let mut file = tempfile::Builder::new().prefix("archive-").tempfile_in(spool).map_err(io)?;
    let path = file.path().to_owned();
    let mut unpacker = Unpacker { staging, root, rules, name: &name, path: &path, used: 0 };
    let mut count = 0;
    let mut next = Some(Ok(first));
    while let Some(entry) = next {
        count += 1;
        if count > ENTRIES_MAX {
            return Err(failed(std::io::Error::other(format!("it has more than {ENTRIES_MAX} entries"))));
        }
        unpacker.entry(entry.map_err(failed)?, file.as_file_mut())?;
        next = entries.next();
    }
    // The step's directory goes as a whole.
    file.disable_cleanup(true);
    Ok(true)
}

struct Unpacker<'u, 't, V> {
    staging: &'u mut Staging<'t, V>,
    root: Vec<u8>,
    rules: &'u Rules,
    name: &'u str,
    path: &'u Path,
    used: u64,
}

impl<V: View> Unpacker<'_, '_, V> {
    fn error(&self, message: impl Into<String>) -> CopyError {
        CopyError::Archive { path: self.name.to_owned(), source: std::io::Error::other(message.into()) }
    }

    /// Where an entry goes: its parents may be links, which stay inside the destination.
    fn place(&self, raw: &[u8]) -> Result<Vec<u8>, CopyError> {
        if raw.split(|byte| *byte == b'/').any(|part| part == b"..") || raw.contains(&0) {
            return Err(self.error(format!("the entry `{}` leads out of the archive", display(raw))));
        }
        let cleaned = clean(raw);
        let above = resolve(&*self.staging, &self.root, parent(&cleaned), true)?;
        Ok(join(&above, base_name(&cleaned)))
    }

    fn entry(
        &mut self,
        mut entry: tar::Entry<'_, impl Read>,
        spool: &mut std::fs::File,
    ) -> Result<(), CopyError> {
        let raw = entry.path_bytes().into_owned();
        if clean(&raw).is_empty() {
            // The root entry must not change the destination.
            return Ok(());
        }
        let target = self.place(&raw)?;
        let kind = entry.header().entry_type();
        let metadata = self.metadata(&mut entry)?;
        let path = self.path;
        let io = |source: std::io::Error| CopyError::Io { path: path.display().to_string(), source };
        let mut content = Content::None;
        let link = || {
            let link = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
            link.ok_or_else(|| self.error(format!("the link `{}` has no target", display(&raw))))
        };
        let number = |value: std::io::Result<Option<u32>>| value.ok().flatten().unwrap_or(0);
        let device = || (number(entry.header().device_major()), number(entry.header().device_minor()));
        let kind = match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let offset = spool.seek(SeekFrom::End(0)).map_err(io)?;
                let mut hashing = Hashing::new(&mut *spool);
                let limit = BYTES_MAX.saturating_sub(self.used);
                let copied = std::io::copy(&mut (&mut entry).take(limit.saturating_add(1)), &mut hashing)
                    .map_err(|source| CopyError::Archive { path: self.name.to_owned(), source })?;
                if copied > limit {
                    return Err(self.error(format!("it unpacks to more than {BYTES_MAX} bytes")));
                }
                let (_, digest, size) = hashing.finish();
                // The reader takes the end of the archive for the end of the file.
                if size < entry.size() {
                    return Err(self.error(format!("it ends in the middle of `{}`", display(&raw))));
                }
                self.used += size;
                if size > 0 {
                    content = Content::Spooled { file: self.path.to_owned(), offset };
                }
                EntryKind::File { size, content: digest, offset: 0 }
            }
            tar::EntryType::Directory => EntryKind::Directory { opaque: false, implied: false },
            tar::EntryType::Symlink => EntryKind::Symlink { target: link()? },
            tar::EntryType::Link => EntryKind::HardLink { target: self.place(&link()?)? },
            tar::EntryType::Char => {
                let (major, minor) = device();
                EntryKind::CharDevice { major, minor }
            }
            tar::EntryType::Block => {
                let (major, minor) = device();
                EntryKind::BlockDevice { major, minor }
            }
            tar::EntryType::Fifo => EntryKind::Fifo,
            tar::EntryType::XGlobalHeader => return Ok(()),
            other => return Err(self.error(format!("`{}` has the unknown type {other:?}", display(&raw)))),
        };
        let new = NewDirectory { owner: None, mode: 0o755, ..self.rules.new_directory() };
        self.staging.make_directories(parent(&target), new)?;
        if let EntryKind::HardLink { target: first } = &kind {
            return self.hard_link(&raw, &target, first, metadata);
        }
        if matches!(kind, EntryKind::Directory { .. })
            && lookup(&*self.staging, &target).is_some_and(|existing| existing.is_directory())
        {
            self.staging.set_metadata(&target, metadata);
            return Ok(());
        }
        self.staging.add(target, Staged { node: Node { metadata, kind }, content });
        Ok(())
    }

    fn hard_link(
        &mut self,
        raw: &[u8],
        target: &[u8],
        first: &[u8],
        metadata: Metadata,
    ) -> Result<(), CopyError> {
        if target == first {
            return Ok(());
        }
        let first = self.staging.first_name(first).ok_or_else(|| {
            self.error(format!("`{}` is a hard link to something that is not in the archive", display(raw)))
        })?;
        // The header of a link says once more, and last, what the file is like.
        self.staging.set_file_metadata(&first, &metadata);
        let kind = EntryKind::HardLink { target: first };
        self.staging.add(target.to_vec(), Staged { node: Node { metadata, kind }, content: Content::None });
        Ok(())
    }

    fn metadata(&self, entry: &mut tar::Entry<'_, impl Read>) -> Result<Metadata, CopyError> {
        let header = entry.header();
        let number = |value: std::io::Result<u64>, what: &str| {
            let value = value.map_err(|source| CopyError::Archive { path: self.name.to_owned(), source })?;
            u32::try_from(value).map_err(|_| self.error(format!("the {what} {value} is out of range")))
        };
        let mode = header.mode().unwrap_or(0o644) & 0o7777;
        let (mut uid, mut gid) = (number(header.uid(), "owner")?, number(header.gid(), "group")?);
        let seconds = header.mtime().unwrap_or(0);
        let mut mtime = Timestamp { seconds: i64::try_from(seconds).unwrap_or(0), nanos: 0 };
        let mut xattrs = BTreeMap::new();
        let extensions = entry
            .pax_extensions()
            .map_err(|source| CopyError::Archive { path: self.name.to_owned(), source })?;
        for extension in extensions.into_iter().flatten() {
            let extension =
                extension.map_err(|source| CopyError::Archive { path: self.name.to_owned(), source })?;
            let value = extension.value_bytes();
            match extension.key_bytes() {
                b"mtime" => mtime = parse_time(value).unwrap_or(mtime),
                b"uid" => uid = parse_number(value).unwrap_or(uid),
                b"gid" => gid = parse_number(value).unwrap_or(gid),
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        xattrs.insert(name.to_vec(), value.to_vec());
                    }
                }
            }
        }
        if let Some((owner, group)) = self.rules.owner {
            (uid, gid) = (owner, group);
        }
        if let Some(epoch) = self.rules.epoch {
            mtime = mtime.min(epoch);
        }
        Ok(Metadata { mode, uid, gid, mtime, xattrs })
    }
}

fn parse_number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A PAX time: seconds with a decimal fraction.
fn parse_time(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    let seconds: i64 = seconds.parse().ok()?;
    Some(match (text.starts_with('-'), nanos) {
        (true, nanos) if nanos > 0 => Timestamp { seconds: seconds - 1, nanos: 1_000_000_000 - nanos },
        _ => Timestamp { seconds, nanos },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_are_read() {
        let time = |seconds, nanos| Some(Timestamp { seconds, nanos });
        assert_eq!(parse_time(b"12"), time(12, 0));
        assert_eq!(parse_time(b"12.5"), time(12, 500_000_000));
        assert_eq!(parse_time(b"-1.25"), time(-2, 750_000_000));
        assert_eq!(parse_time(b"x"), None);
    }
}
