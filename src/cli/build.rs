//! `crossdock build`.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::args::{BuildCommand, FingerprintCommand, Format, Progress};
use super::backend::{self, Cancel, Machine, Settings};
use super::environment::Environment;
use super::error::{CliError, ExitStatus};
use super::report::{self, Built, Reporter};
use super::{call, request, signals};
use crate::build::{BuildOutcome, BuildRequest, Output};
use crate::event::{Event, StepOutcome};
use crate::store::replace_file;

/// Runs the command; its errors have been shown when it returns.
pub(super) fn command(command: &BuildCommand, environment: &Environment) -> ExitStatus {
    let progress = if command.quiet { Progress::Quiet } else { command.progress };
    let reporter = report::choose(progress, environment);
    match prepared(command, environment, &reporter) {
        Ok(status) => status,
        Err(error) => {
            reporter.failed(&error);
            error.status
        }
    }
}

fn prepared(
    command: &BuildCommand,
    environment: &Environment,
    reporter: &Arc<dyn Reporter>,
) -> Result<ExitStatus, CliError> {
    if let Some(spec) = call::asked(command) {
        return call::command(spec, command, environment, reporter);
    }
    let request = request::of_build(command, environment, &mut std::io::stdin().lock())?;
    let settings = Settings::resolve(&command.build.cache, environment)?;
    for message in command.build.docker.warnings().into_iter().chain(request::warnings(&request)) {
        reporter.emit(Event::Warning { message });
    }
    let runtime = command.build.runtime.as_deref().or(environment.config.runtime.as_deref());
    let machine = Machine::with_runtime(runtime, environment)?;
    let outcome = super::runtime()?.block_on(run(machine, &settings, &request, reporter))?;
    let names = names(&request);
    if let (Some(file), false) = (&command.iidfile, request.dry_run) {
        let id = outcome
            .config
            .as_ref()
            .ok_or_else(|| CliError::usage("`--iidfile` needs an image, and the outputs are only files"))?;
        write_file(&environment.absolute(file), id.to_string().as_bytes())?;
    }
    if let (Some(file), false) = (&command.metadata_file, request.dry_run) {
        let mut text = serde_json::to_string_pretty(&metadata(&outcome, &names)).map_err(CliError::system)?;
        text.push('\n');
        write_file(&environment.absolute(file), text.as_bytes())?;
    }
    if let Some(manifest) = &outcome.manifest {
        let digest = manifest.digest.to_string();
        if command.quiet {
            super::print(&format!("{digest}\n"))?;
        }
        reporter.built(&Built { digest, names, would_run: None });
    } else if request.dry_run {
        reporter.built(&Built { digest: String::new(), names, would_run: Some(outcome.would_run) });
    } else {
        reporter.close();
    }
    Ok(if outcome.would_run > 0 { ExitStatus::Found } else { ExitStatus::Success })
}

/// The call of the engine, with signals on.
pub(super) async fn run(
    machine: Machine,
    settings: &Settings,
    request: &BuildRequest,
    reporter: &Arc<dyn Reporter>,
) -> Result<BuildOutcome, CliError> {
    let cancel = Cancel::new()?;
    let received = signals::listen(reporter.clone(), {
        let cancel = cancel.clone();
        move || cancel.cancel()
    })
    .map_err(CliError::system)?;
    let result = backend::build(machine, settings, request, reporter.clone(), cancel).await;
    // A build that had just ended when the signal came is a build that ended.
    match (result, received.status()) {
        (Err(error), Some(status)) => Err(CliError { status, ..error }),
        (result, _) => result,
    }
}

/// The names that the image was given.
fn names(request: &BuildRequest) -> Vec<String> {
    let mut names: Vec<String> = request.tags.iter().map(ToString::to_string).collect();
    for output in &request.outputs {
        if let Output::Image { names: own, .. } = output {
            names.extend(own.iter().map(ToString::to_string));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// What `--metadata-file` holds, with the keys that buildx uses.
fn metadata(outcome: &BuildOutcome, names: &[String]) -> Value {
    let mut object = Map::new();
    if let Some(config) = &outcome.config {
        object.insert("containerimage.config.digest".into(), config.to_string().into());
    }
    if let Some(manifest) = &outcome.manifest {
        let mut descriptor = json!({
            "mediaType": manifest.media_type,
            "digest": manifest.digest.to_string(),
            "size": manifest.size,
        });
        if let (Some(descriptor), Some(platform)) = (descriptor.as_object_mut(), &manifest.platform) {
            descriptor.insert("platform".into(), json!(platform));
        }
        object.insert("containerimage.descriptor".into(), descriptor);
        object.insert("containerimage.digest".into(), manifest.digest.to_string().into());
    }
    if !names.is_empty() {
        object.insert("image.name".into(), names.join(",").into());
    }
    Value::Object(object)
}

/// Writes a file so that it is there completely or not at all. What is no regular file (`/dev/stdout`, a pipe) is
/// written to as it is.
fn write_file(path: &Path, content: &[u8]) -> Result<(), CliError> {
    replace_file(path, |file| file.write_all(content)).map_err(|error: std::io::Error| {
        CliError::failure(anyhow::Error::new(error).context(format!("could not write {}", path.display())))
    })
}

/// `crossdock fingerprint`: a dry run whose keys are printed.
pub(super) fn fingerprint(
    command: &FingerprintCommand,
    environment: &Environment,
) -> Result<ExitStatus, CliError> {
    let mut request = request::of_args(&command.build, environment, &mut std::io::stdin().lock())?;
    request.dry_run = true;
    let settings = Settings::resolve(&command.build.cache, environment)?;
    let reporter = report::choose(Progress::Quiet, environment);
    let machine = Machine::enter();
    let outcome = super::runtime()?.block_on(run(machine, &settings, &request, &reporter))?;
    let text = match command.format {
        Format::Text => super::fingerprint::text(&outcome.steps),
        Format::Json => super::fingerprint::json(&outcome.steps)?,
    };
    super::print(&text)?;
    Ok(ExitStatus::Success)
}

/// One word for how a step would end.
pub(super) fn status(outcome: &StepOutcome) -> &'static str {
    match outcome {
        StepOutcome::Cached { .. } => "cached",
        StepOutcome::WouldRun { .. } => "would run",
        StepOutcome::Ran { .. } => "ran",
        StepOutcome::Done => "done",
        StepOutcome::Failed => "failed",
        StepOutcome::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::event::Summary;
    use crate::image::Descriptor;

    #[test]
    fn metadata_has_the_keys_of_buildx() {
        let manifest = Descriptor::new("application/vnd.oci.image.manifest.v1+json", Digest::of("m"), 7);
        let outcome = BuildOutcome {
            manifest: Some(Descriptor { platform: Some("linux/arm64".parse().unwrap()), ..manifest }),
            config: Some(Digest::of("c")),
            summary: Summary::default(),
            would_run: 0,
            steps: Vec::new(),
        };
        let (manifest, config) = (Digest::of("m").to_string(), Digest::of("c").to_string());
        assert_eq!(
            metadata(&outcome, &["docker.io/library/a:1".into(), "b.io/c:latest".into()]),
            json!({
                "containerimage.config.digest": config,
                "containerimage.descriptor": {
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": manifest,
                    "size": 7,
                    "platform": {"architecture": "arm64", "os": "linux"},
                },
                "containerimage.digest": manifest,
                "image.name": "docker.io/library/a:1,b.io/c:latest",
            })
        );
    }

    #[test]
    fn files_are_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("iid");
        write_file(&path, b"long content").unwrap();
        write_file(&path, b"short").unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"short");
        assert_eq!(fs_err::read_dir(directory.path()).unwrap().count(), 1);
        let error = write_file(&directory.path().join("no/iid"), b"x").unwrap_err();
        assert!(error.render(false).contains("no/iid"), "{}", error.render(false));
    }
}
