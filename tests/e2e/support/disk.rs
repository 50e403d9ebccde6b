//! Disks that are full soon.

#![allow(clippy::print_stderr, reason = "skipping is said aloud")]

use std::path::PathBuf;

use super::{Context, text};

/// A small file system on `directory`, unmounted when dropped; `None`, with a notice, without the right to mount.
pub(crate) struct SmallDisk(pub(crate) PathBuf);

impl SmallDisk {
    pub(crate) fn mount(context: &Context, name: &str, size: &str) -> Option<Self> {
        let directory = context.path(name);
        std::fs::create_dir_all(&directory).unwrap();
        let mounted = context
            .command("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", text(&directory)])
            .output();
        if mounted.status.success() {
            return Some(Self(directory));
        }
        eprintln!("SKIPPED: no right to mount a small file system");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
