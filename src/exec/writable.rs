//! A served tree that steps may write to, mounted in this process's own mount namespace: several steps can be shown the same
//! one, and what they wrote stays when they have ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::mount::{UnmountFlags, unmount};
use rustix::thread::UnshareFlags;

use super::helper::{SetupError, mount_fuse, mount_overlay};
use super::userns::unshare;
use crate::exec::{ExecError, ServedTree};

/// The mounts. They are gone when this is dropped; who still has them open keeps what they had.
///
/// Only for a process that [`enter_user_namespace`](crate::exec::enter_user_namespace) has been called in: it has mounts of
/// its own then, so that nothing is left of them when it is killed.
#[derive(Debug)]
pub struct WritableMount {
    tree: PathBuf,
    merged: PathBuf,
}

impl WritableMount {
    /// Mounts `tree`, and over it the directory `upper`, which takes all changes. `place` is an existing, empty directory on
    /// the same file system as `upper`.
    ///
    /// # Errors
    /// If this machine does not let it be done.
    pub fn new(
        tree: &Arc<dyn ServedTree>,
        upper: &Path,
        place: &Path,
        user_namespace: bool,
    ) -> Result<Self, ExecError> {
        let io = |doing: &'static str| move |source| ExecError::Channel { doing, source };
        let [lower, merged, work, names] = ["tree", "merged", "work", "names"].map(|name| place.join(name));
        for directory in [&lower, &merged, &work] {
            fs_err::create_dir(directory).map_err(io("making the directories of a mount"))?;
        }
        let device = mount_fuse(&lower).map_err(SetupError::into_exec)?;
        // From here on it is unmounted again, whatever fails.
        let mounts = Self { tree: lower, merged };
        tree.serve(device).map_err(io("serving the files of a mount"))?;
        let (tree, merged, upper) = (mounts.tree.clone(), mounts.merged.clone(), upper.to_owned());
        // Short paths are relative to the working directory, which is to change for this thread only.
        let mounting = std::thread::spawn(move || {
            unshare(UnshareFlags::FS).map_err(io("giving a thread a working directory of its own"))?;
            let writable = Some((&*upper, &*work));
            mount_overlay(&merged, &[tree], writable, &names, user_namespace).map_err(SetupError::into_exec)
        });
        let mounted = mounting.join();
        mounted.unwrap_or_else(|_| Err(io("mounting an overlay")(std::io::ErrorKind::Other.into())))?;
        Ok(mounts)
    }

    /// Where steps find the files.
    pub fn path(&self) -> &Path {
        &self.merged
    }
}

impl Drop for WritableMount {
    fn drop(&mut self) {
        for place in [&self.merged, &self.tree] {
            let _ = unmount(place, UnmountFlags::DETACH);
        }
    }
}
