//! A directory that keeps blobs and records: the local cache, or one shared between machines.
//!
//! The layout is described in `docs/formats.md`, "Directory store layout". There is no daemon and no index:
//! every file is complete under its name or not there at all, because it is written elsewhere in the same file
//! system and then renamed or linked.
//!
//! Nothing is ever flushed to the disk on purpose. What `kill -9` leaves is whole, since the kernel keeps what
//! was written; what a power loss tears is found by the verification that every read does, and becomes a miss.

mod blobs;
mod documents;
pub(super) mod files;
mod lock;
mod records;
mod verified;
mod work;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use super::{BlobSource, Store, StoreError};
use crate::digest::Digest;
use crate::hint::Hint;
use crate::record::{Bundle, BundleName, Key, Record, Scope};

pub use lock::Lock;
pub(super) use records::{Completeness, scope_directory};
use verified::Verified;
use work::Work;

/// Tells the time. Passed in, so that tests can move it.
pub type Clock = fn() -> SystemTime;

/// What the marker file of a store holds that this program can use.
const FORMAT: &str = "crossdock store 1\n";

/// Files are marked as used when the last mark is older than this: a mark costs a write, and eviction need not
/// know better. Eviction must spare what was marked up to this long before a running build began.
pub(super) const MARK_EVERY: Duration = Duration::from_mins(10);

/// Files up to this size are read on the calling thread where the store is local: that takes some ten
/// microseconds, as much as handing the work to another thread.
const INLINE_MAX: u64 = 64 << 10;

/// Why a directory cannot be used as a store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The marker says something else.
    #[error("{} holds a store of another format: {found:?}", .root.display())]
    Format {
        /// The directory.
        root: PathBuf,
        /// What its marker file says (its first 64 bytes).
        found: String,
    },
    /// It could not be read or made.
    #[error("{} cannot be used as a store", .root.display())]
    Io {
        /// The directory.
        root: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Hint for OpenError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Format { .. } => {
                "a newer version of crossdock made it: update this one, or name another directory".to_owned()
            }
            Self::Io { .. } => {
                "name a directory that can be written to, with `--local-cache` or CROSSDOCK_LOCAL".to_owned()
            }
        })
    }
}

/// A store in a directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DirectoryStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The directory that was named.
    root: PathBuf,
    /// Where everything of this version of the layout is.
    base: PathBuf,
    clock: Clock,
    /// Whether the directory may be far away: then no file is touched on the caller's thread.
    shared: bool,
    work: Work,
    verified: Verified,
}

impl DirectoryStore {
    /// Opens the local cache in `root`, making it if there is none. Only looks at one file.
    pub fn open(root: impl Into<PathBuf>, clock: Clock) -> Result<Self, OpenError> {
        Self::open_as(&root.into(), clock, false)
    }

    /// Opens a store that is shared between machines and may answer slowly, or never.
    pub fn open_shared(root: impl Into<PathBuf>, clock: Clock) -> Result<Self, OpenError> {
        Self::open_as(&root.into(), clock, true)
    }

    fn open_as(root: &Path, clock: Clock, shared: bool) -> Result<Self, OpenError> {
        let root =
            std::path::absolute(root).map_err(|source| OpenError::Io { root: root.to_owned(), source })?;
        let base = root.join("v1");
        match read_marker(&root) {
            Ok(Some(found)) if found == FORMAT => {}
            Ok(Some(found)) => return Err(OpenError::Format { root, found }),
            Ok(None) => write_marker(&root).map_err(|source| OpenError::Io { root: root.clone(), source })?,
            Err(source) => return Err(OpenError::Io { root, source }),
        }
        let work = Work::new(base.join("tmp"), clock);
        Ok(Self(Arc::new(Inner { root, base, clock, shared, work, verified: Verified::default() })))
    }

    /// The directory that was named when the store was opened.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// A directory below the store for the program's other needs, such as `unpacked`, made if it is missing.
    /// Nothing here removes it or anything in it.
    ///
    /// # Errors
    /// Also if `name` is not a single plain component.
    pub fn state_dir(&self, name: &str) -> Result<PathBuf, StoreError> {
        self.check_name(name)?;
        let path = self.0.base.join("state").join(name);
        fs_err::create_dir_all(&path).map_err(self.failed(|| format!("making the directory {name}")))?;
        Ok(path)
    }

    /// Says that something in a state directory is in use, so that eviction spares it.
    pub fn touch_state(&self, path: &Path) {
        if let Ok(modified) = fs_err::symlink_metadata(path).and_then(|metadata| metadata.modified()) {
            files::mark_used(path, modified, self.now(), MARK_EVERY);
        }
    }

    /// An empty file on the store's file system, removed when the value is dropped, or else at a later start.
    pub fn tmp_file(&self) -> Result<tempfile::NamedTempFile, StoreError> {
        self.0.work.file().map_err(self.failed(|| "making a temporary file".to_owned()))
    }

    /// An empty directory on the store's file system, removed when the value is dropped, or else at a later
    /// start.
    pub fn tmp_dir(&self) -> Result<tempfile::TempDir, StoreError> {
        self.0.work.dir().map_err(self.failed(|| "making a temporary directory".to_owned()))
    }

    /// Takes the lock `name`, waiting for whoever has it, in this process or another on this machine. Dropping
    /// the future gives up; dropping the guard, or dying, releases the lock.
    pub async fn lock(&self, name: &str) -> Result<Lock, StoreError> {
        lock::wait(|| self.try_lock(name)).await
    }

    /// Takes the lock `name` if nobody has it.
    pub fn try_lock(&self, name: &str) -> Result<Option<Lock>, StoreError> {
        self.check_name(name)?;
        lock::attempt(&self.0.base.join("locks"), name).map_err(self.failed(|| format!("locking {name}")))
    }

    /// Removes what dead processes left in `tmp/`. Runs by itself, in the background, when a process first
    /// writes.
    pub fn sweep_tmp(&self) {
        self.0.work.sweep();
    }

    fn check_name(&self, name: &str) -> Result<(), StoreError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.chars().all(plain) {
            return Ok(());
        }
        let source = io::Error::new(io::ErrorKind::InvalidInput, "not a plain name");
        Err(self.failed(|| format!("using the name {name:?}"))(source))
    }

    /// Makes a [`StoreError`] of an I/O error.
    pub(super) fn failed(&self, action: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> StoreError {
        move |source| StoreError::Io { action: action(), location: self.location(), source }
    }

    /// The layout's own directory.
    pub(super) fn base(&self) -> &Path {
        &self.0.base
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.0.clock)()
    }

    /// When the oldest process that is using the store now began, this one not counted.
    pub(super) fn oldest_user(&self) -> Option<SystemTime> {
        self.0.work.oldest_user()
    }

    /// Says that this process uses the store, so that eviction spares what it has read. Where that cannot be
    /// said, nothing can be evicted either.
    pub(super) fn announce(&self) {
        let _ = self.0.work.path();
    }

    /// Whether a blob's content is right. One that is damaged is moved aside.
    pub(super) async fn verify_blob(&self, digest: &Digest) -> bool {
        let digest = *digest;
        let sound = self.blocking(move |store| {
            let sound = store.is_sound(&digest, &store.blob_path(&digest))?;
            if !sound {
                store.quarantine_blob(&digest);
            }
            Ok(sound)
        });
        sound.await.unwrap_or(false)
    }

    /// Runs file work on a blocking thread.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || work(&store)).await.unwrap_or_else(|error| {
            let source = io::Error::other(error);
            Err(self.failed(|| "working".to_owned())(source))
        })
    }

    /// Runs work on small files: here if the store is local, else on a blocking thread.
    async fn small<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if self.0.shared { self.blocking(work).await } else { work(self) }
    }
}

fn read_marker(root: &Path) -> io::Result<Option<String>> {
    use io::Read as _;
    let file = match files::open(&root.join("format")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(64).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Two processes that do this at once write the same, and each renames a whole file.
fn write_marker(root: &Path) -> io::Result<()> {
    fs_err::create_dir_all(root)?;
    super::replace_file(&root.join("format"), |file| file.write_all(FORMAT.as_bytes()))
}

#[async_trait]
impl Store for DirectoryStore {
    fn location(&self) -> String {
        format!("file://{}", self.0.root.display())
    }

    async fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        let digests = digests.to_vec();
        self.small(move |store| Ok(digests.into_iter().filter(|digest| !store.has_blob(digest)).collect()))
            .await
    }

    async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError> {
        let digest = *digest;
        if !self.0.shared {
            match self.open_blob(&digest) {
                None => return Ok(None),
                Some((file, size)) if size <= INLINE_MAX => {
                    return self.load_blob(&digest, file, size, limit);
                }
                Some(_) => {}
            }
        }
        self.blocking(move |store| match store.open_blob(&digest) {
            None => Ok(None),
            Some((file, size)) => store.load_blob(&digest, file, size, limit),
        })
        .await
    }

    async fn fetch_blob(&self, digest: &Digest, size: u64, destination: &Path) -> Result<bool, StoreError> {
        let (digest, destination) = (*digest, destination.to_owned());
        self.blocking(move |store| store.copy_blob(&digest, size, &destination)).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let digest = *digest;
        self.small(move |store| Ok(store.open_blob(&digest).map(|(_, size)| size))).await
    }

    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        let digest = *digest;
        let is_small = range.end.saturating_sub(range.start) <= INLINE_MAX;
        let read = move |store: &Self| store.load_range(&digest, range);
        if is_small { self.small(read).await } else { self.blocking(read).await }
    }

    async fn write_blob(&self, digest: &Digest, source: BlobSource) -> Result<bool, StoreError> {
        let digest = *digest;
        match source {
            BlobSource::Bytes(bytes) if bytes.len() as u64 <= INLINE_MAX => {
                self.small(move |store| store.put_bytes(&digest, &bytes)).await
            }
            BlobSource::Bytes(bytes) => self.blocking(move |store| store.put_bytes(&digest, &bytes)).await,
            BlobSource::File(path) => self.blocking(move |store| store.put_file(&digest, &path)).await,
        }
    }

    async fn read_record(&self, key: &Key, scopes: &[Scope]) -> Result<Option<Record>, StoreError> {
        let (key, scopes) = (*key, scopes.to_vec());
        self.small(move |store| store.find_record(&key, &scopes, Completeness::Whole)).await
    }

    async fn write_record(&self, record: &Record) -> Result<Record, StoreError> {
        let record = record.clone();
        self.small(move |store| store.put_record(&record, Completeness::Whole)).await
    }

    async fn read_bundle(&self, name: &BundleName, scopes: &[Scope]) -> Result<Option<Bundle>, StoreError> {
        let (name, scopes) = (*name, scopes.to_vec());
        self.small(move |store| store.find_bundle(&name, &scopes)).await
    }

    async fn write_bundle(
        &self,
        name: &BundleName,
        scope: &Scope,
        bundle: &Bundle,
    ) -> Result<(), StoreError> {
        let (name, scope, bundle) = (*name, scope.clone(), bundle.clone());
        self.small(move |store| store.put_bundle(&name, &scope, &bundle)).await
    }
}
