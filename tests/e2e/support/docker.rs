//! A Docker engine for those tests that need the real one.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Context, Run};

/// A Docker engine of its own, gone when dropped.
pub(crate) struct Docker {
    daemon: Child,
    pub(crate) socket: String,
}

impl Docker {
    pub(crate) fn start(context: &Context) -> Self {
        let directory = context.path("docker");
        std::fs::create_dir(&directory).unwrap();
        let socket = format!("unix://{}/socket", directory.display());
        let daemon = Command::new("dockerd")
            .args(["--bridge=none", "--iptables=false", "--storage-driver=vfs", "--host", &socket])
            .arg("--data-root")
            .arg(directory.join("data"))
            .arg("--exec-root")
            .arg(directory.join("exec"))
            .arg("--pidfile")
            .arg(directory.join("pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("dockerd: {error}\n(`./test` installs it)"));
        let docker = Self { daemon, socket };
        let deadline = Instant::now() + Duration::from_mins(1);
        while !docker.command(context).arg("version").output().status.success() {
            let log = std::fs::read_to_string(directory.join("log")).unwrap();
            assert!(Instant::now() < deadline, "the Docker engine did not start: {log}");
            std::thread::sleep(Duration::from_millis(200));
        }
        docker
    }

    pub(crate) fn command(&self, context: &Context) -> Run {
        context.command("docker").env("DOCKER_HOST", &self.socket)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It ends its containerd and unmounts what it has mounted.
        let id = rustix::process::Pid::from_child(&self.daemon);
        // It may have ended by itself; then there is nothing to wait for either.
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        drop(self.daemon.wait());
    }
}
