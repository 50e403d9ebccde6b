//! A step runs again only if something that it read has changed: by hand, and at random.

#![allow(clippy::print_stdout, reason = "what was tried is said aloud")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::support::chance::{Chance, rounds};
use crate::support::lab::Lab;
use crate::support::oci::{Tree, tar_tree};
use crate::support::{Output, Run};

/// Runs a build that has to succeed and keeps no result.
fn build(lab: &Lab, dockerfile: &str) -> Output {
    lab.build(dockerfile).success()
}

/// How the step that does this ended, in the plain log: `CACHED …` or `RUN because: …`.
#[track_caller]
pub(crate) fn outcome(output: &Output, step: &str) -> String {
    let log = output.stderr();
    let line = log.lines().find(|line| line.starts_with('#') && line.contains(step));
    let number = line.unwrap_or_else(|| panic!("no step `{step}`: {output}")).split(' ').next().unwrap();
    let is_outcome = |line: &&str| {
        let rest = line.strip_prefix(number).and_then(|rest| rest.strip_prefix(' '));
        rest.is_some_and(|rest| rest.starts_with("CACHED") || rest.starts_with("RUN because"))
    };
    let line = log.lines().find(is_outcome).unwrap_or_else(|| panic!("no outcome of `{step}`: {output}"));
    line.split_once(' ').unwrap().1.to_owned()
}

/// One step, looked at with several changes of what is below it.
struct Watched {
    lab: Lab,
    dockerfile: String,
    step: &'static str,
}

impl Watched {
    fn new(files: &[(&str, &str)], step: &'static str) -> Self {
        let lab = Lab::new();
        for (path, content) in files {
            lab.file(path, content);
        }
        let dockerfile = format!("FROM busybox\nCOPY . /src\nRUN {step}\n");
        let watched = Self { lab, dockerfile, step };
        assert_eq!(watched.outcome(), "RUN because: first time");
        watched
    }

    fn outcome(&self) -> String {
        outcome(&build(&self.lab, &self.dockerfile), self.step)
    }

    #[track_caller]
    fn is_cached(&self, after: &str) {
        let outcome = self.outcome();
        assert!(outcome.starts_with("CACHED"), "{after}: {outcome}");
    }

    #[track_caller]
    fn runs(&self, reason: &str) {
        assert_eq!(self.outcome(), format!("RUN because: {reason}"));
    }
}

#[test]
fn what_was_not_read_does_not_count() {
    let step = "cat /src/read /src/dir/x > /out";
    let files = [("read", "1"), ("README", "1"), ("dir/x", "1"), ("dir/y", "1"), (".git/HEAD", "1")];
    let watched = Watched::new(&files, step);
    watched.lab.file("README", "2").file("dir/y", "2").file("dir/z", "new").file(".git/HEAD", "2");
    watched.is_cached("other files changed");
    watched.lab.file("read", "2");
    watched.runs("/src/read, which cat read, changed");
    watched.lab.file("read", "1").file("README", "3");
    watched.is_cached("back to what it was, with another file beside it");
    std::fs::set_permissions(watched.lab.path("dir"), std::fs::Permissions::from_mode(0o711)).unwrap();
    watched.runs("the mode, owner or kind of /src/dir changed");
}

#[test]
fn lookups_that_failed_count() {
    let watched = Watched::new(&[("x", "1")], "cat /src/first /src/x > /out 2>/dev/null || true");
    watched.lab.file("second", "1");
    watched.is_cached("something that it did not look for");
    watched.lab.file("first", "1");
    watched.runs("/src/first, which it looked for, is there now");
    std::fs::remove_file(watched.lab.path("x")).unwrap();
    watched.runs("/src/x is gone");
}

#[test]
fn listings_count_and_say_no_more_than_names() {
    let watched = Watched::new(&[("d/a", "1"), ("d/b", "1")], "ls /src/d > /out");
    watched.lab.file("d/a", "2");
    watched.is_cached("a content changed");
    watched.lab.file("d/c", "1");
    watched.runs("the names in /src/d, which ls listed, changed");
    std::fs::remove_file(watched.lab.path("d/c")).unwrap();
    watched.lab.file("e", "1");
    watched.is_cached("back again");
}

/// What a step removes is an input: whether it is there.
#[test]
fn what_is_removed_and_replaced_counts() {
    let watched = Watched::new(&[("d/a", "1"), ("d/b", "1"), ("e", "1")], "rm -r /src/d && mkdir /src/d");
    watched.lab.file("e", "2");
    watched.is_cached("something else");
    watched.lab.file("d/c", "1");
    let reason = watched.outcome();
    assert!(reason.contains("the names in /src/d"), "{reason}");
    let tree = watched.lab.image(&watched.dockerfile).tree();
    assert!(tree.contains_key("src/d") && !tree.contains_key("src/d/c"), "the opaque directory hides it");
}

#[test]
fn mounts_count_by_what_is_read_of_them() {
    let lab = Lab::new();
    lab.file("a", "1").file("b", "1");
    let dockerfile = "FROM busybox AS other\nCOPY . /made\nFROM busybox\n\
        RUN --mount=type=bind,target=/here cat /here/a > /one\n\
        RUN --mount=type=bind,from=other,source=/made,target=/made,rw cat /made/a > /two; touch /made/new\n";
    let both = |output: &Output| [outcome(output, "cat /here/a"), outcome(output, "cat /made/a")];
    build(&lab, dockerfile);
    lab.file("b", "2");
    assert!(both(&build(&lab, dockerfile)).iter().all(|outcome| outcome.starts_with("CACHED")));
    lab.file("a", "2");
    let outcomes = both(&build(&lab, dockerfile));
    assert_eq!(
        outcomes,
        ["/a, which cat read, changed", "/made/a, which cat read, changed"]
            .map(|why| format!("RUN because: {why}"))
    );
    let tree = lab.image(dockerfile).tree();
    assert_eq!((&tree["one"].content[..], &tree["two"].content[..]), (&b"2"[..], &b"2"[..]));
    assert!(!tree.contains_key("made/new"));
}

/// A base image that is built anew with another file: only who reads it runs again.
#[test]
fn another_base_image_counts_by_what_is_read_of_it() {
    let lab = Lab::new();
    let dockerfile = |version: u32| {
        format!(
            "FROM busybox AS base\nRUN echo {version} > /version; echo same > /same\nFROM base\nRUN cat /same > /a\nRUN cat /version > /b\n"
        )
    };
    build(&lab, &dockerfile(1));
    let output = build(&lab, &dockerfile(2));
    assert!(outcome(&output, "cat /same").starts_with("CACHED"), "{output}");
    assert_eq!(outcome(&output, "cat /version"), "RUN because: /version, which cat read, changed");
}

#[test]
fn other_runners_find_what_was_read() {
    let lab = Lab::new();
    lab.file("read", "1").file("other", "1");
    let dockerfile = "FROM busybox\nCOPY . /src\nRUN cat /src/read > /out\nRUN cat /out > /again\n";
    let runner = |name: &str| {
        let shared = format!("file://{}", lab.context.path("shared").display());
        lab.build(dockerfile).env("CROSSDOCK_LOCAL", lab.context.path(name)).env("CROSSDOCK_CACHE", shared)
    };
    runner("one").success();
    lab.file("other", "2");
    let output = runner("two").success();
    assert!(outcome(&output, "cat /src/read").starts_with("CACHED (file://"), "{output}");
    // The image has the layers of both runners.
    let image = lab.image_of(runner("three"));
    assert_eq!(&image.tree()["again"].content[..], b"1");
    assert_eq!(&image.tree()["src/other"].content[..], b"2");
}

#[test]
fn tracing_can_be_switched_off() {
    let lab = Lab::new();
    lab.file("read", "1").file("other", "1");
    let dockerfile = "FROM busybox\nCOPY . /src\nRUN cat /src/read > /out\n";
    let run = |options: &[&str], dockerfile: &str| {
        outcome(&lab.build(dockerfile).args(options).success(), "cat /src/read")
    };
    run(&["--no-trace"], dockerfile);
    lab.file("other", "2");
    let runs = |outcome: String| {
        assert!(
            outcome.contains("/src/other") && outcome.contains("changed in an earlier step"),
            "{outcome}"
        );
    };
    runs(run(&["--no-trace"], dockerfile));
    let one = dockerfile.replace("RUN", "# crossdock:no-trace\nRUN");
    lab.file("other", "3");
    runs(run(&[], &one));
    lab.file("other", "4");
    run(&[], dockerfile);
    lab.file("other", "5");
    assert!(run(&[], dockerfile).starts_with("CACHED"));
}

/// Few names, so that steps meet.
const NAMES: &[&str] = &["a", "b", "c", "d/a", "d/b", "d/e/a", "f/a", "f/b"];
const DIRECTORIES: &[&str] = &["d", "d/e", "f", "g"];

/// Compiled once: it reads and writes through memory.
pub(crate) fn mapper() -> &'static PathBuf {
    static MAPPER: OnceLock<PathBuf> = OnceLock::new();
    MAPPER.get_or_init(|| {
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/support/mapper.c");
        let program =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("mapper-{}", std::process::id()));
        let status = Command::new("cc").args(["-static", "-O1", "-o"]).arg(&program).arg(source).status();
        assert!(status.unwrap().success());
        program
    })
}

/// The build context and the Dockerfile.
#[derive(Debug, Clone)]
struct World {
    /// Content and mode by path.
    files: BTreeMap<String, (String, u32)>,
    steps: Vec<String>,
    /// In the base, below everything.
    base: u64,
}

impl World {
    fn new(chance: &mut Chance) -> Self {
        let mut world = Self { files: BTreeMap::new(), steps: Vec::new(), base: 0 };
        for _ in 0..6 {
            world.set_file(chance);
        }
        world.steps = (0..7).map(|_| step(chance)).collect();
        world
    }

    fn set_file(&mut self, chance: &mut Chance) {
        let path = if chance.below(12) == 0 { chance.of(DIRECTORIES) } else { chance.of(NAMES) };
        let path = (*path).to_owned();
        let below = format!("{path}/");
        self.files.retain(|known, _| !known.starts_with(&below) && !path.starts_with(&format!("{known}/")));
        let content = format!("echo {}\n", chance.below(4)).repeat(1 + chance.index(3));
        self.files.insert(path, (content, *chance.of(&[0o644, 0o755, 0o755, 0o600])));
    }

    fn edit(&mut self, chance: &mut Chance) {
        match chance.below(10) {
            0..=5 => self.set_file(chance),
            6 | 7 if self.files.len() > 1 => {
                let gone = self.files.keys().nth(chance.index(self.files.len())).unwrap().clone();
                self.files.remove(&gone);
            }
            8 => self.base = chance.below(3),
            _ => {
                let place = chance.index(self.steps.len());
                self.steps[place] = step(chance);
            }
        }
    }

    fn write(&self, lab: &Lab) {
        let directory = lab.path("files");
        if directory.exists() {
            std::fs::remove_dir_all(&directory).unwrap();
        }
        std::fs::create_dir_all(&directory).unwrap();
        for (path, (content, mode)) in &self.files {
            lab.file(&format!("files/{path}"), content);
            let permissions = std::fs::Permissions::from_mode(*mode);
            std::fs::set_permissions(lab.path(&format!("files/{path}")), permissions).unwrap();
        }
        std::fs::create_dir_all(lab.path("bin")).unwrap();
        std::fs::copy(mapper(), lab.path("bin/mapper")).unwrap();
    }

    fn dockerfile(&self) -> String {
        let mut text = format!(
            "FROM busybox AS base\nCOPY bin /bin\nRUN mkdir /w /w/base; echo {0} > /w/base/{0}; echo same > /w/base/same; echo {0} > /w/base/value\nFROM base\nWORKDIR /w\nCOPY files /w/\n",
            self.base
        );
        for step in &self.steps {
            writeln!(text, "{step}").unwrap();
        }
        text
    }
}

/// One step. It depends on nothing but the files that it looks at.
fn step(chance: &mut Chance) -> String {
    let (one, two) = (*chance.of(NAMES), *chance.of(NAMES));
    let (dir, other) = (*chance.of(DIRECTORIES), *chance.of(DIRECTORIES));
    let number = chance.below(5);
    let run = |command: String| format!("RUN ({command}) 2>/dev/null; true");
    match chance.below(32) {
        0 | 1 => run(format!("cat {one} {two} > r{number}")),
        2 => run(format!("wc -c < {one} > size{number}")),
        3 => run(format!("ls {dir} > names{number}")),
        4 => run(format!("ls -R {dir} > deep{number}")),
        5 => run(format!("test -e {one} && echo yes > is{number} || echo no > is{number}")),
        6 => run(format!("cat {one} || cat {two} > either{number}")),
        7 => run(format!("mkdir -p {dir}; echo {number} > {one}")),
        8 => run(format!("echo {number} >> {one}")),
        9 => run(format!("rm -f {one}")),
        10 => run(format!("rm -rf {dir}")),
        11 => run(format!("rm -rf {dir}; mkdir -p {dir}; echo {number} > {dir}/made")),
        12 => run(format!("mv {one} {two}")),
        13 => run(format!("mv {dir} {other}")),
        14 => run(format!("ln {one} {two}")),
        // A file that is appended to itself would have no end.
        15 => run(format!("ln {one} link{number}; head -c 64 {two} >> link{number}")),
        16 => run(format!("ln -sfn {one} sym{number}; cat sym{number} > through{number}")),
        17 => run(format!("ln -sfn {dir} to{number}; ls to{number}/ > listed{number}")),
        18 => run(format!("chmod 7{number}5 {one}")),
        19 => run(format!("chmod 75{number} {dir}")),
        20 => run(format!("chown {number}:3{number} {one} {dir}")),
        21 => run(format!("mapper read {one} > mapped{number}")),
        22 => run(format!("mapper write {one} {number}")),
        23 => run(format!("mapper set {one} {number}")),
        24 => run(format!("mapper get {one} > colour{number} || rm colour{number}")),
        25 => run(format!("./{one} > said{number}")),
        26 => run(format!(
            "printf '#!/w/{one}\\n' > script{number}; chmod +x script{number}; ./script{number} > by{number}"
        )),
        27 => run(format!("cp -a {dir} copy{number}")),
        28 => run("cat base/value base/1 > based".to_owned()),
        29 => run(format!("stat -c '%F %a %u %g %h' {one} {two} > stat{number}")),
        30 => run(format!("touch {one}; mkdir -p {dir}/n{number}; rmdir {dir}/n{number}")),
        _ => {
            let mounts = "--mount=type=bind,source=files,target=/m --mount=type=bind,from=base,source=/w/base,target=/b,rw";
            format!(
                "RUN {mounts} (cat /m/{one} /b/value > both{number}; ls /m/{dir} >> both{number}; rm /b/same) 2>/dev/null; true"
            )
        }
    }
}

pub(crate) fn tree_of(run: Run, lab: &Lab) -> (Option<Tree>, Output) {
    let tar = lab.context.path("result.tar");
    let output = run.option_path("--output", "type=tar,dest=", &tar).output();
    assert!(!output.stderr().contains("panicked at"), "{output}");
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(1), "{output}");
        return (None, output);
    }
    (Some(tar_tree(&tar)), output)
}

/// Steps that were taken from the cache although one before them was not.
fn traced_hits(output: &Output) -> usize {
    let log = output.stderr();
    let later = log.lines().skip_while(|line| !line.contains("RUN because"));
    later.filter(|line| line.starts_with('#') && line.contains(" CACHED")).count()
}

/// Random builds and edits: how many steps were built, how many were spared by tracing, and the first difference from
/// builds without any cache.
fn compare(name: &str, count: u64, blind: Option<&str>) -> (usize, usize, Option<String>) {
    let mut chance = Chance::new(name);
    let (mut steps, mut spared) = (0, 0);
    for _ in 0..count {
        let lab = Lab::new();
        let mut world = World::new(&mut chance);
        for edit in 0..6 {
            world.write(&lab);
            let dockerfile = world.dockerfile();
            let runner = *chance.of(&["one", "two"]);
            let shared = format!("file://{}", lab.context.path("shared").display());
            let build = |local: &str| {
                let run = lab.build(&dockerfile).env("CROSSDOCK_LOCAL", lab.context.path(local));
                match blind {
                    Some(blind) => run.env("CROSSDOCK_BLIND", blind),
                    None => run,
                }
            };
            let (cached, output) = tree_of(build(runner).env("CROSSDOCK_CACHE", shared), &lab);
            spared += traced_hits(&output);
            let fresh = format!("fresh-{edit}");
            let (uncached, _) = tree_of(build(&fresh).args(["--no-cache", "--no-trace"]), &lab);
            drop(std::fs::remove_dir_all(lab.context.path(&fresh)));
            steps += world.steps.len();
            if cached != uncached {
                let difference = difference(cached.as_ref(), uncached.as_ref());
                return (steps, spared, Some(format!("{difference}\n{dockerfile}\n{world:#?}\n{output}")));
            }
            world.edit(&mut chance);
        }
    }
    (steps, spared, None)
}

pub(crate) fn difference(cached: Option<&Tree>, uncached: Option<&Tree>) -> String {
    let (Some(cached), Some(uncached)) = (cached, uncached) else { return "one of them failed".to_owned() };
    let paths = cached.keys().chain(uncached.keys());
    let differ = paths.filter(|path| cached.get(*path) != uncached.get(*path));
    let show =
        |path| format!("{path}\n  cached   {:?}\n  uncached {:?}", cached.get(path), uncached.get(path));
    differ.map(show).collect::<Vec<_>>().join("\n")
}

/// Rounds that make ten thousand steps, of 42 in each.
const ROUNDS_LONG: u64 = 240;

/// Traced caching gives what no caching gives.
#[test]
fn traced_builds_equal_uncached_builds() {
    let is_long = std::env::var_os("CROSSDOCK_TEST_LONG").is_some();
    let count = if is_long { rounds(6).max(ROUNDS_LONG) } else { rounds(6) };
    let (steps, spared, difference) = compare("traced builds", count, None);
    println!("{steps} steps, {spared} of them spared by what they read");
    assert!(difference.is_none(), "{}", difference.unwrap_or_default());
    assert!(spared > steps / 20, "hardly any step was spared: {spared} of {steps}");
}

/// And the comparison would find out if it did not: with each rule of what is read left out, there is a difference.
#[test]
fn the_comparison_finds_every_rule_that_is_missing() {
    if std::env::var_os("CROSSDOCK_TEST_LONG").is_none() {
        println!("skipped: only with CROSSDOCK_TEST_LONG");
        return;
    }
    for rule in ["absent", "nodes", "directories", "content", "names", "mounts"] {
        let (steps, _, difference) = compare(rule, 60, Some(rule));
        assert!(difference.is_some(), "{steps} steps without the rule `{rule}`, and no difference");
        println!("{rule}: found after {steps} steps");
    }
}
