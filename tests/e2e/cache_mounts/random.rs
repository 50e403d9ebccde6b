//! A small project built in random circumstances: edits, times, runners that take turns, snapshots that are lost, builds
//! that fail or are killed, two stages with one mount. Whatever happened before, a build gives what it gives from nothing.

#![allow(clippy::print_stdout, reason = "what was tried is said aloud")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{LONG_AGO, Runners, set_time, told};
use crate::support::chance::{Chance, rounds};
use crate::support::oci::{content, tar_tree};
use crate::support::{Output, Run};

/// Builds of one sequence.
const STEPS: usize = 12;

/// Sequences of a long run.
const SEQUENCES_LONG: u64 = 2000;

/// Sequences of an ordinary one.
const SEQUENCES: u64 = 24;

const SOURCES: &[&str] = &["a.c", "b.c", "c.c", "sub/a.c", "sub/b.c", "sub/d.c"];
const HEADERS: &[&str] = &["h.h", "i.h", "sub/j.h"];

/// Made by a step from `k.in`.
const MADE: &str = "k.h";

/// In ten years or so.
const FAR_AHEAD: u64 = 2_100_000_000;

const MAKEFILE: &str = "sources := $(sort $(wildcard *.c */*.c))
objects := $(sources:%.c=/obj/%.o)
/obj/app: $(objects) /obj/list
\t@echo LD
\t@cat /dev/null $(objects) > $@
/obj/list: always
\t@echo $(objects) | cmp -s - $@ || echo $(objects) > $@
/obj/%.o: %.c
\t@echo CC $<
\t@mkdir -p $(@D) && awk -f /compile.awk $< $@ $(@:.o=.d)
.PHONY: always
.DELETE_ON_ERROR:
-include $(objects:.o=.d)
";

/// The step that builds. Where a header is a link to another one, the time of the link counts for `make -L`.
const MAKE: &str = "{ make -L -C /src -f /Makefile > /said 2>&1 || { cat /said; false; }; }";

/// What a path of the project is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum File {
    Text {
        includes: BTreeSet<&'static str>,
        value: u64,
        broken: bool,
    },
    /// A header that is another header by a symbolic link.
    Link(&'static str),
}

/// How the stages of a build are placed to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// There is only one.
    Alone,
    /// The second has other sources, at the same paths and with the same mount.
    Beside,
    /// The second starts from the first, has some other sources and builds again.
    After,
}

/// Sources by path.
type Files = BTreeMap<&'static str, File>;

#[derive(Debug, Clone)]
struct World {
    files: [Files; 2],
    /// In what the header is made from.
    made: u64,
    shape: Shape,
    /// Files that were changed long ago, or will be, by their own account.
    times: BTreeMap<String, u64>,
    executable: bool,
}

impl World {
    fn new(chance: &mut Chance) -> Self {
        let mut world = Self {
            files: [Files::new(), Files::new()],
            made: 0,
            shape: Shape::Alone,
            times: BTreeMap::new(),
            executable: false,
        };
        for name in HEADERS.iter().chain(&SOURCES[..4]) {
            world.files[0].insert(name, text(name, chance));
        }
        world.files[1].insert("a.c", text("a.c", chance));
        world
    }

    /// Changes something, and says what.
    fn edit(&mut self, chance: &mut Chance) -> String {
        let stage = usize::from(self.shape != Shape::Alone && chance.below(2) == 1);
        let name = if chance.below(5) < 3 { *chance.of(SOURCES) } else { *chance.of(HEADERS) };
        let other = if SOURCES.contains(&name) { *chance.of(SOURCES) } else { *chance.of(HEADERS) };
        let files = &mut self.files[stage];
        match chance.below(14) {
            0..=3 => {
                let new = text(name, chance);
                files.insert(name, new);
                format!("{stage}: {name} is written")
            }
            4 => {
                files.remove(name);
                // Mostly those who want it notice.
                if chance.below(4) != 0 {
                    forget(files, name);
                }
                format!("{stage}: {name} is removed")
            }
            5 => {
                if let Some(file) = files.remove(name) {
                    files.insert(other, file);
                    for file in files.values_mut() {
                        if let File::Text { includes, .. } = file
                            && includes.remove(name)
                            && other != name
                        {
                            includes.insert(other);
                        }
                    }
                }
                format!("{stage}: {name} becomes {other}")
            }
            6 => {
                let (one, two) = (files.remove(name), files.remove(other));
                files.extend(one.map(|file| (other, file)));
                files.extend(two.map(|file| (name, file)));
                format!("{stage}: {name} and {other} change places")
            }
            7 if HEADERS.contains(&name) && name != other => {
                files.insert(name, File::Link(other));
                format!("{stage}: {name} is a link to {other}")
            }
            8 => {
                if let Some(File::Text { broken, .. }) = files.get_mut(name) {
                    *broken = true;
                }
                format!("{stage}: {name} is broken")
            }
            9 => {
                self.made = chance.below(3);
                format!("{MADE} is made from {}", self.made)
            }
            10 => {
                self.shape = *chance.of(&[Shape::Alone, Shape::Beside, Shape::After]);
                format!("the stages are {:?}", self.shape)
            }
            11 => {
                self.executable = !self.executable;
                format!("executable: {}", self.executable)
            }
            _ => "nothing changes".to_owned(),
        }
    }

    /// What the last edit changed gets an old or a future time, or that of its writing again.
    fn shift(&mut self, chance: &mut Chance, before: &Self) {
        for (stage, directory) in ["one", "two"].into_iter().enumerate() {
            for (path, file) in &self.files[stage] {
                if before.files[stage].get(path) != Some(file) || chance.below(10) == 0 {
                    let path = format!("{directory}/{path}");
                    match chance.below(4) {
                        0 => self.times.remove(&path),
                        1 => self.times.insert(path, FAR_AHEAD + chance.below(2)),
                        _ => self.times.insert(path, LONG_AGO + chance.below(2)),
                    };
                }
            }
        }
    }

    /// Takes back what makes builds fail.
    fn mend(&mut self) {
        for files in &mut self.files {
            let there: BTreeSet<_> = files.keys().copied().collect();
            for file in files.values_mut() {
                match file {
                    File::Text { includes, broken, .. } => {
                        includes.retain(|name| *name == MADE || there.contains(name));
                        *broken = false;
                    }
                    File::Link(_) => {
                        *file = File::Text { includes: BTreeSet::new(), value: 0, broken: false }
                    }
                }
            }
        }
    }

    /// A new checkout.
    fn write(&self, runners: &Runners) {
        let mut files = BTreeMap::new();
        files.insert("Makefile".to_owned(), MAKEFILE.to_owned());
        files.insert("compile.awk".to_owned(), include_str!("compile.awk").to_owned());
        files.insert("k.in".to_owned(), format!("{}\n", self.made));
        for (stage, directory) in ["one", "two"].into_iter().enumerate() {
            files
                .insert(format!("{directory}/README"), "A directory is there, whatever it has.\n".to_owned());
            for (path, file) in &self.files[stage] {
                files.insert(format!("{directory}/{path}"), self.shown(stage, file));
            }
        }
        runners.check_out(&files);
        for (stage, directory) in ["one", "two"].into_iter().enumerate() {
            for (path, file) in &self.files[stage] {
                let place = runners.lab.path(&format!("{directory}/{path}"));
                if let (File::Link(target), true) = (file, self.has_links()) {
                    std::fs::remove_file(&place).unwrap();
                    let up = if path.contains('/') { "../" } else { "" };
                    std::os::unix::fs::symlink(format!("{up}{target}"), &place).unwrap();
                } else if let Some(time) = self.times.get(&format!("{directory}/{path}")) {
                    set_time(&place, *time);
                }
                if self.executable && is_source(path) {
                    make_executable(&place);
                }
            }
        }
    }

    /// What a second stage that copies over a link makes of it is another story.
    fn has_links(&self) -> bool {
        self.shape != Shape::After
    }

    /// The text of a file; that of a link is of no account, unless it stands for one.
    fn shown(&self, stage: usize, file: &File) -> String {
        match file {
            File::Text { includes, value, broken } => {
                let lines = includes.iter().map(|name| format!("#include \"{name}\""));
                let end = format!("value {value}\n{}", if *broken { "#error\n" } else { "" });
                lines.chain([end]).collect::<Vec<_>>().join("\n")
            }
            File::Link(target) => {
                // More links than there are headers go round in a circle.
                let mut found = self.files[stage].get(target);
                for _ in HEADERS {
                    if let Some(File::Link(next)) = found {
                        found = self.files[stage].get(next);
                    }
                }
                let text = found.filter(|file| matches!(file, File::Text { .. }));
                text.map_or_else(|| "#error\n".to_owned(), |file| self.shown(stage, file))
            }
        }
    }

    fn dockerfile(&self) -> String {
        let first = "COPY Makefile compile.awk /\nCOPY k.in /src/\nRUN sed 's/^/made /' /src/k.in > /src/k.h\nARG ROUND\n";
        let mount = |sharing: &str| {
            format!(
                "RUN --mount=type=cache,target=/obj{sharing} {MAKE} && mkdir -p /out && cp /said /obj/app /out/\n"
            )
        };
        let one = |sharing: &str| format!("FROM tools AS one\nCOPY one /src\n{first}{}", mount(sharing));
        let end = "FROM scratch\nCOPY --from=one /out /one\n";
        let both = format!("{end}COPY --from=two /out /two\n");
        match self.shape {
            Shape::Alone => one("") + end,
            Shape::Beside => {
                let locked = ",sharing=locked";
                one(locked) + &format!("FROM tools AS two\nCOPY two /src\n{first}{}{both}", mount(locked))
            }
            Shape::After => {
                one("") + &format!("FROM one AS two\nCOPY two /src\nARG ROUND\n{}{both}", mount(""))
            }
        }
    }

    /// What the build gives, by the name of the stage; nothing if it is to fail.
    fn expected(&self) -> Option<BTreeMap<&'static str, String>> {
        let stages: &[&str] = if self.shape == Shape::Alone { &["one"] } else { &["one", "two"] };
        stages.iter().map(|stage| Some((*stage, self.program(&self.texts(stage))?))).collect()
    }

    /// What a stage compiles.
    fn texts(&self, stage: &str) -> BTreeMap<&'static str, String> {
        let of = |stage: usize| {
            let files = self.files[stage].iter();
            files.map(|(path, file)| (*path, self.shown(stage, file))).collect::<BTreeMap<_, _>>()
        };
        match (stage, self.shape) {
            ("one", _) => of(0),
            (_, Shape::After) => of(0).into_iter().chain(of(1)).collect(),
            _ => of(1),
        }
    }

    fn program(&self, texts: &BTreeMap<&'static str, String>) -> Option<String> {
        let mut program = String::new();
        for path in texts.keys().filter(|path| is_source(path)) {
            self.compile(texts, path, &mut BTreeSet::new(), &mut program)?;
        }
        Some(program)
    }

    /// What `compile.awk` makes of a file.
    fn compile(
        &self,
        texts: &BTreeMap<&'static str, String>,
        path: &str,
        taken: &mut BTreeSet<String>,
        object: &mut String,
    ) -> Option<()> {
        if !taken.insert(path.to_owned()) {
            return Some(());
        }
        let made = format!("made {}\n", self.made);
        // Read through a link, a file is not known as the one that the link leads to: it can be taken twice.
        let text = if path == MADE { &made } else { texts.get(path)? };
        for line in text.lines() {
            if line == "#error" {
                return None;
            }
            match line.strip_prefix("#include ") {
                Some(name) => self.compile(texts, name.trim_matches('"'), taken, object)?,
                None => *object += &format!("{line}\n"),
            }
        }
        Some(())
    }
}

/// Of few texts, all of one length, so that edits are sometimes taken back and no size gives a change away.
fn text(name: &str, chance: &mut Chance) -> File {
    let mut includes = BTreeSet::new();
    for header in HEADERS.iter().chain(&[MADE]) {
        if *header != name && chance.below(3) == 0 {
            includes.insert(*header);
        }
    }
    File::Text { includes, value: chance.below(3), broken: false }
}

fn is_source(path: &str) -> bool {
    SOURCES.contains(&path)
}

/// Nobody includes it any more.
fn forget(files: &mut Files, name: &str) {
    for file in files.values_mut() {
        if let File::Text { includes, .. } = file {
            includes.remove(name);
        }
    }
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// What was done, for those who want to know what it took.
#[derive(Debug, Default)]
struct Tally {
    builds: usize,
    failed: usize,
    killed: usize,
    lost: usize,
    /// Of the builds that succeeded.
    sources: usize,
    compiled: usize,
    /// What went wrong first.
    wrong: Option<String>,
}

/// One sequence. It ends with the first result that is wrong.
fn sequence(chance: &mut Chance, options: &[&str]) -> Tally {
    let runners = Runners::small();
    let mut world = World::new(chance);
    let mut tally = Tally::default();
    let mut history = Vec::new();
    let mut is_mended = true;
    for step in 0..STEPS {
        if step > 0 {
            let before = world.clone();
            for _ in 0..=chance.below(2) {
                history.push(world.edit(chance));
            }
            if chance.below(2) == 0 {
                world.shift(chance, &before);
            }
        }
        if world.expected().is_none() && (!is_mended || chance.below(3) == 0) {
            world.mend();
            history.push("mended".to_owned());
        }
        is_mended = world.expected().is_some();
        if chance.below(8) == 0 {
            history.push(lose(&runners, chance));
            tally.lost += 1;
        }
        world.write(&runners);
        let runner = *chance.of(&["one", "two", "three"]);
        let dockerfile = world.dockerfile();
        // Sometimes what an earlier build has recorded may be taken.
        if chance.below(5) == 0 {
            runners.round.set(runners.round.get() - u32::from(runners.round.get() > 0));
        }
        let build = runners.build(runner, &dockerfile).args(options);
        if chance.below(7) == 0 {
            let after = chance.below(600);
            history.push(format!("{step}: {runner} is killed after {after} ms"));
            let mut child = build.spawn();
            std::thread::sleep(Duration::from_millis(after));
            // It may have ended.
            drop(child.kill());
            child.wait().unwrap();
            tally.killed += 1;
            continue;
        }
        history.push(format!("{step}: {runner} builds"));
        tally.builds += 1;
        let wrong = check(&runners, &world, build, &mut tally);
        if let Some((what, output)) = wrong {
            tally.wrong = Some(format!("{what}\n{}\n{dockerfile}\n{world:#?}\n{output}", history.join("\n")));
            return tally;
        }
    }
    tally
}

/// Builds, and says what is wrong with the result.
fn check(runners: &Runners, world: &World, build: Run, tally: &mut Tally) -> Option<(String, Output)> {
    let tar = runners.lab.context.path("result.tar");
    let output = build.option_path("--output", "type=tar,dest=", &tar).output();
    let Some(expected) = world.expected() else {
        tally.failed += 1;
        let is_told = output.status.code() == Some(1) && output.stderr().contains("error: not ");
        return (!is_told).then(|| ("not the failure of the compiler".to_owned(), output));
    };
    if !output.status.success() {
        return Some(("failed".to_owned(), output));
    }
    let tree = tar_tree(&tar);
    for (stage, program) in expected {
        let made = content(&tree, &format!("{stage}/app"));
        tally.compiled += told(&content(&tree, &format!("{stage}/said")), "CC").len();
        tally.sources += world.texts(stage).keys().filter(|path| is_source(path)).count();
        if made != program {
            return Some((format!("stage {stage} made\n{made}and not\n{program}"), output));
        }
    }
    None
}

/// Snapshots are lost or damaged: on the server, or on a runner together with all that it has.
fn lose(runners: &Runners, chance: &mut Chance) -> String {
    let what = *chance.of(&["a runner", "the server", "the server's blobs", "the server's blobs, in part"]);
    if what == "a runner" {
        let runner = *chance.of(&["one", "two", "three"]);
        drop(std::fs::remove_dir_all(runners.lab.context.path(runner)));
        return format!("lost: {runner}");
    }
    let files = walkdir::WalkDir::new(runners.stored()).sort_by_file_name().into_iter().flatten();
    for file in files.filter(|entry| entry.file_type().is_file()) {
        let is_blob = file.path().components().any(|part| part.as_os_str() == "blobs");
        if what == "the server" || (what == "the server's blobs" && is_blob) {
            std::fs::remove_file(file.path()).unwrap();
        } else if is_blob && chance.below(2) == 0 {
            // Another file at the same place: somebody may be reading this one.
            let length = std::fs::metadata(file.path()).unwrap().len();
            std::fs::remove_file(file.path()).unwrap();
            std::fs::write(file.path(), vec![b'x'; usize::try_from(length).unwrap()]).unwrap();
        }
    }
    format!("lost: {what}")
}

/// So many sequences, two at a time, or fewer if something is wrong.
fn sequences(what: &str, count: u64, options: &[&str]) -> Tally {
    let mut chance = Chance::new(what);
    let chances: Vec<_> = (0..count).map(|_| chance.fork()).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut sum = Tally::default();
        while let (number, None) = (next.fetch_add(1, Ordering::Relaxed), &sum.wrong) {
            let Some(chance) = chances.get(number) else { break };
            let one = sequence(&mut chance.clone(), options);
            if one.wrong.is_some() {
                next.store(chances.len(), Ordering::Relaxed);
            }
            sum = sum.and(one);
        }
        sum
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let one = work();
        one.and(other.join().unwrap())
    })
}

impl Tally {
    fn and(self, other: Self) -> Self {
        Self {
            builds: self.builds + other.builds,
            failed: self.failed + other.failed,
            killed: self.killed + other.killed,
            lost: self.lost + other.lost,
            sources: self.sources + other.sources,
            compiled: self.compiled + other.compiled,
            wrong: self.wrong.or(other.wrong),
        }
    }
}

#[test]
fn whatever_happens_a_build_gives_what_it_gives_from_nothing() {
    let is_long = std::env::var_os("CROSSDOCK_TEST_LONG").is_some();
    let count = if is_long { rounds(SEQUENCES).max(SEQUENCES_LONG) } else { rounds(SEQUENCES) };
    let tally = sequences("random work in a cache mount", count, &[]);
    assert!(tally.wrong.is_none(), "{}", tally.wrong.unwrap_or_default());
    println!("{count} sequences: {tally:?}");
    // Or else the mounts are always empty, and nothing is proved.
    assert!(tally.compiled < tally.sources * 3 / 4, "{tally:?}");
}

/// And the test would find out if it were not so: with times as they are, the same sequences give something stale.
#[test]
fn without_times_that_follow_content_something_is_stale() {
    let tally = sequences("times as they are", rounds(SEQUENCES), &["--no-content-times"]);
    let wrong = tally.wrong.as_ref();
    let wrong = wrong.unwrap_or_else(|| panic!("nothing was stale: {tally:?}"));
    assert!(wrong.starts_with("stage "), "{wrong}");
    println!("found after {} builds", tally.builds);
}

/// What the test expects is what a build gives that has nothing but an empty directory for the objects of each step.
#[test]
fn the_expected_program_is_that_of_a_build_from_scratch() {
    let mut chance = Chance::new("builds from scratch");
    let runners = Runners::small();
    let mut world = World::new(&mut chance);
    let mut tally = Tally::default();
    for round in 0..12 {
        world.write(&runners);
        let dockerfile =
            world.dockerfile().replace(",sharing=locked", "").replace("type=cache", "type=tmpfs");
        let build = runners.alone(&format!("scratch-{round}"), &dockerfile);
        if let Some((wrong, output)) = check(&runners, &world, build, &mut tally) {
            panic!("{wrong}\n{world:#?}\n{output}");
        }
        if world.expected().is_none() && chance.below(2) == 0 {
            world.mend();
        }
        for _ in 0..3 {
            println!("{}", world.edit(&mut chance));
        }
    }
}
