//! What is removed while a server goes on, and what is not.

use super::*;
use crate::record::Record;
use crate::server::gc::{GcPolicy, collect, usage, verify};
use crate::store::{Backend, Expected, ObjectStore};

/// Far enough that nothing is too new.
fn later() -> SystemTime {
    SystemTime::now() + Duration::from_hours(3)
}

fn objects() -> (Storage, tempfile::TempDir) {
    let spool = tempfile::tempdir().unwrap();
    let objects = ObjectStore::new(Arc::new(object_store::memory::InMemory::new()), "x", "memory".to_owned());
    let storage = Storage::open(StorageKind::Objects(objects), spool.path().into(), SystemTime::now);
    (storage.unwrap(), spool)
}

fn directory() -> (Storage, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    let kind = StorageKind::Directory(root.path().join("storage"));
    (Storage::open(kind, root.path().join("spool"), SystemTime::now).unwrap(), root)
}

fn tenant(storage: &Storage, name: &str) -> Arc<dyn Backend> {
    storage.tenant(&name.parse().unwrap()).unwrap()
}

async fn has(store: &Arc<dyn Backend>, record: &Record) -> bool {
    store.read_record(&record.key(), std::slice::from_ref(&record.scope)).await.unwrap().is_some()
}

#[tokio::test]
async fn what_nothing_names_goes_by_way_of_the_trash() {
    for (storage, _root) in [directory(), objects()] {
        let store = tenant(&storage, "default");
        let record = store_sample(&*store, "kept").await;
        let digest = Digest::of("unnamed");
        store.write_blob(&digest, BlobSource::Bytes("unnamed".into())).await.unwrap();
        let policy = GcPolicy::default();
        // Just written: its record may be on its way.
        let (report, _) = collect(&storage, &policy, SystemTime::now()).await.unwrap();
        assert_eq!(report, GcReport::default());
        let (report, _) = collect(&storage, &policy, later()).await.unwrap();
        assert_eq!((report.discarded_blobs, report.destroyed_blobs, report.records), (1, 0, 0));
        assert_eq!(store.missing_blobs(&[digest]).await.unwrap(), [digest]);
        // Into the trash a moment ago, says its own time.
        let (report, _) = collect(&storage, &policy, SystemTime::now()).await.unwrap();
        assert_eq!(report.destroyed_blobs, 0);
        let (report, usage) = collect(&storage, &policy, later()).await.unwrap();
        assert_eq!((report.destroyed_blobs, report.destroyed_bytes), (1, 7));
        assert_eq!((usage[0].records, usage[0].blobs, usage[0].trash_bytes), (1, 2, 0));
        assert!(has(&store, &record).await);
    }
}

#[tokio::test]
async fn what_was_named_at_the_last_moment_comes_back() {
    for (storage, _root) in [directory(), objects()] {
        let store = tenant(&storage, "default");
        let record = store_sample(&*store, "late").await;
        // As if a pass had found it unnamed just before the record came.
        let toc = record.layers[0].toc;
        store.discard_blob(&toc).await.unwrap();
        assert!(!has(&store, &record).await, "a miss, and no wrong answer");
        let (report, _) = collect(&storage, &GcPolicy::default(), later()).await.unwrap();
        assert_eq!((report.restored_blobs, report.destroyed_blobs), (1, 0));
        assert!(has(&store, &record).await);
        // Written again meanwhile: the copy in the trash is not needed.
        store.discard_blob(&toc).await.unwrap();
        let [_, bytes] = sample("late").1;
        store.write_blob(&toc, BlobSource::Bytes(bytes)).await.unwrap();
        collect(&storage, &GcPolicy::default(), later()).await.unwrap();
        assert!(has(&store, &record).await);
        assert_eq!(store.list_trash().await.unwrap(), []);
    }
}

#[tokio::test]
async fn the_least_recently_used_goes_first() {
    let (storage, _root) = objects();
    let store = tenant(&storage, "default");
    let mut records = Vec::new();
    for name in ["one", "two", "three"] {
        records.push(store_sample(&*store, name).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    store.mark_used(&records[0].scope, &records[0].key()).await.unwrap();
    let all = usage(&storage).await.unwrap()[0].clone();
    let bytes = all.record_bytes + all.blob_bytes;
    let policy = GcPolicy { max_bytes: Some(bytes - 1), ..GcPolicy::default() };
    // All of it is too new to go.
    let (report, _) = collect(&storage, &policy, SystemTime::now()).await.unwrap();
    assert_eq!((report.records, report.excess_bytes), (0, 1));
    let (report, usage) = collect(&storage, &policy, later()).await.unwrap();
    assert_eq!((report.records, report.excess_bytes), (1, 0));
    assert!(usage[0].record_bytes + usage[0].blob_bytes < bytes);
    let mut left = Vec::new();
    for record in &records {
        left.push(has(&store, record).await);
    }
    assert_eq!(left, [true, false, true]);
    // Nothing at all is left by age.
    let policy = GcPolicy { max_age: Some(Duration::from_hours(1)), ..GcPolicy::default() };
    let (report, usage) = collect(&storage, &policy, later()).await.unwrap();
    assert_eq!((report.records, usage[0].records, usage[0].blobs), (2, 0, 0));
}

#[tokio::test]
async fn a_quota_is_a_tenants_own_and_images_stay() {
    let (storage, _root) = directory();
    let (rich, poor) = (tenant(&storage, "rich"), tenant(&storage, "poor"));
    let kept = store_sample(&*rich, "a").await;
    let gone = store_sample(&*poor, "a").await;
    // What a repository has, as the registry writes it down.
    let image = Digest::of("image");
    poor.write_blob(&image, BlobSource::Bytes("image".into())).await.unwrap();
    let name = format!("oci/team!app/blob/{image}").parse().unwrap();
    poor.write_document(&name, "".into(), Expected::Absent).await.unwrap().unwrap();
    let policy = GcPolicy { tenants: [("poor".parse().unwrap(), 1)].into(), ..GcPolicy::default() };
    let (report, usage) = collect(&storage, &policy, later()).await.unwrap();
    assert_eq!((report.records, report.excess_bytes), (1, 4));
    assert!(has(&rich, &kept).await);
    assert!(!has(&poor, &gone).await);
    assert_eq!(poor.missing_blobs(&[image]).await.unwrap(), []);
    assert_eq!(usage[0].image_bytes, 5, "{usage:?}");
}

#[tokio::test]
async fn what_a_mirror_has_goes_when_nobody_asks_for_it() {
    let (storage, _root) = directory();
    let store = tenant(&storage, "default");
    for repository in ["docker.io!library!busybox", "team!app"] {
        let blob = Digest::of(repository);
        store.write_blob(&blob, BlobSource::Bytes(repository.into())).await.unwrap();
        let name = format!("oci/{repository}/blob/{blob}").parse().unwrap();
        store.write_document(&name, "".into(), Expected::Absent).await.unwrap().unwrap();
    }
    let policy = GcPolicy { mirrors: vec!["docker.io".to_owned()], ..GcPolicy::default() };
    let mut blobs = Vec::new();
    for days in [1, 31, 32] {
        let now = SystemTime::now() + Duration::from_hours(24 * days);
        blobs.push(collect(&storage, &policy, now).await.unwrap().1[0].blobs);
    }
    // Its documents go in one pass, and what they named in the next.
    assert_eq!(blobs, [2, 2, 1]);
}

#[tokio::test]
async fn damage_is_found_and_put_aside() {
    let (storage, root) = directory();
    let store = tenant(&storage, "default");
    let record = store_sample(&*store, "a").await;
    assert_eq!(verify(&storage).await.unwrap(), (3, Vec::new()));
    let layer = record.layers[0].digest;
    let file = crate::store::tests::contract::hex_file(&root.path().join("storage/tenants"), &layer.hex());
    fs_err::write(&file, "something else").unwrap();
    let (checked, damage) = verify(&storage).await.unwrap();
    assert_eq!((checked, damage.len()), (3, 1));
    assert!(damage[0].what.contains(&layer.to_string()), "{damage:?}");
    assert_eq!(store.missing_blobs(&[layer]).await.unwrap(), [layer]);
    assert_eq!(verify(&storage).await.unwrap(), (2, Vec::new()));
}

/// Builds go on while everything that may go is removed again and again.
#[tokio::test]
async fn nothing_is_wrong_while_it_is_removed() {
    let spool = tempfile::tempdir().unwrap();
    let kind = StorageKind::Directory(spool.path().join("storage"));
    let gc = GcPolicy {
        max_bytes: Some(1),
        grace: Duration::ZERO,
        trash: Duration::ZERO,
        interval: Duration::from_millis(1),
        ..GcPolicy::default()
    };
    let server = Running::with(kind, spool, Settings { gc, ..Settings::new(SystemTime::now) }).await;
    let token = server.token("default", ALL, ALL).await;
    let writers = (0..4).map(|writer| {
        let store = server.store(&token);
        async move {
            let mut found = 0;
            for round in 0..40 {
                let (record, blobs) = sample(&format!("{writer} {round}"));
                for blob in blobs {
                    store.write_blob(&Digest::of(&blob), BlobSource::Bytes(blob)).await.unwrap();
                }
                // Refused if a blob has gone already, which a client takes for a miss.
                if store.write_record(&record).await.is_err() {
                    continue;
                }
                let read =
                    store.read_record(&record.key(), std::slice::from_ref(&record.scope)).await.unwrap();
                if let Some(read) = read {
                    assert_eq!(read, record);
                    let layer = store.read_blob(&record.layers[0].digest, 1 << 20).await.unwrap();
                    assert!(layer.is_none_or(|bytes| record.layers[0].digest.matches(&bytes)));
                    found += 1;
                }
            }
            found
        }
    });
    let found: Vec<usize> = futures_util::future::join_all(writers).await;
    assert!(found.iter().sum::<usize>() > 0, "{found:?}");
}

/// Which scopes a blob is in follows from the records: documents of those that went go, and lost ones are made again.
#[tokio::test]
async fn what_is_seen_follows_from_the_records() {
    for (storage, spool) in [objects(), directory()] {
        let server = Running::serving(storage.clone(), Settings::new(SystemTime::now)).await;
        let writer = server.token_for("default", (&["main"], &["main"]), (&[], &[])).await;
        let (mut record, blobs) = sample("seen");
        record.scope = scope("main");
        for blob in blobs {
            server.store(&writer).write_blob(&Digest::of(&blob), BlobSource::Bytes(blob)).await.unwrap();
        }
        server.store(&writer).write_record(&record).await.unwrap();
        let backend = storage.tenant(&"default".parse().unwrap()).unwrap();
        let seen = async || {
            let names = backend.list_documents(&"seen".parse().unwrap(), None, 100).await.unwrap();
            let of = |kind: &str| names.iter().filter(|name| name.as_str().contains(kind)).count();
            (of("/scope/main"), of("/sender/tokens-"))
        };
        assert_eq!(seen().await, (2, 2));
        let policy = GcPolicy::default();
        collect(&storage, &policy, SystemTime::now()).await.unwrap();
        assert_eq!(seen().await, (2, 2), "all is new");
        let name = format!("seen/{}/scope/main", record.layers[0].digest);
        backend.drop_document(&name.parse().unwrap()).await.unwrap();
        collect(&storage, &policy, SystemTime::now() + Duration::from_hours(30)).await.unwrap();
        assert_eq!(seen().await, (2, 0), "restored; what was sent has been named, or never will be");
        let policy = GcPolicy { max_bytes: Some(0), ..policy };
        collect(&storage, &policy, SystemTime::now() + Duration::from_hours(30)).await.unwrap();
        assert_eq!(seen().await, (0, 0));
        drop(spool);
    }
}
