//! What every store must do.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::faulty::{Faults, FaultyStore};
use super::{sample, scopes, store_sample};
use crate::digest::Digest;
use crate::record::{Bundle, BundleName, BundleStep, Scope};
use crate::store::{
    Backend, BlobSource, DirectoryStore, DocumentName, Expected, MemoryStore, ObjectStore, Store, StoreError,
    Version,
};

pub(crate) async fn keeps_the_contract(store: &dyn Store) {
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
        assert_eq!(store.blob_size(&digest).await.unwrap(), None);
        assert_eq!(store.read_range(&digest, 0..1).await.unwrap(), None);

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
        assert_eq!(store.blob_size(&digest).await.unwrap(), Some(size));
        for (range, expected) in [
            (0..size, 0..size),
            (1..3, 1..3),
            (size / 2..size + 9, size / 2..size),
            (size + 1..size + 2, 0..0),
        ] {
            let expected = content.slice(index(expected.start, size)..index(expected.end, size));
            assert_eq!(store.read_range(&digest, range).await.unwrap().unwrap(), expected);
        }
        if size > 0 {
            assert_eq!(store.read_blob(&digest, size - 1).await.unwrap(), None);
        }
        fs_err::write(&copy, "old").unwrap();
        assert!(store.fetch_blob(&digest, size, &copy).await.unwrap());
        assert_eq!(fs_err::read(&copy).unwrap(), content);
        fs_err::remove_file(&copy).unwrap();
    }
}

fn index(offset: u64, size: u64) -> usize {
    usize::try_from(offset.min(size)).unwrap()
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
        let record = store_sample(store, step).await;
        let steps = vec![BundleStep { slot: step.to_owned(), record }];
        let bundle = Bundle { steps };
        store.write_bundle(&name, &Scope::default(), &bundle).await.unwrap();
        assert_eq!(store.read_bundle(&name, &scopes()).await.unwrap(), Some(bundle));
    }
    assert_eq!(store.read_bundle(&name, &["pr".parse().unwrap()]).await.unwrap(), None);
}

/// What a server needs besides.
pub(super) async fn serves(store: Arc<dyn Backend>) {
    serves_as(store, false).await;
}

/// The same for a storage whose names are paths of files: there a document cannot have the name of a folder.
pub(super) async fn serves_from_files(store: Arc<dyn Backend>) {
    serves_as(store, true).await;
}

async fn serves_as(store: Arc<dyn Backend>, names_are_paths: bool) {
    keeps_the_contract(&*store).await;
    let digest = Digest::of("gone");
    assert!(!store.remove_blob(&digest).await.unwrap());
    for quarantined in [false, true] {
        store.write_blob(&digest, BlobSource::Bytes("gone".into())).await.unwrap();
        if quarantined {
            store.quarantine_blob(&digest).await.unwrap();
        } else {
            assert!(store.remove_blob(&digest).await.unwrap());
        }
        assert_eq!(store.missing_blobs(&[digest]).await.unwrap(), [digest]);
    }
    documents(&*store, names_are_paths).await;
    let name: DocumentName = "race".parse().unwrap();
    for round in 0..5 {
        let expected = match store.read_document(&name).await.unwrap() {
            None => Expected::Absent,
            Some(document) => Expected::Unchanged(document.version),
        };
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (store, name, expected) = (Arc::clone(&store), name.clone(), expected.clone());
                let bytes = Bytes::from(format!("{round} {writer}"));
                tokio::spawn(async move { store.write_document(&name, bytes, expected).await.unwrap() })
            })
            .collect();
        let mut winners = 0;
        for writer in writers {
            winners += usize::from(writer.await.unwrap().is_some());
        }
        assert_eq!(winners, 1, "one of those that expect the same");
    }
}

/// What can be looked after: everything is listed once, and goes and comes as it is told. The store is empty.
pub(super) async fn can_be_looked_after(store: &dyn Backend) {
    let record = store_sample(store, "inventory").await;
    let (scope, key) = (&record.scope, record.key());
    let listed = store.list_records().await.unwrap();
    let [only] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!(only.name, (scope.clone(), key));
    assert_eq!(only.size, record.encode().len() as u64);
    assert_eq!(store.peek_record(scope, &key).await.unwrap().as_ref(), Some(&record));
    store.mark_used(scope, &key).await.unwrap();
    assert!(store.list_records().await.unwrap()[0].used >= only.used);
    let mut blobs: Vec<_> =
        store.list_blobs().await.unwrap().into_iter().map(|blob| (blob.name, blob.size)).collect();
    let mut expected: Vec<_> =
        sample("inventory").1.iter().map(|blob| (Digest::of(blob), blob.len() as u64)).collect();
    blobs.sort_unstable();
    expected.sort_unstable();
    assert_eq!(blobs, expected);
    // To the trash: the record is a miss, but not gone. And back.
    let (digest, size) = expected[0];
    store.discard_blob(&digest).await.unwrap();
    assert_eq!(store.missing_blobs(&[digest]).await.unwrap(), [digest]);
    assert_eq!(store.read_record(&key, std::slice::from_ref(scope)).await.unwrap(), None);
    assert_eq!(store.peek_record(scope, &key).await.unwrap().as_ref(), Some(&record));
    let trash = store.list_trash().await.unwrap();
    assert_eq!(trash.iter().map(|blob| (blob.name, blob.size)).collect::<Vec<_>>(), [(digest, size)]);
    store.restore_blob(&digest).await.unwrap();
    assert!(store.read_record(&key, std::slice::from_ref(scope)).await.unwrap().is_some());
    assert_eq!(store.list_trash().await.unwrap(), []);
    store.discard_blob(&digest).await.unwrap();
    store.destroy_blob(&digest).await.unwrap();
    store.restore_blob(&digest).await.unwrap();
    assert_eq!(store.missing_blobs(&[digest]).await.unwrap(), [digest]);
    for _ in 0..2 {
        store.remove_record(scope, &key).await.unwrap();
        store.discard_blob(&digest).await.unwrap();
        store.destroy_blob(&digest).await.unwrap();
    }
    assert_eq!(store.list_records().await.unwrap(), []);
    assert_eq!(store.peek_record(scope, &key).await.unwrap(), None);
    let name: DocumentName = "dated/x/y".parse().unwrap();
    store.write_document(&name, "".into(), Expected::Absent).await.unwrap().unwrap();
    let dated = store.dated_documents(&"dated".parse().unwrap()).await.unwrap();
    assert_eq!(dated.iter().map(|(name, _)| name).collect::<Vec<_>>(), [&name]);
}

async fn documents(store: &dyn Backend, names_are_paths: bool) {
    let name = |text: &str| text.parse::<DocumentName>().unwrap();
    let (tag, folder) = (name("repo/tag/v1"), name("repo/tag"));
    assert_eq!(store.read_document(&tag).await.unwrap(), None);
    assert!(!store.remove_document(&tag, Expected::Anything).await.unwrap());
    let first = store.write_document(&tag, "one".into(), Expected::Absent).await.unwrap().unwrap();
    assert_eq!(store.write_document(&tag, "two".into(), Expected::Absent).await.unwrap(), None);
    let read = store.read_document(&tag).await.unwrap().unwrap();
    assert_eq!((&read.bytes[..], &read.version), (&b"one"[..], &first));
    let unchanged = |version: &Version| Expected::Unchanged(version.clone());
    let second = store.write_document(&tag, "two".into(), unchanged(&first)).await.unwrap().unwrap();
    assert_ne!(first, second);
    assert_eq!(store.write_document(&tag, "three".into(), unchanged(&first)).await.unwrap(), None);
    assert!(!store.remove_document(&tag, unchanged(&first)).await.unwrap());
    assert!(!store.remove_document(&tag, Expected::Absent).await.unwrap());
    store.write_document(&tag, "four".into(), Expected::Anything).await.unwrap().unwrap();
    // A document may have the name of a folder; the order is that of bytes, where `-` comes before `/`.
    let folders = ["repo/tag", "repo/tag/v1/deep"];
    let is_possible = |name: &&str| !names_are_paths || !folders.contains(name);
    for more in ["repo/tag", "repo/tag/v1/deep", "repo/tag/v1-x", "repo/tag/a", "repo/tags"]
        .into_iter()
        .filter(is_possible)
    {
        store.write_document(&name(more), more.to_owned().into(), Expected::Absent).await.unwrap().unwrap();
    }
    let all = ["repo/tag/a", "repo/tag/v1", "repo/tag/v1-x", "repo/tag/v1/deep"].into_iter();
    let all: Vec<_> = all.filter(is_possible).map(name).collect();
    assert_eq!(store.list_documents(&folder, None, 100).await.unwrap(), all);
    assert_eq!(store.list_documents(&folder, None, 2).await.unwrap(), all[..2]);
    assert_eq!(store.list_documents(&folder, Some(&all[1]), 100).await.unwrap(), all[2..]);
    assert_eq!(store.list_documents(&name("nothing"), None, 100).await.unwrap(), []);
    if !names_are_paths {
        assert_eq!(&store.read_document(&name("repo/tag")).await.unwrap().unwrap().bytes[..], b"repo/tag");
    }
    assert!(store.remove_document(&tag, Expected::Anything).await.unwrap());
    assert_eq!(store.read_document(&tag).await.unwrap(), None);
    assert_eq!(store.list_documents(&folder, None, 1).await.unwrap(), all[..1]);
    // What was removed can be written again, and removed again in the state in which it is.
    for _ in 0..2 {
        let again = store.write_document(&tag, "five".into(), Expected::Absent).await.unwrap().unwrap();
        assert_eq!(store.write_document(&tag, "six".into(), Expected::Absent).await.unwrap(), None);
        assert!(store.remove_document(&tag, unchanged(&again)).await.unwrap());
        assert_eq!(store.read_document(&tag).await.unwrap(), None);
    }
}

#[tokio::test]
async fn memory() {
    serves(Arc::new(MemoryStore::new())).await;
}

#[tokio::test]
async fn object_storage() {
    let objects = Arc::new(object_store::memory::InMemory::new());
    for prefix in ["", "a/prefix"] {
        let empty = object_store::memory::InMemory::new();
        can_be_looked_after(&ObjectStore::new(Arc::new(empty), prefix, "memory".to_owned())).await;
        serves(Arc::new(ObjectStore::new(objects.clone(), prefix, "memory".to_owned()))).await;
    }
}

#[tokio::test]
async fn local_directory() {
    let (_root, store) = super::directory();
    can_be_looked_after(&store).await;
    let (_root, store) = super::directory();
    serves(Arc::new(store)).await;
}

#[tokio::test]
async fn shared_directory() {
    let root = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open_shared(root.path(), SystemTime::now).unwrap();
    serves(Arc::new(store)).await;
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

pub(crate) fn hex_file(root: &std::path::Path, hex: &str) -> std::path::PathBuf {
    let mut entries = walkdir::WalkDir::new(root).into_iter().filter_map(Result::ok);
    entries.find(|entry| entry.file_name() == hex).unwrap().into_path()
}
