//! The lower half of the parser: directives, comments, continuation lines and heredocs; text to untyped instructions.

use super::directive::{self, Scanner};
use super::error::DockerfileError;
use super::heredoc::{self, Heredoc};
use super::source::{Lines, SourceText};
use super::words::{self, Json};

/// The longest physical line, without its end: what BuildKit's scanner can hold.
const MAX_LINE: usize = 65_535;

/// An instruction whose arguments are only split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// As written.
    pub(super) keyword: String,
    pub(super) flags: Vec<String>,
    pub(super) arguments: Vec<String>,
    /// Whether the arguments were a JSON array.
    pub(super) json: bool,
    /// ENV and LABEL in the form without `=`.
    pub(super) legacy: bool,
    /// The instruction behind ONBUILD.
    pub(super) trigger: Option<Box<Node>>,
    pub(super) heredocs: Vec<Heredoc>,
    /// Continuation lines joined.
    pub(super) original: String,
    pub(super) lines: Lines,
    /// The comments directly above.
    pub(super) comments: Vec<String>,
}

impl Node {
    /// The keyword in upper case.
    pub(super) fn name(&self) -> String {
        self.keyword.to_ascii_uppercase()
    }
}

/// A text taken apart.
#[derive(Debug)]
pub(super) struct Nodes {
    /// The escape character.
    pub(super) escape: char,
    pub(super) nodes: Vec<Node>,
    /// The last lines of instructions that are continued over empty lines.
    pub(super) empty_continuations: Vec<Lines>,
}

/// Takes a text apart. A text without instructions is an error.
pub(super) fn parse(source: &SourceText, text: &str) -> Result<Nodes, DockerfileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut scanner = Scanner::new();
    let mut escape = '\\';
    let mut nodes = Vec::new();
    let mut empty_continuations = Vec::new();
    let mut comments: Vec<String> = Vec::new();
    let mut lines = Physical { source, rest: text, number: 0 };
    while let Some(line) = lines.next()? {
        let start = lines.number;
        let line = line.trim_end_matches(['\r', '\n']).trim_start();
        let directive = scanner.line(line).map_err(|key| {
            let message = format!("only one {key} parser directive can be used");
            DockerfileError::at(source, Lines::one(start), message)
        })?;
        if let Some((key, value)) = directive {
            if key == "escape" {
                escape = directive::escape(source, start, value)?;
            }
            continue;
        }
        if let Some(comment) = line.strip_prefix('#') {
            match comment.trim() {
                "" => comments.clear(),
                comment => comments.push(comment.to_owned()),
            }
            continue;
        }
        let (first, mut continues) = split_continuation(line, escape);
        if !continues && first.is_empty() {
            continue;
        }
        let mut joined = first.to_owned();
        let mut has_empty_line = false;
        while continues {
            let Some(line) = lines.next()? else { break };
            let line = line.trim_end_matches(['\r', '\n']);
            let content = line.trim_start();
            if content.starts_with('#') {
                continue;
            }
            if content.is_empty() {
                has_empty_line = true;
                continue;
            }
            let (part, more) = split_continuation(line, escape);
            joined.push_str(part);
            continues = more;
        }
        if has_empty_line {
            empty_continuations.push(Lines::one(lines.number));
        }
        let mut node = parse_line(source, Lines::new(start, lines.number), &joined, escape, 0)?;
        if holds_heredocs(&node) && joined.contains("<<") {
            read_heredocs(&mut lines, &mut node)?;
        }
        node.lines = Lines::new(start, lines.number);
        node.comments = std::mem::take(&mut comments);
        nodes.push(node);
    }
    if nodes.is_empty() {
        let message = "file with no instructions";
        return Err(DockerfileError::at(source, Lines::one(lines.number.max(1)), message)
            .with_hint("a Dockerfile begins with FROM"));
    }
    Ok(Nodes { escape, nodes, empty_continuations })
}

/// The physical lines, with their ends.
struct Physical<'t> {
    source: &'t SourceText,
    rest: &'t str,
    /// The number of the line that was read last.
    number: usize,
}

impl<'t> Physical<'t> {
    fn next(&mut self) -> Result<Option<&'t str>, DockerfileError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let end = self.rest.find('\n').map_or(self.rest.len(), |at| at + 1);
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.number += 1;
        if line.len() > MAX_LINE {
            let message = format!("dockerfile line greater than max allowed size of {MAX_LINE}");
            return Err(DockerfileError::at(self.source, Lines::one(self.number), message));
        }
        Ok(Some(line))
    }
}

/// The line without a trailing escape character that continues it, and whether there was one. An escape character in
/// front of another one continues nothing.
fn split_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(head) if !head.ends_with(escape) => (head, true),
        _ => (line, false),
    }
}

/// Splits one instruction.
fn parse_line(
    source: &SourceText,
    lines: Lines,
    line: &str,
    escape: char,
    depth: usize,
) -> Result<Node, DockerfileError> {
    let (keyword, flags, rest) = words::split_instruction(line, escape);
    let mut node = Node {
        keyword: keyword.to_owned(),
        flags,
        arguments: Vec::new(),
        json: false,
        legacy: false,
        trigger: None,
        heredocs: Vec::new(),
        original: line.to_owned(),
        lines,
        comments: Vec::new(),
    };
    let error = |message: String| DockerfileError::at(source, lines, message);
    let not_strings = || {
        error("when using JSON array syntax, arrays must be comprised of strings only".to_owned()).word("[")
    };
    match node.name().as_str() {
        "ADD" | "COPY" | "VOLUME" => match words::parse_json(rest) {
            Json::Strings(strings) => (node.arguments, node.json) = (strings, true),
            Json::OtherValues => return Err(not_strings()),
            Json::No => node.arguments = words::blank_words(rest),
        },
        "CMD" | "ENTRYPOINT" | "RUN" | "SHELL" => match words::parse_json(rest) {
            Json::Strings(strings) => (node.arguments, node.json) = (strings, true),
            Json::OtherValues => return Err(not_strings()),
            Json::No if rest.is_empty() => {}
            Json::No => node.arguments.push(rest.to_owned()),
        },
        "HEALTHCHECK" => {
            let (kind, tail) = rest
                .split_once(char::is_whitespace)
                .map_or((rest, ""), |(kind, tail)| (kind, tail.trim_start()));
            if !kind.is_empty() {
                node.arguments.push(kind.to_owned());
            }
            match words::parse_json(tail) {
                Json::Strings(strings) => {
                    node.arguments.extend(strings);
                    node.json = true;
                }
                Json::OtherValues => return Err(not_strings()),
                Json::No if tail.is_empty() => {}
                Json::No => node.arguments.push(tail.to_owned()),
            }
        }
        name @ ("ENV" | "LABEL") => {
            let words = words::quoted_words(rest, escape);
            match words.first() {
                None => {}
                Some(first) if !first.contains('=') => {
                    let (key, value) = words::split_blank(rest);
                    let value =
                        value.ok_or_else(|| error(format!("{name} must have two arguments")).word(key))?;
                    node.arguments = vec![key.to_owned(), value.to_owned()];
                    node.legacy = true;
                }
                Some(_) => {
                    for word in &words {
                        let (key, value) = word.split_once('=').ok_or_else(|| {
                            error(format!("can't find = in {word:?}. Must be of the form: name=value"))
                                .word(word)
                        })?;
                        node.arguments.extend([key.to_owned(), value.to_owned()]);
                    }
                }
            }
        }
        "ARG" => node.arguments = words::quoted_words(rest, escape),
        "EXPOSE" | "FROM" => node.arguments = words::blank_words(rest),
        "MAINTAINER" | "STOPSIGNAL" | "USER" | "WORKDIR" if !rest.is_empty() => {
            node.arguments.push(rest.to_owned());
        }
        // A trigger of a trigger is an error that the upper half reports; it does not matter what is in it.
        "ONBUILD" if !rest.is_empty() && depth < 2 => {
            node.trigger = Some(Box::new(parse_line(source, lines, rest, escape, depth + 1)?));
        }
        _ => {}
    }
    Ok(node)
}

/// Whether heredocs may follow: RUN, COPY and ADD, also as triggers, but not in JSON form.
fn holds_heredocs(node: &Node) -> bool {
    let node = node.trigger.as_deref().unwrap_or(node);
    matches!(node.name().as_str(), "ADD" | "COPY" | "RUN") && !node.json
}

/// Reads the bodies of the heredocs that the instruction announces.
fn read_heredocs(lines: &mut Physical<'_>, node: &mut Node) -> Result<(), DockerfileError> {
    let source = lines.source;
    let mut heredocs = heredoc::in_line(&node.original)
        .map_err(|error| DockerfileError::at(source, node.lines, error.to_string()).word("<<"))?;
    for heredoc in &mut heredocs {
        loop {
            let Some(line) = lines.next()? else {
                let message = format!("unterminated heredoc: no line is {:?}", heredoc.name);
                return Err(DockerfileError::at(source, node.lines, message).word("<<").with_hint(
                    "end it with a line that is only the delimiter; if no heredoc is meant, quote the <<",
                ));
            };
            if heredoc.ends_at(line) {
                break;
            }
            heredoc.content.push_str(line);
        }
    }
    node.heredocs = heredocs;
    Ok(())
}
