//! A store in object storage: S3 and what speaks like it, Google Cloud Storage, Azure.
//!
//! The layout is described in `docs/formats.md`, "Object store layout". Objects are immutable but for documents and
//! bundles; several clients and servers use one bucket with no other coordination than conditional writes
//! (`If-None-Match`, `If-Match`), which is why the storage must have them.

mod blobs;
mod documents;
mod open;
mod records;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path as Name;
use object_store::{GetOptions, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, UpdateVersion};

use super::{BlobSource, Store, StoreError, Version};
use crate::digest::Digest;
use crate::record::{Bundle, BundleName, Key, Record, Scope};

pub use open::{ObjectUrl, ObjectUrlError};

/// A store in a bucket. Cheap to clone.
#[derive(Clone)]
pub struct ObjectStore {
    objects: Arc<dyn object_store::ObjectStore>,
    /// Below which everything is, without a slash at its end; may be empty.
    prefix: String,
    location: String,
    /// Records that were marked as used, and when.
    marked: Arc<Mutex<HashMap<(Scope, Key), Instant>>>,
}

impl fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStore").field("location", &self.location).finish_non_exhaustive()
    }
}

impl ObjectStore {
    /// What is below `prefix` in `objects`; `location` names it in messages.
    pub fn new(objects: Arc<dyn object_store::ObjectStore>, prefix: &str, location: String) -> Self {
        Self { objects, prefix: prefix.trim_matches('/').to_owned(), location, marked: Arc::default() }
    }

    /// A part of it that is a store of its own.
    pub fn below(&self, name: &str) -> Self {
        let prefix = if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) };
        Self::new(Arc::clone(&self.objects), &prefix, format!("{}/{name}", self.location))
    }

    /// The names below which there is something.
    pub async fn parts(&self) -> Result<Vec<String>, StoreError> {
        let prefix = (!self.prefix.is_empty()).then(|| Name::from(self.prefix.as_str()));
        let listed = self.objects.list_with_delimiter(prefix.as_ref()).await;
        let listed = listed.map_err(|error| self.failed(&error))?;
        Ok(listed.common_prefixes.iter().filter_map(|name| name.filename().map(str::to_owned)).collect())
    }

    fn name(&self, rest: &str) -> Result<Name, StoreError> {
        let text =
            if self.prefix.is_empty() { format!("v1/{rest}") } else { format!("{}/v1/{rest}", self.prefix) };
        Name::parse(text).map_err(|error| self.unavailable(error.to_string()))
    }

    fn unavailable(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Unavailable { location: self.location.clone(), reason: reason.into() }
    }

    /// An error of the storage, without what may be secret: addresses may be signed.
    fn failed(&self, error: &object_store::Error) -> StoreError {
        use object_store::Error;
        let reason = match error {
            Error::NotFound { .. } => "there is no such bucket".to_owned(),
            Error::PermissionDenied { .. } => "it does not allow this".to_owned(),
            Error::Unauthenticated { .. } => "it does not know these credentials".to_owned(),
            Error::NotImplemented { .. } | Error::NotSupported { .. } => {
                "it has no conditional writes, which are needed".to_owned()
            }
            other => without_queries(&crate::hint::with_causes(other)),
        };
        self.unavailable(reason)
    }

    /// A whole object; `None` if there is none, or it is larger than `limit`.
    async fn get(&self, name: &Name, limit: u64) -> Result<Option<(Bytes, Version)>, StoreError> {
        let found = match self.objects.get_opts(name, GetOptions::default()).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.failed(&error)),
        };
        if found.meta.size > limit {
            return Ok(None);
        }
        let version = version(found.meta.e_tag.as_deref(), found.meta.version.as_deref());
        let bytes = found.bytes().await.map_err(|error| self.failed(&error))?;
        Ok(Some((bytes, version)))
    }

    /// Writes an object; `None` if it was not in the state that `mode` wants.
    async fn put(&self, name: &Name, bytes: Bytes, mode: PutMode) -> Result<Option<Version>, StoreError> {
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.objects.put_opts(name, PutPayload::from_bytes(bytes), options).await {
            Ok(put) => Ok(Some(version(put.e_tag.as_deref(), put.version.as_deref()))),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(None)
            }
            // What an update expects may be gone altogether.
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn size(&self, name: &Name) -> Result<Option<u64>, StoreError> {
        match self.objects.head(name).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn delete(&self, name: &Name) -> Result<(), StoreError> {
        match self.objects.delete(name).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Moves what was found damaged aside, so that it is absent. Best effort.
    async fn quarantine(&self, name: &Name) {
        let Some(file) = name.filename() else { return };
        if let Ok(aside) = self.name(&format!("quarantine/{file}")) {
            let _ = self.objects.copy(name, &aside).await;
        }
        let _ = self.objects.delete(name).await;
    }
}

/// Both parts are needed: S3 compares the tag, Google the version.
fn version(tag: Option<&str>, version: Option<&str>) -> Version {
    Version(format!("{}\n{}", tag.unwrap_or_default(), version.unwrap_or_default()))
}

fn update(version: &Version) -> PutMode {
    let (tag, number) = version.0.split_once('\n').unwrap_or((&version.0, ""));
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    PutMode::Update(UpdateVersion { e_tag: some(tag), version: some(number) })
}

/// Cuts the queries out of addresses.
fn without_queries(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut skipping = false;
    for c in text.chars() {
        skipping = match c {
            '?' => true,
            _ if c.is_whitespace() || c == '"' || c == ')' => false,
            _ => skipping,
        };
        if !skipping {
            shown.push(c);
        }
    }
    shown.chars().take(400).collect()
}

#[async_trait]
impl Store for ObjectStore {
    fn location(&self) -> String {
        self.location.clone()
    }

    async fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        self.find_missing(digests).await
    }

    async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError> {
        let name = self.blob_name(digest)?;
        let Some((bytes, _)) = self.get(&name, limit).await? else { return Ok(None) };
        if digest.matches(&bytes) {
            return Ok(Some(bytes));
        }
        self.quarantine(&name).await;
        Ok(None)
    }

    async fn fetch_blob(&self, digest: &Digest, size: u64, destination: &Path) -> Result<bool, StoreError> {
        self.fetch(digest, size, destination).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.size(&self.blob_name(digest)?).await
    }

    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.part(digest, range).await
    }

    async fn write_blob(&self, digest: &Digest, source: BlobSource) -> Result<bool, StoreError> {
        self.put_blob(digest, source).await
    }

    async fn read_record(&self, key: &Key, scopes: &[Scope]) -> Result<Option<Record>, StoreError> {
        self.find_record(key, scopes).await
    }

    async fn write_record(&self, record: &Record) -> Result<Record, StoreError> {
        self.put_record(record).await
    }

    async fn read_bundle(&self, name: &BundleName, scopes: &[Scope]) -> Result<Option<Bundle>, StoreError> {
        self.find_bundle(name, scopes).await
    }

    async fn write_bundle(
        &self,
        name: &BundleName,
        scope: &Scope,
        bundle: &Bundle,
    ) -> Result<(), StoreError> {
        self.put_bundle(name, scope, bundle).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_addresses_are_not_shown() {
        let text =
            "error sending request for url (http://host/bucket/x?X-Amz-Signature=secret&y=1): timed out?no";
        let shown = without_queries(text);
        assert_eq!(shown, "error sending request for url (http://host/bucket/x): timed out");
    }
}
