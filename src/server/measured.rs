//! The storage, measured: how often each of its operations is asked for, how long it takes, and how it ends.

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::metrics::SECONDS;
use crate::digest::Digest;
use crate::record::{Bundle, BundleName, Key, Record, Scope};
use crate::store::{
    Backend, BlobFile, BlobSource, Document, DocumentName, Expected, LeaseAnswer, Part, Store, StoreError,
    Stored, Version,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OperationLabels {
    operation: &'static str,
    result: &'static str,
}

/// What is counted of a storage, all of its parts together. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct StorageFigures {
    pub(super) seconds: Family<OperationLabels, Histogram>,
    pub(super) active: Gauge,
}

impl Default for StorageFigures {
    fn default() -> Self {
        Self { seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)), active: Gauge::default() }
    }
}

/// A part of a storage whose operations are counted.
#[derive(Debug)]
pub(super) struct Measured {
    inner: Arc<dyn Backend>,
    figures: StorageFigures,
}

/// An operation under way. Whoever gives up waiting for it is counted too.
struct UnderWay<'f> {
    figures: &'f StorageFigures,
    operation: &'static str,
    result: &'static str,
    started: Instant,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.figures.active.dec();
        let labels = OperationLabels { operation: self.operation, result: self.result };
        self.figures.seconds.get_or_create(&labels).observe(self.started.elapsed().as_secs_f64());
    }
}

impl Measured {
    pub(super) fn new(inner: Arc<dyn Backend>, figures: StorageFigures) -> Self {
        Self { inner, figures }
    }

    async fn measure<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.figures.active.inc();
        let mut under_way =
            UnderWay { figures: &self.figures, operation, result: "abandoned", started: Instant::now() };
        let result = work.await;
        under_way.result = match &result {
            Ok(_) => "ok",
            // What was asked for cannot be done, which is not the storage's fault.
            Err(StoreError::Mismatch { .. } | StoreError::Incomplete { .. }) => "refused",
            Err(StoreError::Io { .. } | StoreError::Unavailable { .. }) => "error",
        };
        result
    }
}

/// The operation of the same name, measured.
macro_rules! measured {
    ($self:ident, $operation:ident($($argument:expr),*)) => {
        $self.measure(stringify!($operation), $self.inner.$operation($($argument),*)).await
    };
}

#[deny(clippy::missing_trait_methods, reason = "what is not passed on is lost silently")]
#[async_trait]
impl Store for Measured {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn composes(&self) -> bool {
        self.inner.composes()
    }

    fn vouches_for_records(&self) -> bool {
        self.inner.vouches_for_records()
    }

    fn requests_begin_with(&self) -> Option<&str> {
        self.inner.requests_begin_with()
    }

    async fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        measured!(self, missing_blobs(digests))
    }

    async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError> {
        measured!(self, read_blob(digest, limit))
    }

    async fn fetch_blob(&self, digest: &Digest, size: u64, destination: &Path) -> Result<bool, StoreError> {
        measured!(self, fetch_blob(digest, size, destination))
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        measured!(self, blob_size(digest))
    }

    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        measured!(self, read_range(digest, range))
    }

    async fn write_blob(&self, digest: &Digest, source: BlobSource) -> Result<bool, StoreError> {
        measured!(self, write_blob(digest, source))
    }

    async fn write_parts(&self, digest: &Digest, file: &Path, parts: &[Part]) -> Result<bool, StoreError> {
        measured!(self, write_parts(digest, file, parts))
    }

    async fn read_record(&self, key: &Key, scopes: &[Scope]) -> Result<Option<Record>, StoreError> {
        measured!(self, read_record(key, scopes))
    }

    async fn write_record(&self, record: &Record) -> Result<Record, StoreError> {
        measured!(self, write_record(record))
    }

    async fn take_lease(
        &self,
        key: &Key,
        scope: &Scope,
        holder: &str,
        lifetime: Duration,
    ) -> Result<LeaseAnswer, StoreError> {
        measured!(self, take_lease(key, scope, holder, lifetime))
    }

    async fn release_lease(&self, key: &Key, scope: &Scope, holder: &str) -> Result<(), StoreError> {
        measured!(self, release_lease(key, scope, holder))
    }

    async fn read_bundle(&self, name: &BundleName, scopes: &[Scope]) -> Result<Option<Bundle>, StoreError> {
        measured!(self, read_bundle(name, scopes))
    }

    async fn write_bundle(
        &self,
        name: &BundleName,
        scope: &Scope,
        bundle: &Bundle,
    ) -> Result<(), StoreError> {
        measured!(self, write_bundle(name, scope, bundle))
    }
}

#[deny(clippy::missing_trait_methods, reason = "what is not passed on is lost silently")]
#[async_trait]
impl Backend for Measured {
    async fn adopt_file(&self, digest: &Digest, path: &Path) -> Result<bool, StoreError> {
        measured!(self, adopt_file(digest, path))
    }

    async fn open_file(&self, digest: &Digest) -> Result<Option<BlobFile>, StoreError> {
        measured!(self, open_file(digest))
    }

    fn verified_file(&self, digest: &Digest, blob: &BlobFile) {
        self.inner.verified_file(digest, blob);
    }

    async fn remove_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        measured!(self, remove_blob(digest))
    }

    async fn quarantine_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        measured!(self, quarantine_blob(digest))
    }

    async fn read_document(&self, name: &DocumentName) -> Result<Option<Document>, StoreError> {
        measured!(self, read_document(name))
    }

    async fn write_document(
        &self,
        name: &DocumentName,
        bytes: Bytes,
        expected: Expected,
    ) -> Result<Option<Version>, StoreError> {
        measured!(self, write_document(name, bytes, expected))
    }

    async fn remove_document(&self, name: &DocumentName, expected: Expected) -> Result<bool, StoreError> {
        measured!(self, remove_document(name, expected))
    }

    async fn drop_document(&self, name: &DocumentName) -> Result<(), StoreError> {
        measured!(self, drop_document(name))
    }

    async fn list_documents(
        &self,
        folder: &DocumentName,
        after: Option<&DocumentName>,
        limit: usize,
    ) -> Result<Vec<DocumentName>, StoreError> {
        measured!(self, list_documents(folder, after, limit))
    }

    async fn dated_documents(
        &self,
        folder: &DocumentName,
    ) -> Result<Vec<(DocumentName, SystemTime)>, StoreError> {
        measured!(self, dated_documents(folder))
    }

    async fn list_blobs(&self) -> Result<Vec<Stored<Digest>>, StoreError> {
        measured!(self, list_blobs())
    }

    async fn list_records(&self) -> Result<Vec<Stored<(Scope, Key)>>, StoreError> {
        measured!(self, list_records())
    }

    async fn peek_record(&self, scope: &Scope, key: &Key) -> Result<Option<Record>, StoreError> {
        measured!(self, peek_record(scope, key))
    }

    async fn mark_used(&self, scope: &Scope, key: &Key) -> Result<(), StoreError> {
        measured!(self, mark_used(scope, key))
    }

    async fn remove_record(&self, scope: &Scope, key: &Key) -> Result<(), StoreError> {
        measured!(self, remove_record(scope, key))
    }

    async fn discard_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        measured!(self, discard_blob(digest))
    }

    async fn list_trash(&self) -> Result<Vec<Stored<Digest>>, StoreError> {
        measured!(self, list_trash())
    }

    async fn restore_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        measured!(self, restore_blob(digest))
    }

    async fn destroy_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        measured!(self, destroy_blob(digest))
    }
}
