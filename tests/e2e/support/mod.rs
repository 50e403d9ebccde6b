//! What every end-to-end test stands on: a place of its own to work in, the program under test with an
//! environment that holds nothing of the machine's, and base images that are made here.

#![allow(dead_code, reason = "a test file uses what it needs of this")]

pub(crate) mod aftermath;
pub(crate) mod base;
pub(crate) mod buildkit;
pub(crate) mod chance;
pub(crate) mod counting;
pub(crate) mod disk;
pub(crate) mod docker;
pub(crate) mod hostile;
pub(crate) mod http;
pub(crate) mod lab;
#[path = "../../tools/link/link.rs"]
pub(crate) mod link;
pub(crate) mod oci;
#[path = "../../tools/port.rs"]
pub(crate) mod port;
pub(crate) mod registry;
pub(crate) mod repository;
pub(crate) mod s3;
pub(crate) mod server;
pub(crate) mod terminal;

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a command may take unless the test says otherwise. A debug build of the program on two busy cores is
/// slow; a hang is what this is for.
const TIMEOUT: Duration = Duration::from_mins(3);

/// The variables of the machine that a command keeps: how to find programs, and how to reach package mirrors.
const KEPT: &[&str] = &[
    "PATH",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// A directory of its own for one test: home, caches, build contexts, results. Removed at the end.
pub(crate) struct Context {
    root: TempDir,
    program: PathBuf,
    user: Option<u32>,
}

impl Context {
    /// A fresh, empty one.
    pub(crate) fn new() -> Self {
        let root = tempfile::Builder::new().prefix("e2e-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let context = Self { root, program: PathBuf::from(env!("CARGO_BIN_EXE_crossdock")), user: None };
        context.populate();
        context
    }

    /// A fresh one whose commands run as the ordinary user `uid`, when the tests themselves run as root. It lies in
    /// the system's temporary directory with a copy of the program, as the checkout may be unreadable for others.
    pub(crate) fn for_user(uid: u32) -> Self {
        assert!(is_root(), "only root can run commands as somebody else");
        let root = tempfile::Builder::new()
            .prefix("e2e-")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        let program = root.path().join("crossdock");
        // By another process: whatever this one starts meanwhile would have the copy open for writing, and it could not run.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_crossdock")).arg(&program).status();
        assert!(copied.unwrap().success());
        let context = Self { root, program, user: Some(uid) };
        context.populate();
        for path in [".", "home", "xdg", "tmp"] {
            std::os::unix::fs::chown(context.path(path), Some(uid), Some(uid)).unwrap();
        }
        context
    }

    fn populate(&self) {
        for directory in ["home", "xdg", "tmp"] {
            std::fs::create_dir(self.path(directory)).unwrap();
        }
        // What skopeo, podman and buildah ask for before they trust any image.
        let containers = self.path("home/.config/containers");
        std::fs::create_dir_all(&containers).unwrap();
        std::fs::write(containers.join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)
            .unwrap();
    }

    /// A path inside.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.path().join(relative)
    }

    /// Writes a file, and the directories that it needs.
    pub(crate) fn write(&self, relative: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Writes a file with a mode.
    pub(crate) fn write_mode(
        &self,
        relative: impl AsRef<Path>,
        content: impl AsRef<[u8]>,
        mode: u32,
    ) -> PathBuf {
        let path = self.write(relative, content);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// The program under test.
    pub(crate) fn crossdock(&self) -> Run {
        self.command(&self.program)
    }

    /// `crossdock build` with plain progress.
    pub(crate) fn build(&self) -> Run {
        self.crossdock().args(["build", "--progress=plain"])
    }

    /// Checks everything in a store's directory: a local cache, or one that runners share.
    #[track_caller]
    pub(crate) fn verify_store(&self, directory: impl AsRef<Path>) {
        let directory = self.path(directory);
        assert!(directory.is_dir(), "{} is not there", directory.display());
        self.crossdock().args(["cache", "verify"]).option("--local-cache", directory).success();
    }

    /// Another program, in the same hermetic environment.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Run {
        let mut command = Command::new(program);
        command.current_dir(self.root.path()).env_clear();
        for name in KEPT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("HOME", self.path("home"))
            .env("XDG_CACHE_HOME", self.path("xdg"))
            .env("TMPDIR", self.path("tmp"))
            .env("LANG", "C.UTF-8")
            .env("NO_COLOR", "1");
        if let Some(uid) = self.user {
            command.uid(uid).gid(uid);
        }
        Run { command, stdin: Vec::new(), timeout: TIMEOUT }
    }
}

/// A command about to be run.
pub(crate) struct Run {
    command: Command,
    stdin: Vec<u8>,
    timeout: Duration,
}

impl Run {
    /// Adds an argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds an option and its value, as two arguments.
    pub(crate) fn option(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.arg(name).arg(value)
    }

    /// Adds an option whose value joins a text and a path: `--output type=tar,dest=` and where.
    pub(crate) fn option_path(self, name: &str, prefix: &str, path: impl AsRef<Path>) -> Self {
        let mut value = OsString::from(prefix);
        value.push(path.as_ref());
        self.option(name, value)
    }

    /// Sets a variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes a variable.
    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Runs it in another directory.
    pub(crate) fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Standard input, empty otherwise.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// How long it may take.
    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Starts it and does not wait; its output is thrown away.
    pub(crate) fn spawn(mut self) -> Child {
        self.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", self.command))
    }

    /// The command itself, for what nothing here does.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    /// Runs it to its end, whatever that is.
    pub(crate) fn output(mut self) -> Output {
        let shown = format!("{:?}", self.command);
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|error| {
            panic!("{shown}: {error}\n(what the tests need is installed by `./test`)")
        });
        let started = Instant::now();
        let mut stdin = child.stdin.take().unwrap();
        let input = self.stdin;
        // A command that does not read its input makes this fail, which is its own business.
        let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = collect(child.stdout.take().unwrap());
        let stderr = collect(child.stderr.take().unwrap());
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if started.elapsed() > self.timeout {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let output = Output {
            shown,
            status: status.unwrap_or_else(|| ExitStatus::from_raw(9)),
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
            elapsed: started.elapsed(),
        };
        feeder.join().unwrap();
        assert!(status.is_some(), "took longer than {:?}\n{output}", self.timeout);
        output
    }

    /// Runs it; it must succeed.
    #[track_caller]
    pub(crate) fn success(self) -> Output {
        let output = self.output();
        assert!(output.status.success(), "should have succeeded\n{output}");
        output
    }

    /// Runs it; it must fail by its own decision: with an exit code, and not with that of a panic.
    #[track_caller]
    pub(crate) fn failure(self) -> Output {
        let output = self.output();
        assert!(!output.status.success(), "should have failed\n{output}");
        assert!(output.status.code().is_some_and(|code| code != 101), "died\n{output}");
        assert!(!output.stderr().contains("panicked at"), "panicked\n{output}");
        output
    }
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// What a command did. Displayed in full when an assertion about it fails.
pub(crate) struct Output {
    shown: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) elapsed: Duration,
}

impl Output {
    /// Standard output as text.
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless the command said `text`, on either output.
    #[track_caller]
    pub(crate) fn says(&self, text: &str) -> &Self {
        assert!(
            self.stdout().contains(text) || self.stderr().contains(text),
            "should have said {text:?}\n{self}"
        );
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "$ {}\n{} after {:.1} s\n--- stdout\n{}--- stderr\n{}---",
            self.shown,
            self.status,
            self.elapsed.as_secs_f64(),
            self.stdout(),
            self.stderr()
        )
    }
}

/// Whether the tests run as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The path of a file as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
