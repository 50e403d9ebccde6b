//! Where everything is kept: one storage, with a part for each tenant and one for the server itself.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::identity::Tenant;
use super::measured::{Measured, StorageFigures};
use crate::store::{
    Backend, Clock, DirectoryStore, MemoryStore, ObjectStore, OpenError, Store as _, StoreError,
};

/// How many tenants are kept open. What is beyond is opened again when it is needed.
const OPEN_MAX: usize = 1024;

/// What kind of storage, and where.
#[derive(Debug, Clone)]
pub enum StorageKind {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A bucket, or a part of one.
    Objects(ObjectStore),
    /// Nothing that lasts.
    Memory,
}

/// The storage. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Storage(Arc<Inner>);

struct Inner {
    kind: StorageKind,
    clock: Clock,
    system: Arc<dyn Backend>,
    /// Files that are not finished are here, best on the file system of the storage.
    spool: DirectoryStore,
    tenants: Mutex<HashMap<Tenant, Arc<dyn Backend>>>,
    /// Set where somebody wants to know what it does.
    figures: OnceLock<StorageFigures>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Storage {
    /// Opens it. Unfinished files go to `spool` where the storage has no place for them.
    pub fn open(kind: StorageKind, spool: PathBuf, clock: Clock) -> Result<Self, OpenError> {
        let (system, spool): (Arc<dyn Backend>, _) = match &kind {
            StorageKind::Directory(root) => {
                let system = DirectoryStore::open(root.join("system"), clock)?;
                (Arc::new(system.clone()), system)
            }
            StorageKind::Objects(objects) => {
                (Arc::new(objects.below("system")), DirectoryStore::open(spool, clock)?)
            }
            StorageKind::Memory => (Arc::new(MemoryStore::new()), DirectoryStore::open(spool, clock)?),
        };
        Ok(Self(Arc::new(Inner {
            kind,
            clock,
            system,
            spool,
            tenants: Mutex::default(),
            figures: OnceLock::new(),
        })))
    }

    /// Counts what it does from now on in these figures, unless it does so in others.
    pub(super) fn measure(&self, figures: StorageFigures) {
        if self.0.figures.set(figures).is_ok() {
            // What was opened before is opened again, and measured; what is in memory only has to stay.
            if !matches!(self.0.kind, StorageKind::Memory) {
                self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
        }
    }

    fn measured(&self, backend: Arc<dyn Backend>) -> Arc<dyn Backend> {
        match self.0.figures.get() {
            Some(figures) => Arc::new(Measured::new(backend, figures.clone())),
            None => backend,
        }
    }

    /// The part that belongs to the server: tokens.
    pub fn system(&self) -> Arc<dyn Backend> {
        self.measured(Arc::clone(&self.0.system))
    }

    /// The directories whose file systems may be full, and what they are for.
    pub(super) fn disks(&self) -> Vec<(&'static str, PathBuf)> {
        let spool = ("spool", self.0.spool.root().to_owned());
        match &self.0.kind {
            StorageKind::Directory(root) => vec![("storage", root.clone()), spool],
            StorageKind::Objects(_) | StorageKind::Memory => vec![spool],
        }
    }

    /// The part of a tenant, made if it is new.
    pub fn tenant(&self, tenant: &Tenant) -> Result<Arc<dyn Backend>, OpenError> {
        let mut tenants = self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backend) = tenants.get(tenant) {
            return Ok(Arc::clone(backend));
        }
        let backend: Arc<dyn Backend> = match &self.0.kind {
            StorageKind::Directory(root) => {
                Arc::new(DirectoryStore::open(root.join("tenants").join(tenant.as_str()), self.0.clock)?)
            }
            StorageKind::Objects(objects) => Arc::new(objects.below(&format!("tenants/{tenant}"))),
            StorageKind::Memory => Arc::new(MemoryStore::new()),
        };
        let backend = self.measured(backend);
        // What is in memory only must stay.
        if tenants.len() >= OPEN_MAX && !matches!(self.0.kind, StorageKind::Memory) {
            tenants.clear();
        }
        tenants.insert(tenant.clone(), Arc::clone(&backend));
        Ok(backend)
    }

    /// The tenants that have anything, in the order of their names.
    pub async fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let names = match &self.0.kind {
            StorageKind::Directory(root) => {
                let directory = root.join("tenants");
                let failed = |source| StoreError::Io {
                    action: "listing the tenants".to_owned(),
                    location: self.location(),
                    source,
                };
                match fs_err::read_dir(&directory) {
                    Ok(entries) => entries
                        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                        .collect::<Vec<_>>(),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
                    Err(error) => return Err(failed(error)),
                }
            }
            StorageKind::Objects(objects) => objects.below("tenants").parts().await?,
            StorageKind::Memory => Vec::new(),
        };
        let mut tenants: Vec<Tenant> = names.iter().filter_map(|name| name.parse().ok()).collect();
        tenants.sort_unstable();
        Ok(tenants)
    }

    /// Where files are that are not finished.
    pub(super) fn spool(&self) -> &DirectoryStore {
        &self.0.spool
    }

    /// What it is, for people.
    pub fn location(&self) -> String {
        match &self.0.kind {
            StorageKind::Directory(root) => format!("file://{}", root.display()),
            StorageKind::Objects(objects) => objects.location(),
            StorageKind::Memory => "memory".to_owned(),
        }
    }
}
