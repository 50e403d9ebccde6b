//! The snapshot that a mount begins with.

use std::sync::Arc;
use std::time::Duration;

use super::{CacheMountStores, MountName};
use crate::build::contents::PackContents;
use crate::build::engine::Engine;
use crate::digest::Digest;
use crate::layer::{self, Timestamp, Toc};
use crate::record::{BundleName, Key, Record};
use crate::snapshot::{EntryKind, Extent, LEDGER_BYTES_MAX, Ledger, SNAPSHOT_BYTES_MAX, Snapshot};
use crate::tree::{Tree, TreeError};

/// Clocks of machines that have a common one differ by less than this; so long is waited.
const SKEW_WAITED: Duration = Duration::from_secs(2);

/// Between the latest time in a mount and the beginning of a step that uses it. The kernel's clock for files is up to
/// 10 ms behind.
const GAP: Duration = Duration::from_millis(40);

/// A snapshot as it was found.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) key: Key,
    pub(super) snapshot: Snapshot,
    pub(super) ledger: Ledger,
    /// Nothing in it is later, nor was anything shown with a later time.
    pub(super) horizon: Timestamp,
}

impl Head {
    /// Finds the head of a mount. Whatever is wrong with it is as if there were none.
    pub(super) async fn find(engine: &Engine, stores: CacheMountStores, name: &MountName) -> Option<Self> {
        let asks_remote = match stores {
            CacheMountStores::Off => return None,
            CacheMountStores::Local => false,
            CacheMountStores::Remote => true,
        };
        let record = engine.cache.head(&BundleName::cache_mount(&name.digest), asks_remote).await?;
        if record.parts.is_empty() {
            // It was emptied.
            return None;
        }
        let head = Self::read(engine, &record).await;
        if head.is_none() {
            // It is not asked for again in this build.
            engine.cache.lose(&record.tree, &[record.key()]);
        }
        head
    }

    pub(super) async fn read(engine: &Engine, record: &Record) -> Option<Self> {
        let [toc, ledger, ..] = record.parts[..] else { return None };
        let (toc, ledger) = futures_util::future::join(
            engine.cache.read_blob(&toc, SNAPSHOT_BYTES_MAX),
            engine.cache.read_blob(&ledger, LEDGER_BYTES_MAX),
        )
        .await;
        let (toc, ledger) = (toc?, ledger?);
        let snapshot = Snapshot::decode(&toc).ok()?;
        let ledger = Ledger::decode(&ledger).ok()?;
        let times = snapshot.entries.iter().map(|entry| entry.metadata.mtime);
        let shown = ledger.sights.values().map(|sight| sight.time);
        let horizon = times.chain(shown).max().unwrap_or_default();
        Some(Self { key: record.key(), snapshot, ledger, horizon })
    }

    /// Makes sure that nothing in the mounts of one step is later than a step that begins now: another machine's clock may be
    /// ahead of this one's. A short time is waited; else everything is moved into the past by as much, so that what was older
    /// stays older.
    pub(super) async fn be_past(mut heads: Vec<&mut Self>, now: impl Fn() -> Timestamp) {
        let Some(latest) = heads.iter().map(|head| nanos(head.horizon)).max() else { return };
        let ahead = latest + GAP.as_nanos().cast_signed() - nanos(now());
        match u64::try_from(ahead) {
            Err(_) | Ok(0) => {}
            Ok(ahead) if Duration::from_nanos(ahead) <= SKEW_WAITED => {
                tokio::time::sleep(Duration::from_nanos(ahead)).await;
            }
            Ok(ahead) => {
                let seconds = i64::try_from(Duration::from_nanos(ahead).as_secs() + 1).unwrap_or(0);
                for head in &mut heads {
                    head.shift(-seconds);
                }
            }
        }
    }

    fn shift(&mut self, seconds: i64) {
        for entry in &mut self.snapshot.entries {
            let time = &mut entry.metadata.mtime;
            time.seconds = time.seconds.saturating_add(seconds);
        }
        self.ledger.shift(seconds);
        self.horizon.seconds = self.horizon.seconds.saturating_add(seconds);
    }
}

fn nanos(time: Timestamp) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
}

/// What a snapshot looks like, and where the contents of its files are: their numbers are in the origins of the nodes.
///
/// # Errors
/// None that a valid snapshot could lead to: its rules are stricter than a layer's.
pub(super) fn tree_of(snapshot: &Snapshot) -> Result<(Tree, Vec<Vec<Extent>>), TreeError> {
    let mut files = Vec::new();
    let entries = snapshot.entries.iter().map(|entry| {
        let kind = match &entry.kind {
            EntryKind::Directory => layer::EntryKind::Directory { opaque: false, implied: false },
            EntryKind::File { size, extents } => {
                let offset = PackContents::origin(files.len());
                files.push(extents.clone());
                // Nobody asks for it: what is in a mount is no input of a step.
                layer::EntryKind::File { size: *size, content: Digest::of(""), offset }
            }
            EntryKind::HardLink { target } => layer::EntryKind::HardLink { target: target.clone() },
            EntryKind::Symlink { target } => layer::EntryKind::Symlink { target: target.clone() },
            EntryKind::CharDevice { major, minor } => {
                layer::EntryKind::CharDevice { major: *major, minor: *minor }
            }
            EntryKind::BlockDevice { major, minor } => {
                layer::EntryKind::BlockDevice { major: *major, minor: *minor }
            }
            EntryKind::Fifo => layer::EntryKind::Fifo,
        };
        layer::Entry { path: entry.path.clone(), metadata: entry.metadata.clone(), kind }
    });
    let toc = Toc { entries: entries.collect(), frames: Vec::new() };
    let mut tree = Tree::empty();
    tree.apply(0, &toc)?;
    Ok((tree, files))
}

/// The contents of a snapshot.
pub(super) fn contents(
    layers: &crate::build::layers::Layers,
    head: Option<&Head>,
    files: Vec<Vec<Extent>>,
) -> Arc<PackContents> {
    let packs = head.map_or(&[][..], |head| &head.snapshot.packs);
    let key = head.map_or_else(|| Key(Digest::of("")), |head| head.key);
    Arc::new(PackContents::new(layers.pool(), packs, files, key))
}
