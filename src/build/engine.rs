//! The engine: what every build on this machine uses, and a build from top to bottom.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{try_join, try_join_all};
use tokio::sync::{OnceCell, Semaphore};

use super::checks;
use super::error::BuildError;
use super::export::{self, Built, Exported};
use super::foreign::Foreign;
use super::inputs::{Contexts, Inputs};
use super::layers::Layers;
use super::mounts::CacheMounts;
use super::options::BuildRequest;
use super::plan::Plan;
use super::remotes::Remotes;
use super::solve::{Progress, Solver};
use super::ssh::Agents;
use crate::context::git::Git;
use crate::digest::Digest;
use crate::dockerfile::Dockerfile;
use crate::dockerfile::lint::Linter;
use crate::event::{Event, Events, StepId, StepOutcome, Summary};
use crate::exec::{CancelToken, Executor};
use crate::image::Descriptor;
use crate::layer::{LayerDescriptor, Timestamp};
use crate::platform::Platform;
use crate::record::{Bundle, BundleName, Preimage, Record, Value};
use crate::registry;
use crate::store::Cache;

/// How often the cache may lose the same blob in the middle of one build, which is begun again each time.
const ATTEMPTS_MAX: u32 = 4;

/// An attempt ends where it misses the first blob, and after a disk that lost much the next one may miss another: a build of
/// some tens of steps has some tens of layers, and a table of contents for each.
const LOST_MAX: u32 = 300;

/// Blocking jobs under way at once. Far more than any build has; it only makes them countable.
const JOBS_MAX: u32 = 4096;

/// How often a build looks whether it is to end.
const CANCEL_POLL: Duration = Duration::from_millis(20);

/// How files and owners are handled on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Inside a user namespace: overlayfs keeps its marks in `user.*` attributes.
    pub user_namespace: bool,
    /// Only one id is mapped: files cannot be given to anybody else, so layers' owners are not applied to disk, and
    /// what commands make belongs to root in the image.
    pub single_id: bool,
}

/// Everything that builds need.
#[derive(Clone)]
pub struct Engine {
    /// The local store, with a remote one behind it or not.
    pub cache: Cache,
    /// Runs commands; or why nothing can run them here.
    pub executor: Result<Arc<dyn Executor>, String>,
    /// Talks to registries.
    pub registry: registry::Client,
    /// Takes the events.
    pub events: Events,
    /// Tells the time.
    pub clock: fn() -> Timestamp,
    /// How files and owners are handled.
    pub ownership: Ownership,
    /// Why commands cannot be served their files while they run, if they cannot.
    pub unserved: Option<String>,
    /// Ends the build early.
    pub cancel: CancelToken,
    /// How git repositories are reached.
    pub git: Git,
    /// How long a build waits at its end for what is still being sent to the remote store.
    pub upload_grace: Duration,
    pub(crate) mounts: CacheMounts,
    jobs: Arc<Semaphore>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("cache", &self.cache)
            .field("executor", &self.executor)
            .finish_non_exhaustive()
    }
}

/// What a build resulted in.
#[derive(Debug, Clone)]
pub struct BuildOutcome {
    /// The manifest; `None` if no image was asked for (`type=local`, `type=tar`, a dry run).
    pub manifest: Option<Descriptor>,
    /// The digest of the image's configuration.
    pub config: Option<Digest>,
    /// The figures.
    pub summary: Summary,
    /// With a dry run: how many steps would run.
    pub would_run: u32,
    /// Every step, in the order of the plan.
    pub steps: Vec<StepReport>,
}

/// One step of a build that was done.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// Its name.
    pub name: String,
    /// What it is keyed on; `None` if that depends on a step that would run.
    pub preimage: Option<Preimage>,
    /// How it ended.
    pub outcome: StepOutcome,
    /// In a dry run: what its place had in earlier builds, the latest first.
    pub past: Vec<Record>,
}

impl Engine {
    /// An engine.
    pub fn new(
        cache: Cache,
        executor: Result<Arc<dyn Executor>, String>,
        registry: registry::Client,
        events: Events,
        clock: fn() -> Timestamp,
        ownership: Ownership,
        cancel: CancelToken,
    ) -> Self {
        Self {
            cache,
            executor,
            registry,
            events,
            clock,
            ownership,
            unserved: None,
            cancel,
            git: Git::default(),
            upload_grace: Duration::from_mins(1),
            mounts: CacheMounts::default(),
            jobs: Arc::new(Semaphore::new(JOBS_MAX as usize)),
        }
    }

    /// Whether commands can be served their files while they run.
    pub(crate) fn serves_files(&self) -> bool {
        self.unserved.is_none()
    }

    /// The time.
    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Runs `work` on a thread that may block. [`Engine::build`] does not return before it has ended, whatever else
    /// fails: it may hold mounts and processes.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
    ) -> Result<T, BuildError> {
        let permit = Arc::clone(&self.jobs).acquire_owned().await;
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        match task.await {
            Ok(result) => result,
            Err(error) => Err(BuildError::cache("a worker thread", error)),
        }
    }

    /// Begins work that nobody waits for on a thread that may block. [`Engine::build`] waits for it as for any other.
    pub(crate) fn beside(&self, handle: &tokio::runtime::Handle, work: impl FnOnce() + Send + 'static) {
        // There is always one, or the machine has better things to do.
        let Ok(permit) = Arc::clone(&self.jobs).try_acquire_owned() else { return };
        handle.spawn_blocking(move || {
            let _permit = permit;
            work();
        });
    }

    /// A record of work that began at `created`, to be published under the key of `preimage`.
    pub(crate) fn record(
        &self,
        preimage: Preimage,
        layers: Vec<LayerDescriptor>,
        tree: Digest,
        created: Timestamp,
        started: Instant,
    ) -> Record {
        Record {
            scope: self.cache.write_scope().clone(),
            preimage,
            layers,
            tree,
            created,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            builder: concat!("crossdock ", env!("CARGO_PKG_VERSION")).to_owned(),
            log: None,
            readers: None,
            foreign: false,
            parts: Vec::new(),
        }
    }

    /// Completes when the build is to end early.
    pub(super) async fn cancelled(&self) {
        // The token belongs to the executor, which polls it; here a look every now and then is soon enough.
        while !self.cancel.is_cancelled() {
            tokio::time::sleep(CANCEL_POLL).await;
        }
    }

    /// Builds.
    pub async fn build(&self, request: &BuildRequest) -> Result<BuildOutcome, BuildError> {
        let started = Instant::now();
        let result = tokio::select! {
            result = self.attempts(request, started) => result,
            () = self.cancelled() => Err(BuildError::Cancelled),
        };
        if result.is_err() {
            // The other steps that run are of no use any more.
            self.cancel.cancel();
        }
        let _ = self.jobs.acquire_many(JOBS_MAX).await;
        match result {
            // A step that was ended because the build was cancelled did not fail by itself.
            Ok(outcome) => Ok(outcome),
            Err(error) => {
                // What finished steps made is kept for the next try, and for others.
                self.mounts.settle().await;
                self.cache.flush(self.upload_grace).await;
                Err(error)
            }
        }
    }

    async fn attempts(&self, request: &BuildRequest, started: Instant) -> Result<BuildOutcome, BuildError> {
        let mut lost: HashMap<Digest, u32> = HashMap::new();
        for _ in 1..LOST_MAX {
            match self.attempt(request, lost.is_empty(), started).await {
                Err(BuildError::Lost { digest, keys }) => {
                    let times = lost.entry(digest).or_default();
                    *times += 1;
                    if *times >= ATTEMPTS_MAX {
                        return Err(BuildError::Lost { digest, keys });
                    }
                    let message =
                        format!("{digest} is gone from the cache; the steps that need it are done again");
                    self.events.emit(Event::Warning { message });
                    self.cache.lose(&digest, &keys);
                }
                other => return other,
            }
        }
        self.attempt(request, false, started).await
    }

    /// The request with its Dockerfile, if that has to be fetched. Nothing else is.
    pub async fn with_dockerfile(&self, request: &BuildRequest) -> Result<BuildRequest, BuildError> {
        let agents = Agents::new(&request.ssh, self.cache.local());
        let layers = Layers::new(self)?;
        let remotes = Remotes::new(self, &layers, &agents, request);
        Ok(remotes.with_dockerfile().await?.into_owned())
    }

    /// A build, from top to bottom.
    async fn attempt(
        &self,
        request: &BuildRequest,
        is_first: bool,
        started: Instant,
    ) -> Result<BuildOutcome, BuildError> {
        export::check(request)?;
        let agents = Agents::new(&request.ssh, self.cache.local());
        let layers = Layers::new(self)?;
        let remotes = Remotes::new(self, &layers, &agents, request);
        let request = remotes.with_dockerfile().await?;
        let (lint, dockerfile) = checks::read(&request);
        let request = match &dockerfile {
            Ok(dockerfile) => &*remotes.with_epoch(request, dockerfile).await?,
            Err(_) => &*request,
        };
        let planned = match &dockerfile {
            Ok(dockerfile) => self.plans(request, dockerfile, &lint).await,
            Err(error) => Err(error.clone().into()),
        };
        // A second attempt finds the same.
        if is_first {
            self.show(request, &lint);
        }
        let planned = planned?;
        let dockerfile = dockerfile?;
        let names: Vec<String> = planned.iter().flat_map(|part| part.plan.names.iter().cloned()).collect();
        self.events.emit(Event::Planned { steps: names.clone() });
        let (progress, foreign) = (Progress::default(), Foreign::default());
        let solvers = planned.iter().map(|part| Solver {
            engine: self,
            request,
            dockerfile: &dockerfile,
            plan: &part.plan,
            inputs: &part.inputs,
            layers: &layers,
            remotes: &remotes,
            agents: &agents,
            foreign: &foreign,
            before: &part.before,
            stages: part.plan.stages.iter().map(|_| OnceCell::new()).collect(),
            has_changed: AtomicBool::new(false),
            expects: AtomicBool::new(false),
            progress: &progress,
            used: Mutex::default(),
            aliases: Mutex::default(),
        });
        let solvers: Vec<Solver<'_>> = solvers.collect();
        let solved = try_join_all(solvers.iter().map(Solver::solve)).await?;
        let built = planned.iter().zip(solved).map(|(part, chain)| {
            Some(Built { platform: part.platform, plan: &part.plan, inputs: &part.inputs, chain: chain? })
        });
        // All of them or, in a dry run in which something would run, none.
        let exported = match built.collect::<Option<Vec<_>>>() {
            Some(built) => {
                // They are on their way while the image is.
                let kept = self.keep_bundles(&planned, &solvers, Vec::new()).await?;
                let exported = export::export(self, request, &layers, &built).await?;
                // What was copied for the image is in them too now.
                self.keep_bundles(&planned, &solvers, kept).await?;
                exported
            }
            None => Exported::default(),
        };
        drop(solvers);
        self.mounts.settle().await;
        self.cache.flush(self.upload_grace).await;
        let transferred = self.cache.stats();
        let downloaded: u64 = planned.iter().map(|part| part.inputs.downloaded()).sum();
        let summary = Summary {
            cached: progress.cached.into_inner(),
            ran: progress.ran.into_inner(),
            elapsed: started.elapsed(),
            saved: Duration::from_millis(progress.saved_ms.into_inner()),
            downloaded: transferred.downloaded
                + downloaded
                + layers.downloaded.load(Ordering::Relaxed)
                + remotes.downloaded(),
            uploaded: transferred.uploaded + exported.uploaded,
        };
        self.events.emit(Event::Finished(summary.clone()));
        let mut past = if request.dry_run { past(&planned) } else { HashMap::new() };
        let mut steps: Vec<(StepId, StepReport)> = progress
            .keyed
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .into_iter()
            .map(|(id, preimage, outcome)| {
                let name = names.get(id.0 as usize).cloned().unwrap_or_default();
                let past = past.remove(&id).unwrap_or_default();
                (id, StepReport { name, preimage, outcome, past })
            })
            .collect();
        steps.sort_by_key(|(id, _)| *id);
        Ok(BuildOutcome {
            manifest: exported.manifest,
            config: exported.config,
            summary,
            would_run: progress.would_run.into_inner(),
            steps: steps.into_iter().map(|(_, step)| step).collect(),
        })
    }

    /// Publishes each platform's records as a bundle, if it is another one than before and than it was in `kept`; returns them.
    async fn keep_bundles(
        &self,
        planned: &[Part<'_>],
        solvers: &[Solver<'_>],
        kept: Vec<Bundle>,
    ) -> Result<Vec<Bundle>, BuildError> {
        let mut kept = kept.into_iter();
        let mut bundles = Vec::with_capacity(planned.len());
        for (part, solver) in planned.iter().zip(solvers) {
            let own = solver.bundle();
            let following = own.following();
            let bundle = own.with_earlier(&part.before);
            let is_kept = kept.next().as_ref() == Some(&bundle);
            if bundle != part.before && !is_kept {
                for name in following.iter().chain([&part.bundle]) {
                    let published = self.cache.publish_bundle(name, bundle.clone()).await;
                    published.map_err(|error| BuildError::cache("storing the build's records", error))?;
                }
            }
            bundles.push(bundle);
        }
        Ok(bundles)
    }

    /// Plans the build for every platform. Questionable things are reported once, not for each of them.
    async fn plans<'r>(
        &self,
        request: &'r BuildRequest,
        dockerfile: &Dockerfile,
        lint: &Linter,
    ) -> Result<Vec<Part<'r>>, BuildError> {
        let mut platforms: Vec<Option<&Platform>> = request.platforms.iter().map(Some).collect();
        if platforms.is_empty() {
            platforms.push(None);
        }
        let (silent, contexts) = (Linter::default(), Arc::new(Contexts::default()));
        // The base images' registry and the shared cache are asked at the same time.
        let planned = try_join_all(platforms.iter().enumerate().map(async |(number, platform)| {
            let lint = if number == 0 { lint } else { &silent };
            let bundle = bundle_name(request, *platform);
            let before = async { Ok(self.cache.bundle(&bundle).await.unwrap_or_default()) };
            let (planned, before) = try_join(self.plan(request, dockerfile, *platform, lint), before).await?;
            Ok::<_, BuildError>((planned, bundle, before))
        }))
        .await?;
        let mut parts = Vec::with_capacity(planned.len());
        let mut steps = 0;
        for (platform, ((mut plan, images), bundle, before)) in platforms.into_iter().zip(planned) {
            plan.number_from(steps);
            steps += plan.names.len();
            let inputs = Inputs::new(&plan, images, request, Arc::clone(&contexts));
            parts.push(Part { platform, plan, inputs, bundle, before });
        }
        Ok(parts)
    }
}

/// The part of a build that is for one platform.
struct Part<'r> {
    platform: Option<&'r Platform>,
    plan: Plan,
    inputs: Inputs,
    /// The name of its bundle, and what was in it.
    bundle: BundleName,
    before: Bundle,
}

/// What the places of the steps had in earlier builds.
fn past(parts: &[Part<'_>]) -> HashMap<StepId, Vec<Record>> {
    let mut past = HashMap::new();
    for part in parts {
        for step in part.plan.stages.iter().flat_map(|stage| &stage.steps) {
            let before = part.before.steps.iter().filter(|before| before.slot == step.slot);
            past.insert(step.id, before.map(|before| before.record.clone()).collect());
        }
    }
    past
}

/// What tells one build from another, from run to run: the Dockerfile's name, the context, the target, the platform.
fn bundle_name(request: &BuildRequest, platform: Option<&Platform>) -> BundleName {
    let mut preimage = Preimage::default();
    let text = |text: Option<String>| Value::Text(text.unwrap_or_default());
    let base = |path: &str| PathBuf::from(path).file_name().map(|name| name.to_string_lossy().into_owned());
    let tags: Vec<String> =
        request.tags.iter().map(|tag| format!("{}/{}", tag.registry(), tag.repository())).collect();
    preimage
        .add("kind", "bundle")
        .add("dockerfile", text(base(&request.dockerfile.name)))
        .add("stages", stage_names(&request.dockerfile.text))
        .add("tags", tags)
        .add("target", text(request.target.clone()))
        .add("platform", text(platform.map(ToString::to_string)));
    BundleName(preimage.key().0)
}

/// The FROM lines of a Dockerfile: what a checkout in another directory has in common with this one.
fn stage_names(text: &[u8]) -> Value {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().map(str::trim).filter(|line| {
        line.get(..5)
            .is_some_and(|start| start.eq_ignore_ascii_case("from ") || start.eq_ignore_ascii_case("from\t"))
    });
    Value::List(lines.map(|line| Value::Text(line.to_owned())).collect())
}
