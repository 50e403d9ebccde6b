//! What changed in the trees that a step reads since the last build. It only serves explanations: whatever cannot be
//! found out is left out, and nothing is fetched for it that is not small.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::chain::Chain;
use super::copy::step as copy_step;
use super::inputs::InputTree;
use super::plan::{Op, PlannedStage, PlannedStep, Start};
use super::solve::Solver;
use crate::digest::Digest;
use crate::event::Why;
use crate::explain::{self, Changes, Difference};
use crate::layer::{Entry, EntryKind};
use crate::record::{BundleStep, Preimage, Record};

/// As many names are collected; a reason shows fewer.
const FILES_MAX: usize = 100;

/// What of a path's content can be told apart.
type Contents = BTreeMap<Vec<u8>, Option<Digest>>;

impl Solver<'_> {
    /// Why the step, whose key is `exact`, is in no record. `traced` is the nearest record of the same definition, and
    /// what the step would see otherwise than there.
    pub(super) async fn why(
        &self,
        stage: &PlannedStage,
        step: &PlannedStep,
        base: &Arc<Chain>,
        inputs: &[InputTree],
        exact: &Preimage,
        traced: Option<(Preimage, Vec<Difference>)>,
    ) -> Why {
        if let Some((nearest, seen)) = traced {
            let changes = Changes { seen, ..Changes::default() };
            return explain::why(None, exact, &changes, Some(&nearest));
        }
        let slot = || self.before.steps.iter().filter(|before| before.slot == step.slot);
        // Of several that are as near the latest is the one that people remember.
        let nearest = slot()
            .filter(|before| before.record.preimage.reads().is_none())
            .min_by_key(|before| explain::distance(&before.record.preimage, exact));
        let mut changes = self.changes(stage, step, base, inputs, nearest, slot().next()).await;
        changes.arguments = arguments(stage, step);
        explain::why(nearest.map(|before| &before.record.preimage), exact, &changes, None)
    }

    async fn changes(
        &self,
        stage: &PlannedStage,
        step: &PlannedStep,
        base: &Arc<Chain>,
        inputs: &[InputTree],
        before: Option<&BundleStep>,
        latest: Option<&BundleStep>,
    ) -> Changes {
        let Some(before) = before else { return Changes::default() };
        let mut files = BTreeSet::new();
        if before.record.preimage.get("tree") != Some(&base.digest.into()) {
            // What the earlier steps were is known of the last build only.
            if latest.is_some_and(|latest| latest.record.tree != before.record.tree) {
                return Changes::default();
            }
            let found_cause = self.earlier_steps(stage, step, &mut files).await;
            let base = !found_cause && files.is_empty();
            return Changes { files: names(&files), base, ..Changes::default() };
        }
        if let Op::Copy(op) = &step.op
            && let Some(input) = inputs.first()
            && let Some(old) = self.contents_of(&before.record).await
        {
            let rules =
                super::copy::copier::Rules { owner: None, chmod: None, now: self.engine.now(), epoch: None };
            let source = self.layers.input_tree(self.engine, input).await;
            let tree = self.layers.tree(self.engine, base).await;
            if let (Ok(source), Ok(tree)) = (source, tree)
                && !op.unpack
                && op.remotes.is_empty()
            {
                let opener: &dyn super::copy::Opener = &super::copy::NoFiles;
                let staged = copy_step::copy(
                    &*tree,
                    Some((&*source, opener)),
                    &[],
                    op,
                    &rules,
                    std::path::Path::new("/"),
                );
                let new = staged.unwrap_or_default().into_iter().filter_map(|(path, staged)| {
                    contents(&Entry { path, metadata: staged.node.metadata, kind: staged.node.kind })
                });
                compare(&old, &new.collect(), &mut files);
            }
        }
        Changes { files: names(&files), ..Changes::default() }
    }

    /// Collects what the steps before `step` changed otherwise than last time; `true` if any of them did.
    async fn earlier_steps(
        &self,
        stage: &PlannedStage,
        step: &PlannedStep,
        files: &mut BTreeSet<String>,
    ) -> bool {
        let mut slots: Vec<&str> = stage
            .steps
            .iter()
            .take_while(|earlier| earlier.id != step.id)
            .map(|earlier| earlier.slot.as_str())
            .collect();
        let mut start = stage.start;
        while let Start::Stage(base) = start {
            slots.extend(self.plan.stages[base].steps.iter().map(|earlier| earlier.slot.as_str()));
            start = self.plan.stages[base].start;
        }
        let mut any = false;
        for slot in slots {
            let is_here = |step: &&BundleStep| step.slot == slot;
            let old = self.before.steps.iter().find(is_here).map(|step| step.record.clone());
            let new = {
                let records = self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                records.iter().map(|(_, step)| step).find(is_here).map(|step| step.record.clone())
            };
            let (Some(old), Some(new)) = (old, new) else {
                any = true;
                continue;
            };
            if old.layers == new.layers {
                continue;
            }
            any = true;
            if let (Some(old), Some(new)) = (self.contents_of(&old).await, self.contents_of(&new).await) {
                compare(&old, &new, files);
            }
        }
        any
    }

    /// What the layers of a record add.
    async fn contents_of(&self, record: &Record) -> Option<Contents> {
        let mut all = Contents::new();
        for layer in &record.layers {
            let toc = self.layers.toc(self.engine, layer).await.ok()?;
            all.extend(toc.entries.iter().filter_map(contents));
        }
        Some(all)
    }
}

/// The variables of a command that are build arguments: they are in its environment, and not in the image's.
fn arguments(stage: &PlannedStage, step: &PlannedStep) -> BTreeSet<String> {
    let Op::Run(op) = &step.op else { return BTreeSet::new() };
    let image: BTreeSet<&str> =
        stage.image.config.env.iter().filter_map(|pair| pair.split('=').next()).collect();
    let names = op.env.iter().map(|(name, _)| name).filter(|name| !image.contains(name.as_str()));
    names.cloned().collect()
}

/// A path and its content; nothing for directories, which say little.
fn contents(entry: &Entry) -> Option<(Vec<u8>, Option<Digest>)> {
    let content = match &entry.kind {
        EntryKind::Directory { .. } => return None,
        EntryKind::File { content, .. } => Some(*content),
        EntryKind::Symlink { target } | EntryKind::HardLink { target } => Some(Digest::of(target)),
        _ => None,
    };
    Some((entry.path.clone(), content))
}

fn compare(old: &Contents, new: &Contents, files: &mut BTreeSet<String>) {
    let different = new
        .iter()
        .filter(|(path, content)| old.get(*path) != Some(content))
        .map(|(path, _)| path)
        .chain(old.keys().filter(|path| !new.contains_key(*path)));
    for path in different {
        if files.len() < FILES_MAX {
            files.insert(format!("/{}", String::from_utf8_lossy(path)));
        }
    }
}

fn names(files: &BTreeSet<String>) -> Vec<String> {
    files.iter().cloned().collect()
}
