//! OCI layouts, written and read with nothing of the program under test, so that the two can disagree.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// `sha256:…` of bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::from("sha256:"), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// OCI's name for the architecture that the tests run on.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Writes an OCI layout directory with one image, tagged `latest`, of gzip layers.
pub(crate) fn write_layout(directory: &Path, layers: &[&[u8]], config: &Value) -> String {
    write_layout_for(architecture(), directory, layers, config)
}

/// The same for another architecture, by OCI's name.
pub(crate) fn write_layout_for(
    architecture: &str,
    directory: &Path,
    layers: &[&[u8]],
    config: &Value,
) -> String {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = digest(bytes);
        std::fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
        digest
    };
    let mut descriptors = Vec::new();
    for layer in layers {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(layer).unwrap();
        let blob = encoder.finish().unwrap();
        descriptors.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": put(&blob),
            "size": blob.len(),
        }));
    }
    let image = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "config": config,
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| digest(layer)).collect::<Vec<_>>(),
        },
        "history": layers
            .iter()
            .map(|_| json!({"created": "2020-01-01T00:00:00Z", "created_by": "base"}))
            .collect::<Vec<_>>(),
    }))
    .unwrap();
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": put(&image),
            "size": image.len(),
        },
        "layers": descriptors,
    }))
    .unwrap();
    let manifest_digest = put(&manifest);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest_digest,
            "size": manifest.len(),
            "platform": {"architecture": architecture, "os": "linux"},
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }],
    });
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    manifest_digest
}

/// What one path of an image is. Everything that a container can see of it, except times.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// `file`, `directory`, `symlink`, `char`, `block` or `fifo`. A hard link is a file with its target's content.
    pub(crate) kind: &'static str,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) content: Vec<u8>,
    /// Of a symlink: where it points.
    pub(crate) target: String,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, mode, uid, gid, content, target, xattrs } = self;
        let shown = String::from_utf8_lossy(&content[..content.len().min(300)]);
        let length = content.len();
        write!(f, "{kind} {mode:o} {uid}:{gid} {length} bytes {shown:?} → {target:?} {xattrs:?}")
    }
}

/// The files of an image by path, without a leading slash; the root itself is the empty path.
pub(crate) type Tree = BTreeMap<String, Node>;

/// An image read back: its documents, checked against their digests, and its layers as plain tars.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) digest: String,
    pub(crate) manifest: Value,
    pub(crate) config: Value,
    pub(crate) layers: Vec<Vec<u8>>,
}

impl Image {
    /// Reads the only image of an OCI layout: a directory, or a tar file of one.
    pub(crate) fn read(layout: &Path) -> Self {
        let files = if layout.is_dir() { directory_files(layout) } else { tar_files(layout) };
        let file = |name: &str| {
            files.get(name).unwrap_or_else(|| panic!("{} has no {name}", layout.display())).clone()
        };
        let blob = |descriptor: &Value| {
            let digest_text = descriptor["digest"].as_str().unwrap();
            let bytes = file(&format!("blobs/{}", digest_text.replace(':', "/")));
            assert_eq!(digest(&bytes), digest_text, "a blob has another digest than its name");
            assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().unwrap(), "size of {digest_text}");
            bytes
        };
        let marker: Value = serde_json::from_slice(&file("oci-layout")).unwrap();
        assert_eq!(marker["imageLayoutVersion"], "1.0.0");
        let index: Value = serde_json::from_slice(&file("index.json")).unwrap();
        let mut manifests = index["manifests"].as_array().unwrap().clone();
        // Several tags of one image are several descriptors with one digest.
        manifests.dedup_by_key(|descriptor| descriptor["digest"].as_str().unwrap().to_owned());
        assert_eq!(manifests.len(), 1, "one image: {index}");
        let mut descriptor = manifests[0].clone();
        let mut manifest: Value = serde_json::from_slice(&blob(&descriptor)).unwrap();
        if let Some(inner) = manifest["manifests"].as_array() {
            assert_eq!(inner.len(), 1, "one platform: {manifest}");
            descriptor = inner[0].clone();
            manifest = serde_json::from_slice(&blob(&descriptor)).unwrap();
        }
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        // BuildKit writes `null` for a list of nothing.
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let layers: Vec<_> = list(&manifest["layers"]).iter().map(|layer| decompress(&blob(layer))).collect();
        let diff_ids: Vec<_> = layers.iter().map(|layer| json!(digest(layer))).collect();
        assert_eq!(list(&config["rootfs"]["diff_ids"]), diff_ids, "diff IDs name the uncompressed layers");
        let history = list(&config["history"]);
        let filled = history.iter().filter(|entry| entry["empty_layer"] != json!(true)).count();
        assert_eq!(filled, layers.len(), "as many history entries with a layer as layers: {config}");
        Self { digest: descriptor["digest"].as_str().unwrap().to_owned(), manifest, config, layers }
    }

    /// The container configuration.
    pub(crate) fn container(&self) -> &Value {
        &self.config["config"]
    }

    /// The files of the image: all layers, one over the other.
    pub(crate) fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        for layer in &self.layers {
            apply(&mut tree, layer);
        }
        tree
    }
}

/// The files of a plain tar, as `--output type=tar` writes them.
pub(crate) fn tar_tree(path: &Path) -> Tree {
    let mut tree = Tree::new();
    let bytes = std::fs::read(path).unwrap();
    apply(&mut tree, &bytes);
    tree
}

/// The content of a file in a tree.
#[track_caller]
pub(crate) fn content(tree: &Tree, path: &str) -> String {
    let node = tree.get(path).unwrap_or_else(|| {
        panic!("no {path} among {:?}", tree.keys().take(200).collect::<Vec<_>>());
    });
    assert_eq!(node.kind, "file", "{path}");
    String::from_utf8_lossy(&node.content).into_owned()
}

/// Puts a layer over a tree, whiteouts included.
fn apply(tree: &mut Tree, layer: &[u8]) {
    // Whiteouts act on what lies below, wherever in the layer they stand: so they go first.
    for entry in tar::Archive::new(layer).entries().unwrap() {
        let path = clean(&entry.unwrap().path_bytes());
        let (parent, name) =
            path.rsplit_once('/').map_or(("", path.as_str()), |(parent, name)| (parent, name));
        let prefix = if parent.is_empty() { String::new() } else { format!("{parent}/") };
        if name == ".wh..wh..opq" {
            tree.retain(|known, _| known.is_empty() || known == parent || !known.starts_with(&prefix));
        } else if let Some(hidden) = name.strip_prefix(".wh.") {
            remove(tree, &format!("{prefix}{hidden}"));
        }
    }
    for entry in tar::Archive::new(layer).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = clean(&entry.path_bytes());
        if path.rsplit('/').next().unwrap().starts_with(".wh.") {
            continue;
        }
        let mut xattrs = BTreeMap::new();
        if let Some(extensions) = entry.pax_extensions().unwrap() {
            for extension in extensions {
                let extension = extension.unwrap();
                if let Some(name) = extension.key().unwrap().strip_prefix("SCHILY.xattr.") {
                    xattrs.insert(name.to_owned(), extension.value_bytes().to_vec());
                }
            }
        }
        let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned());
        let header = entry.header().clone();
        let kind = match header.entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => "file",
            tar::EntryType::Directory => "directory",
            tar::EntryType::Symlink => "symlink",
            tar::EntryType::Link => {
                let target = clean(link.unwrap().as_bytes());
                let node =
                    tree.get(&target).unwrap_or_else(|| panic!("{path}: link to absent {target}")).clone();
                assert_ne!(node.kind, "directory", "{path}: hard link to the directory {target}");
                tree.insert(path, node);
                continue;
            }
            tar::EntryType::Char => "char",
            tar::EntryType::Block => "block",
            tar::EntryType::Fifo => "fifo",
            other => panic!("{path}: entry of type {other:?}"),
        };
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if matches!(kind, "char" | "block") {
            content = format!("{:?} {:?}", header.device_major(), header.device_minor()).into_bytes();
        }
        if kind != "directory" || tree.get(&path).is_some_and(|node| node.kind != "directory") {
            remove(tree, &path);
        }
        let node = Node {
            kind,
            // The mode of a symlink means nothing on Linux, and writers differ about it.
            mode: if kind == "symlink" { 0o777 } else { header.mode().unwrap() & 0o7777 },
            uid: header.uid().unwrap(),
            gid: header.gid().unwrap(),
            content,
            target: if kind == "symlink" { link.unwrap() } else { String::new() },
            xattrs,
        };
        tree.insert(path, node);
    }
}

fn remove(tree: &mut Tree, path: &str) {
    let below = format!("{path}/");
    tree.retain(|known, _| known != path && !known.starts_with(&below));
}

fn clean(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

fn decompress(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match bytes {
        [0x1f, 0x8b, ..] => {
            flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::stream::read::Decoder::new(bytes).unwrap().read_to_end(&mut plain).unwrap();
        }
        _ => plain.extend_from_slice(bytes),
    }
    plain
}

fn directory_files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    walkdir::WalkDir::new(directory)
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let name = entry.path().strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

fn tar_files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = clean(&entry.path_bytes());
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(name, content);
        }
    }
    files
}

/// A tar being put together by hand.
pub(crate) struct TarBuilder(tar::Builder<Vec<u8>>);

impl TarBuilder {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: tar::EntryType, path: &str, mode: u32, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_577_836_800);
        header.set_size(content.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    /// Adds a directory.
    pub(crate) fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(tar::EntryType::Directory, path, mode, "", b"")
    }

    /// Adds a file.
    pub(crate) fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, path, mode, "", content)
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, path, 0o777, target, b"")
    }

    /// Adds a hard link.
    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, path, 0o644, target, b"")
    }

    /// The bytes.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// The blob of an OCI layout directory.
pub(crate) fn blob_path(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}
