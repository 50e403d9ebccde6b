//! A store that goes wrong on purpose, in the same way for the same seed.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::digest::Digest;
use crate::record::{Bundle, BundleName, Key, Record, Scope};
use crate::store::{BlobSource, Store, StoreError};

/// How often what goes wrong, in percent of the calls.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) errors: u64,
    pub(super) truncations: u64,
    pub(super) bit_flips: u64,
    pub(super) foreign_records: u64,
    /// Before every answer.
    pub(super) latency: Duration,
}

#[derive(Debug)]
pub(super) struct FaultyStore {
    inner: Arc<dyn Store>,
    state: AtomicU64,
    faults: Faults,
    pub(super) calls: AtomicU64,
}

impl FaultyStore {
    pub(super) fn new(inner: Arc<dyn Store>, seed: u64, faults: Faults) -> Self {
        Self { inner, state: AtomicU64::new(seed), faults, calls: AtomicU64::new(0) }
    }

    /// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
    fn random(&self) -> u64 {
        let mut z = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn chance(&self, percent: u64) -> bool {
        self.random() % 100 < percent
    }

    async fn trouble(&self) -> Result<(), StoreError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if !self.faults.latency.is_zero() {
            tokio::time::sleep(self.faults.latency).await;
        }
        if self.chance(self.faults.errors) {
            return Err(StoreError::Unavailable { location: self.location(), reason: "injected".to_owned() });
        }
        Ok(())
    }

    fn damage(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let at = (self.random() % bytes.len() as u64) as usize;
        if self.chance(self.faults.truncations) {
            bytes.truncate(at);
        } else if self.chance(self.faults.bit_flips) {
            bytes[at] ^= 1 << (self.random() % 8);
        }
    }
}

#[async_trait]
impl Store for FaultyStore {
    fn location(&self) -> String {
        "faulty".to_owned()
    }

    async fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        self.trouble().await?;
        self.inner.missing_blobs(digests).await
    }

    async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError> {
        self.trouble().await?;
        Ok(self.inner.read_blob(digest, limit).await?.map(|bytes| {
            let mut bytes = bytes.to_vec();
            self.damage(&mut bytes);
            bytes.into()
        }))
    }

    async fn fetch_blob(&self, digest: &Digest, size: u64, destination: &Path) -> Result<bool, StoreError> {
        self.trouble().await?;
        let found = self.inner.fetch_blob(digest, size, destination).await?;
        if found {
            let mut bytes = fs_err::read(destination).unwrap();
            self.damage(&mut bytes);
            fs_err::write(destination, bytes).unwrap();
        }
        Ok(found)
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.trouble().await?;
        self.inner.blob_size(digest).await
    }

    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.trouble().await?;
        self.inner.read_range(digest, range).await
    }

    async fn write_blob(&self, digest: &Digest, source: BlobSource) -> Result<bool, StoreError> {
        self.trouble().await?;
        self.inner.write_blob(digest, source).await
    }

    async fn read_record(&self, key: &Key, scopes: &[Scope]) -> Result<Option<Record>, StoreError> {
        self.trouble().await?;
        let mut record = self.inner.read_record(key, scopes).await?;
        if let Some(record) = &mut record
            && self.chance(self.faults.foreign_records)
        {
            record.preimage.add("planted", true);
        }
        Ok(record)
    }

    async fn write_record(&self, record: &Record) -> Result<Record, StoreError> {
        self.trouble().await?;
        self.inner.write_record(record).await
    }

    async fn read_bundle(&self, name: &BundleName, scopes: &[Scope]) -> Result<Option<Bundle>, StoreError> {
        self.trouble().await?;
        self.inner.read_bundle(name, scopes).await
    }

    async fn write_bundle(
        &self,
        name: &BundleName,
        scope: &Scope,
        bundle: &Bundle,
    ) -> Result<(), StoreError> {
        self.trouble().await?;
        self.inner.write_bundle(name, scope, bundle).await
    }
}
