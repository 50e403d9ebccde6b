//! The error of everything that reads a Dockerfile: it shows the line and points at the word.

use std::fmt;

use super::source::{Lines, SourceText};
use crate::hint::{Hint, did_you_mean};

/// How many characters of a line a message shows: one line of a wide terminal.
const SHOWN: usize = 120;

/// How many lines of an instruction are searched for the word to point at: an instruction may carry a whole heredoc.
const SEARCHED: usize = 200;

/// What is wrong with a Dockerfile, and where.
///
/// Displayed with the offending line and a caret under the offending word:
/// ```text
/// Dockerfile:12: unknown instruction `COYP`
///    12 | COYP a b
///       | ^^^^
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerfileError(Box<Details>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Details {
    file: String,
    lines: Lines,
    message: String,
    /// The text of the first lines of `lines`.
    excerpt: Vec<String>,
    /// Where the offending word is: index in `excerpt`, byte offset and length.
    mark: Option<(usize, usize, usize)>,
    hint: Option<String>,
}

impl DockerfileError {
    /// An error about `lines` of `source`; `message` is a fragment without a final period.
    pub fn at(source: &SourceText, lines: Lines, message: impl Into<String>) -> Self {
        let last = lines.end.min(lines.start.saturating_add(SEARCHED));
        let excerpt =
            (lines.start..=last).map_while(|number| source.line(number)).map(str::to_owned).collect();
        Self(Box::new(Details {
            file: source.name().to_owned(),
            lines,
            message: message.into(),
            excerpt,
            mark: None,
            hint: None,
        }))
    }

    /// Points at the first occurrence of `word` in the instruction, as a whole word if there is one.
    pub fn word(mut self, word: &str) -> Self {
        if word.is_empty() {
            return self;
        }
        let details = &mut self.0;
        let find = |whole: bool| {
            details.excerpt.iter().enumerate().find_map(|(index, line)| {
                line.match_indices(word)
                    .find(|(at, _)| !whole || is_whole_word(line, *at, word.len()))
                    .map(|(at, _)| (index, at, word.len()))
            })
        };
        details.mark = find(true).or_else(|| find(false));
        self
    }

    /// Adds advice: the next step as one sentence without a final period.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds "did you mean …?" if one of `candidates` is near `word`.
    pub fn suggest<'a>(mut self, word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Self {
        if let Some(meant) = did_you_mean(word, candidates) {
            self.0.hint = Some(format!("did you mean {meant}?"));
        }
        self
    }

    /// The name of the file.
    pub fn file(&self) -> &str {
        &self.0.file
    }

    /// The lines of the instruction that is wrong.
    pub fn lines(&self) -> Lines {
        self.0.lines
    }

    /// What is wrong, without place and excerpt.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

/// Whether the text at `at` is delimited by something that cannot be part of a word or path.
fn is_whole_word(line: &str, at: usize, length: usize) -> bool {
    let inside = |c: char| c.is_alphanumeric() || "_-./".contains(c);
    !line[..at].ends_with(inside) && !line[at + length..].starts_with(inside)
}

/// `text` safe for a terminal: no control characters, tabs as four blanks.
fn printable(text: &str) -> String {
    text.replace('\t', "    ")
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

impl fmt::Display for DockerfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let details = &self.0;
        let (index, at, length) = details.mark.unwrap_or((0, 0, 0));
        let number = details.lines.start + index;
        write!(f, "{}:{number}: {}", printable(&details.file), printable(&details.message))?;
        let Some(line) = details.excerpt.get(index) else { return Ok(()) };
        let before = printable(&line[..at]);
        let marked = printable(&line[at..at + length]);
        let after = printable(&line[at + length..]);
        // A long line is shown from shortly before the word, so that the word is always in sight.
        let skipped = before.chars().count().saturating_sub(SHOWN / 2);
        let lead: String = if skipped > 0 {
            "…".chars().chain(before.chars().skip(skipped + 1)).collect()
        } else {
            before
        };
        let whole = format!("{lead}{marked}{after}");
        let mut shown: String = whole.chars().take(SHOWN).collect();
        if whole.chars().count() > SHOWN {
            shown.push('…');
        }
        write!(f, "\n{number:>5} | {}", shown.trim_end())?;
        if length > 0 {
            let lead = lead.chars().count();
            let carets = marked.chars().count().clamp(1, SHOWN.saturating_sub(lead).max(1));
            write!(f, "\n      | {}{}", " ".repeat(lead), "^".repeat(carets))?;
        }
        Ok(())
    }
}

impl std::error::Error for DockerfileError {}

impl Hint for DockerfileError {
    fn hint(&self) -> Option<String> {
        self.0.hint.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> SourceText {
        SourceText::new("Dockerfile", text)
    }

    #[test]
    fn shows_the_line_and_points_at_the_word() {
        let source = source("FROM a\n\tCOYP x \\\n  y app/\n");
        let error = DockerfileError::at(&source, Lines::new(2, 3), "unknown instruction `COYP`")
            .word("COYP")
            .suggest("COYP", ["COPY", "RUN"]);
        assert_eq!(
            error.to_string(),
            "Dockerfile:2: unknown instruction `COYP`\n    2 |     COYP x \\\n      |     ^^^^"
        );
        assert_eq!(error.hint().as_deref(), Some("did you mean COPY?"));

        let error = DockerfileError::at(&source, Lines::new(2, 3), "not found").word("app/");
        assert_eq!(error.to_string(), "Dockerfile:3: not found\n    3 |   y app/\n      |     ^^^^");
    }

    #[test]
    fn prefers_whole_words() {
        let source = source("COPY app.js app");
        let error = DockerfileError::at(&source, Lines::one(1), "x").word("app");
        assert!(error.to_string().ends_with("\n      |             ^^^"), "{error}");
    }

    #[test]
    fn long_and_hostile_lines_stay_readable() {
        let source = source(&format!("RUN {} \u{1b}[31mneedle {}", "x".repeat(500), "y".repeat(500)));
        let text = DockerfileError::at(&source, Lines::one(1), "x").word("needle").to_string();
        assert!(text.contains("needle") && !text.contains('\u{1b}'));
        assert!(text.lines().all(|line| line.chars().count() < 140), "{text}");
        // A place beyond the text is not a panic.
        assert_eq!(
            DockerfileError::at(&source, Lines::one(9), "gone").word("a").to_string(),
            "Dockerfile:9: gone"
        );
    }
}
