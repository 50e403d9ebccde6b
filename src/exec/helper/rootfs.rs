//! The step's root filesystem: the overlay, and paths inside it.
//!
//! The root's content is not trusted: every path in it is walked by hand, so that a symbolic link leads to
//! where it would lead for the step and never out of the root.

use std::collections::{HashSet, VecDeque};
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::mount::{MountFlags, UnmountFlags};

use super::{Doing, SetupError};
use crate::exec::protocol::Stub;

/// As in the kernel.
const MAX_LINKS: u32 = 40;
/// Overlayfs takes at most this many lower directories.
const MAX_LOWERS: usize = 500;

/// Mounts an overlay of `lowers` (topmost first) at `at`, with `upper` and `work` or read-only. `names` is an
/// empty directory for short names, because all paths must fit into one page of mount options.
pub(in crate::exec) fn mount_overlay(
    at: &Path,
    lowers: &[PathBuf],
    writable: Option<(&Path, &Path)>,
    names: &Path,
    user_namespace: bool,
) -> Result<(), SetupError> {
    // Overlayfs refuses a directory that it has already. Steps that change nothing all have the same empty layer, and
    // whatever a layer holds is decided by its topmost place: what lies between could only hide what it shows again.
    let mut seen = HashSet::new();
    let lowers: Vec<&PathBuf> = lowers.iter().filter(|lower| seen.insert(*lower)).collect();
    let what = || format!("mounting an overlay of {} layers at {}", lowers.len(), at.display());
    if lowers.len() > MAX_LOWERS {
        return Err(SetupError::new(what(), format!("overlayfs takes at most {MAX_LOWERS} layers"))
            .with_advice("squash the base image, or join RUN instructions"));
    }
    fs_err::create_dir_all(names).doing(what)?;
    let mut lower_names: Vec<String> = Vec::with_capacity(lowers.len());
    for (index, lower) in lowers.iter().enumerate() {
        let name = index.to_string();
        fs_err::os::unix::fs::symlink(lower, names.join(&name)).doing(what)?;
        lower_names.push(name);
    }
    // Without an upper directory overlayfs wants two lower ones, and at least one in any case.
    let missing = usize::from(writable.is_none()) + 1;
    while lower_names.len() < missing {
        let name = format!("e{}", lower_names.len());
        fs_err::create_dir(names.join(&name)).doing(what)?;
        lower_names.push(name);
    }
    let mut options = format!("lowerdir={}", lower_names.join(":"));
    if let Some((upper, work)) = writable {
        fs_err::os::unix::fs::symlink(upper, names.join("u")).doing(what)?;
        fs_err::os::unix::fs::symlink(work, names.join("w")).doing(what)?;
        options.push_str(",upperdir=u,workdir=w");
    }
    // The upper directory becomes a layer: none of overlayfs's own inventions may appear in it.
    options.push_str(if user_namespace { ",userxattr" } else { ",redirect_dir=off,metacopy=off" });
    options.push_str(",index=off,xino=off");
    let at = fs_err::canonicalize(at).doing(what)?;
    rustix::process::chdir(names).doing(what)?;
    let mount = |options: &str| -> io::Result<()> {
        let options = CString::new(options)?;
        Ok(rustix::mount::mount("overlay", &at, "overlay", MountFlags::empty(), options.as_c_str())?)
    };
    // `volatile` (Linux 5.10) leaves out every sync: the upper directory is of no use after a power failure.
    let mut result = Err(io::Error::from(io::ErrorKind::InvalidInput));
    if writable.is_some() {
        result = mount(&format!("{options},volatile"));
    }
    if result.is_err() {
        result = mount(&options);
    }
    let back = rustix::process::chdir("/");
    result.doing(what).map_err(|error| {
        error.with_advice(
            "the cache directory must be on a filesystem that overlayfs accepts as upper layer (ext4, xfs, btrfs or tmpfs, not another overlay), and without root Linux must be 5.11 or newer",
        )
    })?;
    back.doing(|| "returning to the root directory")
}

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// A directory that is the root of every path.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    device: u64,
}

/// A path in a root, with no link left in it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) fd: OwnedFd,
    pub(super) is_dir: bool,
    /// What had to be made for it, parents first, if it is in the root's own filesystem.
    pub(super) created: Vec<Stub>,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self, SetupError> {
        let what = || format!("opening {}", path.display());
        let fd =
            rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let fd = fd.doing(what)?;
        let device = rustix::fs::fstat(&fd).doing(what)?.st_dev;
        Ok(Self { fd, device })
    }

    /// Opens what `path` leads to.
    pub(super) fn find(&self, path: &str) -> io::Result<OwnedFd> {
        let path = Path::new(path);
        let path = path.strip_prefix("/").unwrap_or(path);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?)
    }

    /// Finds `path`, and makes what is missing: directories of mode 0755, and at the end `kind`.
    pub(super) fn find_or_create(&self, path: &str, kind: Kind) -> io::Result<Found> {
        let mut resolved: Vec<OsString> = Vec::new();
        let mut queue: VecDeque<OsString> = components(path.as_bytes());
        let mut created = Vec::new();
        let mut links = 0;
        let mut is_dir = true;
        while let Some(name) = queue.pop_front() {
            if name == ".." {
                resolved.pop();
                continue;
            }
            let parent = self.open_resolved(&resolved)?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&parent, &name, flags, Mode::empty()) {
                Ok(fd) => {
                    let file_type = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
                    if file_type == FileType::Symlink {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(rustix::io::Errno::LOOP.into());
                        }
                        let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
                        if target.as_bytes().first() == Some(&b'/') {
                            resolved.clear();
                        }
                        for component in components(target.as_bytes()).into_iter().rev() {
                            queue.push_front(component);
                        }
                        continue;
                    }
                    is_dir = file_type == FileType::Directory;
                }
                Err(rustix::io::Errno::NOENT) => {
                    is_dir = !queue.is_empty() || kind == Kind::Directory;
                    let before = rustix::fs::fstat(&parent)?;
                    create(parent.as_fd(), &name, is_dir)?;
                    if before.st_dev == self.device {
                        let after = rustix::fs::fstat(&parent)?;
                        let path =
                            resolved.iter().chain([&name]).map(|part| part.as_bytes().to_vec()).collect();
                        let (parent_before, parent_after) = (modified(&before), modified(&after));
                        created.push(Stub { path, is_dir, parent_before, parent_after });
                    }
                }
                Err(error) => return Err(error.into()),
            }
            resolved.push(name);
        }
        Ok(Found { fd: self.open_resolved(&resolved)?, is_dir, created })
    }

    fn open_resolved(&self, components: &[OsString]) -> io::Result<OwnedFd> {
        let path = if components.is_empty() { PathBuf::from(".") } else { components.iter().collect() };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve)?)
    }

    /// Makes this the process's root directory and forgets the old one.
    pub(super) fn enter(&self) -> Result<(), SetupError> {
        let what = || "entering the step's root";
        rustix::process::fchdir(&self.fd).doing(what)?;
        // The new root on top of the old one, which is then unmounted from below it.
        rustix::process::pivot_root(".", ".").doing(what)?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).doing(what)?;
        rustix::process::chdir("/").doing(what)
    }
}

fn create(parent: BorrowedFd<'_>, name: &OsStr, is_dir: bool) -> io::Result<()> {
    if is_dir {
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644))?;
    }
    Ok(())
}

fn components(path: &[u8]) -> VecDeque<OsString> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(|part| OsString::from_vec(part.to_vec())).collect()
}

/// The modification time in seconds and nanoseconds.
pub(in crate::exec) fn modified(stat: &Stat) -> (i64, i64) {
    (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stub_paths(found: &Found) -> Vec<String> {
        let join = |stub: &Stub| {
            stub.path.iter().map(|part| String::from_utf8_lossy(part)).collect::<Vec<_>>().join("/")
        };
        found.created.iter().map(join).collect()
    }

    #[test]
    fn links_stay_inside_and_what_is_missing_is_made() {
        let outside = tempfile::tempdir().unwrap();
        let root_dir = tempfile::tempdir().unwrap();
        let base = root_dir.path();
        fs_err::create_dir(base.join("etc")).unwrap();
        fs_err::os::unix::fs::symlink("../../../../run/net/resolv.conf", base.join("etc/resolv.conf"))
            .unwrap();
        fs_err::os::unix::fs::symlink(outside.path(), base.join("out")).unwrap();
        fs_err::os::unix::fs::symlink("loop", base.join("loop")).unwrap();
        let root = Root::open(base).unwrap();

        let found = root.find_or_create("/etc/resolv.conf", Kind::File).unwrap();
        assert_eq!(stub_paths(&found), ["run", "run/net", "run/net/resolv.conf"]);
        assert!(!found.is_dir && base.join("run/net/resolv.conf").is_file());
        assert!(root.find_or_create("/etc/resolv.conf", Kind::File).unwrap().created.is_empty());

        root.find_or_create("/out/escaped", Kind::Directory).unwrap();
        assert!(!outside.path().join("escaped").exists());
        assert!(base.join(outside.path().strip_prefix("/").unwrap()).join("escaped").is_dir());

        assert!(root.find_or_create("/loop/x", Kind::File).is_err());
        assert!(root.find_or_create("/run/net/resolv.conf/x", Kind::File).is_err());
        assert!(root.find_or_create("/../../..", Kind::Directory).unwrap().is_dir);
    }
}
