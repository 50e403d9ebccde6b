//! The differential proof: many small Dockerfiles, built with Crossdock and with BuildKit, and compared.
//!
//! `./test differential` builds what `cases/*.txt` say (`cases.rs` has the notation), and the build contexts beside
//! the checkout if they are there. Each case is built as it stands and then with small variations, with both builders
//! keeping their caches in between. Images must be equal, failures must meet failures, and Crossdock must not run a
//! step again that BuildKit does not; where it runs fewer, the image must be the one that a build from scratch gives.
//! What is different on purpose stands in `deviations.txt` with its reason, and nothing else does.
//!
//! It has a `main` of its own because a case is a test: `./test differential copy/` runs those with that in their
//! name. It needs root and a BuildKit (`BUILDKIT_BIN` is where `./test` has built it), and says so where it has not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "it is the test harness")]

#[path = "../e2e/support/mod.rs"]
mod support;

mod bases;
mod builders;
mod cases;
mod compare;
mod contexts;
mod deviations;
mod image;
mod server;
mod variations;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bases::Base;
use builders::{Built, Job, buildkit, crossdock};
use cases::Case;
use compare::Start;
use deviations::Deviations;
use support::Context;
use support::buildkit::BuildKit;
use variations::{CHANGES, Variation};

fn main() -> ExitCode {
    let page = Deviations::read().page();
    if std::env::args().any(|argument| argument == "--page") {
        print!("{page}");
        return ExitCode::SUCCESS;
    }
    if std::fs::read_to_string(deviations::page_path()).ok() != Some(page) {
        println!(
            "docs/differences.md is not what deviations.txt says: the head of that file has the command"
        );
        return ExitCode::FAILURE;
    }
    let filter: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let mut cases = cases::tables();
    cases.extend(contexts::cases());
    cases.retain(|case| filter.iter().all(|part| case.name.contains(part.as_str())));
    if cases.is_empty() {
        return ExitCode::SUCCESS;
    }
    if !support::is_root() || std::env::var_os("BUILDKIT_BIN").is_none() {
        println!(
            "NOT compared with BuildKit: needs root, and BUILDKIT_BIN to name a directory with buildkitd"
        );
        return ExitCode::SUCCESS;
    }
    if !contexts::are_there() {
        println!("NOT built: the contexts of ../shared/data/dockerfile, which is not there");
    }
    let all_variations = !filter.is_empty() || std::env::var_os("CROSSDOCK_TEST_LONG").is_some();
    Proof::new(cases, all_variations).run()
}

/// One run of the whole.
struct Proof {
    cases: Vec<Case>,
    deviations: Deviations,
    start: Start,
    /// Not only two of them for each case, which keeps this to some minutes.
    all_variations: bool,
    next: AtomicUsize,
    /// Each a case and what is wrong with it.
    wrong: Mutex<Vec<(String, String)>>,
    /// Builds compared, and the steps that ran again after a variation: Crossdock's and BuildKit's.
    counts: [AtomicUsize; 3],
}

impl Proof {
    fn new(cases: Vec<Case>, all_variations: bool) -> Self {
        Self {
            cases,
            deviations: Deviations::read(),
            start: Start::now(),
            all_variations,
            next: AtomicUsize::new(0),
            wrong: Mutex::default(),
            counts: [0, 0, 0].map(AtomicUsize::new),
        }
    }

    fn run(&self) -> ExitCode {
        let started = Instant::now();
        let workers = std::thread::available_parallelism().map_or(2, usize::from).min(self.cases.len());
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| self.work());
            }
        });
        let ran: Vec<String> = self.cases.iter().map(|case| case.name.clone()).collect();
        let wrong = self.wrong.lock().unwrap();
        for (case, what) in wrong.iter() {
            println!("\n---- {case}\n{what}");
        }
        let gone: Vec<_> = self.deviations.gone(&ran).collect();
        for line in &gone {
            println!("\n---- {line}");
        }
        let [builds, ours, theirs] = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        println!(
            "\n{} cases, {} wrong; {builds} builds compared; after a variation Crossdock ran {ours} steps and BuildKit \
             {theirs}; {} s",
            ran.len(),
            wrong.len(),
            started.elapsed().as_secs()
        );
        if wrong.is_empty() && gone.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Takes cases until there are no more. Each worker has a BuildKit of its own, whose cache it empties in between.
    fn work(&self) {
        let context = Context::new();
        let bases = bases::all(&context);
        let server = server::serve(context.path("world/www"));
        let address = server.url("");
        let address = address.trim_start_matches("http://");
        let daemon = BuildKit::start(&context).expect("BUILDKIT_BIN is set");
        while let Some(case) = self.cases.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let trial = Trial {
                case,
                context: &context,
                bases: &bases,
                server: address,
                daemon: &daemon,
                proof: self,
            };
            let found =
                std::panic::catch_unwind(AssertUnwindSafe(|| trial.differences())).unwrap_or_else(|panic| {
                    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                    let message = panic.downcast_ref::<String>().cloned().or(text).unwrap_or_default();
                    vec![format!("the comparison itself failed: {message}")]
                });
            let mut unlisted = found;
            unlisted.retain(|difference| !self.deviations.lists(&case.name, difference));
            println!("case {} ... {}", case.name, if unlisted.is_empty() { "ok" } else { "DIFFERENT" });
            if !unlisted.is_empty() {
                let text = format!("# {}\n{}\n{}", case.rule, case.dockerfile, unlisted.join("\n"));
                self.wrong.lock().unwrap().push((case.name.clone(), text));
            }
        }
    }
}

/// One case at one worker.
struct Trial<'a> {
    case: &'a Case,
    context: &'a Context,
    bases: &'a [Base],
    server: &'a str,
    daemon: &'a BuildKit,
    proof: &'a Proof,
}

impl Trial<'_> {
    /// Builds it as it is and with every variation; all differences, each once.
    fn differences(&self) -> Vec<String> {
        self.daemon.command(self.context).args(["prune", "--all"]).success();
        self.empty("cache");
        self.case.write(&self.empty("pristine"), self.server);
        let bases = self.bases_of_case();
        let (ours, mut found) = self.build(Variation::None, &bases);
        match (&self.case.fails, &ours.outcome) {
            (Some(message), Err(said)) if !said.contains(message.as_str()) => {
                found.push(format!("should have said {message:?}, not {said}"));
            }
            (Some(message), Ok(_)) => found.push(format!("should have failed, saying {message:?}")),
            // That it fails with both is not what the case is for.
            (None, Err(said)) if found.is_empty() => found.push(format!("fails: {said}")),
            _ => {}
        }
        if ours.outcome.is_ok() {
            for variation in self.variations(!bases.is_empty()) {
                let (_, differences) = self.build(variation, &bases);
                for difference in differences {
                    if !found.contains(&difference) {
                        found.push(format!("{}: {difference}", variation.name()));
                    }
                }
            }
        }
        found
    }

    /// The variations to try: all of them where something is listed about the case, as it may be about one of them.
    fn variations(&self, has_base: bool) -> Vec<Variation> {
        let mut variations = CHANGES.to_vec();
        variations.retain(|variation| variation.applies_to(self.case, has_base));
        if !self.proof.all_variations && !self.proof.deviations.mention(&self.case.name) {
            // Others for each case, and the same in each run.
            let turn = self.case.name.bytes().map(usize::from).sum::<usize>() % variations.len().max(1);
            variations.rotate_left(turn);
            variations.truncate(2);
        }
        variations
    }

    /// The bases that the Dockerfile names.
    fn bases_of_case(&self) -> Vec<(&str, &Base)> {
        let base =
            |name: &str| self.bases.iter().find(|base| base.name == name).expect("a base of that name");
        if !self.case.bases.is_empty() {
            return self.case.bases.iter().map(|(name, of)| (name.as_str(), base(of))).collect();
        }
        let text = format!("{} {:?} {:?}", self.case.dockerfile, self.case.options, self.case.files);
        let variable = text.lines().any(|line| line.starts_with("FROM") && line.contains('$'));
        let mentions = |name: &str| variable || text.contains(name);
        self.bases.iter().filter(|base| mentions(base.name)).map(|base| (base.name, base)).collect()
    }

    /// Builds it with both, and compares.
    fn build(&self, variation: Variation, bases: &[(&str, &Base)]) -> (Built, Vec<String>) {
        let directory = self.empty("world");
        cases::run(Command::new("cp").arg("-a").arg(self.context.path("pristine/.")).arg(&directory));
        variation.change_files(self.case, &directory);
        self.case.pack(&directory);
        let addressed = |text: &String| text.replace("{server}", self.server);
        let options: Vec<String> = self.case.options.iter().map(addressed).collect();
        let job = Job {
            directory: &directory,
            server: self.server,
            context: self.case.context.as_ref().map(addressed),
            stdin: self.case.stdin.as_deref(),
            options: &options,
            bases: bases.to_vec(),
            changed_base: variation == Variation::ChangedBase,
        };
        let theirs = buildkit(self.context, self.daemon, &job);
        let ours = crossdock(self.context, &job, "cache", &[]);
        let mut found = compare::outcomes(&ours.outcome, &theirs.outcome, &self.proof.start);
        let count = |index: usize, more: usize| self.proof.counts[index].fetch_add(more, Ordering::Relaxed);
        count(0, 1);
        if variation != Variation::None && ours.outcome.is_ok() && theirs.outcome.is_ok() {
            count(1, ours.ran.len());
            count(2, theirs.ran.len());
            let more = ours.ran_more_than(&theirs);
            found.extend(more.iter().map(|step| format!("runs again, and not with BuildKit: {step}")));
            if !theirs.ran_more_than(&ours).is_empty()
                && let Ok(image) = &ours.outcome
            {
                found.extend(self.differs_from_scratch(&job, image));
            }
        }
        (ours, found)
    }

    /// An empty directory of this name.
    fn empty(&self, name: &str) -> PathBuf {
        let directory = self.context.path(name);
        drop(std::fs::remove_dir_all(&directory));
        std::fs::create_dir(&directory).unwrap();
        directory
    }

    /// How an image differs from one that is made without any cache.
    fn differs_from_scratch(&self, job: &Job<'_>, image: &image::Image) -> Vec<String> {
        let scratch = crossdock(self.context, job, "scratch", &["--no-cache"]);
        self.empty("scratch");
        match &scratch.outcome {
            // Times of files are no inputs of a step: a cached one has those of when it ran.
            Ok(scratch) => compare::images(image, scratch, &self.proof.start)
                .into_iter()
                .filter(|difference| !difference.contains(": mtime "))
                .map(|difference| {
                    format!("the cache gives another image: {}", difference.replace("BuildKit", "scratch"))
                })
                .collect(),
            Err(message) => vec![format!("only the cache makes it build: {message}")],
        }
    }
}
