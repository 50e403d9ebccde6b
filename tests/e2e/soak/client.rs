//! A client of the native API that notes what it was told, and looks at what it gets.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossdock::digest::Digest;
use crossdock::layer::{LayerDescriptor, MediaType, Timestamp};
use crossdock::record::{Key, Preimage, Record, Scope};
use crossdock::store::{BlobSource, HttpStore, Store as _};

use super::{content, digest};
use crate::support::chance::Chance;

/// Seeds of contents: as many as fit on the disk several times over, so that some are written again and again.
const CONTENTS: u64 = 600;

/// One request; a server that was stopped does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What servers have acknowledged.
#[derive(Debug, Default)]
pub(super) struct Told {
    blobs: Mutex<BTreeMap<u64, Digest>>,
    records: Mutex<BTreeMap<u64, Record>>,
    reads: AtomicUsize,
    refused: AtomicUsize,
    is_over: AtomicBool,
}

impl Told {
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }

    pub(super) fn blobs(&self) -> Vec<Digest> {
        self.blobs.lock().unwrap().values().copied().collect()
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap().values().cloned().collect()
    }

    /// The number of a blob, or of a record, that was acknowledged.
    fn some(&self, chance: &mut Chance, is_record: bool) -> Option<u64> {
        let seeds: Vec<u64> = if is_record {
            self.records.lock().unwrap().keys().copied().collect()
        } else {
            self.blobs.lock().unwrap().keys().copied().collect()
        };
        (!seeds.is_empty()).then(|| *chance.of(&seeds))
    }

    pub(super) fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    pub(super) fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }
}

/// A client in a thread of its own.
pub(super) struct Client(JoinHandle<()>);

impl Client {
    pub(super) fn start(number: usize, addresses: Vec<String>, told: Arc<Told>, chance: Chance) -> Self {
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (stores, http) = (HashMap::new(), reqwest::Client::new());
            let mut client = Speaker { addresses, told, chance, stores, http };
            runtime.block_on(async move {
                while !client.told.is_over.load(Ordering::SeqCst) {
                    client.act().await;
                }
            });
        };
        Self(std::thread::Builder::new().name(format!("client-{number}")).spawn(run).unwrap())
    }

    pub(super) fn is_running(&self) -> bool {
        !self.0.is_finished()
    }

    pub(super) fn finish(self) {
        self.0.join().unwrap();
    }
}

struct Speaker {
    addresses: Vec<String>,
    told: Arc<Told>,
    chance: Chance,
    stores: HashMap<String, HttpStore>,
    /// Verifies nothing.
    http: reqwest::Client,
}

impl Speaker {
    /// One thing, with any of the servers, near or far.
    async fn act(&mut self) {
        let address = self.chance.of(&self.addresses).clone();
        let store = self.stores.entry(address.clone()).or_insert_with(|| store(&address)).clone();
        let mut seed = self.chance.below(CONTENTS);
        let told = Arc::clone(&self.told);
        let done = match self.chance.below(6) {
            0 => within(write(&told, &store, seed)).await,
            1 => within(write_record(&told, &store, seed)).await,
            what => {
                // Mostly something that is there.
                if self.chance.below(4) > 0 {
                    seed = told.some(&mut self.chance, what == 2).unwrap_or(seed);
                }
                let start = self.chance.below(50_000);
                match what {
                    2 => within(read_record(&told, &store, seed)).await,
                    3 => within(self.read_part(&address, seed, start)).await,
                    _ => within(self.read(&address, seed)).await,
                }
            }
        };
        if done.is_none() {
            told.refused.fetch_add(1, Ordering::SeqCst);
            // Whom a dead server refuses would otherwise do nothing else but ask.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What a client gets that verifies nothing: an answer that comes to its end is right.
    async fn read(&self, address: &str, seed: u64) -> Option<()> {
        let (expected, digest) = (content(seed), digest(seed));
        let response = self.http.get(format!("http://{address}/api/v1/blobs/{digest}")).send().await.ok()?;
        if response.status() == 404 {
            return Some(());
        }
        let bytes = response.error_for_status().ok()?.bytes().await.ok()?;
        assert!(bytes == expected, "wrong content was read from {address}: {digest}");
        self.told.reads.fetch_add(1, Ordering::SeqCst);
        Some(())
    }

    async fn read_part(&self, address: &str, seed: u64, start: u64) -> Option<()> {
        let (expected, digest) = (content(seed), digest(seed));
        let request = self.http.get(format!("http://{address}/api/v1/blobs/{digest}"));
        let response = request.header("range", format!("bytes={start}-")).send().await.ok()?;
        if response.status() != 206 {
            return Some(());
        }
        let bytes = response.bytes().await.ok()?;
        let start = usize::try_from(start).unwrap();
        assert!(bytes == expected[start..], "a wrong part was read from {address}: {digest} from {start}");
        self.told.reads.fetch_add(1, Ordering::SeqCst);
        Some(())
    }
}

fn store(address: &str) -> HttpStore {
    HttpStore::new(format!("http://{address}").parse().unwrap(), None).unwrap()
}

/// `None` if it failed, or took too long.
async fn within(work: impl Future<Output = Option<()>>) -> Option<()> {
    tokio::time::timeout(PATIENCE, work).await.ok().flatten()
}

async fn write(told: &Told, store: &HttpStore, seed: u64) -> Option<()> {
    let content = content(seed);
    let digest = Digest::of(&content);
    store.write_blob(&digest, BlobSource::Bytes(content.into())).await.ok()?;
    told.blobs.lock().unwrap().insert(seed, digest);
    Some(())
}

/// A record of two blobs.
fn record(seed: u64) -> Record {
    let (layer, toc) = (content(seed), digest(seed + 1));
    let mut preimage = Preimage::default();
    preimage.add("number", seed.to_string().as_str());
    Record {
        scope: Scope::default(),
        preimage,
        layers: vec![LayerDescriptor {
            diff_id: Digest::of("tar"),
            digest: Digest::of(&layer),
            size: layer.len() as u64,
            media_type: MediaType::Zstd,
            toc,
        }],
        tree: Digest::of(seed.to_string()),
        created: Timestamp::default(),
        duration_ms: 1,
        builder: "soak".to_owned(),
        log: None,
        readers: None,
        foreign: false,
        parts: Vec::new(),
    }
}

async fn write_record(told: &Told, store: &HttpStore, seed: u64) -> Option<()> {
    write(told, store, seed).await?;
    write(told, store, seed + 1).await?;
    let record = record(seed);
    let kept = store.write_record(&record).await.ok()?;
    assert_eq!(kept, record, "another record than was written");
    told.records.lock().unwrap().insert(seed, record);
    Some(())
}

async fn read_record(told: &Told, store: &HttpStore, seed: u64) -> Option<()> {
    let record = record(seed);
    if let Some(found) = store.read_record(&record.key(), &[Scope::default()]).await.ok()? {
        assert_eq!(found, record, "another record than was written");
        told.reads.fetch_add(1, Ordering::SeqCst);
    }
    Some(())
}

/// What is not there, or not right, although it was acknowledged.
pub(super) fn lost(address: &str, blobs: &[Digest], records: &[Record]) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = store(address);
        let mut lost = Vec::new();
        for digest in blobs {
            // The client of builds, which verifies.
            match store.read_blob(digest, 1 << 30).await {
                Ok(Some(_)) => {}
                other => lost.push(format!("blob {digest}: {other:?}")),
            }
        }
        for record in records {
            let key: Key = record.key();
            match store.read_record(&key, &[Scope::default()]).await {
                Ok(Some(found)) if found == *record => {}
                other => lost.push(format!("record {}: {other:?}", key.0)),
            }
        }
        lost
    })
}
