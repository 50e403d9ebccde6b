//! A cache server: the real program, over a directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Context, Run, text};

static STARTED: AtomicUsize = AtomicUsize::new(0);

/// A running `crossdock serve`, killed when dropped.
pub(crate) struct CacheServer {
    child: Child,
    log: PathBuf,
    /// Lines of the log that were read.
    read: std::cell::Cell<usize>,
    pub(crate) storage: PathBuf,
    pub(crate) address: String,
    /// May do everything; empty if it was not the first start over this storage.
    pub(crate) token: String,
}

impl CacheServer {
    /// Over the directory `storage` of the context, and with more options.
    pub(crate) fn start(context: &Context, storage: impl AsRef<Path>, options: &[&str]) -> Self {
        let storage = context.path(storage);
        Self::over(context, text(&storage), |run| run, options)
    }

    /// Over storage of any kind, with an environment for it.
    pub(crate) fn over(
        context: &Context,
        storage: &str,
        with: impl Fn(Run) -> Run,
        options: &[&str],
    ) -> Self {
        let list = with(context.crossdock()).args(["token", "ls", "--storage", storage]).success();
        let has_tokens = !list.stdout().is_empty();
        let log = context.path(format!("server-{}.log", STARTED.fetch_add(1, Ordering::Relaxed)));
        let errors = log.with_extension("errors");
        let file = |path: &Path| Stdio::from(std::fs::File::create(path).unwrap());
        let mut command: Command = with(context.crossdock()).into_command();
        let child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
            .args(options)
            .arg("--storage")
            .arg(storage)
            .stdin(Stdio::null())
            .stdout(file(&log))
            .stderr(file(&errors))
            .spawn()
            .unwrap();
        let mut server = Self {
            child,
            log,
            read: 0.into(),
            storage: storage.into(),
            address: String::new(),
            token: String::new(),
        };
        let started = Instant::now();
        server.address = loop {
            let lines = server.lines();
            if let Some(line) = lines.iter().find(|line| line["message"] == "listening") {
                break line["address"].as_str().unwrap().to_owned();
            }
            let said = std::fs::read_to_string(&errors).unwrap();
            assert!(server.child.try_wait().unwrap().is_none(), "the server has ended: {said}");
            assert!(started.elapsed() < Duration::from_secs(30), "the server does not listen: {said}");
            std::thread::sleep(Duration::from_millis(10));
        };
        // Written right after the log's line.
        let said = loop {
            let said = std::fs::read_to_string(&errors).unwrap();
            if has_tokens || said.contains("makes an end") || options.contains(&"--insecure-no-auth") {
                break said;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "no token: {said}");
            std::thread::sleep(Duration::from_millis(10));
        };
        let token = said.split_once("CROSSDOCK_TOKEN=").and_then(|(_, rest)| rest.split_whitespace().next());
        token.unwrap_or_default().clone_into(&mut server.token);
        server
    }

    /// `http://address`
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A build that uses it, with the token that may do everything.
    pub(crate) fn cache(&self, build: Run) -> Run {
        build.option("--cache", self.url()).env("CROSSDOCK_TOKEN", &self.token)
    }

    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What it was asked since the last time, without probes: `GET /api/v1/… 200`.
    pub(crate) fn asked(&self) -> Vec<String> {
        let lines = self.lines();
        let new = &lines[self.read.replace(lines.len())..];
        let requests = new.iter().filter(|line| line["message"] == "request");
        let told = |line: &Value| {
            format!(
                "{} {} {}",
                line["method"].as_str().unwrap(),
                line["path"].as_str().unwrap(),
                line["status"]
            )
        };
        requests.map(told).collect()
    }

    /// All that it has written to its log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends it without any warning.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < Duration::from_mins(1), "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Makes a token.
    pub(crate) fn create_token(&self, context: &Context, options: &[&str]) -> String {
        let run = context.crossdock().args(["token", "create", "t", "--storage", text(&self.storage)]);
        run.args(options).success().stdout().trim().to_owned()
    }
}

impl Drop for CacheServer {
    fn drop(&mut self) {
        // Both fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
