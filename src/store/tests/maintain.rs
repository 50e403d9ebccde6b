//! Listing, counting, eviction and verification.

use std::time::{Duration, SystemTime};

use super::{directory, scopes, store_sample};
use crate::digest::Digest;
use crate::store::maintain::{PrunePolicy, list, prune, usage, verify};
use crate::store::{BlobSource, Cache, CacheOptions, DirectoryStore, Store};

fn later() -> SystemTime {
    SystemTime::now() + Duration::from_hours(3)
}

#[tokio::test]
async fn the_least_recently_used_records_go_first_and_shared_blobs_stay() {
    let (root, store) = directory();
    let mut records = Vec::new();
    for name in ["oldest", "middle", "newest"] {
        records.push(store_sample(&store, name).await);
        std::thread::sleep(Duration::from_millis(20));
    }
    // A record that shares its blobs with the newest.
    let mut shares = records[2].clone();
    shares.preimage.add("again", true);
    store.write_record(&shares).await.unwrap();
    store.write_blob(&Digest::of("orphan"), BlobSource::Bytes("orphan".into())).await.unwrap();
    drop(store);

    let store = DirectoryStore::open(root.path(), later).unwrap();
    let items = list(&store).unwrap();
    assert_eq!(items.len(), 4);
    assert_eq!(items[0].record, shares);
    let before = usage(&store).unwrap();
    assert_eq!((before.records, before.blobs), (4, 7));

    let everything = prune(&store, PrunePolicy::default()).unwrap();
    assert_eq!((everything.records, everything.blobs, everything.bytes), (0, 1, 6), "only the orphan");
    let policy = PrunePolicy { max_bytes: Some(34_000), ..PrunePolicy::default() };
    let report = prune(&store, policy).unwrap();
    assert_eq!((report.records, report.blobs), (1, 2));
    assert!(usage(&store).unwrap().bytes() <= 34_000);
    assert!(store.read_record(&records[0].key(), &scopes()).await.unwrap().is_none());
    for kept in [&records[1], &records[2], &shares] {
        assert!(store.read_record(&kept.key(), &scopes()).await.unwrap().is_some());
    }
    let policy = PrunePolicy { all: true, ..PrunePolicy::default() };
    prune(&store, policy).unwrap();
    assert_eq!(usage(&store).unwrap().bytes(), 0);
}

#[tokio::test]
async fn what_was_used_lately_or_by_a_running_build_stays() {
    let (root, store) = directory();
    let record = store_sample(&store, "make").await;
    let tight = PrunePolicy { max_bytes: Some(0), ..PrunePolicy::default() };
    assert_eq!(prune(&store, tight).unwrap().records, 0, "in grace");
    drop(store);

    let running = DirectoryStore::open(root.path(), SystemTime::now).unwrap();
    let build =
        Cache::new(running, None, CacheOptions::default(), std::sync::Arc::new(crate::event::NoEvents));
    let store = DirectoryStore::open(root.path(), later).unwrap();
    for policy in [tight, PrunePolicy { all: true, ..PrunePolicy::default() }] {
        assert_eq!(prune(&store, policy).unwrap().records, 0, "a build runs");
        assert!(build.lookup(&record.key()).await.is_some());
    }
    drop(build);
    assert_eq!(prune(&store, tight).unwrap().records, 1);
}

#[tokio::test]
async fn verify_finds_damage_and_repair_removes_it() {
    let (_root, store) = directory();
    let record = store_sample(&store, "make").await;
    assert!(verify(&store, false).unwrap().damaged.is_empty());
    let path = store.blob_path(&record.layers[0].digest);
    let mut bytes = fs_err::read(&path).unwrap();
    bytes[100] ^= 1;
    fs_err::write(&path, bytes).unwrap();
    let report = verify(&store, false).unwrap();
    assert_eq!(report.checked, 3);
    assert_eq!(report.damaged, [path.strip_prefix(store.root()).unwrap()]);
    assert!(path.exists(), "only looked at");
    assert_eq!(verify(&store, true).unwrap().damaged.len(), 1);
    let after = verify(&store, false).unwrap();
    assert_eq!((after.damaged.len(), after.incomplete), (0, vec![record.key()]));
}
