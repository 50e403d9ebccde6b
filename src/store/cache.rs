//! What a build uses: the local store in front of an optional remote one.
//!
//! The remote store may be slow, dead or wrong at any moment. All of that is a miss and at most two warnings,
//! and what a build waits for it in vain is bounded: see [`CacheOptions::remote_budget`].

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{Notify, Semaphore};

use super::directory::Completeness;
use super::lease::{Lease, Turn};
use super::remote::Remote;
use super::reuse;
use super::{BlobSource, DirectoryStore, Store, StoreError};
use crate::digest::Digest;
use crate::event::Events;
use crate::record::{Bundle, BundleName, BundleStep, Key, Record, Scope};

/// TOCs up to this size are taken from a remote store. A layer of a million files has one of about 100 MB.
const TOC_BYTES_MAX: u64 = 512 << 20;

/// Records that wait for their upload. More than any build has steps; what is beyond it is not uploaded.
const PENDING_MAX: u64 = 4096;

/// Uploads at a time: enough to fill a connection, few enough to leave the machine to the build.
const UPLOADS: usize = 4;

/// How a [`Cache`] behaves.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// Where records are looked for, in this order.
    pub scopes: Vec<Scope>,
    /// Where records are written.
    pub write_scope: Scope,
    /// Write nothing to the remote store.
    pub read_only: bool,
    /// What others are told who wait for a step that this build is executing.
    pub label: String,
    /// How long all of one build may wait for the remote store in vain: for answers that never come, for errors,
    /// and for what ordinary answers take beyond 100 ms each. When it is used up, the store is not asked again.
    pub remote_budget: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            scopes: vec![Scope::default()],
            write_scope: Scope::default(),
            read_only: false,
            label: "another build".to_owned(),
            // Two seconds are promised, of which a build needs some to notice.
            remote_budget: Duration::from_millis(1900),
        }
    }
}

/// Where a record was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the local store.
    Local,
    /// In the remote store of this location.
    Remote(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local cache"),
            Self::Remote(location) => f.write_str(location),
        }
    }
}

/// A record that was found. Its TOCs are in the local store; its layers are there or in the remote one.
#[derive(Debug, Clone)]
pub struct Hit {
    /// The record.
    pub record: Record,
    /// Where it was.
    pub from: Origin,
}

/// Bytes exchanged with the remote store so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes of blobs received.
    pub downloaded: u64,
    /// Bytes of blobs sent.
    pub uploaded: u64,
}

/// How the uploads went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlushReport {
    /// Bytes of blobs sent in all.
    pub uploaded_bytes: u64,
    /// Records and bundles that could not be uploaded.
    pub failed: u64,
    /// Records and bundles that were still waiting when the time was over.
    pub pending: u64,
}

/// The stores that a build uses. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) local: DirectoryStore,
    pub(super) remote: Option<Remote>,
    pub(super) options: CacheOptions,
    /// What this build calls itself where it takes leases.
    pub(super) holder: String,
    /// Records that came with a bundle, and that the remote store had whole at that time.
    bundled: Mutex<HashMap<Key, Record>>,
    /// What turned out not to be there, although records say so.
    lost: Mutex<Lost>,
    /// Blobs that the remote store was seen to have during this build.
    at_remote: Mutex<HashSet<Digest>>,
    /// Keep tasks from fetching, or sending, the same blob at once. An entry lives as long as somebody does so.
    fetching: Gates,
    sending: Gates,
    /// Blobs that this build has sent.
    sent: Mutex<HashSet<Digest>>,
    /// Blobs of the local store whose content was found to be right.
    verified: Mutex<HashSet<Digest>>,
    /// The latest head of each name that this build has made.
    heads: Mutex<HashMap<BundleName, Key>>,
    uploads: Semaphore,
    pending: AtomicU64,
    failed: AtomicU64,
    done: Notify,
    downloaded: AtomicU64,
    uploaded: AtomicU64,
    looks_ahead: AtomicU64,
}

/// Blobs that are gone or wrong, and the records that were found to promise them.
#[derive(Debug, Default)]
struct Lost {
    keys: HashSet<Key>,
    blobs: HashSet<Digest>,
}

impl Lost {
    /// Whether a record promises what is not there. One result is often recorded under several keys.
    fn concerns(&self, record: &Record) -> bool {
        self.keys.contains(&record.key()) || record.blobs().any(|digest| self.blobs.contains(&digest))
    }

    /// What was made again is there again.
    fn made_again(&mut self, record: &Record) {
        self.keys.remove(&record.key());
        for digest in record.blobs() {
            self.blobs.remove(&digest);
        }
    }
}

/// Blobs that are fetched at a time before somebody asks for them.
const EXPECTED_AT_ONCE: usize = 16;

/// Blobs of one record that are sent at a time: a layer, what is in it, and what its step read and printed.
const UPLOADED_AT_ONCE: usize = 4;

/// Each costs a round trip, and may be in vain.
const LOOKS_AHEAD_MAX: u64 = 3;

/// What is known of how a record was made.
#[derive(Debug, Default)]
pub struct Making {
    /// Under which lease; it is given back when the record is uploaded.
    pub lease: Lease,
    /// What the same step had made the last time: of its layers only what is new is uploaded.
    pub predecessor: Option<Record>,
}

/// How a record is looked for that no bundle had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// At the remote store; a step's result, from which others go on.
    Step,
    /// At the remote store.
    Aside,
    /// Nowhere else.
    Nobody,
}

/// What is sent to the remote store in the background.
enum Upload {
    Record(Box<Record>, Making),
    Bundle(BundleName, Scope, Bundle),
    /// A record, and then the bundle in which it is the only one.
    Head(BundleName, Box<Record>),
}

/// One upload; counts down when it ends, however it ends.
struct Pending(Arc<Inner>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::SeqCst);
        self.0.done.notify_waiters();
    }
}

impl Cache {
    /// Puts `local` in front of `remote`.
    pub fn new(
        local: DirectoryStore,
        remote: Option<Arc<dyn Store>>,
        options: CacheOptions,
        events: Events,
    ) -> Self {
        local.announce();
        let remote = remote.map(|store| Remote::new(store, options.remote_budget, events));
        Self(Arc::new(Inner {
            local,
            remote,
            holder: format!("{} {}", random_name(), options.label),
            options,
            bundled: Mutex::default(),
            lost: Mutex::default(),
            at_remote: Mutex::default(),
            fetching: Gates::default(),
            sending: Gates::default(),
            sent: Mutex::default(),
            verified: Mutex::default(),
            heads: Mutex::default(),
            uploads: Semaphore::new(UPLOADS),
            pending: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            done: Notify::new(),
            downloaded: AtomicU64::new(0),
            uploaded: AtomicU64::new(0),
            looks_ahead: AtomicU64::new(0),
        }))
    }

    /// The local store.
    pub fn local(&self) -> &DirectoryStore {
        &self.0.local
    }

    /// The scope that records must have to be published here.
    pub fn write_scope(&self) -> &Scope {
        &self.0.options.write_scope
    }

    /// The record for `key`. Whatever goes wrong is a miss.
    pub async fn lookup(&self, key: &Key) -> Option<Hit> {
        self.find(key, Asking::Step).await
    }

    /// The same for a record that no step goes on from.
    pub async fn lookup_aside(&self, key: &Key) -> Option<Hit> {
        self.find(key, Asking::Aside).await
    }

    /// The same if that takes no question to the remote store: where the record is here, or came with a bundle.
    pub async fn lookup_here(&self, key: &Key) -> Option<Hit> {
        self.find(key, Asking::Nobody).await
    }

    /// Says that a blob is gone or wrong, and which records are known to have promised it. From now on these and all others
    /// that name it are misses, and what is published takes their place.
    pub fn lose(&self, digest: &Digest, keys: &[Key]) {
        let mut lost = self.lost();
        lost.blobs.insert(*digest);
        lost.keys.extend(keys);
        self.0.at_remote.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }

    /// Whether the record of `key` is known to have promised too much.
    pub fn is_lost(&self, key: &Key) -> bool {
        self.lost().keys.contains(key)
    }

    fn lost(&self) -> MutexGuard<'_, Lost> {
        self.0.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn find(&self, key: &Key, asking: Asking) -> Option<Hit> {
        let inner = &self.0;
        if self.is_lost(key) {
            return None;
        }
        let scopes = &inner.options.scopes;
        let local = inner.local.find_record(key, scopes, Completeness::Tocs).ok().flatten();
        if let Some(record) = local.filter(|record| !self.lost().concerns(record)) {
            let absent: Vec<_> = inner.local.absent_blobs(&record);
            if absent.is_empty() || self.remote_has(&absent).await {
                return Some(Hit { record, from: Origin::Local });
            }
        }
        let remote = inner.remote.as_ref()?;
        let bundled = inner.bundled.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        let record = match bundled {
            Some(record) => record,
            None if asking == Asking::Nobody => return None,
            None => {
                let record = remote.ask(remote.store().read_record(key, scopes)).await??;
                if asking == Asking::Step && !record.foreign {
                    self.look_ahead(remote, key).await;
                }
                record
            }
        };
        if record.key() != *key || !scopes.contains(&record.scope) {
            remote.distrust("it answered with a record of another key or scope");
            return None;
        }
        if self.lost().concerns(&record) {
            return None;
        }
        // A server has the blobs of the records that it answers with; each is one round trip, and often none is needed.
        if !remote.store().vouches_for_records() {
            for layer in &record.layers {
                self.read_blob(&layer.toc, TOC_BYTES_MAX).await?;
            }
        }
        // Keeping it saves the next build a round trip; a full disk is no reason to miss.
        let _ = inner.local.put_record(&record, Completeness::Tocs);
        Some(Hit { record, from: Origin::Remote(remote.store().location()) })
    }

    /// What no bundle had, another build has made; what it went on with is likely to be asked for next.
    async fn look_ahead(&self, remote: &Remote, key: &Key) {
        let inner = &self.0;
        if inner.looks_ahead.fetch_add(1, Ordering::Relaxed) >= LOOKS_AHEAD_MAX {
            return;
        }
        let name = BundleName::following(key);
        let bundle = remote.ask(remote.store().read_bundle(&name, &inner.options.scopes)).await;
        if let Some(Some(bundle)) = bundle {
            self.keep_bundled(remote, &bundle).await;
        }
    }

    /// Reads a blob into memory, from the remote store if need be; it is then in the local one too. `None` if no
    /// store has it, or it is larger than `limit` bytes.
    pub async fn read_blob(&self, digest: &Digest, limit: u64) -> Option<Bytes> {
        let inner = &self.0;
        if let Ok(Some(bytes)) = inner.local.read_blob(digest, limit).await {
            return Some(bytes);
        }
        if inner.local.open_blob(digest).is_some_and(|(_, size)| size > limit) {
            return None;
        }
        let remote = inner.remote.as_ref()?;
        let gate = inner.fetching.of(digest);
        let _alone = gate.lock().await;
        // Somebody else may have just fetched it.
        if let Ok(Some(bytes)) = inner.local.read_blob(digest, limit).await {
            return Some(bytes);
        }
        let bytes = remote.ask(remote.store().read_blob(digest, limit)).await??;
        inner.downloaded.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if bytes.len() as u64 > limit || !digest.matches(&bytes) {
            remote.distrust("it answered with damaged content");
            return None;
        }
        let _ = inner.local.write_blob(digest, BlobSource::Bytes(bytes.clone())).await;
        Some(bytes)
    }

    /// Begins to fetch blobs, each of at most so many bytes, that are likely to be read soon.
    pub fn expect_blobs(&self, blobs: Vec<(Digest, u64)>) {
        if self.0.remote.is_none() || blobs.is_empty() {
            return;
        }
        let cache = self.clone();
        tokio::spawn(async move {
            let fetch = |(digest, limit): (Digest, u64)| {
                let cache = cache.clone();
                async move { drop(cache.read_blob(&digest, limit).await) }
            };
            futures_util::stream::iter(blobs)
                .map(fetch)
                .buffer_unordered(EXPECTED_AT_ONCE)
                .collect::<()>()
                .await;
        });
    }

    /// The local file with a blob of `size` bytes, fetched from the remote store if need be. `None` if no store
    /// has it. Its content is verified once in the life of this value.
    pub async fn blob_file(&self, digest: &Digest, size: u64) -> Option<PathBuf> {
        let inner = &self.0;
        let path = inner.local.blob_path(digest);
        if self.is_verified(digest, size).await {
            return Some(path);
        }
        let remote = inner.remote.as_ref()?;
        let gate = inner.fetching.of(digest);
        let _alone = gate.lock().await;
        if inner.local.is_stored(digest, size) {
            return Some(path);
        }
        let directory = inner.local.tmp_dir().ok()?;
        let copy = directory.path().join("blob");
        if !remote.transfer(size, remote.store().fetch_blob(digest, size, &copy)).await? {
            inner.at_remote.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
            return None;
        }
        inner.downloaded.fetch_add(size, Ordering::Relaxed);
        match inner.local.write_blob(digest, BlobSource::File(copy)).await {
            Ok(_) if self.is_verified(digest, size).await => Some(path),
            Ok(_) | Err(StoreError::Mismatch { .. }) => {
                remote.distrust("it answered with damaged content");
                None
            }
            Err(_) => None,
        }
    }

    /// What `parse` makes of a part of a blob, all of `range`, from the remote store; `None` if that does not have it. It is not
    /// kept. As a part has no digest, only the caller can know whether it is what was asked for: `parse` says `None` if not.
    pub async fn read_part<T>(
        &self,
        digest: &Digest,
        range: Range<u64>,
        parse: impl FnOnce(&Bytes) -> Option<T>,
    ) -> Option<T> {
        let inner = &self.0;
        let remote = inner.remote.as_ref()?;
        let length = range.end.saturating_sub(range.start);
        let Some(bytes) = remote.transfer(length, remote.store().read_range(digest, range)).await? else {
            inner.at_remote.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
            return None;
        };
        inner.downloaded.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if bytes.len() as u64 == length
            && let Some(parsed) = parse(&bytes)
        {
            return Some(parsed);
        }
        remote.distrust("it answered with damaged content");
        inner.at_remote.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
        None
    }

    /// The location of the remote store, if there is one.
    pub fn remote(&self) -> Option<String> {
        self.0.remote.as_ref().map(|remote| remote.store().location())
    }

    /// Asks whether it is this build's turn to execute what `key` names, or somebody else is doing it on another machine.
    pub async fn turn(&self, key: &Key) -> Turn {
        Lease::ask(&self.0, *key).await
    }

    /// Stores a record whose blobs are in the local store (or known to the remote one), and returns the one that
    /// counts from now on: whoever was first wins, unless `replace` says that this one is to, or the first one's blobs
    /// are lost. The upload goes on in the background; a remote store keeps the record that it has, even with `replace`.
    ///
    /// # Errors
    /// Only what is wrong with the local store.
    pub async fn publish(&self, record: Record, replace: bool) -> Result<Record, StoreError> {
        self.publish_made(record, replace, Making::default()).await
    }

    /// The same with what is known of how it was made.
    ///
    /// # Errors
    /// As [`Cache::publish`].
    pub async fn publish_made(
        &self,
        record: Record,
        replace: bool,
        making: Making,
    ) -> Result<Record, StoreError> {
        let inner = &self.0;
        let absent = inner.local.absent_blobs(&record);
        let completeness = if !absent.is_empty() && self.remote_has(&absent).await {
            Completeness::Tocs
        } else {
            Completeness::Whole
        };
        let scope = std::slice::from_ref(&record.scope);
        let is_lost = || {
            if self.lost().blobs.is_empty() {
                return false;
            }
            let first = inner.local.find_record(&record.key(), scope, Completeness::Tocs).ok().flatten();
            first.is_some_and(|first| self.lost().concerns(&first))
        };
        let winner = if replace || is_lost() {
            inner.local.replace_record(&record, completeness)?;
            record
        } else {
            inner.local.put_record(&record, completeness)?
        };
        if absent.is_empty() {
            self.lost().made_again(&winner);
        }
        self.in_background(Upload::Record(Box::new(winner.clone()), making));
        Ok(winner)
    }

    /// The bundle `name`: the remote store's, which all runners write, or else the local one.
    pub async fn bundle(&self, name: &BundleName) -> Option<Bundle> {
        let inner = &self.0;
        let scopes = &inner.options.scopes;
        if let Some(remote) = &inner.remote
            && let Some(Some(bundle)) = remote.ask(remote.store().read_bundle(name, scopes)).await
        {
            self.keep_bundled(remote, &bundle).await;
            return Some(bundle);
        }
        inner.local.read_bundle(name, scopes).await.ok().flatten()
    }

    /// Stores a bundle, here at once and in the remote store in the background.
    ///
    /// # Errors
    /// Only what is wrong with the local store.
    pub async fn publish_bundle(&self, name: &BundleName, bundle: Bundle) -> Result<(), StoreError> {
        let (name, scope) = (*name, self.0.options.write_scope.clone());
        self.0.local.write_bundle(&name, &scope, &bundle).await?;
        self.in_background(Upload::Bundle(name, scope, bundle));
        Ok(())
    }

    /// The scopes that are read, the most trusted first.
    pub fn scopes(&self) -> &[Scope] {
        &self.0.options.scopes
    }

    /// The bundles `name` of each of these scopes, with where they are: the remote store's, then those that are here.
    pub async fn bundles(&self, name: &BundleName, scopes: &[Scope]) -> Vec<(Origin, Bundle)> {
        let inner = &self.0;
        let mut bundles = Vec::new();
        if let Some(remote) = &inner.remote {
            for scope in scopes {
                let there = self.remote_bundle(name, scope).await.flatten();
                bundles.extend(there.map(|bundle| (Origin::Remote(remote.store().location()), bundle)));
            }
        }
        for scope in scopes {
            let here = inner.local.read_bundle(name, std::slice::from_ref(scope)).await;
            bundles.extend(here.ok().flatten().map(|bundle| (Origin::Local, bundle)));
        }
        bundles
    }

    /// The bundle `name` that the remote store has in a scope, if it has one; `None` if there is no answer.
    pub async fn remote_bundle(&self, name: &BundleName, scope: &Scope) -> Option<Option<Bundle>> {
        let remote = self.0.remote.as_ref()?;
        let mut bundle = remote.ask(remote.store().read_bundle(name, std::slice::from_ref(scope))).await?;
        if let Some(bundle) = &mut bundle {
            bundle.steps.retain(|step| step.record.scope == *scope);
        }
        Some(bundle)
    }

    /// Stores a bundle in the remote store, if anything may be written there. That it fails is told by the store itself.
    pub async fn send_bundle(&self, name: &BundleName, bundle: &Bundle) {
        let inner = &self.0;
        if let Some(remote) = inner.remote.as_ref().filter(|_| !inner.options.read_only) {
            let scope = &inner.options.write_scope;
            let _ = remote.send(remote.store().write_bundle(name, scope, bundle)).await;
        }
    }

    /// The record that is the head of `name`: of the most trusted scope that has one, and of the local store's and the remote
    /// one's the later. `None` also if what it names is gone.
    pub async fn head(&self, name: &BundleName, asks_remote: bool) -> Option<Record> {
        let inner = &self.0;
        let scopes = &inner.options.scopes;
        let first = |bundle: Bundle| {
            let records = bundle.steps.into_iter().map(|step| step.record);
            records.into_iter().find(|record| scopes.contains(&record.scope) && !self.lost().concerns(record))
        };
        let here = inner.local.read_bundle(name, scopes).await.ok().flatten().and_then(first);
        let remote = inner.remote.as_ref().filter(|_| asks_remote);
        let there = match remote {
            Some(remote) => {
                let bundle = remote.ask(remote.store().read_bundle(name, scopes)).await.flatten();
                if let Some(bundle) = &bundle {
                    self.keep_bundled(remote, bundle).await;
                }
                let bundled = |record: &Record| {
                    let bundled = inner.bundled.lock().unwrap_or_else(PoisonError::into_inner);
                    bundled.get(&record.key()) == Some(record)
                };
                bundle.and_then(first).filter(bundled)
            }
            None => None,
        };
        let rank = |record: &Record| {
            let trust = scopes.iter().position(|scope| *scope == record.scope).unwrap_or(usize::MAX);
            (std::cmp::Reverse(trust), record.created)
        };
        match (here, there) {
            (Some(here), Some(there)) if rank(&here) < rank(&there) => Some(there),
            (Some(here), there) => {
                let absent = inner.local.absent_blobs(&here);
                if absent.is_empty() || remote.is_some() && self.remote_has(&absent).await {
                    Some(here)
                } else {
                    there
                }
            }
            (None, there) => there,
        }
    }

    /// Makes a record the head of `name`, here at once and, if `sends` says so, in the remote store in the background: there
    /// it is seen when all that it names is there, and not before.
    ///
    /// # Errors
    /// Only what is wrong with the local store.
    pub async fn publish_head(
        &self,
        name: &BundleName,
        record: Record,
        sends: bool,
    ) -> Result<(), StoreError> {
        let inner = &self.0;
        let absent = inner.local.absent_blobs(&record);
        let completeness = if absent.is_empty() { Completeness::Whole } else { Completeness::Tocs };
        inner.local.replace_record(&record, completeness)?;
        self.lost().made_again(&record);
        let head = Bundle { steps: vec![BundleStep { slot: String::new(), record: record.clone() }] };
        inner.local.write_bundle(name, &record.scope, &head).await?;
        if sends {
            inner.heads.lock().unwrap_or_else(PoisonError::into_inner).insert(*name, record.key());
            self.in_background(Upload::Head(*name, Box::new(record)));
        }
        Ok(())
    }

    /// Waits for the uploads, at most for `grace`.
    pub async fn flush(&self, grace: Duration) -> FlushReport {
        let inner = &self.0;
        let all = async {
            loop {
                let done = inner.done.notified();
                tokio::pin!(done);
                // Registered before the count is read, so that no end of an upload is overlooked.
                done.as_mut().enable();
                if inner.pending.load(Ordering::SeqCst) == 0 {
                    return;
                }
                done.await;
            }
        };
        let _ = tokio::time::timeout(grace, all).await;
        FlushReport {
            uploaded_bytes: inner.uploaded.load(Ordering::Relaxed),
            failed: inner.failed.load(Ordering::Relaxed),
            pending: inner.pending.load(Ordering::SeqCst),
        }
    }

    /// Bytes exchanged with the remote store so far.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            downloaded: self.0.downloaded.load(Ordering::Relaxed),
            uploaded: self.0.uploaded.load(Ordering::Relaxed),
        }
    }

    async fn is_verified(&self, digest: &Digest, size: u64) -> bool {
        let inner = &self.0;
        let known = inner.verified.lock().unwrap_or_else(PoisonError::into_inner).contains(digest);
        let sound = inner.local.is_stored(digest, size) && (known || inner.local.verify_blob(digest).await);
        if sound && !known {
            inner.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(*digest);
        }
        sound
    }

    async fn remote_has(&self, digests: &[Digest]) -> bool {
        let Some(remote) = &self.0.remote else { return false };
        let there = || self.0.at_remote.lock().unwrap_or_else(PoisonError::into_inner);
        if remote.is_usable() && digests.iter().all(|digest| there().contains(digest)) {
            return true;
        }
        let has_all = matches!(remote.ask(remote.store().missing_blobs(digests)).await, Some(missing) if missing.is_empty());
        if has_all {
            there().extend(digests);
        }
        has_all
    }

    /// Remembers those of the bundle's records whose blobs are all there: one question instead of one a step.
    async fn keep_bundled(&self, remote: &Remote, bundle: &Bundle) {
        let trusted = |record: &&Record| self.0.options.scopes.contains(&record.scope);
        let records: Vec<_> = bundle.steps.iter().map(|step| &step.record).filter(trusted).collect();
        let blobs: Vec<_> = records.iter().flat_map(|record| record.blobs()).collect();
        let missing = if remote.store().vouches_for_records() {
            Vec::new()
        } else {
            match remote.ask(remote.store().missing_blobs(&blobs)).await {
                Some(missing) => missing,
                None => return,
            }
        };
        let mut bundled = self.0.bundled.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            if !record.blobs().any(|digest| missing.contains(&digest)) {
                let mut there = self.0.at_remote.lock().unwrap_or_else(PoisonError::into_inner);
                there.extend(record.blobs());
                bundled.insert(record.key(), record.clone());
            }
        }
    }

    /// Runs an upload beside the build.
    fn in_background(&self, upload: Upload) {
        let inner = Arc::clone(&self.0);
        if inner.remote.is_none() || inner.options.read_only {
            return;
        }
        let waiting = inner.pending.fetch_add(1, Ordering::SeqCst);
        let pending = Pending(inner);
        if waiting >= PENDING_MAX {
            pending.0.failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        tokio::spawn(async move {
            let inner = &*pending.0;
            let Some(remote) = &inner.remote else { return };
            let _permit = inner.uploads.acquire().await;
            let sent = match upload {
                Upload::Record(record, making) => {
                    let sent = inner.upload(remote, &record, making.predecessor.as_ref()).await;
                    making.lease.release().await;
                    sent
                }
                Upload::Head(name, record) => {
                    let sent = inner.upload(remote, &record, None).await;
                    let (scope, key) = (record.scope.clone(), record.key());
                    // One that was made later may have been faster: it stays.
                    let heads = || inner.heads.lock().unwrap_or_else(PoisonError::into_inner);
                    let is_latest = heads().get(&name) == Some(&key);
                    let head = Bundle { steps: vec![BundleStep { slot: String::new(), record: *record }] };
                    sent && (!is_latest
                        || remote.send(remote.store().write_bundle(&name, &scope, &head)).await.is_some())
                }
                Upload::Bundle(name, scope, bundle) => {
                    remote.send(remote.store().write_bundle(&name, &scope, &bundle)).await.is_some()
                }
            };
            if !sent {
                inner.failed.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

impl Inner {
    /// Sends the blobs that are missing, then the record.
    async fn upload(&self, remote: &Remote, record: &Record, predecessor: Option<&Record>) -> bool {
        let blobs: Vec<_> = record.blobs().chain(record.extras()).collect();
        let missing = match self.few(&blobs) {
            Some(few) => few,
            None => match remote.send(remote.store().missing_blobs(&blobs)).await {
                Some(missing) => missing,
                None => return false,
            },
        };
        let sent = missing.into_iter().map(|digest| self.upload_blob(remote, record, predecessor, digest));
        let sent: Vec<bool> = futures_util::stream::iter(sent).buffered(UPLOADED_AT_ONCE).collect().await;
        if sent.contains(&false) {
            return false;
        }
        remote.send(remote.store().write_record(record)).await.is_some()
    }

    /// Those blobs that are not known to be in the shared cache, if all of them are here and sending them costs no more than
    /// the question whether they are missing.
    fn few(&self, blobs: &[Digest]) -> Option<Vec<Digest>> {
        let is_known = |digest: &&Digest| {
            let known = [&self.at_remote, &self.sent];
            !known.iter().any(|known| known.lock().unwrap_or_else(PoisonError::into_inner).contains(*digest))
        };
        let unknown: Vec<Digest> = blobs.iter().filter(is_known).copied().collect();
        let sizes = unknown.iter().map(|digest| self.local.open_blob(digest).map(|(_, size)| size));
        (sizes.sum::<Option<u64>>()? <= FEW_BYTES).then_some(unknown)
    }

    /// Sends one of a record's blobs.
    async fn upload_blob(
        &self,
        remote: &Remote,
        record: &Record,
        predecessor: Option<&Record>,
        digest: Digest,
    ) -> bool {
        // A result is often recorded under several keys, whose records have the same layers.
        let gate = self.sending.of(&digest);
        let _alone = gate.lock().await;
        if self.sent.lock().unwrap_or_else(PoisonError::into_inner).contains(&digest) {
            return true;
        }
        let Some((_, size)) = self.local.open_blob(&digest) else {
            return record.extras().any(|extra| extra == digest);
        };
        let layer = record.own_layers().iter().find(|layer| layer.digest == digest);
        let parts = match (layer, predecessor) {
            (Some(layer), Some(predecessor)) => reuse::plan(self, remote, layer, predecessor).await,
            _ => None,
        };
        let Some(sent) = reuse::send(self, remote, &digest, size, parts.as_deref()).await else {
            return false;
        };
        self.uploaded.fetch_add(sent, Ordering::Relaxed);
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        true
    }
}

/// What is sent without asking whether it is there already: a fraction of what a connection over some distance carries in the
/// time of an answer.
const FEW_BYTES: u64 = 64 << 10;

/// A lock for each blob.
#[derive(Debug, Default)]
struct Gates(Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>);

impl Gates {
    fn of(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        Arc::clone(gates.entry(*digest).or_default())
    }
}

/// A name that nobody else has, and nobody guesses. Without random numbers leases are not exclusive, and work may be done
/// twice.
fn random_name() -> String {
    let mut bytes = [0; 18];
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    Digest::of(bytes).hex()
}
