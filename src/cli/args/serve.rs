//! The arguments of the server and of its tokens.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::super::{env_vars, examples, values};
use super::Format;
use crate::bytes::ByteSize;
use crate::server::{MirrorSource, RepositoryPattern, ScopePattern, Tenant};

/// `crossdock serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeCommand {
    /// The address to listen on; port 0 takes any that is free [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDR:PORT", env = env_vars::CROSSDOCK_LISTEN, hide_env_values = true)]
    pub listen: Option<SocketAddr>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub storage: StorageArgs,

    /// The certificate for TLS, a PEM file with its chain; read again on SIGHUP
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,

    /// The private key of the certificate, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,

    /// Serve the images of another registry below NAME/, fetched when somebody asks for them and kept (may be repeated)
    #[arg(long, value_name = "NAME[=REGISTRY]")]
    pub mirror: Vec<MirrorSource>,

    /// Send traces to the collector at this URL by OTLP over HTTP, such as http://localhost:4318
    #[arg(long, value_name = "URL", env = env_vars::OTEL_EXPORTER_OTLP_ENDPOINT, hide_env_values = true)]
    pub otlp_endpoint: Option<String>,

    /// Ask nobody who they are. Only on loopback
    #[arg(long)]
    pub insecure_no_auth: bool,

    /// How the log is written, to standard output [default: text]
    #[arg(long, value_enum, value_name = "FORMAT", env = env_vars::CROSSDOCK_LOG_FORMAT, hide_env_values = true)]
    pub log_format: Option<LogFormat>,

    /// What the log has, with all that is worse [default: info]
    #[arg(long, value_enum, value_name = "LEVEL", env = env_vars::CROSSDOCK_LOG_LEVEL, hide_env_values = true)]
    pub log_level: Option<LogLevel>,

    /// Only say whether the settings can be used
    #[arg(long)]
    pub check_config: bool,
}

/// Where a server keeps everything.
#[derive(Debug, Clone, Args)]
pub struct StorageArgs {
    /// Where everything is kept, as a URL or a directory [default: ~/.cache/crossdock-server]
    #[arg(long, value_name = "URL", env = env_vars::CROSSDOCK_STORAGE, hide_env_values = true)]
    pub storage: Option<String>,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A line for programs.
    Json,
}

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What must be looked at.
    Error,
    /// What may have to be looked at.
    Warn,
    /// Each request.
    Info,
    /// Each connection that ends early.
    Debug,
}

/// `crossdock token`.
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Make a token, and show it for the only time
    #[command(after_help = examples::TOKEN_CREATE)]
    Create(TokenCreateCommand),
    /// List the tokens, without their secrets
    #[command(after_help = examples::TOKEN_LS)]
    Ls(TokenLsCommand),
    /// Make an end of a token
    #[command(after_help = examples::TOKEN_REVOKE)]
    Revoke(TokenRevokeCommand),
}

/// `crossdock token create`.
#[derive(Debug, Clone, Args)]
pub struct TokenCreateCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub storage: StorageArgs,

    /// What it is called in lists and in the log
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Whose storage it opens
    #[arg(long, value_name = "TENANT", default_value = "default")]
    pub tenant: Tenant,

    /// The scopes whose records it may read: names, `NAME/*` for all below one, `*` for all
    #[arg(long, value_name = "SCOPE,…", value_delimiter = ',', default_value = "*")]
    pub read: Vec<ScopePattern>,

    /// The scopes whose records it may write; none without it
    #[arg(long, value_name = "SCOPE,…", value_delimiter = ',')]
    pub write: Vec<ScopePattern>,

    /// The repositories of the registry that it may pull from: names, `NAME/*` for all below one, `*` for all
    #[arg(long, value_name = "REPOSITORY,…", value_delimiter = ',', default_value = "*")]
    pub pull: Vec<RepositoryPattern>,

    /// The repositories that it may push to and delete from; none without it
    #[arg(long, value_name = "REPOSITORY,…", value_delimiter = ',')]
    pub push: Vec<RepositoryPattern>,

    /// When it ends by itself, such as 90d
    #[arg(long, value_name = "AGE", value_parser = values::duration)]
    pub expires: Option<Duration>,
}

/// `crossdock token ls`.
#[derive(Debug, Clone, Args)]
pub struct TokenLsCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub storage: StorageArgs,

    /// How the list is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `crossdock token revoke`.
#[derive(Debug, Clone, Args)]
pub struct TokenRevokeCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub storage: StorageArgs,

    /// Its ID, or the name of all that are to end
    #[arg(value_name = "ID|NAME")]
    pub which: String,
}

/// `crossdock policy`.
#[derive(Debug, Clone, Subcommand)]
pub enum PolicyCommand {
    /// Say what a job may do that proves these claims, and which rule says so
    #[command(after_help = examples::POLICY_EXPLAIN)]
    Explain(PolicyExplainCommand),
}

/// `crossdock policy explain`.
#[derive(Debug, Clone, Args)]
pub struct PolicyExplainCommand {
    /// A file with the claims as JSON, or with the token that has them; `-` is standard input
    #[arg(value_name = "FILE")]
    pub claims: PathBuf,

    /// How the answer is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `crossdock admin`.
#[derive(Debug, Clone, Subcommand)]
pub enum AdminCommand {
    /// Say how much each tenant has
    #[command(after_help = examples::ADMIN_STATS)]
    Stats(AdminStatsCommand),
    /// Remove what is not needed, as servers do from time to time
    #[command(after_help = examples::ADMIN_GC)]
    Gc(AdminGcCommand),
    /// Read everything and check it; what is damaged is put aside, and is a miss from then on
    #[command(after_help = examples::ADMIN_VERIFY)]
    Verify(AdminVerifyCommand),
}

/// `crossdock admin stats`.
#[derive(Debug, Clone, Args)]
pub struct AdminStatsCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub storage: StorageArgs,

    /// How the figures are printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `crossdock admin gc`. What is not given is as `[serve.gc]` of the configuration file says.
#[derive(Debug, Clone, Args)]
pub struct AdminGcCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub storage: StorageArgs,

    /// Remove the least recently used records until all tenants together have no more than this, such as 500GiB
    #[arg(long, value_name = "SIZE")]
    pub max_size: Option<ByteSize>,

    /// The same for each tenant
    #[arg(long, value_name = "SIZE")]
    pub tenant_max_size: Option<ByteSize>,

    /// Remove records that were not used for this long, such as 30d
    #[arg(long, value_name = "AGE", value_parser = values::duration)]
    pub max_age: Option<Duration>,

    /// What was written or used in this time stays [default: 2h]
    #[arg(long, value_name = "AGE", value_parser = values::duration)]
    pub grace: Option<Duration>,

    /// How long blobs are in the trash before they are removed for good [default: 30m]
    #[arg(long, value_name = "AGE", value_parser = values::duration)]
    pub trash: Option<Duration>,

    /// How the result is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `crossdock admin verify`.
#[derive(Debug, Clone, Args)]
pub struct AdminVerifyCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub storage: StorageArgs,
}
