//! Blobs in a directory store.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{DirectoryStore, MARK_EVERY, files};
use crate::digest::{Digest, Hasher, Verifying};
use crate::store::{BlobFile, StoreError};

/// How much is copied and hashed at a time.
const PIECE: usize = 256 << 10;

impl DirectoryStore {
    /// Where the blob is, if it is there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.base().join("blobs");
        path.extend([digest.algorithm().name(), &hex[..2], &hex]);
        path
    }

    /// Opens a blob and says its size in bytes; `None` if it is not there. The content is *not* verified: who
    /// reads it must do that, and call [`DirectoryStore::quarantine_blob`] if it is damaged.
    pub fn open_blob(&self, digest: &Digest) -> Option<(fs_err::File, u64)> {
        let path = self.blob_path(digest);
        let file = files::open(&path).ok()?;
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        self.mark_used(&path, &metadata);
        Some((file, metadata.len()))
    }

    /// Marks the blob at `path` as used, unless that was done lately.
    fn mark_used(&self, path: &Path, metadata: &std::fs::Metadata) {
        if let Ok(modified) = metadata.modified() {
            files::mark_used(path, modified, self.now(), MARK_EVERY);
        }
    }

    /// A blob as a file, and whether it was verified lately.
    pub(super) fn blob_file(&self, digest: &Digest) -> Result<Option<BlobFile>, StoreError> {
        let Some((file, _)) = self.open_blob(digest) else { return Ok(None) };
        let file = file.into_file();
        // After it was marked as used, which is a change.
        let opened = file.metadata().map_err(self.failed(|| format!("opening blob {digest}")))?;
        let is_verified = self.0.verified.contains(digest, &opened, self.now());
        Ok(Some(BlobFile { file, opened, is_verified }))
    }

    /// Takes note that the whole content of `blob` was found right.
    pub(super) fn note_verified(&self, digest: &Digest, blob: &BlobFile) {
        if let Ok(after) = blob.file.metadata() {
            self.0.verified.remember(digest, &blob.opened, &after, self.now());
        }
    }

    /// Makes the file at `path`, which the caller has just written on the store's file system (best:
    /// [`DirectoryStore::tmp_file`]) and found to have this digest, a blob. The file is gone afterwards; `true`
    /// if the blob was not there before.
    pub fn adopt_blob(&self, path: &Path, digest: &Digest) -> Result<bool, StoreError> {
        let failed = || format!("storing blob {digest}");
        let size = fs_err::metadata(path).map_err(self.failed(failed))?.len();
        if self.is_stored(digest, size) {
            fs_err::remove_file(path).map_err(self.failed(failed))?;
            return Ok(false);
        }
        let name = self.blob_path(digest);
        self.place(path, &name).map_err(self.failed(failed))?;
        if let Ok(placed) = fs_err::metadata(&name) {
            self.0.verified.remember_new(digest, &placed, self.now());
        }
        Ok(true)
    }

    /// Stores bytes as a blob; returns their digest.
    pub fn store_bytes(&self, bytes: impl Into<Bytes>) -> Result<Digest, StoreError> {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.put_bytes(&digest, &bytes)?;
        Ok(digest)
    }

    /// Moves a blob that was found damaged aside, so that it is absent and can be written again.
    pub fn quarantine_blob(&self, digest: &Digest) {
        self.quarantine(&self.blob_path(digest));
    }

    /// Gives the file at `path` its name in the store. Whoever made a directory of that name, it is nothing of the store's.
    pub(super) fn place(&self, path: &Path, name: &Path) -> io::Result<()> {
        let publish = || files::with_parent(name, || fs_err::rename(path, name));
        match publish() {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                self.quarantine(name);
                publish()
            }
            other => other,
        }
    }

    /// Moves a damaged file aside. Best effort: in a read-only store it stays, and stays a miss.
    pub(in crate::store) fn quarantine(&self, path: &Path) {
        let Some(name) = path.file_name() else { return };
        // One place for each name: a file that is damaged again and again does not fill the disk.
        let aside = self.base().join("quarantine").join(name);
        let _ = files::with_parent(&aside, || fs_err::rename(path, &aside));
    }

    pub(super) fn has_blob(&self, digest: &Digest) -> bool {
        fs_err::metadata(self.blob_path(digest)).is_ok_and(|metadata| metadata.is_file())
    }

    /// Whether a blob is there with the right size, and marks it as used: whoever is about to store it relies on
    /// its staying. One of another size is damaged, and moved aside.
    pub(in crate::store) fn is_stored(&self, digest: &Digest, size: u64) -> bool {
        let path = self.blob_path(digest);
        // Nothing is opened: that there is no descriptor left would look as if there were no blob.
        let Some(metadata) = fs_err::metadata(&path).ok().filter(std::fs::Metadata::is_file) else {
            return false;
        };
        self.mark_used(&path, &metadata);
        if metadata.len() != size {
            self.quarantine_blob(digest);
            return false;
        }
        true
    }

    /// Reads a blob that was opened, verifying it.
    pub(super) fn load_blob(
        &self,
        digest: &Digest,
        file: fs_err::File,
        size: u64,
        limit: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        if size > limit {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        match Verifying::new(file, *digest, size).read_to_end(&mut bytes) {
            Ok(_) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.quarantine_blob(digest);
                Ok(None)
            }
            Err(error) => Err(self.failed(|| format!("reading blob {digest}"))(error)),
        }
    }

    /// Reads a part of a blob, as far as it goes.
    pub(super) fn load_range(&self, digest: &Digest, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        use std::os::unix::fs::FileExt as _;
        let Some((file, size)) = self.open_blob(digest) else { return Ok(None) };
        let end = range.end.min(size);
        let length = usize::try_from(end.saturating_sub(range.start)).unwrap_or(0);
        let mut bytes = vec![0; length];
        let file = file.into_file();
        match file.read_exact_at(&mut bytes, range.start) {
            Ok(()) => Ok(Some(bytes.into())),
            // Cut off while it was read: damaged, and found so by whoever puts the parts together.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(self.failed(|| format!("reading blob {digest}"))(error)),
        }
    }

    /// Copies a blob to `destination`, verifying it.
    pub(super) fn copy_blob(
        &self,
        digest: &Digest,
        size: u64,
        destination: &Path,
    ) -> Result<bool, StoreError> {
        let Some((mut file, found)) = self.open_blob(digest) else { return Ok(false) };
        if found != size {
            self.quarantine_blob(digest);
            return Ok(false);
        }
        let failed = || format!("copying blob {digest} to {}", destination.display());
        let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut copy = files::new_file_in(parent.unwrap_or(Path::new("."))).map_err(self.failed(failed))?;
        let actual = copy_hashing(&mut file, copy.as_file_mut(), Hasher::new(digest.algorithm()));
        if actual.map_err(self.failed(failed))? != (*digest, size) {
            self.quarantine_blob(digest);
            return Ok(false);
        }
        copy.persist(destination).map_err(|error| self.failed(failed)(error.error))?;
        Ok(true)
    }

    pub(super) fn put_bytes(&self, digest: &Digest, bytes: &Bytes) -> Result<bool, StoreError> {
        if self.is_stored(digest, bytes.len() as u64) {
            return Ok(false);
        }
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(bytes);
        check(digest, hasher.finish())?;
        let mut file = self.tmp_file()?;
        file.write_all(bytes).map_err(self.failed(|| format!("writing blob {digest}")))?;
        self.adopt_blob(file.path(), digest)
    }

    pub(super) fn put_file(&self, digest: &Digest, path: &Path) -> Result<bool, StoreError> {
        let failed = || format!("storing blob {digest} from {}", path.display());
        let mut source = files::open(path).map_err(self.failed(failed))?;
        if self.is_stored(digest, source.metadata().map_err(self.failed(failed))?.len()) {
            return Ok(false);
        }
        let hasher = Hasher::new(digest.algorithm());
        // A link to the very file that was opened, so that it is what is hashed, whatever happens to its name.
        let link = self.0.work.path().map_err(self.failed(failed))?.join(digest.hex());
        let linked = {
            use std::os::fd::AsRawFd as _;
            let opened = format!("/proc/self/fd/{}", source.as_raw_fd());
            let flags = rustix::fs::AtFlags::SYMLINK_FOLLOW;
            rustix::fs::linkat(rustix::fs::CWD, opened, rustix::fs::CWD, &link, flags)
        };
        if linked.is_ok() {
            let link = tempfile::TempPath::try_from_path(&link).map_err(self.failed(failed))?;
            let (actual, _) =
                copy_hashing(&mut source, &mut io::sink(), hasher).map_err(self.failed(failed))?;
            check(digest, actual)?;
            return self.adopt_blob(&link, digest);
        }
        let mut copy = self.tmp_file()?;
        let (actual, _) =
            copy_hashing(&mut source, copy.as_file_mut(), hasher).map_err(self.failed(failed))?;
        check(digest, actual)?;
        self.adopt_blob(copy.path(), digest)
    }

    /// Whether the blob's content is what its name says. Moves nothing.
    pub(in crate::store) fn is_sound(&self, digest: &Digest, path: &Path) -> Result<bool, StoreError> {
        let failed = || format!("verifying blob {digest}");
        let mut file = files::open(path).map_err(self.failed(failed))?;
        let hasher = Hasher::new(digest.algorithm());
        let (actual, _) = copy_hashing(&mut file, &mut io::sink(), hasher).map_err(self.failed(failed))?;
        Ok(actual == *digest)
    }
}

fn check(digest: &Digest, actual: Digest) -> Result<(), StoreError> {
    if actual == *digest { Ok(()) } else { Err(StoreError::Mismatch { digest: *digest, actual }) }
}

/// Copies everything; returns its digest and length.
fn copy_hashing(from: &mut impl Read, to: &mut impl Write, mut hasher: Hasher) -> io::Result<(Digest, u64)> {
    let mut buffer = vec![0; PIECE];
    let mut length = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), length)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
        length += read as u64;
    }
}
