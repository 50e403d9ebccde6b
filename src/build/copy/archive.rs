//! ADD of local archives: unpacked into the destination as Docker's `archive.Untar` does it, in memory and by way of a
//! spool file, never onto a file system.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::copier::Rules;
use super::select::{Match, Source, lookup};
use super::staging::{Content, NewDirectory, Staged, Staging};
use super::view::{Node, View, base_name, clean, components, display, join, parent, resolve};
use super::{CopyError, Opener};
use crate::digest::Hashing;
use crate::layer::{
    self, EntryKind, LayerError, Metadata, PATH_MAX, RawEntry, RawKind, TarReader, path_problem,
};

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
    let Ok((_, reader)) = layer::decompress(opener.open(&item.path)?) else { return Ok(false) };
    let mut tar = TarReader::new(reader);
    // As in Docker, what has no readable first header is no archive.
    let Ok(Some(first)) = tar.next() else { return Ok(false) };
    // --chmod is for what is copied, not for what is unpacked.
    let new = NewDirectory { mode: 0o755, ..rules.new_directory() };
    let root = staging.make_directories(destination, new)?;
    let io = |source: std::io::Error| CopyError::Io { path: spool.display().to_string(), source };
    let mut file = tempfile::Builder::new().prefix("archive-").tempfile_in(spool).map_err(io)?;
    let path = file.path().to_owned();
    let mut unpacker = Unpacker { staging, root, rules, name: &name, path: &path, used: 0 };
    let mut count = 0;
    let mut next = Some(first);
    while let Some(entry) = next {
        count += 1;
        if count > ENTRIES_MAX {
            return Err(unpacker.error(format!("it has more than {ENTRIES_MAX} entries")));
        }
        // Holes count: a hundred bytes can say that a file has 2⁶⁴ of them.
        unpacker.used = unpacker.used.saturating_add(entry.size);
        if unpacker.used > BYTES_MAX {
            return Err(unpacker.error(format!("it unpacks to more than {BYTES_MAX} bytes")));
        }
        let mut content = tar.content(&entry);
        unpacker.entry(&entry, &mut content, file.as_file_mut())?;
        // What was passed over.
        std::io::copy(&mut content, &mut std::io::sink()).map_err(|error| unpacker.cut(error))?;
        content.finish().map_err(|error| unpacker.failed(error))?;
        next = tar.next().map_err(|error| unpacker.failed(error))?;
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

    fn failed(&self, error: LayerError) -> CopyError {
        match error {
            LayerError::Io { source, .. } => self.cut(source),
            LayerError::Tar { at, problem } => {
                self.error(format!("it is not a valid tar at byte {at}: {problem}"))
            }
            LayerError::Limit { what, limit } => {
                self.error(format!("it has {what} above the limit of {limit}"))
            }
            other => self.error(other.to_string()),
        }
    }

    fn cut(&self, source: std::io::Error) -> CopyError {
        CopyError::Archive { path: self.name.to_owned(), source }
    }

    /// Where an entry goes: its parents may be links, which stay inside the destination.
    fn place(&self, raw: &[u8]) -> Result<Vec<u8>, CopyError> {
        if raw.split(|byte| *byte == b'/').any(|part| part == b"..") || raw.contains(&0) {
            return Err(self.error(format!("the entry `{}` leads out of the archive", display(raw))));
        }
        let cleaned = clean(raw);
        let refused = |problem: &str| {
            let shown: String = display(raw).chars().take(200).collect();
            self.error(format!("the entry `{shown}` {problem}"))
        };
        // Before anything is looked up: what is too deep would take long.
        if let Some(problem) = path_problem(&cleaned) {
            return Err(refused(problem));
        }
        let above = resolve(&*self.staging, &self.root, parent(&cleaned), true)?;
        if !above.is_empty() && lookup(&*self.staging, &above).is_none() {
            self.check_links(raw, parent(&cleaned))?;
        }
        let place = join(&above, base_name(&cleaned));
        match path_problem(&place) {
            None => Ok(place),
            Some(problem) => Err(refused(problem)),
        }
    }

    /// A directory that is missing is made, but not where a link leads to nothing: that is an error, as in Docker.
    fn check_links(&self, raw: &[u8], directory: &[u8]) -> Result<(), CopyError> {
        let mut here = Vec::new();
        for component in components(directory) {
            here = join(&here, component);
            let link = resolve(&*self.staging, &self.root, &here, false)?;
            // Below what is not there, nothing is.
            let Some(node) = lookup(&*self.staging, &link) else { break };
            let EntryKind::Symlink { target } = node.kind else { continue };
            let end = resolve(&*self.staging, &self.root, &here, true)?;
            if end != self.root && lookup(&*self.staging, &end).is_none() {
                return Err(self.error(format!(
                    "the entry `{}` goes through the link `/{}` to `{}`, which is not there",
                    display(raw),
                    display(&link),
                    display(&target)
                )));
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        entry: &RawEntry,
        data: &mut dyn Read,
        spool: &mut std::fs::File,
    ) -> Result<(), CopyError> {
        let raw = &entry.name;
        if clean(raw).is_empty() {
            // The root entry must not change the destination.
            return Ok(());
        }
        let target = self.place(raw)?;
        let metadata = self.metadata(entry);
        let path = self.path;
        let io = |source: std::io::Error| CopyError::Io { path: path.display().to_string(), source };
        let mut content = Content::None;
        let (major, minor) = entry.device;
        let kind = match entry.kind {
            RawKind::File => {
                let offset = spool.seek(SeekFrom::End(0)).map_err(io)?;
                let mut hashing = Hashing::new(&mut *spool);
                std::io::copy(data, &mut hashing).map_err(|error| self.cut(error))?;
                let (_, digest, size) = hashing.finish();
                if size > 0 {
                    content = Content::Spooled { file: self.path.to_owned(), offset };
                }
                EntryKind::File { size, content: digest, offset: 0 }
            }
            RawKind::Directory => EntryKind::Directory { opaque: false, implied: false },
            RawKind::HardLink => EntryKind::HardLink { target: self.place(&entry.link)? },
            RawKind::Symlink
                if entry.link.is_empty() || entry.link.contains(&0) || entry.link.len() > PATH_MAX =>
            {
                return Err(self.error(format!("the link `{}` has an impossible target", display(raw))));
            }
            RawKind::Symlink => EntryKind::Symlink { target: entry.link.clone() },
            RawKind::CharDevice => EntryKind::CharDevice { major, minor },
            RawKind::BlockDevice => EntryKind::BlockDevice { major, minor },
            RawKind::Fifo => EntryKind::Fifo,
        };
        let new = NewDirectory { owner: None, mode: 0o755, ..self.rules.new_directory() };
        self.staging.make_directories(parent(&target), new)?;
        if let EntryKind::HardLink { target: first } = &kind {
            return self.hard_link(raw, &target, first, metadata);
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
            self.error(format!("`{}` is a hard link to something that is not there", display(raw)))
        })?;
        if first.strip_prefix(target).is_some_and(|rest| rest.starts_with(b"/")) {
            let message =
                format!("`{}` is a hard link to a file in the directory that it replaces", display(raw));
            return Err(self.error(message));
        }
        // The header of a link says once more, and last, what the file is like.
        self.staging.set_file_metadata(&first, &metadata);
        if target == first {
            return Ok(());
        }
        let kind = EntryKind::HardLink { target: first };
        self.staging.add(target.to_vec(), Staged { node: Node { metadata, kind }, content: Content::None });
        Ok(())
    }

    fn metadata(&self, entry: &RawEntry) -> Metadata {
        let mut metadata = entry.metadata.clone();
        if let Some((owner, group)) = self.rules.owner {
            (metadata.uid, metadata.gid) = (owner, group);
        }
        if let Some(epoch) = self.rules.epoch {
            metadata.mtime = metadata.mtime.min(epoch);
        }
        metadata
    }
}
