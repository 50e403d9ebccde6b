//! Unpacks a layer into a directory, as one layer of an overlay file system.
//!
//! A layer is hostile until proven otherwise. Nothing here takes a path to the kernel but by `openat2` from the
//! directory with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, and the last component is only ever used in a way that does
//! not follow links.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Bound;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::error::LayerError;
use super::scan::{Item, LayerVisitor, is_overlay_xattr};
use super::toc::{Metadata, Timestamp};
use super::toc_codec::{parent, path_problem};
use super::write::fill;

/// How overlayfs is told what lower layers no longer have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// For a mount made by root: `trusted.overlay.opaque`.
    OverlayRoot,
    /// For a mount made in a user namespace with `userxattr`: `user.overlay.opaque`.
    OverlayUser,
}

impl Whiteouts {
    /// The attribute that makes a directory opaque if its value is `y`.
    pub(crate) fn opaque_xattr(self) -> &'static str {
        match self {
            Self::OverlayRoot => "trusted.overlay.opaque",
            Self::OverlayUser => "user.overlay.opaque",
        }
    }
}

/// How a layer is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackOptions {
    /// How removals are marked.
    pub whiteouts: Whiteouts,
    /// Whether owners are set. Without it everything belongs to whoever unpacks, and device nodes and attributes that
    /// the kernel does not allow are left out: see [`Unpacker::finish`].
    pub chown: bool,
}

/// Bytes read and written at a time, and the least that becomes a hole if it is all zeros.
const PIECE: usize = 64 << 10;

/// How many paths are remembered that could not be made in full; the rest is counted.
const NOTES_MAX: usize = 16;

/// What could not be unpacked as it is, because the kernel does not allow it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// How many device nodes and extended attributes were left out.
    pub left_out: u64,
    /// The first of them, for messages: `dev/console: device node`.
    pub examples: Vec<String>,
}

/// Unpacks the entries that it visits into a directory. Call [`Unpacker::finish`] at the end: times and modes of
/// directories are set there.
///
/// The directory must be empty, and nobody else may write to it meanwhile.
#[derive(Debug)]
pub struct Unpacker {
    root: OwnedFd,
    options: UnpackOptions,
    /// The directory that was used last.
    cached: Option<(Vec<u8>, OwnedFd)>,
    /// Modes and times that directories get at the end.
    directories: BTreeMap<Vec<u8>, (u32, Timestamp)>,
    /// Whiteouts that stand as device nodes.
    whiteouts: BTreeSet<Vec<u8>>,
    unpacked: Unpacked,
}

impl Unpacker {
    /// Unpacks into the directory `root`.
    pub fn new(root: impl AsFd, options: UnpackOptions) -> Result<Self, LayerError> {
        let root = root.as_fd().try_clone_to_owned();
        let root = root.map_err(LayerError::io("opening the directory to unpack into"))?;
        Ok(Self {
            root,
            options,
            cached: None,
            directories: BTreeMap::new(),
            whiteouts: BTreeSet::new(),
            unpacked: Unpacked::default(),
        })
    }

    /// Sets what must be set last, deepest directories first.
    pub fn finish(self) -> Result<Unpacked, LayerError> {
        for (path, (mode, mtime)) in self.directories.iter().rev() {
            let directory =
                self.open(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|e| failed(path, e))?;
            rustix::fs::futimens(&directory, &times(*mtime)).map_err(|e| failed(path, e))?;
            if mode & 0o700 != 0o700 {
                rustix::fs::fchmod(&directory, Mode::from_raw_mode(*mode)).map_err(|e| failed(path, e))?;
            }
        }
        Ok(self.unpacked)
    }

    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)
    }

    /// Opens the directory `path`, making it and what is missing above it.
    fn enter(&mut self, path: &[u8]) -> Result<(), LayerError> {
        if self.cached.as_ref().is_some_and(|(cached, _)| cached == path) {
            return Ok(());
        }
        let opened = match self.open(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) if !path.is_empty() => {
                self.make_directory(path, None)?;
                self.open(path, OFlags::PATH | OFlags::DIRECTORY)
            }
            Err(Errno::NOTDIR) if self.whiteouts.contains(path) => {
                self.make_directory(path, None)?;
                self.open(path, OFlags::PATH | OFlags::DIRECTORY)
            }
            // A whiteout somewhere above: making the parent turns it into a directory.
            Err(Errno::NOTDIR) if parent(path).is_some_and(|above| self.below_whiteout(above)) => {
                self.make_directory(path, None)?;
                self.open(path, OFlags::PATH | OFlags::DIRECTORY)
            }
            opened => opened,
        };
        let opened = opened.map_err(|error| match error {
            Errno::LOOP | Errno::NOTDIR => {
                LayerError::entry(path, "is used as a directory, but is none; links are not followed")
            }
            error => failed(path, error),
        })?;
        self.cached = Some((path.to_vec(), opened));
        Ok(())
    }

    fn below_whiteout(&self, path: &[u8]) -> bool {
        let mut at = Some(path);
        while let Some(path) = at {
            if self.whiteouts.contains(path) {
                return true;
            }
            at = parent(path);
        }
        false
    }

    /// The directory that `path` is in, made if need be, and the last component of `path`.
    fn place<'p>(&mut self, path: &'p [u8]) -> Result<(BorrowedFd<'_>, &'p [u8]), LayerError> {
        let above = parent(path).ok_or_else(|| LayerError::entry(path, "is the root, but no directory"))?;
        self.enter(above)?;
        let name = if above.is_empty() { path } else { &path[above.len() + 1..] };
        let (_, directory) = self.cached.as_ref().ok_or_else(|| failed(path, Errno::NOENT))?;
        Ok((directory.as_fd(), name))
    }

    /// Makes or changes the directory `path`; without metadata it gets what stock clients give missing parents.
    fn make_directory(&mut self, path: &[u8], metadata: Option<&Metadata>) -> Result<(), LayerError> {
        let bare = Metadata { mode: 0o755, ..Metadata::default() };
        let metadata = metadata.unwrap_or(&bare);
        if !path.is_empty() {
            let (directory, name) = self.place(path)?;
            let made = rustix::fs::mkdirat(directory, name, Mode::RWXU);
            if made == Err(Errno::EXIST) {
                let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
                let stat = stat.map_err(|e| failed(path, e))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    let whiteout = self.whiteouts.contains(path);
                    self.remove(path)?;
                    let (directory, name) = self.place(path)?;
                    rustix::fs::mkdirat(directory, name, Mode::RWXU).map_err(|e| failed(path, e))?;
                    if whiteout {
                        self.make_opaque(path)?;
                    }
                }
            } else {
                made.map_err(|e| failed(path, e))?;
            }
        }
        let directory = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|e| failed(path, e))?;
        self.set_owner(&directory, metadata).map_err(|e| failed(path, e))?;
        self.set_xattrs(&directory, path, metadata)?;
        // What is below must still be made; `finish` sets what is less than this.
        let mode = Mode::from_raw_mode(metadata.mode | 0o700);
        rustix::fs::fchmod(&directory, mode).map_err(|e| failed(path, e))?;
        self.directories.insert(path.to_vec(), (metadata.mode, metadata.mtime));
        Ok(())
    }

    fn make_opaque(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let directory = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|e| failed(path, e))?;
        let name = self.options.whiteouts.opaque_xattr();
        rustix::fs::fsetxattr(&directory, name, b"y", XattrFlags::empty()).map_err(|e| failed(path, e))
    }

    fn set_owner(&self, file: &OwnedFd, metadata: &Metadata) -> Result<(), Errno> {
        if !self.options.chown {
            return Ok(());
        }
        rustix::fs::fchown(file, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))
    }

    fn set_xattrs(&mut self, file: &OwnedFd, path: &[u8], metadata: &Metadata) -> Result<(), LayerError> {
        for (name, value) in &metadata.xattrs {
            if is_overlay_xattr(name) {
                continue;
            }
            let set = rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
            self.tolerate(path, "extended attribute", set)?;
        }
        Ok(())
    }

    /// Without the right to do everything, what the kernel refuses is left out and counted.
    fn tolerate(&mut self, path: &[u8], what: &str, done: Result<(), Errno>) -> Result<(), LayerError> {
        match done {
            Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL) if !self.options.chown => {
                self.unpacked.left_out += 1;
                if self.unpacked.examples.len() < NOTES_MAX {
                    self.unpacked.examples.push(format!("{}: {what}", super::display_path(path)));
                }
                Ok(())
            }
            done => done.map_err(|error| failed(path, error)),
        }
    }

    /// Does `make` in the directory of `path`; what an earlier entry of the layer put there makes room.
    fn make<T>(
        &mut self,
        path: &[u8],
        mut make: impl FnMut(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<Result<T, Errno>, LayerError> {
        let (directory, name) = self.place(path)?;
        match make(directory, name) {
            Err(Errno::EXIST) => {
                self.remove(path)?;
                let (directory, name) = self.place(path)?;
                Ok(make(directory, name))
            }
            made => Ok(made),
        }
    }

    /// Removes what is at `path`, with all that is below it.
    fn remove(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let (directory, name) = self.place(path)?;
        remove_all(directory, name).map_err(|e| failed(path, e))?;
        let prefix = [path, b"/"].concat();
        if self.cached.as_ref().is_some_and(|(cached, _)| cached == path || cached.starts_with(&prefix)) {
            self.cached = None;
        }
        self.directories.remove(path);
        self.whiteouts.remove(path);
        let from = || (Bound::Included(prefix.clone()), Bound::Unbounded);
        let below: Vec<_> = self.directories.range(from()).map(|(path, _)| path.clone()).collect();
        for path in below.iter().take_while(|path| path.starts_with(&prefix)) {
            self.directories.remove(path);
        }
        let below: Vec<_> = self.whiteouts.range(from()).cloned().collect();
        for path in below.iter().take_while(|path| path.starts_with(&prefix)) {
            self.whiteouts.remove(path);
        }
        Ok(())
    }

    fn file(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), LayerError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = self.make(path, |directory, name| {
            rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let file = File::from(opened.map_err(|e| failed(path, e))?);
        let written = copy_with_holes(content, &file).map_err(|source| LayerError::Io {
            action: format!("unpacking {}", super::display_path(path)),
            source,
        })?;
        if written != size {
            return Err(LayerError::entry(path, format!("has {written} bytes instead of {size}")));
        }
        let file = OwnedFd::from(file);
        // Changing the owner drops set-user-id bits and capabilities: first things first.
        self.set_owner(&file, metadata).map_err(|e| failed(path, e))?;
        self.set_xattrs(&file, path, metadata)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(metadata.mode)).map_err(|e| failed(path, e))?;
        rustix::fs::futimens(&file, &times(metadata.mtime)).map_err(|e| failed(path, e))
    }

    /// What files get by their descriptors, for what cannot be opened.
    fn attributes(&mut self, path: &[u8], metadata: &Metadata, symlink: bool) -> Result<(), LayerError> {
        let chown = self.options.chown;
        let (directory, name) = self.place(path)?;
        let set = || {
            if chown {
                let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
                rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            if !symlink {
                // It was made by us with O_EXCL's certainty, in a directory that nobody else writes to.
                rustix::fs::chmodat(directory, name, Mode::from_raw_mode(metadata.mode), AtFlags::empty())?;
            }
            Ok(())
        };
        set().map_err(|e| failed(path, e))?;
        let by_name = proc_path(directory, name).map_err(|e| failed(path, e))?;
        for (name, value) in &metadata.xattrs {
            if !is_overlay_xattr(name) {
                let set = rustix::fs::lsetxattr(&by_name, name.as_slice(), value, XattrFlags::empty());
                self.tolerate(path, "extended attribute", set)?;
            }
        }
        let (directory, name) = self.place(path)?;
        rustix::fs::utimensat(directory, name, &times(metadata.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed(path, e))
    }

    fn node(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<(), LayerError> {
        let device = rustix::fs::makedev(major, minor);
        let made = self.make(path, |directory, name| {
            rustix::fs::mknodat(directory, name, kind, Mode::RUSR | Mode::WUSR, device)
        })?;
        if kind != FileType::Fifo && made == Err(Errno::PERM) {
            return self.tolerate(path, "device node", made);
        }
        made.map_err(|e| failed(path, e))?;
        self.attributes(path, metadata, false)
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), LayerError> {
        if self.whiteouts.contains(target) || target == path {
            return Err(LayerError::entry(path, "is a hard link to what cannot be linked"));
        }
        let above = parent(target).unwrap_or_default();
        let name = if above.is_empty() { target } else { &target[above.len() + 1..] };
        let from = self.open(above, OFlags::PATH | OFlags::DIRECTORY);
        let linked = match from {
            Ok(from) => self.make(path, |directory, to| {
                rustix::fs::linkat(&from, name, directory, to, AtFlags::empty())
            })?,
            Err(error) => Err(error),
        };
        linked.map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::PERM | Errno::XDEV => {
                let target = super::display_path(target);
                LayerError::entry(
                    path,
                    format!("is a hard link to `{target}`, which is no file of this layer"),
                )
            }
            error => failed(path, error),
        })
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let (directory, name) = self.place(path)?;
        let made = rustix::fs::mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), 0);
        if made != Err(Errno::EXIST) {
            self.whiteouts.insert(path.to_vec());
            return made.map_err(|e| failed(path, e));
        }
        // It is about lower layers, not about what this one has put there already.
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|e| failed(path, e))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            self.make_opaque(path)?;
        }
        Ok(())
    }
}

impl LayerVisitor for Unpacker {
    fn visit(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        item: Item<'_>,
        content: &mut dyn Read,
    ) -> Result<(), LayerError> {
        if let Some(problem) = path_problem(path) {
            return Err(LayerError::entry(path, problem));
        }
        match item {
            Item::Directory => self.make_directory(path, Some(metadata)),
            Item::Opaque => {
                self.enter(path)?;
                self.make_opaque(path)
            }
            Item::File { size } => self.file(path, metadata, size, content),
            Item::HardLink { target } => match path_problem(target) {
                Some(problem) => Err(LayerError::entry(target, problem)),
                None => self.hard_link(path, target),
            },
            Item::Symlink { target } => {
                let made =
                    self.make(path, |directory, name| rustix::fs::symlinkat(target, directory, name))?;
                made.map_err(|e| failed(path, e))?;
                self.attributes(path, metadata, true)
            }
            Item::CharDevice { major: 0, minor: 0 } => {
                Err(LayerError::entry(path, "is the device 0:0, which means removal"))
            }
            Item::CharDevice { major, minor } => {
                self.node(path, metadata, FileType::CharacterDevice, (major, minor))
            }
            Item::BlockDevice { major, minor } => {
                self.node(path, metadata, FileType::BlockDevice, (major, minor))
            }
            Item::Fifo => self.node(path, metadata, FileType::Fifo, (0, 0)),
            Item::Whiteout => self.whiteout(path),
        }
    }
}

fn failed(path: &[u8], error: Errno) -> LayerError {
    LayerError::Io { action: format!("unpacking {}", super::display_path(path)), source: error.into() }
}

fn times(mtime: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// A path to `name` in `directory` for the calls that know only paths. It does not follow `name` if the call does not.
pub(super) fn proc_path(directory: BorrowedFd<'_>, name: &[u8]) -> Result<CString, Errno> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    CString::new(path).map_err(|_| Errno::INVAL)
}

/// Copies `content` into the empty `file`, leaving out long runs of zeros; how many bytes it has then.
fn copy_with_holes(content: &mut dyn Read, file: &File) -> io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut at = 0_u64;
    let mut hole = false;
    loop {
        let length = fill(content, &mut piece)?;
        hole = length == PIECE && piece.iter().all(|byte| *byte == 0) || hole && length == 0;
        if !hole {
            file.write_all_at(&piece[..length], at)?;
        }
        at += length as u64;
        if length < PIECE {
            if hole {
                file.set_len(at)?;
            }
            return Ok(at);
        }
    }
}

/// Removes `name`, with all that is below it. Not deeper than paths are long.
fn remove_all(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        done => return done,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&inner)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            remove_all(inner.as_fd(), name)?;
        }
    }
    rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)
}
