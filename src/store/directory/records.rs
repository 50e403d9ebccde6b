//! Records and bundles in a directory store.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::{DirectoryStore, MARK_EVERY, files};
use crate::record::{BUNDLE_BYTES_MAX, Bundle, BundleName, Key, RECORD_BYTES_MAX, Record, Scope};
use crate::store::StoreError;

/// How often a record is written again because the one in its place turned out to be damaged.
const ATTEMPTS: u32 = 3;

/// What of a record must be there for it to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Completeness {
    /// Every blob.
    Whole,
    /// The TOCs: the layers, and parts, are in a remote store.
    Tocs,
}

impl DirectoryStore {
    pub(in crate::store) fn find_record(
        &self,
        key: &Key,
        scopes: &[Scope],
        completeness: Completeness,
    ) -> Result<Option<Record>, StoreError> {
        for scope in scopes {
            let path = self.record_path(key, scope);
            if let Some(record) = self.load_record(&path, key, scope)?
                && self.lacks(&record, completeness).is_none()
            {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Stores a record unless there is one already, and returns the one that is there then.
    pub(in crate::store) fn put_record(
        &self,
        record: &Record,
        completeness: Completeness,
    ) -> Result<Record, StoreError> {
        let key = record.key();
        let file = self.new_record(record, &key, completeness)?;
        let path = self.record_path(&key, &record.scope);
        let failed = || format!("storing the record {key}");
        for _ in 0..ATTEMPTS {
            let first = files::with_parent(&path, || files::publish_first(file.path(), &path));
            if first.map_err(self.failed(failed))? {
                return Ok(record.clone());
            }
            // One that is damaged is aside now, and the name free.
            let Some(existing) = self.load_record(&path, &key, &record.scope)? else { continue };
            if self.lacks(&existing, completeness).is_none() {
                return Ok(existing);
            }
            break;
        }
        // Evicted in part, or damaged and not to be moved: it is of no use to anybody.
        self.place(file.path(), &path).map_err(self.failed(failed))?;
        Ok(record.clone())
    }

    /// Stores a record in the place of any that is there.
    pub(in crate::store) fn replace_record(
        &self,
        record: &Record,
        completeness: Completeness,
    ) -> Result<(), StoreError> {
        let key = record.key();
        let file = self.new_record(record, &key, completeness)?;
        let path = self.record_path(&key, &record.scope);
        self.place(file.path(), &path).map_err(self.failed(|| format!("storing the record {key}")))
    }

    pub(super) fn find_bundle(
        &self,
        name: &BundleName,
        scopes: &[Scope],
    ) -> Result<Option<Bundle>, StoreError> {
        for scope in scopes {
            let path = self.bundle_path(name, scope);
            let Some(bytes) = self.load(&path, BUNDLE_BYTES_MAX)? else { continue };
            match Bundle::decode(&bytes) {
                Ok(bundle) => return Ok(Some(bundle)),
                Err(_) => self.quarantine(&path),
            }
        }
        Ok(None)
    }

    pub(super) fn put_bundle(
        &self,
        name: &BundleName,
        scope: &Scope,
        bundle: &Bundle,
    ) -> Result<(), StoreError> {
        let failed = || format!("storing the bundle {}", name.0);
        let file = self.new_file(&bundle.encode(), BUNDLE_BYTES_MAX).map_err(self.failed(failed))?;
        let path = self.bundle_path(name, scope);
        self.place(file.path(), &path).map_err(self.failed(failed))
    }

    /// Reads the record at `path`; `None` if there is none, or none that belongs there: that one is moved aside.
    pub(in crate::store) fn load_record(
        &self,
        path: &Path,
        key: &Key,
        scope: &Scope,
    ) -> Result<Option<Record>, StoreError> {
        let Some(bytes) = self.load(path, RECORD_BYTES_MAX)? else { return Ok(None) };
        match Record::decode(&bytes) {
            Ok(record) if record.key() == *key && record.scope == *scope => Ok(Some(record)),
            _ => {
                self.quarantine(path);
                Ok(None)
            }
        }
    }

    /// A blob that the record needs and that is missing, or whose size is wrong.
    pub(in crate::store) fn lacks(
        &self,
        record: &Record,
        completeness: Completeness,
    ) -> Option<crate::digest::Digest> {
        let layer = record.layers.iter().find_map(|layer| {
            if !self.has_blob(&layer.toc) {
                return Some(layer.toc);
            }
            let whole = record.foreign
                || completeness == Completeness::Tocs
                || self.is_stored(&layer.digest, layer.size);
            (!whole).then_some(layer.digest)
        });
        let is_missing =
            |part: &&crate::digest::Digest| completeness == Completeness::Whole && !self.has_blob(part);
        layer.or_else(|| record.parts.iter().find(is_missing).copied())
    }

    /// The layers and parts of a record that are not here, or damaged visibly.
    pub(in crate::store) fn absent_blobs(&self, record: &Record) -> Vec<crate::digest::Digest> {
        let layers = record.own_layers().iter();
        let layers = layers.filter(|layer| !self.is_stored(&layer.digest, layer.size));
        let parts = record.parts.iter().filter(|part| !self.has_blob(part)).copied();
        layers.map(|layer| layer.digest).chain(parts).collect()
    }

    fn new_record(
        &self,
        record: &Record,
        key: &Key,
        completeness: Completeness,
    ) -> Result<tempfile::NamedTempFile, StoreError> {
        if let Some(missing) = self.lacks(record, completeness) {
            return Err(StoreError::Incomplete { key: *key, missing, location: self.0.root_url() });
        }
        self.new_file(&record.encode(), RECORD_BYTES_MAX)
            .map_err(self.failed(|| format!("writing the record {key}")))
    }

    fn new_file(&self, bytes: &[u8], limit: u64) -> io::Result<tempfile::NamedTempFile> {
        if bytes.len() as u64 > limit {
            let message = format!("it has {} bytes, {limit} are allowed", bytes.len());
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        let mut file = self.0.work.file()?;
        file.write_all(bytes)?;
        Ok(file)
    }

    fn load(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let failed = || format!("reading {}", path.display());
        let file = match files::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(failed)(error)),
        };
        let metadata = file.metadata().map_err(self.failed(failed))?;
        if !metadata.is_file() {
            // Not what anybody would write; to who decodes it, it is damaged.
            return Ok(Some(Vec::new()));
        }
        let modified = metadata.modified();
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(self.failed(failed))?;
        if let Ok(modified) = modified {
            files::mark_used(path, modified, self.now(), MARK_EVERY);
        }
        Ok(Some(bytes))
    }

    pub(super) fn record_path(&self, key: &Key, scope: &Scope) -> PathBuf {
        let hex = key.0.hex();
        let mut path = self.base().join("records");
        path.extend([&scope_directory(scope), &hex[..2], &hex]);
        path
    }

    fn bundle_path(&self, name: &BundleName, scope: &Scope) -> PathBuf {
        self.base().join("bundles").join(scope_directory(scope)).join(name.0.hex())
    }
}

impl super::Inner {
    fn root_url(&self) -> String {
        format!("file://{}", self.root.display())
    }
}

/// `/` cannot be in a file name, and `+` cannot be in a scope.
pub(in crate::store) fn scope_directory(scope: &Scope) -> String {
    scope.as_str().replace('/', "+")
}
