//! Blobs in object storage.

use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt as _;
use object_store::path::Path as Name;
use object_store::{GetOptions, GetRange, ObjectStoreExt as _, PutMode, WriteMultipart};

use super::ObjectStore;
use crate::digest::{Digest, Hasher};
use crate::store::{BlobSource, StoreError};

/// Questions at a time.
const QUESTIONS: usize = 32;

/// Blobs of more than this are sent in parts of this size. S3 takes 10,000 parts of 5 MiB at least.
const PART: usize = 16 << 20;

/// Parts under way at a time; each is in memory.
const PARTS: usize = 4;

/// How much of a file is read at a time.
const READ: usize = 1 << 20;

impl ObjectStore {
    pub(super) fn blob_name(&self, digest: &Digest) -> Result<Name, StoreError> {
        let hex = digest.hex();
        self.name(&format!("blobs/{}/{}/{hex}", digest.algorithm().name(), &hex[..2]))
    }

    pub(super) async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        let asked = futures_util::stream::iter(digests.to_vec()).map(async |digest| {
            let there = self.size(&self.blob_name(&digest)?).await?.is_some();
            Ok::<_, StoreError>((!there).then_some(digest))
        });
        let mut answers = std::pin::pin!(asked.buffered(QUESTIONS));
        let mut missing = Vec::new();
        while let Some(answer) = answers.next().await {
            missing.extend(answer?);
        }
        Ok(missing)
    }

    /// A part of a blob, as far as it goes.
    pub(super) async fn part(&self, digest: &Digest, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        let name = self.blob_name(digest)?;
        if !range.is_empty() {
            let options =
                GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
            match self.objects.get_opts(&name, options).await {
                Ok(found) => return found.bytes().await.map(Some).map_err(|error| self.failed(&error)),
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                // It may begin behind the blob's end, which is no failure; the size tells.
                Err(error) => match self.size(&name).await? {
                    Some(size) if range.start >= size => return Ok(Some(Bytes::new())),
                    Some(_) => return Err(self.failed(&error)),
                    None => return Ok(None),
                },
            }
        }
        Ok(self.size(&name).await?.map(|_| Bytes::new()))
    }

    /// Copies a blob to a file, verifying it.
    pub(super) async fn fetch(
        &self,
        digest: &Digest,
        size: u64,
        destination: &Path,
    ) -> Result<bool, StoreError> {
        let name = self.blob_name(digest)?;
        let found = match self.objects.get_opts(&name, GetOptions::default()).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(self.failed(&error)),
        };
        if found.meta.size != size {
            self.quarantine(&name).await;
            return Ok(false);
        }
        let failed = |source| StoreError::Io {
            action: format!("copying blob {digest} to {}", destination.display()),
            location: self.location.clone(),
            source,
        };
        let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut copy = tempfile::NamedTempFile::new_in(parent.unwrap_or(Path::new("."))).map_err(failed)?;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut stream = found.into_stream();
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|error| self.failed(&error))?;
            let work = move || {
                hasher.update(&bytes);
                copy.write_all(&bytes).map(|()| (copy, hasher))
            };
            let done =
                tokio::task::spawn_blocking(work).await.map_err(|error| failed(io::Error::other(error)))?;
            (copy, hasher) = done.map_err(failed)?;
        }
        if hasher.finish() != *digest {
            self.quarantine(&name).await;
            return Ok(false);
        }
        copy.persist(destination).map_err(|error| failed(error.error))?;
        Ok(true)
    }

    /// Stores a blob, which is verified before anything of it is visible.
    pub(super) async fn put_blob(&self, digest: &Digest, source: BlobSource) -> Result<bool, StoreError> {
        let name = self.blob_name(digest)?;
        match source {
            BlobSource::Bytes(bytes) => {
                check(digest, Digest::with(digest.algorithm(), &bytes))?;
                if self.is_there(&name, bytes.len() as u64).await? {
                    return Ok(false);
                }
                self.put(&name, bytes, PutMode::Overwrite).await?;
                Ok(true)
            }
            BlobSource::File(path) => {
                let (size, found) = self.hashed(digest, &path).await?;
                check(digest, found)?;
                if self.is_there(&name, size).await? {
                    return Ok(false);
                }
                self.send(&name, digest, &path, size).await?;
                Ok(true)
            }
        }
    }

    /// One of another size is damaged.
    async fn is_there(&self, name: &Name, size: u64) -> Result<bool, StoreError> {
        match self.size(name).await? {
            Some(found) if found == size => Ok(true),
            Some(_) => {
                self.quarantine(name).await;
                Ok(false)
            }
            None => Ok(false),
        }
    }

    async fn hashed(&self, digest: &Digest, path: &Path) -> Result<(u64, Digest), StoreError> {
        let (algorithm, path) = (digest.algorithm(), path.to_owned());
        let failed = self.reading(&path);
        let work = tokio::task::spawn_blocking(move || {
            let mut file = fs_err::File::open(&path)?;
            let (mut hasher, mut size, mut buffer) = (Hasher::new(algorithm), 0, vec![0; READ]);
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok::<_, io::Error>((size, hasher.finish())),
                    read => {
                        hasher.update(&buffer[..read]);
                        size += read as u64;
                    }
                }
            }
        });
        work.await.map_err(io::Error::other).and_then(|done| done).map_err(failed)
    }

    fn reading(&self, path: &Path) -> impl Fn(io::Error) -> StoreError + use<> {
        let (action, location) = (format!("reading {}", path.display()), self.location.clone());
        move |source| StoreError::Io { action: action.clone(), location: location.clone(), source }
    }

    /// Sends a file of the size and digest that were just found, at once or in parts. What it is was checked; that it is
    /// still the same is checked again, before the parts become an object.
    async fn send(&self, name: &Name, digest: &Digest, path: &Path, size: u64) -> Result<(), StoreError> {
        let changed = || self.reading(path)(io::Error::other("it changed while it was read"));
        if size <= PART as u64 {
            let bytes = self.piece(path, 0, size).await?;
            if !digest.matches(&bytes) {
                return Err(changed());
            }
            return self.put(name, bytes, PutMode::Overwrite).await.map(|_| ());
        }
        let upload = self.objects.put_multipart(name).await.map_err(|error| self.failed(&error))?;
        let mut write = WriteMultipart::new_with_chunk_size(upload, PART);
        let (mut hasher, mut at) = (Hasher::new(digest.algorithm()), 0);
        let sent = async {
            while at < size {
                let length = (PART as u64).min(size - at);
                let bytes = self.piece(path, at, length).await?;
                hasher.update(&bytes);
                write.wait_for_capacity(PARTS).await.map_err(|error| self.failed(&error))?;
                write.put(bytes);
                at += length;
            }
            if hasher.finish() == *digest { Ok(()) } else { Err(changed()) }
        };
        match sent.await {
            Ok(()) => write.finish().await.map(|_| ()).map_err(|error| self.failed(&error)),
            Err(error) => {
                // The storage forgets parts without an end by itself, if its owner told it to.
                let _ = write.abort().await;
                Err(error)
            }
        }
    }

    async fn piece(&self, path: &Path, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        use std::os::unix::fs::FileExt as _;
        let failed = self.reading(path);
        let path: PathBuf = path.to_owned();
        let work = tokio::task::spawn_blocking(move || {
            let file = fs_err::File::open(&path)?.into_file();
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            file.read_exact_at(&mut bytes, offset)?;
            Ok::<_, io::Error>(Bytes::from(bytes))
        });
        work.await.map_err(io::Error::other).and_then(|done| done).map_err(failed)
    }
}

fn check(digest: &Digest, actual: Digest) -> Result<(), StoreError> {
    if actual == *digest { Ok(()) } else { Err(StoreError::Mismatch { digest: *digest, actual }) }
}
