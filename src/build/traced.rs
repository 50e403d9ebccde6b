//! Traced keys: a command is not run again if all that it looked at is unchanged, whatever else is different.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::{join, join_all};

use super::chain::Chain;
use super::error::BuildError;
use super::inputs::InputTree;
use super::plan::{Op, PlannedStep};
use super::served::ReadSet;
use super::solve::Solver;
use crate::digest::Digest;
use crate::dockerfile::Mount;
use crate::explain::{Difference, readers};
use crate::record::{
    Bundle, BundleName, BundleStep, Preimage, READERS_BYTES_MAX, Record, SHAPE_BYTES_MAX, Shape,
    VALUES_BYTES_MAX, Values,
};
use crate::store::Hit;
use crate::tree::{Look, Observer, Tree};

/// Shapes of one definition that are tried: a step that reads other files with other inputs has some of them, and each
/// costs looking at all its paths.
const SHAPES_MAX: usize = 16;

/// Records of one definition that are kept for others to find.
const RECORDS_MAX: usize = 48;

/// A record that is not in a bundle is asked for at the remote store only for this many shapes: each is a round trip.
const ASKED_MAX: usize = 2;

/// Differences that are named; a reason shows fewer.
const DIFFERENCES_MAX: usize = 100;

/// Records among which the nearest is looked for: what each saw may have to be fetched.
const COMPARED_MAX: usize = 4;

/// What a step would see today.
struct Today<'t> {
    trees: &'t [Arc<Tree>],
    observers: Vec<Observer<'t>>,
    /// Shapes that were tried.
    tried: HashSet<Digest>,
    /// Those of them that could be read, and what is seen of them.
    seen: HashMap<Digest, (Shape, Values)>,
}

impl<'t> Today<'t> {
    fn new(trees: &'t [Arc<Tree>]) -> Self {
        let observers = trees.iter().map(|tree| Observer::new(tree)).collect();
        Self { trees, observers, tried: HashSet::new(), seen: HashMap::new() }
    }
}

/// What is known of a step under traced keys.
#[derive(Debug, Default)]
pub(crate) struct TracedStep {
    /// A record for what the step would see today.
    pub(crate) hit: Option<Hit>,
    /// What is different from what it saw in the nearest of the earlier records, and the key's preimage of that, if any
    /// is known.
    pub(crate) nearest: Option<(Preimage, Vec<Difference>)>,
    /// What it looked at the last time, if it is to run again.
    pub(crate) last: Option<Shape>,
    /// The records of its definition.
    pub(crate) known: Bundle,
}

impl Solver<'_> {
    /// Whether what the step reads is traced.
    pub(super) fn is_traced(&self, step: &PlannedStep) -> bool {
        let Op::Run(op) = &step.op else { return false };
        // Devices of the host are no files of a tree.
        let is_sandboxed = op.security == crate::dockerfile::Security::Sandbox;
        self.request.trace && op.trace && self.engine.serves_files() && is_sandboxed
    }

    /// Looks for a record of the step for what it would see today.
    pub(super) async fn look_up_traced(
        &self,
        step: &PlannedStep,
        exact: &Preimage,
        base: &Arc<Chain>,
        inputs: &[InputTree],
    ) -> Result<TracedStep, BuildError> {
        let definition = exact.definition();
        let is_ours = |record: &&Record| {
            record.preimage.reads().is_some() && record.preimage.definition() == definition
        };
        let slot = self.before.steps.iter().filter(|before| before.slot == step.slot);
        let mut candidates: Vec<Record> =
            slot.map(|before| &before.record).filter(is_ours).cloned().collect();
        let mut found = TracedStep::default();
        let trees = self.trees(step, base, inputs).await?;
        let mut today = Today::new(&trees);
        found.hit = self.try_shapes(&definition, &candidates, &mut today).await;
        if found.hit.is_some() {
            return Ok(found);
        }
        found.known = self.engine.cache.bundle(&BundleName::shapes(&definition)).await.unwrap_or_default();
        let known = found.known.steps.iter().map(|step| &step.record).filter(is_ours);
        candidates.extend(known.cloned());
        found.hit = self.try_shapes(&definition, &candidates, &mut today).await;
        if found.hit.is_none()
            && let Some(latest) = candidates.first()
        {
            found.nearest = self.nearest(&candidates, &today).await;
            if let Some((shape, _)) = latest.preimage.reads() {
                found.last = today.seen.remove(&shape).map(|(shape, _)| shape);
            }
        }
        Ok(found)
    }

    /// What the step looks into: the tree that it starts from, then what its mounts show.
    async fn trees(
        &self,
        step: &PlannedStep,
        base: &Arc<Chain>,
        inputs: &[InputTree],
    ) -> Result<Vec<Arc<Tree>>, BuildError> {
        let mut trees = vec![self.layers.tree(self.engine, base).await?];
        let Op::Run(op) = &step.op else { return Ok(trees) };
        for (mount, input) in op.mounts.iter().zip(inputs) {
            if shows_files(&mount.mount, input) {
                trees.push(self.layers.input_tree(self.engine, input).await?);
            }
        }
        Ok(trees)
    }

    /// Tries the shapes of `candidates`, in their order, except those that were.
    async fn try_shapes(
        &self,
        definition: &Preimage,
        candidates: &[Record],
        today: &mut Today<'_>,
    ) -> Option<Hit> {
        for record in candidates {
            let Some((digest, _)) = record.preimage.reads() else { continue };
            if today.tried.len() >= SHAPES_MAX {
                break;
            }
            if !today.tried.insert(digest) {
                continue;
            }
            let Some(shape) = self.shape(&digest).await else { continue };
            let Some(values) = shape.values(&today.observers) else { continue };
            let traced = definition.traced(digest, Digest::of(values.encode()));
            let key = traced.key();
            today.seen.insert(digest, (shape, values));
            let hit = if today.tried.len() <= ASKED_MAX {
                self.engine.cache.lookup_aside(&key).await
            } else {
                self.engine.cache.lookup_here(&key).await
            };
            if hit.is_some() {
                return hit;
            }
        }
        None
    }

    async fn shape(&self, digest: &Digest) -> Option<Shape> {
        let bytes = self.engine.cache.read_blob(digest, SHAPE_BYTES_MAX).await?;
        Shape::decode(&bytes).ok()
    }

    /// Which of the latest records saw most of what would be seen today, and what it saw otherwise.
    async fn nearest(&self, records: &[Record], today: &Today<'_>) -> Option<(Preimage, Vec<Difference>)> {
        let mut known = HashSet::new();
        let is_new = |record: &&Record| known.insert(record.preimage.key());
        let compared: Vec<&Record> = records.iter().filter(is_new).take(COMPARED_MAX).collect();
        let differences = join_all(compared.iter().map(|record| self.differences(record, today))).await;
        let pairs = compared.into_iter().zip(differences);
        let found = pairs.filter_map(|(record, differences)| Some((record.preimage.clone(), differences?)));
        // Of several that are as near it is the latest.
        found.min_by_key(|(_, differences)| differences.len())
    }

    /// What is seen otherwise today than when `record` was made.
    async fn differences(&self, record: &Record, today: &Today<'_>) -> Option<Vec<Difference>> {
        let (shape, values) = record.preimage.reads()?;
        let (shape, now) = today.seen.get(&shape)?;
        let cache = &self.engine.cache;
        let (values, readers) =
            join(cache.read_blob(&values, VALUES_BYTES_MAX), readers(cache, record)).await;
        let values = Values::decode(&values?)?;
        let seen = values.0.iter().zip(&now.0);
        let readers = readers.0.into_iter().chain(std::iter::repeat(None));
        let mut differences = Vec::new();
        for (((tree, path, look), (before, now)), by) in shape.paths().zip(seen).zip(readers) {
            if before == now {
                continue;
            }
            if differences.len() == DIFFERENCES_MAX {
                break;
            }
            let was_there = !crate::record::is_absent(before, look);
            let is_there = today.trees.get(tree).is_some_and(|tree| tree.get(path).is_some());
            let name = crate::layer::display_path(path);
            let path = if path.is_empty() { name } else { format!("/{name}") };
            differences.push(match (was_there, is_there) {
                (false, _) => Difference::Appeared(path),
                (true, false) => Difference::Gone(path),
                (true, true) if look.has(Look::CONTENT) => Difference::Content { path, by },
                (true, true) if look.has(Look::NAMES) => Difference::Names { path, by },
                (true, true) => Difference::Attributes(path),
            });
        }
        Some(differences)
    }

    /// Records a result under what the step looked at and saw. `known` are the records of its definition, if they have been
    /// looked up.
    pub(super) async fn publish_traced(
        &self,
        step: &PlannedStep,
        record: &Record,
        reads: &ReadSet,
        known: Option<Bundle>,
        base: &Arc<Chain>,
        inputs: &[InputTree],
    ) -> Result<(), BuildError> {
        let trees = self.trees(step, base, inputs).await?;
        let Some(values) = reads.shape.values(&Today::new(&trees).observers) else { return Ok(()) };
        let (shape, values) = (reads.shape.encode(), values.encode());
        if shape.len() as u64 > SHAPE_BYTES_MAX || values.len() as u64 > VALUES_BYTES_MAX {
            return Ok(());
        }
        let store = |bytes| {
            let stored = self.engine.cache.local().store_bytes(bytes);
            stored.map_err(|error| BuildError::cache("storing what a step read", error))
        };
        let definition = record.preimage.definition();
        let traced = definition.traced(store(shape)?, store(values)?);
        let readers = reads.readers.encode();
        let readers = (readers.len() as u64 <= READERS_BYTES_MAX).then(|| store(readers)).transpose()?;
        let record = Record { readers, ..record.clone() };
        // The latest result counts: an earlier one for the same would have been a hit.
        let record = self.publish_alias(step, &record, traced).await;
        let mut bundle = Bundle { steps: vec![BundleStep { slot: "shape".to_owned(), record }] };
        let mut keys: HashSet<_> = bundle.steps.iter().map(|step| step.record.key()).collect();
        let name = BundleName::shapes(&definition);
        let known = match known {
            Some(known) => known,
            None => self.engine.cache.bundle(&name).await.unwrap_or_default(),
        };
        let earlier = known.steps.into_iter().filter(|step| keys.insert(step.record.key()));
        bundle.steps.extend(earlier.take(RECORDS_MAX - 1));
        let _ = self.engine.cache.publish_bundle(&name, bundle).await;
        Ok(())
    }
}

/// Whether a mount shows a tree that the step's key depends on.
pub(super) fn shows_files(mount: &Mount, input: &InputTree) -> bool {
    matches!(mount, Mount::Bind { .. }) && !input.is_empty()
}
