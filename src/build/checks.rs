//! Answers about a Dockerfile instead of a build: what is questionable about it, what a target can be given, which
//! targets there are.
//!
//! Nothing is run and no layer is looked at. Configurations of base images are, as in BuildKit, because variables and
//! triggers come from there; a registry that cannot be reached is no obstacle.

use std::collections::HashMap;

use futures_util::future::join_all;

use super::engine::Engine;
use super::error::BuildError;
use super::inputs::{ImageInput, Inputs, resolve_image};
use super::options::{BuildRequest, ContextSource};
use super::plan::{Draft, Outline, Plan, SourceSpec, argument};
use super::{contexts, remembered};
use crate::context::ignore::Ignore;
use crate::dockerfile::lint::Linter;
use crate::dockerfile::{self, Dialect, Dockerfile, DockerfileError, Lines, Warning};
use crate::event::Event;
use crate::platform::Platform;
use crate::registry::SourceError;

/// What `--check` found.
#[derive(Debug)]
pub struct Checked {
    /// The findings, in the order in which they were made.
    pub warnings: Vec<Warning>,
    /// Why the Dockerfile cannot be built, if it cannot, or why its findings fail a build.
    pub error: Option<BuildError>,
}

impl Checked {
    /// The lines that the error is about, if it is about some.
    pub fn error_lines(&self) -> Option<Lines> {
        match self.error.as_ref()? {
            BuildError::Dockerfile(error) => Some(error.lines()),
            _ => None,
        }
    }
}

/// One stage, as something that can be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name; empty if it has none.
    pub name: String,
    /// What the comments above it say.
    pub description: String,
    /// It is what is built if no target is named.
    pub is_default: bool,
    /// What it starts from, as written.
    pub base: String,
    /// Its `--platform`, as written.
    pub platform: String,
    /// The lines of its FROM.
    pub lines: Lines,
}

/// Reads the Dockerfile, as the build arguments for the frontend say.
pub(super) fn read(request: &BuildRequest) -> (Linter, Result<Dockerfile, DockerfileError>) {
    let given = |name| argument(&request.build_args, name);
    let syntax = given("BUILDKIT_SYNTAX").filter(|syntax| !syntax.is_empty());
    let dialect = Dialect { syntax, check: given("BUILDKIT_DOCKERFILE_CHECK") };
    dockerfile::parse_checked(&request.dockerfile.name, &request.dockerfile.text, dialect)
}

/// The stages of a Dockerfile.
pub fn targets(request: &BuildRequest) -> Result<Vec<Target>, DockerfileError> {
    let dockerfile = read(request).1?;
    let last = dockerfile.stages.len() - 1;
    let targets = dockerfile.stages.iter().enumerate().map(|(number, stage)| {
        let name = stage.from.name.clone().unwrap_or_default();
        Target {
            description: dockerfile.description(stage.lines, &name).to_owned(),
            name,
            is_default: number == last,
            base: stage.from.image.clone(),
            platform: stage.from.platform.clone().unwrap_or_default(),
            lines: stage.lines,
        }
    });
    Ok(targets.collect())
}

impl Engine {
    /// Checks the Dockerfile: the target with what it needs, or all of it if no target is named. Errors of the
    /// Dockerfile are part of the answer.
    pub async fn check(&self, request: &BuildRequest) -> Result<Checked, BuildError> {
        let work = async {
            let (lint, dockerfile) = read(request);
            let result = match dockerfile {
                Ok(dockerfile) => self.ask(request, &dockerfile, &lint, request.target.is_none()).await,
                Err(error) => Err(error.into()),
            };
            Checked { warnings: lint.warnings(), error: result.err() }
        };
        tokio::select! {
            checked = work => Ok(checked),
            () = self.cancelled() => Err(BuildError::Cancelled),
        }
    }

    /// Says what the target can be given. Warnings are events.
    pub async fn outline(&self, request: &BuildRequest) -> Result<Outline, BuildError> {
        let work = async {
            let (lint, dockerfile) = read(request);
            let plan = self.ask(request, &dockerfile?, &lint, false).await;
            self.show(request, &lint);
            Ok(plan?.outline)
        };
        tokio::select! {
            outline = work => outline,
            () = self.cancelled() => Err(BuildError::Cancelled),
        }
    }

    /// Emits the new findings as warnings.
    pub(super) fn show(&self, request: &BuildRequest, lint: &Linter) {
        for Warning { rule, message, lines } in lint.take() {
            let place = lines.map(|lines| format!("{lines}:")).unwrap_or_default();
            let message = format!("{}:{place} {message} ({})", request.dockerfile.name, rule.name);
            self.events.emit(Event::Warning { message });
        }
    }

    /// Plans a build for one platform that is to be done. Findings are shown, and fail it if the Dockerfile says so.
    pub(super) async fn plan(
        &self,
        request: &BuildRequest,
        dockerfile: &Dockerfile,
        platform: Option<&Platform>,
        lint: &Linter,
    ) -> Result<(Plan, HashMap<usize, ImageInput>), BuildError> {
        let mut draft = Draft::new(dockerfile, request, platform, lint)?;
        let images = Inputs::resolve(self, request, dockerfile, &mut draft).await?;
        // An ignore file that cannot be read fails the step that needs it.
        draft.check_ignored(ignore(request).unwrap_or_default());
        Ok((finish(draft, lint)?, images))
    }

    /// Plans a build that nobody wants done.
    async fn ask(
        &self,
        request: &BuildRequest,
        dockerfile: &Dockerfile,
        lint: &Linter,
        all_stages: bool,
    ) -> Result<Plan, BuildError> {
        // What steps may do does not matter where none is run.
        let mut request = request.clone();
        request.allow.extend(["network.host", "security.insecure"].map(str::to_owned));
        let mut draft = Draft::new(dockerfile, &request, request.platforms.first(), lint)?;
        if all_stages {
            draft.need_all();
        }
        self.resolve_for_checks(&request, dockerfile, &mut draft).await?;
        draft.check_ignored(ignore(&request)?);
        finish(draft, lint)
    }

    /// Gets the configurations of base images, except from registries that do not answer.
    async fn resolve_for_checks(
        &self,
        request: &BuildRequest,
        dockerfile: &Dockerfile,
        draft: &mut Draft<'_>,
    ) -> Result<(), BuildError> {
        loop {
            let wanted: Vec<(usize, SourceSpec)> =
                draft.unresolved().into_iter().map(|(number, spec)| (number, spec.clone())).collect();
            let resolved = join_all(wanted.iter().map(|(number, spec)| {
                let place = format!("{}:{}", dockerfile.name, draft.place_of(*number).0);
                resolve_image(self, request.pull, spec, place)
            }))
            .await;
            for ((number, _), resolved) in wanted.iter().zip(resolved) {
                match resolved {
                    Ok(Some(input)) => draft.resolve(*number, input.image.config.clone()),
                    Ok(None) => {}
                    Err(error) if is_outage(&error) => {
                        let message = format!(
                            "{}; what depends on its configuration is not checked",
                            crate::hint::with_causes(&error)
                        );
                        self.events.emit(Event::Warning { message });
                        draft.do_without(*number);
                    }
                    Err(error) => return Err(error),
                }
            }
            if !draft.add_triggers()? {
                return Ok(());
            }
        }
    }
}

/// Lowers a draft whose images are there.
fn finish(draft: Draft<'_>, lint: &Linter) -> Result<Plan, BuildError> {
    draft.check_platforms();
    let plan = draft.lower()?;
    match lint.violation() {
        Some(rules) => Err(BuildError::Checks { rules }),
        None => Ok(plan),
    }
}

/// Whether an image could not be had because nobody answered.
fn is_outage(error: &BuildError) -> bool {
    let BuildError::Image { source, .. } = error else { return false };
    source.downcast_ref::<SourceError>().is_some_and(remembered::is_outage)
}

/// The ignore file that is in force for the context, if there is one.
fn ignore(request: &BuildRequest) -> Result<Option<Ignore>, BuildError> {
    let ContextSource::Directory(root) = &request.context else { return Ok(None) };
    let found = contexts::ignore_rules(root, request.dockerfile.ignore.as_ref());
    let (ignore, _) = found.map_err(|error| BuildError::cache("reading the ignore file", error))?;
    Ok(Some(ignore).filter(|ignore| !ignore.is_empty()))
}
