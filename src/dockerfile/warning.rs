//! What is allowed but questionable, under the names of BuildKit's checks.

use super::source::Lines;

/// A finding of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The check's name, such as `NoEmptyContinuation`.
    pub rule: &'static str,
    /// What was found.
    pub message: String,
    /// Where.
    pub lines: Lines,
}
