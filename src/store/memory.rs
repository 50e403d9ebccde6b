//! A store in memory: for tests, and the simplest thing that keeps the contract.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{BlobSource, Store, StoreError};
use crate::digest::{Digest, Hasher};
use crate::record::{Bundle, BundleName, Key, Record, Scope};

/// Keeps everything until it is dropped.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    blobs: HashMap<Digest, Bytes>,
    records: HashMap<(Scope, Key), Record>,
    bundles: HashMap<(Scope, BundleName), Bundle>,
}

impl Content {
    fn lacks(&self, record: &Record) -> Option<Digest> {
        record.blobs().find(|digest| !self.blobs.contains_key(digest))
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes a blob, as eviction would.
    pub fn remove_blob(&self, digest: &Digest) -> bool {
        self.content().blobs.remove(digest).is_some()
    }

    /// How many blobs there are.
    pub fn blob_count(&self) -> usize {
        self.content().blobs.len()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, action: String) -> impl FnOnce(std::io::Error) -> StoreError {
        move |source| StoreError::Io { action, location: self.location(), source }
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    async fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        let content = self.content();
        Ok(digests.iter().filter(|digest| !content.blobs.contains_key(digest)).copied().collect())
    }

    async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError> {
        let blob = self.content().blobs.get(digest).cloned();
        Ok(blob.filter(|bytes| bytes.len() as u64 <= limit))
    }

    async fn fetch_blob(&self, digest: &Digest, size: u64, destination: &Path) -> Result<bool, StoreError> {
        let Some(bytes) = self.read_blob(digest, size).await?.filter(|bytes| bytes.len() as u64 == size)
        else {
            return Ok(false);
        };
        let written = tokio::fs::write(destination, &bytes).await;
        written.map_err(self.failed(format!("copying blob {digest} to {}", destination.display())))?;
        Ok(true)
    }

    async fn write_blob(&self, digest: &Digest, source: BlobSource) -> Result<bool, StoreError> {
        let bytes = match source {
            BlobSource::Bytes(bytes) => bytes,
            BlobSource::File(path) => {
                let read = tokio::fs::read(&path).await;
                read.map_err(self.failed(format!("storing blob {digest} from {}", path.display())))?.into()
            }
        };
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        let actual = hasher.finish();
        if actual != *digest {
            return Err(StoreError::Mismatch { digest: *digest, actual });
        }
        Ok(self.content().blobs.insert(*digest, bytes).is_none())
    }

    async fn read_record(&self, key: &Key, scopes: &[Scope]) -> Result<Option<Record>, StoreError> {
        let content = self.content();
        let mut found = scopes.iter().filter_map(|scope| content.records.get(&(scope.clone(), *key)));
        Ok(found.find(|record| content.lacks(record).is_none()).cloned())
    }

    async fn write_record(&self, record: &Record) -> Result<Record, StoreError> {
        let mut content = self.content();
        let key = record.key();
        if let Some(missing) = content.lacks(record) {
            return Err(StoreError::Incomplete { key, missing, location: self.location() });
        }
        let place = (record.scope.clone(), key);
        if let Some(existing) = content.records.get(&place)
            && content.lacks(existing).is_none()
        {
            return Ok(existing.clone());
        }
        content.records.insert(place, record.clone());
        Ok(record.clone())
    }

    async fn read_bundle(&self, name: &BundleName, scopes: &[Scope]) -> Result<Option<Bundle>, StoreError> {
        let content = self.content();
        Ok(scopes.iter().find_map(|scope| content.bundles.get(&(scope.clone(), *name)).cloned()))
    }

    async fn write_bundle(
        &self,
        name: &BundleName,
        scope: &Scope,
        bundle: &Bundle,
    ) -> Result<(), StoreError> {
        self.content().bundles.insert((scope.clone(), *name), bundle.clone());
        Ok(())
    }
}
