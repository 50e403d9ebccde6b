//! What every store must do.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::faulty::{Faults, FaultyStore};
use super::{sample, scopes, store_sample};
use crate::digest::Digest;
use crate::record::{Bundle, BundleName, BundleStep, Scope};
use crate::store::{BlobSource, DirectoryStore, MemoryStore, Store, StoreError};

async fn keeps_the_contract(store: &dyn Store) {
    blobs(store).await;
    records(store).await;
    bundles(store).await;
}

async fn blobs(store: &dyn Store) {
    let work = tempfile::tempdir().unwrap();
    // Small, large enough for a thread of its own, and empty.
    for content in [Bytes::from_static(b"hello"), Bytes::from(vec![7; 300_000]), Bytes::new()] {
        let (digest, size) = (Digest::of(&content), content.len() as u64);
        assert_eq!(store.missing_blobs(&[digest]).await.unwrap(), [digest]);
        assert_eq!(store.read_blob(&digest, size).await.unwrap(), None);
        let copy = work.path().join("copy");
        assert!(!store.fetch_blob(&digest, size, &copy).await.unwrap());
        assert!(!copy.exists());

        let wrong = Digest::of("something else");
        let refused = store.write_blob(&wrong, BlobSource::Bytes(content.clone())).await;
        assert!(matches!(refused, Err(StoreError::Mismatch { .. })));
        let file = work.path().join("source");
        fs_err::write(&file, &content).unwrap();
        let refused = store.write_blob(&wrong, BlobSource::File(file.clone())).await;
        assert!(matches!(refused, Err(StoreError::Mismatch { .. })));
        assert_eq!(store.missing_blobs(&[wrong, digest]).await.unwrap(), [wrong, digest]);

        assert!(store.write_blob(&digest, BlobSource::File(file.clone())).await.unwrap());
        assert!(!store.write_blob(&digest, BlobSource::File(file.clone())).await.unwrap());
        assert!(!store.write_blob(&digest, BlobSource::Bytes(content.clone())).await.unwrap());
        assert_eq!(fs_err::read(&file).unwrap(), content, "the source stays");

        assert_eq!(store.missing_blobs(&[digest, wrong]).await.unwrap(), [wrong]);
        assert_eq!(store.read_blob(&digest, size).await.unwrap().unwrap(), content);
        if size > 0 {
            assert_eq!(store.read_blob(&digest, size - 1).await.unwrap(), None);
        }
        fs_err::write(&copy, "old").unwrap();
        assert!(store.fetch_blob(&digest, size, &copy).await.unwrap());
        assert_eq!(fs_err::read(&copy).unwrap(), content);
        fs_err::remove_file(&copy).unwrap();
    }
}

async fn records(store: &dyn Store) {
    let (record, [layer, toc]) = sample("make");
    let key = record.key();
    assert_eq!(store.read_record(&key, &scopes()).await.unwrap(), None);
    assert!(matches!(store.write_record(&record).await, Err(StoreError::Incomplete { .. })));
    store.write_blob(&Digest::of(&toc), BlobSource::Bytes(toc)).await.unwrap();
    assert!(matches!(store.write_record(&record).await, Err(StoreError::Incomplete { .. })));
    assert_eq!(store.read_record(&key, &scopes()).await.unwrap(), None);
    store.write_blob(&Digest::of(&layer), BlobSource::Bytes(layer)).await.unwrap();
    assert_eq!(store.write_record(&record).await.unwrap(), record);

    let mut second = record.clone();
    second.duration_ms = 99;
    assert_eq!(store.write_record(&second).await.unwrap(), record, "whoever was first wins");
    assert_eq!(store.read_record(&key, &scopes()).await.unwrap(), Some(record.clone()));

    let mut foreign = sample("base image").0;
    foreign.foreign = true;
    assert!(matches!(store.write_record(&foreign).await, Err(StoreError::Incomplete { .. })));
    let toc = sample("base image").1[1].clone();
    store.write_blob(&Digest::of(&toc), BlobSource::Bytes(toc)).await.unwrap();
    assert_eq!(store.write_record(&foreign).await.unwrap(), foreign, "its layer is somewhere else");
    assert_eq!(store.read_record(&foreign.key(), &scopes()).await.unwrap(), Some(foreign));

    let mut other = record.clone();
    other.scope = "pr/7".parse().unwrap();
    assert_eq!(store.read_record(&key, &[other.scope.clone()]).await.unwrap(), None);
    assert_eq!(store.read_record(&key, &[]).await.unwrap(), None);
    assert_eq!(store.write_record(&other).await.unwrap(), other);
    let both = [other.scope.clone(), Scope::default()];
    assert_eq!(store.read_record(&key, &both).await.unwrap(), Some(other));
    let fallback = ["pr/8".parse().unwrap(), Scope::default()];
    assert_eq!(store.read_record(&key, &fallback).await.unwrap(), Some(record));
}

async fn bundles(store: &dyn Store) {
    let name = BundleName(Digest::of("build"));
    assert_eq!(store.read_bundle(&name, &scopes()).await.unwrap(), None);
    for step in ["one", "two"] {
        let steps = vec![BundleStep { slot: step.to_owned(), record: sample(step).0 }];
        let bundle = Bundle { steps };
        store.write_bundle(&name, &Scope::default(), &bundle).await.unwrap();
        assert_eq!(store.read_bundle(&name, &scopes()).await.unwrap(), Some(bundle));
    }
    assert_eq!(store.read_bundle(&name, &["pr".parse().unwrap()]).await.unwrap(), None);
}

#[tokio::test]
async fn memory() {
    keeps_the_contract(&MemoryStore::new()).await;
}

#[tokio::test]
async fn local_directory() {
    let (_root, store) = super::directory();
    keeps_the_contract(&store).await;
}

#[tokio::test]
async fn shared_directory() {
    let root = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open_shared(root.path(), SystemTime::now).unwrap();
    keeps_the_contract(&store).await;
    let again = DirectoryStore::open_shared(root.path(), SystemTime::now).unwrap();
    let key = sample("make").0.key();
    assert!(again.read_record(&key, &scopes()).await.unwrap().is_some());
}

/// A decorator without faults changes nothing.
#[tokio::test]
async fn decorated() {
    let store = FaultyStore::new(Arc::new(MemoryStore::new()), 1, Faults::default());
    keeps_the_contract(&store).await;
}

#[tokio::test]
async fn many_writers_agree_on_one_record() {
    let (root, store) = super::directory();
    let first = store_sample(&store, "race").await;
    let name = hex_file(root.path(), &first.key().0.hex());
    fs_err::remove_file(name).unwrap();
    let writers: Vec<_> = (0..16)
        .map(|number| {
            let (store, mut record) = (store.clone(), first.clone());
            record.duration_ms = number;
            tokio::spawn(async move { store.write_record(&record).await.unwrap() })
        })
        .collect();
    let mut winners = Vec::new();
    for writer in writers {
        winners.push(tokio::time::timeout(Duration::from_secs(20), writer).await.unwrap().unwrap());
    }
    assert!(winners.windows(2).all(|pair| pair[0] == pair[1]));
}

pub(super) fn hex_file(root: &std::path::Path, hex: &str) -> std::path::PathBuf {
    let mut entries = walkdir::WalkDir::new(root).into_iter().filter_map(Result::ok);
    entries.find(|entry| entry.file_name() == hex).unwrap().into_path()
}
