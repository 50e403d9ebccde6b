//! The entry points: a whole Dockerfile, or one ONBUILD trigger.

use super::directive::{self, Check, Directives, Frontend};
use super::error::DockerfileError;
use super::instruction::{Dockerfile, Instruction, Spanned};
use super::interpret::{Interpreter, Reader, check_trigger};
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
    let text = decode(name, text)?;
    let source = SourceText::new(name, text.strip_prefix('\u{feff}').unwrap_or(&text));
    let directive = directive::syntax_of(&text);
    let line = directive.as_ref().filter(|_| syntax.is_none()).map_or(1, |(_, line)| *line);
    let directive = directive.map(|(syntax, _)| syntax);
    if let Some(Frontend::Other(image)) = syntax.or(directive.as_deref()).map(Frontend::named) {
        let message = format!("the frontend image {image} is not supported");
        let error = DockerfileError::at(&source, Lines::one(line), message).word(&image);
        return Err(error.with_hint(if syntax.is_some() {
            "remove the build argument BUILDKIT_SYNTAX, or set it to docker/dockerfile:1, which is built in"
        } else {
            "remove the syntax directive, or use docker/dockerfile:1, which is built in"
        }));
    }
    let check = match directive::check_of(&text) {
        None => Check::default(),
        Some((check, line)) => Check::parse(&check)
            .map_err(|message| DockerfileError::at(&source, Lines::one(line), message).word(&check))?,
    };
    let nodes = node::parse(&source, &text)?;
    let directives = Directives { escape: nodes.escape, syntax: directive, check };
    let mut interpreter = Interpreter::new(&source);
    for node in &nodes.nodes {
        interpreter.add(node)?;
    }
    let Interpreter { meta_args, stages, warnings, .. } = interpreter;
    if stages.is_empty() {
        let message = "dockerfile contains no stages to build";
        return Err(
            DockerfileError::at(&source, Lines::one(source.line_count()), message).with_hint("add FROM")
        );
    }
    let mut all = nodes.warnings;
    all.extend(warnings);
    all.sort_by_key(|warning| warning.lines);
    Ok(Dockerfile { name: name.to_owned(), source, directives, meta_args, stages, warnings: all })
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
