//! Where others' read sets went wrong: each case is a step, and another tree below it. What the cache makes of it has to be
//! what a build without any makes, and the step runs again exactly if it could have seen the difference.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::support::base;
use crate::support::lab::Lab;
use crate::support::oci::{self, TarBuilder};
use crate::traced::{difference, mapper, outcome, tree_of};

/// A stage in `/w`: what is done before the step, in the first build and in the second one; the step; and whether it runs
/// again.
struct Case {
    name: &'static str,
    before: &'static str,
    after: &'static str,
    /// Lines between the two, such as `USER`.
    lines: &'static str,
    /// Options of the step, in the first build and in the second one.
    options: [&'static str; 2],
    step: &'static str,
    runs: bool,
}

const fn case(
    name: &'static str,
    before: &'static str,
    after: &'static str,
    step: &'static str,
    runs: bool,
) -> Case {
    Case { name, before, after, lines: "", options: [""; 2], step, runs }
}

impl Case {
    const fn with(self, lines: &'static str) -> Self {
        Self { lines, ..self }
    }

    const fn options(self, first: &'static str, second: &'static str) -> Self {
        Self { options: [first, second], ..self }
    }
}

const RUNS: bool = true;
const CACHED: bool = false;

const CASES: &[Case] = &[
    // Hard links in the tree below.
    case("another-link", "echo x > a; ln a b", "echo x > a; ln a c", "cat a > out", RUNS),
    case("no-link-any-more", "echo x > a; ln a b", "echo x > a; cp a b", "stat -c %h a > out", RUNS),
    case(
        "link-chmod",
        "echo x > a; ln a b; echo 1 > u",
        "echo x > a; ln a b; echo 2 > u",
        "chmod 600 a",
        CACHED,
    ),
    case(
        "link-append",
        "echo x > a; ln a b; echo 1 > u",
        "echo x > a; ln a b; echo 2 > u",
        "echo y >> a",
        CACHED,
    ),
    case("link-append-alone", "echo x > a; ln a b", "echo x > a; cp a b", "echo y >> a", RUNS),
    case("link-of-lower", "echo x > a; echo 1 > u", "echo x > a; echo 2 > u", "ln a b; ln a c", CACHED),
    case(
        "link-removed",
        "echo x > a; ln a b; ln a c",
        "echo x > a; ln a b",
        "rm a; stat -c %h b > out",
        RUNS,
    ),
    // Directories that are copied up as somebody's parents.
    case("parent-mode", "mkdir -p d/e; chmod 700 d", "mkdir -p d/e; chmod 711 d", "echo n > d/e/n", RUNS),
    case("parent-owner", "mkdir -p d/e; chown 5:6 d", "mkdir -p d/e; chown 5:7 d", "echo n > d/e/n", RUNS),
    case("parent-attribute", "mkdir -p d/e", "mkdir -p d/e; mapper set d 1", "echo n > d/e/n", RUNS),
    case(
        "sibling",
        "mkdir -p d/e; echo 1 > d/u",
        "mkdir -p d/e d/x; echo 2 > d/u; echo 3 > d/v",
        "echo n > d/e/n; chmod 700 d/e",
        CACHED,
    ),
    case(
        "directory-chmod",
        "mkdir d; echo 1 > d/a",
        "mkdir d; echo 2 > d/a; echo 3 > d/b",
        "chmod 700 d",
        CACHED,
    ),
    case(
        "directory-chown",
        "mkdir d; echo 1 > d/a",
        "mkdir d; echo 2 > d/a; echo 3 > d/b",
        "chown 3:4 d",
        CACHED,
    ),
    case("directory-attribute", "mkdir d", "mkdir d; echo 3 > d/b", "mapper set d 2", CACHED),
    case("directory-time", "mkdir d", "mkdir -m 700 d", "touch -d @100 d", RUNS),
    case("directory-time-only", "mkdir d; echo 1 > d/u", "mkdir d; echo 2 > d/u", "touch -d @100 d", CACHED),
    // Removals.
    case(
        "opaque",
        "mkdir d; echo 1 > d/a",
        "mkdir d; echo 1 > d/a; echo 2 > d/b",
        "rm -r d; mkdir d; echo n > d/n",
        RUNS,
    ),
    case(
        "opaque-content",
        "mkdir d; echo 1 > d/a",
        "mkdir d; echo 2 > d/a",
        "rm -r d; mkdir d; echo n > d/n",
        CACHED,
    ),
    case("removed-is-gone", "echo x > f", ":", "rm -f f", RUNS),
    case("removed-is-other", "echo 1 > f", "echo 2 > f", "rm -f f", CACHED),
    case("removed-is-directory", "echo 1 > f", "mkdir f", "rm -f f || true", RUNS),
    case("removed-beside", "mkdir d; echo 1 > d/a", "mkdir d; echo 1 > d/a; echo 2 > d/b", "rm d/a", CACHED),
    case("directory-not-empty", "mkdir d", "mkdir d; echo 1 > d/a", "rmdir d || true", RUNS),
    case(
        "file-to-directory",
        "echo 1 > f; echo 1 > u",
        "echo 1 > f; echo 2 > u",
        "rm f; mkdir f; echo n > f/n",
        CACHED,
    ),
    case("made-anew", "echo 1 > a; rm a; echo 2 > a", "echo 2 > a", "cat a > out", CACHED),
    case("absent", ":", "echo is > f", "test -e f || echo made > f", RUNS),
    case("absent-directory", ":", "mkdir -m 700 d; echo 1 > d/a", "mkdir -p d; echo n > d/n", RUNS),
    // Renames.
    case(
        "rename-directory",
        "mkdir -p d/s; echo 1 > d/s/b",
        "mkdir -p d/s; echo 1 > d/s/b; echo 2 > d/s/c",
        "mv d e",
        RUNS,
    ),
    case(
        "rename-directory-same",
        "mkdir -p d; echo 1 > d/b; echo 1 > u",
        "mkdir -p d; echo 1 > d/b; echo 2 > u",
        "mv d e",
        CACHED,
    ),
    case("rename-onto", "echo 1 > a; echo 2 > b", "echo 1 > a", "mv a b", RUNS),
    case("rename-onto-other", "echo 1 > a; echo 2 > b", "echo 1 > a; echo 3 > b", "mv a b", CACHED),
    case("rename-into", "mkdir d; echo 1 > a", "mkdir d; echo 1 > a; echo 2 > d/x", "mv a d/", CACHED),
    // Symbolic links.
    case(
        "link-to-directory",
        "mkdir t; echo 1 > t/x; ln -s t l",
        "mkdir t l; echo 1 > t/x; echo 2 > l/x",
        "cat l/x > out",
        RUNS,
    ),
    case(
        "link-elsewhere",
        "echo 1 > a; echo 2 > b; ln -s a l",
        "echo 1 > a; echo 2 > b; ln -s b l",
        "cat l > out",
        RUNS,
    ),
    case(
        "link-beside",
        "mkdir r; echo 1 > r/x; ln -s r l",
        "mkdir r; echo 1 > r/x; echo 2 > r/y; ln -s r l",
        "cat l/x > out",
        CACHED,
    ),
    case(
        "link-to-nothing",
        "ln -s /w/t l",
        "ln -s /w/t l; echo 1 > t",
        "cat l > out || echo none > out",
        RUNS,
    ),
    case(
        "link-written-through",
        "echo 1 > t; ln -s t l; echo 1 > u",
        "echo 1 > t; ln -s t l; echo 2 > u",
        "echo 3 > l",
        CACHED,
    ),
    // Whole trees.
    case(
        "copy-all",
        "mkdir d; echo 1 > d/a; echo 2 > d/b",
        "mkdir d; echo 1 > d/a; echo 2 > d/b; chmod 600 d/b",
        "cp -a d copy",
        RUNS,
    ),
    case(
        "copy-all-unread",
        "mkdir d; echo 1 > d/a; echo 1 > u",
        "mkdir d; echo 1 > d/a; echo 2 > u",
        "cp -a d copy",
        CACHED,
    ),
    case(
        "tar",
        "mkdir d o; echo 1 > d/a",
        "mkdir d o; echo 1 > d/a; mkdir d/new",
        "tar cf - d | tar xf - -C o",
        RUNS,
    ),
    case(
        "deep-change",
        "mkdir -p d/e; echo 1 > d/e/a",
        "mkdir -p d/e; echo 2 > d/e/a; echo 3 > d/e/b",
        "ls > out; ls d >> out",
        CACHED,
    ),
    case("deep-names", "mkdir -p d/e", "mkdir -p d/e/f", "find d > out", RUNS),
    case("kind-in-listing", "mkdir -p d/e", "mkdir d; echo 1 > d/e", "ls -p d > out", RUNS),
    // Paths that lead nowhere.
    case("not-a-directory", "echo 1 > a", "mkdir a; echo 1 > a/x", "cat a/x > out || echo none > out", RUNS),
    case("up-again", "mkdir d; echo 1 > a", "echo 1 > a", "cat d/../a > out || echo none > out", RUNS),
    // Programs.
    case(
        "interpreter",
        "printf '#!/bin/sh\necho one\n' > int; printf '#!/w/int\n' > s; chmod +x int s",
        "printf '#!/bin/sh\necho two\n' > int; printf '#!/w/int\n' > s; chmod +x int s",
        "./s > out",
        RUNS,
    ),
    case(
        "interpreter-appears",
        "printf '#!/w/int\n' > s; chmod +x s",
        "printf '#!/bin/sh\necho two\n' > int; printf '#!/w/int\n' > s; chmod +x int s",
        "./s > out || echo none > out",
        RUNS,
    ),
    case(
        "earlier-on-path",
        "mkdir one two; printf '#!/bin/sh\necho two\n' > two/tool; chmod +x two/tool",
        "mkdir one two; printf '#!/bin/sh\necho two\n' > two/tool; printf '#!/bin/sh\necho one\n' > one/tool; chmod +x */tool",
        "PATH=/w/none:/w/one:/w/two:$PATH tool > out",
        RUNS,
    ),
    case(
        "later-on-path",
        "mkdir one two; printf '#!/bin/sh\necho one\n' > one/tool; chmod +x one/tool",
        "mkdir one two; printf '#!/bin/sh\necho one\n' > one/tool; printf '#!/bin/sh\necho two\n' > two/tool; chmod +x */tool",
        "PATH=/w/one:/w/two:$PATH tool > out",
        CACHED,
    ),
    case(
        "shell",
        "printf '#!/bin/sh\nshift; eval \"$1\"; echo one > by\n' > sh; chmod +x sh",
        "printf '#!/bin/sh\nshift; eval \"$1\"; echo two > by\n' > sh; chmod +x sh",
        "echo done > out",
        RUNS,
    )
    .with("SHELL [\"/w/sh\", \"-c\"]"),
    // What the executor looks up.
    case("home-of-user", ":", "sed -i s,/home/app,/home/other, /etc/passwd", "echo $HOME > out", RUNS)
        .with("USER app"),
    case("groups-of-user", ":", "echo more:x:77:app >> /etc/group", "id -G > out", RUNS).with("USER app"),
    case("not-of-user", "echo 1 > /etc/other", "echo 2 > /etc/other", "id > out", CACHED).with("USER app"),
    case(
        "working-directory-is-missing",
        ":",
        "mkdir -m 700 x; echo 1 > x/a",
        "pwd > /w/out; ls >> /w/out",
        RUNS,
    )
    .with("WORKDIR /w/x\nRUN if [ -e a ]; then :; else rmdir /w/x; fi"),
    case("mount-point", ":", "mkdir m; echo 1 > m/a", "ls m > out", RUNS)
        .options("--mount=type=tmpfs,target=/w/m", "--mount=type=tmpfs,target=/w/m"),
    case("mount-point-is-covered", "mkdir m; echo 1 > m/a", "mkdir m; echo 2 > m/b", "ls m > out", CACHED)
        .options("--mount=type=tmpfs,target=/w/m", "--mount=type=tmpfs,target=/w/m"),
    case(
        "cache-mount",
        "echo 1 > a; echo 1 > u",
        "echo 1 > a; echo 2 > u",
        "cat a > out; date >> /c/log",
        CACHED,
    )
    .options("--mount=type=cache,target=/c", "--mount=type=cache,target=/c"),
    case("cache-mount-reads", "echo 1 > a", "echo 2 > a", "cat a > out; date >> /c/log", RUNS)
        .options("--mount=type=cache,target=/c", "--mount=type=cache,target=/c"),
    case("mounts-swapped", ":", ":", "ls p q > out", RUNS).options(
        "--mount=type=bind,from=scratch,target=/w/p --mount=type=bind,from=tools,target=/w/q",
        "--mount=type=bind,from=tools,target=/w/p --mount=type=bind,from=scratch,target=/w/q",
    ),
    case("mount-link", ":", ":", "cat p/x > out", RUNS).options(
        "--mount=type=bind,from=one,source=/m/link,target=/w/p",
        "--mount=type=bind,from=two,source=/m/link,target=/w/p",
    ),
    case("mount-written", ":", ":", "echo more >> p/y; rm p/x; ls p > out", CACHED).options(
        "--mount=type=bind,from=one,source=/m/b,target=/w/p,rw",
        "--mount=type=bind,from=two,source=/m/b,target=/w/p,rw",
    ),
    // Permissions.
    case(
        "may-not-enter",
        "mkdir s; echo x > s/f; chmod 700 s",
        "mkdir s; echo x > s/f; chmod 755 s",
        "cat s/f > out || echo denied > out",
        RUNS,
    )
    .with("USER app"),
    case(
        "may-not-list",
        "mkdir s; echo x > s/f; chmod 711 s",
        "mkdir s; echo x > s/f; chmod 755 s",
        "ls s > out || echo denied > out",
        RUNS,
    )
    .with("USER app"),
    case(
        "may-not-read",
        "echo x > f; chmod 600 f",
        "echo x > f; chmod 644 f",
        "cat f > out || echo denied > out",
        RUNS,
    )
    .with("USER app"),
    case(
        "may-not-read-it",
        "echo x > f; chmod 600 f",
        "echo y > f; chmod 600 f",
        "cat f > out || echo denied > out",
        CACHED,
    )
    .with("USER app"),
    // Contents.
    case("empty", ": > a", "echo > a", "cat a > out", RUNS),
    case("empty-or-not", ": > a", "echo 1 > a", "test -s a && echo yes > out || echo no > out", RUNS),
    case("append", "echo 1 > a", "echo 2 > a", "echo 3 >> a", RUNS),
    case("truncate", "echo 1 > a", "echo 2 > a", "echo 3 > a", CACHED),
    case("truncate-mode", "echo 1 > a", "echo 1 > a; chmod 600 a", "echo 3 > a", RUNS),
    case(
        "mapped-write",
        "echo 12345 > a; echo 1 > u",
        "echo 12345 > a; echo 2 > u",
        "mapper write a 3",
        CACHED,
    ),
    case("mapped-write-of-other", "echo 12345 > a", "echo 12346 > a", "mapper write a 3", RUNS),
    case(
        "large-read-in-part",
        "head -c 3000000 /dev/zero > a; echo 1 >> a",
        "head -c 3000000 /dev/zero > a; echo 2 >> a",
        "head -c 10 a > out",
        RUNS,
    ),
    case("holes", "truncate -s 1000000 a", "head -c 1000000 /dev/zero > a", "cp a out", CACHED),
    case("holes-end", "truncate -s 1000000 a", "truncate -s 999999 a; printf x >> a", "cp a out", RUNS),
    // Nodes of other kinds.
    case("device", "mknod n c 1 3", "mknod n c 1 5", "stat -c '%F %t %T' n > out", RUNS),
    case("pipe", "mkfifo p", "echo > p", "test -p p && echo pipe > out || echo none > out", RUNS),
    case("pipe-copied", "mkfifo p; echo 1 > u", "mkfifo p; echo 2 > u", "chmod 600 p; chown 4 p", CACHED),
    case(
        "many-names",
        "mkdir d; for i in $(seq 1500); do : > d/a-rather-long-name-$i; done",
        "mkdir d; for i in $(seq 1501); do : > d/a-rather-long-name-$i; done",
        "ls d | wc -l > out",
        RUNS,
    ),
    case(
        "many-names-and-one",
        "mkdir d; for i in $(seq 1500); do : > d/a-rather-long-name-$i; done",
        "mkdir d; for i in $(seq 1501); do : > d/a-rather-long-name-$i; done",
        "echo 1 > d/a-rather-long-name-7",
        CACHED,
    ),
    // Extended attributes, in a tree that has none before.
    case(
        "attribute",
        "echo 1 > a",
        "echo 1 > a; mapper set a 1",
        "mapper get a > out || echo none > out",
        RUNS,
    ),
    case(
        "attribute-elsewhere",
        "echo 1 > a; echo 1 > b",
        "echo 1 > a; echo 1 > b; mapper set b 1",
        "mapper get a > out || echo none > out",
        CACHED,
    ),
    case("attribute-copied", "echo 1 > a; mapper set a 1", "echo 1 > a; mapper set a 2", "echo 2 >> a", RUNS),
    case(
        "capability",
        "echo 1 > a; echo 1 > u; mapper cap a",
        "echo 1 > a; echo 2 > u; mapper cap a",
        "mv a b",
        CACHED,
    ),
    case("capability-is-new", "echo 1 > a", "echo 1 > a; mapper cap a", "mv a b", RUNS),
    case(
        "rename-over-directory",
        "mkdir d",
        "mkdir d; echo 1 > d/x",
        "mkdir n; echo 2 > n/y; mv -T n d || true",
        RUNS,
    ),
    case(
        "rename-over-directory-same",
        "mkdir d; echo 1 > u",
        "mkdir d; echo 2 > u",
        "mkdir n; echo 2 > n/y; mv -T n d || true",
        CACHED,
    ),
    case(
        "swapped",
        "mkdir d; echo 1 > d/a; echo 1 > u",
        "mkdir d; echo 1 > d/a; echo 2 > u",
        "mv d e; mkdir d; mv e/a d/b; rmdir e",
        CACHED,
    ),
    case(
        "removed-below-and-made",
        "mkdir -p d/e; echo 1 > d/e/a",
        "mkdir -p d/e; echo 1 > d/e/a; echo 2 > d/f",
        "rm -r d/e; echo n > d/e",
        CACHED,
    ),
    case(
        "link-out-of-removed",
        "mkdir d; echo 1 > d/a; ln d/a b",
        "mkdir d; echo 1 > d/a; ln d/a b; echo 1 > d/c",
        "ln d/a x; rm -r d",
        RUNS,
    ),
];

fn dockerfile(after: bool) -> String {
    let mut text = "FROM busybox AS tools\nCOPY bin /bin\nRUN mkdir -m 777 /w\nWORKDIR /w\n".to_owned();
    for (stage, link) in [("one", "a"), ("two", "b")] {
        let more = if stage == "two" { "; echo new > /m/b/z/n; echo two > /m/other" } else { "" };
        writeln!(
            text,
            "FROM tools AS {stage}\nRUN mkdir -p /m/a /m/b/z; echo a > /m/a/x; echo b > /m/b/x; echo y > /m/b/y; ln -s {link} /m/link{more}"
        )
        .unwrap();
    }
    for case in CASES {
        let setup = if after { case.after } else { case.before }.replace('\n', "\\n");
        let options = case.options[usize::from(after)];
        writeln!(
            text,
            "FROM tools AS {name}\nRUN {setup}\n{lines}\nRUN {options} : {name}: ; {step}",
            name = case.name,
            lines = case.lines,
            step = case.step,
        )
        .unwrap();
    }
    text.push_str("FROM tools\n");
    for Case { name, .. } in CASES {
        writeln!(text, "COPY --from={name} /w /result/{name}").unwrap();
    }
    text
}

#[test]
fn a_step_runs_again_exactly_if_it_could_see_the_difference() {
    let lab = Lab::new();
    std::fs::create_dir_all(lab.path("bin")).unwrap();
    std::fs::copy(mapper(), lab.path("bin/mapper")).unwrap();
    let build = |local: &str, after: bool| {
        let run = lab.build(&dockerfile(after)).env("CROSSDOCK_LOCAL", lab.context.path(local));
        run.timeout(Duration::from_mins(15))
    };
    build("one", false).success();
    let (cached, output) = tree_of(build("one", true), &lab);
    let (uncached, fresh) = tree_of(build("fresh", true).args(["--no-cache", "--no-trace"]), &lab);
    assert!(cached.is_some(), "{output}");
    assert!(uncached.is_some(), "{fresh}");
    assert!(cached == uncached, "{}", difference(cached.as_ref(), uncached.as_ref()));
    let mut wrong = String::new();
    for case in CASES {
        let outcome = outcome(&output, &format!(": {}: ;", case.name));
        if outcome.starts_with("RUN because") != case.runs {
            writeln!(wrong, "{}: {outcome}", case.name).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// What the dynamic loader looks for before it finds a library, and what it finds it by.
#[test]
fn the_loaders_lookups_count() {
    let lab = Lab::new();
    let library = "$(ls -d /lib/*-linux-gnu)/libc.so.6";
    let cases = [
        ("unrelated", "true", "grep -c /w/lib /proc/self/maps > out; true", false),
        ("library", "cp LIBRARY lib/", "grep -c /w/lib /proc/self/maps > out; true", true),
        (
            "preload",
            "cp LIBRARY lib/preload.so; echo /w/lib/preload.so > /etc/ld.so.preload",
            "true > out",
            true,
        ),
        (
            "loader-cache",
            "echo /w/lib > /etc/ld.so.conf.d/0.conf; cp LIBRARY lib/; ldconfig",
            "date -d @0 > out",
            true,
        ),
    ];
    let dockerfile = |after: bool| {
        let mut text = "FROM debian AS tools\nWORKDIR /w\nRUN mkdir lib\n".to_owned();
        for (name, setup, step, _) in cases {
            let setup =
                if after { setup.replace("LIBRARY", library) } else { "echo first > /first".to_owned() };
            let path = if name == "library" { "LD_LIBRARY_PATH=/w/lib" } else { "X=y" };
            writeln!(text, "FROM tools AS {name}\nRUN {setup}\nENV {path}\nRUN : {name}: ; {step}").unwrap();
        }
        text.push_str("FROM tools\n");
        for (name, ..) in cases {
            writeln!(text, "COPY --from={name} /w/out /result/{name}").unwrap();
        }
        text
    };
    let build = |local: &str, after: bool| {
        let run = lab.build(&dockerfile(after)).env("CROSSDOCK_LOCAL", lab.context.path(local));
        let run = run.option_path("--build-context", "debian=oci-layout://", base::debian());
        run.timeout(Duration::from_mins(15))
    };
    build("one", false).success();
    let (cached, output) = tree_of(build("one", true), &lab);
    let (uncached, fresh) = tree_of(build("fresh", true).args(["--no-cache", "--no-trace"]), &lab);
    assert!(cached.is_some() && uncached.is_some(), "{output}{fresh}");
    assert!(cached == uncached, "{}", difference(cached.as_ref(), uncached.as_ref()));
    for (name, _, _, runs) in cases {
        let outcome = outcome(&output, &format!(": {name}: ;"));
        assert_eq!(outcome.starts_with("RUN because"), runs, "{name}: {outcome}");
    }
}

/// Steps that are written in other ways, and what lies between them and their base.
#[test]
fn heredocs_linked_copies_and_triggers_are_traced() {
    let lab = Lab::new();
    let layout = |name: &str, unread: &str, read: &str| {
        let triggers = ["RUN cat /read > /triggered"];
        let config = json!({"Env": ["PATH=/bin"], "OnBuild": triggers});
        let busybox = std::fs::read("/bin/busybox").unwrap();
        let mut tar = TarBuilder::new().directory("bin", 0o755).file("bin/busybox", 0o755, &busybox);
        for tool in ["sh", "cat"] {
            tar = tar.symlink(&format!("bin/{tool}"), "busybox");
        }
        let files =
            TarBuilder::new().file("unread", 0o644, unread.as_bytes()).file("read", 0o644, read.as_bytes());
        let directory = lab.context.path(name);
        oci::write_layout(&directory, &[&tar.finish(), &files.finish()], &config);
        directory
    };
    let bases = [layout("first", "1", "1"), layout("second", "2", "1"), layout("third", "2", "2")];
    let dockerfile = |linked: &str| {
        format!(
            "FROM trigger\nCOPY --link <<HERE /linked\n{linked}\nHERE\nRUN <<HERE\ncat /read > /shell\nHERE\n\
             RUN <<HERE\n#!/bin/sh\ncat /read > /script\nHERE\nRUN cat /linked > /last\n"
        )
    };
    let build = |base: &Path, linked: &str, local: &str| {
        let run = lab.build(&dockerfile(linked)).env("CROSSDOCK_LOCAL", lab.context.path(local));
        let run = run.option_path("--build-context", "trigger=oci-layout://", base);
        let run = if local == "fresh" { run.args(["--no-cache", "--no-trace"]) } else { run };
        let (tree, output) = tree_of(run, &lab);
        let ran = output.stderr().lines().filter(|line| line.contains(" RUN because: ")).count();
        (tree.unwrap_or_else(|| panic!("{output}")), ran, output)
    };
    for (base, linked, expected) in [(0, "1", 5), (1, "1", 0), (1, "2", 2), (2, "2", 3)] {
        let (tree, ran, output) = build(&bases[base], linked, "one");
        assert_eq!(tree, build(&bases[base], linked, "fresh").0, "{output}");
        assert_eq!(ran, expected, "{output}");
    }
}
