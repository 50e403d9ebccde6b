//! Documents in object storage.
//!
//! No storage that speaks S3 can be relied upon to *remove* an object in a certain state only. A document that is to go
//! is therefore overwritten, in the state expected, with an empty object, which reads as no document; and it is never
//! deleted after that, because somebody may have written a new one meanwhile. An object that is a document begins with a
//! byte of its own, so that documents may be empty.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use object_store::path::Path as Name;
use object_store::{ObjectMeta, ObjectStoreExt as _, PutMode};

use super::records::folder;
use super::{ObjectStore, update};
use crate::digest::Digest;
use crate::record::{Key, Record, Scope};
use crate::store::{Backend, Document, DocumentName, Expected, StoreError, Stored, Version};

/// What an object that is a document begins with.
const MARK: u8 = b'd';

/// Documents are small.
const BYTES_MAX: u64 = 16 << 20;

/// Documents in one folder; a listing has all of their names in memory.
const LISTED_MAX: usize = 1_000_000;

/// Attempts against others who write the same document.
const ATTEMPTS: u32 = 5;

/// A record that is of use is marked when the last mark is older than this: a mark is an object that is written.
const MARK_EVERY: Duration = Duration::from_hours(1);

/// Marks that are remembered.
const MARKED_MAX: usize = 100_000;

/// What an object is to documents.
enum State {
    /// There is no object.
    Nothing,
    /// It says that the document was removed.
    Removed(Version),
    There(Document),
}

impl ObjectStore {
    fn document_name(&self, name: &DocumentName) -> Result<Name, StoreError> {
        self.name(&format!("documents/{name}"))
    }

    async fn state(&self, name: &Name) -> Result<State, StoreError> {
        let Some((bytes, version)) = self.get(name, BYTES_MAX).await? else { return Ok(State::Nothing) };
        Ok(match bytes.first() {
            Some(&MARK) => State::There(Document { bytes: bytes.slice(1..), version }),
            _ => State::Removed(version),
        })
    }
}

#[async_trait]
impl Backend for ObjectStore {
    async fn remove_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        let name = self.blob_name(digest)?;
        let there = self.size(&name).await?.is_some();
        self.delete(&name).await?;
        Ok(there)
    }

    async fn quarantine_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.quarantine(&self.blob_name(digest)?).await;
        Ok(())
    }

    /// Nobody has read a state of it that could come back: there is no need for an object that says it was removed.
    async fn drop_document(&self, name: &DocumentName) -> Result<(), StoreError> {
        self.delete(&self.document_name(name)?).await
    }

    async fn read_document(&self, name: &DocumentName) -> Result<Option<Document>, StoreError> {
        match self.state(&self.document_name(name)?).await? {
            State::There(document) => Ok(Some(document)),
            State::Nothing | State::Removed(_) => Ok(None),
        }
    }

    async fn write_document(
        &self,
        name: &DocumentName,
        bytes: Bytes,
        expected: Expected,
    ) -> Result<Option<Version>, StoreError> {
        let name = self.document_name(name)?;
        let mut marked = BytesMut::with_capacity(bytes.len() + 1);
        marked.put_u8(MARK);
        marked.extend_from_slice(&bytes);
        let marked = marked.freeze();
        match expected {
            Expected::Anything => self.put(&name, marked, PutMode::Overwrite).await,
            Expected::Unchanged(version) => self.put(&name, marked, update(&version)).await,
            Expected::Absent => {
                for _ in 0..ATTEMPTS {
                    if let Some(version) = self.put(&name, marked.clone(), PutMode::Create).await? {
                        return Ok(Some(version));
                    }
                    let removed = match self.state(&name).await? {
                        State::There(_) => return Ok(None),
                        State::Nothing => continue,
                        State::Removed(version) => version,
                    };
                    // In its place, unless somebody else was sooner.
                    return self.put(&name, marked, update(&removed)).await;
                }
                Ok(None)
            }
        }
    }

    async fn remove_document(&self, name: &DocumentName, expected: Expected) -> Result<bool, StoreError> {
        let name = self.document_name(name)?;
        for _ in 0..ATTEMPTS {
            let State::There(document) = self.state(&name).await? else { return Ok(false) };
            match &expected {
                Expected::Absent => return Ok(false),
                Expected::Unchanged(version) if *version != document.version => return Ok(false),
                Expected::Unchanged(_) | Expected::Anything => {}
            }
            if self.put(&name, Bytes::new(), update(&document.version)).await?.is_some() {
                return Ok(true);
            }
            // Changed meanwhile. Whoever wants it gone whatever it is tries again.
            if expected != Expected::Anything {
                return Ok(false);
            }
        }
        Err(self.unavailable(format!("others keep writing {name}")))
    }

    async fn list_documents(
        &self,
        folder: &DocumentName,
        after: Option<&DocumentName>,
        limit: usize,
    ) -> Result<Vec<DocumentName>, StoreError> {
        let root = self.name("documents")?;
        let folder = self.document_name(folder)?;
        let mut objects = match after {
            Some(after) => self.objects.list_with_offset(Some(&folder), &self.document_name(after)?),
            None => self.objects.list(Some(&folder)),
        };
        let mut names = Vec::new();
        while let Some(object) = objects.next().await {
            let object = object.map_err(|error| self.failed(&error))?;
            let name = object.location.as_ref().strip_prefix(root.as_ref());
            let name = name.and_then(|name| name.strip_prefix('/')?.parse::<DocumentName>().ok());
            // An empty object is a document that was removed.
            if let Some(name) = name.filter(|_| object.size > 0) {
                names.push(name);
                if names.len() > LISTED_MAX {
                    return Err(self.unavailable(format!("there is too much in {folder}")));
                }
            }
        }
        // Storage that is no S3 may list in another order.
        names.sort_unstable();
        names.truncate(limit);
        Ok(names)
    }

    async fn dated_documents(
        &self,
        folder: &DocumentName,
    ) -> Result<Vec<(DocumentName, SystemTime)>, StoreError> {
        let root = self.name("documents")?;
        let folder = self.document_name(folder)?;
        self.list(&folder, |name, meta| {
            let name = name.strip_prefix(root.as_ref())?.strip_prefix('/')?.parse().ok()?;
            // An empty object is a document that was removed.
            (meta.size > 0).then(|| (name, meta.last_modified.into()))
        })
        .await
    }

    async fn list_blobs(&self) -> Result<Vec<Stored<Digest>>, StoreError> {
        self.list(&self.name("blobs")?, stored_blob).await
    }

    async fn list_records(&self) -> Result<Vec<Stored<(Scope, Key)>>, StoreError> {
        let marks: HashMap<(Scope, Key), SystemTime> = self
            .list(&self.name("used")?, |name, meta| Some((record_of(name)?, meta.last_modified.into())))
            .await?
            .into_iter()
            .collect();
        self.list(&self.name("records")?, |name, meta| {
            let name = record_of(name)?;
            let written = SystemTime::from(meta.last_modified);
            let used = marks.get(&name).map_or(written, |marked| written.max(*marked));
            Some(Stored { name, size: meta.size, used })
        })
        .await
    }

    async fn peek_record(&self, scope: &Scope, key: &Key) -> Result<Option<Record>, StoreError> {
        Ok(self.load_record(key, scope).await?.map(|(record, _)| record))
    }

    async fn mark_used(&self, scope: &Scope, key: &Key) -> Result<(), StoreError> {
        let name = (scope.clone(), *key);
        {
            let mut marked = self.marked.lock().unwrap_or_else(PoisonError::into_inner);
            if marked.get(&name).is_some_and(|at| at.elapsed() < MARK_EVERY) {
                return Ok(());
            }
            if marked.len() >= MARKED_MAX {
                marked.clear();
            }
            marked.insert(name, Instant::now());
        }
        self.put(&self.mark_name(key, scope)?, Bytes::new(), PutMode::Overwrite).await.map(|_| ())
    }

    async fn remove_record(&self, scope: &Scope, key: &Key) -> Result<(), StoreError> {
        self.delete(&self.record_name(key, scope)?).await?;
        self.delete(&self.mark_name(key, scope)?).await
    }

    async fn discard_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.displace(&self.blob_name(digest)?, &self.trash_name(digest)?).await
    }

    async fn list_trash(&self) -> Result<Vec<Stored<Digest>>, StoreError> {
        self.list(&self.name("trash")?, stored_blob).await
    }

    async fn restore_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.displace(&self.trash_name(digest)?, &self.blob_name(digest)?).await
    }

    async fn destroy_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.delete(&self.trash_name(digest)?).await
    }
}

impl ObjectStore {
    fn trash_name(&self, digest: &Digest) -> Result<Name, StoreError> {
        let hex = digest.hex();
        self.name(&format!("trash/{}/{}/{hex}", digest.algorithm().name(), &hex[..2]))
    }

    fn mark_name(&self, key: &Key, scope: &Scope) -> Result<Name, StoreError> {
        let hex = key.0.hex();
        self.name(&format!("used/{}/{}/{hex}", folder(scope), &hex[..2]))
    }

    /// Moves an object. At every moment it is in one of the places, or in both.
    async fn displace(&self, from: &Name, to: &Name) -> Result<(), StoreError> {
        match self.objects.copy(from, to).await {
            Ok(()) => self.delete(from).await,
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// What `read` makes of the objects below a name.
    async fn list<T>(
        &self,
        folder: &Name,
        read: impl Fn(&str, &ObjectMeta) -> Option<T> + Send,
    ) -> Result<Vec<T>, StoreError> {
        let mut objects = self.objects.list(Some(folder));
        let mut found = Vec::new();
        while let Some(object) = objects.next().await {
            let object = object.map_err(|error| self.failed(&error))?;
            found.extend(read(object.location.as_ref(), &object));
        }
        Ok(found)
    }
}

/// A blob by the end of its name: `…/sha256/ab/abcdef…`.
fn stored_blob(name: &str, meta: &ObjectMeta) -> Option<Stored<Digest>> {
    let mut parts = name.rsplit('/');
    let (hex, _, algorithm) = (parts.next()?, parts.next()?, parts.next()?);
    let name = format!("{algorithm}:{hex}").parse().ok()?;
    Some(Stored { name, size: meta.size, used: meta.last_modified.into() })
}

/// A record by the end of its name: `…/main+x/ab/abcdef…`.
fn record_of(name: &str) -> Option<(Scope, Key)> {
    let mut parts = name.rsplit('/');
    let (hex, _, scope) = (parts.next()?, parts.next()?, parts.next()?);
    Some((scope.replace('+', "/").parse().ok()?, Key(format!("sha256:{hex}").parse().ok()?)))
}
