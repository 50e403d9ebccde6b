//! BuildKit, which decides what a Dockerfile means, for those who have it: `./test --long` builds it with Go.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Context, Output, base, text};

/// Registries of this machine speak plain HTTP.
const PLAIN_HTTP: &str = "[registry.\"127.0.0.1\"]\nhttp = true\n";

/// A program that `./test` builds with Go, if it was built.
pub(crate) fn go_tool(name: &str) -> Option<PathBuf> {
    let program = PathBuf::from(std::env::var_os("BUILDKIT_BIN")?).join(name);
    program.exists().then_some(program)
}

/// A daemon of its own for one test, gone when dropped.
pub(crate) struct BuildKit {
    daemon: Child,
    client: PathBuf,
    socket: String,
}

impl BuildKit {
    /// Starts it, if `BUILDKIT_BIN` names the directory of `buildkitd` and `buildctl`.
    pub(crate) fn start(context: &Context) -> Option<Self> {
        let programs = PathBuf::from(std::env::var_os("BUILDKIT_BIN")?);
        let runtime = Command::new("sh").args(["-c", "command -v runc"]).output().unwrap().stdout;
        let runtime = String::from_utf8(runtime).unwrap();
        let socket = format!("unix://{}", context.path("buildkit.socket").display());
        let log = context.path("buildkitd.log");
        let daemon = Command::new(programs.join("buildkitd"))
            .args([
                "--oci-worker=true",
                "--containerd-worker=false",
                "--oci-worker-net=host",
                "--config",
                text(&context.write("buildkitd.toml", PLAIN_HTTP)),
                "--allow-insecure-entitlement=network.host",
                "--allow-insecure-entitlement=security.insecure",
                "--addr",
                &socket,
            ])
            .args(["--oci-worker-binary", runtime.trim(), "--root"])
            .arg(context.path("buildkit"))
            // By default all daemons of a machine take the same, and of two that start together one fails.
            .arg("--otel-socket-path")
            .arg(context.path("otel.socket"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("BUILDKIT_BIN={}: buildkitd: {error}", programs.display()));
        let mut buildkit = Self { daemon, client: programs.join("buildctl"), socket };
        let started = Instant::now();
        while !buildkit.command(context).args(["debug", "workers"]).output().status.success() {
            let ended = buildkit.daemon.try_wait().unwrap();
            let said = || std::fs::read_to_string(&log).unwrap();
            assert!(ended.is_none(), "buildkitd has ended: {}", said());
            // On a machine that has a lot else to do it takes its time.
            assert!(started.elapsed() < Duration::from_mins(5), "buildkitd did not start: {}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(buildkit)
    }

    /// `buildctl`, talking to this daemon.
    pub(crate) fn command(&self, context: &Context) -> super::Run {
        context.command(&self.client).args(["--addr", &self.socket])
    }

    /// What stands for the image `busybox` in a build.
    pub(crate) fn busybox() -> String {
        let index = std::fs::read(base::busybox().join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        format!("oci-layout://base@{}", index["manifests"][0]["digest"].as_str().unwrap())
    }

    /// Asks the frontend what `tests/tools/buildkit/subrequests` asks; a program beside buildkitd.
    pub(crate) fn subrequests(&self, context: &Context, questions: &str) -> String {
        // The program opens the layout as a store, which writes into it.
        let layout = context.path("buildkit-busybox");
        context.command("cp").arg("-r").arg(base::busybox()).arg(&layout).success();
        let program = self.client.with_file_name("subrequests");
        let output = context.command(program).arg(&self.socket).arg(layout).stdin(questions).success();
        output.stdout()
    }

    /// Builds the Dockerfile of a directory over the busybox base, from nothing, into a plain tar.
    pub(crate) fn build(&self, context: &Context, directory: &Path, tar: &Path) -> Output {
        let busybox = base::busybox();
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(busybox.join("index.json")).unwrap()).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        self.command(context)
            .args(["build", "--no-cache", "--progress=plain", "--frontend=dockerfile.v0"])
            .args(["--oci-layout", &format!("base={}", text(busybox))])
            .args(["--opt", &format!("context:busybox=oci-layout://base@{digest}")])
            .option_path("--local", "context=", directory)
            .option_path("--local", "dockerfile=", directory)
            .option_path("--output", "type=tar,dest=", tar)
            .output()
    }
}

impl Drop for BuildKit {
    fn drop(&mut self) {
        // Asked to end, not killed: it has mounts to undo.
        let id = rustix::process::Pid::from_child(&self.daemon);
        if rustix::process::kill_process(id, rustix::process::Signal::TERM).is_ok() {
            drop(self.daemon.wait());
        }
    }
}
