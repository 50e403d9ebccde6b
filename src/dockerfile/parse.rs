//! The entry points: a whole Dockerfile, or one ONBUILD trigger.

use super::directive::{self, Check, Directives, Frontend};
use super::error::DockerfileError;
use super::instruction::{Dockerfile, Instruction, Spanned};
use super::interpret::{Interpreter, Reader, check_trigger};
use super::lint::{Finding, Linter, syntax};
use super::node;
use super::source::{Lines, SourceText};

/// Understands a whole Dockerfile. `name` is what messages call it.
pub fn parse(name: &str, text: &[u8]) -> Result<Dockerfile, DockerfileError> {
    parse_with_syntax(name, text, None)
}

/// Understands a whole Dockerfile as the frontend `syntax` would, whatever the `syntax` directive says; this is what the
/// build argument `BUILDKIT_SYNTAX` is for.
pub fn parse_with_syntax(
    name: &str,
    text: &[u8],
    syntax: Option<&str>,
) -> Result<Dockerfile, DockerfileError> {
    parse_checked(name, text, Dialect { syntax, check: None }).1
}

/// What is decided outside of a Dockerfile about how it is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dialect<'a> {
    /// The frontend, whatever the `syntax` directive says (the build argument `BUILDKIT_SYNTAX`).
    pub syntax: Option<&'a str>,
    /// What is checked, whatever the `check` directive says (the build argument `BUILDKIT_DOCKERFILE_CHECK`).
    pub check: Option<&'a str>,
}

/// Understands a whole Dockerfile and checks it. The linter has what was found up to the error, if there is one, and
/// takes what is found later, when the values of variables are known.
pub fn parse_checked(
    name: &str,
    text: &[u8],
    dialect: Dialect<'_>,
) -> (Linter, Result<Dockerfile, DockerfileError>) {
    let mut lint = Linter::default();
    let result = read(name, text, dialect, &mut lint);
    (lint, result)
}

fn read(
    name: &str,
    text: &[u8],
    dialect: Dialect<'_>,
    lint: &mut Linter,
) -> Result<Dockerfile, DockerfileError> {
    let text = decode(name, text)?;
    let source = SourceText::new(name, text.strip_prefix('\u{feff}').unwrap_or(&text));
    let directive = directive::syntax_of(&text);
    let line = directive.as_ref().filter(|_| dialect.syntax.is_none()).map_or(1, |(_, line)| *line);
    let directive = directive.map(|(syntax, _)| syntax);
    let syntax = dialect.syntax.or(directive.as_deref());
    if let Some(Frontend::Other(image)) = syntax.map(Frontend::named) {
        let message = format!("the frontend image {image} is not supported");
        let error = DockerfileError::at(&source, Lines::one(line), message).word(&image);
        return Err(error.with_hint(if dialect.syntax.is_some() {
            "remove the build argument BUILDKIT_SYNTAX, or set it to docker/dockerfile:1, which is built in"
        } else {
            "remove the syntax directive, or use docker/dockerfile:1, which is built in"
        }));
    }
    let check = match (dialect.check, directive::check_of(&text)) {
        (Some(check), _) => Check::parse(check).map_err(|message| {
            let message = format!("the build argument BUILDKIT_DOCKERFILE_CHECK: {message}");
            DockerfileError::at(&source, Lines::one(1), message)
        })?,
        (None, Some((check, line))) => Check::parse(&check)
            .map_err(|message| DockerfileError::at(&source, Lines::one(line), message).word(&check))?,
        (None, None) => Check::default(),
    };
    *lint = Linter::new(check.clone());
    let nodes = node::parse(&source, &text)?;
    for lines in &nodes.empty_continuations {
        lint.report(Finding::no_empty_continuation(), *lines);
    }
    let directives = Directives { escape: nodes.escape, syntax: directive, check };
    let mut interpreter = Interpreter::new(&source, lint);
    for node in &nodes.nodes {
        interpreter.add(node)?;
    }
    let Interpreter { meta_args, stages, .. } = interpreter;
    if stages.is_empty() {
        let message = "dockerfile contains no stages to build";
        return Err(
            DockerfileError::at(&source, Lines::one(source.line_count()), message).with_hint("add FROM")
        );
    }
    let comments = nodes.nodes.into_iter().filter(|node| !node.comments.is_empty());
    let comments = comments.map(|node| (node.lines.start, node.comments)).collect();
    let dockerfile = Dockerfile { name: name.to_owned(), source, directives, meta_args, stages, comments };
    syntax::stages(&dockerfile, lint);
    Ok(dockerfile)
}

/// Understands the text of one ONBUILD trigger, as it stands in a base image's configuration.
pub fn parse_trigger(text: &str) -> Result<Spanned<Instruction>, DockerfileError> {
    let source = SourceText::new("ONBUILD", text);
    let nodes = node::parse(&source, text)?;
    let [node] = &nodes.nodes[..] else {
        let message = format!("a trigger is one instruction, not {}", nodes.nodes.len());
        return Err(DockerfileError::at(&source, Lines::one(1), message));
    };
    check_trigger(node)
        .map_err(|message| DockerfileError::at(&source, node.lines, message).word(&node.keyword))?;
    let instruction = Reader { source: &source, node }.instruction()?;
    Ok(Spanned { node: instruction, lines: node.lines, original: node.original.trim().to_owned() })
}

/// The text. What is not UTF-8 is tolerated in comments only, since nothing else could be handed on faithfully.
fn decode(name: &str, bytes: &[u8]) -> Result<String, DockerfileError> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
        if std::str::from_utf8(line).is_err() && !line.trim_ascii_start().starts_with(b"#") {
            let source = SourceText::new(name, &text);
            return Err(DockerfileError::at(&source, Lines::one(index + 1), "the line is not UTF-8")
                .word("\u{fffd}")
                .with_hint("save the file as UTF-8"));
        }
    }
    Ok(text)
}
