//! Records and bundles in object storage.

use futures_util::StreamExt as _;
use object_store::PutMode;
use object_store::path::Path as Name;

use super::{ObjectStore, update};
use crate::digest::Digest;
use crate::record::{BUNDLE_BYTES_MAX, Bundle, BundleName, Key, RECORD_BYTES_MAX, Record, Scope};
use crate::store::{StoreError, Version};

/// Attempts to replace a record that is of no use, against others who do the same.
const ATTEMPTS: u32 = 3;

/// Questions at a time.
const QUESTIONS: usize = 16;

impl ObjectStore {
    pub(super) fn record_name(&self, key: &Key, scope: &Scope) -> Result<Name, StoreError> {
        let hex = key.0.hex();
        self.name(&format!("records/{}/{}/{hex}", folder(scope), &hex[..2]))
    }

    fn bundle_name(&self, name: &BundleName, scope: &Scope) -> Result<Name, StoreError> {
        self.name(&format!("bundles/{}/{}", folder(scope), name.0.hex()))
    }

    pub(super) async fn find_record(
        &self,
        key: &Key,
        scopes: &[Scope],
    ) -> Result<Option<Record>, StoreError> {
        for scope in scopes {
            if let Some((record, _)) = self.load_record(key, scope).await?
                && self.lacks(&record).await?.is_none()
            {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// A record that belongs where it is; another one is moved aside.
    pub(super) async fn load_record(
        &self,
        key: &Key,
        scope: &Scope,
    ) -> Result<Option<(Record, Version)>, StoreError> {
        let name = self.record_name(key, scope)?;
        let Some((bytes, version)) = self.get(&name, RECORD_BYTES_MAX).await? else { return Ok(None) };
        match Record::decode(&bytes) {
            Ok(record) if record.key() == *key && record.scope == *scope => Ok(Some((record, version))),
            _ => {
                self.quarantine(&name).await;
                Ok(None)
            }
        }
    }

    /// A blob that the record needs and that is missing, or whose size is wrong.
    async fn lacks(&self, record: &Record) -> Result<Option<Digest>, StoreError> {
        let tocs = record.layers.iter().map(|layer| (layer.toc, None));
        let layers = record.layers.iter().filter(|_| !record.foreign);
        let wanted: Vec<_> = tocs.chain(layers.map(|layer| (layer.digest, Some(layer.size)))).collect();
        let asked = futures_util::stream::iter(wanted).map(async |(digest, size)| {
            let found = self.size(&self.blob_name(&digest)?).await?;
            let there = found.is_some_and(|found| size.is_none_or(|size| size == found));
            Ok::<_, StoreError>((!there).then_some(digest))
        });
        let mut answers = std::pin::pin!(asked.buffered(QUESTIONS));
        while let Some(answer) = answers.next().await {
            if let Some(missing) = answer? {
                return Ok(Some(missing));
            }
        }
        Ok(None)
    }

    /// Stores a record unless there is one already, and returns the one that is there then.
    pub(super) async fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        let key = record.key();
        if let Some(missing) = self.lacks(record).await? {
            return Err(StoreError::Incomplete { key, missing, location: self.location.clone() });
        }
        let name = self.record_name(&key, &record.scope)?;
        let mut mode = PutMode::Create;
        for _ in 0..ATTEMPTS {
            if self.put(&name, record.encode().into(), mode.clone()).await?.is_some() {
                return Ok(record.clone());
            }
            mode = match self.load_record(&key, &record.scope).await? {
                Some((existing, version)) => {
                    if self.lacks(&existing).await?.is_none() {
                        return Ok(existing);
                    }
                    // Evicted in part: it is of no use to anybody.
                    update(&version)
                }
                None => PutMode::Create,
            };
        }
        Err(self.unavailable(format!("others keep writing the record {key}")))
    }

    pub(super) async fn find_bundle(
        &self,
        name: &BundleName,
        scopes: &[Scope],
    ) -> Result<Option<Bundle>, StoreError> {
        for scope in scopes {
            let object = self.bundle_name(name, scope)?;
            let Some((bytes, _)) = self.get(&object, BUNDLE_BYTES_MAX).await? else { continue };
            match Bundle::decode(&bytes) {
                Ok(bundle) => return Ok(Some(bundle)),
                Err(_) => self.quarantine(&object).await,
            }
        }
        Ok(None)
    }

    pub(super) async fn put_bundle(
        &self,
        name: &BundleName,
        scope: &Scope,
        bundle: &Bundle,
    ) -> Result<(), StoreError> {
        let object = self.bundle_name(name, scope)?;
        self.put(&object, bundle.encode().into(), PutMode::Overwrite).await.map(|_| ())
    }
}

/// A scope as one segment of a name.
pub(super) fn folder(scope: &Scope) -> String {
    scope.as_str().replace('/', "+")
}
