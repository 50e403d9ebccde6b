//! What an image is made of, in a form that can be compared: its files after every layer, and its documents.
//!
//! Layers are read here with the `tar` crate and nothing of the program under test.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

use serde_json::Value;

use crate::support::oci;

/// One path of an image: everything that a container can see of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `file`, `directory`, `symlink`, `char`, `block` or `fifo`.
    pub(crate) kind: &'static str,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) content: Arc<[u8]>,
    /// Of a symbolic link: where it points.
    pub(crate) target: String,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// Of a device: major and minor number.
    pub(crate) device: (u32, u32),
    /// Seconds since 1970, with what stands behind the point.
    pub(crate) mtime: String,
    /// Hard links are entries with the same one of this.
    pub(crate) inode: usize,
}

/// The files of an image by path, with a leading slash.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    pub(crate) entries: BTreeMap<String, Entry>,
    inodes: usize,
}

/// An image as a test compares it.
pub(crate) struct Image {
    /// The files after each layer; the last one is what a container sees.
    pub(crate) layers: Vec<Tree>,
    /// The configuration, without the digests of the layers.
    pub(crate) config: Value,
    /// The manifest, without digests and sizes.
    pub(crate) manifest: Value,
}

impl Image {
    /// Reads the only image of an OCI archive, and checks every digest in it.
    pub(crate) fn read(archive: &Path) -> Self {
        let mut image = oci::Image::read(archive);
        let mut layers = Vec::new();
        let mut chain = String::new();
        let mut tree = Tree::default();
        for tar in &image.layers {
            chain += &oci::digest(tar);
            tree = known(&chain, || {
                let mut tree = tree.clone();
                tree.apply(tar);
                tree
            });
            layers.push(tree.clone());
        }
        if let Value::Array(diff_ids) = &mut image.config["rootfs"]["diff_ids"] {
            diff_ids.clear();
        }
        for descriptor in ["config", "layers"] {
            strip_digests(&mut image.manifest[descriptor]);
        }
        Self { layers, config: image.config, manifest: image.manifest }
    }

    /// What a container sees.
    pub(crate) fn files(&self) -> Tree {
        self.layers.last().cloned().unwrap_or_default()
    }
}

/// The tree of a chain of layers, read once: every image of a run stands on the same few base images.
fn known(chain: &str, read: impl FnOnce() -> Tree) -> Tree {
    /// Enough for the base images, which come first in every chain; the rest is read anew.
    const MANY: usize = 64;
    static KNOWN: LazyLock<Mutex<HashMap<String, Tree>>> = LazyLock::new(Mutex::default);
    if let Some(tree) = KNOWN.lock().unwrap().get(chain) {
        return tree.clone();
    }
    let tree = read();
    let mut known = KNOWN.lock().unwrap();
    if known.len() < MANY {
        known.insert(chain.to_owned(), tree.clone());
    }
    tree
}

fn strip_digests(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(strip_digests),
        Value::Object(fields) => {
            fields.remove("digest");
            fields.remove("size");
        }
        _ => {}
    }
}

impl Tree {
    /// The paths of hard-link groups by the inode that they share.
    pub(crate) fn links(&self) -> HashMap<usize, Vec<&str>> {
        let mut links: HashMap<usize, Vec<&str>> = HashMap::new();
        for (path, entry) in &self.entries {
            links.entry(entry.inode).or_default().push(path);
        }
        links
    }

    /// Puts a layer over the tree.
    fn apply(&mut self, tar: &[u8]) {
        // Whiteouts act on what lies below, wherever in the layer they stand: so they go first.
        for entry in tar::Archive::new(tar).entries().unwrap() {
            let path = absolute(&entry.unwrap().path_bytes());
            let (parent, name) = path.rsplit_once('/').unwrap();
            if name == ".wh..wh..opq" {
                let below = format!("{parent}/");
                self.entries.retain(|known, _| known == "/" || !known.starts_with(&below));
            } else if let Some(hidden) = name.strip_prefix(".wh.") {
                self.remove(&format!("{parent}/{hidden}"));
            }
        }
        for entry in tar::Archive::new(tar).entries().unwrap() {
            self.add(entry.unwrap());
        }
    }

    fn add(&mut self, mut entry: tar::Entry<'_, &[u8]>) {
        let path = absolute(&entry.path_bytes());
        if path.rsplit('/').next().unwrap().starts_with(".wh.") {
            return;
        }
        let mut xattrs = BTreeMap::new();
        let mut mtime = entry.header().mtime().unwrap().to_string();
        for extension in entry.pax_extensions().unwrap().into_iter().flatten() {
            let extension = extension.unwrap();
            let (key, value) = (extension.key().unwrap(), extension.value_bytes());
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                xattrs.insert(name.to_owned(), value.to_vec());
            } else if key == "mtime" {
                String::from_utf8_lossy(value).into_owned().clone_into(&mut mtime);
            }
        }
        let link = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
        let header = entry.header().clone();
        let kind = match header.entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => "file",
            tar::EntryType::Directory => "directory",
            tar::EntryType::Symlink => "symlink",
            tar::EntryType::Char => "char",
            tar::EntryType::Block => "block",
            tar::EntryType::Fifo => "fifo",
            tar::EntryType::Link => {
                let link = link.unwrap();
                assert!(!link.starts_with(b"/"), "{path}: Docker refuses hard links with absolute targets");
                let target = absolute(&link);
                let linked =
                    self.entries.get(&target).unwrap_or_else(|| panic!("{path}: link to absent {target}"));
                assert_ne!(linked.kind, "directory", "{path}: hard link to the directory {target}");
                let linked = linked.clone();
                self.entries.insert(path, linked);
                return;
            }
            other => panic!("{path}: entry of type {other:?}"),
        };
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if kind != "directory" || self.entries.get(&path).is_some_and(|known| known.kind != "directory") {
            self.remove(&path);
        }
        self.inodes += 1;
        let device = match kind {
            "char" | "block" => {
                (header.device_major().unwrap().unwrap(), header.device_minor().unwrap().unwrap())
            }
            _ => (0, 0),
        };
        let target = if kind == "symlink" { link.unwrap_or_default() } else { Vec::new() };
        let entry = Entry {
            kind,
            // The mode of a symbolic link means nothing on Linux.
            mode: if kind == "symlink" { 0o777 } else { header.mode().unwrap() & 0o7777 },
            owner: (header.uid().unwrap(), header.gid().unwrap()),
            content: content.into(),
            target: String::from_utf8_lossy(&target).into_owned(),
            xattrs,
            device,
            mtime,
            inode: self.inodes,
        };
        self.entries.insert(path, entry);
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.entries.retain(|known, _| known != path && !known.starts_with(&below));
    }
}

fn absolute(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}
