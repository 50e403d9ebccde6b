//! A tree as a file system: its files arrive when they are read, and what was looked at is known.
//!
//! [`TracedTree`] answers the kernel's questions for one step's mount (FUSE), which lies below an overlay that takes the
//! step's changes. The kernel remembers every answer for as long as the mount lasts, so each thing is asked once, and
//! every question is an input of the step: a name that is not there as much as one that is.
//!
//! What counts as what:
//! - a lookup sees all that is known of a node but its content: [`Look::NODE`](crate::tree::Look::NODE), or that there is
//!   nothing. Directories that are only walked through count too: whoever may not enter them sees it by their mode.
//! - the first read of a file sees its whole content, and the first listing of a directory all names in it. Opening one is
//!   not reading it.
//! - if times are shown that follow from contents ([`TracedTree::show_times`]), who asks for a directory's attributes sees
//!   what is in it.
//! - a file with several names is one inode; who looks at one name sees, in the number of links, the others.
//!
//! It fails closed: if any question could not be answered as it should, or whoever answers died over one,
//! [`TracedTree::failure`] says so, and what was recorded is worth nothing. [`TracedTree::settle`] waits until all is said.

mod inodes;
mod serve;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::exec::ServedTree;
use crate::layer::Timestamp;
use crate::tree::{Child, Look, Node, Tree};

/// Gives the contents of a tree's files.
pub trait Contents: Send + Sync + fmt::Debug {
    /// Fills `buffer` with the bytes of the file `node`, which is at `path`, from its byte `at` on. They are there: a file
    /// that turns out to be shorter is an error, as is one that is not what the tree says. May block.
    fn read(&self, path: &[u8], node: &Node, at: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// Says with what times a tree's nodes are shown, instead of their own.
pub trait Times: Send + Sync + fmt::Debug {
    /// When the node `child`, which is at `path` and has `names` names, was last modified.
    fn shown(&self, path: &[u8], child: &Child, names: u32) -> Timestamp;
}

/// How long it may take until a mount is gone, after the last process that could use it: some milliseconds as a rule.
const SETTLED: Duration = Duration::from_secs(30);

/// How a tree is shown.
#[derive(Debug, Clone, Copy)]
pub struct ServeOptions {
    /// Threads that answer.
    pub threads: usize,
    /// Everything belongs to root: in a user namespace with a single id.
    pub single_id: bool,
}

/// A tree that is shown to one step, and what the step has looked at.
#[derive(Debug)]
pub struct TracedTree {
    inodes: inodes::Inodes,
    contents: Arc<dyn Contents>,
    options: ServeOptions,
    /// Nobody looks at extended attributes where there are none: the kernel is told once.
    has_xattrs: bool,
    /// Whoever asks for the time of a directory sees what is in it then.
    times: OnceLock<Arc<dyn Times>>,
    failure: Mutex<Option<String>>,
    presence: Arc<Presence>,
}

/// How many threads answer, or have something to say of what went wrong.
#[derive(Debug, Default)]
struct Presence {
    present: Mutex<usize>,
    left: Condvar,
}

impl Presence {
    fn enter(self: &Arc<Self>) -> Present {
        *self.present.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Present(Arc::clone(self))
    }
}

/// Whoever has this may be waited for: it must be the last thing that a thread gives up, after the tree.
#[derive(Debug)]
struct Present(Arc<Presence>);

impl Drop for Present {
    fn drop(&mut self) {
        *self.0.present.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.left.notify_all();
    }
}

impl TracedTree {
    /// Shows `tree`, whose contents come from `contents`.
    pub fn new(tree: &Tree, contents: Arc<dyn Contents>, options: ServeOptions) -> Arc<Self> {
        Arc::new(Self {
            inodes: inodes::Inodes::new(tree),
            contents,
            options,
            has_xattrs: tree.has_xattrs(),
            times: OnceLock::new(),
            failure: Mutex::default(),
            presence: Arc::default(),
        })
    }

    /// Shows other times than the tree's own. To be called once, before anybody asks.
    ///
    /// A time that follows from what a directory has in it tells that: asking for the attributes of a directory counts as
    /// listing it then, while walking through it does not.
    pub fn show_times(&self, times: Arc<dyn Times>) {
        let _ = self.times.set(times);
    }

    /// Waits until nobody is there any more who could ask, so that all that was looked at, and all that went wrong, is
    /// known. To be called when the step has ended, on a thread that may block.
    pub fn settle(&self) {
        let Presence { present, left } = &*self.presence;
        let present = present.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = left.wait_timeout_while(present, SETTLED, |present| *present > 0);
        if *waited.unwrap_or_else(PoisonError::into_inner).0 > 0 {
            self.fail(format!(
                "the step has ended, and {} s later its files were still in use",
                SETTLED.as_secs()
            ));
        }
    }

    /// What was looked at so far, by path.
    pub fn looks(&self) -> BTreeMap<Vec<u8>, Look> {
        self.inodes.looks()
    }

    /// What the programs are called that were the first to read a file or to list a directory, by path, as far as that is known.
    pub fn readers(&self) -> BTreeMap<Vec<u8>, String> {
        self.inodes.readers()
    }

    /// Why what was looked at is not all, or not right; `None` if nothing went wrong.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, reason: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }
}

/// A tree on its way to the executor, which mounts it.
#[derive(Debug)]
pub struct Serving(pub Arc<TracedTree>);

impl ServedTree for Serving {
    fn serve(&self, device: OwnedFd) -> io::Result<()> {
        serve::serve(&self.0, device)
    }
}

#[cfg(test)]
mod tests;
