//! Every environment variable that Crossdock reads, in one place.

/// One variable, for the documentation.
#[derive(Debug, Clone, Copy)]
pub struct EnvVar {
    /// Its name.
    pub name: &'static str,
    /// What it does, as one sentence.
    pub purpose: &'static str,
}

/// URL of the shared cache; like `--cache`.
pub const CROSSDOCK_CACHE: &str = "CROSSDOCK_CACHE";
/// The token for a shared cache that is a server.
pub const CROSSDOCK_TOKEN: &str = "CROSSDOCK_TOKEN";
/// What a CI provider gave the job to prove who it is.
pub const CROSSDOCK_ID_TOKEN: &str = "CROSSDOCK_ID_TOKEN";
/// Who such a proof is made out to.
pub const CROSSDOCK_AUDIENCE: &str = "CROSSDOCK_AUDIENCE";
/// Where GitHub's runner gives one.
pub const ACTIONS_ID_TOKEN_REQUEST_URL: &str = "ACTIONS_ID_TOKEN_REQUEST_URL";
/// What it is asked with.
pub const ACTIONS_ID_TOKEN_REQUEST_TOKEN: &str = "ACTIONS_ID_TOKEN_REQUEST_TOKEN";
/// Address that a server listens on; like `serve --listen`.
pub const CROSSDOCK_LISTEN: &str = "CROSSDOCK_LISTEN";
/// Where a server keeps everything; like `serve --storage`.
pub const CROSSDOCK_STORAGE: &str = "CROSSDOCK_STORAGE";
/// How a server's log is written; like `serve --log-format`.
pub const CROSSDOCK_LOG_FORMAT: &str = "CROSSDOCK_LOG_FORMAT";
/// What a server's log has; like `serve --log-level`.
pub const CROSSDOCK_LOG_LEVEL: &str = "CROSSDOCK_LOG_LEVEL";
/// Where a server sends traces; like `serve --otlp-endpoint`.
pub const OTEL_EXPORTER_OTLP_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// What a server sends with them.
pub const OTEL_EXPORTER_OTLP_HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
/// Directory of the local cache; like `--local-cache`.
pub const CROSSDOCK_LOCAL: &str = "CROSSDOCK_LOCAL";
/// Trust domain of the records; like `--cache-scope`.
pub const CROSSDOCK_CACHE_SCOPE: &str = "CROSSDOCK_CACHE_SCOPE";
/// Read the shared cache only; like `--cache-readonly`.
pub const CROSSDOCK_CACHE_READONLY: &str = "CROSSDOCK_CACHE_READONLY";
/// How progress is shown; like `--progress`.
pub const CROSSDOCK_PROGRESS: &str = "CROSSDOCK_PROGRESS";
/// How layers are compressed; like `--compression`.
pub const CROSSDOCK_COMPRESSION: &str = "CROSSDOCK_COMPRESSION";
/// OCI runtime that runs steps; like `--runtime`.
pub const CROSSDOCK_RUNTIME: &str = "CROSSDOCK_RUNTIME";
/// Clamps times in the image.
pub const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";
/// Base of the default local cache.
pub const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// Base of the default configuration file.
pub const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// The configuration file; like `--config`.
pub const CROSSDOCK_CONFIG: &str = "CROSSDOCK_CONFIG";
/// The Docker engine that `--load` loads into.
pub const DOCKER_HOST: &str = "DOCKER_HOST";
/// Where a user's own sockets are.
pub const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
/// Home directory.
pub const HOME: &str = "HOME";
/// Where the registries' credentials are.
pub const DOCKER_CONFIG: &str = "DOCKER_CONFIG";
/// Where podman's credentials for the registries are.
pub const REGISTRY_AUTH_FILE: &str = "REGISTRY_AUTH_FILE";
/// The socket of an SSH agent.
pub const SSH_AUTH_SOCK: &str = "SSH_AUTH_SOCK";
/// No colours.
pub const NO_COLOR: &str = "NO_COLOR";
/// Colours even where the output is no terminal.
pub const CLICOLOR_FORCE: &str = "CLICOLOR_FORCE";
/// The kind of terminal.
pub const TERM: &str = "TERM";
/// Where executables are looked for.
pub const PATH: &str = "PATH";
/// Where temporary directories are made.
pub const TMPDIR: &str = "TMPDIR";

/// What `git` is told besides where executables are: proxies and certificates.
pub const FOR_GIT: &[&str] = &[
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// All of them, as `docs/cli.md` lists them.
pub const ALL: &[EnvVar] = &[
    EnvVar { name: CROSSDOCK_CACHE, purpose: "URL of the shared cache, unless `--cache` is given" },
    EnvVar { name: CROSSDOCK_TOKEN, purpose: "The token for a shared cache that is a server" },
    EnvVar {
        name: CROSSDOCK_ID_TOKEN,
        purpose: "Without CROSSDOCK_TOKEN: what a CI provider gave the job to prove who it is",
    },
    EnvVar {
        name: ACTIONS_ID_TOKEN_REQUEST_URL,
        purpose: "Set by GitHub for jobs that may ask for such a proof; then it is asked for",
    },
    EnvVar { name: ACTIONS_ID_TOKEN_REQUEST_TOKEN, purpose: "Goes with it" },
    EnvVar {
        name: CROSSDOCK_AUDIENCE,
        purpose: "Who the proof is made out to, if not to the origin of the shared cache's URL",
    },
    EnvVar {
        name: CROSSDOCK_LOCAL,
        purpose: "Directory of the local cache, unless `--local-cache` is given",
    },
    EnvVar {
        name: CROSSDOCK_CACHE_SCOPE,
        purpose: "Scopes of the records, separated by commas, unless `--cache-scope` is given",
    },
    EnvVar { name: CROSSDOCK_CACHE_READONLY, purpose: "`1` never writes to the shared cache" },
    EnvVar {
        name: CROSSDOCK_LISTEN,
        purpose: "Address that a server listens on, unless `--listen` is given",
    },
    EnvVar {
        name: CROSSDOCK_STORAGE,
        purpose: "Where a server keeps everything, unless `--storage` is given",
    },
    EnvVar {
        name: CROSSDOCK_LOG_FORMAT,
        purpose: "How a server's log is written, unless `--log-format` is given",
    },
    EnvVar { name: CROSSDOCK_LOG_LEVEL, purpose: "What a server's log has, unless `--log-level` is given" },
    EnvVar {
        name: OTEL_EXPORTER_OTLP_ENDPOINT,
        purpose: "Where a server sends traces, unless `--otlp-endpoint` is given",
    },
    EnvVar {
        name: OTEL_EXPORTER_OTLP_HEADERS,
        purpose: "What it sends with them, as `name=value,…`: what the collector asks for",
    },
    EnvVar { name: CROSSDOCK_PROGRESS, purpose: "How progress is shown, unless `--progress` is given" },
    EnvVar {
        name: CROSSDOCK_COMPRESSION,
        purpose: "How layers are compressed, unless `--compression` is given",
    },
    EnvVar { name: CROSSDOCK_RUNTIME, purpose: "OCI runtime that runs steps, unless `--runtime` is given" },
    EnvVar {
        name: SOURCE_DATE_EPOCH,
        purpose: "Seconds since 1970 that times in the image are clamped to, or whose time is (`context`, a named context, a stage), unless the build argument is given",
    },
    EnvVar { name: XDG_CACHE_HOME, purpose: "The local cache is `$XDG_CACHE_HOME/crossdock` by default" },
    EnvVar { name: CROSSDOCK_CONFIG, purpose: "The configuration file, unless `--config` is given" },
    EnvVar {
        name: XDG_CONFIG_HOME,
        purpose: "The configuration file is `$XDG_CONFIG_HOME/crossdock/config.toml` by default; podman's settings are beside it",
    },
    EnvVar {
        name: HOME,
        purpose: "The local cache is `~/.cache/crossdock` where `XDG_CACHE_HOME` is not set",
    },
    EnvVar {
        name: DOCKER_CONFIG,
        purpose: "Directory of the `config.json` with credentials for registries and proxies for steps, instead of `~/.docker`",
    },
    EnvVar {
        name: REGISTRY_AUTH_FILE,
        purpose: "File with podman's credentials for registries, instead of `$XDG_RUNTIME_DIR/containers/auth.json` and `~/.config/containers/auth.json`",
    },
    EnvVar {
        name: DOCKER_HOST,
        purpose: "Docker engine that `--load` loads into, as `unix://…` or `tcp://…`",
    },
    EnvVar {
        name: XDG_RUNTIME_DIR,
        purpose: "Where a rootless Docker engine's `docker.sock` is looked for by `--load`, and podman's `containers/auth.json`",
    },
    EnvVar { name: SSH_AUTH_SOCK, purpose: "Socket of the SSH agent that `--ssh default` lets steps use" },
    EnvVar { name: NO_COLOR, purpose: "If not empty, no colours are used" },
    EnvVar {
        name: CLICOLOR_FORCE,
        purpose: "If neither empty nor `0`, colours are used even where the output is no terminal",
    },
    EnvVar { name: TERM, purpose: "`dumb` means neither colours nor live progress" },
    EnvVar { name: PATH, purpose: "Where `demo` finds the tools for its base image" },
    EnvVar { name: TMPDIR, purpose: "Where `demo` works, instead of `/tmp`" },
];
