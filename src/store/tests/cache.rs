//! The cache: what it moves, and what it makes of a remote store's failures.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::faulty::{Faults, FaultyStore};
use super::{directory, sample, scopes, store_sample};
use crate::digest::Digest;
use crate::event::{Event, EventSink, NoEvents};
use crate::record::{Bundle, BundleName, BundleStep, Record};
use crate::store::{BlobSource, Cache, CacheOptions, MemoryStore, Origin, Store};

#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl EventSink for Warnings {
    fn emit(&self, event: Event) {
        if let Event::Warning { message } = event {
            self.0.lock().unwrap().push(message);
        }
    }
}

const GRACE: Duration = Duration::from_secs(20);

fn cache(remote: Option<Arc<dyn Store>>) -> (tempfile::TempDir, Cache) {
    let (root, local) = directory();
    (root, Cache::new(local, remote, CacheOptions::default(), Arc::new(NoEvents)))
}

#[tokio::test]
async fn what_one_runner_publishes_another_finds_and_fetches_only_what_it_needs() {
    let remote = Arc::new(MemoryStore::new());
    let (_first_root, first) = cache(Some(remote.clone()));
    let (record, blobs) = sample("make");
    for blob in &blobs {
        first.local().write_blob(&Digest::of(blob), BlobSource::Bytes(blob.clone())).await.unwrap();
    }
    assert_eq!(first.publish(record.clone(), false).await.unwrap(), record);
    let total: u64 = blobs.iter().map(|blob| blob.len() as u64).sum();
    let report = first.flush(GRACE).await;
    assert_eq!((report.uploaded_bytes, report.failed, report.pending), (total, 0, 0));

    let (_second_root, second) = cache(Some(remote.clone()));
    let hit = second.lookup(&record.key()).await.unwrap();
    assert_eq!((hit.record, hit.from), (record.clone(), Origin::Remote("memory".to_owned())));
    assert_eq!(second.stats().downloaded, blobs[1].len() as u64, "the TOC, not the layer");
    assert!(second.local().read_record(&record.key(), &scopes()).await.unwrap().is_none());
    assert_eq!(second.lookup(&record.key()).await.unwrap().from, Origin::Local);

    let layer = record.layers[0];
    let path = second.blob_file(&layer.digest, layer.size).await.unwrap();
    assert_eq!(fs_err::read(path).unwrap(), blobs[0]);
    assert_eq!(second.stats().downloaded, total);
    assert!(second.local().read_record(&record.key(), &scopes()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_layer_that_no_store_has_any_more_is_a_miss() {
    let remote = Arc::new(MemoryStore::new());
    let record = store_sample(&*remote, "make").await;
    let (_root, cache) = cache(Some(remote.clone()));
    assert!(cache.lookup(&record.key()).await.is_some());
    assert!(remote.evict_blob(&record.layers[0].digest));
    assert!(cache.lookup(&record.key()).await.is_none());
}

/// A result is recorded under several keys, and only one of them is known to whoever finds its layer gone.
#[tokio::test]
async fn what_names_a_lost_blob_is_a_miss_under_every_key_and_gives_way() {
    let remote = Arc::new(MemoryStore::new());
    let record = store_sample(&*remote, "make").await;
    let alias = Record { preimage: sample("alias").0.preimage, ..record.clone() };
    remote.write_record(&alias).await.unwrap();
    let other = store_sample(&*remote, "other").await;
    let (_root, cache) = cache(Some(remote.clone()));
    for sound in [&record, &alias, &other] {
        assert_eq!(cache.lookup(&sound.key()).await.unwrap().record, *sound);
    }
    cache.lose(&record.layers[0].digest, &[]);
    assert!(cache.lookup(&record.key()).await.is_none());
    assert!(cache.lookup(&alias.key()).await.is_none());
    assert_eq!(cache.lookup(&other.key()).await.unwrap().record, other);
    let again = Record { preimage: record.preimage.clone(), ..other.clone() };
    assert_eq!(cache.publish(again.clone(), false).await.unwrap(), again);
    assert_eq!(cache.lookup(&again.key()).await.unwrap().record, again);
    // The same bytes, made once more: every record that names them is as good as before.
    let (made, blobs) = sample("make");
    assert_eq!(made, record);
    for blob in blobs {
        cache.local().write_blob(&Digest::of(&blob), BlobSource::Bytes(blob)).await.unwrap();
    }
    cache.publish(record.clone(), true).await.unwrap();
    assert_eq!(cache.lookup(&alias.key()).await.unwrap().record, alias);
    // Wrong without anything being gone.
    cache.lose(&Digest::of("elsewhere"), &[other.key()]);
    assert!(cache.is_lost(&other.key()) && cache.lookup(&other.key()).await.is_none());
}

#[tokio::test]
async fn a_damaged_local_blob_is_fetched_again() {
    let remote = Arc::new(MemoryStore::new());
    let record = store_sample(&*remote, "make").await;
    let (root, local) = directory();
    store_sample(&local, "make").await;
    let layer = record.layers[0];
    let path = local.blob_path(&layer.digest);
    let mut bytes = fs_err::read(&path).unwrap();
    bytes[0] ^= 1;
    fs_err::write(&path, bytes).unwrap();
    let cache = Cache::new(local, Some(remote), CacheOptions::default(), Arc::new(NoEvents));
    let file = cache.blob_file(&layer.digest, layer.size).await.unwrap();
    assert!(layer.digest.matches(&fs_err::read(file).unwrap()));
    assert!(root.path().join("v1/quarantine").join(layer.digest.hex()).exists());
}

#[tokio::test]
async fn read_only_uploads_nothing_and_replace_replaces() {
    let remote = Arc::new(MemoryStore::new());
    let (_root, local) = directory();
    let mut record = store_sample(&local, "make").await;
    let options = CacheOptions { read_only: true, ..CacheOptions::default() };
    let cache = Cache::new(local, Some(remote.clone()), options, Arc::new(NoEvents));
    let first = record.clone();
    record.duration_ms = 77;
    assert_eq!(cache.publish(record.clone(), false).await.unwrap(), first);
    assert_eq!(cache.publish(record.clone(), true).await.unwrap(), record);
    assert_eq!(cache.lookup(&record.key()).await.unwrap().record, record);
    assert_eq!(cache.flush(GRACE).await, crate::store::FlushReport::default());
    assert_eq!(remote.blob_count(), 0);
}

#[tokio::test]
async fn a_bundle_saves_the_questions_for_its_records() {
    let memory = Arc::new(MemoryStore::new());
    let mut steps = Vec::new();
    for slot in ["a", "b", "c"] {
        steps.push(BundleStep { slot: slot.to_owned(), record: store_sample(&*memory, slot).await });
    }
    let name = BundleName(Digest::of("build"));
    let bundle = Bundle { steps };
    memory.write_bundle(&name, &scopes()[0], &bundle).await.unwrap();
    memory.evict_blob(&bundle.steps[2].record.layers[0].digest);
    let remote = Arc::new(FaultyStore::new(memory, 1, Faults::default()));
    let (_root, cache) = cache(Some(remote.clone()));
    assert_eq!(cache.bundle(&name).await, Some(bundle.clone()));
    assert_eq!(remote.calls.load(Ordering::Relaxed), 2);
    for step in bundle.steps[..2].iter().chain(&bundle.steps[..2]) {
        assert!(cache.lookup(&step.record.key()).await.is_some());
    }
    assert_eq!(remote.calls.load(Ordering::Relaxed), 4, "the two TOCs");
    assert!(cache.lookup(&bundle.steps[2].record.key()).await.is_none());
}

#[tokio::test]
async fn faults_are_misses_and_never_wrong_results() {
    for seed in 0..60 {
        let memory = Arc::new(MemoryStore::new());
        let names = ["a", "b", "c", "d", "e", "f"];
        for name in names {
            store_sample(&*memory, name).await;
        }
        let faults = Faults {
            errors: seed % 30,
            truncations: seed * 7 % 40,
            bit_flips: seed * 11 % 40,
            foreign_records: seed * 13 % 20,
            latency: Duration::ZERO,
        };
        let warnings = Arc::new(Warnings::default());
        let (_root, local) = directory();
        let remote = Arc::new(FaultyStore::new(memory, seed, faults));
        let cache = Cache::new(local, Some(remote), CacheOptions::default(), warnings.clone());
        for name in names {
            let (record, [layer, _]) = sample(name);
            if let Some(hit) = cache.lookup(&record.key()).await {
                assert_eq!(hit.record, record);
            }
            let wanted = record.layers[0];
            if let Some(path) = cache.blob_file(&wanted.digest, wanted.size).await {
                assert_eq!(fs_err::read(path).unwrap(), layer);
            }
        }
        assert!(warnings.0.lock().unwrap().len() <= 2);
        let report = crate::store::maintain::verify(cache.local(), false).unwrap();
        assert_eq!(report.damaged, Vec::<std::path::PathBuf>::new(), "seed {seed}");
    }
}

#[tokio::test]
async fn a_dead_remote_store_costs_its_budget_once() {
    let faults = Faults { latency: Duration::from_hours(1), ..Faults::default() };
    let remote = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new()), 1, faults));
    let (_root, local) = directory();
    let warnings = Arc::new(Warnings::default());
    let budget = Duration::from_millis(200);
    let options = CacheOptions { remote_budget: budget, ..CacheOptions::default() };
    let cache = Cache::new(local, Some(remote.clone()), options, warnings.clone());
    let start = Instant::now();
    for number in 0..50 {
        assert!(cache.lookup(&sample(&number.to_string()).0.key()).await.is_none());
    }
    assert!(start.elapsed() >= budget && start.elapsed() < budget + Duration::from_secs(2));
    assert_eq!(remote.calls.load(Ordering::Relaxed), 1);
    assert_eq!(*warnings.0.lock().unwrap(), ["going on without faulty: it does not answer in time"]);
}

#[tokio::test]
async fn failing_uploads_are_counted_and_do_not_fail_the_build() {
    let faults = Faults { errors: 100, ..Faults::default() };
    let remote = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new()), 1, faults));
    let (_root, cache) = cache(Some(remote));
    for name in ["a", "b"] {
        let record = store_sample(cache.local(), name).await;
        assert_eq!(cache.publish(record.clone(), false).await.unwrap(), record);
    }
    let report = cache.flush(GRACE).await;
    assert_eq!((report.failed, report.pending, report.uploaded_bytes), (2, 0, 0));
}

#[tokio::test]
async fn flush_does_not_wait_longer_than_its_grace() {
    let faults = Faults { latency: Duration::from_hours(1), ..Faults::default() };
    let remote = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new()), 1, faults));
    let (_root, cache) = cache(Some(remote));
    let record = store_sample(cache.local(), "a").await;
    cache.publish(record, false).await.unwrap();
    let report = cache.flush(Duration::from_millis(50)).await;
    assert_eq!(report.pending, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_need_the_same_layer_fetch_it_once() {
    let memory = Arc::new(MemoryStore::new());
    let record = store_sample(&*memory, "make").await;
    let faults = Faults { latency: Duration::from_millis(20), ..Faults::default() };
    let remote = Arc::new(FaultyStore::new(memory, 1, faults));
    let (_root, cache) = cache(Some(remote.clone()));
    let layer = record.layers[0];
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.blob_file(&layer.digest, layer.size).await.is_some() })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap());
    }
    assert_eq!(remote.calls.load(Ordering::Relaxed), 1);
    let other = cache.clone();
    let lookup = tokio::spawn(async move { other.lookup(&record.key()).await });
    assert!(lookup.await.unwrap().is_some());
}
