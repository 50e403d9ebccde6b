//! Scanning a directory context: what is in it, less what is ignored, as entries with content digests.
//!
//! A context becomes a tree like any other, so that COPY, bind mounts and keys need to know only trees. As in
//! BuildKit, files belong to root there, whoever owns them on disk.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use walkdir::WalkDir;

use super::hashes::{FileState, HashCache};
use super::ignore::Ignore;
use super::open::open_file;
use crate::digest::{Digest, Hashing};
use crate::hint::Hint;
use crate::layer::{Entry, EntryKind, Metadata, Timestamp};

/// More entries than this are no build context but a mistake (`COPY . .` in `/`), and would fill memory.
const ENTRIES_MAX: usize = 5_000_000;

/// Why a context could not be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A path could not be read.
    #[error("could not read `{}` in the build context", path.display())]
    Io {
        /// The path on disk.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file is longer or shorter than it was when it was listed.
    #[error("`{}` in the build context changed while it was read", path.display())]
    Changed {
        /// The path on disk.
        path: PathBuf,
    },
    /// The context has too many files.
    #[error("the build context `{}` has more than {ENTRIES_MAX} files: is it the right directory?", root.display())]
    TooLarge {
        /// The context's root on disk.
        root: PathBuf,
    },
}

/// What to do about files that change.
pub(crate) const LEAVE_ALONE: &str =
    "let nothing write to the context during a build, or list what is not needed in .dockerignore";

impl Hint for ScanError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Changed { .. } => LEAVE_ALONE,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => LEAVE_ALONE,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "make it readable, or list it in .dockerignore if the build does not need it"
            }
            Self::TooLarge { .. } => "list what the build does not need in .dockerignore",
            Self::Io { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// Which part of a context is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// All of it.
    Everything,
    /// What is at or below these paths (without leading slash), and nothing else.
    Below(Vec<Vec<u8>>),
}

impl Wanted {
    /// Whether `path` is wanted itself, or leads to something that is.
    fn includes(&self, path: &[u8]) -> bool {
        match self {
            Self::Everything => true,
            Self::Below(prefixes) => {
                prefixes.iter().any(|prefix| is_below(path, prefix) || is_below(prefix, path))
            }
        }
    }
}

/// Whether `path` is `base` or below it.
fn is_below(path: &[u8], base: &[u8]) -> bool {
    base.is_empty() || path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

struct Found {
    path: Vec<u8>,
    disk: PathBuf,
    metadata: Metadata,
    kind: FoundKind,
}

enum FoundKind {
    Ready(EntryKind),
    File { state: FileState },
}

/// Scans the directory `root`.
///
/// The entries are sorted as a tree is walked: parents before children, siblings by name. `now` is the time at
/// which the scan begins: digests of files that changed just before it are not remembered in `hashes`, because
/// another change within the clock's resolution would go unseen.
///
/// As soon as `stop` says so it fails: the contents of a context can take minutes to read.
pub fn scan(
    root: &Path,
    ignore: &Ignore,
    wanted: &Wanted,
    hashes: &mut HashCache,
    now: Timestamp,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<Entry>, ScanError> {
    let mut found = walk(root, ignore, wanted)?;
    // Links inside the context may lead outside of what is wanted: then everything may be.
    if *wanted != Wanted::Everything && found.iter().any(|entry| is_link_to(entry, wanted)) {
        found = walk(root, ignore, &Wanted::Everything)?;
    }
    hash_all(found, hashes, now, stop)
}

/// Whether `entry` is a symbolic link on the way to, or at, something wanted.
fn is_link_to(entry: &Found, wanted: &Wanted) -> bool {
    let Wanted::Below(prefixes) = wanted else { return false };
    matches!(entry.kind, FoundKind::Ready(EntryKind::Symlink { .. }))
        && prefixes.iter().any(|prefix| is_below(prefix, &entry.path))
}

fn walk(root: &Path, ignore: &Ignore, wanted: &Wanted) -> Result<Vec<Found>, ScanError> {
    let mut found: Vec<Found> = Vec::new();
    // Directories that are excluded themselves but may hold something that is not.
    let mut pending: Vec<Found> = Vec::new();
    let mut walker = WalkDir::new(root).follow_links(false).sort_by_file_name().into_iter();
    while let Some(next) = walker.next() {
        let item = next.map_err(|error| {
            let path = error.path().unwrap_or(root).to_owned();
            ScanError::Io { path, source: error.into() }
        })?;
        let io_error = |source| ScanError::Io { path: item.path().to_owned(), source };
        let relative = item.path().strip_prefix(root).unwrap_or(item.path());
        let path = relative.as_os_str().as_bytes().to_vec();
        let is_directory = item.file_type().is_dir();
        if path.is_empty() {
            if !is_directory {
                return Err(io_error(io::ErrorKind::NotADirectory.into()));
            }
            continue;
        }
        if !wanted.includes(&path) {
            if is_directory {
                walker.skip_current_dir();
            }
            continue;
        }
        let excluded = ignore.is_excluded(&path);
        if excluded && (!is_directory || !ignore.may_keep_beneath(&path)) {
            if is_directory {
                walker.skip_current_dir();
            }
            continue;
        }
        let metadata = item.metadata().map_err(|error| io_error(error.into()))?;
        let Some(kind) = kind_of(item.path(), &metadata).map_err(io_error)? else { continue };
        let entry = Found {
            metadata: Metadata {
                mode: metadata.mode() & 0o7777,
                uid: 0,
                gid: 0,
                mtime: mtime(&metadata),
                xattrs: xattrs(item.path()).map_err(io_error)?,
            },
            path,
            disk: item.path().to_owned(),
            kind,
        };
        pending.retain(|directory| is_below(&entry.path, &directory.path));
        if excluded {
            pending.push(entry);
            continue;
        }
        found.append(&mut pending);
        found.push(entry);
        if found.len() > ENTRIES_MAX {
            return Err(ScanError::TooLarge { root: root.to_owned() });
        }
    }
    Ok(found)
}

fn mtime(metadata: &std::fs::Metadata) -> Timestamp {
    Timestamp { seconds: metadata.mtime(), nanos: u32::try_from(metadata.mtime_nsec()).unwrap_or(0) }
}

/// `None` for what cannot be in a layer (sockets).
fn kind_of(path: &Path, metadata: &std::fs::Metadata) -> io::Result<Option<FoundKind>> {
    let kind = metadata.file_type();
    let device = || (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    Ok(Some(FoundKind::Ready(if kind.is_file() {
        let state = FileState {
            device: metadata.dev(),
            inode: metadata.ino(),
            links: metadata.nlink(),
            size: metadata.size(),
            mtime: mtime(metadata),
            ctime: Timestamp {
                seconds: metadata.ctime(),
                nanos: u32::try_from(metadata.ctime_nsec()).unwrap_or(0),
            },
        };
        return Ok(Some(FoundKind::File { state }));
    } else if kind.is_dir() {
        EntryKind::Directory { opaque: false, implied: false }
    } else if kind.is_symlink() {
        EntryKind::Symlink { target: fs_err::read_link(path)?.as_os_str().as_bytes().to_vec() }
    } else if kind.is_char_device() {
        let (major, minor) = device();
        EntryKind::CharDevice { major, minor }
    } else if kind.is_block_device() {
        let (major, minor) = device();
        EntryKind::BlockDevice { major, minor }
    } else if kind.is_fifo() {
        EntryKind::Fifo
    } else {
        return Ok(None);
    })))
}

/// The attributes that belong to content: `user.*` and file capabilities. Others (`security.selinux`,
/// `system.posix_acl_*`) are the host's own business.
fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // As long as Linux lets the list be (`XATTR_LIST_MAX`).
    let mut names = vec![0_u8; 65536];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut attributes = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if !name.starts_with(b"user.") && name != b"security.capability" {
            continue;
        }
        let mut value = vec![0_u8; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        attributes.insert(name.to_vec(), value);
    }
    Ok(attributes)
}

/// Turns what was found into entries: hashes the files, on all processors, and joins hard links.
fn hash_all(
    found: Vec<Found>,
    hashes: &mut HashCache,
    now: Timestamp,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<Entry>, ScanError> {
    let mut digests: Vec<Option<Digest>> = found
        .iter()
        .map(|entry| match &entry.kind {
            FoundKind::File { state } => hashes.get(&entry.path, state),
            FoundKind::Ready(_) => None,
        })
        .collect();
    let todo: Vec<usize> = (0..found.len())
        .filter(|at| digests[*at].is_none() && matches!(found[*at].kind, FoundKind::File { .. }))
        .collect();
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, Result<Digest, ScanError>)>> = Mutex::new(Vec::with_capacity(todo.len()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(todo.len() / 16 + 1);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(at) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let size = if let FoundKind::File { state } = &found[*at].kind { state.size } else { 0 };
                    let result = hash_file(&found[*at].disk, size, stop);
                    let failed = result.is_err();
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((*at, result));
                    if failed {
                        return;
                    }
                }
            });
        }
    });
    for (at, result) in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
        digests[at] = Some(result?);
    }
    let mut first_names: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut entries = Vec::with_capacity(found.len());
    for (entry, digest) in found.into_iter().zip(digests) {
        let kind = match (entry.kind, digest) {
            (FoundKind::Ready(kind), _) => kind,
            (FoundKind::File { state }, Some(content)) => {
                hashes.put(&entry.path, state, content, now);
                let inode = (state.device, state.inode);
                match first_names.get(&inode) {
                    Some(target) if state.links > 1 => EntryKind::HardLink { target: target.clone() },
                    _ => {
                        if state.links > 1 {
                            first_names.insert(inode, entry.path.clone());
                        }
                        EntryKind::File { size: state.size, content, offset: 0 }
                    }
                }
            }
            // Only a thread that died could leave a file without a digest.
            (FoundKind::File { .. }, None) => {
                let source = io::Error::other("hashing was interrupted");
                return Err(ScanError::Io { path: entry.disk, source });
            }
        };
        entries.push(Entry { path: entry.path, metadata: entry.metadata, kind });
    }
    Ok(entries)
}

/// How much is read before a look at whether to stop.
const STOP_BYTES: u64 = 16 << 20;

/// The digest of a file that has `size` bytes. One that grows as fast as it is read is not read for ever.
fn hash_file(path: &Path, size: u64, stop: &dyn Fn() -> bool) -> Result<Digest, ScanError> {
    let hash = || {
        let mut hashing = Hashing::new(io::sink());
        let mut file = open_file(path)?.take(size.saturating_add(1));
        while !stop() {
            if io::copy(&mut (&mut file).take(STOP_BYTES), &mut hashing)? == 0 {
                return Ok(hashing.finish());
            }
        }
        Err(io::Error::other("the scan was stopped"))
    };
    match hash() {
        Ok((_, digest, length)) if length == size => Ok(digest),
        Ok(_) => Err(ScanError::Changed { path: path.to_owned() }),
        Err(source) => Err(ScanError::Io { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(root: &Path, ignore: &str, wanted: &Wanted) -> Vec<String> {
        let ignore = Ignore::parse(".dockerignore", ignore.as_bytes()).unwrap();
        let now = Timestamp { seconds: 4_000_000_000, nanos: 0 };
        let entries = scan(root, &ignore, wanted, &mut HashCache::default(), now, &|| false).unwrap();
        entries.into_iter().map(|entry| String::from_utf8(entry.path).unwrap()).collect()
    }

    #[test]
    fn a_scan_that_is_stopped_reads_no_more() {
        let root = sample();
        // It would take a minute.
        fs_err::File::create(root.path().join("large")).unwrap().set_len(60 << 30).unwrap();
        let looks = AtomicUsize::new(0);
        let stop = || looks.fetch_add(1, Ordering::Relaxed) > 10;
        let now = Timestamp { seconds: 4_000_000_000, nanos: 0 };
        let (ignore, wanted) = (Ignore::default(), Wanted::Everything);
        assert!(scan(root.path(), &ignore, &wanted, &mut HashCache::default(), now, &stop).is_err());
        assert!(looks.load(Ordering::Relaxed) < 20, "{looks:?}");
    }

    fn sample() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(root.path().join("a/b")).unwrap();
        for file in ["a/b/keep", "a/b/drop", "a/x", "top"] {
            fs_err::write(root.path().join(file), file).unwrap();
        }
        symlink("a", root.path().join("link")).unwrap();
        root
    }

    #[test]
    fn excluded_parents_come_only_with_children_that_are_kept() {
        let root = sample();
        assert_eq!(
            names(root.path(), "a\n!a/b/keep\n", &Wanted::Everything),
            ["a", "a/b", "a/b/keep", "link", "top"]
        );
        assert_eq!(names(root.path(), "a\n!a/nothing\n", &Wanted::Everything), ["link", "top"]);
    }

    #[test]
    fn only_what_is_wanted_is_read_unless_a_link_leads_away() {
        let root = sample();
        assert_eq!(names(root.path(), "", &Wanted::Below(vec![b"a/x".to_vec()])), ["a", "a/x"]);
        let through_link = names(root.path(), "", &Wanted::Below(vec![b"link/x".to_vec()]));
        assert!(through_link.contains(&"a/x".to_owned()));
    }

    #[test]
    fn hard_links_and_contents_are_seen() {
        let root = sample();
        fs_err::hard_link(root.path().join("top"), root.path().join("zz")).unwrap();
        let now = Timestamp::default();
        let ignore = Ignore::parse("", b"").unwrap();
        let entries =
            scan(root.path(), &ignore, &Wanted::Everything, &mut HashCache::default(), now, &|| false)
                .unwrap();
        let kind = |path: &[u8]| entries.iter().find(|entry| entry.path == path).unwrap().kind.clone();
        assert_eq!(kind(b"zz"), EntryKind::HardLink { target: b"top".to_vec() });
        assert_eq!(kind(b"top"), EntryKind::File { size: 3, content: Digest::of("top"), offset: 0 });
        assert!(entries.iter().all(|entry| entry.metadata.uid == 0));
    }
}
