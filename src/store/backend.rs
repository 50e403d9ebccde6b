//! What a server keeps everything in: a store, and documents that change.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use super::{BlobSource, Store, StoreError};
use crate::digest::Digest;
use crate::record::{Key, Record, Scope};

/// The longest segment of a document's name: file names end at 255 bytes on every file system.
const SEGMENT_MAX: usize = 250;

/// The longest name in all: object stores end at 1024 bytes, and a prefix has to fit in.
const NAME_MAX: usize = 800;

/// The name of a document: segments of ASCII letters, digits and `. _ - ! : = @ + ,`, separated by slashes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentName(String);

/// Why a text is no [`DocumentName`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` cannot be the name of a document")]
pub struct DocumentNameError(String);

impl DocumentName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl FromStr for DocumentName {
    type Err = DocumentNameError;

    fn from_str(text: &str) -> Result<Self, DocumentNameError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-!:=@+,".contains(&byte);
        let fits = |segment: &str| {
            (1..=SEGMENT_MAX).contains(&segment.len())
                && segment != "."
                && segment != ".."
                && segment.bytes().all(plain)
        };
        if text.len() <= NAME_MAX && text.split('/').all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(DocumentNameError(text.to_owned()))
        }
    }
}

impl fmt::Debug for DocumentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for DocumentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tells states of a document apart. Opaque; equal versions mean equal content, and no more than that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(pub(super) String);

/// A document as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its content.
    pub bytes: Bytes,
    /// Its state, for a conditional write.
    pub version: Version,
}

/// What must be true for a document to be written or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Anything,
    /// There is none.
    Absent,
    /// It is in the state in which it was read.
    Unchanged(Version),
}

/// Something that is stored, for whoever looks after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<N> {
    /// What it is called.
    pub name: N,
    /// Bytes.
    pub size: u64,
    /// When it was written or last used, give or take an hour.
    pub used: SystemTime,
}

/// A blob that is a file of this machine.
#[derive(Debug)]
pub struct BlobFile {
    /// The file, for reading at places: others may read it too.
    pub file: std::fs::File,
    /// Its metadata when it was opened.
    pub opened: std::fs::Metadata,
    /// Whether it was verified lately and has not changed since. If not, who reads it has to verify it.
    pub is_verified: bool,
}

/// A store that a server can stand on. Several servers may use the same one at the same time, and need nothing else
/// to agree.
///
/// Documents are small: tags, tokens, leases. Contract, checked by the test-suite of stores:
/// - A document is read as it was written, whole.
/// - Of several writes that expect the same state, one succeeds.
/// - A write that has succeeded is seen by every read and listing that begins later.
/// - A name that is the beginning of another one's segments may be a document too.
#[async_trait]
pub trait Backend: Store {
    /// Makes the file at `path`, which the caller has just written and found to have this digest, a blob. The file may
    /// be gone afterwards; `true` if the blob was not there before.
    async fn adopt_file(&self, digest: &Digest, path: &Path) -> Result<bool, StoreError> {
        self.write_blob(digest, BlobSource::File(path.to_owned())).await
    }

    /// Opens a blob that is a file of this machine. `None` does not say that the blob is absent: it may be no file.
    async fn open_file(&self, _digest: &Digest) -> Result<Option<BlobFile>, StoreError> {
        Ok(None)
    }

    /// Takes note that the whole content of a file that was opened so has been read and was found right.
    fn verified_file(&self, _digest: &Digest, _blob: &BlobFile) {}

    /// Removes a blob; `false` if there was none.
    async fn remove_blob(&self, digest: &Digest) -> Result<bool, StoreError>;

    /// Moves a blob that was found damaged aside, so that it is absent and can be written again.
    async fn quarantine_blob(&self, digest: &Digest) -> Result<(), StoreError>;

    /// Reads a document; `None` if there is none.
    async fn read_document(&self, name: &DocumentName) -> Result<Option<Document>, StoreError>;

    /// Writes a document if it is in the state expected; its new state, or `None` if it was in another one.
    async fn write_document(
        &self,
        name: &DocumentName,
        bytes: Bytes,
        expected: Expected,
    ) -> Result<Option<Version>, StoreError>;

    /// Removes a document if it is in the state expected; whether one was removed.
    async fn remove_document(&self, name: &DocumentName, expected: Expected) -> Result<bool, StoreError>;

    /// Removes a document that is written under no condition but `Anything`, and leaves nothing of it. Who writes it at the
    /// same time may find it removed.
    async fn drop_document(&self, name: &DocumentName) -> Result<(), StoreError> {
        self.remove_document(name, Expected::Anything).await.map(|_| ())
    }

    /// The names of the documents below `folder`, at any depth, in the order of their bytes: the first `limit` of those
    /// that come after `after`.
    async fn list_documents(
        &self,
        folder: &DocumentName,
        after: Option<&DocumentName>,
        limit: usize,
    ) -> Result<Vec<DocumentName>, StoreError>;

    /// The documents below `folder`, and when they were written.
    async fn dated_documents(
        &self,
        folder: &DocumentName,
    ) -> Result<Vec<(DocumentName, SystemTime)>, StoreError>;

    /// All blobs.
    async fn list_blobs(&self) -> Result<Vec<Stored<Digest>>, StoreError>;

    /// All records, also those that are damaged or lack something.
    async fn list_records(&self) -> Result<Vec<Stored<(Scope, Key)>>, StoreError>;

    /// A record, whether its blobs are there or not.
    async fn peek_record(&self, scope: &Scope, key: &Key) -> Result<Option<Record>, StoreError>;

    /// Takes note that a record was of use, so that it is not the first to go.
    async fn mark_used(&self, scope: &Scope, key: &Key) -> Result<(), StoreError>;

    /// Removes a record; no error if there is none.
    async fn remove_record(&self, scope: &Scope, key: &Key) -> Result<(), StoreError>;

    /// Moves a blob to the trash: it is absent, and may be written again, or restored.
    async fn discard_blob(&self, digest: &Digest) -> Result<(), StoreError>;

    /// What is in the trash, since when.
    async fn list_trash(&self) -> Result<Vec<Stored<Digest>>, StoreError>;

    /// Takes a blob out of the trash; no error if it is not there.
    async fn restore_blob(&self, digest: &Digest) -> Result<(), StoreError>;

    /// Removes what is in the trash for good.
    async fn destroy_blob(&self, digest: &Digest) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_without_tricks() {
        for good in ["a", "tenant/repo!sub/tag/v1.0_x", "lease/sha256:00", "a/.hidden"] {
            assert_eq!(good.parse::<DocumentName>().unwrap().to_string(), good);
        }
        let long = "x".repeat(SEGMENT_MAX + 1);
        for bad in ["", "/a", "a/", "a//b", ".", "a/../b", "a b", "a\0b", "a~", "\u{e4}", &long] {
            assert_eq!(bad.parse::<DocumentName>(), Err(DocumentNameError(bad.to_owned())));
        }
        assert!(vec!["x".repeat(200); 5].join("/").parse::<DocumentName>().is_err());
    }
}
