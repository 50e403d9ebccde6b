//! What steps left in a mount becomes a snapshot.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;

use super::change::{Item, Items};
use super::live::Live;
use super::times::ABSENT;
use super::{CacheMountStores, Ending, MountName, Saw};
use crate::build::engine::Engine;
use crate::build::error::BuildError;
use crate::digest::Digest;
use crate::event::Event;
use crate::layer::{
    Changed, ChangedKind, DiffOptions, Lower as _, Metadata, Timestamp, open_changed, upper_changes,
};
use crate::record::{Bundle, BundleName, BundleStep, Preimage, Record};
use crate::snapshot::{
    ChunkIndex, EntryKind, INDEX_BYTES_MAX, Ledger, PackSink, Sight, Snapshot, Writer, merge_index,
};
use crate::store::{BlobSource, Store as _, StoreError};
use crate::tree::Look;

/// Threads that compress: the build goes on beside.
const THREADS: usize = 2;

/// Of less than this it is not worth finding out whether it is stored already.
const WORTH_COMPARING: u64 = 1 << 20;

/// As many parts has the list of chunks before they are put together.
const INDEX_PARTS_MAX: usize = 8;

/// More packs than this are put together if they are small.
const PACKS_MAX: usize = 32;

/// A pack that is smaller than this is small: bytes, uncompressed.
const PACK_SMALL: u64 = 1 << 20;

/// So much is written anew at once, so that packs which are mostly dead do not stay for ever.
const REWRITTEN_MAX: u64 = 64 << 20;

/// What was used is noted at least so often, also if nothing was changed: hours.
const USE_NOTED: u32 = 7 * 24;

/// Of the largest size a mount keeps so much when it has become larger: percent.
const KEPT: u64 = 90;

/// Stores what has become of a mount. What goes wrong is said, and the mount is then as it was before.
pub(super) async fn commit(engine: &Engine, live: Arc<Live>, uses: Vec<(Ending, Saw)>) {
    let is_broken = uses.iter().any(|(ending, _)| matches!(ending, Ending::Broken));
    if live.options.stores == CacheMountStores::Off || is_broken || live.failure().is_some() {
        return;
    }
    let name = live.name.clone();
    let handle = Handle::current();
    let committing = {
        let engine = engine.clone();
        move || Committing { engine: &engine, handle: &handle, live: &live }.commit(&uses)
    };
    if let Err(error) = engine.blocking(committing).await {
        let error = crate::hint::with_causes(&error);
        let message = format!("what is new in the cache mount {} is not kept: {error}", name.id);
        engine.events.emit(Event::Warning { message });
    }
}

struct Committing<'c> {
    engine: &'c Engine,
    handle: &'c Handle,
    live: &'c Live,
}

impl Committing<'_> {
    fn commit(&self, uses: &[(Ending, Saw)]) -> Result<(), BuildError> {
        let failed = |error| BuildError::cache("looking at what was changed", error);
        let now = self.engine.now();
        let upper = File::open(&self.live.upper)
            .map_err(|error| BuildError::cache("looking at what was changed", error))?;
        let options = DiffOptions {
            whiteouts: crate::build::layers::whiteouts(self.engine.ownership),
            clamp: Some(now),
            single_id: self.engine.ownership.single_id,
            every_directory: true,
            ..DiffOptions::default()
        };
        let changes = upper_changes(&upper, &*self.live.tree, &options).map_err(failed)?;
        let used = hours(now);
        let looked = self.looked();
        let is_noted = |item: &Item| used.saturating_sub(item.used) < USE_NOTED;
        let mut items = self.live.head.as_ref().map(|head| Items::of(&head.snapshot)).unwrap_or_default();
        let is_changed = changes.iter().any(|change| self.is_change(change));
        if !is_changed && looked.iter().all(|path| items.get(path).is_none_or(is_noted)) {
            return Ok(());
        }
        for path in looked {
            if let Some(item) = items.get_mut(&path) {
                item.used = used;
            }
        }
        let doomed = self.doomed(&items);
        let known = self.known_chunks(&changes, &doomed)?;
        let packs = self.live.head.as_ref().map(|head| head.snapshot.packs.clone()).unwrap_or_default();
        let sink = Sink { engine: self.engine, handle: self.handle };
        let mut writer = Writer::new(packs, known.chunks, THREADS, sink);
        Self::apply(&mut items, changes, &upper, used, &mut writer)?;
        self.rewrite(&mut items, &doomed, &mut writer)?;
        evict(&mut items, self.live.options.size_max);
        let taken =
            Taken { name: &self.live.name, items, ledger: self.ledger(uses, now), index: known.parts, now };
        let sends = uses.iter().all(|(ending, _)| matches!(ending, Ending::Done));
        keep(self.engine, self.handle, taken, writer, self.live.options.stores, sends).map(drop)
    }

    /// The files of the snapshot that somebody looked at.
    fn looked(&self) -> Vec<Vec<u8>> {
        let looks = self.live.traced.looks();
        looks.into_iter().filter(|(_, look)| look.has(Look::NODE)).map(|(path, _)| path).collect()
    }

    /// Whether something is not as it was. A directory also is if something in it came and went.
    fn is_change(&self, change: &Changed) -> bool {
        match change.kind {
            ChangedKind::Directory { opaque: false, .. } => {
                if change.path.is_empty() && self.live.head.is_none() {
                    let Metadata { mode, uid, gid, .. } = change.metadata;
                    return (mode, uid, gid) != self.live.root;
                }
                self.live.tree.directory(&change.path) != Some(&change.metadata)
            }
            _ => true,
        }
    }

    /// Packs that are to be written anew: what is alive of them is less than half, or they are many and small.
    fn doomed(&self, items: &Items) -> HashSet<u32> {
        let Some(head) = &self.live.head else { return HashSet::new() };
        let mut left = REWRITTEN_MAX;
        let too_many = head.snapshot.packs.len() > PACKS_MAX;
        let packs = (0..).zip(head.snapshot.packs.iter().zip(head.snapshot.alive()));
        let mut doomed: HashSet<u32> = packs
            .filter(|(_, (pack, alive))| {
                let is_dead = alive * 2 < pack.raw_size() || too_many && pack.raw_size() < PACK_SMALL;
                is_dead && left.checked_sub(*alive).map(|rest| left = rest).is_some()
            })
            .map(|(number, _)| number)
            .collect();
        // A file is written as a whole, and may have more in other packs.
        let concerned = items.iter().filter(|(_, item)| item.is_in(&doomed));
        let bytes: u64 = concerned.map(|(_, item)| item.size()).sum();
        if bytes > 2 * REWRITTEN_MAX {
            doomed.clear();
        }
        doomed
    }

    /// What is known of the chunks that are stored.
    fn known_chunks(&self, changes: &[Changed], doomed: &HashSet<u32>) -> Result<KnownChunks, BuildError> {
        let Some(head) = &self.live.head else { return Ok(KnownChunks::default()) };
        let size = |change: &Changed| match change.kind {
            ChangedKind::File { size, .. } => size,
            _ => 0,
        };
        let new: u64 = changes.iter().map(size).sum();
        let parts = head.snapshot.index.clone();
        let is_long = parts.len() >= INDEX_PARTS_MAX;
        if new < WORTH_COMPARING && !is_long && doomed.is_empty() {
            return Ok(KnownChunks { parts, ..KnownChunks::default() });
        }
        let read =
            |digest: &Digest| self.handle.block_on(self.engine.cache.read_blob(digest, INDEX_BYTES_MAX));
        // What is not there any more is stored again.
        let bytes: Vec<Vec<u8>> = parts.iter().filter_map(read).map(|bytes| bytes.to_vec()).collect();
        let alive = (0..).zip(&head.snapshot.packs).filter(|(number, _)| !doomed.contains(number));
        let alive: HashSet<Digest> = alive.map(|(_, pack)| pack.digest).collect();
        let merged = merge_index(&bytes, |pack| alive.contains(pack)).map_err(failed_to_store)?;
        let mut chunks = ChunkIndex::default();
        chunks.add_part(&merged).map_err(failed_to_store)?;
        let parts = if is_long || !doomed.is_empty() {
            vec![store(self.engine, self.handle, merged)?]
        } else {
            parts
        };
        Ok(KnownChunks { parts, chunks })
    }

    /// Brings the items up to date with what was changed.
    fn apply(
        items: &mut Items,
        changes: Vec<Changed>,
        upper: &File,
        used: u32,
        writer: &mut Writer<Sink<'_>>,
    ) -> Result<(), BuildError> {
        let mut first_names: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        for Changed { path, metadata, kind } in changes {
            let kind = match kind {
                ChangedKind::Whiteout => {
                    items.remove(&path);
                    continue;
                }
                ChangedKind::Directory { opaque, .. } => {
                    if opaque {
                        items.remove_children(&path);
                    }
                    EntryKind::Directory
                }
                ChangedKind::File { size, inode } => {
                    let first = inode.and_then(|inode| first_names.get(&inode));
                    if let Some(first) = first.and_then(|first| items.link(first)) {
                        items.insert(&path, first);
                        continue;
                    }
                    if let Some(inode) = inode {
                        first_names.insert(inode, path.clone());
                    }
                    let mut content = open_changed(upper, &path)
                        .map_err(|error| BuildError::cache("reading what was changed", error))?;
                    let extents = writer.file(&path, size, &mut content).map_err(failed_to_store)?;
                    EntryKind::File { size, extents }
                }
                ChangedKind::Symlink(target) => EntryKind::Symlink { target },
                ChangedKind::CharDevice(major, minor) => EntryKind::CharDevice { major, minor },
                ChangedKind::BlockDevice(major, minor) => EntryKind::BlockDevice { major, minor },
                ChangedKind::Fifo => EntryKind::Fifo,
            };
            items.insert(&path, Item { metadata, used, kind, group: None });
        }
        Ok(())
    }

    /// Stores the files anew that are in packs which are to go.
    fn rewrite(
        &self,
        items: &mut Items,
        doomed: &HashSet<u32>,
        writer: &mut Writer<Sink<'_>>,
    ) -> Result<(), BuildError> {
        let concerned = items.iter().filter(|(_, item)| item.is_in(doomed));
        let paths: Vec<Vec<u8>> = concerned.map(|(path, _)| path).collect();
        for path in paths {
            let Some(node) = self.live.tree.get(&path).map(|node| node.node.clone()) else { continue };
            let mut reader = self.live.contents.reader(&node);
            let extents = writer.file(&path, node.size(), &mut reader).map_err(failed_to_store)?;
            if let Some(item) = items.get_mut(&path) {
                item.kind = EntryKind::File { size: node.size(), extents };
            }
        }
        Ok(())
    }

    /// What the next steps are to know about times.
    fn ledger(&self, uses: &[(Ending, Saw)], now: Timestamp) -> Ledger {
        let mut ledger = self.live.head.as_ref().map(|head| head.ledger.clone()).unwrap_or_default();
        ledger.is_partial |= self.live.is_seeded;
        let mut before: BTreeMap<&[u8], Sight> = BTreeMap::new();
        for (_, saw) in uses {
            let Saw::Times(times, seen) = saw else {
                ledger.is_partial = true;
                continue;
            };
            times.note(&mut ledger, seen);
            for (path, sight) in &**seen {
                // Two steps at once saw different things: whatever comes next is something else.
                match before.get(&path[..]) {
                    Some(other) if other.identity != sight.identity => {
                        ledger.sights.insert(path.clone(), Sight { identity: ABSENT, time: now });
                    }
                    _ => {
                        before.insert(path, *sight);
                    }
                }
            }
        }
        ledger
    }
}

/// What a mount has become.
pub(super) struct Taken<'t> {
    pub(super) name: &'t MountName,
    pub(super) items: Items,
    pub(super) ledger: Ledger,
    /// The index parts about the packs that were there before.
    pub(super) index: Vec<Digest>,
    pub(super) now: Timestamp,
}

/// Makes it the head of the mount. Returns how many files that are not empty are in it, and how many bytes these have.
pub(super) fn keep(
    engine: &Engine,
    handle: &Handle,
    taken: Taken<'_>,
    writer: Writer<Sink<'_>>,
    stores: CacheMountStores,
    sends: bool,
) -> Result<(u64, u64), BuildError> {
    let Taken { name, items, ledger, mut index, now } = taken;
    let started = Instant::now();
    let store = |bytes: Vec<u8>| store(engine, handle, bytes);
    let written = writer.finish().map_err(failed_to_store)?;
    if let Some(part) = written.index {
        index.push(store(part)?);
    }
    let files = items.iter().filter(|(_, item)| item.size() > 0).count() as u64;
    let size = items.iter().map(|(_, item)| item.size()).sum();
    let mut snapshot = Snapshot { packs: written.packs, index, entries: items.into_entries() };
    snapshot.drop_unused_packs();
    let toc = store(snapshot.encode().map_err(failed_to_store)?)?;
    let ledger = store(ledger.encode().map_err(failed_to_store)?)?;
    let mut preimage = Preimage::default();
    preimage
        .add("kind", "cache-mount")
        .add("id", name.id.as_str())
        .add("name", name.digest)
        .add("snapshot", toc)
        .add("ledger", ledger);
    let record = engine.record(preimage, Vec::new(), toc, now, started);
    let parts = [toc, ledger].into_iter().chain(snapshot.blobs()).collect();
    let record = Record { parts, ..record };
    let sends = sends && stores == CacheMountStores::Remote;
    let published = handle.block_on(async {
        let place = BundleName::cache_mount(&name.digest);
        engine.cache.publish_head(&place, record.clone(), sends).await?;
        list(engine, name, &record, (files, size), sends).await
    });
    published.map_err(|error| BuildError::cache("storing a snapshot", error))?;
    Ok((files, size))
}

fn store(engine: &Engine, handle: &Handle, bytes: Vec<u8>) -> Result<Digest, BuildError> {
    let digest = Digest::of(&bytes);
    let stored = engine.cache.local().write_blob(&digest, BlobSource::Bytes(bytes.into()));
    handle.block_on(stored).map_err(|error| BuildError::cache("storing a snapshot", error))?;
    Ok(digest)
}

#[derive(Default)]
struct KnownChunks {
    /// The blobs that say so.
    parts: Vec<Digest>,
    chunks: ChunkIndex,
}

fn failed_to_store(error: impl std::error::Error + Send + Sync + 'static) -> BuildError {
    BuildError::cache("storing what was changed", error)
}

/// Removes the files that were not used for the longest time, until the rest is small enough.
pub(super) fn evict(items: &mut Items, max: u64) {
    let size = |items: &Items| -> u64 {
        let mut counted = HashSet::new();
        items
            .iter()
            .filter(|(_, item)| item.group.is_none_or(|group| counted.insert(group)))
            .map(|(_, item)| item.size())
            .sum()
    };
    let mut left = size(items);
    if left <= max {
        return;
    }
    let mut files: Vec<(u32, Vec<u8>, u64)> = items
        .iter()
        .filter(|(_, item)| item.size() > 0)
        .map(|(path, item)| (item.used, path, item.size()))
        .collect();
    files.sort();
    let enough = max / 100 * KEPT;
    for (_, path, size) in files {
        if left <= enough {
            return;
        }
        items.remove(&path);
        left = left.saturating_sub(size);
    }
}

/// Puts a mount into the list of all mounts, for people.
async fn list(
    engine: &Engine,
    name: &MountName,
    record: &Record,
    (files, size): (u64, u64),
    sends: bool,
) -> Result<(), StoreError> {
    let mut preimage = Preimage::default();
    preimage
        .add("kind", "cache-mount-listed")
        .add("id", name.id.as_str())
        .add("name", name.digest)
        .add("files", files)
        .add("size", size);
    let listed = Record { preimage, parts: Vec::new(), ..record.clone() };
    let slot = name.digest.hex();
    let change = |bundle: &mut Bundle| {
        bundle.steps.retain(|step| step.slot != slot);
        bundle.steps.insert(0, BundleStep { slot: slot.clone(), record: listed.clone() });
        bundle.steps.truncate(LISTED_MAX);
    };
    change_lists(engine, sends, change).await
}

/// Takes a mount off the list.
pub(super) async fn unlist(engine: &Engine, name: &Digest) -> Result<(), StoreError> {
    let slot = name.hex();
    change_lists(engine, true, |bundle| bundle.steps.retain(|step| step.slot != slot)).await
}

/// Changes this machine's list, and the shared one: each says what is there. Of two builds that do so at once one loses its change,
/// until that mount is used again; the mounts of one build wait for each other.
async fn change_lists(engine: &Engine, sends: bool, change: impl Fn(&mut Bundle)) -> Result<(), StoreError> {
    let _alone = engine.mounts.lists().lock_owned().await;
    let place = BundleName::cache_mounts();
    let scope = engine.cache.write_scope().clone();
    let local = engine.cache.local();
    let mut here = local.read_bundle(&place, std::slice::from_ref(&scope)).await?.unwrap_or_default();
    change(&mut here);
    local.write_bundle(&place, &scope, &here).await?;
    // Without an answer, what is there stays.
    if sends && let Some(there) = engine.cache.remote_bundle(&place, &scope).await {
        let mut there = there.unwrap_or_default();
        change(&mut there);
        engine.cache.send_bundle(&place, &there).await;
    }
    Ok(())
}

/// So many mounts are listed.
const LISTED_MAX: usize = 1000;

/// Puts packs into the local store.
pub(super) struct Sink<'s> {
    pub(super) engine: &'s Engine,
    pub(super) handle: &'s Handle,
}

impl PackSink for Sink<'_> {
    type Out = io::BufWriter<tempfile::NamedTempFile>;

    fn begin(&mut self) -> io::Result<Self::Out> {
        self.engine.cache.local().tmp_file().map(io::BufWriter::new).map_err(io::Error::other)
    }

    fn finish(&mut self, out: Self::Out, digest: &Digest, _: u64) -> io::Result<()> {
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        let source = BlobSource::File(file.path().to_owned());
        let stored = self.engine.cache.local().write_blob(digest, source);
        self.handle.block_on(stored).map(drop).map_err(io::Error::other)
    }
}

/// Hours since the Unix epoch.
pub(super) fn hours(time: Timestamp) -> u32 {
    u32::try_from(time.seconds / 3600).unwrap_or(0)
}
