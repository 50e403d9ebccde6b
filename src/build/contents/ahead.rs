//! Reading ahead: what is known to be wanted comes in a few large requests, side by side, before anybody asks for it.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use futures_util::StreamExt as _;

use super::layer::WINDOW_MAX;
use super::pool::{Claim, Pool};
use super::{Contents, Counts, LayerFrames, lock};
use crate::tree::Node;

/// Requests at a time: enough to fill a connection over some distance, and few enough to leave room for what is read now.
const REQUESTS: usize = 4;

/// So many bytes that nobody asked for are taken along if that saves a request.
const GAP_MAX: u64 = 32 << 10;

impl Contents {
    /// Begins to fetch what the files `nodes` of this tree have and this machine does not, in the background; those named
    /// first come first. Whoever reads them meanwhile waits for what is under way. Returns at once, and may be called again.
    pub(crate) fn prefetch<'n>(&self, nodes: impl IntoIterator<Item = &'n Node>) {
        self.begin(self.jobs(nodes));
    }

    fn begin(&self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let (pool, counts) = (Arc::clone(&self.pool), Arc::clone(&self.counts));
        let task = self.pool.handle.spawn(async move {
            let all = futures_util::stream::iter(jobs).map(|job| fetch(&pool, job, &counts));
            let all = all.buffer_unordered(REQUESTS).take_while(|done| std::future::ready(*done));
            let all = all.for_each(|_| std::future::ready(()));
            tokio::select! {
                () = all => {}
                () = pool.engine.cancelled() => {}
            }
        });
        lock(&self.ahead).push(task.abort_handle());
    }

    /// Makes ready for reading `nodes`, each from its beginning to its end: layers of which most is wanted are fetched whole, and
    /// the rest is fetched ahead. What cannot be fetched shows when it is read.
    pub(crate) async fn expect(&self, nodes: &[&Node]) {
        let cache = &self.pool.engine.cache;
        let mut wanted: HashMap<usize, u64> = HashMap::new();
        let mut jobs = self.jobs(nodes.iter().copied());
        for job in &jobs {
            *wanted.entry(job.number).or_default() += job.layer.length(&job.numbers);
        }
        let most = wanted.into_iter().filter_map(|(number, wanted)| {
            let layer = &self.layers[number];
            (wanted >= layer.size() / 4 * 3).then(|| cache.blob_file(layer.digest(), layer.size()))
        });
        futures_util::future::join_all(most).await;
        let local = cache.local();
        jobs.retain(|job| !job.layer.is_local(local));
        self.begin(jobs);
    }

    /// Gives up what [`Contents::prefetch`] began.
    pub(crate) fn stop_reading_ahead(&self) {
        for task in lock(&self.ahead).drain(..) {
            task.abort();
        }
    }

    /// What is to be fetched for `nodes`.
    fn jobs<'n>(&self, nodes: impl IntoIterator<Item = &'n Node>) -> Vec<Job> {
        // When each frame of each layer is wanted.
        let mut wanted: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
        for (rank, node) in nodes.into_iter().enumerate() {
            let number = node.origin.layer as usize;
            let (size, offset) = (node.size(), node.origin.offset);
            let Some(layer) = self.layers.get(number).filter(|_| size > 0 && offset > 0) else { continue };
            let ends = [offset, offset.saturating_add(size - 1)].map(|at| layer.frame_at(at));
            let [Some((first, _)), Some((last, _))] = ends else { continue };
            let frames = wanted.entry(number).or_default();
            for frame in first..=last {
                frames.entry(frame).or_insert(rank);
            }
        }
        let mut jobs: Vec<Job> = Vec::new();
        for (number, frames) in wanted {
            let layer = &self.layers[number];
            if layer.is_local(self.pool.engine.cache.local()) {
                continue;
            }
            let absent = frames.into_iter().filter(|(frame, _)| !self.pool.is_here(layer, *frame));
            jobs.extend(merge(layer, number, absent));
        }
        jobs.sort_by_key(|job| job.rank);
        jobs
    }
}

/// Frames that are asked for in one request.
#[derive(Debug)]
struct Job {
    /// The layer's in the tree.
    number: usize,
    layer: Arc<LayerFrames>,
    numbers: RangeInclusive<usize>,
    /// The least of those of its frames: when it is wanted.
    rank: usize,
}

/// Puts frames that are close to each other into the same requests.
fn merge(
    layer: &Arc<LayerFrames>,
    layer_number: usize,
    frames: impl Iterator<Item = (usize, usize)>,
) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    for (number, rank) in frames {
        if let Some(last) = jobs.last_mut() {
            let gap = layer.range(&(number..=number)).start - layer.range(&last.numbers).end;
            let merged = *last.numbers.start()..=number;
            if gap <= GAP_MAX && layer.length(&merged) <= WINDOW_MAX {
                last.numbers = merged;
                last.rank = last.rank.min(rank);
                continue;
            }
        }
        jobs.push(Job { number: layer_number, layer: Arc::clone(layer), numbers: number..=number, rank });
    }
    jobs
}

/// Fetches what of a job nobody else is getting; `false` if there is no use in going on.
async fn fetch(pool: &Arc<Pool>, job: Job, counts: &Counts) -> bool {
    let mut runs: Vec<(RangeInclusive<usize>, Vec<Claim>)> = Vec::new();
    for number in job.numbers {
        let Some(claim) = pool.claim(job.layer.frames()[number].id) else { continue };
        if pool.is_here(&job.layer, number) {
            continue;
        }
        match runs.last_mut() {
            Some((numbers, claims)) if *numbers.end() + 1 == number => {
                *numbers = *numbers.start()..=number;
                claims.push(claim);
            }
            _ => runs.push((number..=number, vec![claim])),
        }
    }
    for (numbers, claims) in runs {
        let Ok(frames) = pool.fetch(&job.layer, numbers.clone(), counts).await else { return false };
        let (pool, layer) = (Arc::clone(pool), Arc::clone(&job.layer));
        let engine = pool.engine.clone();
        let kept = engine.blocking(move || {
            let kept = numbers.zip(&frames).all(|(number, bytes)| pool.keep(&layer, number, bytes));
            drop(claims);
            Ok(kept)
        });
        if !kept.await.unwrap_or(false) {
            return false;
        }
    }
    true
}
