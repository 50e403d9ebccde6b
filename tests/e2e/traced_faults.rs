//! Steps that are served their files in a bad world: the builder dies, the disk is full, the cache is emptied or is wrong or
//! gone in the middle of a step; and machines without FUSE. Never a wrong result, and nothing is left behind.

use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::lazy::noise;
use crate::support::aftermath::{
    assert_no_mounts_below, assert_no_processes, assert_nothing_left, marked_processes,
};
use crate::support::disk::SmallDisk;
use crate::support::lab::Lab;
use crate::support::link::{Link, Speed};
use crate::support::oci::{self, TarBuilder, content};
use crate::support::server::CacheServer;
use crate::support::{Context, Output, Run, is_root, text};
use crate::traced::{outcome, tree_of};

/// A base image with a shell and some files of 1 MiB, in two layers.
struct Base {
    lab: Lab,
    layout: PathBuf,
}

impl Base {
    fn new(files: u64) -> Self {
        let lab = Lab::new();
        let busybox = std::fs::read("/bin/busybox").unwrap();
        let mut tar = TarBuilder::new().directory("bin", 0o755).file("bin/busybox", 0o755, &busybox);
        for name in ["sh", "cat", "sleep", "md5sum", "touch", "head", "rm"] {
            tar = tar.symlink(&format!("bin/{name}"), "busybox");
        }
        let tools = tar.finish();
        let mut tar = TarBuilder::new().directory("data", 0o755);
        for number in 0..files {
            tar = tar.file(&format!("data/{number}"), 0o644, &noise(number + 1, 1 << 20));
        }
        let data = tar.finish();
        let layout = lab.context.path("base");
        oci::write_layout(&layout, &[&tools, &data], &json!({"Env": ["PATH=/bin"]}));
        Self { lab, layout }
    }

    /// A build on a runner of its own.
    fn runner(&self, name: &str, dockerfile: &str) -> Run {
        let run = self.lab.build(dockerfile).env("CROSSDOCK_LOCAL", self.lab.context.path(name));
        run.option_path("--build-context", "base=oci-layout://", &self.layout)
    }

    /// A cache server that has the framed copies of the image's layers, and nothing that the steps below make.
    fn server(&self) -> CacheServer {
        let server = CacheServer::start(&self.lab.context, "storage", &[]);
        server.cache(self.runner("first", "FROM base\nRUN cat /data/0 > /first\n")).success();
        server
    }

    /// What a step that reads two files makes, with a pause between them; errors of the second one are ignored.
    fn check(&self, run: Run) -> Output {
        let (tree, output) = tree_of(run, &self.lab);
        if let Some(tree) = tree {
            assert!(tree["one"].content == noise(2, 1 << 20), "{output}");
            assert!(tree["two"].content == noise(4, 1 << 20), "{output}");
        }
        output
    }
}

/// Reads a file, pauses, reads another one, and does not look at errors.
fn pausing(mark: &str) -> String {
    format!("FROM base\nENV MARK={mark}\nRUN cat /data/1 > /one; sleep 4; cat /data/3 > /two; true\n")
}

fn mark(what: &str) -> String {
    format!("{what}-mark-{}", std::process::id())
}

/// Waits until a step with the mark pauses.
fn wait_for_pause(mark: &str, mut ended: impl FnMut() -> bool) {
    let started = Instant::now();
    while !marked_processes(mark)
        .iter()
        .any(|process| process.contains("sleep 4") && !process.contains("cat"))
    {
        assert!(!ended(), "the build ended before the pause");
        assert!(started.elapsed() < Duration::from_mins(2), "the step never paused");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Does something while the step of a build pauses.
fn meanwhile(base: &Base, run: Run, mark: &str, act: impl FnOnce()) -> Output {
    std::thread::scope(|scope| {
        let build = scope.spawn(|| base.check(run));
        wait_for_pause(mark, || build.is_finished());
        act();
        build.join().unwrap()
    })
}

/// No record of the step that was hurt: it would run.
#[track_caller]
fn assert_not_recorded(base: &Base, runner: &str, mark: &str) {
    let output = base.runner(runner, &pausing(mark)).arg("--dry-run").output();
    assert_eq!(output.status.code(), Some(3), "{output}");
    assert!(output.stderr().contains("WOULD RUN"), "{output}");
}

#[test]
fn a_builder_that_is_killed_leaves_no_record_no_process_and_no_mount() {
    let base = Base::new(4);
    let mark = mark("killed");
    let mut child: Child = base.runner("one", &pausing(&mark)).spawn();
    wait_for_pause(&mark, || child.try_wait().unwrap().is_some());
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    assert_no_processes(&mark);
    assert_no_mounts_below(&base.lab.context.path(""));
    assert_not_recorded(&base, "one", &mark);
    assert!(base.check(base.runner("one", &pausing(&mark))).status.success());
    base.lab.context.verify_store("one");
}

#[test]
fn a_full_disk_fails_a_step_that_does_not_look_at_its_errors() {
    for (step, name) in [
        ("head -c 60000000 /dev/zero > /big; true", "in the end"),
        ("head -c 60000000 /dev/zero > /big; sleep 1; rm /big; true", "for a while"),
    ] {
        let lab = Lab::new();
        let Some(disk) = SmallDisk::mount(&lab.context, "small", "30m") else { return };
        let dockerfile = format!("FROM busybox\nRUN {step}\n");
        let output = lab.build(&dockerfile).option("--local-cache", &disk.0).failure();
        let told = output.stderr();
        assert!(told.contains("was full while it ran") && told.contains("Dockerfile:2"), "{name}: {output}");
        assert!(told.contains("hint:") || told.contains("make room"), "{output}");
        assert_nothing_left(&lab);
        // With room, it runs: nothing was recorded.
        lab.context.command("mount").args(["-o", "remount,size=200m", text(&disk.0)]).success();
        let output = lab.build(&dockerfile).option("--local-cache", &disk.0).success();
        assert!(outcome(&output, "head -c").starts_with("RUN because"), "{output}");
    }
}

/// Frames that are fetched for a step are kept on this machine: or not, where there is no room.
#[test]
fn a_full_disk_makes_nothing_wrong_of_what_is_fetched() {
    let base = Base::new(24);
    let server = base.server();
    let Some(disk) = SmallDisk::mount(&base.lab.context, "small", "14m") else { return };
    let dockerfile = "FROM base\nRUN cat /data/* | md5sum > /sum; true\n";
    let expected = base.runner("large", dockerfile);
    let (expected, output) = tree_of(expected, &base.lab);
    let expected = expected.unwrap_or_else(|| panic!("{output}"));
    let run = server.cache(base.runner("unused", dockerfile)).option("--local-cache", &disk.0);
    let tar = base.lab.context.path("small.tar");
    let output = run.option_path("--output", "type=tar,dest=", &tar).output();
    if output.status.success() {
        assert_eq!(oci::tar_tree(&tar)["sum"], expected["sum"], "{output}");
    } else {
        assert!(!output.stderr().contains("panicked"), "{output}");
        assert!(
            output.stderr().contains("was full") || output.stderr().contains("No space left"),
            "{output}"
        );
    }
    assert_no_mounts_below(&base.lab.context.path(""));
}

#[test]
fn emptying_the_cache_in_the_middle_of_a_step_changes_nothing() {
    let base = Base::new(4);
    let server = base.server();
    for (runner, shared) in [("one", true), ("two", false)] {
        let mark = mark(&format!("pruned-{runner}"));
        let run = base.runner(runner, &pausing(&mark));
        let run = if shared { server.cache(run) } else { run };
        let output = meanwhile(&base, run, &mark, || {
            let prune = base.lab.context.crossdock().args(["cache", "prune", "--all", "--force"]);
            prune.env("CROSSDOCK_LOCAL", base.lab.context.path(runner)).success();
        });
        assert!(output.status.success(), "{output}");
        base.lab.context.verify_store(runner);
    }
    drop(server);
    assert_nothing_left(&base.lab);
}

/// The second file is still at the server when that dies.
#[test]
fn a_server_that_dies_in_the_middle_of_a_step_costs_time_only() {
    let base = Base::new(4);
    let mut server = base.server();
    let mark = mark("dead-server");
    let run = server.cache(base.runner("two", &pausing(&mark)));
    let output = meanwhile(&base, run, &mark, || server.kill());
    let told = output.stderr();
    // The image is still there, so that its layers can be had once more.
    assert!(output.status.success(), "{output}");
    assert!(told.contains("reading /data/3 failed") && told.contains("done again"), "{output}");
    base.lab.context.verify_store("two");
    assert_nothing_left(&base.lab);
}

/// And so is the image: nobody has the second file any more.
#[test]
fn what_is_nowhere_any_more_fails_the_step_and_is_not_recorded() {
    let base = Base::new(4);
    let mut server = base.server();
    let mark = mark("nowhere");
    let run = server.cache(base.runner("two", &pausing(&mark)));
    let output = meanwhile(&base, run, &mark, || {
        server.kill();
        std::fs::remove_dir_all(base.layout.join("blobs")).unwrap();
    });
    assert_eq!(output.status.code(), Some(1), "{output}");
    let told = output.stderr();
    assert!(told.contains("reading /data/3 failed") && told.contains("error"), "{output}");
    assert_nothing_left(&base.lab);
}

#[test]
fn wrong_answers_in_the_middle_of_a_step_are_no_content() {
    let base = Base::new(4);
    let server = base.server();
    let mark = mark("wrong");
    let run = server.cache(base.runner("two", &pausing(&mark)));
    let output = meanwhile(&base, run, &mark, || {
        for entry in walkdir::WalkDir::new(&server.storage).into_iter().flatten() {
            let Ok(mut bytes) = std::fs::read(entry.path()) else { continue };
            if bytes.len() > 100_000 {
                for byte in &mut bytes {
                    *byte ^= 1;
                }
                std::fs::remove_file(entry.path()).unwrap();
                std::fs::write(entry.path(), bytes).unwrap();
            }
        }
    });
    assert!(output.status.success(), "{output}");
    assert!(output.stderr().contains("reading /data/3 failed"), "{output}");
    base.lab.context.verify_store("two");
}

/// A server that holds the line and says nothing.
#[test]
fn a_server_that_is_silent_in_the_middle_of_a_step_is_given_up() {
    let base = Base::new(4);
    let server = base.server();
    let mark = mark("silent");
    let run = server.cache(base.runner("two", &pausing(&mark)));
    let output = meanwhile(&base, run, &mark, || server.signal(Signal::STOP));
    server.signal(Signal::CONT);
    assert!(output.status.success(), "{output}");
    assert!(output.stderr().contains("reading /data/3 failed"), "{output}");
}

/// A runner that starts empty moves what its steps read.
#[test]
fn a_step_that_reads_little_of_a_large_base_moves_little() {
    let base = Base::new(56);
    let server = base.server();
    let link = Link::start(&server.address, Speed { round_trip: Duration::from_millis(5), rate: 1e9 });
    let dockerfile = "FROM base\nRUN cat /data/7 > /out\n";
    let run = base.runner("two", dockerfile).option("--cache", format!("http://{}", link.address()));
    let (tree, output) =
        tree_of(run.env("CROSSDOCK_TOKEN", &server.token).arg("--cache-readonly"), &base.lab);
    // The export as a tar reads everything, from the image itself or from the server: so count the step alone, first.
    assert!(tree.unwrap()["out"].content == noise(8, 1 << 20), "{output}");
    link.take();
    let run = base.runner("three", dockerfile).option("--cache", format!("http://{}", link.address()));
    let output = run.env("CROSSDOCK_TOKEN", &server.token).arg("--cache-readonly").success();
    let count = link.take();
    assert!(outcome(&output, "cat /data/7").starts_with("RUN because"), "{output}");
    assert!(count.down > 1 << 20, "the file is not on this machine: {count:?}");
    assert!(count.down < 3_000_000, "a file of 1 MiB and the shell, of 58 MiB: {count:?}");
}

const FALLBACK: &str = "FROM busybox\nCOPY . /src\nRUN cat /src/read > /out; rm /src/gone; mkdir /src/d; ls /src > /names\n\
    RUN --mount=type=bind,target=/m cat /m/read /out > /both\n";

/// The same command where /dev/fuse is there and cannot be opened.
fn without_fuse(lab: &Lab, run: Run) -> Run {
    let socket = lab.context.path("socket");
    if !socket.exists() {
        std::os::unix::net::UnixListener::bind(&socket).unwrap();
    }
    let script = format!("mount --bind {} /dev/fuse && exec \"$@\"", text(&socket));
    wrapped(lab, &["unshare", "-m", "sh", "-c", &script, "sh"], run)
}

/// A command by way of another one, in the environment of the lab.
fn wrapped(lab: &Lab, words: &[&str], run: Run) -> Run {
    let inner = run.into_command();
    let mut outer =
        lab.context.command(words[0]).args(&words[1..]).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        if let Some(value) = value {
            outer = outer.env(name.to_str().unwrap(), value);
        }
    }
    outer
}

#[test]
fn without_fuse_the_results_are_the_same_and_one_line_says_so() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.file("read", "1").file("gone", "1").file("other", "1");
    let (traced, output) = tree_of(lab.build(FALLBACK).env("CROSSDOCK_LOCAL", lab.context.path("one")), &lab);
    assert!(!output.stderr().contains("not traced"), "{output}");
    let run = |local: &str| {
        let run = lab.build(FALLBACK).env("CROSSDOCK_LOCAL", lab.context.path(local));
        tree_of(without_fuse(&lab, run), &lab)
    };
    let (plain, output) = run("two");
    let lines = |output: &Output| output.stderr().lines().filter(|line| line.contains("not traced")).count();
    assert_eq!(lines(&output), 1, "{output}");
    assert!(output.stderr().contains("/dev/fuse cannot be opened"), "{output}");
    assert!(traced.is_some() && traced == plain, "{output}");
    // What the one has made serves the other, both ways, as far as exact keys go.
    let (again, output) = run("one");
    assert_eq!(again, traced);
    assert!(output.stderr().contains(" 0 run"), "{output}");
    let traced_again = lab.build(FALLBACK).env("CROSSDOCK_LOCAL", lab.context.path("two")).success();
    assert!(traced_again.stderr().contains(" 0 run"), "{traced_again}");
    // Without tracing, what was not read counts too.
    lab.file("other", "2");
    let (plain, output) = run("one");
    assert!(outcome(&output, "cat /src/read").starts_with("RUN because"), "{output}");
    let fresh = lab.build(FALLBACK).env("CROSSDOCK_LOCAL", lab.context.path("fresh")).arg("--no-cache");
    let (fresh, _) = tree_of(fresh, &lab);
    assert_eq!(plain, fresh);
    assert_nothing_left(&lab);
}

/// In a user namespace, with a single id and with many: traced like root's.
#[test]
fn ordinary_users_are_served_too() {
    if !is_root() {
        return;
    }
    for subordinate in [false, true] {
        if subordinate && !std::path::Path::new("/usr/bin/newuidmap").exists() {
            continue;
        }
        let lab = Lab::of(Context::for_user(54_321));
        lab.file("read", "1").file("gone", "1").file("other", "1");
        // A device that everybody may open, as on machines of the usual kind; and perhaps ids for the user.
        let ids = if subordinate { "echo tester:700000:65536 > $d/sub" } else { ": > $d/sub" };
        let script = format!(
            "set -e; d=$(mktemp -d /tmp/users-XXXXXX); mount -t tmpfs -o dev x $d; chmod 755 $d; {ids}; \
             mknod -m 666 $d/fuse c 10 229; mount --bind $d/fuse /dev/fuse; \
             cp /etc/passwd $d/passwd; echo tester:x:54321:54321::/:/bin/sh >> $d/passwd; \
             touch /etc/subuid /etc/subgid; mount --bind $d/sub /etc/subuid; mount --bind $d/sub /etc/subgid; \
             mount --bind $d/passwd /etc/passwd; umount -l $d; rmdir $d; \
             exec setpriv --reuid=54321 --regid=54321 --clear-groups \"$@\""
        );
        let build = |dockerfile: &str| {
            let run = lab.build(dockerfile);
            let archive = lab.context.path("home/result.tar");
            let run = run.option_path("--output", "type=oci,dest=", &archive);
            let inner = run.into_command();
            let mut outer = std::process::Command::new("unshare");
            outer.args(["-m", "sh", "-c", &script, "sh"]).arg(inner.get_program()).args(inner.get_args());
            outer.env_clear().current_dir(lab.context.path("."));
            for (name, value) in inner.get_envs() {
                outer.env(name, value.unwrap());
            }
            let output = outer.output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{told}");
            (oci::Image::read(&archive).tree(), told)
        };
        let cached = |told: &str, step: &str| {
            let number = told.lines().find(|line| line.starts_with('#') && line.contains(step)).unwrap();
            let number = number.split(' ').next().unwrap().to_owned();
            told.lines().any(|line| line.starts_with(&format!("{number} CACHED")))
        };
        let (tree, told) = build(FALLBACK);
        if told.contains("not traced") {
            // This machine's own limits, such as a container that may not open the device.
            assert!(told.contains("/dev/fuse cannot be opened"), "{told}");
            continue;
        }
        assert_eq!(content(&tree, "both"), "11");
        lab.file("other", "2");
        let (tree, told) = build(FALLBACK);
        assert!(cached(&told, "cat /m/read"), "{told}");
        assert!(!cached(&told, "COPY . /src"), "{told}");
        assert_eq!(content(&tree, "src/other"), "2");
        lab.file("read", "2");
        let (tree, told) = build(FALLBACK);
        assert!(!cached(&told, "cat /m/read"), "{told}");
        assert_eq!(content(&tree, "both"), "22");
    }
}
