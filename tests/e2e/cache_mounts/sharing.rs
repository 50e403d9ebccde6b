//! Who sees what of a cache mount: steps at once, runners in turn and at once, scopes, and those who come after a failure.

use std::time::Duration;

use super::{Runners, wait_until};
use crate::support::Run;
use crate::support::aftermath::{assert_no_processes, marked_processes};
use crate::support::counting::Counting;
use crate::support::oci::content;

/// Two stages that do this at once, each with its own name in `$ME` and the other's in `$OTHER`. What each leaves in
/// `/out` is in the result by its name.
fn two_stages(step: &str) -> String {
    let stage =
        |me: &str, other: &str| format!("FROM tools AS {me}\nARG ROUND\nENV ME={me} OTHER={other}\n{step}\n");
    let copies = "FROM scratch\nCOPY --from=one /out /one\nCOPY --from=two /out /two\n";
    stage("one", "two") + &stage("two", "one") + copies
}

/// A part of a step that goes on when the step of the other stage is here too.
const MEET: &str = "touch /meet/$ROUND-$ME; n=0; until test -e /meet/$ROUND-$OTHER; do sleep 0.1; n=$((n+1)); test $n -lt 600; done";

/// One step that does this with the mount at `/m`, and leaves `/out`.
fn one_step(command: &str) -> String {
    one_step_with("target=/m", command)
}

fn one_step_with(mount: &str, command: &str) -> String {
    format!(
        "FROM tools AS work\nARG ROUND\nRUN --mount=type=cache,{mount} {command}\n\
         FROM scratch\nCOPY --from=work /out /\n"
    )
}

/// What the step leaves in `/out`.
#[track_caller]
fn out(runners: &Runners, build: Run) -> String {
    content(&runners.result(build), "out")
}

const LIST: &str = "ls -A /m > /out";

#[test]
fn steps_at_once_see_each_others_files() {
    let runners = Runners::small();
    let see = "RUN --mount=type=cache,target=/m set -e; touch /m/$ME; n=0; until test -e /m/$OTHER; do sleep 0.1; n=$((n+1)); test $n -lt 600; done; ls /m > /out";
    let tree = runners.result(runners.build("one", &two_stages(see)));
    assert_eq!((&*content(&tree, "one"), &*content(&tree, "two")), ("one\ntwo\n", "one\ntwo\n"));
    // What both have written is one mount.
    assert_eq!(out(&runners, runners.build("fresh", &one_step(LIST))), "one\ntwo\n");
    assert_eq!(out(&runners, runners.build("one", &one_step(LIST))), "one\ntwo\n");
}

#[test]
fn locked_mounts_are_used_by_one_step_after_the_other() {
    let runners = Runners::small();
    let step = "RUN --mount=type=cache,target=/m,sharing=locked echo \"$ME begins\" >> /m/log; sleep 1; echo \"$ME ends\" >> /m/log; cp /m/log /out";
    let whole = |log: &str, count: usize| {
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines.len(), 2 * count, "{log}");
        for pair in lines.chunks(2) {
            let name = pair[0].strip_suffix(" begins").unwrap_or_else(|| panic!("overlap: {log}"));
            assert_eq!(pair[1], format!("{name} ends"), "overlap: {log}");
        }
    };
    for (runner, before) in [("one", 0), ("fresh", 2)] {
        let tree = runners.result(runners.build(runner, &two_stages(step)));
        let mut logs = [content(&tree, "one"), content(&tree, "two")];
        logs.sort_by_key(String::len);
        whole(&logs[0], before + 1);
        whole(&logs[1], before + 2);
        assert!(logs[1].starts_with(&logs[0]), "the second goes on where the first ended: {logs:?}");
    }
}

#[test]
fn private_mounts_are_not_seen_by_steps_at_once() {
    let runners = Runners::small();
    let step = format!(
        "RUN --mount=type=cache,target=/meet --mount=type=cache,target=/m,sharing=private \
         set -e; echo $ME-$ROUND > /m/file; {MEET}; ls /m > /out; cat /m/file >> /out"
    );
    for (runner, round) in [("one", 1), ("one", 2), ("fresh", 3)] {
        let tree = runners.result(runners.build(runner, &two_stages(&step)));
        for name in ["one", "two"] {
            assert_eq!(content(&tree, name), format!("file\n{name}-{round}\n"));
        }
    }
}

/// Everything that a file system can have, as far as any user of a cache mount could notice.
pub(super) const MAKE: &str = r#"set -e
cd /m
mkdir -p a/b/empty full plain
printf 'a text\n' > a/text
printf 'a text\n' > full/same
: > full/nothing
head -c 300000 /dev/urandom > full/large
truncate -s 5000000 full/sparse
printf 'x' > 'full/a name'
printf 'x' > "$(printf 'full/\303\244 \377')"
printf 'set' > full/setuid; chmod 4755 full/setuid
printf 'own' > full/owned; chown 1000:50 full/owned; chmod 640 full/owned
chown 1000:1000 a/b; chmod 2770 a/b
chmod 1777 plain
chmod 000 full/nothing
ln -s text a/link; ln -s /nowhere/at/all full/dangling; chown -h 7:8 full/dangling
ln a/text full/hard; ln full/large full/large-too
mkfifo full/pipe
setfattr -n user.note -v 'a note' a/text
setfattr -n user.empty a/b
/usr/bin/touch -d '2001-02-03 04:05:06.123456789' full/same
/usr/bin/touch -h -d '1999-12-31 23:59:59' a/link
/usr/bin/touch -d '2020-01-01 00:00:00' plain
/usr/bin/touch -d '2002-02-02 02:02:02' a/b/empty
"#;

/// What runs later, on what a runner has found.
const CHANGE: &str = r"set -e
cd /m
rm -r a/b
rm full/hard
mv full/owned moved
rm full/nothing && mkdir full/nothing && touch full/nothing/now
rm -r plain && echo file > plain
echo more >> full/same
chmod 600 full/large-too
setfattr -x user.note a/text
ln -sf elsewhere a/link
mkdir -p new/deep && mv 'full/a name' new/deep/
/usr/bin/touch -d '2003-03-03 03:03:03.000000003' full/setuid
";

/// Tells all about the mount: names, kinds, modes, owners, sizes, times to the nanosecond, contents, links, attributes.
pub(super) const TELL: &str = r#"cd /m
find . | sort | while IFS= read -r path; do
  if test -L "$path"; then stat -c '%n %F %u %g %N %y' "$path"
  elif test -d "$path"; then stat -c '%n %F %a %u %g %y' "$path"
  else stat -c '%n %F %a %u %g %s %y' "$path"; fi
  if test -f "$path"; then sha256sum < "$path"; fi
  getfattr -h -d -m '^user' "$path" 2>/dev/null
done
test a/text -ef full/hard && echo "a/text is full/hard"
test full/large -ef full/large-too && echo "full/large is full/large-too"
true
"#;

#[test]
fn a_fresh_runner_finds_the_mount_as_it_was() {
    let runners = Runners::small();
    let step = |script: &str| {
        let file = format!("FROM tools AS work\nCOPY {script} tell /\nARG ROUND\n");
        let mount = "RUN --mount=type=cache,target=/m,mode=0751,uid=3,gid=4";
        let run = format!("{mount} sh /tell > /before && sh /{script} && sh /tell > /after\n");
        file + &run + "FROM scratch\nCOPY --from=work /before /after /\n"
    };
    for (name, script) in [("make", MAKE), ("change", CHANGE), ("tell", TELL), ("rest", "true\n")] {
        runners.lab.file(name, script);
    }
    let told = |runner: &str, script: &str| {
        let tree = runners.result(runners.build(runner, &step(script)));
        (content(&tree, "before"), content(&tree, "after"))
    };
    let (empty, made) = told("one", "make");
    assert!(empty.starts_with(". directory 751 3 4 ") && empty.lines().count() == 1, "{empty}");
    assert!(made.contains("a/text is full/hard") && made.contains("user.note"), "{made}");
    // On the same machine, on a fresh one, on one that came after it; then with changes.
    for runner in ["one", "two", "three"] {
        let (before, after) = told(runner, "rest");
        assert_same(&before, &made);
        assert_same(&after, &made);
    }
    let (before, changed) = told("three", "change");
    assert_same(&before, &made);
    for runner in ["three", "one", "four"] {
        assert_same(&told(runner, "rest").0, &changed);
    }
    runners.lab.context.verify_store(runners.stored());
}

/// Nothing in a mount is later than the step that left it: what comes next must be newer than everything there.
#[test]
fn a_time_in_the_future_is_brought_back() {
    let runners = Runners::small();
    let step = |command: &str| {
        format!(
            "FROM tools AS work\nCOPY source /\nARG ROUND\nRUN --mount=type=cache,target=/m {command}\n\
            FROM scratch\nCOPY --from=work /order /\n"
        )
    };
    runners.lab.file("source", "1");
    let make = step("cat /source > /order; /usr/bin/touch -d 2100-01-01 /m/made");
    assert_eq!(content(&runners.result(runners.build("one", &make)), "order"), "1");
    let look = step("if [ /source -nt /m/made ]; then echo newer; else echo older; fi > /order");
    assert_eq!(content(&runners.result(runners.build("two", &look)), "order"), "older\n");
    runners.lab.file("source", "2");
    assert_eq!(content(&runners.result(runners.build("three", &look)), "order"), "newer\n");
}

#[track_caller]
pub(super) fn assert_same(found: &str, expected: &str) {
    let differ: Vec<_> = found.lines().filter(|line| !expected.lines().any(|other| other == *line)).collect();
    assert!(found == expected, "differ: {differ:#?}\nfound\n{found}\nexpected\n{expected}");
}

#[test]
fn options_mean_the_same_on_every_runner() {
    let runners = Runners::small();
    runners.lab.file("seed/dir/file", "seed\n").file("other", "other\n");
    let dockerfile = "FROM tools AS seeds
COPY seed /seed
FROM tools AS work
ARG ROUND
RUN --mount=type=cache,target=/m echo a >> /m/log && cp /m/log /by-target
RUN --mount=type=cache,id=/m,target=/elsewhere echo b >> /elsewhere/log && cp /elsewhere/log /by-id
RUN --mount=type=cache,id=other,target=/m echo c >> /m/log && cp /m/log /other
RUN --mount=type=cache,target=/modes,mode=750,uid=1000,gid=50 stat -c '%a %u %g' /modes > /mode && chmod 700 /modes && chown 7:8 /modes
RUN --mount=type=cache,target=/modes,mode=750,uid=1000,gid=50 stat -c '%a %u %g' /modes >> /mode
RUN --mount=type=cache,target=/seeded,from=seeds,source=/seed/dir cat /seeded/file > /seeded-with && echo more >> /seeded/file
RUN --mount=type=cache,id=/m,target=/ro,readonly ! touch /ro/new 2>/dev/null && ls /ro > /read-only
FROM scratch
COPY --from=work /by-target /by-id /other /mode /seeded-with /read-only /
";
    for (round, runner) in ["one", "two", "three", "one"].into_iter().enumerate() {
        let tree = runners.result(runners.build(runner, dockerfile));
        let before = "a\nb\n".repeat(round);
        assert_eq!(content(&tree, "by-target"), format!("{before}a\n"), "{runner}");
        assert_eq!(content(&tree, "by-id"), format!("{before}a\nb\n"), "{runner}");
        assert_eq!(content(&tree, "other"), "c\n".repeat(round + 1), "{runner}");
        let first = if round == 0 { "750 1000 50" } else { "700 7 8" };
        assert_eq!(content(&tree, "mode"), format!("{first}\n700 7 8\n"), "{runner}");
        assert_eq!(content(&tree, "seeded-with"), format!("seed\n{}", "more\n".repeat(round)), "{runner}");
        assert_eq!(content(&tree, "read-only"), "log\n", "{runner}");
    }
    // What begins with other files is another mount.
    runners.lab.file("seed/dir/file", "another seed\n");
    let tree = runners.result(runners.build("one", dockerfile));
    assert_eq!(content(&tree, "seeded-with"), "another seed\n");
}

#[test]
fn what_a_failed_step_has_written_stays_on_its_runner() {
    let runners = Runners::small();
    let first = runners.build("one", &one_step("echo good > /m/file; ls /m > /out"));
    assert_eq!(out(&runners, first), "file\n");
    runners.build("one", &one_step("echo bad > /m/file; touch /m/left; exit 1")).failure().says("exit");
    let list = one_step("ls /m > /out; cat /m/file >> /out");
    assert_eq!(out(&runners, runners.build("two", &list)), "file\ngood\n");
    // Others' success comes after it; a runner that has nothing of others goes on where it was.
    let runners = Runners::small();
    runners.build("one", &one_step("echo bad > /m/file; exit 1")).failure();
    let list = one_step("ls /m > /out; cat /m/file >> /out || true");
    assert_eq!(out(&runners, runners.build("one", &list)), "file\nbad\n");
}

#[test]
fn mounts_can_be_kept_local_or_empty() {
    let runners = Runners::small();
    let log = one_step("echo $ROUND >> /m/log; cp /m/log /out");
    let build = |runner: &str, kind: &str| {
        let run = runners.build(runner, &log).arg(format!("--cache-mounts={kind}"));
        out(&runners, run)
    };
    assert_eq!(build("one", "remote"), "1\n");
    assert_eq!(build("one", "off"), "2\n");
    assert_eq!(build("two", "off"), "3\n");
    assert_eq!(build("two", "local"), "4\n");
    assert_eq!(build("two", "local"), "4\n5\n");
    // Nobody else has seen that.
    assert_eq!(build("three", "remote"), "1\n6\n");
    assert_eq!(build("four", "local"), "7\n");
    runners.build("one", &log).arg("--cache-mounts=somewhere").failure().says("--cache-mounts");
}

/// Without a server at all, the mount is kept on the machine, as ever.
#[test]
fn without_a_server_mounts_are_local() {
    let runners = Runners::small();
    let log = one_step("echo x >> /m/log; cp /m/log /out");
    for round in 1..=3_u32 {
        runners.round.set(round);
        assert_eq!(out(&runners, runners.alone("one", &log)), "x\n".repeat(round as usize));
    }
    assert_eq!(out(&runners, runners.alone("two", &log)), "x\n");
}

#[test]
fn a_pull_request_starts_from_its_base_and_leaves_it_alone() {
    let runners = Runners::small();
    let token = |read: &str, write: &str| {
        runners.server.create_token(&runners.lab.context, &["--read", read, "--write", write])
    };
    let (main, pull) = (token("main", "main"), token("pr/*,main", "pr/*"));
    let log = one_step("echo $WHO >> /m/log; cp /m/log /out").replace("ARG ROUND", "ARG ROUND\nARG WHO");
    let fresh = std::cell::Cell::new(0);
    let build = |who: &str, token: &str, scopes: &str| {
        fresh.set(fresh.get() + 1);
        runners.round.set(fresh.get());
        let run = runners.alone(&format!("fresh-{}", fresh.get()), &log);
        let run = run.option("--build-arg", format!("WHO={who}")).option("--cache", runners.server.url());
        out(&runners, run.option("--cache-scope", scopes).env("CROSSDOCK_TOKEN", token))
    };
    assert_eq!(build("main", &main, "main"), "main\n");
    assert_eq!(build("one", &pull, "pr/1,main"), "main\none\n");
    assert_eq!(build("one", &pull, "pr/1,main"), "main\none\none\n");
    assert_eq!(build("two", &pull, "pr/2,main"), "main\ntwo\n");
    assert_eq!(build("main", &main, "main"), "main\nmain\n");
    // Its own stays its own, also when its base goes on.
    assert_eq!(build("one", &pull, "pr/1,main"), "main\none\none\none\n");
    assert_eq!(build("three", &pull, "pr/3,main"), "main\nmain\nthree\n");
    // One that claims to be main has no effect on it, and another tenant sees nothing.
    build("liar", &pull, "main");
    assert_eq!(build("main", &main, "main"), "main\nmain\nmain\n");
    let other = runners.server.create_token(&runners.lab.context, &["--tenant", "other", "--write", "*"]);
    assert_eq!(build("stranger", &other, "main"), "stranger\n");
}

/// Both start from the same, and the last one's is what is left: all of it, and nothing of the other's.
#[test]
fn of_two_runners_at_once_the_last_one_wins() {
    let runners = Runners::small();
    let start = one_step("set -e; for n in $(seq 200); do echo start > /m/$n; done; ls /m | wc -l > /out");
    assert_eq!(out(&runners, runners.build("one", &start)), "200\n");
    let write = one_step(
        "set -e; for n in $(seq 200); do echo $WHO > /m/$n; done; touch /m/$WHO; sleep 1; cat /m/* | sort -u > /out",
    );
    let write = write.replace("ARG ROUND", "ARG ROUND\nARG WHO");
    for round in 0..3 {
        let names = ["left", "right"].map(|name| format!("{name}-{round}"));
        let mut children = names
            .each_ref()
            .map(|name| runners.build(name, &write).option("--build-arg", format!("WHO={name}")).spawn());
        for child in &mut children {
            assert!(child.wait().unwrap().success());
        }
        let list = one_step("cat /m/* | sort -u > /out; ls /m | grep -- -ROUND- >> /out");
        let list = list.replace("-ROUND-", &format!("-{round}"));
        let found = out(&runners, runners.build(&format!("fresh-{round}"), &list));
        let is_one = names.iter().any(|name| found == format!("{name}\n{name}\n"));
        assert!(is_one, "neither of {names:?}: {found}");
    }
    runners.lab.context.verify_store(runners.stored());
}

#[test]
fn a_runner_that_is_killed_in_a_step_leaves_nothing_of_it_to_others() {
    let runners = Runners::small();
    let good = one_step("for n in 1 2 3; do echo good > /m/$n; done; ls /m > /out");
    assert_eq!(out(&runners, runners.build("one", &good)), "1\n2\n3\n");
    let mark = format!("killed-mark-{}", std::process::id());
    let bad = one_step(&format!(
        "export MARK={mark}; rm /m/1; printf half > /m/2; touch /m/4; sh -c 'sleep 300; true'"
    ));
    let mut child = runners.build("two", &bad).spawn();
    wait_until("the step runs", || marked_processes(&mark).iter().any(|process| process.contains("sleep")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_no_processes(&mark);
    let list = one_step("cd /m; for n in *; do echo $n $(cat $n); done > /out");
    for runner in ["three", "one", "two"] {
        assert_eq!(out(&runners, runners.build(runner, &list)), "1 good\n2 good\n3 good\n", "{runner}");
    }
}

/// A server that loses what a step is reading: the build is right, if slower.
#[test]
fn a_snapshot_that_is_lost_under_a_running_step_does_no_harm() {
    let runners = Runners::small();
    let mark = format!("lost-mark-{}", std::process::id());
    // A file is made unless it is there and whole.
    let work = |pause: &str| {
        one_step(&format!(
            "export MARK={mark}; set -e; {pause} for n in $(seq 20); do \
             test -e /m/$n || seq $n 20000 > /m/$n; done; for n in $(seq 20); do cat /m/$n; done > /out"
        ))
    };
    let expected = out(&runners, runners.build("one", &work("")));
    for damage in ["gone", "damaged", "short"] {
        let runner = format!("fresh-{damage}");
        let tar = runners.lab.context.path(format!("{damage}.tar"));
        let build = runners.build(&runner, &work("sh -c 'sleep 3; true';"));
        let mut child = build.option_path("--output", "type=tar,dest=", &tar).spawn();
        wait_until("the step runs", || {
            marked_processes(&mark).iter().any(|process| process.contains("sleep"))
        });
        let blobs = walkdir::WalkDir::new(runners.stored()).into_iter().flatten();
        let blobs = blobs.filter(|entry| entry.path().components().any(|part| part.as_os_str() == "blobs"));
        for file in blobs.filter(|entry| entry.file_type().is_file()) {
            let content = std::fs::read(file.path()).unwrap();
            std::fs::remove_file(file.path()).unwrap();
            match damage {
                "damaged" => std::fs::write(file.path(), vec![b'x'; content.len()]).unwrap(),
                "short" => std::fs::write(file.path(), &content[..content.len() / 2]).unwrap(),
                _ => {}
            }
        }
        assert!(child.wait().unwrap().success(), "{damage}: the build failed");
        let tree = crate::support::oci::tar_tree(&tar);
        assert!(content(&tree, "out") == expected, "{damage}: something else was read");
        for runner in [runner.as_str(), &format!("after-{damage}"), "one"] {
            assert!(out(&runners, runners.build(runner, &work(""))) == expected, "{damage}: {runner}");
        }
    }
}

/// A mount of many megabytes: a fresh runner gets of it what it reads, and sends what it writes.
#[test]
fn what_a_step_does_not_touch_stays_where_it_is() {
    let runners = Runners::small();
    let wire = Counting::start(&runners.server.address);
    let build = |runner: &str, command: &str| {
        runners.round.set(runners.round.get() + 1);
        let run =
            runners.alone(runner, &one_step(command)).option("--cache", format!("http://{}", wire.address()));
        let told = out(&runners, run.env("CROSSDOCK_TOKEN", &runners.server.token));
        let traffic = wire.take();
        (told, traffic.received, traffic.sent.len())
    };
    let many = "set -e; for n in $(seq 30); do head -c 1000000 /dev/urandom > /m/large-$n; echo $n > /m/small-$n; done; ls /m | wc -l > /out";
    let (told, _, sent) = build("one", many);
    assert_eq!(told, "60\n");
    assert!(sent > 30_000_000, "{sent} bytes were sent");
    // One pack of what lies together, and what a build sends and asks anyway.
    let little = 5_000_000;
    let (told, received, sent) = build("two", "cat /m/small-7 > /out; ls /m | wc -l >> /out");
    assert_eq!(told, "7\n60\n");
    assert!(received < little && sent < little, "{received} bytes came, {sent} were sent");
    let (told, received, sent) = build("three", "echo changed > /m/small-7; cat /m/small-* | wc -l > /out");
    assert_eq!(told, "30\n");
    assert!(received < little && sent < little, "{received} bytes came, {sent} were sent");
    let (told, received, _) =
        build("four", "cat /m/small-7 > /out; wc -c < /m/large-3 >> /out; md5sum /m/large-4 > /sum");
    assert_eq!(told, "changed\n1000000\n");
    assert!(received < little + 3_000_000, "{received} bytes came");
}

/// What happens to a server that is not there costs the mount, and nothing else.
#[test]
fn a_server_that_is_gone_leaves_the_runner_its_mount() {
    let mut runners = Runners::small();
    let log = one_step("echo $ROUND >> /m/log; cp /m/log /out");
    assert_eq!(out(&runners, runners.build("one", &log)), "1\n");
    runners.server.kill();
    let patient = |runner: &str| runners.build(runner, &log).timeout(Duration::from_secs(100));
    assert_eq!(out(&runners, patient("one")), "1\n2\n");
    assert_eq!(out(&runners, patient("two")), "3\n");
}
