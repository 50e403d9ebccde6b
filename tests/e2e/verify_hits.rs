//! `--verify-hits`: cached steps are run again, and those that make something else are named.

use serde_json::Value;

use crate::support::Output;
use crate::support::lab::Lab;
use crate::traced::outcome;

const DOCKERFILE: &str = "FROM busybox\nCOPY other /src/\nRUN echo same > /same\n\
    RUN mkdir /r; head -c 8 /dev/urandom > /r/content; touch /r/$(head -c 4 /dev/urandom | md5sum | head -c 8)\n\
    RUN cat /same > /copy\n";

fn verified(output: &Output) -> Vec<Value> {
    let events = output.stderr();
    let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| event["event"] == "hit_verified").collect()
}

#[test]
fn steps_that_are_not_deterministic_are_named_and_nothing_changes() {
    let lab = Lab::new();
    lab.file("other", "1");
    let before = lab.image(DOCKERFILE);
    let archive = lab.context.path("again.tar");
    let run = lab.build(DOCKERFILE).arg("--verify-hits=100%");
    let output = run.option_path("--output", "type=oci,dest=", &archive).success();
    let told = output.stderr();
    assert_eq!(
        crate::support::oci::Image::read(&archive).digest,
        before.digest,
        "the recorded result counts"
    );
    assert!(told.contains(" 0 run"), "{output}");
    let lines: Vec<&str> = told.lines().filter(|line| line.contains("not deterministic")).collect();
    assert_eq!(lines.len(), 1, "{output}");
    for part in ["Dockerfile:4", "RUN mkdir /r", "/r/content (content)", "(added)", "(removed)"] {
        assert!(lines[0].contains(part), "{part}: {output}");
    }
    // The same for programs; also of steps that are taken from the cache by what they read.
    lab.file("other", "2");
    let output = lab.build_showing("json", DOCKERFILE).arg("--verify-hits=100%").success();
    let verified = verified(&output);
    assert_eq!(verified.len(), 3, "{output}");
    let same = verified.iter().map(|event| event["same"].as_bool().unwrap());
    assert_eq!(same.collect::<Vec<_>>(), [true, false, true], "{output}");
    let differences = verified[1]["differences"].as_array().unwrap();
    assert_eq!(differences.len(), 3, "{output}");
    assert_eq!(differences.iter().filter(|found| found["change"] == "content").count(), 1, "{output}");
}

#[test]
fn a_step_that_fails_the_second_time_does_not_fail_the_build() {
    let lab = Lab::new();
    // Steps have the host's network, which is no input of theirs.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let dockerfile = format!("FROM busybox\nRUN nc 127.0.0.1 {port} -e /bin/true || exit 7; touch /x\n");
    let dockerfile = dockerfile.as_str();
    lab.build(dockerfile).success();
    drop(listener);
    let output = lab.build(dockerfile).arg("--verify-hits=100").success();
    assert!(
        output.stderr().contains("could not be run again") && output.stderr().contains("exit code 7"),
        "{output}"
    );
    assert!(outcome(&output, "touch /x").starts_with("CACHED"), "{output}");
    // Not asked for, nothing is run again.
    let output = lab.build(dockerfile).success();
    assert!(!output.stderr().contains("run again"), "{output}");
    let output = lab.build(dockerfile).arg("--verify-hits=101%").failure();
    assert!(output.stderr().contains("from 0 to 100"), "{output}");
}

/// What is in a cache mount is no input; what depends on it all the same is named.
#[test]
fn a_step_that_depends_on_its_cache_mount_is_named() {
    let lab = Lab::new();
    let dockerfile = "FROM busybox\nARG N\n\
        RUN --mount=type=cache,target=/c echo $N >> /c/all; cp /c/all /seen\n\
        RUN --mount=type=cache,target=/c echo $N >> /c/all; echo done > /result\n";
    for number in ["1", "2"] {
        lab.build(dockerfile).args(["--build-arg", &format!("N={number}")]).success();
    }
    let output = lab.build(dockerfile).args(["--build-arg", "N=2", "--verify-hits=100%"]).success().stderr();
    let lines: Vec<&str> = output.lines().filter(|line| line.contains("made something else")).collect();
    assert_eq!(lines.len(), 1, "{output}");
    for part in ["Dockerfile:3", "/seen (content)", "cache mount"] {
        assert!(lines[0].contains(part), "{part}: {output}");
    }
    // It has left nothing in the mount.
    let look = "FROM busybox\nRUN --mount=type=cache,target=/c cat /c/all; echo > /looked\n";
    let output = lab.build(look).success().stderr();
    assert_eq!(output.matches(" 2\n").count(), 2, "{output}");
}
