//! `SOURCE_DATE_EPOCH`, which may also be named: `context`, a named context, or a stage that is one fetched source
//! (BuildKit, `dockerfile2llb/epoch.go`).

use super::env::{Variables, argument, platform_arguments};
use crate::build::error::BuildError;
use crate::build::options::{BuildRequest, NamedContext};
use crate::build::remotes::RemoteSpec;
use crate::context::git_ref::GitRef;
use crate::context::remote::{RemoteSource, file_name};
use crate::dockerfile::expand::Lexer;
use crate::dockerfile::{Add, Dockerfile, DockerfileError, Instruction, Lines, Stage};
use crate::layer::Timestamp;
use crate::platform::Platform;

/// The argument's name.
pub(crate) const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// What the argument's value stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Epoch {
    /// A number of seconds.
    At(Timestamp),
    /// The time of the build context.
    OfContext,
    /// The time of something that is fetched.
    Of(RemoteSpec),
    /// That of a source which has none: a local directory, an image.
    Unknown,
}

/// The value that the argument has, from the command line or else from the Dockerfile.
pub(crate) fn epoch(request: &BuildRequest, dockerfile: &Dockerfile) -> Result<Option<Epoch>, BuildError> {
    let host = Platform::host();
    let platform = request.platforms.first().unwrap_or(&host);
    let lexer = Lexer::new(dockerfile.directives.escape);
    let mut globals = platform_arguments(&host, platform, "", &request.build_args);
    let mut lines = None;
    let mut value = argument(&request.build_args, EPOCH).map(str::to_owned);
    for declared in &dockerfile.meta_args {
        let at = |message: String| DockerfileError::at(&dockerfile.source, declared.lines, message);
        let text = match (argument(&request.build_args, &declared.node.name), &declared.node.default) {
            (Some(given), _) => given.to_owned(),
            (None, Some(default)) => {
                lexer.word(default, &globals).map_err(|error| at(error.to_string()))?.text
            }
            (None, None) => continue,
        };
        if declared.node.name == EPOCH {
            lines = Some(declared.lines);
            value = Some(text.clone());
        }
        globals.set(declared.node.name.clone(), text);
    }
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    if let Ok(seconds) = value.parse::<u32>() {
        return Ok(Some(Epoch::At(Timestamp { seconds: seconds.into(), nanos: 0 })));
    }
    if value == "context" {
        return Ok(Some(Epoch::OfContext));
    }
    if let Some(named) = request.build_contexts.get(&value) {
        return Ok(Some(match named {
            NamedContext::Remote(source) => Epoch::Of(RemoteSpec::of_context(source)),
            _ => Epoch::Unknown,
        }));
    }
    let is_called =
        |stage: &&Stage| stage.from.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(&value));
    if let Some(stage) = dockerfile.stages.iter().find(is_called) {
        let source = Source { request, dockerfile, lexer: &lexer };
        return Ok(Some(Epoch::Of(source.of_stage(stage, globals)?)));
    }
    let message = format!(
        "`{value}` is neither a number of seconds since 1970 nor `context`, a named context or a stage"
    );
    if let Some(lines) = lines {
        let message = format!("{EPOCH}: {message}");
        return Err(DockerfileError::at(&dockerfile.source, lines, message).word(EPOCH).into());
    }
    Err(BuildError::Context {
        action: format!("reading the build argument {EPOCH}"),
        source: message.into(),
        hint: Some(format!("for the time of the last commit: {EPOCH}=$(git log -1 --pretty=%ct)")),
    })
}

/// Reads the stage that is nothing but a source.
struct Source<'a> {
    request: &'a BuildRequest,
    dockerfile: &'a Dockerfile,
    lexer: &'a Lexer,
}

impl Source<'_> {
    fn error(&self, lines: Lines, message: impl Into<String>) -> DockerfileError {
        DockerfileError::at(&self.dockerfile.source, lines, message.into())
    }

    fn expand(&self, lines: Lines, text: &str, env: &Variables) -> Result<String, DockerfileError> {
        let expanded = self.lexer.word(text, env).map_err(|error| self.error(lines, error.to_string()))?;
        Ok(expanded.text)
    }

    fn of_stage(&self, stage: &Stage, mut env: Variables) -> Result<RemoteSpec, DockerfileError> {
        env.remove(EPOCH);
        if self.expand(stage.lines, &stage.from.image, &env)? != "scratch" {
            return Err(self.error(stage.lines, format!("a stage that gives {EPOCH} must be FROM scratch")));
        }
        let only = format!("a stage that gives {EPOCH} must have exactly one ADD of one URL or repository");
        let mut found = None;
        for instruction in &stage.instructions {
            let lines = instruction.lines;
            match &instruction.node {
                Instruction::Arg(declared) => {
                    for declared in declared {
                        let given = argument(&self.request.build_args, &declared.name).map(str::to_owned);
                        let default = declared.default.as_ref();
                        let default = default.map(|text| self.expand(lines, text, &env)).transpose()?;
                        if let Some(value) = given.or(default) {
                            env.set(declared.name.clone(), value);
                        }
                    }
                }
                Instruction::Add(add) if found.is_none() => {
                    found = Some(self.of_add(lines, add, &env)?.ok_or_else(|| self.error(lines, &*only))?);
                }
                _ => return Err(self.error(lines, &*only)),
            }
        }
        found.ok_or_else(|| self.error(stage.lines, &*only))
    }

    fn of_add(
        &self,
        lines: Lines,
        add: &Add,
        env: &Variables,
    ) -> Result<Option<RemoteSpec>, DockerfileError> {
        let ([source], []) = (&add.sources[..], &add.heredocs[..]) else { return Ok(None) };
        let source = self.expand(lines, source, env)?;
        let remote = RemoteSource::of_add(&source);
        let remote = remote.map_err(|error| self.error(lines, error.to_string()).word(&source))?;
        let checksum = add.checksum.as_ref().map(|text| self.expand(lines, text, env)).transpose()?;
        Ok(match remote {
            None => None,
            Some(RemoteSource::Git(git)) => {
                Some(RemoteSpec::Git(GitRef { checksum: git.checksum.clone().or(checksum), ..git }))
            }
            Some(RemoteSource::Http(url)) => {
                let checksum = checksum.map(|text| {
                    text.parse()
                        .map_err(|error| self.error(lines, format!("invalid checksum {text}: {error}")))
                });
                Some(RemoteSpec::Http { name: file_name(&url), url, checksum: checksum.transpose()? })
            }
        })
    }
}
