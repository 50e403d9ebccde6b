//! Stores: anything that keeps blobs and records.
//!
//! [`Store`] is the contract. Truth is immutable; the publication order is blobs, then the record that names
//! them; every read is verified; damage and eviction are a miss, never an error of the build.

mod backend;
mod cache;
mod directory;
mod http;
mod lease;
pub mod maintain;
mod memory;
mod object;
mod remote;
mod replace;
mod reuse;
pub mod url;

use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::digest::Digest;
use crate::hint::Hint;
use crate::record::{Bundle, BundleName, Key, Record, Scope};

pub use backend::{Backend, BlobFile, Document, DocumentName, DocumentNameError, Expected, Stored, Version};
pub use cache::{Cache, CacheOptions, CacheStats, FlushReport, Hit, Making, Origin};
pub use directory::{Clock, DirectoryStore, Lock, OpenError};
pub use http::{HttpSession, HttpStore};
pub use lease::{Lease, LeaseAnswer, Turn};
pub use memory::MemoryStore;
pub use object::{ObjectStore, ObjectUrl, ObjectUrlError};
pub use replace::replace_file;
pub use reuse::Part;

/// Where the bytes of a blob come from.
#[derive(Debug, Clone)]
pub enum BlobSource {
    /// From memory.
    Bytes(Bytes),
    /// From a file, which stays where it is. A store on the same file system may hard-link it, so the caller must
    /// never write to it again.
    File(PathBuf),
}

/// Why a store could not answer. Absence is not an error, and neither is damage.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing failed.
    #[error("{action} in {location} failed")]
    Io {
        /// What was being done: `writing blob sha256:…`.
        action: String,
        /// The store.
        location: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The bytes handed in are not what their digest says.
    #[error("refused to store {digest}: its content has digest {actual}")]
    Mismatch {
        /// The digest announced.
        digest: Digest,
        /// The digest found.
        actual: Digest,
    },
    /// A record names blobs that are not in the store.
    #[error("refused to store the record {key}: its blob {missing} is not in {location}")]
    Incomplete {
        /// The record's key.
        key: Key,
        /// A blob that is missing.
        missing: Digest,
        /// The store.
        location: String,
    },
    /// The store is not available: too slow, unreachable, refusing.
    #[error("{location} is not available: {reason}")]
    Unavailable {
        /// The store.
        location: String,
        /// Why.
        reason: String,
    },
}

impl Hint for StoreError {
    fn hint(&self) -> Option<String> {
        let Self::Io { source, .. } = self else { return None };
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Some("free some space: `crossdock cache prune` removes what was not used lately".to_owned())
            }
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                Some("the store must be writable by this user, or be used read-only".to_owned())
            }
            _ => None,
        }
    }
}

/// Keeps blobs by digest and records by key and scope.
///
/// Contract, checked by one test-suite for every implementation:
/// - A blob or record is visible completely or not at all, whatever dies while it is written.
/// - What a read returns has the digest that was asked for. A damaged object is quarantined and absent.
/// - Writing something that is there already is cheap and succeeds.
/// - A record becomes visible only if all its blobs are there.
#[async_trait]
pub trait Store: Debug + Send + Sync {
    /// The store's name for messages: its URL, without credentials.
    fn location(&self) -> String;

    /// What the names of this client's requests begin with, for whoever looks for them in the log of a server.
    fn requests_begin_with(&self) -> Option<&str> {
        None
    }

    /// Which of `digests` the store does not have, in their order.
    async fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError>;

    /// Reads a blob into memory; `None` if it is absent, damaged, or larger than `limit` bytes.
    async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError>;

    /// Copies a blob of `size` bytes to the file `destination`, which is created or replaced, verified;
    /// `false`, and no file, if it is absent or damaged.
    async fn fetch_blob(&self, digest: &Digest, size: u64, destination: &Path) -> Result<bool, StoreError>;

    /// How many bytes a blob has; `None` if it is absent.
    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError>;

    /// Reads a part of a blob: the bytes of `range`, or fewer where the blob ends sooner; `None` if it is absent. They
    /// are *not* verified, as a part has no digest: whoever puts parts together has to do that.
    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Option<Bytes>, StoreError>;

    /// Stores a blob, verifying it; `true` if it was not there before.
    async fn write_blob(&self, digest: &Digest, source: BlobSource) -> Result<bool, StoreError>;

    /// Whether blobs can be put together of others.
    fn composes(&self) -> bool {
        false
    }

    /// Stores the blob that is in `file`, of parts of others and of what has to be sent, verifying it; `true` if it was not
    /// there before.
    async fn write_parts(&self, digest: &Digest, file: &Path, _parts: &[Part]) -> Result<bool, StoreError> {
        self.write_blob(digest, BlobSource::File(file.to_owned())).await
    }

    /// The record for `key` in the first of `scopes` that has one.
    async fn read_record(&self, key: &Key, scopes: &[Scope]) -> Result<Option<Record>, StoreError>;

    /// Stores a record in its scope. One that is there already for the same key is kept, and returned: whoever was
    /// first wins, so that all builds agree on one result.
    async fn write_record(&self, record: &Record) -> Result<Record, StoreError>;

    /// Whether it has the blobs of all records that it answers with, also of those in bundles, so that nobody needs to ask
    /// for them.
    fn vouches_for_records(&self) -> bool {
        false
    }

    /// Asks to be the one who executes what `key` names, for `lifetime` or until it is asked again. Who asks is called
    /// `holder`: a random name that only it knows, and a space and what others may be told.
    async fn take_lease(
        &self,
        _key: &Key,
        _scope: &Scope,
        _holder: &str,
        _lifetime: Duration,
    ) -> Result<LeaseAnswer, StoreError> {
        Ok(LeaseAnswer::NoLeases)
    }

    /// Gives a lease back.
    async fn release_lease(&self, _key: &Key, _scope: &Scope, _holder: &str) -> Result<(), StoreError> {
        Ok(())
    }

    /// The bundle `name` in the first of `scopes` that has one.
    async fn read_bundle(&self, name: &BundleName, scopes: &[Scope]) -> Result<Option<Bundle>, StoreError>;

    /// Stores a bundle, replacing the one before it.
    async fn write_bundle(&self, name: &BundleName, scope: &Scope, bundle: &Bundle)
    -> Result<(), StoreError>;
}

#[cfg(test)]
pub(crate) mod tests;
