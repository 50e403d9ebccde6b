//! The times that a step with a cache mount sees of its other files.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use super::{LONG_AGO, Runners, set_time};
use crate::support::oci::content;

/// Says when everything below `/src` was changed, and the same of a file in the mount before the step writes it and after.
const LOOK: &str = "FROM tools AS work
COPY src /src
ARG ROUND
RUN --mount=type=cache,target=/m set -e; cd /src; find . | while read -r path; do stat -c '%n %y' $path; done > /times; \
  touch /before; test ! -e /m/last || stat -c %y /m/last > /before; date > /m/last; stat -c %y /m/last > /after
RUN stat -c '%n %y' /src/a > /without
FROM scratch
COPY --from=work /times /before /after /without /
";

/// What a step saw.
struct Seen {
    /// By path.
    times: BTreeMap<String, String>,
    /// Newer than what the last step left in the mount.
    newer: Vec<String>,
    /// By a step without a cache mount, of `a`.
    without: String,
}

fn look(runners: &Runners, runner: &str, options: &[&str]) -> Seen {
    let tree = runners.result(runners.build(runner, LOOK).args(options));
    let text = |path: &str| content(&tree, path).trim().to_owned();
    // Written so that what is later in time is later by the alphabet.
    let (before, after) = (text("before"), text("after"));
    let times = text("times");
    let times: BTreeMap<_, _> = times.lines().map(|line| line.split_once(' ').unwrap()).collect();
    assert!(
        times.values().all(|time| **time <= *after),
        "later than what the step makes itself: {times:?} {after}"
    );
    let newer =
        times.iter().filter(|(_, time)| ***time > *before).map(|(path, _)| (*path).to_owned()).collect();
    let times = times.into_iter().map(|(path, time)| (path.to_owned(), time.to_owned())).collect();
    Seen { times, newer, without: text("without") }
}

/// A checkout, of which everything has one and the same old time.
fn check_out(runners: &Runners, files: &[(&str, &str)], time: u64) {
    drop(std::fs::remove_dir_all(runners.lab.path("src")));
    for (path, content) in files {
        runners.lab.file(&format!("src/{path}"), content);
        set_time(&runners.lab.path(&format!("src/{path}")), time);
    }
}

#[test]
fn what_is_as_it_was_seen_keeps_the_time_that_was_seen() {
    let runners = Runners::small();
    let first = [("a", "1"), ("b", "1"), ("d/e", "1"), ("d/f", "1")];
    check_out(&runners, &first, LONG_AGO);
    let start = look(&runners, "one", &[]);
    assert_eq!(start.times.len(), 6, "{:?}", start.times);

    // Nothing has changed but the times of the checkout.
    check_out(&runners, &first, LONG_AGO + 500);
    let same = look(&runners, "two", &[]);
    assert_eq!(same.times, start.times);
    assert_eq!(same.newer, [""; 0]);

    // One is another, with the oldest time of all; nobody else is touched, and no directory either.
    check_out(&runners, &[("a", "1"), ("b", "2"), ("d/e", "1"), ("d/f", "1")], LONG_AGO - 500);
    let changed = look(&runners, "three", &[]);
    assert_eq!(changed.newer, ["./b"]);
    for (path, time) in &start.times {
        assert_eq!(changed.times[path] == *time, path != "./b", "{path}: {time}, {}", changed.times[path]);
    }

    // What it was before is no less new.
    check_out(&runners, &first, LONG_AGO);
    let back = look(&runners, "four", &[]);
    assert_eq!(back.newer, ["./b"]);
    assert_ne!(back.times["./b"], start.times["./b"]);

    // A name more or less changes its directory, and what comes back is new.
    check_out(&runners, &first[..3], LONG_AGO);
    assert_eq!(look(&runners, "five", &[]).newer, ["./d"]);
    check_out(&runners, &first, LONG_AGO);
    let again = look(&runners, "one", &[]);
    assert_eq!(again.newer, ["./d", "./d/f"]);
    assert_ne!(again.times["./d/f"], start.times["./d/f"]);
    assert_eq!(again.times["./d/e"], start.times["./d/e"]);

    // So does another mode, and another kind.
    let mode = |mode| {
        let path = runners.lab.path("src/a");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o755);
    assert_eq!(look(&runners, "six", &[]).newer, ["./a"]);
    std::fs::remove_file(runners.lab.path("src/b")).unwrap();
    std::os::unix::fs::symlink("a", runners.lab.path("src/b")).unwrap();
    let newer = look(&runners, "seven", &[]).newer;
    // Whether it is another directory too is a matter of taste.
    assert_eq!(newer.iter().filter(|path| *path != ".").collect::<Vec<_>>(), ["./b"]);

    // Without a cache mount times are those of the image, whatever anybody saw.
    assert!(again.without.contains("2001-09-09"), "{}", again.without);
}

#[test]
fn times_can_be_left_as_they_are() {
    let runners = Runners::small();
    check_out(&runners, &[("a", "1"), ("b", "1")], LONG_AGO);
    look(&runners, "one", &[]);
    check_out(&runners, &[("a", "1"), ("b", "2")], LONG_AGO);
    let plain = look(&runners, "two", &["--no-content-times"]);
    assert!(plain.times["./b"].starts_with("2001-09-09"), "{:?}", plain.times);
    // The directory has the time of its checkout, in whole seconds.
    assert!(plain.newer.iter().all(|path| path == "."), "{:?}", plain.newer);
}

/// A mount that another runner has filled whose clock is years ahead: slower is allowed, stale is not.
#[test]
fn times_in_the_mount_that_are_ahead_do_no_harm() {
    let runners = Runners::small();
    runners.lab.file("Makefile", "/m/out: /src/in\n\tcp /src/in /m/out\n\ttouch -d @$(TIME) /m/out\n");
    let dockerfile = "FROM tools AS work\nCOPY Makefile /\nCOPY in /src/in\nARG ROUND\nARG TIME\n\
                      RUN --mount=type=cache,target=/m make -f /Makefile && cp /m/out /out\n\
                      FROM scratch\nCOPY --from=work /out /\n";
    let (ahead, behind) = ("1900000000", "1000000000");
    for (round, (content_now, time)) in
        [("A\n", ahead), ("B\n", ahead), ("A\n", behind), ("B\n", ahead), ("B\n", ahead), ("A\n", ahead)]
            .into_iter()
            .enumerate()
    {
        runners.lab.file("in", content_now);
        let build = runners.build(&format!("runner-{round}"), dockerfile);
        let tree = runners.result(build.option("--build-arg", format!("TIME={time}")));
        assert_eq!(content(&tree, "out"), content_now, "round {round}");
    }
}

/// Two mounts of one step, of which each was last used by another: what is new to one of them is new.
#[test]
fn a_step_with_two_mounts_goes_by_both() {
    let runners = Runners::small();
    runners.lab.file("Makefile", "$(O)/out: /src/in\n\t@echo MADE\n\t@cp /src/in $(O)/out\n");
    let dockerfile = |mounts: &str, make: &str| {
        format!(
            "FROM tools AS work\nCOPY Makefile /\nCOPY in /src/in\nARG ROUND\nRUN {mounts} {make}\n\
             FROM scratch\nCOPY --from=work /out /\n"
        )
    };
    let (one, two) = ("--mount=type=cache,target=/one", "--mount=type=cache,target=/two");
    let make = |name: &str| format!("make -s -f /Makefile O=/{name} > /dev/null && cp /{name}/out /out");
    let both = "make -s -f /Makefile O=/one >/dev/null && make -s -f /Makefile O=/two > /dev/null && cat /one/out /two/out > /out";
    let build = |runner: &str, text: &str, dockerfile: &str| {
        runners.lab.file("in", text);
        set_time(&runners.lab.path("in"), LONG_AGO);
        content(&runners.result(runners.build(runner, dockerfile)), "out")
    };
    assert_eq!(build("a", "1", &dockerfile(one, &make("one"))), "1");
    assert_eq!(build("b", "2", &dockerfile(two, &make("two"))), "2");
    let mounts = format!("{one} {two}");
    assert_eq!(build("c", "2", &dockerfile(&mounts, both)), "22");
    assert_eq!(build("d", "1", &dockerfile(one, &make("one"))), "1");
    assert_eq!(build("e", "2", &dockerfile(&mounts, both)), "22");
    assert_eq!(build("f", "1", &dockerfile(&mounts, both)), "11");
}

/// A header that a step makes comes from the cache, with the time of long ago, over objects that are newer.
#[test]
fn a_step_from_the_cache_over_a_newer_mount_is_not_stale() {
    let runners = Runners::small();
    runners.lab.file("Makefile", "/m/out: /made\n\tcat /made > /m/out\n");
    let dockerfile = "FROM tools AS work\nCOPY Makefile /\nCOPY in /in\nRUN sed 's/^/made from /' /in > /made\n\
                      ARG ROUND\nRUN --mount=type=cache,target=/m make -f /Makefile && cp /m/out /out\n\
                      FROM scratch\nCOPY --from=work /out /\n";
    for (round, text) in ["A", "B", "A", "B", "A"].into_iter().enumerate() {
        runners.lab.file("in", format!("{text}\n"));
        // In turn, so that the step that makes the header has been done by somebody.
        let runner = if round % 2 == 0 { "one" } else { "two" };
        let tree = runners.result(runners.build(runner, dockerfile));
        assert_eq!(content(&tree, "out"), format!("made from {text}\n"), "round {round}");
    }
}
