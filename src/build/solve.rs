//! Solving: for each step of the plan, look up its result, else make it.
//!
//! The solver decides; workers do. Stages run side by side as far as they do not need each other; within a stage, each
//! step starts from the chain of the one before it. For each step, cheapest first: the coarse key, the exact key (which
//! looks into trees), and only then the work itself, under a lock so that no other build on this machine does it too.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, Either, FutureExt as _, select, try_join_all};
use tokio::sync::OnceCell;

use super::chain::{Chain, ChainLayer};
use super::copy::CopyError;
use super::copy::step as copy_step;
use super::engine::Engine;
use super::error::BuildError;
use super::foreign::Foreign;
use super::inputs::{InputTree, Inputs};
use super::keys::{self, Common, Read};
use super::layers::{Layers, with_key};
use super::options::BuildRequest;
use super::plan::{Input, Op, Plan, PlannedStage, PlannedStep, RunOp, Start};
use super::remotes::Remotes;
use super::served::ReadSet;
use super::ssh::Agents;
use super::traced::TracedStep;
use crate::digest::Digest;
use crate::dockerfile::{Dockerfile, DockerfileError, Mount};
use crate::event::{Cause, CauseKind, Event, Found, Origin, StepId, StepOutcome, Why};
use crate::layer::LayerDescriptor;
use crate::record::{Bundle, BundleStep, Key, Preimage, Record, SHAPE_BYTES_MAX};
use crate::store::{Hit, Lease, Making, Turn};
use crate::tree::Tree;

/// The result of a stage: its chain; `None` where a dry run cannot know it.
pub(crate) type Solved = Option<Arc<Chain>>;

/// Solves one plan.
pub(crate) struct Solver<'s> {
    pub(crate) engine: &'s Engine,
    pub(crate) request: &'s BuildRequest,
    pub(crate) dockerfile: &'s Dockerfile,
    pub(crate) plan: &'s Plan,
    pub(crate) inputs: &'s Inputs,
    pub(crate) layers: &'s Layers,
    pub(crate) remotes: &'s Remotes<'s>,
    pub(crate) agents: &'s Agents,
    pub(crate) foreign: &'s Foreign,
    /// The records of the last build of the same kind.
    pub(crate) before: &'s Bundle,
    pub(crate) stages: Vec<OnceCell<Solved>>,
    /// A step was in no record under its own key.
    pub(crate) has_changed: AtomicBool,
    /// What the last build used is being fetched.
    pub(crate) expects: AtomicBool,
    pub(crate) progress: &'s Progress,
    /// What this platform's steps were taken from.
    pub(crate) used: Mutex<Vec<(StepId, BundleStep)>>,
    /// The same results under the keys by which the next build finds them sooner.
    pub(crate) aliases: Mutex<Vec<(StepId, BundleStep)>>,
}

/// How often somebody who waits for another machine's step looks for its record.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the solvers of a build count and collect on the way.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) cached: AtomicU32,
    pub(crate) ran: AtomicU32,
    pub(crate) would_run: AtomicU32,
    pub(crate) saved_ms: AtomicU64,
    /// The user knows that commands are not traced.
    pub(crate) told_untraced: AtomicBool,
    /// Steps that this build has made: another platform's, or another stage's, are the same ones, cache or no cache.
    pub(crate) made: Mutex<HashSet<Key>>,
    /// What every step is keyed on, as far as that is known.
    pub(crate) keyed: Mutex<Vec<(StepId, Option<Preimage>, StepOutcome)>>,
}

/// Whether a record is asked for at the shared cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Everybody,
    Nobody,
}

/// What was found of a step under traced keys.
#[derive(Debug, Default)]
struct FoundTraced {
    /// A record, and the exact key that its result goes under.
    hit: Option<(Hit, Preimage)>,
    /// What is known besides, for each choice of build arguments that was looked at.
    known: Vec<TracedStep>,
}

/// A step that is not found under its coarse key.
struct Sought<'s> {
    stage: &'s PlannedStage,
    step: &'s PlannedStep,
    base: &'s Arc<Chain>,
    inputs: &'s [InputTree],
    started: Instant,
    coarse: Option<Preimage>,
    /// The exact key, with all build arguments.
    whole: Preimage,
    linked: Option<Preimage>,
    /// The build arguments that may be left out of keys: choices, the likeliest first.
    unkeyed: Vec<Vec<String>>,
}

/// What came of looking for a step's result.
enum Search {
    Found(Arc<Chain>),
    /// Nothing, but what is known of earlier runs, for each choice of unkeyed build arguments that was looked at.
    Missing(Vec<TracedStep>),
}

impl Solver<'_> {
    /// Solves the target and everything that it needs.
    pub(crate) async fn solve(&self) -> Result<Solved, BuildError> {
        // All stages begin at once: what one takes from another it waits for when it gets there.
        try_join_all((0..self.plan.stages.len()).map(|number| self.stage(number))).await?;
        self.stage(self.plan.target).await
    }

    /// The records that the platform's images and steps were taken from, in the order of the plan.
    pub(crate) fn bundle(&self) -> Bundle {
        let sorted = |records: &Mutex<Vec<(StepId, BundleStep)>>| {
            let mut records = records.lock().unwrap_or_else(PoisonError::into_inner).clone();
            records.sort_by_key(|(id, _)| *id);
            records.into_iter().map(|(_, step)| step)
        };
        // Copies come last: a bundle is also known by its first record of its own.
        let copies = self.inputs.copies(self.layers);
        let steps = sorted(&self.used).chain(sorted(&self.aliases)).chain(copies);
        Bundle { steps: self.inputs.indexes().into_iter().chain(steps).collect() }
    }

    /// The result of a stage, solved once.
    fn stage(&self, number: usize) -> BoxFuture<'_, Result<Solved, BuildError>> {
        async move { self.stages[number].get_or_try_init(|| self.solve_stage(number)).await.cloned() }.boxed()
    }

    async fn solve_stage(&self, number: usize) -> Result<Solved, BuildError> {
        let stage = &self.plan.stages[number];
        let mut chain = match stage.start {
            Start::Empty => Some(Chain::empty()),
            Start::Stage(base) => self.stage(base).await?,
            Start::Source(source) => self.start(stage, source).await?,
        };
        for step in &stage.steps {
            chain = self.step(stage, step, chain).await?;
        }
        Ok(chain)
    }

    /// The chain of a base image.
    async fn start(&self, stage: &PlannedStage, source: usize) -> Result<Solved, BuildError> {
        let Some(id) = stage.start_step else { return Ok(Some(Chain::empty())) };
        let started = Instant::now();
        self.emit(Event::StepStarted { step: id });
        let result = self.inputs.chain(self.engine, self.layers, source, id).await;
        let outcome = if result.is_ok() { StepOutcome::Done } else { StepOutcome::Failed };
        self.emit(Event::StepFinished { step: id, outcome, duration: started.elapsed() });
        Ok(Some(result?))
    }

    async fn step(
        &self,
        stage: &PlannedStage,
        step: &PlannedStep,
        base: Solved,
    ) -> Result<Solved, BuildError> {
        let Some(base) = base else { return Ok(self.unknown(step)) };
        let Some(stages) = self.stages_of(step).await? else { return Ok(self.unknown(step)) };
        let started = Instant::now();
        self.emit(Event::StepStarted { step: step.id });
        let result = async {
            let inputs = self.inputs_of(step, stages).await?;
            self.known_step(stage, step, &base, &inputs, started).await
        }
        .await;
        if let Err(error) = &result {
            let cancelled = matches!(error, BuildError::Cancelled);
            let outcome = if cancelled { StepOutcome::Cancelled } else { StepOutcome::Failed };
            self.emit(Event::StepFinished { step: step.id, outcome, duration: started.elapsed() });
        }
        result
    }

    /// In a dry run: a step whose inputs are the result of one that would run.
    fn unknown(&self, step: &PlannedStep) -> Solved {
        let causes = vec![Cause::of(CauseKind::Unknown)];
        let why = Why { causes, ..Why::from("a step that it builds on would run") };
        self.emit(Event::StepStarted { step: step.id });
        self.would_run(step, None, why, Duration::ZERO);
        None
    }

    fn would_run(&self, step: &PlannedStep, preimage: Option<Preimage>, why: Why, duration: Duration) {
        self.progress.would_run.fetch_add(1, Ordering::Relaxed);
        let outcome = StepOutcome::WouldRun { why };
        self.keyed(step, preimage, outcome.clone());
        self.emit(Event::StepFinished { step: step.id, outcome, duration });
    }

    fn keyed(&self, step: &PlannedStep, preimage: Option<Preimage>, outcome: StepOutcome) {
        let mut keyed = self.progress.keyed.lock().unwrap_or_else(PoisonError::into_inner);
        keyed.push((step.id, preimage, outcome));
    }

    /// The results of stages that a step reads, waited for; `None` if a dry run cannot know one of them.
    async fn stages_of(&self, step: &PlannedStep) -> Result<Option<HashMap<usize, Arc<Chain>>>, BuildError> {
        let mut chains = HashMap::new();
        for input in step.op.inputs() {
            if let Input::Stage(stage) = input {
                let Some(chain) = self.stage(stage).await? else { return Ok(None) };
                chains.insert(stage, chain);
            }
        }
        Ok(Some(chains))
    }

    /// The trees that a step reads besides the one that it starts from, in the order of [`Op::inputs`]. What comes from
    /// elsewhere is read or fetched now.
    async fn inputs_of(
        &self,
        step: &PlannedStep,
        stages: HashMap<usize, Arc<Chain>>,
    ) -> Result<Vec<InputTree>, BuildError> {
        let tree = |input| {
            let stages = &stages;
            async move {
                Ok::<_, BuildError>(match input {
                    Input::Empty => InputTree::Empty,
                    Input::Stage(stage) => stages
                        .get(&stage)
                        .map_or(InputTree::Empty, |chain| InputTree::Chain(Arc::clone(chain))),
                    Input::Source(source) => self.source(step, source).await?,
                })
            }
        };
        try_join_all(step.op.inputs().into_iter().map(tree)).await
    }

    async fn source(&self, step: &PlannedStep, source: usize) -> Result<InputTree, BuildError> {
        let tree = self.inputs.tree(self.engine, self.layers, self.remotes, self.plan, source, step.id).await;
        tree.map_err(|error| match error {
            BuildError::Source { place, address, source, hint } if place.is_empty() => {
                let place = format!("{}:{}", self.dockerfile.name, step.lines);
                BuildError::Source { place, address, source, hint }
            }
            other => other,
        })
    }

    async fn known_step(
        &self,
        stage: &PlannedStage,
        step: &PlannedStep,
        base: &Arc<Chain>,
        inputs: &[InputTree],
        started: Instant,
    ) -> Result<Solved, BuildError> {
        let common = Common { platform: &stage.platform, epoch: self.request.source_date_epoch };
        let unkeyed = self.unkeyed(step);
        let coarse = self.coarse(step, &common, base, inputs);
        // Once something has changed trees are looked into anyway: then the exact key is as near, and finds more.
        let has_changed = self.has_changed.load(Ordering::Relaxed);
        let ask = if has_changed { Ask::Nobody } else { Ask::Everybody };
        if let (Some(coarse), false) = (&coarse, stage.no_cache)
            && let Some((hit, _)) = self.look_up(coarse, &unkeyed, ask).await
        {
            self.verify_hit(stage, step, base, inputs, &hit.record).await?;
            return Ok(Some(self.cached(step, base, hit, started)));
        }
        let whole = self.exact(step, &common, base, inputs).await?;
        let linked = match &step.op {
            Op::Copy(op) => keys::linked(op, &whole),
            _ => None,
        };
        let sought = Sought { stage, step, base, inputs, started, coarse, whole, linked, unkeyed };
        let mut traced = Vec::new();
        if stage.no_cache {
            self.has_changed.store(true, Ordering::Relaxed);
        } else {
            match self.find(&sought, has_changed).await? {
                Search::Found(chain) => return Ok(Some(chain)),
                Search::Missing(known) => traced = known,
            }
        }
        // What it is most likely to be recorded under.
        let exact = keys::unkeyed(&sought.whole, &sought.unkeyed[0]);
        let why = if stage.no_cache {
            let causes = vec![Cause::of(CauseKind::Disabled)];
            Why { causes, ..Why::from("the cache is switched off for it") }
        } else {
            let nearest = traced.first_mut().and_then(|traced| traced.nearest.take());
            self.why(stage, step, base, inputs, &exact, nearest).await
        };
        if self.request.dry_run {
            self.would_run(step, Some(exact), why, started.elapsed());
            return Ok(None);
        }
        // Whoever else is about to do the same waits here, and finds the record afterwards.
        let _lock = self.lock(step, &exact.key()).await?;
        let chain = match self.turn(&sought, &exact.key()).await {
            Either::Left(hit) => self.cached(step, base, hit, started),
            Either::Right(lease) => self.make(sought, traced, lease, why).await?,
        };
        Ok(Some(chain))
    }

    /// Looks for a result under all keys but the coarse one.
    async fn find(&self, sought: &Sought<'_>, has_changed: bool) -> Result<Search, BuildError> {
        let Sought { stage, step, base, inputs, started, whole, unkeyed, .. } = sought;
        let here = self.look_up(whole, unkeyed, Ask::Nobody).await;
        if here.is_none() {
            self.expect();
        }
        let mut traced = FoundTraced::default();
        let exact = async {
            match here {
                None => self.look_up(whole, unkeyed, Ask::Everybody).await,
                here => here,
            }
        };
        let hit = if has_changed && self.is_traced(step) {
            // Both at once: the one waits for an answer, the other has most likely all it needs.
            let found = self.find_traced(sought);
            match select(pin!(exact), pin!(found)).await {
                Either::Left((Some(hit), _)) => Some(hit),
                Either::Left((None, found)) => {
                    traced = found.await?;
                    None
                }
                Either::Right((found, exact)) => {
                    traced = found?;
                    if traced.hit.is_some() { None } else { exact.await }
                }
            }
        } else {
            exact.await
        };
        if let Some((hit, unkeyed)) = hit {
            if let Some(coarse) = &sought.coarse {
                self.publish_alias(step, &hit.record, keys::unkeyed(coarse, unkeyed)).await;
            }
            self.verify_hit(stage, step, base, inputs, &hit.record).await?;
            return Ok(Search::Found(self.cached(step, base, hit, *started)));
        }
        self.has_changed.store(true, Ordering::Relaxed);
        if let Some(linked) = &sought.linked
            && let Some(hit) = self.engine.cache.lookup(&linked.key()).await
        {
            let chain = self.put_on(step, base, hit, whole.clone(), Found::Linked, *started).await?;
            return Ok(Search::Found(chain));
        }
        if self.is_traced(step) && !has_changed {
            traced = self.find_traced(sought).await?;
        }
        let Some((hit, exact)) = traced.hit else { return Ok(Search::Missing(traced.known)) };
        self.found_by(step, hit.record.clone());
        self.verify_hit(stage, step, base, inputs, &hit.record).await?;
        Ok(Search::Found(self.put_on(step, base, hit, exact, Found::Traced, *started).await?))
    }

    /// Waits until it is this build's turn, or until somebody else has made the result.
    async fn turn(&self, sought: &Sought<'_>, key: &Key) -> Either<Hit, Lease> {
        let Sought { stage, step, whole, unkeyed, .. } = sought;
        let takes_records = !stage.no_cache || self.is_made(key);
        loop {
            // What is only copied is done sooner than somebody could be waited for.
            let turn = if takes_records && matches!(step.op, Op::Run(_)) {
                self.engine.cache.turn(key).await
            } else {
                Turn::Mine(Lease::default())
            };
            // After it is known whose turn it is: whoever had it has published before giving it back.
            if takes_records && let Some(hit) = self.look_up_again(step, whole, unkeyed).await {
                return Either::Left(hit);
            }
            match turn {
                Turn::Mine(lease) => return Either::Right(lease),
                Turn::Theirs { by, after } => {
                    let status = format!("waiting for {by}, which is running this step");
                    self.emit(Event::StepStatus { step: step.id, status });
                    tokio::time::sleep(after.clamp(Duration::from_millis(10), LOOK_AGAIN)).await;
                }
            }
        }
    }

    /// Does a step's work, and keeps the result under all its keys. `traced` is what is known of earlier runs, for each choice
    /// of unkeyed build arguments.
    async fn make(
        &self,
        sought: Sought<'_>,
        traced: Vec<TracedStep>,
        lease: Lease,
        why: Why,
    ) -> Result<Arc<Chain>, BuildError> {
        let Sought { stage, step, base, inputs, started, coarse, whole, linked, unkeyed } = sought;
        let created = self.engine.now();
        let last = traced.iter().find_map(|traced| traced.last.as_ref());
        let made = self.work(stage, step, base, inputs, last, self.request.cache_mounts).await?;
        let created = self.request.source_date_epoch.map_or(created, |epoch| epoch.min(created));
        let tree = made.tree.digest();
        let unseen = self.unseen(step, &made);
        let exact = keys::unkeyed(&whole, &unseen);
        let record = self.engine.record(exact.clone(), vec![made.descriptor], tree, created, started);
        let mut record = Record { log: made.log, ..record };
        record = self
            .publish(record, stage.no_cache, Making { lease, predecessor: self.predecessor(step) })
            .await?;
        self.progress.made.lock().unwrap_or_else(PoisonError::into_inner).insert(exact.key());
        for short_cut in coarse.into_iter().chain(linked) {
            self.publish_alias(step, &record, keys::unkeyed(&short_cut, &unseen)).await;
        }
        if let Some(reads) = &made.reads
            && record.layers == [made.descriptor]
        {
            let known = unkeyed.into_iter().zip(traced).find(|(names, _)| *names == unseen);
            let known = known.map(|(_, traced)| traced.known);
            self.publish_traced(step, &record, reads, known, base, inputs).await?;
        }
        self.progress.ran.fetch_add(1, Ordering::Relaxed);
        let outcome = StepOutcome::Ran { why };
        self.keyed(step, Some(exact), outcome.clone());
        self.emit(Event::StepFinished { step: step.id, outcome, duration: started.elapsed() });
        // Another machine may have been faster: its result is everybody's then.
        let is_ours = record.layers == [made.descriptor];
        let chain = self.adopt(step, base, record);
        if is_ours {
            // Whoever comes next needs no look at the layer's table of contents.
            let _ = chain.tree.set(made.tree);
        }
        Ok(chain)
    }

    fn is_made(&self, key: &Key) -> bool {
        self.progress.made.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// The key that needs no tree: `None` if the step reads no tree but the one that it starts from.
    fn coarse(
        &self,
        step: &PlannedStep,
        common: &Common<'_>,
        base: &Chain,
        inputs: &[InputTree],
    ) -> Option<Preimage> {
        let whole = |input: &InputTree| match input {
            InputTree::Chain(chain) => Some(Read::Tree(chain.digest)),
            InputTree::Empty | InputTree::Directory(_) => None,
        };
        // What a directory holds is known only by looking.
        if inputs.iter().any(|input| matches!(input, InputTree::Directory(_))) {
            return None;
        }
        let reads: Vec<Option<Read>> = inputs.iter().map(whole).collect();
        if reads.iter().all(Option::is_none) {
            return None;
        }
        match &step.op {
            Op::Copy(op) => {
                let remotes: Vec<Read> = reads.iter().skip(1).copied().flatten().collect();
                Some(keys::copy(common, base.digest, op, reads[0], &remotes))
            }
            Op::Run(op) => Some(self.run_key(common, base, op, &reads)),
            Op::Workdir(_) => None,
        }
    }

    fn run_key(&self, common: &Common<'_>, base: &Chain, op: &RunOp, reads: &[Option<Read>]) -> Preimage {
        keys::run(common, base.digest, op, self.request, reads)
    }

    /// The key of exactly what the step reads.
    async fn exact(
        &self,
        step: &PlannedStep,
        common: &Common<'_>,
        base: &Chain,
        inputs: &[InputTree],
    ) -> Result<Preimage, BuildError> {
        Ok(match &step.op {
            Op::Copy(op) => {
                let read = match inputs.first() {
                    None => None,
                    Some(_) if op.sources.is_empty() => None,
                    Some(input) => {
                        let tree = self.layers.input_tree(self.engine, input).await?;
                        let digest = copy_step::select(&*tree, op)
                            .and_then(|selected| copy_step::digest(&*tree, &selected))
                            .map_err(|error| self.copy_error(step, Some(input), &error))?;
                        Some(Read::Selection(digest))
                    }
                };
                let mut remotes = Vec::with_capacity(op.remotes.len());
                for (remote, input) in op.remotes.iter().zip(inputs.iter().skip(1)) {
                    let tree = self.layers.input_tree(self.engine, input).await?;
                    let digest = copy_step::remote_digest(&*tree, op, &remote.name)
                        .map_err(|error| self.copy_error(step, Some(input), &error))?;
                    remotes.push(Read::Selection(digest));
                }
                keys::copy(common, base.digest, op, read, &remotes)
            }
            Op::Run(op) => {
                let mut reads = Vec::with_capacity(inputs.len());
                for (mount, input) in op.mounts.iter().zip(inputs) {
                    let path = match &mount.mount {
                        // What a cache is first filled with is no input, as in BuildKit: nor is what is in it.
                        Mount::Bind { source, .. } if !input.is_empty() => source,
                        _ => {
                            reads.push(None);
                            continue;
                        }
                    };
                    let tree = self.layers.input_tree(self.engine, input).await?;
                    let digest =
                        keys::mounted(&*tree, path).map_err(|error| self.mount_error(step, &error))?;
                    reads.push(Some(Read::Selection(digest)));
                }
                self.run_key(common, base, op, &reads)
            }
            Op::Workdir(op) => keys::workdir(common, base.digest, op),
        })
    }

    fn error(&self, step: &PlannedStep, message: impl Into<String>) -> DockerfileError {
        DockerfileError::at(&self.dockerfile.source, step.lines, message)
    }

    fn mount_error(&self, step: &PlannedStep, error: &CopyError) -> BuildError {
        self.error(step, format!("mount source: {error}")).word("--mount").into()
    }

    /// An error of a copy, with the place, the word and, where that is why, the ignore rule.
    pub(super) fn copy_error(
        &self,
        step: &PlannedStep,
        input: Option<&InputTree>,
        error: &CopyError,
    ) -> BuildError {
        let keyword = step.instruction.split_whitespace().next().unwrap_or("COPY").to_uppercase();
        let CopyError::NotFound { path } = error else {
            return self.error(step, format!("{keyword} failed: {}", crate::hint::with_causes(error))).into();
        };
        let Some(InputTree::Directory(context)) = input else {
            let message = format!("{keyword} source \"{path}\" not found");
            return self.error(step, message).word(path).into();
        };
        let clean = super::copy::view::clean(path.as_bytes());
        if let Some(rule) = context.ignore.excluded_by(&clean) {
            let message = format!(
                "{keyword} source \"{path}\" not found in the context (excluded by {}:{})",
                context.ignore_name, rule.line
            );
            return self.error(step, message).word(path).into();
        }
        let error =
            self.error(step, format!("{keyword} source \"{path}\" not found in the context")).word(path);
        let names = context.similar(&clean);
        error.suggest(path, names.iter().map(String::as_str)).into()
    }

    /// Begins to fetch what is looked into if something has changed and the rest is as it was the last time: what is in the layers,
    /// and what commands had looked at.
    fn expect(&self) {
        if self.expects.swap(true, Ordering::Relaxed) {
            return;
        }
        // Only the latest of each: a bundle has what many builds before it had used.
        let (mut with_tocs, mut with_shape) = (HashSet::new(), HashSet::new());
        let mut all: HashMap<Digest, u64> = HashMap::new();
        for BundleStep { slot, record } in &self.before.steps {
            if with_tocs.insert(slot) {
                all.extend(record.layers.iter().map(|layer| (layer.toc, super::layers::TOC_BYTES_MAX)));
            }
            if let Some((shape, _)) = record.preimage.reads()
                && with_shape.insert(slot)
            {
                all.insert(shape, SHAPE_BYTES_MAX);
            }
        }
        self.engine.cache.expect_blobs(all.into_iter().collect());
    }

    /// Looks up a record whose layers are there too, and with which of `unkeyed` left out.
    async fn look_up<'u>(
        &self,
        whole: &Preimage,
        unkeyed: &'u [Vec<String>],
        ask: Ask,
    ) -> Option<(Hit, &'u [String])> {
        for names in unkeyed {
            let key = keys::unkeyed(whole, names).key();
            let hit = match ask {
                Ask::Everybody => self.engine.cache.lookup(&key).await,
                Ask::Nobody => self.engine.cache.lookup_here(&key).await,
            };
            if let Some(hit) = hit {
                return Some((hit, names));
            }
        }
        None
    }

    /// Looks for a record of what the step would see today, with each choice of unkeyed build arguments left out.
    async fn find_traced(&self, sought: &Sought<'_>) -> Result<FoundTraced, BuildError> {
        let Sought { step, base, inputs, whole, unkeyed, .. } = sought;
        let mut known = Vec::with_capacity(unkeyed.len());
        for names in unkeyed {
            let exact = keys::unkeyed(whole, names);
            let mut found = self.look_up_traced(step, &exact, base, inputs).await?;
            let hit = found.hit.take();
            known.push(found);
            if let Some(hit) = hit {
                return Ok(FoundTraced { hit: Some((hit, exact)), known });
            }
        }
        Ok(FoundTraced { hit: None, known })
    }

    /// The same once more, when it is this build's turn. What is only copied has no turns among machines: whoever was before
    /// this build was on this one.
    async fn look_up_again(
        &self,
        step: &PlannedStep,
        whole: &Preimage,
        unkeyed: &[Vec<String>],
    ) -> Option<Hit> {
        let ask = match step.op {
            Op::Run(_) => Ask::Everybody,
            Op::Copy(_) | Op::Workdir(_) => Ask::Nobody,
        };
        Some(self.look_up(whole, unkeyed, ask).await?.0)
    }

    /// Takes a step's result from the record of its own key.
    fn cached(&self, step: &PlannedStep, base: &Arc<Chain>, hit: Hit, started: Instant) -> Arc<Chain> {
        let origin = origin(&hit.record, Found::Exact);
        self.taken(step, base, hit, origin, started)
    }

    /// Takes a step's result from a record that was found as `origin` says.
    fn taken(
        &self,
        step: &PlannedStep,
        base: &Arc<Chain>,
        hit: Hit,
        origin: Origin,
        started: Instant,
    ) -> Arc<Chain> {
        let Hit { record, from } = hit;
        let saved = Duration::from_millis(record.duration_ms);
        self.progress.cached.fetch_add(1, Ordering::Relaxed);
        self.progress.saved_ms.fetch_add(record.duration_ms, Ordering::Relaxed);
        let outcome = StepOutcome::Cached { from: from.to_string(), saved, origin };
        self.keyed(step, Some(record.preimage.clone()), outcome.clone());
        self.emit(Event::StepFinished { step: step.id, outcome, duration: started.elapsed() });
        self.adopt(step, base, record)
    }

    /// Takes the layers of a record that were made for something else to be put on, and keeps a record of them for this.
    async fn put_on(
        &self,
        step: &PlannedStep,
        base: &Arc<Chain>,
        hit: Hit,
        exact: Preimage,
        found: Found,
        started: Instant,
    ) -> Result<Arc<Chain>, BuildError> {
        let Hit { record, from } = hit;
        let origin = origin(&record, found);
        let tree = self.merged(base, &record).await?;
        let scope = self.engine.cache.write_scope().clone();
        let record = Record { preimage: exact, tree: tree.digest(), scope, ..record };
        let record = self.publish(record, false, Making::default()).await?;
        let chain = self.taken(step, base, Hit { record, from }, origin, started);
        let _ = chain.tree.set(Arc::new(tree));
        Ok(chain)
    }

    /// What a record's layers make of a chain.
    pub(super) async fn merged(&self, base: &Arc<Chain>, record: &Record) -> Result<Tree, BuildError> {
        let key = record.key();
        let mut tree = (*self.layers.tree(self.engine, base).await?).clone();
        for (number, layer) in (base.layers().len()..).zip(&record.layers) {
            let toc = self.layers.toc(self.engine, layer).await;
            let toc = toc.map_err(|error| with_key(error, Some(key)))?;
            tree.apply(u32::try_from(number).unwrap_or(u32::MAX), &toc)
                .map_err(|error| BuildError::cache("merging layers", error))?;
        }
        Ok(tree)
    }

    /// Puts a record's layers on top of a chain, and remembers the record.
    fn adopt(&self, step: &PlannedStep, base: &Arc<Chain>, record: Record) -> Arc<Chain> {
        let mut chain = Arc::clone(base);
        for descriptor in &record.layers {
            let layer = ChainLayer {
                descriptor: *descriptor,
                created: Some(record.created),
                key: Some(record.key()),
                is_copied: !matches!(step.op, Op::Run(_)),
            };
            chain = chain.with(layer, record.tree);
        }
        let mut records = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        records.push((step.id, BundleStep { slot: step.slot.clone(), record }));
        chain
    }

    async fn publish(&self, record: Record, replace: bool, making: Making) -> Result<Record, BuildError> {
        let published = self.engine.cache.publish_made(record, replace, making).await;
        published.map_err(|error| BuildError::cache("storing a step's result", error))
    }

    /// Stores a record under another key as well. Only a short cut: its loss costs time.
    pub(super) async fn publish_alias(
        &self,
        step: &PlannedStep,
        record: &Record,
        preimage: Preimage,
    ) -> Record {
        let record = Record { preimage, scope: self.engine.cache.write_scope().clone(), ..record.clone() };
        let making = Making { predecessor: self.predecessor(step), ..Making::default() };
        let _ = self.engine.cache.publish_made(record.clone(), true, making).await;
        self.found_by(step, record.clone());
        record
    }

    /// What the step had made the last time.
    pub(super) fn predecessor(&self, step: &PlannedStep) -> Option<Record> {
        let before = self.before.steps.iter().find(|before| before.slot == step.slot);
        before.map(|before| before.record.clone())
    }

    /// Keeps a record in the build's bundle by which the next build finds the step's result.
    pub(super) fn found_by(&self, step: &PlannedStep, record: Record) {
        let mut aliases = self.aliases.lock().unwrap_or_else(PoisonError::into_inner);
        aliases.push((step.id, BundleStep { slot: step.slot.clone(), record }));
    }

    /// Waits until no other build on this machine works on the same step.
    async fn lock(&self, step: &PlannedStep, key: &Key) -> Result<crate::store::Lock, BuildError> {
        let name = format!("step-{}", key.0.hex());
        let failed = |error| BuildError::cache("locking a step", error);
        let local = self.engine.cache.local();
        if let Some(lock) = local.try_lock(&name).map_err(failed)? {
            return Ok(lock);
        }
        self.emit(Event::StepStatus { step: step.id, status: "waiting for another build".to_owned() });
        local.lock(&name).await.map_err(failed)
    }

    pub(super) fn emit(&self, event: Event) {
        self.engine.events.emit(event);
    }
}

/// What is told of the record that a result comes from.
fn origin(record: &Record, found: Found) -> Origin {
    Origin {
        key: record.key().to_string(),
        scope: record.scope.to_string(),
        created: crate::image::time::format(record.created),
        builder: record.builder.clone(),
        found,
    }
}

/// What a step that ran made.
pub(crate) struct Made {
    pub(crate) descriptor: LayerDescriptor,
    pub(crate) tree: Arc<Tree>,
    pub(crate) log: Option<Digest>,
    /// What it looked at, if that is known.
    pub(crate) reads: Option<ReadSet>,
    /// Unkeyed build arguments whose values are in the layer or in the log.
    pub(crate) shown: Vec<String>,
}
