//! Documents in a directory store: files below `documents/`, replaced as a whole.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use super::{DirectoryStore, MARK_EVERY, files, lock};
use crate::digest::Digest;
use crate::record::{Key, Record, Scope};
use crate::store::{
    Backend, BlobFile, Document, DocumentName, Expected, StoreError, Stored, Version, maintain,
};

/// Ends the name of a document's file. No name of a document has it in it, so that a document and a folder of the same
/// name do not meet.
const SUFFIX: char = '~';

/// How long a writer sleeps before it tries again to get the lock that all writers share.
const POLL: Duration = Duration::from_millis(2);

/// How long a writer waits for others.
const PATIENCE: Duration = Duration::from_secs(10);

impl DirectoryStore {
    fn document_path(&self, name: &DocumentName) -> PathBuf {
        let mut path = self.base().join("documents").join(name.as_str()).into_os_string();
        path.push(SUFFIX.to_string());
        path.into()
    }

    fn load_document(&self, name: &DocumentName) -> Result<Option<Document>, StoreError> {
        match files::read(&self.document_path(name)) {
            Ok(bytes) => {
                let version = Version(Digest::of(&bytes).hex());
                Ok(Some(Document { bytes: bytes.into(), version }))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.failed(|| format!("reading the document {name}"))(error)),
        }
    }

    /// Does `change` if the document is in the state expected. Writers exclude each other, also those of other
    /// processes; readers see one file or the other.
    fn change_document<T>(
        &self,
        name: &DocumentName,
        expected: &Expected,
        change: impl FnOnce(&Path) -> io::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        let failed = || format!("writing the document {name}");
        let started = std::time::Instant::now();
        let _alone = loop {
            let attempt = lock::attempt(&self.base().join("locks"), "documents");
            if let Some(lock) = attempt.map_err(self.failed(failed))? {
                break lock;
            }
            if started.elapsed() > PATIENCE {
                return Err(self.failed(failed)(io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(POLL);
        };
        let there = match expected {
            Expected::Anything => None,
            _ => self.load_document(name)?,
        };
        let is_expected = match expected {
            Expected::Anything => true,
            Expected::Absent => there.is_none(),
            Expected::Unchanged(version) => there.is_some_and(|document| document.version == *version),
        };
        if !is_expected {
            return Ok(None);
        }
        change(&self.document_path(name)).map(Some).map_err(self.failed(failed))
    }
}

impl DirectoryStore {
    fn trash_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.base().join("trash");
        path.extend([digest.algorithm().name(), &hex[..2], &hex]);
        path
    }

    /// Moves a file, whole at every moment; what is in its new place is the same.
    fn displace(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        match files::with_parent(to, || fs_err::rename(from, to)) {
            // With its folder there it is the file that is not.
            Err(error) if is_absent(&error) => Ok(()),
            other => other.map_err(self.failed(|| format!("moving {}", from.display()))),
        }
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        match fs_err::remove_file(path) {
            Err(error) if is_absent(&error) => Ok(()),
            other => other.map_err(self.failed(|| format!("removing {}", path.display()))),
        }
    }
}

/// A folder of the name's beginning may be missing, or be no folder at all.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[async_trait]
impl Backend for DirectoryStore {
    async fn adopt_file(&self, digest: &Digest, path: &Path) -> Result<bool, StoreError> {
        let (digest, path) = (*digest, path.to_owned());
        self.blocking(move |store| match store.adopt_blob(&path, &digest) {
            // On another file system it has to be copied, which verifies it again.
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::CrossesDevices => {
                store.put_file(&digest, &path)
            }
            other => other,
        })
        .await
    }

    async fn open_file(&self, digest: &Digest) -> Result<Option<BlobFile>, StoreError> {
        let digest = *digest;
        self.small(move |store| store.blob_file(&digest)).await
    }

    fn verified_file(&self, digest: &Digest, blob: &BlobFile) {
        self.note_verified(digest, blob);
    }

    async fn remove_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        let digest = *digest;
        let failed = move || format!("removing blob {digest}");
        self.small(move |store| match fs_err::remove_file(store.blob_path(&digest)) {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(store.failed(failed)(error)),
        })
        .await
    }

    async fn quarantine_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let digest = *digest;
        self.small(move |store| {
            Self::quarantine_blob(store, &digest);
            Ok(())
        })
        .await
    }

    async fn read_document(&self, name: &DocumentName) -> Result<Option<Document>, StoreError> {
        let name = name.clone();
        self.small(move |store| store.load_document(&name)).await
    }

    async fn write_document(
        &self,
        name: &DocumentName,
        bytes: Bytes,
        expected: Expected,
    ) -> Result<Option<Version>, StoreError> {
        let name = name.clone();
        self.blocking(move |store| {
            let mut file = store.tmp_file()?;
            file.write_all(&bytes).map_err(store.failed(|| format!("writing the document {name}")))?;
            let version = Version(Digest::of(&bytes).hex());
            let written = store.change_document(&name, &expected, |path| {
                files::with_parent(path, || fs_err::rename(file.path(), path))
            })?;
            Ok(written.map(|()| version))
        })
        .await
    }

    async fn remove_document(&self, name: &DocumentName, expected: Expected) -> Result<bool, StoreError> {
        let name = name.clone();
        self.blocking(move |store| {
            let removed =
                store.change_document(&name, &expected, |path| match fs_err::remove_file(path) {
                    Ok(()) => Ok(true),
                    Err(error) if is_absent(&error) => Ok(false),
                    Err(error) => Err(error),
                })?;
            Ok(removed.unwrap_or(false))
        })
        .await
    }

    async fn list_documents(
        &self,
        folder: &DocumentName,
        after: Option<&DocumentName>,
        limit: usize,
    ) -> Result<Vec<DocumentName>, StoreError> {
        let (folder, after) = (folder.clone(), after.cloned());
        self.blocking(move |store| {
            let root = store.base().join("documents");
            let mut names = Vec::new();
            for entry in walkdir::WalkDir::new(root.join(folder.as_str())) {
                let entry = match entry {
                    Ok(entry) => entry,
                    // What is removed meanwhile is not there.
                    Err(error) if error.io_error().is_none_or(is_absent) => continue,
                    Err(error) => {
                        return Err(store.failed(|| format!("listing {folder}"))(error.into()));
                    }
                };
                let name = entry.path().strip_prefix(&root).ok().and_then(|path| path.to_str());
                let name = name.and_then(|name| name.strip_suffix(SUFFIX)?.parse::<DocumentName>().ok());
                if let Some(name) = name.filter(|name| after.as_ref().is_none_or(|after| name > after)) {
                    names.push(name);
                }
            }
            names.sort_unstable();
            names.truncate(limit);
            Ok(names)
        })
        .await
    }

    async fn dated_documents(
        &self,
        folder: &DocumentName,
    ) -> Result<Vec<(DocumentName, SystemTime)>, StoreError> {
        let names = self.list_documents(folder, None, usize::MAX).await?;
        self.blocking(move |store| {
            let dated = names.into_iter().filter_map(|name| {
                // What is removed meanwhile is not there.
                let metadata = fs_err::metadata(store.document_path(&name)).ok()?;
                Some((name, metadata.modified().ok()?))
            });
            Ok(dated.collect())
        })
        .await
    }

    async fn list_blobs(&self) -> Result<Vec<Stored<Digest>>, StoreError> {
        self.blocking(|store| maintain::blobs(store, "blobs")).await
    }

    async fn list_records(&self) -> Result<Vec<Stored<(Scope, Key)>>, StoreError> {
        self.blocking(maintain::records).await
    }

    async fn peek_record(&self, scope: &Scope, key: &Key) -> Result<Option<Record>, StoreError> {
        let (scope, key) = (scope.clone(), *key);
        self.small(move |store| store.load_record(&store.record_path(&key, &scope), &key, &scope)).await
    }

    async fn mark_used(&self, scope: &Scope, key: &Key) -> Result<(), StoreError> {
        let (scope, key) = (scope.clone(), *key);
        self.small(move |store| {
            let path = store.record_path(&key, &scope);
            if let Ok(modified) = fs_err::metadata(&path).and_then(|metadata| metadata.modified()) {
                files::mark_used(&path, modified, store.now(), MARK_EVERY);
            }
            Ok(())
        })
        .await
    }

    async fn remove_record(&self, scope: &Scope, key: &Key) -> Result<(), StoreError> {
        let (scope, key) = (scope.clone(), *key);
        self.small(move |store| store.remove(&store.record_path(&key, &scope))).await
    }

    async fn discard_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let digest = *digest;
        self.small(move |store| store.displace(&store.blob_path(&digest), &store.trash_path(&digest))).await
    }

    async fn list_trash(&self) -> Result<Vec<Stored<Digest>>, StoreError> {
        self.blocking(|store| maintain::blobs(store, "trash")).await
    }

    async fn restore_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let digest = *digest;
        self.small(move |store| store.displace(&store.trash_path(&digest), &store.blob_path(&digest))).await
    }

    async fn destroy_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let digest = *digest;
        self.small(move |store| store.remove(&store.trash_path(&digest))).await
    }
}
