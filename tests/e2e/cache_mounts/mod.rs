//! Cache mounts that outlive the runner that filled them, and times that follow content: what a tool does again on a
//! fresh runner is what has changed, and what it makes is what it makes from nothing.

mod make;
mod random;
mod sharing;
mod times;
mod tools;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::lab::Lab;
use crate::support::oci::{Tree, tar_tree};
use crate::support::server::CacheServer;
use crate::support::{Output, Run, base};

/// A build that compiles a project with a real compiler, in a debug build of the program on two busy cores.
const PATIENCE: Duration = Duration::from_mins(10);

/// A build from nothing, which leaves nothing.
const FROM_SCRATCH: [&str; 2] = ["--no-cache", "--cache-mounts=off"];

/// Runners with one server between them. A runner is the name of its local cache: one that was not there before is fresh.
struct Runners {
    lab: Lab,
    server: CacheServer,
    /// The image `tools` of their Dockerfiles.
    tools: PathBuf,
    /// Of the last build: in each one the steps that want to know it are other ones, and run.
    round: Cell<u32>,
}

impl Runners {
    fn new(tools: impl Into<PathBuf>) -> Self {
        let lab = Lab::new();
        let server = CacheServer::start(&lab.context, "storage", &[]);
        Self { lab, server, tools: tools.into(), round: Cell::new(0) }
    }

    /// With busybox and make.
    fn small() -> Self {
        Self::new(base::busybox_with_make())
    }

    /// A new checkout: these files and no others, each written just now.
    fn check_out(&self, files: &BTreeMap<String, String>) {
        std::fs::remove_dir_all(self.lab.path("")).unwrap();
        for (path, content) in files {
            self.lab.file(path, content);
        }
    }

    /// A build as it is without a server, by a runner.
    fn alone(&self, runner: &str, dockerfile: &str) -> Run {
        self.lab
            .build(dockerfile)
            .timeout(PATIENCE)
            .env("CROSSDOCK_LOCAL", self.lab.context.path(runner))
            .option_path("--build-context", "tools=oci-layout://", &self.tools)
            .option("--build-arg", format!("ROUND={}", self.round.get()))
    }

    /// A build by a runner, whose steps with `ARG ROUND` run.
    fn build(&self, runner: &str, dockerfile: &str) -> Run {
        self.round.set(self.round.get() + 1);
        self.server.cache(self.alone(runner, dockerfile))
    }

    /// What a build gives.
    #[track_caller]
    fn result(&self, build: Run) -> Tree {
        self.result_and_output(build).0
    }

    /// And what it said.
    #[track_caller]
    fn result_and_output(&self, build: Run) -> (Tree, Output) {
        let tar = self.lab.context.path("result.tar");
        let output = build.option_path("--output", "type=tar,dest=", &tar).success();
        (tar_tree(&tar), output)
    }

    /// The same from nothing: no cache, no server, no mount of anybody's.
    #[track_caller]
    fn from_scratch(&self, dockerfile: &str) -> Tree {
        let tree = self.result(self.alone("scratch", dockerfile).args(FROM_SCRATCH));
        // Its place is wanted for the next; the test's own directory goes in any case.
        drop(std::fs::remove_dir_all(self.lab.context.path("scratch")));
        tree
    }

    /// The server's files of all scopes.
    fn stored(&self) -> PathBuf {
        self.server.storage.join("tenants/default")
    }
}

/// What follows a word at the beginning of lines: `CC a.c` says `a.c`.
fn told(said: &str, word: &str) -> Vec<String> {
    let rest = said.lines().filter_map(|line| line.trim_start().strip_prefix(word)?.strip_prefix(' '));
    rest.map(|rest| rest.trim().to_owned()).collect()
}

/// Fails the test unless the tool did this work and no other, and none of it twice.
#[track_caller]
fn assert_done(what: &str, said: &str, done: &[String], expected: &[&str]) {
    let (set, wanted): (BTreeSet<_>, BTreeSet<_>) =
        (done.iter().map(String::as_str).collect(), expected.iter().copied().collect());
    assert!(
        set == wanted && done.len() == wanted.len(),
        "{what}: did {} of work: {done:?}\nexpected {}: {expected:?}\n{said}",
        done.len(),
        expected.len()
    );
}

/// Sets when a file was last changed.
fn set_time(path: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}

/// Long before anything that a test makes: 2001.
const LONG_AGO: u64 = 1_000_000_000;

/// Whether this is a long run; says so if it is not.
#[expect(clippy::print_stdout, reason = "what was left out is said aloud")]
fn is_long() -> bool {
    let is_long = std::env::var_os("CROSSDOCK_TEST_LONG").is_some();
    if !is_long {
        println!("skipped: only with CROSSDOCK_TEST_LONG");
    }
    is_long
}

/// Waits until it is so.
#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_mins(1), "{what}: never");
        std::thread::sleep(Duration::from_millis(10));
    }
}
