//! `build --check` and `build --call`: answers about a Dockerfile, printed as `docker buildx build` prints them.

mod answers;
mod excerpt;
mod tabs;

use std::sync::Arc;

use clap::ValueEnum;

use super::args::BuildCommand;
use super::backend::{self, Cancel, Machine, Settings};
use super::environment::Environment;
use super::error::{CliError, ExitStatus};
use super::report::Reporter;
use super::{request, signals};
use crate::build::{BuildError, Engine};
use answers::Document;

/// What `--call` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSpec {
    /// The question.
    pub method: Method,
    /// The answer is printed as JSON.
    pub json: bool,
    /// Findings do not make the command fail.
    pub ignore_status: bool,
}

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// None: the image is built.
    Build,
    /// What is questionable about the Dockerfile.
    #[value(alias = "lint")]
    Check,
    /// What the target can be given.
    Outline,
    /// What can be built.
    Targets,
}

/// Reads `method[,format=json][,ignorestatus=true]` (buildx's `ParseCallFunc`).
pub(super) fn spec(text: &str) -> Result<CallSpec, String> {
    let mut spec = CallSpec { method: Method::Build, json: false, ignore_status: false };
    let mut is_named = false;
    for field in text.split(',').filter(|field| !field.is_empty()) {
        match field.split_once('=') {
            Some(("format", format)) => match format {
                "json" => spec.json = true,
                "text" | "txt" | "" => spec.json = false,
                _ => return Err(format!("unknown format `{format}`, expected json or text")),
            },
            Some(("ignorestatus", value)) => {
                spec.ignore_status =
                    value.parse().map_err(|_| format!("`{value}` is neither true nor false"))?;
            }
            Some((key, _)) => return Err(format!("unknown key `{key}`, expected format or ignorestatus")),
            None if is_named => return Err("there can be one method only".to_owned()),
            None => {
                is_named = true;
                spec.method = Method::from_str(field, false).map_err(|_| {
                    format!("unknown method `{field}`, expected build, check, outline or targets")
                })?;
            }
        }
    }
    Ok(spec)
}

/// What the command asks for, if it does not ask for an image.
pub(super) fn asked(command: &BuildCommand) -> Option<CallSpec> {
    let mut spec =
        command.call.unwrap_or(CallSpec { method: Method::Build, json: false, ignore_status: false });
    if command.check {
        spec.method = Method::Check;
    }
    Some(spec).filter(|spec| spec.method != Method::Build)
}

/// Answers.
pub(super) fn command(
    spec: CallSpec,
    command: &BuildCommand,
    environment: &Environment,
    reporter: &Arc<dyn Reporter>,
) -> Result<ExitStatus, CliError> {
    let mut request = request::of_build(command, environment, &mut std::io::stdin().lock())?;
    request.outputs.clear();
    let settings = Settings::resolve(&command.build.cache, environment)?;
    if request.remote_dockerfile.is_some() {
        let fetched = answer(&settings, reporter, async |engine| engine.with_dockerfile(&request).await);
        request = super::runtime()?.block_on(fetched)?;
    }
    let document = Document::new(&request, command.build.file.as_deref());
    if spec.method == Method::Targets {
        let targets =
            crate::build::targets(&request).map_err(|error| CliError::hinted(ExitStatus::Failure, error))?;
        reporter.close();
        let text = if spec.json { document.targets_json(&targets)? } else { answers::targets(&targets) };
        super::print(&text)?;
        return Ok(ExitStatus::Success);
    }
    if spec.method == Method::Outline {
        let outline = answer(&settings, reporter, async |engine| engine.outline(&request).await);
        let outline = super::runtime()?.block_on(outline)?;
        reporter.close();
        let text = if spec.json { document.outline_json(&outline)? } else { answers::outline(&outline) };
        super::print(&text)?;
        return Ok(ExitStatus::Success);
    }
    let checked = answer(&settings, reporter, async |engine| engine.check(&request).await);
    let checked = super::runtime()?.block_on(checked)?;
    reporter.close();
    let text = if spec.json { document.checked_json(&checked)? } else { document.checked(&checked) };
    super::print(&text)?;
    if let Some(error) = document.error(&checked) {
        return Err(CliError::message(error));
    }
    let is_clean = checked.warnings.is_empty() || spec.ignore_status;
    Ok(if is_clean { ExitStatus::Success } else { ExitStatus::Failure })
}

/// A question to the engine, with signals on.
async fn answer<T>(
    settings: &Settings,
    reporter: &Arc<dyn Reporter>,
    question: impl AsyncFnOnce(&Engine) -> Result<T, BuildError>,
) -> Result<T, CliError> {
    let cancel = Cancel::new()?;
    let received = signals::listen(reporter.clone(), {
        let cancel = cancel.clone();
        move || cancel.cancel()
    })
    .map_err(CliError::system)?;
    let engine = backend::engine(Machine::idle(), settings, reporter.clone(), cancel).await?;
    match (question(&engine).await.map_err(backend::build_error), received.status()) {
        (Err(error), Some(status)) => Err(CliError { status, ..error }),
        (result, _) => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_buildx_s() {
        let parsed = |text: &str| spec(text).unwrap();
        assert_eq!(parsed("check").method, Method::Check);
        assert_eq!(parsed("lint").method, Method::Check);
        assert_eq!(parsed("").method, Method::Build);
        let outline = CallSpec { method: Method::Outline, json: true, ignore_status: false };
        assert_eq!(parsed("outline,format=json"), outline);
        assert!(parsed("format=json,check,ignorestatus=true").ignore_status);
        for bad in ["what", "check,outline", "check,form=json", "check,format=xml", "check,ignorestatus=2"] {
            assert!(spec(bad).is_err(), "{bad}");
        }
    }
}
