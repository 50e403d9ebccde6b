//! Tests of the stores: the contract for each of them, and what happens when things go wrong.

mod cache;
pub(crate) mod contract;
mod crash;
mod directory;
mod faulty;
mod maintain;
mod real;

use std::time::SystemTime;

use bytes::Bytes;

use super::{BlobSource, DirectoryStore, Store};
use crate::digest::Digest;
use crate::layer::{LayerDescriptor, MediaType, Timestamp};
use crate::record::{Preimage, Record, Scope};

/// A record of one layer, and its blobs: the layer and the TOC.
pub(crate) fn sample(name: &str) -> (Record, [Bytes; 2]) {
    let layer = Bytes::from(format!("layer of {name} ").repeat(1000));
    let toc = Bytes::from(format!("toc of {name}"));
    let mut preimage = Preimage::default();
    preimage.add("command", name);
    let record = Record {
        scope: Scope::default(),
        preimage,
        layers: vec![LayerDescriptor {
            diff_id: Digest::of("tar"),
            digest: Digest::of(&layer),
            size: layer.len() as u64,
            media_type: MediaType::Zstd,
            toc: Digest::of(&toc),
        }],
        tree: Digest::of(name),
        created: Timestamp::default(),
        duration_ms: 1,
        builder: "test".to_owned(),
        log: None,
        readers: None,
        foreign: false,
        parts: Vec::new(),
    };
    (record, [layer, toc])
}

/// Stores the sample's blobs and then its record.
pub(crate) async fn store_sample(store: &dyn Store, name: &str) -> Record {
    let (record, blobs) = sample(name);
    for blob in blobs {
        store.write_blob(&Digest::of(&blob), BlobSource::Bytes(blob)).await.unwrap();
    }
    store.write_record(&record).await.unwrap();
    record
}

pub(super) fn directory() -> (tempfile::TempDir, DirectoryStore) {
    let root = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(root.path(), SystemTime::now).unwrap();
    (root, store)
}

pub(super) fn scopes() -> [Scope; 1] {
    [Scope::default()]
}
