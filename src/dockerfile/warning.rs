//! What is allowed but questionable, under the names of BuildKit's checks.

use super::lint::Rule;
use super::source::Lines;

/// A finding of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The check.
    pub rule: &'static Rule,
    /// What was found.
    pub message: String,
    /// Where, if it is about a place in the file.
    pub lines: Option<Lines>,
}
