//! `crossdock serve` and `crossdock token`.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::ValueEnum as _;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::filter::LevelFilter;

use super::admin::GcConfig;
use super::args::{Format, LogFormat, LogLevel, ServeCommand, StorageArgs, TokenCommand, TokenCreateCommand};
use super::backend::{ObjectSettings, open_objects};
use super::env_vars;
use super::environment::Environment;
use super::error::{CliError, ExitStatus};
use super::policy::{AnonymousConfig, OidcConfig};
use crate::bytes::ByteSize;
use crate::registry;
use crate::server::{
    self, Anonymous, GcPolicy, Grant, Issuer, Limits, MirrorSource, Otlp, Policy, Rule, Server, Settings,
    Shutdown, Storage, StorageKind, Tls, Token, TokenError, Tokens,
};
use crate::store::url::{StoreUrl, StoreUrlError, parse};

/// `[serve]` of the configuration file.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct ServeConfig {
    listen: Option<SocketAddr>,
    storage: Option<String>,
    tls_certificate: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    insecure_no_auth: bool,
    log_format: Option<String>,
    log_level: Option<String>,
    connections_max: Option<usize>,
    uploads_max: Option<usize>,
    blob_size_max: Option<String>,
    idle_timeout: Option<String>,
    drain_timeout: Option<String>,
    public_url: Option<String>,
    oidc: Vec<OidcConfig>,
    policy: Vec<Rule>,
    anonymous: Option<AnonymousConfig>,
    gc: GcConfig,
    mirrors: Vec<MirrorSource>,
    otlp_endpoint: Option<String>,
}

impl ServeConfig {
    /// The CI providers that are believed, and what their jobs may do.
    pub(super) fn identities(&self) -> Result<(Vec<Issuer>, Policy), CliError> {
        super::policy::resolve(&self.oidc, &self.policy)
    }

    /// What is removed; flags may name more mirrors.
    pub(super) fn gc(&self, mirrors: &[MirrorSource]) -> Result<GcPolicy, CliError> {
        let names = self.mirrors.iter().chain(mirrors).map(|mirror| mirror.name.clone()).collect();
        Ok(GcPolicy { mirrors: names, ..self.gc.resolve()? })
    }

    /// With paths that are relative to the file's directory.
    pub(super) fn relative_to(self, directory: &Path) -> Self {
        let absolute = |path: PathBuf| directory.join(path);
        Self {
            tls_certificate: self.tls_certificate.map(absolute),
            tls_key: self.tls_key.map(absolute),
            ..self
        }
    }
}

/// A free port that is easy to remember. 127.0.0.1: a server that nobody has asked for must not be seen by others.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7070);

/// Everything that a server is started with.
struct Resolved {
    settings: Settings,
    storage: StorageKind,
    log_format: LogFormat,
    log_level: LogLevel,
}

pub(super) fn time() -> SystemTime {
    SystemTime::now()
}

/// Runs the server until it is asked to end.
pub(super) fn command(args: &ServeCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    let resolved = resolve(args, environment)?;
    if args.check_config {
        let place = environment.config.path.as_ref().map(|path| format!("{}: ", path.display()));
        super::print(&format!("{}the settings can be used\n", place.unwrap_or_default()))?;
        return Ok(ExitStatus::Success);
    }
    log(resolved.log_format, resolved.log_level);
    let storage = open(resolved.storage, environment)?;
    let runtime = super::runtime()?;
    runtime.block_on(run(resolved.settings, storage))
}

async fn run(settings: Settings, storage: Storage) -> Result<ExitStatus, CliError> {
    let failed = |error: server::ServeError| CliError::hinted(ExitStatus::System, error);
    let (control, state) = watch::channel(Shutdown::Run);
    let listen = |kind: SignalKind| signal(kind).map_err(CliError::system);
    let (mut interrupts, mut terminations, mut hangups) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    tokio::spawn(async move {
        let mut reloads = 0;
        loop {
            tokio::select! {
                _ = interrupts.recv() => break,
                _ = terminations.recv() => break,
                _ = hangups.recv() => {
                    reloads += 1;
                    let _ = control.send(Shutdown::Reload(reloads));
                }
            }
        }
        let _ = control.send(Shutdown::Drain);
        // Whoever asks twice does not want to wait.
        tokio::select! { _ = interrupts.recv() => {}, _ = terminations.recv() => {} }
        leave();
    });
    let first = first_token(&settings, &storage).await?;
    let (location, scheme) = (storage.location(), if settings.tls.is_some() { "https" } else { "http" });
    let server = Server::new(settings, storage);
    server::serve(server, state, |address| {
        tracing::info!(%address, storage = location, "listening");
        if let Some(token) = first {
            // Not into the log, which is kept and read by others.
            let _ = writeln!(
                std::io::stderr(),
                "This is the first start over {location}. A token that may do everything was made, and is shown only \
                 now:\n\n  export CROSSDOCK_CACHE={scheme}://{address} CROSSDOCK_TOKEN={token}\n\n`crossdock token` \
                 makes others, and makes an end of this one.",
            );
        }
    })
    .await
    .map_err(failed)?;
    Ok(ExitStatus::Success)
}

#[expect(clippy::exit, reason = "the user asked twice: nothing may delay it")]
fn leave() {
    std::process::exit(ExitStatus::Terminated.code().into());
}

/// A server that nobody could use would be of no use: the first start makes a token.
async fn first_token(settings: &Settings, storage: &Storage) -> Result<Option<String>, CliError> {
    let tokens = Tokens::new(storage.system(), time);
    if settings.no_auth || !tokens.is_empty().await.map_err(token_error)? {
        return Ok(None);
    }
    let everything = Grant { name: "first".to_owned(), ..Grant::everything() };
    let (text, _) = tokens.create(everything, None).await.map_err(token_error)?;
    Ok(Some(text))
}

fn log(format: LogFormat, level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_target(false).with_ansi(false);
    // It fails where there is a log already.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Flags before environment before the configuration file before defaults.
fn resolve(args: &ServeCommand, environment: &Environment) -> Result<Resolved, CliError> {
    let config = &environment.config.serve;
    let flag = |path: &PathBuf| environment.absolute(path);
    let certificate = args.tls_certificate.as_ref().map(flag).or_else(|| config.tls_certificate.clone());
    let key = args.tls_key.as_ref().map(flag).or_else(|| config.tls_key.clone());
    let tls = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Tls { certificate, key }),
        (None, None) => None,
        _ => return Err(wrong("tls-certificate", "a certificate and its key go together")),
    };
    let log_format = match &config.log_format {
        _ if args.log_format.is_some() => args.log_format,
        None => None,
        Some(text) => Some(LogFormat::from_str(text, false).map_err(|error| wrong("log-format", &error))?),
    };
    let log_level = match &config.log_level {
        _ if args.log_level.is_some() => args.log_level,
        None => None,
        Some(text) => Some(LogLevel::from_str(text, false).map_err(|error| wrong("log-level", &error))?),
    };
    let defaults = Limits::default();
    let duration = |key: &str, text: &Option<String>, default| match text {
        None => Ok(default),
        Some(text) => super::values::duration(text).map_err(|error| wrong(key, &error)),
    };
    let limits = Limits {
        connections_max: config.connections_max.unwrap_or(defaults.connections_max).max(1),
        uploads_max: config.uploads_max.unwrap_or(defaults.uploads_max),
        blob_bytes_max: match &config.blob_size_max {
            None => defaults.blob_bytes_max,
            Some(text) => {
                text.parse::<ByteSize>().map_err(|error| wrong("blob-size-max", &error.to_string()))?.0
            }
        },
        idle: duration("idle-timeout", &config.idle_timeout, defaults.idle)?,
        drain: duration("drain-timeout", &config.drain_timeout, defaults.drain)?,
    };
    let (issuers, policy) = config.identities()?;
    let mirrors: Vec<MirrorSource> = args.mirror.iter().chain(&config.mirrors).cloned().collect();
    let mut names: Vec<_> = mirrors.iter().map(|mirror| &mirror.name).collect();
    names.sort_unstable();
    if let Some([name, _]) = names.array_windows().find(|[a, b]| a == b) {
        return Err(wrong("mirrors", &format!("`{name}` is there twice")));
    }
    let settings = Settings {
        registry: if mirrors.is_empty() { None } else { Some(registry_client(environment)?) },
        mirrors,
        otlp: otlp(args.otlp_endpoint.as_ref().or(config.otlp_endpoint.as_ref()), environment)?,
        gc: config.gc(&args.mirror)?,
        issuers,
        policy,
        anonymous: config
            .anonymous
            .clone()
            .map(|anonymous| Anonymous { tenant: anonymous.tenant, read: anonymous.read }),
        public_url: config.public_url.clone(),
        listen: args.listen.or(config.listen).unwrap_or(LISTEN),
        tls,
        no_auth: args.insecure_no_auth || config.insecure_no_auth,
        limits,
        ..Settings::new(time)
    };
    if settings.no_auth && !settings.listen.ip().is_loopback() {
        return Err(CliError::hinted(
            ExitStatus::Usage,
            server::ServeError::Open { address: settings.listen },
        ));
    }
    Ok(Resolved {
        settings,
        storage: storage(&args.storage, environment)?,
        log_format: log_format.unwrap_or(LogFormat::Text),
        log_level: log_level.unwrap_or(LogLevel::Info),
    })
}

/// Where traces are sent, and what with them.
fn otlp(endpoint: Option<&String>, environment: &Environment) -> Result<Option<Otlp>, CliError> {
    let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.is_empty()) else { return Ok(None) };
    let url = url::Url::parse(endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let endpoint = url.ok_or_else(|| {
        wrong(
            "otlp-endpoint",
            &format!("`{endpoint}` is no URL of a collector, such as http://localhost:4318"),
        )
    })?;
    let headers = environment.variable(env_vars::OTEL_EXPORTER_OTLP_HEADERS);
    let headers = headers.and_then(std::ffi::OsStr::to_str).unwrap_or_default();
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().ok()?;
        Some((name.trim().to_owned(), value.into_owned()))
    };
    Ok(Some(Otlp { endpoint, headers: headers.split(',').filter_map(pair).collect() }))
}

/// Talks to the registries that are mirrored, as this machine would.
fn registry_client(environment: &Environment) -> Result<registry::Client, CliError> {
    let hosts = super::backend::registries(environment);
    // Who waits has other things to do, or asks again.
    let retry = registry::RetryPolicy { attempts_max: 3, ..registry::RetryPolicy::default() };
    let options = registry::ClientOptions { hosts, retry, ..registry::ClientOptions::default() };
    let warn = |message: String| tracing::warn!("{message}");
    let credentials = super::credentials::read(&environment.credential_files(), warn)?;
    registry::Client::new(options, std::sync::Arc::new(credentials))
        .map_err(|error| CliError::hinted(ExitStatus::System, error))
}

pub(super) fn wrong(key: &str, reason: &str) -> CliError {
    CliError::usage(format!("`serve.{key}`: {reason}"))
}

/// Where everything is kept.
pub(super) fn storage(args: &StorageArgs, environment: &Environment) -> Result<StorageKind, CliError> {
    let given = args.storage.as_ref().or(environment.config.serve.storage.as_ref());
    let Some(given) = given.filter(|url| !url.is_empty()) else {
        return own_directory(environment).map(StorageKind::Directory);
    };
    match parse(given) {
        Ok(StoreUrl::Directory(path)) => Ok(StorageKind::Directory(environment.absolute(&path))),
        Ok(StoreUrl::Objects(url)) => {
            open_objects(&url, &ObjectSettings::of(environment)).map(StorageKind::Objects)
        }
        Ok(StoreUrl::Server(_)) => {
            Err(CliError::usage("`--storage` names a server, which cannot be another one's storage")
                .hint("name a directory: `--storage /var/lib/crossdock`"))
        }
        Err(StoreUrlError::NotYet { scheme }) => Err(CliError::usage(format!(
            "storage of the kind `{scheme}://` is not supported yet by this version"
        ))),
        Err(error) => Err(CliError::hinted(ExitStatus::Usage, error)),
    }
}

/// Where a server has its own files: all of them by default, else only those that are not finished.
fn own_directory(environment: &Environment) -> Result<PathBuf, CliError> {
    let cache = environment.default_cache();
    cache.map(|cache| cache.with_file_name("crossdock-server")).ok_or_else(|| {
        CliError::usage("there is no home directory for the server's files")
            .hint("give `--storage DIR`, or set HOME or XDG_CACHE_HOME")
    })
}

pub(super) fn open(kind: StorageKind, environment: &Environment) -> Result<Storage, CliError> {
    // A directory has a place of its own for what is not finished.
    let spool = match &kind {
        StorageKind::Directory(root) => root.clone(),
        StorageKind::Objects(_) | StorageKind::Memory => own_directory(environment)?.join("spool"),
    };
    Storage::open(kind, spool, time).map_err(|error| CliError::hinted(ExitStatus::System, error))
}

fn token_error(error: TokenError) -> CliError {
    let status = match &error {
        TokenError::Unknown(_) => ExitStatus::Failure,
        TokenError::Store(_) | TokenError::Random(_) => ExitStatus::System,
    };
    match error {
        TokenError::Store(error) => CliError::hinted(status, error),
        error => CliError { status, ..CliError::system(error) },
    }
}

/// `crossdock token`.
pub(super) fn token(command: &TokenCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    let runtime = super::runtime()?;
    let args = match command {
        TokenCommand::Create(args) => &args.storage,
        TokenCommand::Ls(args) => &args.storage,
        TokenCommand::Revoke(args) => &args.storage,
    };
    let tokens = Tokens::new(open(storage(args, environment)?, environment)?.system(), time);
    match command {
        TokenCommand::Create(args) => {
            let (text, token) =
                runtime.block_on(tokens.create(grant(args), args.expires)).map_err(token_error)?;
            super::print(&format!("{text}\n"))?;
            let _ = writeln!(std::io::stderr(), "{}; this is the only time that it is shown", told(&token));
        }
        TokenCommand::Ls(args) => {
            let found = runtime.block_on(tokens.list()).map_err(token_error)?;
            match args.format {
                Format::Json => {
                    super::print(&format!("{}\n", json!(found.iter().map(shown).collect::<Vec<_>>())))?;
                }
                Format::Text => {
                    for token in &found {
                        super::print(&format!("{}  {}\n", token.id, told(token)))?;
                    }
                }
            }
        }
        TokenCommand::Revoke(args) => {
            for id in runtime.block_on(tokens.revoke(&args.which)).map_err(token_error)? {
                super::print(&format!("{id}\n"))?;
            }
        }
    }
    Ok(ExitStatus::Success)
}

fn grant(args: &TokenCreateCommand) -> Grant {
    Grant {
        name: args.name.clone(),
        tenant: args.tenant.clone(),
        read: args.read.clone(),
        write: args.write.clone(),
        pull: args.pull.clone(),
        push: args.push.clone(),
    }
}

fn list(patterns: &[impl ToString]) -> String {
    match patterns {
        [] => "nothing".to_owned(),
        patterns => patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

fn told(token: &Token) -> String {
    let end = match token.expires {
        None => String::new(),
        Some(_) if token.is_over(time()) => ", ended".to_owned(),
        Some(end) => {
            let left = (SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(end)).duration_since(time());
            format!(", ends in {}", super::report::duration(left.unwrap_or_default()))
        }
    };
    let grant = &token.grant;
    let name = super::report::sanitize(grant.name.as_bytes(), false);
    format!(
        "{name}: tenant {}, reads {}, writes {}, pulls {}, pushes {}{end}",
        grant.tenant,
        list(&grant.read),
        list(&grant.write),
        list(&grant.pull),
        list(&grant.push)
    )
}

fn shown(token: &Token) -> serde_json::Value {
    let grant = &token.grant;
    json!({
        "id": token.id,
        "name": grant.name,
        "tenant": grant.tenant.as_str(),
        "read": grant.read.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "write": grant.write.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "pull": grant.pull.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "push": grant.push.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "created": token.created,
        "expires": token.expires,
    })
}

#[cfg(test)]
pub(super) fn check(environment: &Environment) -> Result<(), CliError> {
    use clap::Parser as _;
    let arguments = ["crossdock", "serve"];
    let super::args::Command::Serve(args) =
        super::args::Cli::try_parse_from(arguments).map_err(CliError::system)?.command
    else {
        return Err(CliError::message("it is another command"));
    };
    resolve(&args, environment).map(|_| ())
}
