//! The directives in the comments at the top: `# syntax=`, `# escape=`, `# check=`.

use std::collections::BTreeSet;

use super::error::DockerfileError;
use super::mount::parse_bool;
use super::source::{Lines, SourceText};

/// What the directives say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directives {
    /// The escape character: a backslash or a backtick.
    pub escape: char,
    /// The frontend image that is asked for.
    pub syntax: Option<String>,
    /// Which checks are to be made.
    pub check: Check,
}

impl Default for Directives {
    fn default() -> Self {
        Self { escape: '\\', syntax: None, check: Check::default() }
    }
}

/// `# check=skip=A,B;error=true`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Check {
    /// Rules that are not checked.
    pub skip: BTreeSet<String>,
    /// No rule is checked.
    pub skip_all: bool,
    /// Experimental rules that are checked.
    pub experimental: BTreeSet<String>,
    /// All experimental rules are checked.
    pub experimental_all: bool,
    /// A warning fails the build.
    pub error: bool,
}

impl Check {
    /// Reads the value of a `check` directive or of the build argument `BUILDKIT_DOCKERFILE_CHECK`. Gives the part that
    /// cannot be understood as the error.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut check = Self::default();
        if text.trim().is_empty() {
            return Ok(check);
        }
        for part in text.trim().splitn(3, ';') {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("invalid check option {part:?}"))?;
            let value = value.trim();
            let rules = || value.split(',').map(|rule| rule.trim().to_owned()).collect();
            match key.trim() {
                "skip" if value == "all" => check.skip_all = true,
                "skip" => check.skip = rules(),
                "experimental" if value == "all" => check.experimental_all = true,
                "experimental" => check.experimental = rules(),
                "error" => {
                    check.error =
                        parse_bool(value).ok_or_else(|| format!("failed to parse check option {part:?}"))?;
                }
                other => return Err(format!("invalid check option {other:?}")),
            }
        }
        Ok(check)
    }

    /// Whether the rule is not to be reported.
    pub fn skips(&self, rule: &str) -> bool {
        self.skip_all || self.skip.contains(rule)
    }

    /// Whether the experimental rule is to be reported.
    pub fn tries(&self, rule: &str) -> bool {
        self.experimental_all || self.experimental.contains(rule)
    }

    /// What is said for the whole file together with what is said for one instruction. `error` belongs to the file.
    #[must_use]
    pub fn merged(&self, mut more: Self) -> Self {
        more.skip.extend(self.skip.iter().cloned());
        more.skip_all |= self.skip_all;
        more.experimental.extend(self.experimental.iter().cloned());
        more.experimental_all |= self.experimental_all;
        more.error = self.error;
        more
    }

    /// The check directive among the comments directly above an instruction.
    pub(super) fn in_comments(comments: &[String]) -> Option<Self> {
        let value = comments.iter().find_map(|comment| match key_value(comment)? {
            (key, value) if key == "check" => Some(value),
            _ => None,
        })?;
        Self::parse(value.split(' ').next().unwrap_or_default()).ok()
    }
}

/// Which program is to understand a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frontend {
    /// The one in here: no `syntax` is given, or Docker's own in any version.
    Builtin,
    /// Another image.
    Other(String),
}

impl Frontend {
    /// The frontend that a `syntax` value names. Docker's own frontends are taken for the built-in one whatever their tag
    /// or digest: half of all Dockerfiles ask for one, and nothing has to be fetched for it.
    pub fn named(syntax: &str) -> Self {
        let image = syntax.split(' ').next().unwrap_or_default();
        let path = image.split('@').next().unwrap_or_default();
        let path = ["docker.io/", "index.docker.io/"]
            .iter()
            .find_map(|host| path.strip_prefix(host))
            .unwrap_or(path);
        let name = match path.rfind(':') {
            Some(colon) if !path[colon..].contains('/') => &path[..colon],
            _ => path,
        };
        match name {
            "" | "docker/dockerfile" | "docker/dockerfile-upstream" => Self::Builtin,
            _ => Self::Other(image.to_owned()),
        }
    }
}

/// The frontend that `text` asks for. Unlike the other directives, `syntax` is also found behind a `#!` line, after `//`
/// instead of `#`, and as the member of a JSON object.
pub fn frontend_of(text: &str) -> Frontend {
    syntax_of(text).map_or(Frontend::Builtin, |(syntax, _)| Frontend::named(&syntax))
}

/// The value of `syntax` without what follows it, and its line.
pub(super) fn syntax_of(text: &str) -> Option<(String, usize)> {
    let (body, skipped) = behind_shebang(text);
    let found = find("syntax", "#", text).or_else(|| find("syntax", "//", text));
    if found.is_some() {
        return found;
    }
    // Only a text that looks like an object is worth the attempt.
    if !body.trim_start().starts_with('{') {
        return None;
    }
    let object: serde_json::Value = serde_json::from_str(body).ok()?;
    Some((object.get("syntax")?.as_str()?.to_owned(), skipped + 1))
}

/// The value of `check` without what follows it, and its line.
pub(super) fn check_of(text: &str) -> Option<(String, usize)> {
    find("check", "#", text)
}

/// The text behind a byte order mark and a `#!` line, and how many lines these take.
fn behind_shebang(text: &str) -> (&str, usize) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.starts_with("#!") { (text.split_once('\n').map_or("", |(_, rest)| rest), 1) } else { (text, 0) }
}

/// A directive at the top of the text or behind its `#!` line: the value up to the first blank, and the line.
fn find(key: &str, comment: &'static str, text: &str) -> Option<(String, usize)> {
    let (body, skipped) = behind_shebang(text);
    let mut scanner = Scanner { comment, ..Scanner::new() };
    for (index, line) in body.lines().enumerate() {
        let (found, value) = scanner.line(line).ok()??;
        if found == key {
            return Some((value.split(' ').next().unwrap_or_default().to_owned(), index + skipped + 1));
        }
    }
    None
}

/// Reads directives line by line until the first line that is none.
#[derive(Debug)]
pub(super) struct Scanner {
    comment: &'static str,
    seen: BTreeSet<String>,
    done: bool,
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self { comment: "#", seen: BTreeSet::new(), done: false }
    }

    /// Key in lower case and value of the directive on this line. A second directive of the same key is an error, whose
    /// value is the key.
    pub(super) fn line<'l>(&mut self, line: &'l str) -> Result<Option<(String, &'l str)>, String> {
        if self.done {
            return Ok(None);
        }
        let Some((key, value)) = line.strip_prefix(self.comment).and_then(key_value) else {
            self.done = true;
            return Ok(None);
        };
        if !self.seen.insert(key.clone()) {
            return Err(key);
        }
        Ok(Some((key, value)))
    }
}

/// `key = value` with a known key.
fn key_value(text: &str) -> Option<(String, &str)> {
    let (key, value) = text.trim_start().split_once('=')?;
    let key = key.trim_end().to_ascii_lowercase();
    let value = value.trim();
    (matches!(key.as_str(), "syntax" | "escape" | "check") && !value.is_empty()).then_some((key, value))
}

/// Reads the value of `escape`.
pub(super) fn escape(source: &SourceText, line: usize, value: &str) -> Result<char, DockerfileError> {
    match value {
        "`" => Ok('`'),
        "\\" => Ok('\\'),
        _ => {
            let message = format!("invalid escape token '{value}' does not match ` or \\");
            Err(DockerfileError::at(source, Lines::one(line), message).word(value))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_own_frontend_is_built_in() {
        for syntax in [
            "# syntax=docker/dockerfile:1\nFROM a",
            "#syntax = docker/dockerfile:1.7-labs",
            "# SYNTAX=docker.io/docker/dockerfile-upstream:master@sha256:00",
            "#!/usr/bin/env x\n# syntax=docker/dockerfile",
            "\u{feff}# escape=`\n# syntax=docker/dockerfile:1 --foo",
            "// syntax=docker/dockerfile:1",
            "{\"syntax\": \"docker/dockerfile\"}",
            "FROM a\n# syntax=other/frontend",
            "# a comment\n# syntax=other/frontend",
            "\n# syntax=other/frontend",
        ] {
            assert_eq!(frontend_of(syntax), Frontend::Builtin, "{syntax}");
        }
        for (syntax, name) in [
            ("# syntax=other/frontend:2 x y", "other/frontend:2"),
            ("# syntax=example.com:5000/docker/dockerfile", "example.com:5000/docker/dockerfile"),
            ("#!x\n//syntax=docker/dockerfiles", "docker/dockerfiles"),
            ("{\"syntax\": \"a/b\"}", "a/b"),
        ] {
            assert_eq!(frontend_of(syntax), Frontend::Other(name.to_owned()), "{syntax}");
        }
    }

    #[test]
    fn directives_are_found_behind_a_shebang() {
        assert_eq!(syntax_of("#!/bin/sh\n# syntax = a:b // c\n"), Some(("a:b".to_owned(), 2)));
        assert_eq!(check_of("\u{feff}#check=skip=all // c\nFROM a"), Some(("skip=all".to_owned(), 1)));
        assert_eq!(check_of("#!/bin/sh\n\n# check=skip=all\n"), None);
        assert_eq!(syntax_of("{\"syntax\": \"a\"}\n# syntax=b"), None);
    }

    #[test]
    fn check_lists_rules() {
        let check = Check::parse("skip=A, B;error=true").unwrap();
        assert!(check.skips("A") && check.skips("B") && !check.skips("C") && check.error);
        assert!(Check::parse("skip=all").unwrap().skips("C"));
        assert_eq!(Check::parse("").unwrap(), Check::default());
        for bad in ["skip", "error=maybe", "omit=A"] {
            assert!(Check::parse(bad).is_err(), "{bad}");
        }
        assert!(Check::in_comments(&["words".into(), "check=skip=A".into()]).unwrap().skips("A"));
        assert_eq!(Check::in_comments(&["about check".into()]), None);
    }
}
