//! What programs write: records, remembered digests, manifests, configurations, archives of images, registries' answers.

use std::sync::OnceLock;

use rustix::fs::MemfdFlags;

use crate::context::hashes::HashCache;
use crate::digest::Digest;
use crate::image::{self, Document, ImageConfig};
use crate::platform::Platform;
use crate::record::{Bundle, Readers, Record, Shape, Values};
use crate::registry::{ArchiveSource, CredentialFile, Credentials as _, ImageSource as _, challenge};
use crate::snapshot::{ChunkIndex, Ledger, Snapshot, merge_index, sealed};

pub(super) const JSON_WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "null",
    "true",
    "1e999",
    "-1",
    "18446744073709551616",
    "\\ud800",
    "\"schemaVersion\":2",
    "\"mediaType\":",
    "\"config\":",
    "\"layers\":",
    "\"manifests\":",
    "\"digest\":",
    "\"size\":",
    "\"platform\":",
    "\"architecture\":\"amd64\"",
    "\"os\":\"linux\"",
    "\"rootfs\":",
    "\"diff_ids\":",
    "\"history\":",
    "\"OnBuild\":",
    "\"Healthcheck\":",
    "\"annotations\":",
    "\"urls\":",
    "\"data\":",
    "sha256:",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "\"auths\":",
    "\"auth\":\"dTpw\"",
    "Bearer realm=",
    "Basic ",
    "service=",
];

/// A record and a bundle: as they are, and under a good seal.
pub(super) fn record(input: &[u8]) {
    // Magic and version are what an encoding begins with, whichever the version is.
    let version = Bundle::default().encode()[8];
    let sealed = |magic: &[u8]| [magic, &[version], Digest::of(input).as_bytes(), input].concat();
    let _ = Record::decode(input);
    let _ = Bundle::decode(input);
    let bytes = sealed(b"xdrecord");
    match Record::decode(&bytes) {
        Ok(record) => {
            assert_eq!(record.encode(), bytes, "there is one encoding of each record");
            assert!(record.blobs().count() >= record.own_layers().len());
            record.key();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let bytes = sealed(b"xdbundle");
    if let Ok(bundle) = Bundle::decode(&bytes) {
        assert_eq!(bundle.encode(), bytes, "there is one encoding of each bundle");
    }
}

/// A table of contents of a snapshot, a ledger and an index part: as they are, and behind a good beginning.
pub(super) fn snapshot(input: &[u8]) {
    let sealed = |magic: &[u8]| sealed::encode(magic, 1, input).unwrap_or_default();
    for bytes in [input, &sealed(b"crossdock-snapshot\n")] {
        match Snapshot::decode(bytes) {
            Ok(mut snapshot) => {
                let again = snapshot.encode().ok().and_then(|bytes| Snapshot::decode(&bytes).ok());
                assert_eq!(again.as_ref(), Some(&snapshot));
                let alive = snapshot.alive();
                assert!(snapshot.packs.iter().zip(alive).all(|(pack, alive)| alive <= pack.raw_size()));
                snapshot.drop_unused_packs();
                assert!(snapshot.validate().is_ok());
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    for bytes in [input, &sealed(b"crossdock-ledger\n")] {
        if let Ok(ledger) = Ledger::decode(bytes) {
            let again = ledger.encode().ok().and_then(|bytes| Ledger::decode(&bytes).ok());
            assert_eq!(again, Some(ledger));
        }
    }
    for bytes in [input, &[b"crossdock-chunks\n\x01", input].concat()] {
        if let Ok(merged) = merge_index(&[bytes.to_vec()], |_| true) {
            assert!(ChunkIndex::default().add_part(&merged).is_ok() && merged.len() <= bytes.len());
        }
    }
}

/// What a step looked at, with and without its beginning; and what it saw.
pub(super) fn shape(input: &[u8]) {
    for bytes in [input, &[b"crossdock-shape\n\x01", input].concat()] {
        if let Ok(shape) = Shape::decode(bytes) {
            assert_eq!(shape.encode(), bytes, "there is one encoding of each shape");
            let tree = crate::tree::Tree::empty();
            let observers: Vec<_> = shape.trees.iter().map(|_| crate::tree::Observer::new(&tree)).collect();
            let values = shape.values(&observers);
            assert_eq!(values.map(|values| values.0.len()), Some(shape.paths().count()));
        }
    }
    for bytes in [input, &[b"crossdock-readers\n\x01", input].concat()] {
        if let Ok(readers) = Readers::decode(bytes) {
            assert_eq!(Readers::decode(&readers.encode()), Ok(readers));
        }
    }
    if let Some(values) = Values::decode(input) {
        assert_eq!(values.encode(), input);
    }
}

/// The remembered digests of a context.
pub(super) fn hashes(input: &[u8]) {
    const MAGIC: &[u8] = b"\x10crossdock-hashes\x01";
    for bytes in [input, &[MAGIC, input].concat()] {
        if let Ok(cache) = HashCache::decode(bytes) {
            let encoded = cache.encode();
            assert_eq!(HashCache::decode(&encoded).map(|again| again.encode()), Ok(encoded));
        }
    }
}

/// A manifest, an index, a configuration.
pub(super) fn image(input: &[u8]) {
    match Document::parse(input) {
        Ok(Document::Manifest(manifest)) => {
            assert_eq!(Document::parse(&manifest.to_bytes()).ok(), Some(Document::Manifest(manifest)));
        }
        Ok(Document::Index(index)) => {
            let again = Document::parse(&index.to_bytes()).ok();
            if let Err(error) = image::select_platform(&index, &Platform::host()) {
                assert!(!error.to_string().is_empty());
            }
            assert_eq!(again, Some(Document::Index(index)));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(config) = ImageConfig::parse(input) {
        let bytes = config.to_bytes();
        assert_eq!(ImageConfig::parse(&bytes).ok(), Some(config));
    }
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    })
}

/// An archive of an image, as `docker save` and `skopeo` write them.
pub(super) fn archive(input: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory");
    let memory = rustix::fs::memfd_create("archive", MemfdFlags::CLOEXEC).expect("a file in memory");
    rustix::io::write(&memory, input).expect("memory");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
    runtime().block_on(async {
        for name in [None, Some("app:v1")] {
            match ArchiveSource::open(path.as_ref(), name, directory.path()).await {
                Err(error) => assert!(!error.to_string().is_empty()),
                Ok(source) => {
                    let Ok(image) = source.resolve(&Platform::new("linux", "amd64", None)).await else {
                        continue;
                    };
                    assert_eq!(image.manifest_digest, Digest::of(&image.manifest_bytes));
                    for layer in image.manifest.layers.iter().take(4) {
                        let target = directory.path().join("layer");
                        if source.fetch_layer(layer, &target, &|_| {}).await.is_ok() {
                            assert!(layer.digest.matches(&fs_err::read(&target).expect("a layer")));
                        }
                    }
                }
            }
        }
    });
}

/// Docker's and podman's file of credentials, and a registry's challenge.
pub(super) fn registry(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    challenge(text);
    match CredentialFile::parse("auth.json", text) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(config) => {
            // Helpers are programs: whatever an input calls one, it is not started.
            let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
            if value.get("credHelpers").is_some() || value.get("credsStore").is_some() {
                return;
            }
            for registry in ["r", "docker.io"] {
                let _ = runtime().block_on(config.lookup(registry, "library/a"));
            }
        }
    }
}
