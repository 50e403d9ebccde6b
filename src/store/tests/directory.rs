//! What only the directory store does.

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::contract::hex_file;
use super::{directory, scopes, store_sample};
use crate::digest::Digest;
use crate::store::{BlobSource, DirectoryStore, OpenError, Store, StoreError};

#[test]
fn a_store_of_another_format_is_refused() {
    let (root, _) = directory();
    fs_err::write(root.path().join("format"), "crossdock store 9\n").unwrap();
    let refused = DirectoryStore::open(root.path(), SystemTime::now);
    assert!(matches!(refused, Err(OpenError::Format { found, .. }) if found == "crossdock store 9\n"));
}

#[tokio::test]
async fn damaged_objects_are_moved_aside_and_can_be_written_again() {
    let (root, store) = directory();
    let record = store_sample(&store, "make").await;
    for digest in record.blobs() {
        for damage in ["flip", "truncate"] {
            let path = store.blob_path(&digest);
            let good = fs_err::read(&path).unwrap();
            let mut bad = good.clone();
            if damage == "flip" {
                bad[3] ^= 4;
            } else {
                bad.truncate(2);
            }
            fs_err::write(&path, bad).unwrap();
            assert_eq!(store.read_blob(&digest, u64::MAX).await.unwrap(), None);
            assert!(root.path().join("v1/quarantine").join(digest.hex()).exists());
            assert_eq!(store.missing_blobs(&[digest]).await.unwrap(), [digest]);
            assert!(store.read_record(&record.key(), &scopes()).await.unwrap().is_none());
            assert!(store.write_blob(&digest, BlobSource::Bytes(good.into())).await.unwrap());
            assert!(store.read_record(&record.key(), &scopes()).await.unwrap().is_some());
        }
    }
    let path = hex_file(root.path(), &record.key().0.hex());
    fs_err::write(&path, b"").unwrap();
    assert!(store.read_record(&record.key(), &scopes()).await.unwrap().is_none());
    assert_eq!(store.write_record(&record).await.unwrap(), record);
    assert!(store.read_record(&record.key(), &scopes()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_record_under_another_name_is_not_believed() {
    let (root, store) = directory();
    let (one, two) = (store_sample(&store, "one").await, store_sample(&store, "two").await);
    let from = hex_file(root.path(), &one.key().0.hex());
    fs_err::copy(from, hex_file(root.path(), &two.key().0.hex())).unwrap();
    assert!(store.read_record(&two.key(), &scopes()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_file_is_linked_and_a_temporary_file_adopted() {
    let (root, store) = directory();
    let source = root.path().join("source");
    fs_err::write(&source, "content").unwrap();
    let digest = Digest::of("content");
    store.write_blob(&digest, BlobSource::File(source.clone())).await.unwrap();
    let inode = |path: &std::path::Path| fs_err::metadata(path).unwrap().ino();
    assert_eq!(inode(&store.blob_path(&digest)), inode(&source));

    let mut file = store.tmp_file().unwrap();
    std::io::Write::write_all(&mut file, b"made").unwrap();
    let path = file.path().to_owned();
    assert!(store.adopt_blob(&path, &Digest::of("made")).unwrap());
    assert!(!path.exists());
    assert_eq!(store.read_blob(&Digest::of("made"), 9).await.unwrap(), Some(Bytes::from_static(b"made")));
}

#[tokio::test]
async fn locks_exclude_and_are_released() {
    let (root, store) = directory();
    let other = DirectoryStore::open(root.path(), SystemTime::now).unwrap();
    let held = store.try_lock("step").unwrap().unwrap();
    assert!(other.try_lock("step").unwrap().is_none());
    assert!(other.try_lock("another").unwrap().is_some());
    let patience = tokio::time::timeout(Duration::from_millis(30), other.lock("step"));
    assert!(patience.await.is_err(), "giving up is possible");
    let waiting = tokio::spawn(async move { other.lock("step").await.unwrap() });
    drop(held);
    let next = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert!(store.try_lock("step").unwrap().is_none());
    drop(next);
    assert!(fs_err::read_dir(root.path().join("v1/locks")).unwrap().next().is_none());
    for bad in ["", "..", "a/b", "."] {
        assert!(store.try_lock(bad).is_err() && store.state_dir(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_leftovers_of_the_living_stay_and_those_of_the_dead_go() {
    let (root, store) = directory();
    let mine = store.tmp_dir().unwrap();
    let tmp = root.path().join("v1/tmp");
    let own = mine.path().parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let host = own.split_once('-').unwrap().0;
    let dead = tmp.join(format!("{host}-dead"));
    fs_err::create_dir_all(dead.join("unpacked/etc")).unwrap();
    fs_err::write(dead.with_extension("lock"), "").unwrap();
    let elsewhere = tmp.join("elsewhere-1");
    fs_err::create_dir_all(&elsewhere).unwrap();
    fs_err::write(elsewhere.with_extension("lock"), "").unwrap();
    let other = DirectoryStore::open(root.path(), SystemTime::now).unwrap();
    other.sweep_tmp();
    assert!(mine.path().exists());
    assert!(!dead.exists() && !dead.with_extension("lock").exists());
    assert!(elsewhere.exists(), "whether it lives cannot be seen yet");
    let later = || SystemTime::now() + Duration::from_hours(25);
    DirectoryStore::open(root.path(), later).unwrap().sweep_tmp();
    assert!(!elsewhere.exists());
    assert!(mine.path().exists());
}

/// Needs a file system of its own, hence root.
#[tokio::test]
async fn a_full_disk_is_a_clean_error() {
    let root = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    let options = std::ffi::CString::new("size=256k").unwrap();
    if let Err(error) = rustix::mount::mount("none", root.path(), "tmpfs", flags, Some(options.as_c_str())) {
        println!("skipped: mounting a small tmpfs is not possible here ({error})");
        return;
    }
    let store = DirectoryStore::open(root.path(), SystemTime::now).unwrap();
    let mut failures = 0;
    for number in 0..12_u8 {
        let content = Bytes::from(vec![number; 50_000]);
        let digest = Digest::of(&content);
        match store.write_blob(&digest, BlobSource::Bytes(content)).await {
            Ok(stored) => assert!(stored),
            Err(StoreError::Io { source, .. }) => {
                assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
                assert_eq!(store.missing_blobs(&[digest]).await.unwrap(), [digest]);
                failures += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    let report = crate::store::maintain::verify(&store, false).unwrap();
    drop(store);
    rustix::mount::unmount(root.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(failures > 0 && report.checked > 0 && report.damaged.is_empty());
}

/// Needs a mount of its own, hence root, for whom permissions mean nothing.
#[tokio::test]
async fn a_read_only_store_can_be_read() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
    let root = tempfile::tempdir().unwrap();
    if let Err(error) = mount("none", root.path(), "tmpfs", MountFlags::empty(), None) {
        println!("skipped: mounting a tmpfs is not possible here ({error})");
        return;
    }
    let store = DirectoryStore::open(root.path(), SystemTime::now).unwrap();
    let record = store_sample(&store, "make").await;
    let damaged = Digest::of("damaged");
    store.write_blob(&damaged, BlobSource::Bytes("damaged".into())).await.unwrap();
    fs_err::write(store.blob_path(&damaged), "DAMAGED").unwrap();
    drop(store);
    mount_remount(root.path(), MountFlags::RDONLY, "").unwrap();

    let later = || SystemTime::now() + Duration::from_hours(1);
    let store = DirectoryStore::open(root.path(), later).unwrap();
    let read = store.read_record(&record.key(), &scopes()).await;
    let layer = store.read_blob(&record.layers[0].digest, u64::MAX).await;
    let bad = store.read_blob(&damaged, u64::MAX).await;
    let refused = store.write_blob(&Digest::of("new"), BlobSource::Bytes("new".into())).await;
    drop(store);
    unmount(root.path(), UnmountFlags::DETACH).unwrap();
    assert_eq!(read.unwrap(), Some(record));
    assert!(layer.unwrap().is_some());
    assert_eq!(bad.unwrap(), None);
    assert!(matches!(refused, Err(StoreError::Io { .. })));
}
