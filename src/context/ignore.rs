//! `.dockerignore`: which files of the context do not count.
//!
//! The last rule that matches a path or one of its parent directories decides. Parents are decided on first, as the
//! original does when it walks a directory: a rule that could not matter for a directory (a `!` where nothing is excluded,
//! or the other way round) is not held against what lies beneath it.

use super::pattern::{BadPattern, DeepPattern};
use crate::dockerfile::clean_path;

/// The longest line, without its end: what the original's scanner can hold.
const MAX_LINE: usize = 65_535;

/// The rules of one file, or of the `--exclude` options of an instruction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignore {
    rules: Vec<Rule>,
}

/// A line that is a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its number, counted from 1.
    pub line: usize,
    /// The line as written, without blanks around it.
    pub text: String,
    /// Whether it begins with `!`: what it matches counts after all.
    pub negated: bool,
    pattern: DeepPattern,
}

/// Why a line is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// The pattern is malformed.
    #[error("{name}:{line}: syntax error in pattern {text:?}")]
    Pattern {
        /// The file.
        name: String,
        /// The line's number, counted from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// `!` without a pattern.
    #[error("{name}:{line}: nothing follows the exclamation mark")]
    OnlyMark {
        /// The file.
        name: String,
        /// The line's number, counted from 1.
        line: usize,
    },
    /// The line is too long.
    #[error("{name}:{line}: the line is longer than {MAX_LINE} bytes")]
    TooLong {
        /// The file.
        name: String,
        /// The line's number, counted from 1.
        line: usize,
    },
}

impl crate::hint::Hint for IgnoreError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Pattern { text, .. } if text.contains('\\') => {
                Some("a backslash takes the next character literally; write paths with /".to_owned())
            }
            Self::Pattern { .. } => {
                Some("close each [ with ], and write ranges such as [a-z] in ascending order".to_owned())
            }
            Self::OnlyMark { .. } => Some("write a pattern behind the !, or remove the line".to_owned()),
            Self::TooLong { .. } => None,
        }
    }
}

/// Which rules match a directory; needed to decide on what lies directly in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matched(Vec<bool>);

impl Ignore {
    /// Reads an ignore file. `name` is what messages call it.
    pub fn parse(name: &str, text: &[u8]) -> Result<Self, IgnoreError> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let mut rules = Vec::new();
        for (index, bytes) in text.split(|b| *b == b'\n').enumerate() {
            let line = index + 1;
            if bytes.len() > MAX_LINE {
                return Err(IgnoreError::TooLong { name: name.to_owned(), line });
            }
            let content = String::from_utf8_lossy(bytes);
            // A comment begins in the first column.
            if !content.starts_with('#') {
                rules.extend(parse_rule(name, line, content.trim())?);
            }
        }
        Ok(Self { rules })
    }

    /// The rules of `--exclude` options; numbered in order, from 1. `name` is what messages call them.
    pub fn from_patterns<'p>(
        name: &str,
        patterns: impl IntoIterator<Item = &'p str>,
    ) -> Result<Self, IgnoreError> {
        let mut rules = Vec::new();
        for (index, pattern) in patterns.into_iter().enumerate() {
            rules.extend(parse_rule(name, index + 1, pattern.trim())?);
        }
        Ok(Self { rules })
    }

    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules, in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Decides on `path`, which lies directly in the directory that `parent` was made for, or in the root with
    /// `Matched::default()`. Gives the rule that excludes it, if one does, and what is needed to decide on its children.
    ///
    /// Paths are relative to the root, with `/` between the elements, and without `.` or `..`.
    pub fn decide(&self, path: &[u8], parent: &Matched) -> (Option<&Rule>, Matched) {
        let mut matched = vec![false; self.rules.len()];
        let mut excluded = None;
        for (index, rule) in self.rules.iter().enumerate() {
            let inherited = parent.0.get(index) == Some(&true);
            // A rule that would change nothing is not looked at.
            if !inherited && (rule.negated != excluded.is_some() || !rule.pattern.matches(path)) {
                continue;
            }
            matched[index] = true;
            excluded = if rule.negated { None } else { Some(rule) };
        }
        (excluded, Matched(matched))
    }

    /// The rule that excludes `path`, if it is excluded.
    pub fn excluded_by(&self, path: &[u8]) -> Option<&Rule> {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        if self.is_empty() || path.is_empty() || path == b"." {
            return None;
        }
        let mut parent = Matched::default();
        for (at, _) in path.iter().enumerate().filter(|(at, byte)| **byte == b'/' && *at > 0) {
            parent = self.decide(&path[..at], &parent).1;
        }
        self.decide(path, &parent).0
    }

    /// Whether `path` is excluded.
    pub fn is_excluded(&self, path: &[u8]) -> bool {
        self.excluded_by(path).is_some()
    }

    /// Whether `path`, as COPY has it, is excluded with all that is in it, told from the rules alone: a rule matches it
    /// or a directory above it. Never, if there are exceptions, because these may be about files in it. A `/` in front
    /// is taken as BuildKit takes it (`MatchesOrParentMatches`): only what matches everything matches such a path.
    pub fn excludes_as_written(&self, path: &str) -> bool {
        if self.rules.iter().any(|rule| rule.negated) {
            return false;
        }
        let matches = |path: &str| self.rules.iter().any(|rule| rule.pattern.matches(path.as_bytes()));
        matches(path) || path.match_indices('/').any(|(at, _)| matches(&path[..at]))
    }

    /// Whether something beneath the excluded directory `dir` might not be excluded. If not, the directory need not be
    /// read at all.
    pub fn may_keep_beneath(&self, dir: &[u8]) -> bool {
        self.rules.iter().any(|rule| rule.negated && rule.pattern.may_match_beneath(dir))
    }
}

/// The rule on a line without blanks around it; none if the line is empty.
fn parse_rule(name: &str, line: usize, text: &str) -> Result<Option<Rule>, IgnoreError> {
    if text.is_empty() {
        return Ok(None);
    }
    let only_mark = || IgnoreError::OnlyMark { name: name.to_owned(), line };
    let (negated, rest) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest.trim()));
    if rest.is_empty() {
        return Err(only_mark());
    }
    let mut cleaned = clean_path(rest);
    if cleaned.len() > 1 && cleaned.starts_with('/') {
        cleaned.remove(0);
    } else if negated && cleaned == "/" {
        // `!/` loses its slash to the second cleaning that the original does.
        return Err(only_mark());
    }
    let pattern = DeepPattern::new(&cleaned).map_err(|BadPattern| IgnoreError::Pattern {
        name: name.to_owned(),
        line,
        text: text.to_owned(),
    })?;
    Ok(Some(Rule { line, text: text.to_owned(), negated, pattern }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ignore(lines: &[&str]) -> Ignore {
        Ignore::parse(".dockerignore", lines.join("\n").as_bytes()).unwrap()
    }

    /// From the tests of `moby/patternmatcher`, paths without a trailing slash.
    const ORIGINAL: &[(&[&str], &str, bool)] = &[
        (&["*"], "fileutils.go", true),
        (&["*.go"], "fileutils.go", true),
        (&["!fileutils.go", "*.go"], "fileutils.go", true),
        (&["docs", "!docs/README.md"], "docs/README.md", false),
        (&["docs/", "!docs/README.md"], "docs/README.md", false),
        (&["docs/*", "!docs/README.md"], "docs/README.md", false),
        (&["*.go", "!fileutils.go"], "fileutils.go", false),
        (&["*.go"], ".", false),
        (&[], "any/path/there", false),
        (&["**"], "file", true),
        (&["**/"], "file", true),
        (&["**"], "dir/file", true),
        (&["**/**"], "dir/file", true),
        (&["dir/**"], "dir/file", true),
        (&["dir/**"], "dir/dir2/file", true),
        (&["**/dir"], "dir", true),
        (&["**/dir"], "dir/file", true),
        (&["**/dir2/*"], "dir/dir2/file", true),
        (&["**/dir2/**"], "dir/dir2/dir3/file", true),
        (&["**file"], "file", true),
        (&["**file"], "dir/file", true),
        (&["**/file"], "dir/dir/file", true),
        (&["**/file*"], "dir/dir/file.txt", true),
        (&["**/file*txt"], "dir/dir/file.txt", true),
        (&["**/file*.txt*"], "dir/dir/file.txt", true),
        (&["**/**/*.txt"], "dir/dir/file.txt", true),
        (&["**/**/*.txt2"], "dir/dir/file.txt", false),
        (&["**/*.txt"], "file.txt", true),
        (&["a**/*.txt"], "a/dir/dir/file.txt", true),
        (&["a/*.txt"], "a/dir/file.txt", false),
        (&["a/*.txt"], "a/file.txt", true),
        (&["a/*.txt**"], "a/file.txt", true),
        (&["a[b-d]e"], "ae", false),
        (&["a[b-d]e"], "ace", true),
        (&["a[^b-d]e"], "aze", true),
        (&[".*"], ".foo", true),
        (&[".*"], "foo", false),
        (&["abc.def"], "abcZdef", false),
        (&["abc?def"], "abcZdef", true),
        (&["a\\\\"], "a\\", true),
        (&["a\\*b"], "a*b", true),
        (&["**/foo/bar"], "dir/dir2/foo/bar", true),
        (&["abc/**"], "abc", false),
        (&["abc/**"], "abc/def/ghi", true),
        (&["**/.foo"], "bar.foo", false),
        (&["a(b)c/def"], "a(b)c/def", true),
        (&["a(b)c/def"], "a(b)c/xyz", false),
        (&["a.|)$(}+{bc"], "a.|)$(}+{bc", true),
        (&["dist/*.whl"], "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", true),
        (&["**", "!util/docker/web"], "util/docker/web/foo", false),
        (&["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo", true),
        (&["**", "!dist/*.whl"], "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", false),
        (&["a*"], "ab/c", true),
    ];

    #[test]
    fn decides_like_the_original() {
        for (lines, path, expected) in ORIGINAL {
            assert_eq!(ignore(lines).is_excluded(path.as_bytes()), *expected, "{lines:?} {path}");
        }
    }

    #[test]
    fn lines_are_read_like_the_original_s() {
        let text = b"\xef\xbb\xbf# comment\n\n test1 \r\n/test2\n/a/./file//here/\n  # pattern\n! /inverted/abs/../path\n";
        let rules = Ignore::parse("x", text).unwrap();
        let found: Vec<_> =
            rules.rules().iter().map(|rule| (rule.line, rule.negated, rule.pattern.as_str())).collect();
        assert_eq!(
            found,
            [
                (3, false, "test1"),
                (4, false, "test2"),
                (5, false, "a/file/here"),
                (6, false, "# pattern"),
                (7, true, "inverted/path"),
            ]
        );
    }

    #[test]
    fn errors_name_the_line() {
        let error = |text: &str| Ignore::parse(".dockerignore", text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error("a\n["), ".dockerignore:2: syntax error in pattern \"[\"");
        assert_eq!(error("[Local-Only]/"), ".dockerignore:1: syntax error in pattern \"[Local-Only]/\"");
        for text in ["!", "! ", "!/"] {
            assert_eq!(error(text), ".dockerignore:1: nothing follows the exclamation mark");
        }
        assert_eq!(error(&"a".repeat(70_000)), ".dockerignore:1: the line is longer than 65535 bytes");
    }

    #[test]
    fn the_deciding_rule_is_told() {
        let rules = ignore(&["# no logs", "*.log", "!important.log", "app/"]);
        assert_eq!(
            rules.excluded_by(b"app/src/main.rs").map(|rule| (rule.line, &*rule.text)),
            Some((4, "app/"))
        );
        assert_eq!(rules.excluded_by(b"app/").map(|rule| rule.line), Some(4));
        assert_eq!(rules.excluded_by(b"a.log").map(|rule| rule.line), Some(2));
        assert_eq!(rules.excluded_by(b"important.log"), None);
        assert_eq!(rules.excluded_by(b"src"), None);
    }

    #[test]
    fn a_directory_is_decided_on_before_what_is_in_it() {
        // When `a` was decided on nothing was excluded, so `!a` did not count for it, nor for what is in it.
        assert!(ignore(&["a/b", "!a"]).is_excluded(b"a/b"));
        assert!(!ignore(&["a", "!a"]).is_excluded(b"a/b"));
    }

    #[test]
    fn directories_that_cannot_hold_anything_are_skipped() {
        let rules = ignore(&["node_modules", "docs", "!docs/keep/*.md", "target", "!target/x"]);
        assert!(!rules.may_keep_beneath(b"node_modules"));
        assert!(rules.may_keep_beneath(b"docs"));
        assert!(rules.may_keep_beneath(b"docs/keep"));
        assert!(!rules.may_keep_beneath(b"docs/other"));
        assert!(!rules.may_keep_beneath(b"target/x"));
        assert!(ignore(&["a", "!**/keep"]).may_keep_beneath(b"a/b"));
    }

    proptest! {
        #[test]
        fn skipping_loses_nothing(
            lines in proptest::collection::vec("!?([ab]|[ab]/[ab]|[*]|[*][*]/[ab]|[ab]/[*][*]|[ab]/[*]/[ab])", 0..5),
            path in "[ab](/[ab]){1,4}",
        ) {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let rules = ignore(&lines);
            let mut parent = Matched::default();
            let mut skipped = false;
            let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
            for end in ends {
                let (rule, matched) = rules.decide(&path.as_bytes()[..end], &parent);
                prop_assert!(!skipped || rule.is_some(), "{} is kept in a skipped directory", &path[..end]);
                skipped |= rule.is_some() && !rules.may_keep_beneath(&path.as_bytes()[..end]);
                parent = matched;
            }
        }
    }
}
