//! `crossdock demo`: the main job on any machine, without network, account, daemon or container runtime.

mod base;
mod elf;
mod project;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use fs_err as fs;

use super::args::DemoCommand;
use super::backend::{self, Finding, Level, Machine, Settings};
use super::environment::Environment;
use super::error::{CliError, ExitStatus};
use super::report::{Reporter, duration};
use super::{env_vars, print};
use crate::build::{
    BuildOutcome, BuildRequest, CacheMountOptions, ContextSource, Destination, DockerfileText, ImageFormat,
    NamedContext, Output,
};
use crate::bytes::ByteSize;
use crate::context::git::Git;
use crate::event::StepOutcome;
use crate::exec::Network;
use crate::record::Scope;
use show::Show;

/// Runs the command.
pub(super) fn command(command: &DemoCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    match &command.keep {
        Some(directory) => {
            let directory = environment.absolute(directory);
            let mut entries = match fs::read_dir(&directory) {
                Ok(entries) => Some(entries),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(CliError::system(error)),
            };
            if entries.as_mut().is_some_and(|entries| entries.next().is_some()) {
                return Err(CliError::usage(format!("{} is not empty", directory.display()))
                    .hint("name a directory that does not exist yet"));
            }
            fs::create_dir_all(&directory).map_err(CliError::system)?;
            run(&directory, environment)?;
            print(&format!("\nEverything is in {}.\n", directory.display()))?;
        }
        None => {
            let parent =
                environment.variable(env_vars::TMPDIR).map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
            let directory = tempfile::Builder::new()
                .prefix("crossdock-demo-")
                .tempdir_in(&parent)
                .with_context(|| format!("could not make a directory in {}", parent.display()))
                .map_err(CliError::system)?;
            run(directory.path(), environment)?;
        }
    }
    Ok(ExitStatus::Success)
}

fn run(directory: &Path, environment: &Environment) -> Result<(), CliError> {
    let list: OsString = environment.variable(env_vars::PATH).unwrap_or_default().to_owned();
    let path: Vec<PathBuf> = std::env::split_paths(&list).collect();
    let layout = directory.join("base");
    let base = base::assemble(&layout, &path)
        .context("could not make a base image of this machine's tools")
        .map_err(CliError::system)?;
    print(&format!(
        "Base image: {} and {} libraries of this machine, {}.\n",
        base.tools.join(", "),
        base.libraries,
        ByteSize(base.size)
    ))?;
    // The findings come first: the process is what it is on this machine until it enters a namespace of its own.
    let findings = backend::doctor(directory);
    let machine = Machine::enter();
    let dockerfile = dockerfile(&findings, machine.obstacle())?;

    let first = directory.join("checkout-1");
    project::write(&first, false).map_err(CliError::system)?;
    print("\nRunner 1 builds a program of three modules. Its cache is empty, the shared one too.\n")?;
    let first = build(&machine, directory, &layout, &first, 1, dockerfile)?;

    let second = directory.join("checkout-2");
    project::write(&second, true).map_err(CliError::system)?;
    print(&format!(
        "\nRunner 2 is a new machine with an empty cache of its own. It has a fresh checkout in which\n{} was \
         changed, and reads the cache that runner 1 wrote.\n",
        project::EDITED
    ))?;
    let second = build(&machine, directory, &layout, &second, 2, dockerfile)?;
    print(&comparison(&first, &second))
}

/// The Dockerfile that this machine can build, and why if it is the lesser one.
fn dockerfile(findings: &[Finding], obstacle: Option<&str>) -> Result<&'static str, CliError> {
    let bad: Vec<_> = findings.iter().filter(|finding| finding.level == Level::Bad).collect();
    if bad.is_empty() && obstacle.is_none() {
        return Ok("Dockerfile");
    }
    let mut text = String::from("\nThis machine cannot run steps:\n");
    for finding in &bad {
        text += &format!("  {}: {}\n", finding.name, finding.detail);
        if let Some(advice) = &finding.advice {
            text += &format!("    hint: {advice}\n");
        }
    }
    if let (Some(obstacle), true) = (obstacle, bad.is_empty()) {
        text += &format!("  {obstacle}\n");
    }
    text += "So the sample is built without RUN: its files are only copied.\n";
    print(&text)?;
    Ok("Dockerfile.copy-only")
}

fn build(
    machine: &Machine,
    directory: &Path,
    layout: &Path,
    checkout: &Path,
    runner: u32,
    dockerfile: &str,
) -> Result<BuildOutcome, CliError> {
    let shared = directory.join("shared-cache");
    fs::create_dir_all(&shared).map_err(CliError::system)?;
    let shared = url::Url::from_directory_path(&shared)
        .map_err(|()| CliError::message(format!("{} is not an absolute path", shared.display())))?;
    let settings = Settings {
        local: directory.join(format!("runner-{runner}")),
        shared: Some(shared.to_string()),
        token: None,
        identity: None,
        object_settings: backend::ObjectSettings::default(),
        readonly: false,
        scopes: vec![Scope::default()],
        scopes_are_given: true,
        credentials: Vec::new(),
        registries: crate::registry::Hosts::new(),
        git: Git::default(),
    };
    let text = fs::read(checkout.join(dockerfile)).map_err(CliError::system)?;
    let request = BuildRequest {
        dockerfile: DockerfileText { name: dockerfile.to_owned(), text, ignore: None },
        remote_dockerfile: None,
        context: ContextSource::Directory(checkout.to_owned()),
        build_args: Vec::new(),
        unkeyed_args: BTreeSet::new(),
        build_contexts: BTreeMap::from([(
            "base".to_owned(),
            NamedContext::OciLayout(format!("{}:latest", layout.display())),
        )]),
        target: None,
        platforms: Vec::new(),
        multi_platform: false,
        tags: Vec::new(),
        labels: Vec::new(),
        annotations: Vec::new(),
        no_cache: false,
        trace: true,
        #[cfg(debug_assertions)]
        blind: None,
        verify_hits: None,
        cache_mounts: CacheMountOptions::default(),
        no_cache_filter: Vec::new(),
        pull: false,
        network: Network::None,
        extra_hosts: Vec::new(),
        shm_size: 64 << 20,
        ulimits: Vec::new(),
        secrets: Vec::new(),
        ssh: Vec::new(),
        allow: Vec::new(),
        outputs: vec![Output::Oci {
            destination: Destination::Path(directory.join(format!("image-{runner}.tar"))),
            tar: true,
        }],
        format: ImageFormat::default(),
        source_date_epoch: None,
        dry_run: false,
    };
    let reporter: Arc<dyn Reporter> = Arc::new(Show::new(Box::new(std::io::stdout()), shared.to_string()));
    super::runtime()?.block_on(super::build::run(machine.clone(), &settings, &request, &reporter))
}

/// What runner 2 did not have to do.
fn comparison(first: &BuildOutcome, second: &BuildOutcome) -> String {
    let mut text = format!(
        "\nRunner 1: {} of {} steps ran, {}.\nRunner 2: {} of {} steps ran, {}.\n",
        first.summary.ran,
        first.summary.ran + first.summary.cached,
        duration(first.summary.elapsed),
        second.summary.ran,
        second.summary.ran + second.summary.cached,
        duration(second.summary.elapsed),
    );
    let because: Vec<String> = second
        .steps
        .iter()
        .filter_map(|step| match &step.outcome {
            StepOutcome::Ran { why } => Some(format!("  {}: {}\n", step.name, why.reason)),
            _ => None,
        })
        .collect();
    if !because.is_empty() {
        text += "What ran again, and why:\n";
        text.extend(because);
    }
    if let Some(manifest) = &second.manifest {
        text += &format!("The image is {}.\n", manifest.digest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::StepReport;
    use crate::event::{Origin, Summary};

    fn outcome(ran: u32, cached: u32, steps: &[(&str, &StepOutcome)]) -> BuildOutcome {
        let step = |(name, outcome): &(&str, &StepOutcome)| StepReport {
            name: (*name).to_owned(),
            preimage: None,
            outcome: (*outcome).clone(),
            past: Vec::new(),
        };
        let elapsed = std::time::Duration::from_millis(1500);
        BuildOutcome {
            manifest: None,
            config: None,
            summary: Summary { cached, ran, elapsed, ..Summary::default() },
            would_run: 0,
            steps: steps.iter().map(step).collect(),
        }
    }

    #[test]
    fn the_comparison_says_what_ran_and_why() {
        let ran = StepOutcome::Ran { why: "greeting.src changed".into() };
        let cached = StepOutcome::Cached {
            from: "shared cache".into(),
            saved: std::time::Duration::ZERO,
            origin: Origin::default(),
        };
        let text = comparison(
            &outcome(3, 0, &[("a", &ran), ("b", &ran)]),
            &outcome(1, 2, &[("a", &cached), ("b", &ran)]),
        );
        assert_eq!(
            text,
            "\nRunner 1: 3 of 3 steps ran, 1.5s.\nRunner 2: 1 of 3 steps ran, 1.5s.\nWhat ran again, and why:\n  \
             b: greeting.src changed\n"
        );
    }
}
