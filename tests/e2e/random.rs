//! `cached == uncached`: random files, random Dockerfiles, random edits. After each edit the build that may use all
//! caches must give the same files as one that starts from nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::buildkit::BuildKit;
use crate::support::chance::{Chance, rounds};
use crate::support::lab::Lab;
use crate::support::oci::{Tree, tar_tree};

/// Few names, so that steps meet: they overwrite, remove, link and replace each other's files.
const NAMES: &[&str] = &["a", "b", "a/b", "b/a", "a/b/c", "c", "c/c"];

/// The build context and the Dockerfile.
#[derive(Debug, Clone)]
struct World {
    /// Content and mode by path below `files/`.
    files: BTreeMap<String, (String, u32)>,
    /// The steps of the first stage, then of the second.
    steps: [Vec<String>; 2],
}

impl World {
    fn new(chance: &mut Chance) -> Self {
        let mut world = Self { files: BTreeMap::new(), steps: [Vec::new(), Vec::new()] };
        for _ in 0..4 {
            world.set_file(chance);
        }
        for stage in 0..2 {
            for _ in 0..4 {
                world.steps[stage].push(step(chance));
            }
        }
        world
    }

    /// Adds or changes a file; what stands in its way goes.
    fn set_file(&mut self, chance: &mut Chance) {
        let path = (*chance.of(NAMES)).to_owned();
        let below = format!("{path}/");
        self.files.retain(|known, _| !known.starts_with(&below) && !path.starts_with(&format!("{known}/")));
        // From few contents and modes, so that edits are sometimes taken back.
        let content = format!("content {}\n", chance.below(4)).repeat(1 + chance.index(40));
        self.files.insert(path, (content, *chance.of(&[0o644, 0o600, 0o755])));
    }

    fn edit(&mut self, chance: &mut Chance) {
        let stage = &mut self.steps[chance.index(2)];
        let position = chance.index(stage.len() + 1);
        match chance.below(7) {
            0 | 1 => self.set_file(chance),
            2 if self.files.len() > 1 => {
                let gone = self.files.keys().nth(chance.index(self.files.len())).unwrap().clone();
                self.files.remove(&gone);
            }
            3 if stage.len() > 1 => drop(stage.remove(position.min(stage.len() - 1))),
            4 if stage.len() > 1 => {
                let last = stage.len() - 1;
                stage.swap(position.min(last), last);
            }
            5 => stage.insert(position, step(chance)),
            // Nothing but the times of the files, which are written anew in any case.
            _ => {}
        }
    }

    fn write(&self, lab: &Lab) {
        let directory = lab.path("files");
        if directory.exists() {
            std::fs::remove_dir_all(&directory).unwrap();
        }
        std::fs::create_dir(&directory).unwrap();
        for (path, (content, mode)) in &self.files {
            lab.file(&format!("files/{path}"), content);
            std::fs::set_permissions(
                lab.path(&format!("files/{path}")),
                std::fs::Permissions::from_mode(*mode),
            )
            .unwrap();
        }
    }

    fn dockerfile(&self) -> String {
        let mut text = String::from("FROM busybox AS first\nWORKDIR /w\n");
        for step in &self.steps[0] {
            writeln!(text, "{step}").unwrap();
        }
        text.push_str("FROM busybox\nWORKDIR /w\nCOPY --from=first /w /from-first\n");
        for step in &self.steps[1] {
            writeln!(text, "{step}").unwrap();
        }
        text
    }
}

/// One instruction. What it does depends on nothing but the files that it finds and itself; a command that cannot do
/// what it is told leaves things as they are.
fn step(chance: &mut Chance) -> String {
    let (one, two, number) = (*chance.of(NAMES), *chance.of(NAMES), chance.below(5));
    let parent = one.rsplit_once('/').map_or(".", |(parent, _)| parent);
    let run = |command: String| format!("RUN ({command}) 2>/dev/null; true");
    match chance.below(20) {
        0 | 1 => run(format!("mkdir -p {parent}; echo {number} > {one}")),
        2 => run(format!("echo {number} >> {one}")),
        3 => run(format!("rm -rf {one}")),
        4 => run(format!("rm -rf {one}; mkdir -p {one}; echo {number} > {one}/c")),
        5 => run(format!("mv {one} {two}")),
        6 => run(format!("ln {one} {two}")),
        7 => run(format!("ln -sfn {one} {two}")),
        8 => run(format!("chmod 7{number}5 {one}")),
        9 => run(format!("chown -R {number}:5{number} {one}")),
        10 => run(format!("cp -a {one} {two}")),
        11 => run("find . | sort > /tmp/1; find . -type f | sort | xargs sha256sum > /tmp/2; mv /tmp/1 listing; mv /tmp/2 sums".to_owned()),
        12 => run("cat a b c > all; stat -c '%n %F %a %u %g' a b c a/b >> all".to_owned()),
        13 => run(format!("mkdir -p {one}; truncate -s 300000 {one}/sparse; mkfifo {two}.fifo")),
        14 => format!("COPY files /w/copied-{number}"),
        15 => "COPY files/ /w/".to_owned(),
        16 => format!("COPY --chown={number} --chmod=7{number}4 files /w/owned/{one}"),
        17 => format!("ENV NUMBER={number}\nRUN echo $NUMBER > number-$NUMBER"),
        18 => format!("WORKDIR /w/{one}\nRUN pwd > where; ls -A > what\nWORKDIR /w"),
        _ => run(format!("touch -d @{number} {one}; echo x > temporary; rm temporary")),
    }
}

/// Builds; the files of the result, or nothing if the build fails by its own decision (COPY onto something else).
fn build(lab: &Lab, dockerfile: &str, local: &str, shared: Option<&str>, options: &[&str]) -> Option<Tree> {
    let tar = lab.context.path("result.tar");
    let mut build = lab
        .build(dockerfile)
        .args(options)
        .env("CROSSDOCK_LOCAL", lab.context.path(local))
        .option_path("--output", "type=tar,dest=", &tar);
    if let Some(shared) = shared {
        build = build.env("CROSSDOCK_CACHE", format!("file://{}", lab.context.path(shared).display()));
    }
    let output = build.output();
    assert!(output.status.code().is_some_and(|code| code != 101), "died\n{output}");
    assert!(!output.stderr().contains("panicked at"), "panicked\n{output}");
    if !output.status.success() {
        // Only by the Dockerfile's own fault: a sandbox that does not work, say, has another exit code.
        assert_eq!(output.status.code(), Some(1), "{output}");
        return None;
    }
    Some(made_files(&tar))
}

/// The base image's own files are the same in all of this.
fn made_files(tar: &Path) -> Tree {
    let mut tree = tar_tree(tar);
    tree.retain(|path, _| path == "w" || path.starts_with("w/") || path.starts_with("from-first"));
    tree
}

/// Fails the test unless two results are the same, and says where they differ.
#[track_caller]
fn assert_same(one: (&str, &Option<Tree>), other: (&str, &Option<Tree>), about: impl FnOnce() -> String) {
    if one.1 == other.1 {
        return;
    }
    let (Some(first), Some(second)) = (one.1, other.1) else {
        let failed = if one.1.is_none() { one.0 } else { other.0 };
        panic!("only the {failed} build failed\n{}", about());
    };
    let differ: Vec<_> = first
        .keys()
        .chain(second.keys())
        .filter(|path| first.get(*path) != second.get(*path))
        .map(|path| {
            format!("{path}\n  {} {:?}\n  {} {:?}", one.0, first.get(path), other.0, second.get(path))
        })
        .collect();
    panic!("{}\n{}", differ.join("\n"), about());
}

#[test]
fn cached_builds_equal_uncached_builds() {
    let mut chance = Chance::new("random builds");
    for _ in 0..rounds(3) {
        let lab = Lab::new();
        let mut world = World::new(&mut chance);
        for edit in 0..4 {
            world.write(&lab);
            let dockerfile = world.dockerfile();
            // Two runners in turn, so that each finds some of its work done by itself and some by the other.
            let local = *chance.of(&["one", "two"]);
            let cached = build(&lab, &dockerfile, local, Some("shared"), &[]);
            let fresh = format!("fresh-{edit}");
            let uncached = build(&lab, &dockerfile, &fresh, None, &["--no-cache"]);
            // Its place is wanted for the next; the test's own directory goes in any case.
            drop(std::fs::remove_dir_all(lab.context.path(&fresh)));
            assert_same(("cached", &cached), ("uncached", &uncached), || format!("{dockerfile}\n{world:#?}"));
            world.edit(&mut chance);
        }
    }
}

/// The same random builds, done by BuildKit: it decides what a Dockerfile means. Only where it is there.
#[test]
fn builds_equal_those_of_buildkit() {
    let lab = Lab::new();
    let Some(buildkit) = BuildKit::start(&lab.context) else { return };
    let mut chance = Chance::new("builds like BuildKit's");
    let tar = lab.context.path("buildkit.tar");
    for _ in 0..rounds(5) {
        let world = World::new(&mut chance);
        world.write(&lab);
        let dockerfile = world.dockerfile();
        let ours = build(&lab, &dockerfile, "local", None, &[]);
        let output = buildkit.build(&lab.context, &lab.path(""), &tar);
        let theirs = output.status.success().then(|| made_files(&tar));
        assert_same(("our", &ours), ("BuildKit's", &theirs), || format!("{dockerfile}\n{output}"));
    }
}
