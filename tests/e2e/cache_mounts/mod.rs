//! Cache mounts that outlive the runner that filled them, and times that follow content: what a tool does again on a
//! fresh runner is what has changed, and what it makes is what it makes from nothing.

mod make;
mod manage;
mod random;
mod sharing;
mod times;
mod tools;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::lab::Lab;
use crate::support::oci::{Tree, content, tar_tree};
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
    fn check_out(&self, files: &Files) {
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
    fn made_from_scratch(&self, dockerfile: &str) -> Tree {
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

/// A project, by path.
type Files = BTreeMap<String, String>;

/// A project that is built again and again, each time on a fresh runner and from a new checkout.
struct Story {
    runners: Runners,
    dockerfile: String,
    files: Files,
    /// What a build from scratch gives, by what it was built from.
    known: BTreeMap<Files, Tree>,
}

impl Story {
    /// The step does the work of `command` in `/src`, with these mounts. What the tool says is told, the rest of `/out` is the
    /// product.
    fn new(tools: impl Into<PathBuf>, mounts: &[&str], command: &str, files: Files) -> Self {
        let mounts: Vec<_> = mounts.iter().map(|mount| format!("--mount=type=cache,{mount}")).collect();
        let mounts = mounts.join(" ");
        let dockerfile = format!(
            "FROM tools AS build\nWORKDIR /src\nCOPY . .\nARG ROUND\n\
             RUN {mounts} mkdir /out && {{ {{ {command}; }} > /out/said 2>&1 || {{ cat /out/said; false; }}; }}\n\
             FROM scratch\nCOPY --from=build /out /\n"
        );
        Self { runners: Runners::new(tools), dockerfile, files, known: BTreeMap::new() }
    }

    /// Changes a file.
    fn write(&mut self, path: &str, content: &str) {
        self.files.insert(path.to_owned(), content.to_owned());
    }

    /// What the tool says on a runner that has never been there. The files of `old` were last changed long ago.
    #[track_caller]
    fn on_a_fresh_runner(&mut self, what: &str, old: &[&str]) -> String {
        let runner = format!("runner-{}", self.runners.round.get());
        self.on(&runner, what, old)
    }

    /// The same on this one. What it makes is what a build from scratch makes.
    #[track_caller]
    fn on(&mut self, runner: &str, what: &str, old: &[&str]) -> String {
        self.runners.check_out(&self.files);
        for path in old {
            set_time(&self.runners.lab.path(path), LONG_AGO);
        }
        let mut tree = self.runners.result(self.runners.build(runner, &self.dockerfile));
        let said = content(&tree, "said");
        tree.remove("said");
        let mut sources = self.files.clone();
        sources.remove("README");
        if !self.known.contains_key(&sources) {
            let mut scratch = self.runners.made_from_scratch(&self.dockerfile);
            scratch.remove("said");
            self.known.insert(sources.clone(), scratch);
        }
        let scratch = &self.known[&sources];
        let paths = tree.keys().chain(scratch.keys());
        let differ: BTreeSet<_> = paths.filter(|path| tree.get(*path) != scratch.get(*path)).collect();
        assert!(differ.is_empty(), "{what}: not what a build from scratch gives: {differ:?}\n{said}");
        said
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
