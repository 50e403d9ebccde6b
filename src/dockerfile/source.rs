//! The text of a Dockerfile, kept so that messages can show the line they are about.

use std::fmt;
use std::sync::Arc;

/// A range of lines, counted from 1, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lines {
    /// The first line.
    pub start: usize,
    /// The last line, never before `start`.
    pub end: usize,
}

impl Lines {
    /// The range from `start` to `end`; an `end` before `start` means one line.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end: end.max(start) }
    }

    /// A single line.
    pub fn one(line: usize) -> Self {
        Self { start: line, end: line }
    }
}

impl fmt::Display for Lines {
    /// `12`, or `12-14`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.start == self.end {
            write!(f, "{}", self.start)
        } else {
            write!(f, "{}-{}", self.start, self.end)
        }
    }
}

/// The physical lines of a Dockerfile and the name that messages give it. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    name: Arc<str>,
    lines: Arc<[String]>,
}

impl SourceText {
    /// Splits `text` into lines; line ends (LF or CR LF) are left out.
    pub fn new(name: &str, text: &str) -> Self {
        Self { name: name.into(), lines: text.lines().map(str::to_owned).collect() }
    }

    /// The name that messages give the file, such as `Dockerfile`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Line `number`, counted from 1.
    pub fn line(&self, number: usize) -> Option<&str> {
        self.lines.get(number.checked_sub(1)?).map(String::as_str)
    }

    /// How many lines there are.
    pub fn line_count(&self) -> usize {
        self.lines.len()
    }
}
