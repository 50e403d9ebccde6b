//! The one place where commands meet the engine, the stores and the executor.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::args::CacheArgs;
use super::env_vars;
use super::environment::Environment;
use super::error::{CliError, ExitStatus};
use super::login::Identity;
use crate::build::{BuildError, BuildOutcome, BuildRequest, Engine, Ownership};
use crate::context::git::Git;
use crate::event::{Event, Events};
use crate::exec::{self, CancelToken, Executor, Ids, NativeExecutor, OciRuntimeExecutor, UserNamespace};
use crate::layer::Timestamp;
use crate::record::{Scope, Value};
use crate::registry::{self, ClientOptions, Hosts};
use crate::store::maintain::{self, PrunePolicy};
use crate::store::url::StoreUrl;
use crate::store::{self, Cache, CacheOptions, DirectoryStore, HttpStore, ObjectStore, ObjectUrl, Store};

/// Where the caches are and how they are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// Directory of the local cache.
    pub local: PathBuf,
    /// URL of the shared cache.
    pub shared: Option<String>,
    /// The token for the shared cache, if that is a server.
    pub token: Option<String>,
    /// What else this machine can prove to such a server.
    pub identity: Option<Identity>,
    /// What the environment says of object storage.
    pub object_settings: ObjectSettings,
    /// The shared cache is only read.
    pub readonly: bool,
    /// The scopes: the first is written, all are read in their order. Never empty.
    pub scopes: Vec<Scope>,
    /// Whether somebody has said what they are; else a server may.
    pub scopes_are_given: bool,
    /// Files with credentials for registries; the first that has one for a repository gives it.
    pub credentials: Vec<PathBuf>,
    /// What is set for single registries.
    pub registries: Hosts,
    /// How git repositories are reached.
    pub git: Git,
}

impl Settings {
    /// Flags before environment before defaults; clap has already taken the environment for absent flags.
    pub(super) fn resolve(args: &CacheArgs, environment: &Environment) -> Result<Self, CliError> {
        let config = &environment.config;
        let mut scopes =
            if args.cache_scope.is_empty() { config.cache_scope.clone() } else { args.cache_scope.clone() };
        let scopes_are_given = !scopes.is_empty();
        if !scopes_are_given {
            scopes.push(Scope::default());
        }
        Ok(Self {
            local: local_cache(args.local.local_cache.as_deref(), environment)?,
            // Given as nothing, it switches off what the file says.
            shared: args.cache.clone().or_else(|| config.cache.clone()).filter(|url| !url.is_empty()),
            token: environment
                .text(env_vars::CROSSDOCK_TOKEN)
                .filter(|token| !token.is_empty())
                .map(str::to_owned),
            identity: Identity::of(environment),
            object_settings: ObjectSettings::of(environment),
            readonly: args.cache_readonly || config.cache_readonly,
            scopes,
            scopes_are_given,
            credentials: environment.credential_files(),
            registries: registries(environment),
            git: super::sources::git(environment),
        })
    }
}

/// What the configuration file sets for registries, completed by the certificates that Docker and podman would use.
pub(super) fn registries(environment: &Environment) -> Hosts {
    let mut hosts = environment.config.registries.clone();
    for (host, found) in registry::certificates(&environment.certificate_directories()) {
        hosts.entry(host).or_default().complete(found);
    }
    hosts
}

/// The directory of the local cache.
pub(super) fn local_cache(given: Option<&Path>, environment: &Environment) -> Result<PathBuf, CliError> {
    let given = given.filter(|path| !path.as_os_str().is_empty());
    match given.or(environment.config.local_cache.as_deref()) {
        Some(path) => Ok(environment.absolute(path)),
        None => environment.default_cache().ok_or_else(|| {
            CliError::usage("there is no home directory for the local cache").hint("give `--local-cache DIR`")
        }),
    }
}

/// Variables of the environment that say how object storage is reached. Secrets are among them.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct ObjectSettings(Vec<(String, String)>);

impl std::fmt::Debug for ObjectSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl ObjectSettings {
    /// What `environment` has of them.
    pub(super) fn of(environment: &Environment) -> Self {
        let prefixes = ["AWS_", "GOOGLE_", "AZURE_"];
        let texts =
            environment.variables.iter().filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)));
        let ours = texts.filter(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix)));
        Self(ours.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

/// Opens object storage. Asks nothing yet.
pub(super) fn open_objects(url: &ObjectUrl, settings: &ObjectSettings) -> Result<ObjectStore, CliError> {
    let settings = settings.0.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    url.open(settings).map_err(|error| CliError::hinted(ExitStatus::Usage, error))
}

/// Ends a build early.
#[derive(Debug, Clone)]
pub(super) struct Cancel(CancelToken);

impl Cancel {
    /// A build that goes on.
    pub(super) fn new() -> Result<Self, CliError> {
        Ok(Self(CancelToken::new().map_err(CliError::system)?))
    }

    /// Ends it.
    pub(super) fn cancel(&self) {
        self.0.cancel();
    }
}

/// What this process may do: found out before it has threads.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    executor: Result<Arc<dyn Executor>, String>,
    ownership: Ownership,
    /// Which ids there are, where steps can be run at all.
    ids: Option<Ids>,
    note: Option<String>,
}

impl Machine {
    /// As [`Machine::enter`], with steps run by an OCI runtime if one is named: a path, or a name that is looked up on
    /// the `PATH` of `environment`.
    pub(super) fn with_runtime(runtime: Option<&Path>, environment: &Environment) -> Result<Self, CliError> {
        let Some(runtime) = runtime else { return Ok(Self::enter()) };
        let path = environment.variable(env_vars::PATH).unwrap_or_default();
        let candidates: Vec<PathBuf> = if runtime.components().count() > 1 {
            vec![environment.absolute(runtime)]
        } else {
            std::env::split_paths(path)
                .chain(["/usr/sbin".into(), "/sbin".into()])
                .map(|directory| directory.join(runtime))
                .collect()
        };
        let found = candidates.into_iter().find(|candidate| candidate.is_file()).ok_or_else(|| {
            CliError::usage(format!("there is no OCI runtime `{}`", runtime.display()))
                .hint("install it, name its path, or leave `--runtime` out")
        })?;
        let mut machine = Self::enter();
        if let (Ok(executor), Some(ids)) = (&mut machine.executor, machine.ids) {
            let program = PathBuf::from("/proc/self/exe");
            *executor = Arc::new(OciRuntimeExecutor::new(program, exec::Settings::new(ids), found));
        }
        Ok(machine)
    }

    /// Becomes root in a user namespace, if this process is not root already. Must be called while there is one
    /// thread.
    pub(super) fn enter() -> Self {
        let program = PathBuf::from("/proc/self/exe");
        match exec::enter_user_namespace(&program) {
            Ok(UserNamespace { ids, note }) => {
                let ownership = Ownership { user_namespace: ids != Ids::Root, single_id: ids == Ids::Single };
                let executor = NativeExecutor::new(program, exec::Settings::new(ids));
                let note = note.filter(|_| ownership.single_id).map(|why| {
                    format!(
                        "only one user id is available here, so files in images belong to root, and `USER` and `--chown` \
                         to others do not work in steps ({why}; `crossdock doctor` says what to do)"
                    )
                });
                Self { executor: Ok(Arc::new(executor)), ownership, ids: Some(ids), note }
            }
            Err(error) => Self {
                executor: Err(crate::hint::with_causes(&error)),
                ownership: Ownership { user_namespace: true, single_id: true },
                ids: None,
                note: None,
            },
        }
    }

    /// For what runs no step and unpacks no layer.
    pub(super) fn idle() -> Self {
        Self {
            executor: Err("no step is to be run".to_owned()),
            ownership: Ownership { user_namespace: true, single_id: true },
            ids: None,
            note: None,
        }
    }

    /// Why steps cannot be run, if they cannot.
    pub(super) fn obstacle(&self) -> Option<&str> {
        self.executor.as_ref().err().map(String::as_str)
    }
}

/// The time, for the stores.
fn system_time() -> SystemTime {
    SystemTime::now()
}

/// The time, for images and records.
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs().cast_signed(), nanos: since.subsec_nanos() }
}

/// Opens the local cache.
fn open_local(path: &Path) -> Result<DirectoryStore, CliError> {
    DirectoryStore::open(path, system_time).map_err(|error| CliError::hinted(ExitStatus::System, error))
}

/// Builds.
pub(super) async fn build(
    machine: Machine,
    settings: &Settings,
    request: &BuildRequest,
    events: Events,
    cancel: Cancel,
) -> Result<BuildOutcome, CliError> {
    engine(machine, settings, events, cancel).await?.build(request).await.map_err(build_error)
}

/// The engine, with the caches and the registries' credentials that the settings name.
pub(super) async fn engine(
    machine: Machine,
    settings: &Settings,
    events: Events,
    cancel: Cancel,
) -> Result<Engine, CliError> {
    let local = open_local(&settings.local)?;
    let (mut scopes, mut read_only) = (settings.scopes.clone(), settings.readonly);
    let remote: Option<Arc<dyn Store>> = match &settings.shared {
        None => None,
        Some(url) => match store::url::parse(url) {
            Ok(StoreUrl::Directory(path)) => match DirectoryStore::open_shared(&path, system_time) {
                Ok(store) => Some(Arc::new(store)),
                // A cache that cannot be used never fails a build.
                Err(error) => {
                    let message =
                        format!("the shared cache is not used: {}", crate::hint::with_causes(&error));
                    events.emit(Event::Warning { message });
                    None
                }
            },
            Ok(StoreUrl::Server(url)) => {
                let store = HttpStore::new(url.clone(), settings.token.clone())
                    .map_err(|error| CliError::hinted(ExitStatus::System, error))?;
                let identity = settings.identity.as_ref().filter(|_| settings.token.is_none());
                match identity {
                    None => Some(Arc::new(store)),
                    Some(identity) => match identity.log_in(&store, &url).await {
                        Ok(session) => {
                            if !settings.scopes_are_given {
                                read_only |= session.write.is_none();
                                scopes = session.write.into_iter().chain(session.read).collect();
                                let mut seen = HashSet::new();
                                scopes.retain(|scope| seen.insert(scope.clone()));
                            }
                            Some(Arc::new(session.store))
                        }
                        Err(reason) => {
                            let message = format!("the shared cache is not used: {reason}");
                            events.emit(Event::Warning { message });
                            None
                        }
                    },
                }
            }
            Ok(StoreUrl::Objects(url)) => Some(Arc::new(open_objects(&url, &settings.object_settings)?)),
            Err(error) => return Err(CliError::hinted(ExitStatus::Usage, error)),
        },
    };
    if let Some(note) = &machine.note {
        events.emit(Event::Warning { message: note.clone() });
    }
    let options = CacheOptions {
        write_scope: scopes.first().cloned().unwrap_or_default(),
        scopes,
        read_only,
        label: label(),
        ..CacheOptions::default()
    };
    let cache = Cache::new(local, remote, options, Arc::clone(&events));
    let warn = |message| events.emit(Event::Warning { message });
    let credentials = Arc::new(super::credentials::read(&settings.credentials, warn)?);
    let options = ClientOptions { hosts: settings.registries.clone(), ..ClientOptions::default() };
    let registry = registry::Client::new(options, credentials)
        .map_err(|error| CliError::hinted(ExitStatus::System, error))?;
    let mut engine = Engine::new(cache, machine.executor, registry, events, now, machine.ownership, cancel.0);
    engine.git = settings.git.clone();
    engine.unserved = exec::doctor::fuse_obstacle();
    Ok(engine)
}

/// What other builds are told that wait for one of this build's steps.
fn label() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host} (process {})", std::process::id())
}

pub(super) fn build_error(error: BuildError) -> CliError {
    let status = match &error {
        BuildError::Cancelled => ExitStatus::Interrupted,
        BuildError::Cache { .. } | BuildError::Execute { .. } | BuildError::Lost { .. } => ExitStatus::System,
        _ => ExitStatus::Failure,
    };
    CliError::hinted(status, error)
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
    pub damaged: Vec<String>,
    pub repaired: bool,
}

/// Runs file work of the local cache on a thread of its own.
async fn with_store<T: Send + 'static>(
    local: &Path,
    work: impl FnOnce(&DirectoryStore) -> Result<T, store::StoreError> + Send + 'static,
) -> Result<T, CliError> {
    let store = open_local(local)?;
    let task = tokio::task::spawn_blocking(move || work(&store)).await;
    task.map_err(CliError::system)?.map_err(CliError::system)
}

pub(super) async fn cache_records(local: &Path) -> Result<Vec<RecordInfo>, CliError> {
    let items = with_store(local, maintain::list).await?;
    let now = system_time();
    let info = |item: maintain::Item| RecordInfo {
        key: item.key.to_string(),
        scope: item.record.scope.to_string(),
        step: describe(&item.record.preimage),
        bytes: item.bytes,
        idle: now.duration_since(item.used).unwrap_or_default(),
    };
    Ok(items.into_iter().map(info).collect())
}

/// A record in a few words: what kind of step it is, and its command or destination.
pub(super) fn describe(preimage: &crate::record::Preimage) -> String {
    let text = |name: &str| match preimage.get(name) {
        Some(Value::Text(text)) => Some(text.clone()),
        Some(Value::Digest(digest)) => Some(digest.short()),
        Some(Value::List(items)) => {
            let words = items.iter().map(|item| match item {
                Value::Text(text) => text.clone(),
                Value::Digest(digest) => digest.short(),
                _ => String::new(),
            });
            Some(words.collect::<Vec<_>>().join(" "))
        }
        _ => None,
    };
    let kind = text("kind").unwrap_or_default();
    let detail: Vec<String> = ["command", "sources", "destination", "layer", "layers"]
        .iter()
        .filter_map(|name| text(name))
        .collect();
    format!("{kind} {}", detail.join(" "))
}

pub(super) async fn cache_usage(local: &Path) -> Result<Usage, CliError> {
    let usage = with_store(local, maintain::usage).await?;
    let kind = |name: &str, count, bytes| (name.to_owned(), count, bytes);
    Ok(Usage {
        kinds: vec![
            kind("records", usage.records, usage.record_bytes),
            kind("blobs", usage.blobs, usage.blob_bytes),
            kind("unpacked", usage.states, usage.state_bytes),
            kind("quarantined", 0, usage.quarantined_bytes),
        ],
    })
}

pub(super) async fn cache_prune(local: &Path, limits: PruneLimits) -> Result<Pruned, CliError> {
    let policy = PrunePolicy {
        max_bytes: limits.max_bytes,
        max_age: limits.max_age,
        all: limits.all,
        ..PrunePolicy::default()
    };
    let report = with_store(local, move |store| maintain::prune(store, policy)).await?;
    Ok(Pruned { records: report.records, blobs: report.blobs, bytes: report.bytes })
}

pub(super) async fn cache_verify(local: &Path, repair: bool) -> Result<Verified, CliError> {
    let report = with_store(local, move |store| maintain::verify(store, repair)).await?;
    let damaged = report.damaged.iter().map(|path| path.display().to_string()).collect();
    Ok(Verified { checked: report.checked, damaged, repaired: repair })
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

/// What this machine allows. `local` is where the local cache is or would be.
pub(super) fn doctor(local: &Path) -> Vec<Finding> {
    let findings = exec::doctor::examine(Path::new("/proc/self/exe"), existing(local));
    findings
        .into_iter()
        .map(|finding| Finding {
            level: match finding.status {
                exec::doctor::Status::Ok => Level::Good,
                exec::doctor::Status::Limited => Level::Lesser,
                exec::doctor::Status::Missing => Level::Bad,
            },
            name: finding.topic.to_owned(),
            detail: finding.meaning,
            advice: finding.advice,
        })
        .collect()
}

/// The nearest directory above `path` that exists, itself included.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"))
}
