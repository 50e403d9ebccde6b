//! Stores: anything that keeps blobs and records.
//!
//! [`Store`] is the contract. Truth is immutable; the publication order is blobs, then the record that names
//! them; every read is verified; damage and eviction are a miss, never an error of the build.

mod cache;
mod directory;
pub mod maintain;
mod memory;
mod remote;
mod replace;
pub mod url;

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;

use crate::digest::Digest;
use crate::hint::Hint;
use crate::record::{Bundle, BundleName, Key, Record, Scope};

pub use cache::{Cache, CacheOptions, CacheStats, FlushReport, Hit, Origin};
pub use directory::{Clock, DirectoryStore, Lock, OpenError};
pub use memory::MemoryStore;
pub use replace::replace_file;

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

    /// Which of `digests` the store does not have, in their order.
    async fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError>;

    /// Reads a blob into memory; `None` if it is absent, damaged, or larger than `limit` bytes.
    async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError>;

    /// Copies a blob of `size` bytes to the file `destination`, which is created or replaced, verified;
    /// `false`, and no file, if it is absent or damaged.
    async fn fetch_blob(&self, digest: &Digest, size: u64, destination: &Path) -> Result<bool, StoreError>;

    /// Stores a blob, verifying it; `true` if it was not there before.
    async fn write_blob(&self, digest: &Digest, source: BlobSource) -> Result<bool, StoreError>;

    /// The record for `key` in the first of `scopes` that has one.
    async fn read_record(&self, key: &Key, scopes: &[Scope]) -> Result<Option<Record>, StoreError>;

    /// Stores a record in its scope. One that is there already for the same key is kept, and returned: whoever was
    /// first wins, so that all builds agree on one result.
    async fn write_record(&self, record: &Record) -> Result<Record, StoreError>;

    /// The bundle `name` in the first of `scopes` that has one.
    async fn read_bundle(&self, name: &BundleName, scopes: &[Scope]) -> Result<Option<Bundle>, StoreError>;

    /// Stores a bundle, replacing the one before it.
    async fn write_bundle(&self, name: &BundleName, scope: &Scope, bundle: &Bundle)
    -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests;
