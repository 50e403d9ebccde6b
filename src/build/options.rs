//! What a build is asked to do: everything resolved, nothing read from the environment here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::context::remote::RemoteSource;
use crate::digest::Digest;
use crate::layer::Timestamp;
use crate::platform::Platform;
use crate::reference::Reference;

/// One build, as the user asked for it.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The Dockerfile; not yet, if it is elsewhere (`remote_dockerfile`).
    pub dockerfile: DockerfileText,
    /// Where the Dockerfile is, if it has to be fetched first.
    pub remote_dockerfile: Option<RemoteDockerfile>,
    /// The build context.
    pub context: ContextSource,
    /// `--build-arg`, in the order given. Later ones win.
    pub build_args: Vec<(String, String)>,
    /// `--unkeyed-arg`: names of build arguments that commands are not keyed on, as far as what they make does not show them.
    pub unkeyed_args: BTreeSet<String>,
    /// `--build-context`, by name.
    pub build_contexts: BTreeMap<String, NamedContext>,
    /// `--target`: the stage to build; the last one if absent.
    pub target: Option<String>,
    /// `--platform`, none twice; the host's if there are none.
    pub platforms: Vec<Platform>,
    /// The result is an index, with an image for each platform: there are several, or `BUILDKIT_MULTI_PLATFORM` says so.
    pub multi_platform: bool,
    /// `-t`: names for the image.
    pub tags: Vec<Reference>,
    /// `--label`.
    pub labels: Vec<(String, String)>,
    /// `--annotation`. Later ones win.
    pub annotations: Vec<Annotation>,
    /// `--no-cache`: use no record.
    pub no_cache: bool,
    /// Whether commands are served their files while what they look at is traced; not with `--no-trace`.
    pub trace: bool,
    /// A rule of tracing that is not followed: so a test shows that it would find out.
    #[cfg(debug_assertions)]
    pub blind: Option<String>,
    /// `--verify-hits`: run some commands again although their results are known, and compare.
    pub verify_hits: Option<super::VerifyHits>,
    /// How cache mounts are kept (`--cache-mounts`, `--cache-mount-size`, `--no-content-times`).
    pub cache_mounts: super::CacheMountOptions,
    /// `--no-cache-filter`: use no record for these stages.
    pub no_cache_filter: Vec<String>,
    /// `--pull`: ask the registries for base images even where the local cache knows an answer.
    pub pull: bool,
    /// `--network`: what `RUN` gets where it does not say.
    pub network: crate::exec::Network,
    /// `--add-host`.
    pub extra_hosts: Vec<(String, String)>,
    /// `--shm-size`, in bytes.
    pub shm_size: u64,
    /// `--ulimit`: limits of `RUN` steps that differ from the builder's own.
    pub ulimits: Vec<crate::exec::Ulimit>,
    /// `--secret`.
    pub secrets: Vec<Secret>,
    /// `--ssh`: agents that steps and git may use; no id twice.
    pub ssh: Vec<SshAgent>,
    /// Entitlements granted by `--allow`: `network.host`, `security.insecure`.
    pub allow: Vec<String>,
    /// Where the result goes. Nothing at all: it stays in the cache.
    pub outputs: Vec<Output>,
    /// How images are written.
    pub format: ImageFormat,
    /// Clamps times (the `SOURCE_DATE_EPOCH` build argument).
    pub source_date_epoch: Option<Timestamp>,
    /// `--dry-run`: only say which steps would run.
    pub dry_run: bool,
}

/// One `--annotation`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// What is annotated.
    pub place: AnnotationPlace,
    /// The only platform that it is for.
    pub platform: Option<Platform>,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// What an annotation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnnotationPlace {
    /// The manifest of an image.
    Manifest,
    /// The index, where there are several platforms.
    Index,
    /// The descriptor by which an index names the manifest.
    ManifestDescriptor,
    /// The descriptor by which the index of a layout names the image's index.
    IndexDescriptor,
}

impl AnnotationPlace {
    /// Whether it has no meaning without an index.
    pub fn is_of_index(self) -> bool {
        matches!(self, Self::Index | Self::IndexDescriptor)
    }
}

/// A Dockerfile's text and what is said about it.
#[derive(Debug, Clone)]
pub struct DockerfileText {
    /// Its name for messages: the path as the user gave it.
    pub name: String,
    /// Its text.
    pub text: Vec<u8>,
    /// `<name>.dockerignore` beside it: its name for messages and its text. Wins over the context's own.
    pub ignore: Option<(String, Vec<u8>)>,
}

/// Where a Dockerfile is that has to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteDockerfile {
    /// In the build context, which is an archive or remote: its path, or `Dockerfile`, or else `dockerfile`.
    InContext(Option<String>),
    /// At a URL.
    Url(String),
}

/// Where the build context comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextSource {
    /// A local directory.
    Directory(PathBuf),
    /// There is none (`-` with only a Dockerfile on standard input).
    Empty,
    /// A tar, plain or compressed, that came over standard input.
    Archive(ContextArchive),
    /// A git repository, or a tar or a Dockerfile at a URL.
    Remote(RemoteSource),
}

/// A tar that holds a build context.
#[derive(Debug, Clone)]
pub struct ContextArchive {
    /// The file, which may be without a name. It must not change.
    pub file: Arc<std::fs::File>,
    /// Its length in bytes.
    pub size: u64,
    /// Its digest.
    pub digest: Digest,
}

impl PartialEq for ContextArchive {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for ContextArchive {}

/// What `--build-context name=…` maps a name to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// A local directory.
    Directory(PathBuf),
    /// `docker-image://reference`
    Image(Reference),
    /// `oci-layout://path[:tag][@digest]`
    OciLayout(String),
    /// `docker-archive://path` or `oci-archive://path`, or a path to such a file.
    Archive(PathBuf),
    /// A git repository or a URL.
    Remote(RemoteSource),
    /// `target:stage`: a stage of the same Dockerfile, or the name of another context.
    Stage(String),
}

/// A secret that steps may mount. Its value is never printed.
#[derive(Clone)]
pub struct Secret {
    /// The name that mounts refer to.
    pub id: String,
    /// The value.
    pub value: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("id", &self.id).finish_non_exhaustive()
    }
}

/// An SSH agent that steps and git may use (`--ssh`).
#[derive(Debug, Clone)]
pub struct SshAgent {
    /// The name that mounts refer to.
    pub id: String,
    /// What answers.
    pub source: SshSource,
}

/// See [`SshAgent`].
#[derive(Debug, Clone)]
pub enum SshSource {
    /// The socket of an agent that is running.
    Socket {
        /// Its path.
        path: PathBuf,
        /// Everything is passed on, also what changes the agent (`raw=true`), whatever the protocol.
        raw: bool,
    },
    /// Private keys, for an agent that runs as long as the build.
    Keys(Vec<SshKey>),
}

/// A private key without a passphrase. Its text is never printed.
#[derive(Clone)]
pub struct SshKey {
    /// Its name for messages: the path as the user gave it.
    pub name: String,
    /// The key as OpenSSH or PEM has it.
    pub text: Vec<u8>,
}

impl fmt::Debug for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SshKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How the layers of the result are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LayerCompression {
    /// Multi-frame zstd. Docker before 23 cannot pull it.
    #[default]
    Zstd,
    /// Multi-member gzip, for everyone.
    Gzip,
    /// Plain tar.
    Uncompressed,
}

/// How images are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageFormat {
    /// `--compression` of the layers that were built.
    pub compression: LayerCompression,
    /// `compression-level`: up to 22 for zstd and 9 for gzip.
    pub level: Option<u8>,
    /// `force-compression`: layers of the base image are compressed like that as well.
    pub force: bool,
    /// `oci-mediatypes=false`: documents and layers have Docker's media types, which know no zstd and no annotations.
    pub docker_media_types: bool,
}

/// A file to write to, or standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A path.
    Path(PathBuf),
    /// Standard output (`dest=-`).
    Stdout,
}

/// One `--output`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// `type=image`: an image under the request's tags, pushed to their registries if `push`; else it is only
    /// built and kept in the cache.
    Image {
        /// Push it.
        push: bool,
        /// `name=`: names instead of the request's tags, if any.
        names: Vec<Reference>,
    },
    /// `type=oci`: an OCI layout, as a tar file or (`tar=false`) as a directory.
    Oci {
        /// Where.
        destination: Destination,
        /// Whether a tar file is made.
        tar: bool,
    },
    /// `type=docker`: an archive for `docker load`.
    Docker {
        /// Where.
        destination: Destination,
    },
    /// `type=docker` without a file, and `--load`: the image goes into an engine on this machine.
    Load {
        /// The engine.
        engine: crate::registry::ImageEngine,
    },
    /// `type=tar`: the files of the result as one tar.
    Tar {
        /// Where.
        destination: Destination,
    },
    /// `type=local`: the files of the result in a directory.
    Local {
        /// The directory.
        destination: PathBuf,
        /// `platform-split`: whether each platform has a directory of its own; if there are several, unless this says no.
        split: Option<bool>,
    },
}
