//! Builds that die: by kill -9 at any moment, by Ctrl-C and SIGTERM. What they finished is kept, what they did not
//! finish is nowhere, and nothing of them stays behind.

use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::Run;
use crate::support::aftermath::{
    assert_empty, assert_no_mounts_below, assert_no_processes, marked_processes,
};
use crate::support::chance::{Chance, rounds};
use crate::support::lab::Lab;
use crate::support::oci::{self, content};

/// Six steps of data and a little time each, so that there is something to interrupt.
fn dockerfile(mark: &str) -> String {
    (1..=6).fold(format!("FROM busybox\nENV MARK={mark}\n"), |text, step| {
        text + &format!("RUN seq {step} 200000 > /step-{step}; sleep 0.2\n")
    })
}

fn signal(child: &Child, signal: Signal) {
    // The child has not been waited for, so the id is still its own.
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// What no other process on this machine has in its environment.
fn mark(what: &str) -> String {
    format!("{what}-mark-{}", std::process::id())
}

#[test]
fn kill_9_at_random_moments_loses_and_breaks_nothing() {
    let mut chance = Chance::new("random kills");
    let lab = Lab::new();
    let mark = mark("kill");
    let dockerfile = dockerfile(&mark);
    let build = |local: &str| -> Run {
        lab.build(&dockerfile)
            .env("CROSSDOCK_LOCAL", lab.context.path(local))
            .env("CROSSDOCK_CACHE", format!("file://{}", lab.context.path("shared").display()))
    };
    for _ in 0..rounds(6) {
        let local = *chance.of(&["one", "two"]);
        let mut child = build(local).spawn();
        std::thread::sleep(Duration::from_millis(chance.below(2500)));
        signal(&child, Signal::KILL);
        child.wait().unwrap();
        assert_no_processes(&mark);
    }
    let archive = lab.context.path("image.tar");
    let mut digests = Vec::new();
    for local in ["one", "two", "three"] {
        build(local).option_path("--output", "type=oci,dest=", &archive).success();
        let image = oci::Image::read(&archive);
        let tree = image.tree();
        for step in 1..=6 {
            let expected = (step..=200_000).fold(String::new(), |text, number| text + &format!("{number}\n"));
            assert!(content(&tree, &format!("step-{step}")) == expected, "step {step} is damaged");
        }
        digests.push(image.digest);
        lab.context.verify_store(local);
        lab.context.verify_store("shared");
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]), "one image for all: {digests:?}");
    // Whoever comes next removes what the dead left unfinished, while it does other things: so it may take another one.
    let stores = ["one", "two", "shared"];
    let unfinished = |store: &str| {
        let directory = lab.context.path(store).join("v1/tmp");
        assert!(directory.is_dir(), "{} is not where unfinished files are", directory.display());
        walkdir::WalkDir::new(directory).min_depth(1).into_iter().flatten().collect::<Vec<_>>()
    };
    for round in 0..5 {
        for local in ["one", "two"] {
            lab.build(&format!("FROM busybox\nRUN : {round} {local}\n"))
                .env("CROSSDOCK_LOCAL", lab.context.path(local))
                .env("CROSSDOCK_CACHE", format!("file://{}", lab.context.path("shared").display()))
                .success();
        }
        let left: Vec<_> = stores.into_iter().flat_map(unfinished).collect();
        if left.is_empty() {
            break;
        }
        assert!(round < 4, "left unfinished: {left:#?}");
    }
    assert_no_processes(&mark);
    assert_no_mounts_below(&lab.context.path("."));
    assert_empty(&lab.context.path("tmp"));
}

#[test]
fn interrupted_builds_clean_up_after_themselves() {
    for (what, number) in [("interrupt", Signal::INT), ("terminate", Signal::TERM)] {
        let lab = Lab::new();
        let mark = mark(what);
        let output = lab.context.path("image.tar");
        let build = lab
            .build(&format!("FROM busybox\nRUN echo done > /done\nENV MARK={mark}\nRUN sleep 600\n"))
            .option_path("--output", "type=oci,dest=", &output);
        let mut child = build.spawn();
        let started = Instant::now();
        while marked_processes(&mark).is_empty() {
            assert!(child.try_wait().unwrap().is_none(), "the build ended by itself");
            assert!(started.elapsed() < Duration::from_mins(1), "the step never started");
            std::thread::sleep(Duration::from_millis(20));
        }
        signal(&child, number);
        let asked = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(asked.elapsed() < Duration::from_secs(15), "{what}: does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(!status.success(), "{what}: {status}");
        assert_no_processes(&mark);
        assert_no_mounts_below(&lab.context.path("."));
        assert_empty(&lab.context.path("tmp"));
        assert!(!output.exists());
        // What was finished is kept.
        lab.build("FROM busybox\nRUN echo done > /done\n").arg("--dry-run").success();
        lab.context.crossdock().args(["cache", "verify"]).success();
    }
}
