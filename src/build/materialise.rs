//! Writing parts of trees to disk: what mounts show, and what `type=local` asks for.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::contexts::ContextTree;
use super::copy::Opener;
use super::layers::InputFiles;
use crate::digest::Hasher;
use crate::layer::Metadata;
use crate::tree::{NodeKind, NodeRef, Tree};

/// Bytes copied at a time.
const PIECE: usize = 128 << 10;

/// Writes what a directory context shows at `path` to `destination`: owned by whoever runs this
/// (root in the step), without what is ignored.
pub(crate) fn materialise(context: &ContextTree, path: &[u8], destination: &Path) -> io::Result<()> {
    copy_out(&context.tree, &InputFiles::Directory(context.root.clone()), path, destination, false)
}

/// Writes what `tree` has at and below `path` to `destination`. Directories that are there already are merged into; files
/// that are in the way are replaced.
///
/// Paths in a tree have no `..` and no links on the way, and everything is made anew below `destination`; links
/// that are in the way there are replaced and never followed, so nothing can land outside it.
pub(crate) fn copy_out(
    tree: &Tree,
    files: &InputFiles,
    path: &[u8],
    destination: &Path,
    chown: bool,
) -> io::Result<()> {
    if tree.get(path).is_none() {
        let message = format!("`/{}` not found", String::from_utf8_lossy(path));
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    let mut first_names: HashMap<u64, PathBuf> = HashMap::new();
    let mut directories: Vec<(PathBuf, Metadata)> = Vec::new();
    for (entry, node) in tree.walk(path) {
        let relative = entry[path.len()..].strip_prefix(b"/").unwrap_or(&entry[path.len()..]);
        let target = if relative.is_empty() {
            destination.to_owned()
        } else {
            destination.join(std::ffi::OsStr::from_bytes(relative))
        };
        if let Some(group) = node.group {
            if let Some(first) = first_names.get(&group) {
                if fs_err::symlink_metadata(&target).is_ok() {
                    fs_err::remove_file(&target)?;
                }
                fs_err::hard_link(first, &target)?;
                continue;
            }
            first_names.insert(group, target.clone());
        }
        write_node(&entry, node, files, &target)?;
        if node.is_directory() {
            directories.push((target, node.metadata.clone()));
        } else {
            set_metadata(&target, &node.metadata, matches!(node.kind, NodeKind::Symlink { .. }), chown)?;
        }
    }
    // Directories last: writing into them changes their times, and may need a mode that they do not have.
    for (path, metadata) in directories.iter().rev() {
        set_metadata(path, metadata, false, chown)?;
    }
    Ok(())
}

/// Makes the directories `paths` (which come in order, parents first) of `tree` below `destination`, with their metadata.
pub(crate) fn directories(
    tree: &Tree,
    paths: &BTreeSet<Vec<u8>>,
    destination: &Path,
    chown: bool,
) -> io::Result<()> {
    fs_err::create_dir(destination)?;
    let mut made: Vec<(PathBuf, &Metadata)> = Vec::new();
    if let Some(root) = tree.get(b"") {
        made.push((destination.to_owned(), &root.node.metadata));
    }
    for path in paths {
        // What a later layer replaced or removed needs no metadata.
        if let Some(node) = tree.get(path).filter(|node| node.is_directory()) {
            let target = destination.join(std::ffi::OsStr::from_bytes(path));
            fs_err::create_dir_all(&target)?;
            made.push((target, &node.node.metadata));
        }
    }
    for (path, metadata) in made.iter().rev() {
        set_metadata(path, metadata, false, chown)?;
    }
    Ok(())
}

fn write_node(path: &[u8], node: NodeRef<'_>, files: &InputFiles, target: &Path) -> io::Result<()> {
    let device = |kind, major, minor| {
        let device = rustix::fs::makedev(major, minor);
        match rustix::fs::mknodat(CWD, target, kind, rustix::fs::Mode::from_raw_mode(0o600), device) {
            Ok(()) => Ok(()),
            // Without the right to make devices an empty file stands in for one, as container tools do it.
            Err(rustix::io::Errno::PERM) => fs_err::write(target, b""),
            Err(error) => Err(error.into()),
        }
    };
    if let Ok(existing) = fs_err::symlink_metadata(target) {
        if existing.is_dir() && node.is_directory() {
            return Ok(());
        }
        if existing.is_dir() {
            return Err(io::Error::other(format!(
                "`{}` is a directory and would become a file",
                target.display()
            )));
        }
        fs_err::remove_file(target)?;
    }
    match &node.kind {
        NodeKind::Directory => fs_err::create_dir(target),
        NodeKind::File { size, content: expected } => {
            let mut file = fs_err::OpenOptions::new().write(true).create_new(true).open(target)?;
            if *size == 0 {
                return Ok(());
            }
            let content = files.open(path).map_err(io::Error::other)?;
            // A step may not see another content than its key was made of. What is not a context was verified before.
            let mut hashing = files.is_context().then(|| Hasher::new(expected.algorithm()));
            let mut content = content.take(*size);
            let mut piece = vec![0; PIECE.min(usize::try_from(*size).unwrap_or(PIECE))];
            let mut copied = 0;
            loop {
                let count = content.read(&mut piece)?;
                if count == 0 {
                    break;
                }
                if let Some(hasher) = &mut hashing {
                    hasher.update(&piece[..count]);
                }
                file.write_all(&piece[..count])?;
                copied += count as u64;
            }
            if copied == *size && hashing.is_none_or(|hasher| hasher.finish() == *expected) {
                Ok(())
            } else {
                Err(io::Error::other(format!(
                    "`{}` changed while it was read",
                    String::from_utf8_lossy(path)
                )))
            }
        }
        NodeKind::Symlink { target: link } => symlink(std::ffi::OsStr::from_bytes(link), target),
        NodeKind::CharDevice { major, minor } => {
            device(rustix::fs::FileType::CharacterDevice, *major, *minor)
        }
        NodeKind::BlockDevice { major, minor } => device(rustix::fs::FileType::BlockDevice, *major, *minor),
        NodeKind::Fifo => Ok(rustix::fs::mknodat(
            CWD,
            target,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )?),
    }
}

fn set_metadata(path: &Path, metadata: &Metadata, is_link: bool, chown: bool) -> io::Result<()> {
    if chown {
        std::os::unix::fs::lchown(path, Some(metadata.uid), Some(metadata.gid))?;
    }
    if !is_link {
        fs_err::set_permissions(path, std::fs::Permissions::from_mode(metadata.mode))?;
    }
    for (name, value) in &metadata.xattrs {
        match rustix::fs::lsetxattr(path, name.as_slice(), value, rustix::fs::XattrFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let time = Timespec { tv_sec: metadata.mtime.seconds, tv_nsec: metadata.mtime.nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
