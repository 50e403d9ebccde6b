//! The command line. The doc comments are the help texts.

use std::path::PathBuf;

use clap::builder::{BoolishValueParser, FalseyValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

mod serve;

pub use serve::{
    AdminCommand, AdminGcCommand, AdminStatsCommand, AdminVerifyCommand, LogFormat, LogLevel, PolicyCommand,
    PolicyExplainCommand, ServeCommand, StorageArgs, TokenCommand, TokenCreateCommand, TokenLsCommand,
    TokenRevokeCommand,
};

use super::call::{self, CallSpec};
use super::docker::DockerFlags;
use super::output::{OutputSpec, parse_compression};
use super::ssh::SshSpec;
use super::values::{self, BuildArg, BuildContextSpec, SecretSpec};
use super::{env_vars, examples};
use crate::build::LayerCompression;
use crate::bytes::ByteSize;
use crate::exec::Network;
use crate::exec::Ulimit;
use crate::platform::Platform;
use crate::record::Scope;
use crate::reference::Reference;

/// Builds OCI images from ordinary Dockerfiles, with every step cached and shared.
#[derive(Debug, Parser)]
#[command(name = "crossdock", version, max_term_width = 110, after_help = examples::TOP)]
#[command(arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
// Of a flag that is given twice the last one counts, as in `docker build`: scripts put theirs behind others'.
#[command(args_override_self = true)]
pub struct Cli {
    /// The configuration file [default: ~/.config/crossdock/config.toml, else /etc/crossdock/config.toml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = env_vars::CROSSDOCK_CONFIG,
        hide_env_values = true,
        help_heading = "Global"
    )]
    pub config: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image from a Dockerfile
    #[command(after_help = examples::BUILD)]
    Build(Box<BuildCommand>),
    /// Print what each step of a build is keyed on
    #[command(after_help = examples::FINGERPRINT)]
    Fingerprint(Box<FingerprintCommand>),
    /// Say for each step of a build whether it would run, and why, without running anything
    #[command(after_help = examples::EXPLAIN)]
    Explain(Box<ExplainCommand>),
    /// Look at what the cache has
    #[command(after_help = examples::INSPECT, subcommand_required = true, arg_required_else_help = true)]
    #[command(disable_help_subcommand = true)]
    Inspect {
        /// What to look at.
        #[command(subcommand)]
        command: InspectCommand,
    },
    /// Look after the local cache
    #[command(after_help = examples::CACHE, subcommand_required = true, arg_required_else_help = true)]
    #[command(disable_help_subcommand = true)]
    Cache {
        /// What to do with the cache.
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Serve a cache that runners share
    #[command(after_help = examples::SERVE)]
    Serve(Box<ServeCommand>),
    /// Look after the tokens that open a server
    #[command(after_help = examples::TOKEN, subcommand_required = true, arg_required_else_help = true)]
    #[command(disable_help_subcommand = true)]
    Token {
        /// What to do with the tokens.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Look after a server's storage
    #[command(after_help = examples::ADMIN, subcommand_required = true, arg_required_else_help = true)]
    #[command(disable_help_subcommand = true)]
    Admin {
        /// What to do with the storage.
        #[command(subcommand)]
        command: AdminCommand,
    },
    /// Look at what a server lets the jobs of CI providers do
    #[command(after_help = examples::POLICY, subcommand_required = true, arg_required_else_help = true)]
    #[command(disable_help_subcommand = true)]
    Policy {
        /// What to do with the policy.
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Say what this machine allows, and what to do about the rest
    #[command(after_help = examples::DOCTOR)]
    Doctor(DoctorCommand),
    /// Build a small sample project on two simulated runners that share a cache
    #[command(after_help = examples::DEMO)]
    Demo(DemoCommand),
    /// Print a completion script for a shell
    #[command(after_help = examples::COMPLETION)]
    Completion {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    #[command(after_help = examples::MAN)]
    Man {
        /// The directory; made if it is missing.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Print the version
    #[command(after_help = examples::VERSION)]
    Version,
    /// Print docs/cli.md
    #[command(name = "__docs", hide = true)]
    Docs,
}

/// Where what is in cache mounts is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum CacheMounts {
    /// In the shared cache, for all machines
    #[default]
    Remote,
    /// On this machine
    Local,
    /// Nowhere: each step finds them empty
    Off,
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Where the caches are.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheArgs {
    /// The shared cache, as a URL: `https://server`, `s3://bucket/prefix`, `file:///directory`
    #[arg(long, value_name = "URL", env = env_vars::CROSSDOCK_CACHE, hide_env_values = true)]
    pub cache: Option<String>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub local: LocalCacheArgs,

    /// Read the shared cache but never write to it
    #[arg(
        long,
        env = env_vars::CROSSDOCK_CACHE_READONLY,
        hide_env_values = true,
        value_parser = FalseyValueParser::new(),
        action = clap::ArgAction::SetTrue
    )]
    pub cache_readonly: bool,

    /// The trust domain of this build's records. More scopes are only read, in their order
    #[arg(
        long,
        value_name = "SCOPE,…",
        env = env_vars::CROSSDOCK_CACHE_SCOPE,
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub cache_scope: Vec<Scope>,
}

/// Where the local cache is.
#[derive(Debug, Clone, Args)]
pub struct LocalCacheArgs {
    /// Directory of the local cache [default: ~/.cache/crossdock]
    #[arg(long, value_name = "DIR", env = env_vars::CROSSDOCK_LOCAL, hide_env_values = true)]
    pub local_cache: Option<PathBuf>,
}

/// What is built: the flags that `build` and `fingerprint` share.
#[derive(Debug, Clone, Args)]
pub struct BuildArgs {
    /// The build context: a directory, a git repository, the URL of a tar or a Dockerfile, or `-` for one of these two on
    /// standard input
    #[arg(value_name = "PATH")]
    pub context: String,

    /// The Dockerfile: a file, a URL, `-` for standard input; inside of a context that is fetched if it is relative
    /// [default: PATH/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<String>,

    /// Set a build argument; without a value it is taken from the environment
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub build_arg: Vec<BuildArg>,

    /// Set a build argument that RUN steps are not keyed on: they do not run again for another value, unless what they
    /// made the last time, their output or the paths they looked at show it
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub unkeyed_arg: Vec<BuildArg>,

    /// Name another context: a directory, docker-image://REFERENCE, oci-layout://DIR[:TAG],
    /// docker-archive://FILE, oci-archive://FILE, target:STAGE, a git repository, a URL
    #[arg(long, value_name = "NAME=SOURCE")]
    pub build_context: Vec<BuildContextSpec>,

    /// The stage to build [default: the last one]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,

    /// The platforms of the image, such as linux/amd64,linux/arm64 [default: the host's]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    pub platform: Vec<Platform>,

    /// Set a label
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    pub label: Vec<(String, String)>,

    /// Run every step, whatever the cache has
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide_default_value = true,
        hide_possible_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub no_cache: bool,

    /// Run a step again if anything has changed that it could have read, instead of what it did read
    ///
    /// Commands then start from unpacked layers. A comment `# crossdock:no-trace` directly above a RUN does so for this
    /// one.
    #[arg(long)]
    pub no_trace: bool,

    /// Run this many of a hundred RUN steps again although their results are cached, and compare
    ///
    /// Chosen at random. A step that makes something else each time is named, with the paths that differ; its cached result
    /// is used all the same. `--verify-hits=100%` runs all of them.
    #[arg(
        long,
        value_name = "PERCENT",
        default_value = "0",
        hide_default_value = true,
        value_parser = values::percent
    )]
    pub verify_hits: u8,

    /// Run every step of these stages
    #[arg(long, value_name = "STAGE,…", value_delimiter = ',')]
    pub no_cache_filter: Vec<String>,

    /// Where what is in cache mounts (`RUN --mount=type=cache`) is kept: in the shared cache, on this machine, or nowhere
    #[arg(long, value_name = "WHERE", value_enum, default_value_t, help_heading = "Steps")]
    pub cache_mounts: CacheMounts,

    /// How much the files in one cache mount may have in all; those that were not used for the longest time go first
    #[arg(long, value_name = "SIZE", default_value = "20g", help_heading = "Steps")]
    pub cache_mount_size: ByteSize,

    /// Show steps that use cache mounts their files with the times that these have, as other builders do
    ///
    /// Otherwise a file that is as it was when the mount was used last has the time that it had then, and any other one is as
    /// of now: what compilers and make keep in a cache mount is then right, and of use, on every machine.
    #[arg(long, help_heading = "Steps")]
    pub no_content_times: bool,

    /// Ask the registries for the base images, even where the cache knows an answer
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide_default_value = true,
        hide_possible_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub pull: bool,

    /// The network of RUN steps that do not say
    #[arg(long, value_name = "MODE", default_value = "default", value_parser = network, help_heading = "Steps")]
    pub network: Network,

    /// Add a line to the steps' /etc/hosts; the address `host-gateway` is this machine
    #[arg(long, value_name = "HOST:ADDRESS", value_parser = values::extra_host, help_heading = "Steps")]
    pub add_host: Vec<(String, String)>,

    /// Size of the steps' /dev/shm
    #[arg(long, value_name = "SIZE", default_value = "64m", help_heading = "Steps")]
    pub shm_size: ByteSize,

    /// Run steps with this OCI runtime (`runc`, `crun`, or a path) instead of Crossdock's own
    #[arg(
        long,
        value_name = "RUNTIME",
        env = env_vars::CROSSDOCK_RUNTIME,
        hide_env_values = true,
        help_heading = "Steps"
    )]
    pub runtime: Option<PathBuf>,

    /// Limit the steps' processes; -1 is unlimited
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = values::ulimit, help_heading = "Steps")]
    pub ulimit: Vec<Ulimit>,

    /// Let steps mount a secret: id=NAME,src=FILE, id=NAME,env=VARIABLE, or id=NAME,src=- for standard input
    #[arg(long, value_name = "SECRET", help_heading = "Steps")]
    pub secret: Vec<SecretSpec>,

    /// Let steps use an SSH agent, that of SSH_AUTH_SOCK or of a socket, or private keys. The usual ID is `default`
    #[arg(long, value_name = "ID[=SOCKET|KEY,…]", help_heading = "Steps")]
    pub ssh: Vec<SshSpec>,

    /// Grant what steps ask for: network.host, security.insecure
    #[arg(
        long,
        value_name = "ENTITLEMENT,…",
        value_delimiter = ',',
        value_parser = values::entitlement,
        help_heading = "Steps"
    )]
    pub allow: Vec<String>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub cache: CacheArgs,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub docker: DockerFlags,
}

/// `crossdock build`.
#[derive(Debug, Clone, Args)]
pub struct BuildCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub build: BuildArgs,

    /// Name the image, [registry/]repository[:tag]
    #[arg(short, long, value_name = "NAME", help_heading = "Result")]
    pub tag: Vec<Reference>,

    /// Push the image to the registries of its names
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide_default_value = true,
        hide_possible_values = true,
        value_parser = BoolishValueParser::new(),
        help_heading = "Result"
    )]
    pub push: bool,

    /// Where the result goes: a directory for its files, `-` for a tar of them, or
    /// type=image|oci|docker|tar|local,dest=…[,push=true][,name=…][,tar=false][,compression=…]
    /// [,compression-level=…][,force-compression=true][,oci-mediatypes=false][,annotation.…=…][,platform-split=false]
    #[arg(short, long, value_name = "OUTPUT", help_heading = "Result")]
    pub output: Vec<OutputSpec>,

    /// How the layers are compressed: zstd, gzip or uncompressed [default: zstd]
    #[arg(
        long,
        value_name = "KIND",
        value_parser = parse_compression,
        env = env_vars::CROSSDOCK_COMPRESSION,
        hide_env_values = true,
        help_heading = "Result"
    )]
    pub compression: Option<LayerCompression>,

    /// Annotate the image: its manifest, or what stands before a colon, as in index:KEY=VALUE or
    /// manifest[linux/arm64],manifest-descriptor:KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Result")]
    pub annotation: Vec<values::Annotations>,

    /// Write the image ID (the digest of its configuration) to a file
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    pub iidfile: Option<PathBuf>,

    /// Write what was built to a file, as JSON
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    pub metadata_file: Option<PathBuf>,

    /// Only say which steps would run; exit code 3 if any
    #[arg(long)]
    pub dry_run: bool,

    /// How progress is shown
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        default_value = "auto",
        env = env_vars::CROSSDOCK_PROGRESS,
        hide_env_values = true
    )]
    pub progress: Progress,

    /// Print nothing but the digest of the image
    #[arg(short, long)]
    pub quiet: bool,

    /// Load the image into the Docker engine or podman of this machine
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide_default_value = true,
        hide_possible_values = true,
        value_parser = BoolishValueParser::new(),
        help_heading = "Result"
    )]
    pub load: bool,
    /// Answer a question about the Dockerfile instead of building it: `check`, `outline` (what can be given to the
    /// target) or `targets`; `,format=json` behind it for programs
    #[arg(long, value_name = "METHOD", value_parser = call::spec, help_heading = "Checks")]
    pub call: Option<CallSpec>,

    /// Check the Dockerfile instead of building it; fails if there are warnings
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide_default_value = true,
        hide_possible_values = true,
        value_parser = BoolishValueParser::new(),
        help_heading = "Checks"
    )]
    pub check: bool,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// `tty` on a terminal, `plain` elsewhere
    Auto,
    /// One line for each thing that happens
    Plain,
    /// Live lines for the running steps
    Tty,
    /// Nothing
    Quiet,
    /// One JSON object a line
    #[value(alias = "rawjson")]
    Json,
}

/// `crossdock fingerprint`.
#[derive(Debug, Clone, Args)]
pub struct FingerprintCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub build: BuildArgs,

    /// How the answer is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `crossdock explain`.
#[derive(Debug, Clone, Args)]
pub struct ExplainCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub build: BuildArgs,

    /// A name that the image is built with: builds of one Dockerfile under different names are remembered apart
    #[arg(short, long, value_name = "NAME")]
    pub tag: Vec<Reference>,

    /// Say what would shorten the next builds, with what it cost in the recorded ones
    #[arg(long)]
    pub advice: bool,

    /// How the answer is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `crossdock inspect …`.
#[derive(Debug, Subcommand)]
pub enum InspectCommand {
    /// Show a step's record: what it is keyed on, what it made, and what it read
    #[command(after_help = examples::INSPECT_STEP)]
    Step(InspectStepCommand),
}

/// `crossdock inspect step`.
#[derive(Debug, Clone, Args)]
pub struct InspectStepCommand {
    /// The step's key, or its first digits: `crossdock explain` prints them
    #[arg(value_name = "KEY")]
    pub key: String,

    /// Print what the step printed, and nothing else
    #[arg(long)]
    pub log: bool,

    /// Of what it read, show the files whose contents it read
    #[arg(long)]
    pub files: bool,

    /// Of what it read, show the directories that it listed
    #[arg(long)]
    pub names: bool,

    /// How the answer is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub cache: CacheArgs,
}

/// `crossdock cache …`.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the records: one for each step whose result is kept
    #[command(after_help = examples::CACHE_LS)]
    Ls(CacheListCommand),
    /// Say how much space the cache takes
    #[command(after_help = examples::CACHE_DU)]
    Du(CacheListCommand),
    /// Remove what was not used for the longest time
    #[command(after_help = examples::CACHE_PRUNE)]
    Prune(CachePruneCommand),
    /// Check everything in the cache against its digest
    #[command(after_help = examples::CACHE_VERIFY)]
    Verify(CacheVerifyCommand),
    /// Show and change cache mounts (`RUN --mount=type=cache`)
    #[command(after_help = examples::CACHE_MOUNTS, subcommand_required = true, arg_required_else_help = true)]
    #[command(disable_help_subcommand = true)]
    Mounts {
        /// What to do with them.
        #[command(subcommand)]
        command: CacheMountsCommand,
    },
}

/// `crossdock cache mounts`.
#[derive(Debug, Clone, Subcommand)]
pub enum CacheMountsCommand {
    /// List them, of this machine and of the shared cache
    #[command(after_help = examples::CACHE_MOUNTS_LS)]
    Ls(MountsListCommand),
    /// Show what is in one
    #[command(after_help = examples::CACHE_MOUNTS_INSPECT)]
    Inspect(MountsInspectCommand),
    /// Empty them, here and in the shared cache
    #[command(after_help = examples::CACHE_MOUNTS_RM)]
    Rm(MountsRemoveCommand),
    /// Write what is in one as a tar
    #[command(after_help = examples::CACHE_MOUNTS_EXPORT)]
    Export(MountsExportCommand),
    /// Fill one with what is in a tar
    #[command(after_help = examples::CACHE_MOUNTS_IMPORT)]
    Import(MountsImportCommand),
}

/// `crossdock cache mounts ls`.
#[derive(Debug, Clone, Args)]
pub struct MountsListCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub cache: CacheArgs,

    /// How the answer is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `crossdock cache mounts inspect`.
#[derive(Debug, Clone, Args)]
pub struct MountsInspectCommand {
    /// The mount's id, or the first 12 digits of its name
    #[arg(value_name = "ID")]
    pub id: String,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub cache: CacheArgs,

    /// Show everything in it
    #[arg(long)]
    pub files: bool,

    /// How the answer is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `crossdock cache mounts rm`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct MountsRemoveCommand {
    /// The mounts' ids, or the first 12 digits of their names
    #[arg(value_name = "ID", group = "which")]
    pub ids: Vec<String>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub cache: CacheArgs,

    /// All of them
    #[arg(long, group = "which")]
    pub all: bool,

    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

/// `crossdock cache mounts export`.
#[derive(Debug, Clone, Args)]
pub struct MountsExportCommand {
    /// The mount's id, or the first 12 digits of its name
    #[arg(value_name = "ID")]
    pub id: String,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub cache: CacheArgs,

    /// Where the tar goes: a file, or `-` for standard output; compressed if its name ends in .gz or .zst
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// `crossdock cache mounts import`.
#[derive(Debug, Clone, Args)]
pub struct MountsImportCommand {
    /// The mount's id: that of the `RUN`, or its target. One that is not known yet is made
    #[arg(value_name = "ID")]
    pub id: String,

    /// The tar, compressed or not: a file, or `-` for standard input
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    pub file: PathBuf,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub cache: CacheArgs,
}

/// `crossdock cache ls` and `crossdock cache du`.
#[derive(Debug, Clone, Args)]
pub struct CacheListCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub local: LocalCacheArgs,

    /// How the answer is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `crossdock cache prune`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub struct CachePruneCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub local: LocalCacheArgs,

    /// Remove everything
    #[arg(long, group = "what", conflicts_with_all = ["max_size", "max_age"])]
    pub all: bool,

    /// Shrink the cache to this size, such as 10GB
    #[arg(long, value_name = "SIZE", group = "what", alias = "keep-storage")]
    pub max_size: Option<ByteSize>,

    /// Remove what was not used for so long, such as 7d
    #[arg(long, value_name = "AGE", group = "what", value_parser = values::duration)]
    pub max_age: Option<std::time::Duration>,

    /// Do not ask
    #[arg(short, long)]
    pub force: bool,

    /// How the answer is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `crossdock cache verify`.
#[derive(Debug, Clone, Args)]
pub struct CacheVerifyCommand {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become the help of the flag group")]
    pub local: LocalCacheArgs,

    /// Set damaged things aside, and remove the records that need them
    #[arg(long)]
    pub repair: bool,

    /// How the answer is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `crossdock doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorCommand {
    /// How the answer is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `crossdock demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoCommand {
    /// Work in this directory and keep it [default: a temporary directory that is removed]
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

fn network(text: &str) -> Result<Network, String> {
    match text {
        "default" | "" => Ok(Network::Default),
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        _ => Err("expected default, none or host".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_command_lines_are_refused() {
        for (line, kind) in [
            ("", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("biuld .", ErrorKind::InvalidSubcommand),
            ("build", ErrorKind::MissingRequiredArgument),
            ("build . .", ErrorKind::UnknownArgument),
            ("build --tga x .", ErrorKind::UnknownArgument),
            ("build -t UPPER/x/Y .", ErrorKind::ValueValidation),
            ("build --no-cache=perhaps .", ErrorKind::ValueValidation),
            ("build --network bridge .", ErrorKind::ValueValidation),
            ("build --allow network.hots .", ErrorKind::ValueValidation),
            ("build --progress fancy .", ErrorKind::InvalidValue),
            ("build --shm-size big .", ErrorKind::ValueValidation),
            ("build --platform a/b/c/d .", ErrorKind::ValueValidation),
            ("build -o type=oic,dest=x .", ErrorKind::ValueValidation),
            ("build --cache-scope a//b .", ErrorKind::ValueValidation),
            ("cache prune", ErrorKind::MissingRequiredArgument),
            ("cache prune --all --max-size 1GB", ErrorKind::ArgumentConflict),
            ("cache prune --max-age 1y", ErrorKind::ValueValidation),
            ("completion tcsh", ErrorKind::InvalidValue),
        ] {
            let words = std::iter::once("crossdock").chain(line.split_whitespace());
            let error = Cli::try_parse_from(words).unwrap_err();
            assert_eq!(error.kind(), kind, "{line}: {error}");
        }
    }

    #[test]
    fn of_flags_that_stand_twice_the_last_counts() {
        let line = "crossdock --config a build --config b --progress plain -f a --target a --platform linux/amd64 \
                    --pull --no-cache --network none --shm-size 1g --runtime a --compression gzip --iidfile a \
                    --metadata-file a --push --load=false --cache file:///a --local-cache a --call check \
                    --progress json -f b --target b --platform linux/arm64 --pull=false --no-cache=false \
                    --network host --shm-size 2g --runtime b --compression zstd --iidfile b --metadata-file b \
                    --push=false --load --cache file:///b --local-cache b --call outline --quiet -q \
                    --dry-run --dry-run --builder x --builder y --provenance=true --provenance=false \
                    -t a -t b --build-arg A=1 --build-arg B=2 --label a=b --label c=d .";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!(cli.config, Some("b".into()));
        let Command::Build(command) = cli.command else { unreachable!() };
        let build = &command.build;
        assert_eq!(command.progress, Progress::Json);
        assert_eq!((build.file.as_deref(), build.target.as_deref()), (Some("b"), Some("b")));
        assert!(!build.pull && !build.no_cache && !command.push && command.load && command.quiet);
        assert_eq!((build.network, build.shm_size), (Network::Host, "2g".parse().unwrap()));
        assert_eq!(build.runtime, Some("b".into()));
        assert_eq!(command.compression, Some(LayerCompression::Zstd));
        assert_eq!((&command.iidfile, &command.metadata_file), (&Some("b".into()), &Some("b".into())));
        assert_eq!(build.cache.cache.as_deref(), Some("file:///b"));
        assert_eq!(build.cache.local.local_cache, Some("b".into()));
        assert!(command.call.is_some());
        // What is a list stays one.
        assert_eq!(build.platform.len(), 2);
        assert_eq!((command.tag.len(), build.build_arg.len(), build.label.len()), (2, 2, 2));
    }

    #[test]
    fn values_are_split_and_counted() {
        let parse = |line: &str| {
            let words = std::iter::once("crossdock").chain(line.split_whitespace());
            Cli::try_parse_from(words).unwrap().command
        };
        let Command::Build(build) =
            parse("build --cache-scope pr/1,main --cache file:///c --progress rawjson .")
        else {
            unreachable!()
        };
        let scopes: Vec<_> = build.build.cache.cache_scope.iter().map(Scope::as_str).collect();
        assert_eq!(scopes, ["pr/1", "main"]);
        assert_eq!(build.build.cache.cache.as_deref(), Some("file:///c"));
        assert_eq!(build.progress, Progress::Json);
        let Command::Cache { command: CacheCommand::Prune(prune) } =
            parse("cache prune --keep-storage 1GB --max-age 2d -f")
        else {
            unreachable!()
        };
        assert_eq!(prune.max_size, Some(ByteSize(1_000_000_000)));
        assert_eq!(prune.max_age, Some(std::time::Duration::from_hours(48)));
        assert!(prune.force);
    }
}
