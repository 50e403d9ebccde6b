#![allow(clippy::print_stdout, reason = "skipping is said aloud")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::*;
use crate::digest::Digest;
use crate::layer::{Entry, EntryKind, Metadata, Toc};

/// Contents by path; what is not there cannot be read.
#[derive(Debug)]
struct Memory(BTreeMap<Vec<u8>, Vec<u8>>);

impl Contents for Memory {
    fn read(&self, path: &[u8], _: &Node, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        assert!(path != b"deadly", "nobody survives this");
        let content = self.0.get(path).ok_or_else(|| io::Error::other("the content is gone"))?;
        buffer.copy_from_slice(&content[at as usize..][..buffer.len()]);
        Ok(())
    }
}

fn entry(path: &str, mode: u32, kind: EntryKind) -> Entry {
    Entry { path: path.into(), metadata: Metadata { mode, uid: 7, ..Metadata::default() }, kind }
}

fn directory(path: &str) -> Entry {
    entry(path, 0o755, EntryKind::Directory { opaque: false, implied: false })
}

fn file(path: &str, content: &[u8]) -> Entry {
    let size = content.len() as u64;
    entry(path, 0o640, EntryKind::File { size, content: Digest::of(content), offset: 512 })
}

/// A mounted tree.
struct Mounted {
    at: tempfile::TempDir,
    traced: Arc<TracedTree>,
}

impl Mounted {
    fn new(entries: Vec<Entry>, contents: &[(&str, Vec<u8>)]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            println!("skipped: only root mounts a tree, and only where there is /dev/fuse");
            return None;
        }
        let mut tree = Tree::empty();
        tree.apply(0, &Toc { entries, frames: Vec::new() }).unwrap();
        let contents = contents.iter().map(|(path, content)| (path.as_bytes().to_vec(), content.clone()));
        let options = ServeOptions { threads: 2, single_id: false };
        let traced = TracedTree::new(&tree, Arc::new(Memory(contents.collect())), options);
        let at = tempfile::tempdir().unwrap();
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let options = format!("fd={},rootmode=40755,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        rustix::mount::mount("test", at.path(), "fuse", MountFlags::RDONLY, options.as_c_str()).unwrap();
        Serving(Arc::clone(&traced)).serve(device).unwrap();
        Some(Self { at, traced })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.at.path().join(path)
    }

    fn looks(&self) -> Vec<(String, Look)> {
        let looks = self.traced.looks().into_iter();
        looks.map(|(path, look)| (String::from_utf8(path).unwrap(), look)).collect()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(self.at.path(), UnmountFlags::DETACH).unwrap();
    }
}

fn looks(expected: &[(&str, Look)]) -> Vec<(String, Look)> {
    expected.iter().map(|(path, look)| ((*path).to_owned(), *look)).collect()
}

#[test]
fn what_is_looked_at_is_known_and_nothing_else() {
    let long: Vec<u8> = (0..3_000_000_u32).map(|n| (n >> 8) as u8).collect();
    let entries = vec![
        directory("d"),
        file("d/a", b"content"),
        file("d/empty", b""),
        file("d/unread", b"unread"),
        entry("link", 0o777, EntryKind::Symlink { target: b"d/a".to_vec() }),
        file("long", &long),
        directory("listed"),
        entry("listed/fifo", 0o600, EntryKind::Fifo),
        file("listed/x", b"x"),
        directory("other"),
        file("other/never", b"never"),
    ];
    let contents = [("d/a", b"content".to_vec()), ("long", long.clone()), ("d/unread", b"unread".to_vec())];
    let Some(tree) = Mounted::new(entries, &contents) else { return };
    assert_eq!(tree.looks(), looks(&[("", Look::NODE)]));
    assert_eq!(std::fs::read(tree.path("link")).unwrap(), b"content");
    let file = Look::NODE.and(Look::CONTENT);
    let seen = [("", Look::NODE), ("d", Look::NODE), ("d/a", file), ("link", Look::NODE)];
    assert_eq!(tree.looks(), looks(&seen));
    let metadata = std::fs::symlink_metadata(tree.path("d/unread")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.len()), (0o640, 7, 6));
    // Opening it is no reading.
    drop(std::fs::File::open(tree.path("d/unread")).unwrap());
    assert!(std::fs::metadata(tree.path("d/missing/x")).is_err());
    assert!(std::fs::metadata(tree.path("absent")).is_err());
    assert!(std::fs::read(tree.path("long")).unwrap() == long);
    let mut names: Vec<_> =
        std::fs::read_dir(tree.path("listed")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["fifo", "x"]);
    let seen = [
        ("", Look::NODE),
        ("absent", Look::NODE),
        ("d", Look::NODE),
        ("d/a", file),
        ("d/missing", Look::NODE),
        ("d/unread", Look::NODE),
        ("link", Look::NODE),
        ("listed", Look::NODE.and(Look::NAMES)),
        ("long", file),
    ];
    assert_eq!(tree.looks(), looks(&seen));
    assert!(std::fs::symlink_metadata(tree.path("listed/fifo")).unwrap().file_type().is_fifo());
    assert_eq!(std::fs::read(tree.path("d/empty")).unwrap(), b"");
    assert_eq!(tree.traced.failure(), None);
}

#[test]
fn large_directories_are_listed_whole() {
    let names: Vec<String> = (0..3000).map(|number| format!("d/a-rather-long-name-{number:05}")).collect();
    let mut entries = vec![directory("d")];
    entries.extend(names.iter().map(|name| file(name, b"")));
    let Some(tree) = Mounted::new(entries, &[]) else { return };
    let mut listed: Vec<_> = std::fs::read_dir(tree.path("d"))
        .unwrap()
        .map(|entry| format!("d/{}", entry.unwrap().file_name().into_string().unwrap()))
        .collect();
    listed.sort();
    assert_eq!(listed, names);
    assert_eq!(tree.looks(), looks(&[("", Look::NODE), ("d", Look::NODE.and(Look::NAMES))]));
}

#[test]
fn names_of_one_file_are_one_inode() {
    let entries = vec![
        file("a", b"content"),
        entry("b", 0o640, EntryKind::HardLink { target: b"a".to_vec() }),
        entry("c", 0o640, EntryKind::HardLink { target: b"a".to_vec() }),
    ];
    let Some(tree) = Mounted::new(entries, &[("a", b"content".to_vec()), ("b", b"content".to_vec())]) else {
        return;
    };
    let number = |path| std::fs::metadata(tree.path(path)).unwrap().ino();
    assert_eq!(number("b"), number("a"));
    assert_eq!(std::fs::metadata(tree.path("b")).unwrap().nlink(), 3);
    assert_eq!(std::fs::read(tree.path("a")).unwrap(), b"content");
    // The content was read by one name, and is that of both; the third was not looked up.
    let file = Look::NODE.and(Look::CONTENT);
    assert_eq!(tree.looks(), looks(&[("", Look::NODE), ("a", file), ("b", file)]));
}

#[test]
fn attributes_are_shown_where_there_are_some() {
    let mut with = file("with", b"x");
    with.metadata.xattrs.insert(b"user.colour".to_vec(), b"red".to_vec());
    let Some(tree) = Mounted::new(vec![file("bare", b"x"), with], &[]) else { return };
    let read = |path: &str| {
        let mut value = vec![0; 100];
        let length = rustix::fs::getxattr(tree.path(path), "user.colour", &mut value)?;
        value.truncate(length);
        Ok::<_, rustix::io::Errno>(value)
    };
    assert_eq!(read("with").unwrap(), b"red");
    assert_eq!(read("bare"), Err(rustix::io::Errno::NODATA));
}

/// A content that does not come is an error, and what was seen is worth nothing then.
#[test]
fn it_fails_closed() {
    let Some(tree) = Mounted::new(vec![file("a", b"content")], &[]) else { return };
    assert!(std::fs::read(tree.path("a")).is_err());
    let failure = tree.traced.failure().unwrap();
    assert!(failure.contains("/a") && failure.contains("the content is gone"), "{failure}");
}

/// Whoever answers may die over it. What was seen is worth nothing then, whatever the step made of it.
#[test]
fn the_death_of_a_thread_that_answers_is_a_failure() {
    let entries = vec![file("a", b"content"), file("deadly", b"x")];
    let Some(tree) = Mounted::new(entries, &[("a", b"content".to_vec())]) else { return };
    assert_eq!(std::fs::read(tree.path("a")).unwrap(), b"content");
    assert!(std::fs::read(tree.path("deadly")).is_err(), "an error, and no endless wait");
    let traced = Arc::clone(&tree.traced);
    drop(tree);
    traced.settle();
    let failure = traced.failure().unwrap();
    assert!(failure.contains("panicked"), "{failure}");
}

#[test]
fn all_is_known_once_the_mount_is_gone() {
    let Some(tree) = Mounted::new(vec![file("a", b"content")], &[("a", b"content".to_vec())]) else { return };
    assert_eq!(std::fs::read(tree.path("a")).unwrap(), b"content");
    let traced = Arc::clone(&tree.traced);
    drop(tree);
    traced.settle();
    assert_eq!(traced.failure(), None);
    // And nobody waits for what was never mounted.
    let options = ServeOptions { threads: 1, single_id: false };
    let unused = TracedTree::new(&Tree::empty(), Arc::new(Memory(BTreeMap::new())), options);
    unused.settle();
    assert_eq!(unused.failure(), None);
}
