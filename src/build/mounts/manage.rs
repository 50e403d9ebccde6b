//! Cache mounts without a build: which there are, what is in them, and taking it out or putting it in.

use std::io::{BufWriter, Read, Write};
use std::time::Instant;

use flate2::write::GzEncoder;
use tokio::runtime::Handle;

use super::commit::{Sink, Taken, hours, keep};
use super::head::{self, Head};
use super::tar;
use super::{CacheMountStores, MountName};
use crate::build::engine::Engine;
use crate::build::error::BuildError;
use crate::build::export::{describe, write_to};
use crate::build::layers::Layers;
use crate::build::options::Destination;
use crate::digest::Digest;
use crate::image::time;
use crate::layer::{Encoding, Timestamp};
use crate::record::{BundleName, Preimage, Record, Scope, Value};
use crate::registry::BoxError;
use crate::snapshot::{ChunkIndex, Entry, Ledger, Writer};
use crate::store::Origin;

/// Threads that compress what is imported.
const THREADS: usize = 2;

/// What zstd itself does unasked.
const ZSTD_LEVEL: i32 = 3;

/// A cache mount that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMount {
    /// The id that steps name it by, with the namespace before it.
    pub id: String,
    /// What it is found by: mounts that began with different files may have one id.
    pub name: Digest,
    /// The trust domain that wrote it.
    pub scope: Scope,
    /// Files in it that are not empty.
    pub files: u64,
    /// Bytes in them.
    pub size: u64,
    /// When it was changed last.
    pub changed: Timestamp,
    /// Whether the shared cache lists it.
    pub is_shared: bool,
    /// Whether this machine does.
    pub is_here: bool,
}

/// What is in a cache mount.
#[derive(Debug)]
pub struct CacheMountContent {
    /// Everything in it, parents first; the root directory has the empty path.
    pub entries: Vec<Entry>,
    /// How many packs have its files.
    pub packs: usize,
    /// Bytes of these, compressed.
    pub stored: u64,
    /// How many paths it is known of what they were when steps used it.
    pub remembered: usize,
    head: Head,
}

impl CacheMount {
    fn listed(record: &Record, origin: &Origin) -> Option<Self> {
        let (Value::Text(id), Value::Digest(name)) =
            (record.preimage.get("id")?, record.preimage.get("name")?)
        else {
            return None;
        };
        let number = |field| match record.preimage.get(field) {
            Some(Value::Uint(number)) => *number,
            _ => 0,
        };
        Some(Self {
            id: id.clone(),
            name: *name,
            scope: record.scope.clone(),
            files: number("files"),
            size: number("size"),
            changed: record.created,
            is_shared: matches!(origin, Origin::Remote(_)),
            is_here: matches!(origin, Origin::Local),
        })
    }
}

impl Engine {
    /// All cache mounts that are known, the latest first.
    pub async fn cache_mounts(&self) -> Vec<CacheMount> {
        let mut mounts: Vec<CacheMount> = Vec::new();
        for (origin, bundle) in self.cache.bundles(&BundleName::cache_mounts(), self.cache.scopes()).await {
            for mount in bundle.steps.iter().filter_map(|step| CacheMount::listed(&step.record, &origin)) {
                match mounts.iter_mut().find(|known| known.name == mount.name && known.scope == mount.scope) {
                    None => mounts.push(mount),
                    Some(known) => {
                        let (is_shared, is_here) =
                            (known.is_shared || mount.is_shared, known.is_here || mount.is_here);
                        if mount.changed > known.changed {
                            *known = mount;
                        }
                        (known.is_shared, known.is_here) = (is_shared, is_here);
                    }
                }
            }
        }
        let mut over = Vec::new();
        for (number, mount) in mounts.iter().enumerate().filter(|(_, mount)| !mount.is_shared) {
            if self.is_over(mount).await {
                over.push(number);
            }
        }
        for number in over.into_iter().rev() {
            mounts.remove(number);
        }
        mounts.sort_by(|a, b| b.changed.cmp(&a.changed).then_with(|| a.id.cmp(&b.id)));
        mounts
    }

    /// Whether a mount that only this machine's list has was emptied by another one.
    async fn is_over(&self, mount: &CacheMount) -> bool {
        let scope = std::slice::from_ref(&mount.scope);
        let heads = self.cache.bundles(&BundleName::cache_mount(&mount.name), scope).await;
        let heads = heads.iter().flat_map(|(_, bundle)| &bundle.steps).map(|step| &step.record);
        heads.max_by_key(|record| record.created).is_some_and(|latest| latest.parts.is_empty())
    }

    /// What a step would find in a mount now; `None` if that is nothing.
    pub async fn cache_mount(&self, name: &Digest) -> Option<CacheMountContent> {
        let record = self.cache.head(&BundleName::cache_mount(name), true).await?;
        let head = Head::read(self, &record).await?;
        Some(CacheMountContent {
            entries: head.snapshot.entries.clone(),
            packs: head.snapshot.packs.len(),
            stored: head.snapshot.packs.iter().map(|pack| pack.size).sum(),
            remembered: head.ledger.sights.len(),
            head,
        })
    }

    /// Empties a mount, here and in the shared cache, in the scope that is written. Other machines that have it find it empty
    /// too: what makes it so is later than what they have.
    ///
    /// # Errors
    /// Only what is wrong with the local store.
    pub async fn remove_cache_mount(&self, mount: &CacheMount) -> Result<(), BuildError> {
        let failed = |error| BuildError::cache("removing a cache mount", error);
        let now = self.after_all_heads(&mount.name).await;
        let mut preimage = Preimage::default();
        preimage
            .add("kind", "cache-mount-removed")
            .add("id", mount.id.as_str())
            .add("name", mount.name)
            .add("removed", time::format(now));
        let record = self.record(preimage, Vec::new(), Digest::of(""), now, Instant::now());
        let place = BundleName::cache_mount(&mount.name);
        self.cache.publish_head(&place, record, true).await.map_err(failed)?;
        super::commit::unlist(self, &mount.name).await.map_err(failed)
    }

    /// The time; but later than all heads of a mount, whatever clocks these have their times from.
    async fn after_all_heads(&self, name: &Digest) -> Timestamp {
        let scope = std::slice::from_ref(self.cache.write_scope());
        let heads = self.cache.bundles(&BundleName::cache_mount(name), scope).await;
        let heads = heads.iter().flat_map(|(_, bundle)| &bundle.steps);
        let latest = heads.map(|step| step.record.created).max();
        let after = |time: Timestamp| Timestamp { seconds: time.seconds.saturating_add(1), nanos: 0 };
        self.now().max(latest.map(after).unwrap_or_default())
    }

    /// Writes what is in a mount as a tar, compressed with gzip or zstd or not. A file is written as a whole, or not at all.
    ///
    /// # Errors
    /// If something in it is gone, or the tar cannot be written.
    pub async fn export_cache_mount(
        &self,
        content: CacheMountContent,
        destination: &Destination,
        encoding: Encoding,
    ) -> Result<(), BuildError> {
        let layers = Layers::new(self)?;
        let shown = head::tree_of(&content.head.snapshot);
        let (tree, files) = shown.map_err(|error| BuildError::cache("reading a cache mount", error))?;
        let contents = head::contents(&layers, Some(&content.head), files);
        let name = describe(destination);
        let destination = destination.clone();
        self.blocking(move || {
            let write = |out: &mut dyn Write| -> Result<(), BoxError> {
                let snapshot = &content.head.snapshot;
                match encoding {
                    Encoding::Gzip => {
                        let out = GzEncoder::new(out, flate2::Compression::default());
                        tar::write(&tree, snapshot, &contents, out)?.finish()?.flush()?;
                    }
                    Encoding::Zstd => {
                        let out = zstd::Encoder::new(out, ZSTD_LEVEL)?;
                        tar::write(&tree, snapshot, &contents, out)?.finish()?.flush()?;
                    }
                    _ => drop(tar::write(&tree, snapshot, &contents, BufWriter::new(out))?),
                }
                Ok(())
            };
            let written = write_to(&destination, write);
            // A loss is no fault of the destination's.
            match contents.failure() {
                Some(lost) => Err(lost.clone().into()),
                None => {
                    written.map_err(|source| BuildError::Export { destination: name, source, hint: None })
                }
            }
        })
        .await
    }

    /// Makes a tar, compressed or not, the content of the mount with this id, or with this name if it is known. Returns how
    /// many files that are not empty are in it, and how many bytes these have.
    ///
    /// # Errors
    /// If it is no tar, or one that could not be unpacked into a directory. The mount is as it was then.
    pub async fn import_cache_mount(
        &self,
        id: &str,
        known: Option<&CacheMount>,
        input: impl Read + Send + 'static,
    ) -> Result<(u64, u64), BuildError> {
        let name = match known {
            Some(known) => MountName { id: known.id.clone(), digest: known.name },
            None => MountName::new("", id, None),
        };
        let (engine, handle) = (self.clone(), Handle::current());
        self.blocking(move || {
            let sink = Sink { engine: &engine, handle: &handle };
            let mut writer = Writer::new(Vec::new(), ChunkIndex::default(), THREADS, sink);
            let now = engine.now();
            let items = tar::read(input, &mut writer, now, hours(now)).map_err(|error| {
                let action = "reading the tar".to_owned();
                BuildError::Context { action, source: Box::new(error), hint: None }
            })?;
            // Nobody knows what the files were made from.
            let ledger = Ledger { is_partial: true, ..Ledger::default() };
            let now = handle.block_on(engine.after_all_heads(&name.digest));
            let taken = Taken { name: &name, items, ledger, index: Vec::new(), now };
            keep(&engine, &handle, taken, writer, CacheMountStores::Remote, true)
        })
        .await
    }
}
