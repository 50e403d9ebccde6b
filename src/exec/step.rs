//! What an executor is told, and what it answers.

use std::fmt::{self, Debug};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::event::Stream;
use crate::exec::{CancelToken, ExecError, ResolvedUser};

/// One command to run in a root filesystem.
///
/// Serialisable only so that it can reach the helper process of the same build of the program: the encoding
/// is no format and has no stability.
#[derive(Clone, Serialize, Deserialize)]
pub struct ExecStep {
    /// Where the trees that [`Executor::run`] is given are mounted, each in its place: existing, empty directories. The
    /// mounts are the step's own, and are below any path that leads through them.
    pub served: Vec<PathBuf>,
    /// Unpacked layer directories, topmost first, or the place of a served tree. Empty for a step that starts from nothing.
    pub lowers: Vec<PathBuf>,
    /// Takes the step's changes: an existing, empty directory. The caller turns it into a layer. Its own mode
    /// and owner are those of `/` in the step: one that is private shuts every other user out.
    pub upper: PathBuf,
    /// Overlayfs's own directory: existing, empty, on the filesystem of `upper`.
    pub work: PathBuf,
    /// An existing private directory for whatever the executor needs on disk. The caller removes it.
    pub scratch: PathBuf,
    /// The command; the first word is looked up in the step's own `PATH` if it has no slash.
    pub args: Vec<String>,
    /// The whole environment of the command.
    pub env: Vec<(String, String)>,
    /// Working directory inside the root; created if it is missing. Empty means `/`.
    pub cwd: String,
    /// Who runs it.
    pub user: ResolvedUser,
    /// Host name; BuildKit's `buildkitsandbox` if `None`, because scripts are known to print it.
    pub hostname: Option<String>,
    /// What of the network the command sees.
    pub network: Network,
    /// More lines for `/etc/hosts`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// The step's mounts, in the order in which they are made.
    pub mounts: Vec<StepMount>,
    /// How much it may do.
    pub security: Security,
    /// Limits that differ from the inherited ones.
    pub rlimits: Vec<Ulimit>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// File creation mask.
    pub umask: u32,
}

impl ExecStep {
    /// Docker's default for `/dev/shm`.
    pub const DEFAULT_SHM_SIZE: u64 = 64 << 20;
    /// The file creation mask that builders use.
    pub const DEFAULT_UMASK: u32 = 0o022;

    /// A step with default settings: root, the host's network, the sandbox, no mounts.
    pub fn new(
        lowers: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
        scratch: PathBuf,
        args: Vec<String>,
    ) -> Self {
        Self {
            served: Vec::new(),
            lowers,
            upper,
            work,
            scratch,
            args,
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: ResolvedUser::root(),
            hostname: None,
            network: Network::Default,
            extra_hosts: Vec::new(),
            mounts: Vec::new(),
            security: Security::Sandbox,
            rlimits: Vec::new(),
            shm_size: Self::DEFAULT_SHM_SIZE,
            umask: Self::DEFAULT_UMASK,
        }
    }
}

/// Shows the names of variables and not their values: a secret must not reach a log by way of `{:?}`.
impl Debug for ExecStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecStep")
            .field("args", &self.args)
            .field("env", &self.env.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("cwd", &self.cwd)
            .field("user", &self.user)
            .field("mounts", &self.mounts)
            .finish_non_exhaustive()
    }
}

/// What of the network a step sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// The host's: without a daemon nothing could provide a bridge. Loopback name servers stay usable.
    Default,
    /// A network of its own that has nothing but loopback.
    None,
    /// The host's, asked for by name.
    Host,
}

/// How much a step may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Security {
    /// Docker's default capabilities, system call filter and masked paths.
    Sandbox,
    /// All capabilities, no filter, nothing masked (`RUN --security=insecure`).
    Insecure,
}

/// One limit, as in `setrlimit(2)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Docker's name: `nofile`, `nproc`, `core`, …
    pub name: String,
    /// The soft limit; `None` is unlimited.
    pub soft: Option<u64>,
    /// The hard limit; `None` is unlimited.
    pub hard: Option<u64>,
}

/// One mount of a step. Targets are absolute paths inside the root; missing ones are created for the run.
#[derive(Clone, Serialize, Deserialize)]
pub enum StepMount {
    /// A file or directory of the host.
    Bind {
        /// What to show.
        source: PathBuf,
        /// Where.
        target: String,
        /// If false, the step may write, and what it writes is thrown away.
        read_only: bool,
    },
    /// A path out of another stage or image.
    BindOverlay {
        /// Its unpacked layers, topmost first, or the place of a served tree.
        lowers: Vec<PathBuf>,
        /// The path inside them, resolved there (symbolic links stay inside).
        source: String,
        /// Where.
        target: String,
        /// If false, the step may write, and what it writes is thrown away.
        read_only: bool,
    },
    /// A directory of the host whose changes stay.
    Cache {
        /// The directory.
        dir: PathBuf,
        /// Where.
        target: String,
        /// Whether writing fails.
        read_only: bool,
    },
    /// An empty directory in memory.
    Tmpfs {
        /// Where.
        target: String,
        /// Most bytes that it may hold; `None` leaves the kernel's default, half of the memory.
        size: Option<u64>,
    },
    /// A file in memory that must never reach a disk.
    Secret {
        /// Where.
        target: String,
        /// Its content.
        data: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A socket of the host, such as an SSH agent's. The step may change who may use it.
    Socket {
        /// The socket.
        source: PathBuf,
        /// Where.
        target: String,
    },
    /// A file that belongs to the step's definition, such as the body of a heredoc.
    File {
        /// Where.
        target: String,
        /// Its content.
        data: Vec<u8>,
        /// Permission bits.
        mode: u32,
    },
}

impl StepMount {
    /// Where in the root it is mounted.
    pub fn target(&self) -> &str {
        match self {
            Self::Bind { target, .. }
            | Self::BindOverlay { target, .. }
            | Self::Cache { target, .. }
            | Self::Tmpfs { target, .. }
            | Self::Secret { target, .. }
            | Self::Socket { target, .. }
            | Self::File { target, .. } => target,
        }
    }
}

/// Shows kind and target only: a secret must not reach a log by way of `{:?}`.
impl Debug for StepMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Bind { .. } => "Bind",
            Self::BindOverlay { .. } => "BindOverlay",
            Self::Cache { .. } => "Cache",
            Self::Tmpfs { .. } => "Tmpfs",
            Self::Secret { .. } => "Secret",
            Self::Socket { .. } => "Socket",
            Self::File { .. } => "File",
        };
        f.debug_struct(kind).field("target", &self.target()).finish_non_exhaustive()
    }
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// With this exit code. 126 and 127 also stand for a command that could not be started, as in a shell;
    /// the reason is then the last line of the step's standard error.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl Exit {
    /// Whether the step succeeded.
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

/// What a run left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// How the command ended.
    pub exit: Exit,
    /// Paths relative to the root, without a leading slash, that the executor had to create as mount points.
    /// It has removed them from `upper` again, except directories into which the step put something: those
    /// it reports here, parents first. They must not become entries of the layer by themselves.
    pub created_mountpoints: Vec<Vec<u8>>,
    /// What could not be set up as it should be and was done in a lesser way: one sentence each.
    pub notes: Vec<String>,
}

/// Files that a process of this program serves to one step, instead of having them on disk.
pub trait ServedTree: Send + Sync + Debug {
    /// Begins to answer what comes from `device`, an open `/dev/fuse` that has just been mounted, until that mount is
    /// gone. Returns at once.
    ///
    /// # Errors
    /// If it cannot begin.
    fn serve(&self, device: OwnedFd) -> io::Result<()>;
}

/// Runs steps. Implementations know nothing of Dockerfiles, trees or the step graph.
pub trait Executor: Send + Sync + Debug {
    /// Runs one step and waits for it: to be called on a thread that may block. Several may run at once.
    ///
    /// `trees` are mounted at [`ExecStep::served`], of which there are as many.
    ///
    /// `log` gets the command's output as it comes, in the calling thread. A step that fails is an
    /// [`ExecOutcome`]; an error means that it could not be run or was cancelled. When this returns, no
    /// process of the step and no mount is left.
    fn run(
        &self,
        step: &ExecStep,
        trees: &[Arc<dyn ServedTree>],
        log: &mut dyn FnMut(Stream, &[u8]),
        cancel: &CancelToken,
    ) -> Result<ExecOutcome, ExecError>;

    /// How it runs things, in a few words: `native, root`.
    fn describe(&self) -> String;
}
