//! The one place where commands meet the engine, the stores and the executor.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::args::CacheArgs;
use super::environment::Environment;
use super::error::CliError;
use crate::build::BuildRequest;
use crate::digest::Digest;
use crate::event::{Events, StepOutcome, Summary};
use crate::platform::Platform;
use crate::record::{Preimage, Scope};

/// Where the caches are and how they are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// Directory of the local cache.
    pub local: PathBuf,
    /// URL of the shared cache.
    pub shared: Option<String>,
    /// The shared cache is only read.
    pub readonly: bool,
    /// The scopes: the first is written, all are read in their order. Never empty.
    pub scopes: Vec<Scope>,
    /// Directory of the Docker client's configuration, for credentials.
    pub docker_config: Option<PathBuf>,
}

impl Settings {
    /// Flags before environment before defaults; clap has already taken the environment for absent flags.
    pub(super) fn resolve(args: &CacheArgs, environment: &Environment) -> Result<Self, CliError> {
        let scopes =
            if args.cache_scope.is_empty() { vec![Scope::default()] } else { args.cache_scope.clone() };
        Ok(Self {
            local: local_cache(args.local.local_cache.as_deref(), environment)?,
            shared: args.cache.clone().filter(|url| !url.is_empty()),
            readonly: args.cache_readonly,
            scopes,
            docker_config: environment.docker_config(),
        })
    }
}

/// The directory of the local cache.
pub(super) fn local_cache(given: Option<&Path>, environment: &Environment) -> Result<PathBuf, CliError> {
    match given.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => Ok(environment.absolute(path)),
        None => environment.default_cache().ok_or_else(|| {
            CliError::usage("there is no home directory for the local cache").hint("give `--local-cache DIR`")
        }),
    }
}

/// Ends a build early.
#[derive(Debug, Clone, Default)]
pub(super) struct Cancel(Arc<(AtomicBool, Notify)>);

impl Cancel {
    /// Ends it.
    pub(super) fn cancel(&self) {
        self.0.0.store(true, Ordering::SeqCst);
        self.0.1.notify_waiters();
    }

    /// Returns when it is ended.
    pub(super) async fn cancelled(&self) {
        let notified = self.0.1.notified();
        if !self.0.0.load(Ordering::SeqCst) {
            notified.await;
        }
    }
}

/// Names the manifest that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    pub platform: Option<Platform>,
}

/// What a build resulted in.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// The manifest; `None` if no image was asked for.
    pub manifest: Option<Descriptor>,
    /// The digest of the image's configuration.
    pub config: Option<Digest>,
    /// The figures.
    pub summary: Summary,
    /// With a dry run: how many steps would run.
    pub would_run: u32,
    /// Every step, in the order of the plan.
    pub steps: Vec<StepReport>,
}

/// One step of a build that was done.
#[derive(Debug, Clone)]
pub(super) struct StepReport {
    /// Its name.
    pub name: String,
    /// What it is keyed on; `None` if that depends on a step that would run.
    pub preimage: Option<Preimage>,
    /// How it ended.
    pub outcome: StepOutcome,
}

/// Builds.
pub(super) async fn build(
    settings: &Settings,
    request: &BuildRequest,
    events: Events,
    cancel: Cancel,
) -> Result<Outcome, CliError> {
    let _ = (settings, request, events);
    cancel.cancelled().await;
    Err(absent())
}

/// One record of the local cache.
#[derive(Debug, Clone)]
pub(super) struct RecordInfo {
    pub key: String,
    pub scope: String,
    pub step: String,
    pub bytes: u64,
    /// Since it was last used.
    pub idle: Duration,
}

/// What takes the space in the local cache.
#[derive(Debug, Clone, Default)]
pub(super) struct Usage {
    /// Kind of objects, how many, bytes.
    pub kinds: Vec<(String, u64, u64)>,
}

/// What to remove.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PruneLimits {
    pub all: bool,
    pub max_bytes: Option<u64>,
    pub max_age: Option<Duration>,
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pruned {
    pub records: u64,
    pub blobs: u64,
    pub bytes: u64,
}

/// What a check found.
#[derive(Debug, Clone, Default)]
pub(super) struct Verified {
    pub checked: u64,
    pub bytes: u64,
    pub damaged: Vec<String>,
    pub repaired: bool,
}

pub(super) async fn cache_records(local: &Path) -> Result<Vec<RecordInfo>, CliError> {
    let _ = local;
    Err(absent())
}

pub(super) async fn cache_usage(local: &Path) -> Result<Usage, CliError> {
    let _ = local;
    Err(absent())
}

pub(super) async fn cache_prune(local: &Path, limits: PruneLimits) -> Result<Pruned, CliError> {
    let _ = (local, limits);
    Err(absent())
}

pub(super) async fn cache_verify(local: &Path, repair: bool) -> Result<Verified, CliError> {
    let _ = (local, repair);
    Err(absent())
}

/// How good a finding of `doctor` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// As it should be.
    Good,
    /// Works in a lesser way.
    Lesser,
    /// Prevents steps from running.
    Bad,
}

/// One thing about this machine.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    pub level: Level,
    pub name: String,
    pub detail: String,
    pub advice: Option<String>,
}

/// What this machine allows.
pub(super) fn doctor() -> Vec<Finding> {
    Vec::new()
}

fn absent() -> CliError {
    CliError::system(anyhow::Error::msg("the engine is not part of this program"))
}
