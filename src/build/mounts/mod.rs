//! Cache mounts: directories that stay from step to step, from build to build, and from machine to machine.
//!
//! What is in one is a *snapshot* in the stores, by the mount's name. A step sees it through the same lazy file system as its
//! root, so that only what it reads is fetched; what it writes is in a directory of this machine while it runs, and becomes
//! part of a new snapshot afterwards, in the background. Steps of one build that share a mount are shown the same directory.
//! Builds that run at the same time do not see each other: the last one to finish says what the next ones find.

mod change;
mod commit;
mod head;
mod live;
mod manage;
mod tar;
#[cfg(test)]
mod tests;
mod times;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;

use super::contents::ContentError;
use super::engine::Engine;
use super::error::BuildError;
use super::inputs::InputTree;
use super::layers::{Layers, lock};
use crate::digest::Digest;
use crate::snapshot::Sight;
use crate::store::Lock;

use head::Head;
pub(crate) use live::{Live, fill};
pub use manage::{CacheMount, CacheMountContent};
pub(crate) use times::{ContentTimes, Known, Place};

/// Where what is in cache mounts is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheMountStores {
    /// In the shared cache, and on this machine.
    #[default]
    Remote,
    /// On this machine.
    Local,
    /// Nowhere: each step finds them empty.
    Off,
}

/// How cache mounts are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheMountOptions {
    /// Where.
    pub stores: CacheMountStores,
    /// How many bytes the files in one may have in all; those that were not used for the longest time go first.
    pub size_max: u64,
    /// Whether steps that use them see times that follow contents.
    pub content_times: bool,
}

impl CacheMountOptions {
    /// More than the caches of most tools, and little enough for a server with many of them.
    pub const SIZE_MAX: u64 = 20 << 30;
}

impl Default for CacheMountOptions {
    fn default() -> Self {
        Self { stores: CacheMountStores::default(), size_max: Self::SIZE_MAX, content_times: true }
    }
}

/// The name of a cache mount.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MountName {
    /// For people: the id, with the namespace before it.
    pub(crate) id: String,
    /// What it is found by.
    pub(crate) digest: Digest,
}

impl MountName {
    /// `origin` is the tree that it is first filled with: one that begins with other files is another one.
    pub(crate) fn new(namespace: &str, id: &str, origin: Option<&Digest>) -> Self {
        let shown = if namespace.is_empty() { id.to_owned() } else { format!("{namespace}/{id}") };
        let origin = origin.map_or_else(String::new, |origin| format!("/{origin}"));
        Self { id: shown, digest: Digest::of(format!("{namespace}/{id}{origin}")) }
    }

    /// One of the copies that steps have which want one of their own.
    pub(crate) fn copy(&self, number: u32) -> Self {
        if number == 0 {
            return self.clone();
        }
        Self {
            id: format!("{} ({number})", self.id),
            digest: Digest::of(format!("{}-{number}", self.digest.hex())),
        }
    }
}

/// What a mount is filled with that nobody has used yet.
#[derive(Debug)]
pub(crate) struct Initial<'i> {
    pub(crate) input: &'i InputTree,
    pub(crate) source: &'i str,
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// A mount that a step is to have.
#[derive(Debug)]
pub(crate) struct Wanted<'i> {
    pub(crate) name: MountName,
    pub(crate) initial: Initial<'i>,
    /// They are kept until what becomes of the mount is stored.
    pub(crate) locks: Vec<Lock>,
}

/// How a step that used a mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Well.
    Done,
    /// Not well: what it left may be of use to the next try on this machine, and to nobody else.
    Failed,
    /// It has seen errors that were not its own: what it left is worth nothing.
    Broken,
}

/// What a step saw outside of its mounts.
#[derive(Debug, Clone)]
pub(crate) enum Saw {
    /// This, with these times.
    Times(Arc<ContentTimes>, Arc<BTreeMap<Vec<u8>, Sight>>),
    /// Nobody knows.
    Unknown,
}

/// The cache mounts of all builds of an engine.
#[derive(Debug, Clone, Default)]
pub(crate) struct CacheMounts(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    slots: HashMap<Digest, Arc<Slot>>,
    commits: Vec<JoinHandle<()>>,
    /// Held by who changes the lists of mounts.
    lists: Arc<tokio::sync::Mutex<()>>,
}

/// One mount.
#[derive(Debug, Default)]
struct Slot {
    /// Held while it is being opened, or kept.
    gate: Arc<tokio::sync::Mutex<()>>,
    open: Mutex<Option<Open>>,
}

/// A mount that steps use.
#[derive(Debug)]
struct Open {
    live: Arc<Live>,
    users: usize,
    uses: Vec<(Ending, Saw)>,
}

/// A step's use of a mount. If it is dropped before its [`Use::end`], the step has come to nothing.
#[derive(Debug)]
pub(crate) struct Use {
    slot: Arc<Slot>,
    live: Arc<Live>,
    has_ended: bool,
}

impl CacheMounts {
    /// Opens the mounts of a step, or joins those who have them open; the result is in the order of `wanted`, in which no name
    /// comes twice.
    pub(crate) async fn open(
        &self,
        engine: &Engine,
        layers: &Layers,
        options: CacheMountOptions,
        wanted: Vec<Wanted<'_>>,
    ) -> Result<Vec<Use>, BuildError> {
        // Whoever wants several wants them in the same order.
        let mut slots = Vec::with_capacity(wanted.len());
        for wanted in &wanted {
            let slot: Arc<Slot> = match options.stores {
                // Nobody else is to see it.
                CacheMountStores::Off => Arc::default(),
                _ => Arc::clone(lock(&self.0).slots.entry(wanted.name.digest).or_default()),
            };
            let alone = Arc::clone(&slot.gate).lock_owned().await;
            slots.push((slot, alone));
        }
        let find = wanted.iter().zip(&slots).map(async |(wanted, (slot, _))| {
            if lock(&slot.open).is_some() {
                None
            } else {
                Head::find(engine, options.stores, &wanted.name).await
            }
        });
        let mut heads = futures_util::future::join_all(find).await;
        Head::be_past(heads.iter_mut().flatten().collect(), || engine.now()).await;
        let mut uses = Vec::with_capacity(slots.len());
        for ((Wanted { name, initial, locks }, head), (slot, _alone)) in
            wanted.into_iter().zip(heads).zip(slots)
        {
            let joined = lock(&slot.open).as_mut().map(|open| {
                open.users += 1;
                Arc::clone(&open.live)
            });
            let live = match joined {
                Some(live) => live,
                None => {
                    let live = Live::open(engine, layers, options, name, head, &initial, locks).await?;
                    let live = Arc::new(live);
                    *lock(&slot.open) = Some(Open { live: Arc::clone(&live), users: 1, uses: Vec::new() });
                    live
                }
            };
            uses.push(Use { slot, live, has_ended: false });
        }
        Ok(uses)
    }

    /// Ends a step's use of a mount. If it was the last one, what the mount has become is stored in the background.
    pub(crate) fn end(&self, engine: &Engine, mut used: Use, ending: Ending, saw: Saw) {
        used.has_ended = true;
        let Some(Open { live, uses, .. }) = used.slot.leave((ending, saw)) else { return };
        let (engine, slot) = (engine.clone(), Arc::clone(&used.slot));
        drop(used);
        // Whoever opens it next is to find what is being stored: the gate is closed before anybody else can come.
        let gate = Arc::clone(&slot.gate).try_lock_owned();
        let commit = tokio::spawn(async move {
            let _alone = match gate {
                Ok(alone) => alone,
                Err(_) => Arc::clone(&slot.gate).lock_owned().await,
            };
            commit::commit(&engine, live, uses).await;
        });
        lock(&self.0).commits.push(commit);
    }

    fn lists(&self) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&lock(&self.0).lists)
    }

    /// Waits until all that was used is stored on this machine, and on its way to others.
    pub(crate) async fn settle(&self) {
        loop {
            let Some(commit) = lock(&self.0).commits.pop() else { return };
            let _ = commit.await;
        }
    }
}

impl Slot {
    /// One user less, who left this; what is open, if it was the last one.
    fn leave(&self, used: (Ending, Saw)) -> Option<Open> {
        let mut slot = lock(&self.open);
        let open = slot.as_mut()?;
        open.users -= 1;
        open.uses.push(used);
        if open.users == 0 { slot.take() } else { None }
    }
}

impl Use {
    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Where the step finds it.
    pub(crate) fn path(&self) -> &Path {
        self.live.path()
    }

    /// What its ledger says about times, if anything was ever in it.
    pub(crate) fn known(&self) -> Option<Known> {
        self.live.known()
    }

    /// Why files in it could not be read, if that happened.
    pub(crate) fn failure(&self) -> Option<(ContentError, Option<String>)> {
        self.live.failure()
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if !self.has_ended {
            // The build is over, and has killed what used it.
            drop(self.slot.leave((Ending::Broken, Saw::Unknown)));
        }
    }
}
