//! Everything that is mounted inside the step's root.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::rootfs::{Found, Kind, Root, mount_overlay};
use super::{Channel, Doing, SetupError};
use crate::exec::protocol::{Order, Report};
use crate::exec::{ExecStep, Ids, Security, StepMount, sys};

/// Hidden from a sandboxed step: Docker's list.
pub(super) const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Not to be written by a sandboxed step: Docker's list.
pub(super) const READ_ONLY: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The device files of every container: name, major and minor number.
const DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// What a step with `--security=insecure` has besides: name, major and minor number (`util/entitlements/security`).
const INSECURE_DEVICES: &[(&str, u32, u32)] = &[
    ("kmsg", 1, 11),
    ("cuse", 10, 203),
    ("fuse", 10, 229),
    ("kvm", 10, 232),
    ("net/tun", 10, 200),
    ("loop-control", 10, 237),
];

/// The major number of loop devices.
const LOOP: u32 = 7;
/// As many loop devices as there are for a step beyond the first that is free.
const SPARE_LOOPS: u32 = 7;
/// More loop devices than this nobody has.
const MAX_LOOPS: u32 = 4096;

/// A device file of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// Its path below `/dev`.
    pub(super) name: String,
    /// Whether it is a block device.
    pub(super) is_block: bool,
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// The devices that an insecure step has besides the usual ones. None in a user namespace, which may not make any.
pub(super) fn insecure_devices(order: &Order) -> Vec<Device> {
    if order.step.security != Security::Insecure || order.ids != Ids::Root {
        return Vec::new();
    }
    let in_use = |number: u32| Path::new(&format!("/sys/block/loop{number}/loop")).exists();
    let free = (0..MAX_LOOPS).find(|&number| !in_use(number)).unwrap_or(0);
    let characters =
        INSECURE_DEVICES.iter().map(|&(name, major, minor)| (name.to_owned(), false, major, minor));
    let loops = (0..=free + SPARE_LOOPS).map(|minor| (format!("loop{minor}"), true, LOOP, minor));
    characters
        .chain(loops)
        .map(|(name, is_block, major, minor)| Device { name, is_block, major, minor })
        .collect()
}

const DEVICE_LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes the mounts of one step.
pub(super) struct Mounter<'a> {
    pub(super) order: &'a Order,
    pub(super) root: &'a Root,
    pub(super) channel: &'a Channel,
    /// A directory in memory, outside the root, for files that must not reach a disk.
    pub(super) memory: PathBuf,
}

impl Mounter<'_> {
    /// Makes all of them, in an order in which later ones may lie inside earlier ones.
    pub(super) fn mount_all(&self) -> Result<(), SetupError> {
        self.mount_memory()?;
        self.mount_proc()?;
        self.mount_dev()?;
        self.mount_sys()?;
        self.mount_network_files()?;
        for (index, mount) in self.order.step.mounts.iter().enumerate() {
            self.mount_step(index, mount)?;
        }
        if self.order.step.security == Security::Sandbox {
            self.mask()?;
        }
        Ok(())
    }

    fn mount_network_files(&self) -> Result<(), SetupError> {
        for (name, target, content) in [
            ("resolv.conf", "/etc/resolv.conf", &self.order.resolv_conf),
            ("hosts", "/etc/hosts", &self.order.hosts),
        ] {
            let file = self.memory_file(name, content.as_bytes(), 0o644, 0, 0)?;
            self.bind(&file, target, true)?;
        }
        Ok(())
    }

    /// Makes the mounts that a runtime does not make itself. Returns the files that it has to mount, because
    /// they belong below a directory that it covers: source and target.
    pub(super) fn mount_for_runtime(&self) -> Result<Vec<(PathBuf, String)>, SetupError> {
        const COVERED: [&str; 3] = ["/dev", "/proc", "/sys"];
        self.mount_memory()?;
        for path in COVERED {
            let found = self.root.find_or_create(path, Kind::Directory).doing(|| format!("making {path}"))?;
            self.report_created(&found);
        }
        self.mount_network_files()?;
        let mut binds = Vec::new();
        for (index, mount) in self.order.step.mounts.iter().enumerate() {
            let target = mount.target();
            if !COVERED.iter().any(|path| Path::new(target).starts_with(path)) {
                self.mount_step(index, mount)?;
                continue;
            }
            let name = format!("file{index}");
            match mount {
                StepMount::File { data, mode, .. } => self.memory_file(&name, data, *mode, 0, 0)?,
                StepMount::Secret { data, mode, uid, gid, .. } => {
                    self.memory_file(&name, data, *mode, *uid, *gid)?
                }
                _ => {
                    return Err(SetupError::new(
                        format!("mounting {target}"),
                        "an OCI runtime covers this path",
                    )
                    .with_advice("mount it elsewhere, or use the native executor"));
                }
            };
            binds.push((self.memory.join(name), target.to_owned()));
        }
        Ok(binds)
    }

    fn mount_memory(&self) -> Result<(), SetupError> {
        let what = || "making a directory in memory";
        fs_err::create_dir_all(&self.memory).doing(what)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
        let mount = new_mount("tmpfs", &[("mode", "0700")], &[], attributes).doing(what)?;
        let at = rustix::fs::open(
            &self.memory,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            Mode::empty(),
        );
        attach(&mount, at.doing(what)?).doing(what)
    }

    /// Writes a file that exists in memory only.
    fn memory_file(
        &self,
        name: &str,
        data: &[u8],
        mode: u32,
        uid: u32,
        gid: u32,
    ) -> Result<OwnedFd, SetupError> {
        let what = || format!("writing {name} for the step");
        let path = self.memory.join(name);
        let mut file = fs_err::OpenOptions::new().write(true).create_new(true).open(&path).doing(what)?;
        file.write_all(data).doing(what)?;
        if (uid, gid) != (0, 0) {
            std::os::unix::fs::fchown(file.file(), Some(uid), Some(gid))
                .doing(|| format!("giving {name} to user {uid} and group {gid}"))?;
        }
        file.set_permissions(std::fs::Permissions::from_mode(mode & 0o7777)).doing(what)?;
        open_host(&path).doing(what)
    }

    fn mount_proc(&self) -> Result<(), SetupError> {
        let secure = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        match new_mount("proc", &[], &[], secure) {
            Ok(mount) => self.attach_at(&mount, "/proc", Kind::Directory),
            Err(error) => {
                // A container without a full /proc may not mount a new one.
                let mount = clone_tree(&open_host(Path::new("/proc")).doing(|| "opening /proc")?)
                    .doing(|| format!("mounting /proc (a new one: {error}; the outer one)"))?;
                self.channel.note(format!(
                    "cannot mount a new /proc ({error}): steps see the outer one, and with it processes that are not theirs"
                ));
                self.attach_at(&mount, "/proc", Kind::Directory)
            }
        }
    }

    fn mount_dev(&self) -> Result<(), SetupError> {
        let what = || "making the step's /dev";
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID;
        let mount =
            new_mount("tmpfs", &[("mode", "0755"), ("size", "65536k")], &[], attributes).doing(what)?;
        self.attach_at(&mount, "/dev", Kind::Directory)?;
        let dev = self.root.find("/dev").doing(what)?;
        for &(name, major, minor) in DEVICES {
            let mode = Mode::from_raw_mode(0o666);
            if mknodat(&dev, name, FileType::CharacterDevice, mode, makedev(major, minor)).is_err() {
                // Not allowed in a user namespace: show the host's.
                let host =
                    open_host(&Path::new("/dev").join(name)).doing(|| format!("opening /dev/{name}"))?;
                self.bind(&host, &format!("/dev/{name}"), false)?;
            }
        }
        for Device { name, is_block, major, minor } in insecure_devices(self.order) {
            if let Some((parent, _)) = name.rsplit_once('/') {
                rustix::fs::mkdirat(&dev, parent, Mode::from_raw_mode(0o755)).doing(what)?;
            }
            let kind = if is_block { FileType::BlockDevice } else { FileType::CharacterDevice };
            let made = mknodat(&dev, &name, kind, Mode::from_raw_mode(0o666), makedev(major, minor));
            if let Err(error) = made {
                self.channel.note(format!("cannot make /dev/{name} for an insecure step ({error})"));
            }
        }
        for &(name, target) in DEVICE_LINKS {
            symlinkat(target, &dev, name).doing(what)?;
        }
        let secure = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mut options = vec![("ptmxmode", "0666"), ("mode", "0620")];
        if self.order.ids != Ids::Single {
            // The group `tty` of every distribution.
            options.push(("gid", "5"));
        }
        match new_mount("devpts", &options, &[], secure) {
            Ok(mount) => self.attach_at(&mount, "/dev/pts", Kind::Directory)?,
            Err(error) => {
                self.channel.note(format!("cannot mount /dev/pts ({error}): steps have no pseudo terminals"));
            }
        }
        let size = self.order.step.shm_size.to_string();
        let secure = secure | MountAttrFlags::MOUNT_ATTR_NODEV;
        // One of another size is for BuildKit a mount like any other, which may hold programs.
        let usual = self.order.step.shm_size == ExecStep::DEFAULT_SHM_SIZE;
        let attributes = if usual { secure } else { MountAttrFlags::MOUNT_ATTR_NOSUID };
        let shm = new_mount("tmpfs", &[("mode", "1777"), ("size", &size)], &[], attributes);
        self.attach_at(&shm.doing(|| "mounting /dev/shm")?, "/dev/shm", Kind::Directory)?;
        match new_mount("mqueue", &[], &[], secure) {
            Ok(mount) => self.attach_at(&mount, "/dev/mqueue", Kind::Directory)?,
            Err(error) => {
                self.channel
                    .note(format!("cannot mount /dev/mqueue ({error}): steps have no message queues"));
            }
        }
        Ok(())
    }

    fn mount_sys(&self) -> Result<(), SetupError> {
        let secure = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        // An insecure step may write there, as in BuildKit.
        let (clone, mount): (fn(&OwnedFd) -> _, _) = if self.order.step.security == Security::Insecure {
            (clone_tree, new_mount("sysfs", &[], &[], secure))
        } else {
            (clone_read_only, new_mount("sysfs", &[], &["ro"], secure | MountAttrFlags::MOUNT_ATTR_RDONLY))
        };
        if let Ok(mount) = mount {
            self.attach_at(&mount, "/sys", Kind::Directory)?;
            // Runtimes size themselves by the limits there; without it they take the whole machine.
            if let Ok(cgroup) = open_host(Path::new("/sys/fs/cgroup")).and_then(|fd| clone(&fd)) {
                let _ = self.attach_at(&cgroup, "/sys/fs/cgroup", Kind::Directory);
            }
            return Ok(());
        }
        // A network that belongs to another user namespace: its sysfs cannot be mounted, only shown.
        match open_host(Path::new("/sys")).and_then(|fd| clone(&fd)) {
            Ok(mount) => self.attach_at(&mount, "/sys", Kind::Directory),
            Err(error) => {
                self.channel.note(format!("cannot show /sys ({error}): it is empty for steps"));
                Ok(())
            }
        }
    }

    fn mask(&self) -> Result<(), SetupError> {
        for path in READ_ONLY {
            if let Ok(fd) = self.root.find(path) {
                let what = || format!("making {path} read-only");
                attach(clone_read_only(&fd).doing(what)?, &fd).doing(what)?;
            }
        }
        for path in MASKED {
            let Ok(fd) = self.root.find(path) else { continue };
            let what = || format!("masking {path}");
            let mask = if is_dir(&fd).doing(what)? {
                new_mount("tmpfs", &[("size", "4k")], &["ro"], MountAttrFlags::MOUNT_ATTR_RDONLY)
            } else {
                self.root.find("/dev/null").and_then(|null| clone_tree(&null))
            };
            attach(mask.doing(what)?, &fd).doing(what)?;
        }
        Ok(())
    }

    fn mount_step(&self, index: usize, mount: &StepMount) -> Result<(), SetupError> {
        let what = || format!("mounting {}", mount.target());
        let place = self.order.step.scratch.join(format!("mount{index}"));
        match mount {
            StepMount::Bind { source, target, read_only } => {
                let missing = || format!("mounting {target}: opening {}", source.display());
                let fd = open_host(source).doing(missing)?;
                if *read_only {
                    return self.bind(&fd, target, true);
                }
                if is_dir(&fd).doing(what)? {
                    let at = self.overlay(&place, std::slice::from_ref(source), true)?;
                    return self.bind(&open_host(&at).doing(what)?, target, false);
                }
                fs_err::create_dir(&place).doing(what)?;
                let copy = place.join("file");
                fs_err::copy(source, &copy).doing(what)?;
                self.bind(&open_host(&copy).doing(what)?, target, false)
            }
            StepMount::BindOverlay { lowers, source, target, read_only } => {
                let at = match lowers.as_slice() {
                    // A served tree leaves it to the overlay who may do what.
                    [only] if *read_only && !self.order.step.served.contains(only) => only.clone(),
                    _ => self.overlay(&place, lowers, !read_only)?,
                };
                let fd =
                    Root::open(&at)?.find(source).doing(|| format!("mounting {target}: finding {source}"))?;
                self.bind(&fd, target, *read_only)
            }
            StepMount::Cache { dir, target, read_only } => {
                let fd = open_host(dir).doing(|| format!("mounting {target}: opening {}", dir.display()))?;
                self.bind(&fd, target, *read_only)
            }
            StepMount::Tmpfs { target, size } => {
                let size = size.map(|size| size.to_string());
                let options: Vec<(&str, &str)> = size.iter().map(|size| ("size", size.as_str())).collect();
                let mount =
                    new_mount("tmpfs", &options, &[], MountAttrFlags::MOUNT_ATTR_NOSUID).doing(what)?;
                self.attach_at(&mount, target, Kind::Directory)
            }
            StepMount::Secret { target, data, mode, uid, gid } => {
                let file = self.memory_file(&format!("secret{index}"), data, *mode, *uid, *gid)?;
                let mount = clone_read_only(&file).doing(what)?;
                // As in BuildKit, what nobody may execute cannot be executed by another way either.
                if mode & 0o111 == 0 {
                    sys::mount_setattr_recursive(&mount, sys::ATTR_NO_EXEC).doing(what)?;
                }
                self.attach_at(&mount, target, Kind::File)
            }
            StepMount::Socket { source, target } => self.bind(&open_host(source).doing(what)?, target, false),
            StepMount::File { target, data, mode } => {
                let file = self.memory_file(&format!("file{index}"), data, *mode, 0, 0)?;
                self.bind(&file, target, true)
            }
        }
    }

    /// An overlay outside the root, whose upper directory, if it has one, is thrown away with the scratch
    /// directory.
    fn overlay(&self, place: &Path, lowers: &[PathBuf], writable: bool) -> Result<PathBuf, SetupError> {
        let what = || format!("making {}", place.display());
        let (at, upper, work) = (place.join("merged"), place.join("upper"), place.join("work"));
        for dir in [&at, &upper, &work] {
            fs_err::create_dir_all(dir).doing(what)?;
        }
        if let (true, Some(lower)) = (writable, lowers.first()) {
            // The overlay's root shows the upper directory's owner and mode.
            let metadata = fs_err::metadata(lower).doing(what)?;
            fs_err::set_permissions(&upper, metadata.permissions()).doing(what)?;
            let (uid, gid) = (
                std::os::unix::fs::MetadataExt::uid(&metadata),
                std::os::unix::fs::MetadataExt::gid(&metadata),
            );
            if (uid, gid) != (0, 0) && std::os::unix::fs::chown(&upper, Some(uid), Some(gid)).is_err() {
                self.channel
                    .note(format!("the owner {uid}:{gid} of a mounted directory does not exist here"));
            }
        }
        let layers = writable.then_some((upper.as_path(), work.as_path()));
        mount_overlay(&at, lowers, layers, &place.join("names"), self.order.ids != Ids::Root)?;
        Ok(at)
    }

    fn bind(&self, source: &OwnedFd, target: &str, read_only: bool) -> Result<(), SetupError> {
        let what = || format!("mounting {target}");
        let kind = if is_dir(source).doing(what)? { Kind::Directory } else { Kind::File };
        let mount = if read_only { clone_read_only(source) } else { clone_tree(source) };
        self.attach_at(&mount.doing(what)?, target, kind)
    }

    fn report_created(&self, found: &Found) {
        for stub in &found.created {
            self.channel.report(&Report::Created(stub.clone()));
        }
    }

    fn attach_at(&self, mount: &OwnedFd, target: &str, kind: Kind) -> Result<(), SetupError> {
        let found =
            self.root.find_or_create(target, kind).doing(|| format!("making the mount point {target}"))?;
        self.report_created(&found);
        if found.is_dir != (kind == Kind::Directory) {
            let reason = if found.is_dir {
                "a file cannot be mounted on a directory"
            } else {
                "a directory cannot be mounted on a file"
            };
            return Err(SetupError::new(format!("mounting {target}"), reason));
        }
        attach(mount, &found.fd).doing(|| format!("mounting {target}"))
    }
}

/// A mount of a new filesystem that is not attached anywhere yet.
fn new_mount(
    kind: &str,
    options: &[(&str, &str)],
    flags: &[&str],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&fs, *key, *value)?;
    }
    for flag in flags {
        fsconfig_set_flag(&fs, *flag)?;
    }
    fsconfig_create(&fs)?;
    Ok(fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// A bind mount of what `of` is, with all that is mounted below it.
fn clone_tree(of: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(of, "", flags)?)
}

fn clone_read_only(of: &OwnedFd) -> io::Result<OwnedFd> {
    let mount = clone_tree(of)?;
    sys::mount_setattr_recursive(&mount, sys::ATTR_READ_ONLY)?;
    Ok(mount)
}

/// Opens a path of the host, to be mounted.
fn open_host(path: &Path) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

fn is_dir(fd: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}
