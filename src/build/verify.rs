//! Checking hits: some of the commands that need not run are run all the same, and what they make is compared.

use std::sync::Arc;

use super::chain::Chain;
use super::error::BuildError;
use super::inputs::InputTree;
use super::mounts::{CacheMountOptions, CacheMountStores};
use super::plan::{Op, PlannedStage, PlannedStep, RunOp};
use super::solve::Solver;
use crate::digest::Digest;
use crate::dockerfile::Mount;
use crate::event::{Event, HitDifference};
use crate::layer::display_path;
use crate::record::{Key, Record};
use crate::tree::{ChangeKind, changes};

/// Paths that are named of one step.
const PATHS_MAX: usize = 100;

/// Which hits are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyHits {
    /// How many of a hundred, about.
    pub percent: u8,
    /// Another one in each build, so that in the course of many all are checked.
    pub seed: u64,
}

impl VerifyHits {
    /// Whether the record with this key is checked: each one with the same probability, and independently.
    pub fn chooses(&self, key: &Key) -> bool {
        let hash = Digest::of([&self.seed.to_le_bytes()[..], key.0.as_bytes()].concat());
        let number =
            hash.as_bytes().iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        number % 100 < self.percent.into()
    }
}

impl Solver<'_> {
    /// Runs a command whose result is known again, if its turn has come, and says what it made otherwise. The known
    /// result is what counts all the same: what was built on it stays right.
    ///
    /// # Errors
    /// If the build is over: cancelled, or without a blob that it needs. That the command fails now is only said.
    pub(super) async fn verify_hit(
        &self,
        stage: &PlannedStage,
        step: &PlannedStep,
        base: &Arc<Chain>,
        inputs: &[InputTree],
        record: &Record,
    ) -> Result<(), BuildError> {
        let Some(verify) = self.request.verify_hits else { return Ok(()) };
        let is_chosen = matches!(step.op, Op::Run(_)) && verify.chooses(&record.key());
        if !is_chosen || self.request.dry_run {
            return Ok(());
        }
        let status = "running again, to compare with the cached result".to_owned();
        self.emit(Event::StepStatus { step: step.id, status });
        let known = self.merged(base, record).await?;
        let name = format!("{}:{}: `{}`", self.dockerfile.name, step.lines, step.instruction);
        // With what is in its cache mounts it might make the same once more; without, it shows whether it depends on that.
        let caches = CacheMountOptions { stores: CacheMountStores::Off, ..self.request.cache_mounts };
        let made = match self.work(stage, step, base, inputs, None, caches).await {
            Ok(made) => made,
            Err(error @ (BuildError::Cancelled | BuildError::Lost { .. })) => return Err(error),
            Err(error) => {
                let error = crate::hint::with_causes(&error);
                let message = format!("{name} has a cached result and could not be run again: {error}");
                self.emit(Event::Warning { message });
                return Ok(());
            }
        };
        let found = changes(&known, &made.tree, PATHS_MAX);
        let differences = found.into_iter().map(|change| HitDifference {
            path: format!("/{}", display_path(&change.path)),
            change: match change.kind {
                ChangeKind::Added => "added",
                ChangeKind::Removed => "removed",
                ChangeKind::Content => "content",
                ChangeKind::Metadata => "metadata",
            },
        });
        let differences = differences.collect();
        let uses_caches =
            |op: &RunOp| op.mounts.iter().any(|mount| matches!(mount.mount, Mount::Cache { .. }));
        let empty_mounts = matches!(&step.op, Op::Run(op) if uses_caches(op));
        self.emit(Event::HitVerified { step: step.id, name, differences, empty_mounts });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_chosen_with_the_probability_that_was_asked_for() {
        let chosen = |percent: u8| {
            let verify = |seed| VerifyHits { percent, seed };
            (0..4000_u64).filter(|seed| verify(*seed).chooses(&Key(Digest::of("a step")))).count()
        };
        assert_eq!((chosen(0), chosen(100)), (0, 4000));
        assert!((130..270).contains(&chosen(5)), "{}", chosen(5));
        let verify = VerifyHits { percent: 50, seed: 7 };
        let keys = (0..4000_u64).filter(|number| verify.chooses(&Key(Digest::of(number.to_le_bytes()))));
        assert!((1800..2200).contains(&keys.count()));
    }
}
