//! Makes a layer of what a step left in the upper directory of an overlay file system.
//!
//! The layer holds only what the step itself changed: a directory that was merely copied up is there as `implied`, and
//! a removal only where there was something to remove.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::error::LayerError;
use super::scan::is_overlay_xattr;
use super::toc::{Metadata, Timestamp};
use super::toc_codec::{ENTRIES_MAX, NAME_MAX, path_problem};
use super::unpack::{Whiteouts, proc_path};
use super::write::LayerWriter;

/// What lies below the upper directory.
pub trait Lower {
    /// Whether there is anything at `path`.
    fn exists(&self, path: &[u8]) -> bool;

    /// The metadata of the directory at `path`; `None` if there is none.
    fn directory(&self, path: &[u8]) -> Option<&Metadata>;
}

/// How an upper directory is read.
#[derive(Debug, Clone)]
pub struct DiffOptions {
    /// How overlayfs marks opaque directories there.
    pub whiteouts: Whiteouts,
    /// Paths that the executor put there and that are no part of the layer: mount points and files like
    /// `etc/resolv.conf`. A directory among them stays if the step has put something into it. The empty path leaves
    /// out the root's own attributes.
    pub exclude: BTreeSet<Vec<u8>>,
    /// No time is later than this one (`SOURCE_DATE_EPOCH`).
    pub clamp: Option<Timestamp>,
    /// When the step began. A directory's time that is earlier was set by the step, one that is later only says that
    /// something was put into it.
    pub started: Option<Timestamp>,
    /// Everything belongs to 0:0, since a user namespace with a single id knows no others.
    pub single_id: bool,
    /// Every directory there is one that was changed, with the time that it has now: none is implied.
    pub every_directory: bool,
}

impl Default for DiffOptions {
    fn default() -> Self {
        Self {
            whiteouts: Whiteouts::OverlayRoot,
            exclude: BTreeSet::new(),
            clamp: None,
            started: None,
            single_id: false,
            every_directory: false,
        }
    }
}

/// Something in an upper directory.
#[derive(Debug)]
pub struct Changed {
    /// Its path, relative to the root.
    pub path: Vec<u8>,
    /// Its metadata; all zero for a whiteout.
    pub metadata: Metadata,
    /// What it is.
    pub kind: ChangedKind,
}

type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// The largest extended attribute that Linux has.
const XATTR_SIZE_MAX: usize = 64 << 10;

/// See [`Changed`].
#[derive(Debug)]
pub enum ChangedKind {
    /// A directory.
    Directory {
        /// It hides all that lower layers have in it.
        opaque: bool,
        /// Only what is in it was changed.
        implied: bool,
    },
    /// A regular file.
    File {
        /// Its length in bytes.
        size: u64,
        /// Device and inode, if it has other names.
        inode: Option<(u64, u64)>,
    },
    /// A symbolic link with this text.
    Symlink(Vec<u8>),
    /// A character device: major and minor number.
    CharDevice(u32, u32),
    /// A block device: major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// What lower layers have there is gone.
    Whiteout,
}

use ChangedKind as Found;

/// What is in the upper directory `upper` of an overlay over `lower`: siblings sorted by name, parents first.
///
/// # Errors
/// As [`diff_upper`].
pub fn upper_changes(
    upper: impl AsFd,
    lower: &dyn Lower,
    options: &DiffOptions,
) -> Result<Vec<Changed>, LayerError> {
    let mut walk = Walk { root: upper.as_fd(), lower, options, found: Vec::new() };
    walk.root()?;
    let changed = |(path, metadata, kind)| Changed { path, metadata, kind };
    Ok(walk.found.into_iter().map(changed).collect())
}

/// Opens a file of an upper directory to be read, without following any link.
///
/// # Errors
/// If that is not possible.
pub fn open_changed(upper: impl AsFd, path: &[u8]) -> Result<File, LayerError> {
    let file = open(upper.as_fd(), path, OFlags::RDONLY).map_err(|error| failed(path, error))?;
    Ok(File::from(file))
}

/// Adds what is in the upper directory `upper` of an overlay over `lower` to `layer`: siblings sorted by name, parents
/// first. Returns how many entries were added that are no implied directories: with 0, the step changed nothing.
///
/// Nothing may write to `upper` any more. Sockets are left out, as in every container tool, and so are attributes that
/// belong to the host: `security.*` other than capabilities, and `system.*`.
pub fn diff_upper<W: Write>(
    upper: impl AsFd,
    lower: &dyn Lower,
    options: &DiffOptions,
    layer: &mut LayerWriter<W>,
) -> Result<usize, LayerError> {
    let root = upper.as_fd();
    let mut walk = Walk { root, lower, options, found: Vec::new() };
    walk.root()?;
    let found = walk.found;
    let mut first_names: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut changed = 0;
    for (path, metadata, found) in found {
        changed += usize::from(!matches!(found, Found::Directory { implied: true, .. }));
        match found {
            Found::Directory { opaque, implied } => layer.directory(&path, &metadata, opaque, implied)?,
            Found::File { size, inode } => {
                if let Some(inode) = inode {
                    if let Some(first) = first_names.get(&inode) {
                        layer.hard_link(&path, &metadata, first)?;
                        continue;
                    }
                    first_names.insert(inode, path.clone());
                }
                let file = open(root, &path, OFlags::RDONLY).map_err(|error| failed(&path, error))?;
                layer.file(&path, &metadata, size, &mut File::from(file))?;
            }
            Found::Symlink(target) => layer.symlink(&path, &metadata, &target)?,
            Found::CharDevice(major, minor) => layer.char_device(&path, &metadata, major, minor)?,
            Found::BlockDevice(major, minor) => layer.block_device(&path, &metadata, major, minor)?,
            Found::Fifo => layer.fifo(&path, &metadata)?,
            Found::Whiteout => layer.whiteout(&path)?,
        }
    }
    Ok(changed)
}

struct Walk<'a> {
    root: BorrowedFd<'a>,
    lower: &'a dyn Lower,
    options: &'a DiffOptions,
    found: Vec<(Vec<u8>, Metadata, Found)>,
}

impl Walk<'_> {
    fn root(&mut self) -> Result<(), LayerError> {
        let stat = rustix::fs::fstat(self.root).map_err(|error| failed(b"", error))?;
        let by_name = proc_path(self.root, b".").map_err(|error| failed(b"", error))?;
        let (xattrs, opaque) = self.xattrs(b"", &by_name)?;
        let mut metadata = self.metadata(&stat, xattrs);
        let excluded = self.options.exclude.contains(&b""[..]);
        let before = self.lower.directory(b"");
        let implied = before
            .is_some_and(|before| excluded || !self.options.every_directory && self.same(before, &metadata));
        if let (true, Some(before)) = (implied, before) {
            metadata = before.clone();
        }
        let at = self.found.len();
        self.found.push((Vec::new(), metadata, Found::Directory { opaque, implied: implied || excluded }));
        let directory = open(self.root, b"", OFlags::RDONLY | OFlags::DIRECTORY);
        self.directory(&directory.map_err(|error| failed(b"", error))?, b"", opaque)?;
        // The root needs no entry to be there.
        if !opaque && (implied || excluded) {
            self.found.remove(at);
        }
        Ok(())
    }

    /// What is in `directory`. `hidden` says that nothing of the lower layers is to be seen there.
    fn directory(&mut self, directory: &OwnedFd, path: &[u8], hidden: bool) -> Result<(), LayerError> {
        let mut names = Vec::new();
        let entries = rustix::fs::Dir::read_from(directory).map_err(|error| failed(path, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| failed(path, error))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
            if names.len() > ENTRIES_MAX {
                return Err(LayerError::Limit { what: "a number of entries", limit: ENTRIES_MAX as u64 });
            }
        }
        names.sort();
        for name in names {
            let path = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            if let Some(problem) = path_problem(&path) {
                return Err(LayerError::entry(&path, problem));
            }
            self.entry(directory, &name, path, hidden)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        path: Vec<u8>,
        hidden: bool,
    ) -> Result<(), LayerError> {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|error| failed(&path, error))?;
        let excluded = self.options.exclude.contains(&path);
        let kind = FileType::from_raw_mode(stat.st_mode);
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        if kind == FileType::CharacterDevice && (major, minor) == (0, 0) {
            if !hidden && !excluded && self.lower.exists(&path) {
                self.found.push((path, Metadata::default(), Found::Whiteout));
            }
            return Ok(());
        }
        let by_name = proc_path(directory.as_fd(), name).map_err(|error| failed(&path, error))?;
        let (xattrs, marked_opaque) = self.xattrs(&path, &by_name)?;
        let metadata = self.metadata(&stat, xattrs);
        if kind == FileType::Directory {
            return self.inner_directory(directory, name, &path, metadata, hidden, excluded, marked_opaque);
        }
        if excluded {
            return Ok(());
        }
        let found = match kind {
            FileType::RegularFile => {
                let inode = (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
                let size = u64::try_from(stat.st_size).map_err(|_| failed(&path, Errno::OVERFLOW))?;
                Found::File { size, inode }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name, Vec::new());
                Found::Symlink(target.map_err(|error| failed(&path, error))?.into_bytes())
            }
            FileType::CharacterDevice => Found::CharDevice(major, minor),
            FileType::BlockDevice => Found::BlockDevice(major, minor),
            FileType::Fifo => Found::Fifo,
            _ => return Ok(()),
        };
        self.found.push((path, metadata, found));
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "what is known of one directory")]
    fn inner_directory(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        path: &[u8],
        metadata: Metadata,
        hidden: bool,
        excluded: bool,
        marked_opaque: bool,
    ) -> Result<(), LayerError> {
        let before = if hidden { None } else { self.lower.directory(path) };
        let opaque = marked_opaque && before.is_some();
        let at = self.found.len();
        let implied = match before {
            Some(before)
                if !opaque
                    && (excluded
                        || !self.options.every_directory
                            && self.same(before, &metadata)
                            && !self.was_given_time(before, &metadata)) =>
            {
                let kind = Found::Directory { opaque, implied: true };
                self.found.push((path.to_vec(), before.clone(), kind));
                true
            }
            _ => {
                self.found.push((path.to_vec(), metadata, Found::Directory { opaque, implied: false }));
                false
            }
        };
        let inner = rustix::fs::openat(
            directory,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let inner = inner.map_err(|error| failed(path, error))?;
        self.directory(&inner, path, opaque || before.is_none())?;
        if (implied || excluded) && self.found.len() == at + 1 {
            self.found.pop();
        }
        Ok(())
    }

    /// Whether the step gave a directory another time, with `touch -d` or by unpacking an archive.
    fn was_given_time(&self, before: &Metadata, now: &Metadata) -> bool {
        let Some(started) = self.options.started else { return false };
        // The clock of file times is some milliseconds behind, and a clamped time is as good as one of now.
        let began = started.seconds - 1;
        let limit = self.options.clamp.map_or(began, |clamp| began.min(clamp.seconds));
        before.mtime.seconds != now.mtime.seconds && now.mtime.seconds < limit
    }

    /// Whether a directory is as it was. Its time is not asked: it changes with what is in it. Where owners could not
    /// be set nor most attributes, they say nothing.
    fn same(&self, before: &Metadata, now: &Metadata) -> bool {
        if self.options.single_id {
            let user = |metadata: &Metadata| -> Vec<_> {
                let xattrs = metadata.xattrs.clone().into_iter();
                xattrs.filter(|(name, _)| name.starts_with(b"user.")).collect()
            };
            return before.mode == now.mode && user(before) == user(now);
        }
        (before.mode, before.uid, before.gid, &before.xattrs) == (now.mode, now.uid, now.gid, &now.xattrs)
    }

    fn metadata(&self, stat: &Stat, xattrs: Xattrs) -> Metadata {
        let mtime = Timestamp { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
        let (uid, gid) = if self.options.single_id { (0, 0) } else { (stat.st_uid, stat.st_gid) };
        Metadata {
            mode: stat.st_mode & 0o7777,
            uid,
            gid,
            mtime: self.options.clamp.map_or(mtime, |clamp| mtime.min(clamp)),
            xattrs,
        }
    }

    /// The extended attributes that belong into a layer, and whether the one is there that means opaque.
    fn xattrs(&self, path: &[u8], by_name: &std::ffi::CStr) -> Result<(Xattrs, bool), LayerError> {
        let mut xattrs = BTreeMap::new();
        let mut opaque = false;
        let mut names = vec![0; 1024];
        let length = loop {
            match rustix::fs::llistxattr(by_name, &mut names) {
                Ok(length) => break length,
                Err(Errno::RANGE) if names.len() <= XATTR_SIZE_MAX => names.resize(2 * names.len(), 0),
                Err(Errno::NOTSUP) => break 0,
                Err(error) => return Err(failed(path, error)),
            }
        };
        for name in names[..length].split(|byte| *byte == 0) {
            let opaque_name = name == self.options.whiteouts.opaque_xattr().as_bytes();
            let ours = !is_overlay_xattr(name)
                && (name.starts_with(b"user.")
                    || name.starts_with(b"trusted.")
                    || name == b"security.capability");
            if name.is_empty() || name.len() > NAME_MAX || !ours && !opaque_name {
                continue;
            }
            let mut value = vec![0; XATTR_SIZE_MAX];
            match rustix::fs::lgetxattr(by_name, name, &mut value) {
                Ok(length) => value.truncate(length),
                // Listed, but not for us to read: another user namespace's.
                Err(Errno::NODATA) => continue,
                Err(error) => return Err(failed(path, error)),
            }
            if opaque_name {
                opaque = value == b"y";
            } else {
                xattrs.insert(name.to_vec(), value);
            }
        }
        Ok((xattrs, opaque))
    }
}

/// Opens `path` below `root` without following any link.
fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

fn failed(path: &[u8], error: Errno) -> LayerError {
    LayerError::Io { action: format!("reading {}", super::display_path(path)), source: error.into() }
}
