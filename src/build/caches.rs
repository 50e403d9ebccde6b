//! The cache mounts of a step: opening them, the times that the step sees for their sake, and what becomes of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::error::BuildError;
use super::inputs::InputTree;
use super::mounts::{
    CacheMountOptions, CacheMountStores, ContentTimes, Ending, Initial, MountName, Saw, Use, Wanted,
};
use super::plan::{PlannedStep, RunMount, RunOp};
use super::run::Mounts;
use super::served::Served;
use super::solve::Solver;
use crate::dockerfile::{Mount, Sharing};
use crate::event::Event;
use crate::layer::Timestamp;
use crate::store::Lock;

/// The kernel's clock for files is up to 10 ms behind; nothing that the step writes may be older than what it was shown.
const BEHIND: Duration = Duration::from_millis(20);

/// The cache mounts that a step uses.
#[derive(Debug, Default)]
pub(super) struct Caches {
    uses: Vec<Use>,
    /// Which of them is at which of the step's mounts.
    shown: BTreeMap<usize, usize>,
}

impl Caches {
    /// Where the one is that the step's mount with this number shows.
    pub(super) fn path(&self, mount: usize) -> Option<PathBuf> {
        Some(self.uses.get(*self.shown.get(&mount)?)?.path().to_owned())
    }

    pub(super) fn uses(&self) -> &[Use] {
        &self.uses
    }
}

impl Solver<'_> {
    /// Opens a step's cache mounts.
    pub(super) async fn open_caches(
        &self,
        step: &PlannedStep,
        op: &RunOp,
        inputs: &[InputTree],
        options: CacheMountOptions,
    ) -> Result<Caches, BuildError> {
        let mounts = op.mounts.iter().zip(inputs).enumerate();
        let mut named: Vec<_> = mounts
            .filter_map(|(number, (mount, input))| {
                Some((self.cache_name(mount, input)?, number, &mount.mount, input))
            })
            .collect();
        // Two steps that want the same two, one after the other, must want them in the same order.
        named.sort_by_key(|(name, number, ..)| (name.digest.hex(), *number));
        let mut wanted: Vec<Wanted<'_>> = Vec::with_capacity(named.len());
        // Which of the wanted ones each mount shows: one can be shown in several places.
        let mut shown = Vec::with_capacity(named.len());
        for (name, number, mount, input) in named {
            let Mount::Cache { source, sharing, mode, uid, gid, .. } = mount else { continue };
            let same = wanted.iter().position(|wanted| wanted.name == name);
            if let (Some(same), Sharing::Shared | Sharing::Locked) = (same, sharing) {
                shown.push((number, same));
                continue;
            }
            let (name, locks) = match options.stores {
                CacheMountStores::Off => (name, Vec::new()),
                _ => self.lock_cache(step, name, *sharing).await?,
            };
            shown.push((number, wanted.len()));
            let initial = Initial { input, source, mode: *mode, uid: *uid, gid: *gid };
            wanted.push(Wanted { name, initial, locks });
        }
        let uses = self.engine.mounts.open(self.engine, self.layers, options, wanted).await?;
        Ok(Caches { uses, shown: shown.into_iter().collect() })
    }

    fn cache_name(&self, mount: &RunMount, input: &InputTree) -> Option<MountName> {
        let Mount::Cache { id, .. } = &mount.mount else { return None };
        let namespace =
            super::plan::argument(&self.request.build_args, "BUILDKIT_CACHE_MOUNT_NS").unwrap_or("");
        // A cache that begins with an image's files is another one when those are others.
        let origin = match input {
            InputTree::Chain(chain) => Some(&chain.digest),
            InputTree::Empty | InputTree::Directory(_) => None,
        };
        Some(MountName::new(namespace, id, origin))
    }

    /// Waits for a mount's turn, if it is one that is used by one step at a time; of one that each step has a copy of, the
    /// first copy that nobody uses. As many as steps can run at once is enough.
    async fn lock_cache(
        &self,
        step: &PlannedStep,
        name: MountName,
        sharing: Sharing,
    ) -> Result<(MountName, Vec<Lock>), BuildError> {
        let failed = |error| BuildError::cache("opening a cache mount", error);
        let local = self.engine.cache.local();
        let lock_name = format!("cache-mount-{}", name.digest.hex());
        match sharing {
            Sharing::Shared => Ok((name, Vec::new())),
            Sharing::Locked => {
                let lock = match local.try_lock(&lock_name).map_err(failed)? {
                    Some(lock) => lock,
                    None => {
                        let status = "waiting for a locked cache mount".to_owned();
                        self.emit(Event::StepStatus { step: step.id, status });
                        local.lock(&lock_name).await.map_err(failed)?
                    }
                };
                Ok((name, vec![lock]))
            }
            Sharing::Private => {
                let mut number = 0_u32;
                loop {
                    if let Some(lock) = local.try_lock(&format!("{lock_name}-{number}")).map_err(failed)? {
                        return Ok((name.copy(number), vec![lock]));
                    }
                    number += 1;
                }
            }
        }
    }

    /// Shows a step that uses these mounts the times that follow contents.
    pub(super) async fn show_times(
        &self,
        step: &PlannedStep,
        served: &Served,
        used: &Caches,
    ) -> Arc<ContentTimes> {
        let known: Vec<_> = used.uses.iter().filter_map(Use::known).collect();
        let begin = || before(self.engine.now(), BEHIND);
        let mut times = served.content_times(begin(), known.clone());
        if times.is_too_soon() {
            let status = "waiting for the next second, to tell its files from older ones".to_owned();
            self.emit(Event::StepStatus { step: step.id, status });
            let nanos = u64::from(begin().nanos);
            tokio::time::sleep(Duration::from_nanos(1_000_000_000 - nanos)).await;
            times = served.content_times(begin(), known);
        }
        served.show_times(&times);
        times
    }

    /// A step has ended: what it left in its cache mounts is stored in the background.
    pub(super) fn end_caches(
        &self,
        step: &PlannedStep,
        used: Caches,
        ending: Ending,
        served: Option<&Served>,
        times: Option<&Arc<ContentTimes>>,
    ) {
        let saw = match (served, times) {
            (Some(served), Some(times)) => {
                let looks = served.own_looks();
                let (seen, new) = times.seen(&looks);
                if new > 0 {
                    let files = if new == 1 { "file" } else { "files" };
                    let status = format!("{new} {files} new since the cache mount's last use");
                    self.emit(Event::StepStatus { step: step.id, status });
                }
                Saw::Times(Arc::clone(times), Arc::new(seen))
            }
            _ => Saw::Unknown,
        };
        for used in used.uses {
            self.engine.mounts.end(self.engine, used, ending, saw.clone());
        }
    }

    /// Where files cannot be served: a directory of this machine, as it is.
    pub(super) async fn plain_cache(
        &self,
        step: &PlannedStep,
        mount: &RunMount,
        input: &InputTree,
        mounts: &mut Mounts,
    ) -> Result<PathBuf, BuildError> {
        let (Mount::Cache { source, sharing, mode, uid, gid, .. }, Some(name)) =
            (&mount.mount, self.cache_name(mount, input))
        else {
            let problem = std::io::Error::other("it is none");
            return Err(BuildError::cache("opening a cache mount", problem));
        };
        let failed = |error| BuildError::cache("opening a cache mount", error);
        let local = self.engine.cache.local();
        let (name, locks) = self.lock_cache(step, name, *sharing).await?;
        mounts.locks.extend(locks);
        let directory = local.state_dir("cache-mounts").map_err(failed)?.join(name.digest.hex());
        if !directory.is_dir() {
            let fill = local.tmp_dir().map_err(failed)?;
            let new = fill.path().join("cache");
            let io = |error: std::io::Error| BuildError::cache("making a cache mount", error);
            fs_err::create_dir(&new).map_err(io)?;
            let initial = Initial { input, source, mode: *mode, uid: *uid, gid: *gid };
            super::mounts::fill(self.engine, self.layers, &initial, &new).await?;
            match fs_err::rename(&new, &directory) {
                Ok(()) => {}
                // Another step was faster.
                Err(_) if directory.is_dir() => {}
                Err(error) => return Err(io(error)),
            }
        }
        local.touch_state(&directory);
        Ok(directory)
    }
}

/// A time that is so much earlier.
fn before(time: Timestamp, earlier: Duration) -> Timestamp {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let nanos = nanos - i128::try_from(earlier.as_nanos()).unwrap_or(0);
    Timestamp {
        seconds: i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(i64::MIN),
        nanos: u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}
