//! A store in memory: for tests, and the simplest thing that keeps the contract.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Backend, BlobSource, Document, DocumentName, Expected, Store, StoreError, Stored, Version};
use crate::digest::{Digest, Hasher};
use crate::record::{Bundle, BundleName, Key, Record, Scope};

/// Keeps everything until it is dropped.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    blobs: HashMap<Digest, Bytes>,
    trash: HashMap<Digest, Bytes>,
    records: HashMap<(Scope, Key), Record>,
    bundles: HashMap<(Scope, BundleName), Bundle>,
    documents: BTreeMap<DocumentName, Bytes>,
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
    pub fn evict_blob(&self, digest: &Digest) -> bool {
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

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(self.content().blobs.get(digest).map(|bytes| bytes.len() as u64))
    }

    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        let blob = self.content().blobs.get(digest).cloned();
        Ok(blob.map(|bytes| {
            let index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let start = index(range.start);
            bytes.slice(start..index(range.end).max(start))
        }))
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

impl Content {
    fn version(&self, name: &DocumentName) -> Option<Version> {
        self.documents.get(name).map(|bytes| Version(Digest::of(bytes).hex()))
    }

    fn is(&self, name: &DocumentName, expected: &Expected) -> bool {
        match expected {
            Expected::Anything => true,
            Expected::Absent => !self.documents.contains_key(name),
            Expected::Unchanged(version) => self.version(name).as_ref() == Some(version),
        }
    }
}

#[async_trait]
impl Backend for MemoryStore {
    async fn remove_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.evict_blob(digest))
    }

    async fn quarantine_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.evict_blob(digest);
        Ok(())
    }

    async fn read_document(&self, name: &DocumentName) -> Result<Option<Document>, StoreError> {
        let content = self.content();
        let version = content.version(name);
        Ok(content
            .documents
            .get(name)
            .cloned()
            .zip(version)
            .map(|(bytes, version)| Document { bytes, version }))
    }

    async fn write_document(
        &self,
        name: &DocumentName,
        bytes: Bytes,
        expected: Expected,
    ) -> Result<Option<Version>, StoreError> {
        let mut content = self.content();
        if !content.is(name, &expected) {
            return Ok(None);
        }
        content.documents.insert(name.clone(), bytes);
        Ok(content.version(name))
    }

    async fn remove_document(&self, name: &DocumentName, expected: Expected) -> Result<bool, StoreError> {
        let mut content = self.content();
        Ok(content.is(name, &expected) && content.documents.remove(name).is_some())
    }

    async fn list_documents(
        &self,
        folder: &DocumentName,
        after: Option<&DocumentName>,
        limit: usize,
    ) -> Result<Vec<DocumentName>, StoreError> {
        let prefix = format!("{folder}/");
        let content = self.content();
        let names = content.documents.keys().filter(|name| name.as_str().starts_with(&prefix));
        Ok(names.filter(|name| after.is_none_or(|after| *name > after)).take(limit).cloned().collect())
    }

    async fn dated_documents(
        &self,
        folder: &DocumentName,
    ) -> Result<Vec<(DocumentName, SystemTime)>, StoreError> {
        let names = self.list_documents(folder, None, usize::MAX).await?;
        Ok(names.into_iter().map(|name| (name, SystemTime::UNIX_EPOCH)).collect())
    }

    // Memory knows no times: nothing of it is ever too old, and what it lists is nothing.

    async fn list_blobs(&self) -> Result<Vec<Stored<Digest>>, StoreError> {
        Ok(Vec::new())
    }

    async fn list_records(&self) -> Result<Vec<Stored<(Scope, Key)>>, StoreError> {
        Ok(Vec::new())
    }

    async fn peek_record(&self, scope: &Scope, key: &Key) -> Result<Option<Record>, StoreError> {
        Ok(self.content().records.get(&(scope.clone(), *key)).cloned())
    }

    async fn mark_used(&self, _scope: &Scope, _key: &Key) -> Result<(), StoreError> {
        Ok(())
    }

    async fn remove_record(&self, scope: &Scope, key: &Key) -> Result<(), StoreError> {
        self.content().records.remove(&(scope.clone(), *key));
        Ok(())
    }

    async fn discard_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let mut content = self.content();
        if let Some(bytes) = content.blobs.remove(digest) {
            content.trash.insert(*digest, bytes);
        }
        Ok(())
    }

    async fn list_trash(&self) -> Result<Vec<Stored<Digest>>, StoreError> {
        Ok(Vec::new())
    }

    async fn restore_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let mut content = self.content();
        if let Some(bytes) = content.trash.remove(digest) {
            content.blobs.entry(*digest).or_insert(bytes);
        }
        Ok(())
    }

    async fn destroy_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.content().trash.remove(digest);
        Ok(())
    }
}
