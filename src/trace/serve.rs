//! Answers the kernel's questions about a tree (Linux's `include/uapi/linux/fuse.h`, by way of the crate fuser).

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request, Session, SessionACL,
};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::inodes::{Inode, ROOT};
use super::{Present, TracedTree};
use crate::tree::{Look, NodeKind};

/// How long the kernel may believe an answer: a tree never changes.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// How long a thread stays awake for the next question.
const LINGER: Duration = Duration::from_micros(50);

/// What a directory's size is, whatever is in it: that is seen by listing it.
const DIRECTORY_SIZE: u64 = 4096;

/// What one read may ask for at most: the kernel asks for 1 MiB at most. Bounds what is allocated for an answer.
const READ_MAX: u32 = 16 << 20;

thread_local! {
    /// What a thread reads contents into: memory of this size, made anew for each answer, would cost more than the rest of it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Answers what comes from `device`, the mount's end of FUSE, until it is unmounted.
pub(super) fn serve(tree: &Arc<TracedTree>, device: OwnedFd) -> io::Result<()> {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(tree.options.threads.max(1));
    let (ours, present) = (Arc::clone(tree), tree.presence.enter());
    let answers = move || {
        // A thread that died over a question is an error too.
        if let Err(error) = answer(&ours, device, config) {
            ours.fail(format!("serving the step's files failed: {error}"));
        }
        drop(ours);
        drop(present);
    };
    std::thread::Builder::new().name("step-files".to_owned()).spawn(answers).map(drop)
}

/// Until the mount is gone.
fn answer(tree: &Arc<TracedTree>, device: OwnedFd, config: Config) -> io::Result<()> {
    let answers = Answers {
        tree: Arc::clone(tree),
        questions: device.try_clone()?,
        is_watched: AtomicBool::new(false),
        _present: tree.presence.enter(),
    };
    match Session::from_fd(answers, device, SessionACL::All, config) {
        // It was gone before anybody asked for anything: the step could not be set up, and says why.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        session => session.and_then(Session::run),
    }
}

struct Answers {
    /// Dropped before `_present`.
    tree: Arc<TracedTree>,
    /// Where questions come from.
    questions: OwnedFd,
    /// A thread waits for the next question without sleeping.
    is_watched: AtomicBool,
    _present: Present,
}

impl Answers {
    fn attributes(&self, number: u64, inode: &Inode) -> FileAttr {
        let node = inode.node();
        let metadata = &node.metadata;
        let (size, device) = match &node.kind {
            NodeKind::Directory => (DIRECTORY_SIZE, 0),
            NodeKind::File { size, .. } => (*size, 0),
            NodeKind::Symlink { target } => (target.len() as u64, 0),
            NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
                (0, device(*major, *minor))
            }
            NodeKind::Fifo => (0, 0),
        };
        let time = SystemTime::from(match self.tree.times.get() {
            Some(times) => times.shown(&inode.path, &inode.child, inode.nlink),
            None => metadata.mtime,
        });
        let (uid, gid) = if self.tree.options.single_id { (0, 0) } else { (metadata.uid, metadata.gid) };
        FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: file_type(&node.kind),
            perm: (metadata.mode & 0o7777) as u16,
            nlink: inode.nlink,
            uid,
            gid,
            rdev: device,
            blksize: 4096,
            flags: 0,
        }
    }

    /// What the kernel asks for was given to it before: anything else is a failure.
    fn inode(&self, number: INodeNo) -> Result<Arc<Inode>, Errno> {
        self.tree.inodes.get(number.0).ok_or_else(|| {
            self.tree.fail(format!("the kernel asked for the inode {}, which there is not", number.0));
            Errno::EIO
        })
    }

    /// Stays awake for a moment: most questions follow each other closely, and being woken takes longer than an answer.
    fn linger(&self) {
        if self.is_watched.swap(true, Ordering::Acquire) {
            return;
        }
        let started = Instant::now();
        while started.elapsed() < LINGER {
            let mut questions = [PollFd::new(&self.questions, PollFlags::IN)];
            if rustix::event::poll(&mut questions, Some(&Timespec::default())) != Ok(0) {
                break;
            }
            std::thread::yield_now();
        }
        self.is_watched.store(false, Ordering::Release);
    }

    /// Reads into the beginning of `buffer`, which grows if it has to, and says how much.
    fn content(
        &self,
        inode: &Inode,
        offset: u64,
        size: u32,
        process: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<usize, Errno> {
        let node = inode.node();
        if node.content().is_none() {
            return Err(Errno::EINVAL);
        }
        inode.look_by(Look::CONTENT, process);
        let length = node.size().saturating_sub(offset).min(size.min(READ_MAX).into());
        let length = usize::try_from(length).unwrap_or(0);
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        self.tree.contents.read(&inode.path, node, offset, &mut buffer[..length]).map_err(|error| {
            let path = crate::layer::display_path(&inode.path);
            self.tree.fail(format!("reading /{path} failed: {}", crate::hint::with_causes(&error)));
            Errno::EIO
        })?;
        Ok(length)
    }
}

fn file_type(kind: &NodeKind) -> FileType {
    match kind {
        NodeKind::Directory => FileType::Directory,
        NodeKind::File { .. } => FileType::RegularFile,
        NodeKind::Symlink { .. } => FileType::Symlink,
        NodeKind::CharDevice { .. } => FileType::CharDevice,
        NodeKind::BlockDevice { .. } => FileType::BlockDevice,
        NodeKind::Fifo => FileType::NamedPipe,
    }
}

/// As in `new_encode_dev` of the kernel.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

impl Filesystem for Answers {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is a help, and none is needed.
        for flag in [
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        ] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.tree.inodes.look_up(parent.0, name.as_bytes()) {
            Some((number, inode)) => {
                // Who walks through a directory asks for nothing more; who wants its time is to ask.
                let is_told_apart = self.tree.times.get().is_some() && inode.directory().is_some();
                let known = if is_told_apart { Duration::ZERO } else { FOR_EVER };
                reply.entry_with_ttls(&known, &FOR_EVER, &self.attributes(number, &inode), Generation(0));
            }
            None => {
                // Inode 0 is nothing, and that is remembered.
                let Some(root) = self.tree.inodes.get(ROOT) else { return reply.error(Errno::EIO) };
                reply.entry(&FOR_EVER, &self.attributes(0, &root), Generation(0));
            }
        }
        self.linger();
    }

    fn getattr(&self, request: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.inode(number) {
            Ok(inode) => {
                if self.tree.times.get().is_some() && inode.directory().is_some() {
                    inode.look_by(Look::NAMES, request.pid());
                }
                reply.attr(&FOR_EVER, &self.attributes(number.0, &inode));
            }
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        match self.inode(number) {
            Ok(inode) => match inode.node().target() {
                Some(target) => reply.data(target),
                None => reply.error(Errno::EINVAL),
            },
            Err(error) => reply.error(error),
        }
    }

    /// Opening is nothing: the kernel does not ask again.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        request: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let read = self
                .inode(number)
                .and_then(|inode| self.content(&inode, offset, size, request.pid(), buffer));
            match read {
                Ok(length) => reply.data(&buffer[..length]),
                Err(error) => reply.error(error),
            }
        });
        self.linger();
    }

    fn readdir(
        &self,
        request: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let inode = match self.inode(number) {
            Ok(inode) => inode,
            Err(error) => return reply.error(error),
        };
        let Some(dir) = inode.directory() else { return reply.error(Errno::ENOTDIR) };
        inode.look_by(Look::NAMES, request.pid());
        let mut add = |number: u64, place: u64, kind: FileType, name: &[u8]| {
            reply.add(INodeNo(number), place, kind, OsStr::from_bytes(name))
        };
        // Both are only for show: the kernel knows them better.
        for (place, dots) in [(1, b".".as_slice()), (2, b"..")] {
            if offset < place && add(number.0, place, FileType::Directory, dots) {
                return reply.ok();
            }
        }
        let skip = usize::try_from(offset.saturating_sub(2)).unwrap_or(usize::MAX);
        for (place, (name, child)) in (3..).zip(dir.children()).skip(skip) {
            let kind = file_type(&child.node().kind);
            let (number, _) = self.tree.inodes.number((number.0, &inode), name, child);
            if add(number, place, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.tree.has_xattrs {
            return reply.error(Errno::ENOSYS);
        }
        match self.inode(number) {
            Ok(inode) => match inode.node().metadata.xattrs.get(name.as_bytes()) {
                Some(value) => answer_xattr(value, size, reply),
                None => reply.error(Errno::ENODATA),
            },
            Err(error) => reply.error(error),
        }
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.tree.has_xattrs {
            return reply.error(Errno::ENOSYS);
        }
        match self.inode(number) {
            Ok(inode) => {
                let names = inode.node().metadata.xattrs.keys().flat_map(|name| [name, &b"\0"[..]].concat());
                answer_xattr(&names.collect::<Vec<u8>>(), size, reply);
            }
            Err(error) => reply.error(error),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }
}

fn answer_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
