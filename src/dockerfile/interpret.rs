//! The upper half of the parser: untyped instructions to typed ones, and these to stages.

use super::error::DockerfileError;
use super::flags::{Flags, Kind};
use super::heredoc::{self, Heredoc};
use super::instruction::{
    Add, ArgDecl, CommandLine, Copy, From, Healthcheck, Instruction, Network, Run, Security, Spanned, Stage,
};
use super::lint::{Linter, syntax};
use super::mount::RawMount;
use super::node::Node;
use super::source::SourceText;
use super::values::parse_interval;
use super::words;
use crate::hint::Hint;

/// All keywords, for suggestions.
const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Turns nodes into stages.
#[derive(Debug)]
pub(super) struct Interpreter<'s> {
    source: &'s SourceText,
    pub(super) meta_args: Vec<Spanned<ArgDecl>>,
    pub(super) stages: Vec<Stage>,
    lint: &'s Linter,
}

impl<'s> Interpreter<'s> {
    pub(super) fn new(source: &'s SourceText, lint: &'s Linter) -> Self {
        Self { source, meta_args: Vec::new(), stages: Vec::new(), lint }
    }

    /// Takes the next instruction.
    pub(super) fn add(&mut self, node: &Node) -> Result<(), DockerfileError> {
        syntax::instruction(node, self.lint);
        if node.name() == "FROM" {
            let stage = self.from(node)?;
            let names: Vec<&str> = stage.from.name.as_deref().into_iter().collect();
            syntax::description(node, &names, self.lint);
            self.stages.push(stage);
        } else {
            let instruction = self.instruction(node)?;
            if let Instruction::Arg(declared) = &instruction.node {
                let names: Vec<&str> = declared.iter().map(|declared| declared.name.as_str()).collect();
                syntax::description(node, &names, self.lint);
            }
            match (self.stages.last_mut(), instruction.node) {
                (Some(stage), node) => stage.instructions.push(Spanned { node, ..instruction }),
                (None, Instruction::Arg(arguments)) => {
                    let Spanned { lines, original, .. } = instruction;
                    self.meta_args.extend(arguments.into_iter().map(|node| Spanned {
                        node,
                        lines,
                        original: original.clone(),
                    }));
                }
                (None, _) => {
                    return Err(Reader { source: self.source, node }
                        .error("no build stage in current context".to_owned(), &node.keyword)
                        .with_hint("put FROM before all instructions but ARG"));
                }
            }
        }
        Ok(())
    }

    fn from(&self, node: &Node) -> Result<Stage, DockerfileError> {
        let reader = Reader { source: self.source, node };
        let name = match &node.arguments[..] {
            [_] => None,
            [_, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
                let lower = name.to_lowercase();
                if !is_stage_name(&lower) {
                    let message = format!(
                        "invalid name for build stage: {name:?}, name can't start with a number or contain symbols"
                    );
                    return Err(reader.error(message, name));
                }
                Some(lower)
            }
            _ => {
                return Err(reader
                    .error("FROM requires either one or three arguments".to_owned(), &node.keyword)
                    .with_hint("write FROM image or FROM image AS name"));
            }
        };
        let flags = reader.flags(&[("platform", Kind::Text)])?;
        Ok(Stage {
            from: From { image: node.arguments[0].clone(), platform: flags.text("platform"), name },
            lines: node.lines,
            original: node.original.trim().to_owned(),
            instructions: Vec::new(),
        })
    }

    fn instruction(&self, node: &Node) -> Result<Spanned<Instruction>, DockerfileError> {
        let instruction = Reader { source: self.source, node }.instruction()?;
        Ok(Spanned { node: instruction, lines: node.lines, original: node.original.trim().to_owned() })
    }
}

/// `^[a-z][a-z0-9-_.]*$`
fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c))
}

/// Reads one node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) source: &'a SourceText,
    pub(super) node: &'a Node,
}

impl Reader<'_> {
    fn error(&self, message: String, word: &str) -> DockerfileError {
        DockerfileError::at(self.source, self.node.lines, message).word(word)
    }

    fn flags(&self, known: &[(&'static str, Kind)]) -> Result<Flags, DockerfileError> {
        Flags::parse(&self.node.flags, known, &|message, word| self.error(message, word))
    }

    fn no_flags(&self) -> Result<(), DockerfileError> {
        self.flags(&[]).map(|_| ())
    }

    fn at_least_one(&self) -> Result<&[String], DockerfileError> {
        if self.node.arguments.is_empty() {
            let message = format!("{} requires at least one argument", self.node.name());
            return Err(self.error(message, &self.node.keyword));
        }
        Ok(&self.node.arguments)
    }

    fn exactly_one(&self) -> Result<String, DockerfileError> {
        match &self.node.arguments[..] {
            [argument] => Ok(argument.clone()),
            _ => {
                let message = format!("{} requires exactly one argument", self.node.name());
                Err(self.error(message, &self.node.keyword))
            }
        }
    }

    fn command(&self, arguments: &[String]) -> CommandLine {
        if self.node.json {
            CommandLine::Exec(arguments.to_vec())
        } else {
            CommandLine::Shell(arguments.join(" "))
        }
    }

    /// The typed instruction; FROM is none.
    pub(super) fn instruction(&self) -> Result<Instruction, DockerfileError> {
        let node = self.node;
        Ok(match node.name().as_str() {
            "ARG" => Instruction::Arg(self.arg()?),
            "ENV" => Instruction::Env(self.pairs()?),
            "LABEL" => Instruction::Label(self.pairs()?),
            "RUN" => Instruction::Run(self.run()?),
            "COPY" => Instruction::Copy(self.copy()?),
            "ADD" => Instruction::Add(self.add()?),
            "HEALTHCHECK" => Instruction::Healthcheck(self.healthcheck()?),
            "ONBUILD" => Instruction::OnBuild(self.onbuild()?),
            "SHELL" => Instruction::Shell(self.shell()?),
            "STOPSIGNAL" => Instruction::StopSignal(self.exactly_one()?),
            "CMD" | "ENTRYPOINT" => {
                self.no_flags()?;
                let command = self.command(&node.arguments);
                if node.name() == "CMD" {
                    Instruction::Cmd(command)
                } else {
                    Instruction::Entrypoint(command)
                }
            }
            "WORKDIR" | "USER" | "MAINTAINER" => {
                let argument = self.exactly_one()?;
                self.no_flags()?;
                match node.name().as_str() {
                    "WORKDIR" => Instruction::Workdir(argument),
                    "USER" => Instruction::User(argument),
                    _ => Instruction::Maintainer(argument),
                }
            }
            "EXPOSE" => {
                let mut ports = self.at_least_one()?.to_vec();
                self.no_flags()?;
                ports.sort();
                Instruction::Expose(ports)
            }
            "VOLUME" => {
                let volumes: Vec<String> =
                    self.at_least_one()?.iter().map(|path| path.trim().to_owned()).collect();
                self.no_flags()?;
                if volumes.iter().any(String::is_empty) {
                    return Err(self.error("VOLUME specified can not be an empty string".to_owned(), "\"\""));
                }
                Instruction::Volume(volumes)
            }
            _ => {
                return Err(self
                    .error(format!("unknown instruction `{}`", node.keyword), &node.keyword)
                    .suggest(&node.keyword, KEYWORDS));
            }
        })
    }

    fn arg(&self) -> Result<Vec<ArgDecl>, DockerfileError> {
        self.at_least_one()?
            .iter()
            .map(|argument| match argument.split_once('=') {
                Some(("", _)) => Err(self.error("ARG names can not be blank".to_owned(), argument)),
                Some((name, default)) => {
                    Ok(ArgDecl { name: name.to_owned(), default: Some(default.to_owned()) })
                }
                None => Ok(ArgDecl { name: argument.clone(), default: None }),
            })
            .collect()
    }

    fn pairs(&self) -> Result<Vec<(String, String)>, DockerfileError> {
        self.no_flags()?;
        let mut pairs = Vec::new();
        for pair in self.at_least_one()?.chunks_exact(2) {
            if pair[0].is_empty() {
                return Err(self.error(format!("{} names can not be blank", self.node.name()), "="));
            }
            pairs.push((pair[0].clone(), pair[1].clone()));
        }
        Ok(pairs)
    }

    fn run(&self) -> Result<Run, DockerfileError> {
        let flags = self.flags(&[
            ("mount", Kind::Texts),
            ("network", Kind::Text),
            ("security", Kind::Text),
            ("device", Kind::Texts),
        ])?;
        let mounts = flags
            .texts("mount")
            .iter()
            .map(|text| {
                RawMount::parse(text).map_err(|error| {
                    let located = self.error(error.to_string(), "--mount");
                    match error.hint() {
                        Some(hint) => located.with_hint(hint),
                        None => located,
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        let network = match flags.given("network") {
            None | Some("default") => Network::Default,
            Some("none") => Network::None,
            Some("host") => Network::Host,
            Some(other) => {
                return Err(self
                    .error(format!("invalid network mode {other:?}"), other)
                    .with_hint("the modes are default, none and host"));
            }
        };
        let security = match flags.given("security") {
            None | Some("sandbox") => Security::Sandbox,
            Some("insecure") => Security::Insecure,
            Some(other) => {
                return Err(self
                    .error(format!("security {other:?} is not valid"), other)
                    .with_hint("the modes are sandbox and insecure"));
            }
        };
        let run = Run {
            command: self.command(&self.node.arguments),
            heredocs: self.node.heredocs.clone(),
            mounts,
            network,
            security,
            devices: flags.texts("device"),
        };
        if let Some(first) = run.heredocs.first()
            && matches!(run.program(), super::Program::Script { .. })
        {
            self.check_file_name(first)?;
        }
        Ok(run)
    }

    /// A heredoc that becomes a file needs a name that can be one.
    fn check_file_name(&self, heredoc: &Heredoc) -> Result<(), DockerfileError> {
        let name = &heredoc.name;
        if name.contains(['/', '\0']) || matches!(name.as_str(), "." | "..") || name.len() > 255 {
            return Err(self
                .error(format!("the heredoc's delimiter {name:?} cannot be the name of a file"), name)
                .with_hint("use a word such as EOF"));
        }
        Ok(())
    }

    /// Paths, heredocs, and the destination.
    fn sources(&self) -> Result<(Vec<String>, Vec<Heredoc>, String), DockerfileError> {
        let name = self.node.name();
        let (words, dest) = match &self.node.arguments[..] {
            [words @ .., dest] if !words.is_empty() => (words, dest),
            _ => {
                let message = format!(
                    "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
                );
                return Err(self.error(message, &self.node.keyword));
            }
        };
        if heredoc::is_heredoc_word(dest) {
            return Err(self.error(format!("{name} cannot accept a heredoc as a destination"), dest));
        }
        let mut sources = Vec::new();
        let mut heredocs = Vec::new();
        for word in words {
            let Ok(Some(announced)) = heredoc::parse_word(word) else {
                sources.push(word.clone());
                continue;
            };
            // Of several heredocs with the same name the last one is meant, and in JSON form none has a body.
            let body = self.node.heredocs.iter().rev().find(|heredoc| heredoc.name == announced.name);
            let content = body.map(|heredoc| heredoc.content.clone()).unwrap_or_default();
            let heredoc = Heredoc { content, ..announced };
            self.check_file_name(&heredoc)?;
            heredocs.push(heredoc);
        }
        Ok((sources, heredocs, dest.clone()))
    }

    fn copy(&self) -> Result<Copy, DockerfileError> {
        let flags = self.flags(&[
            ("from", Kind::Text),
            ("chown", Kind::Text),
            ("chmod", Kind::Text),
            ("link", Kind::Bool),
            ("parents", Kind::Bool),
            ("exclude", Kind::Texts),
        ])?;
        let (sources, heredocs, dest) = self.sources()?;
        Ok(Copy {
            sources,
            heredocs,
            dest,
            from: flags.text("from"),
            chown: flags.text("chown"),
            chmod: flags.text("chmod"),
            link: flags.bool("link") == Some(true),
            parents: flags.bool("parents") == Some(true),
            exclude: flags.texts("exclude"),
        })
    }

    fn add(&self) -> Result<Add, DockerfileError> {
        let flags = self.flags(&[
            ("chown", Kind::Text),
            ("chmod", Kind::Text),
            ("link", Kind::Bool),
            ("exclude", Kind::Texts),
            ("keep-git-dir", Kind::Bool),
            ("checksum", Kind::Text),
            ("unpack", Kind::Bool),
        ])?;
        let (sources, heredocs, dest) = self.sources()?;
        Ok(Add {
            sources,
            heredocs,
            dest,
            chown: flags.text("chown"),
            chmod: flags.text("chmod"),
            link: flags.bool("link") == Some(true),
            exclude: flags.texts("exclude"),
            keep_git_dir: flags.bool("keep-git-dir"),
            checksum: flags.text("checksum"),
            unpack: flags.bool("unpack"),
        })
    }

    fn shell(&self) -> Result<Vec<String>, DockerfileError> {
        self.no_flags()?;
        let arguments = self.at_least_one()?;
        if !self.node.json {
            return Err(self
                .error("SHELL requires the arguments to be in JSON form".to_owned(), &arguments[0])
                .with_hint("write SHELL [\"/bin/bash\", \"-c\"]"));
        }
        Ok(arguments.to_vec())
    }

    fn healthcheck(&self) -> Result<Healthcheck, DockerfileError> {
        let (kind, rest) = self.at_least_one()?.split_at(1);
        let kind = kind.concat();
        if kind.eq_ignore_ascii_case("none") {
            if !rest.is_empty() {
                return Err(self.error("HEALTHCHECK NONE takes no arguments".to_owned(), &rest[0]));
            }
            return Ok(Healthcheck::None);
        }
        let flags = self.flags(&[
            ("interval", Kind::Text),
            ("timeout", Kind::Text),
            ("start-period", Kind::Text),
            ("start-interval", Kind::Text),
            ("retries", Kind::Text),
        ])?;
        if !kind.eq_ignore_ascii_case("cmd") {
            return Err(self.error(format!("Unknown type {kind:?} in HEALTHCHECK (try CMD)"), &kind));
        }
        if rest.is_empty() {
            return Err(self.error("Missing command after HEALTHCHECK CMD".to_owned(), &kind));
        }
        let interval = |name: &str| {
            let text = flags.text(name).unwrap_or_default();
            parse_interval(name, &text).map_err(|message| self.error(message, &text))
        };
        let retries = flags.text("retries").unwrap_or_default();
        Ok(Healthcheck::Check {
            command: self.command(rest),
            interval: interval("interval")?,
            timeout: interval("timeout")?,
            start_period: interval("start-period")?,
            start_interval: interval("start-interval")?,
            retries: if retries.is_empty() {
                0
            } else {
                let number = retries.parse::<i32>().ok().and_then(|number| u32::try_from(number).ok());
                number.ok_or_else(|| {
                    self.error(
                        format!("--retries must be a number that is not negative, not {retries:?}"),
                        &retries,
                    )
                })?
            },
        })
    }

    fn onbuild(&self) -> Result<String, DockerfileError> {
        let Some(trigger) = &self.node.trigger else {
            return Err(self.error("ONBUILD requires at least one argument".to_owned(), &self.node.keyword));
        };
        self.no_flags()?;
        check_trigger(trigger).map_err(|message| self.error(message, &trigger.keyword))?;
        let original = self.node.original.trim();
        let (_, text) = words::split_blank(original);
        Ok(heredoc::reassemble(text.unwrap_or_default(), &self.node.heredocs))
    }
}

/// Triggers that are not allowed.
pub(super) fn check_trigger(trigger: &Node) -> Result<(), String> {
    match trigger.name().as_str() {
        "ONBUILD" => Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned()),
        name @ ("MAINTAINER" | "FROM") => Err(format!("{name} isn't allowed as an ONBUILD trigger")),
        _ => Ok(()),
    }
}
