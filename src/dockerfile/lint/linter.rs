//! Collects what the rules find, less what is switched off.

use std::sync::{Arc, Mutex, PoisonError};

use super::super::Warning;
use super::super::directive::Check;
use super::super::source::Lines;
use super::finding::Finding;

/// Takes findings. Clones and [`Linter::above`] share what is collected.
#[derive(Debug, Clone, Default)]
pub struct Linter {
    check: Arc<Check>,
    found: Arc<Mutex<Found>>,
}

#[derive(Debug, Default)]
struct Found {
    warnings: Vec<Warning>,
    /// How many of them have been taken.
    taken: usize,
}

impl Linter {
    /// A linter that obeys `check`.
    pub fn new(check: Check) -> Self {
        Self { check: Arc::new(check), found: Arc::default() }
    }

    /// The linter for an instruction with these comments directly above it, which may switch rules off and on.
    #[must_use]
    pub fn above(&self, comments: &[String]) -> Self {
        let Some(more) = Check::in_comments(comments) else { return self.clone() };
        Self { check: Arc::new(self.check.merged(more)), found: Arc::clone(&self.found) }
    }

    /// Reports, unless the rule is switched off. Without `lines` the finding has no place.
    pub fn report(&self, finding: Finding, lines: impl Into<Option<Lines>>) {
        let Finding { rule, message } = finding;
        let wanted =
            if rule.experimental { self.check.tries(rule.name) } else { !self.check.skips(rule.name) };
        if wanted {
            self.found().warnings.push(Warning { rule, message, lines: lines.into() });
        }
    }

    /// The findings since the last call, in the order in which they were made.
    pub fn take(&self) -> Vec<Warning> {
        let mut found = self.found();
        let new = found.warnings[found.taken..].to_vec();
        found.taken = found.warnings.len();
        new
    }

    /// All findings.
    pub fn warnings(&self) -> Vec<Warning> {
        self.found().warnings.clone()
    }

    /// What a build has to fail with, if findings are errors (`error=true`) and there are some.
    pub fn violation(&self) -> Option<String> {
        let mut rules: Vec<&str> = self.found().warnings.iter().map(|warning| warning.rule.name).collect();
        rules.sort_unstable();
        rules.dedup();
        (self.check.error && !rules.is_empty())
            .then(|| format!("lint violation found for rules: {}", rules.join(", ")))
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
