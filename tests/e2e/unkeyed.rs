//! `--unkeyed-arg`: build arguments that steps do not run again for, unless they show.

use crate::support::lab::Lab;
use crate::support::{Output, Run};
use crate::traced::outcome;

/// Says that a build was made with these arguments, on a runner of its own if it has a name.
fn build(lab: &Lab, dockerfile: &str, arguments: &[&str]) -> Run {
    let unkeyed = arguments.iter().flat_map(|argument| ["--unkeyed-arg", argument]);
    lab.build(dockerfile).args(unkeyed)
}

const ALL_THE_SAME: &str = "is keyed on `COMMIT` all the same";

#[track_caller]
fn is_cached(output: &Output, step: &str) {
    let outcome = outcome(output, step);
    assert!(outcome.starts_with("CACHED"), "{outcome}");
    assert!(!output.stderr().contains(ALL_THE_SAME), "{output}");
}

#[test]
fn what_does_not_show_does_not_count() {
    let lab = Lab::new();
    let step = "head -c 9 /dev/urandom > /made; test -n \"$COMMIT\"";
    let dockerfile = format!("FROM busybox\nARG COMMIT\nRUN {step}\nLABEL commit=$COMMIT\n");
    let first = lab.image_of(build(&lab, &dockerfile, &["COMMIT=0123abcd"]));
    let second = build(&lab, &dockerfile, &["COMMIT=4567cdef"]);
    let archive = lab.context.path("second.tar");
    is_cached(&second.option_path("--output", "type=oci,dest=", &archive).success(), step);
    let second = crate::support::oci::Image::read(&archive);
    assert_eq!(first.manifest["layers"], second.manifest["layers"]);
    assert_eq!(second.config["config"]["Labels"]["commit"], "4567cdef");
    assert!(second.config["history"].to_string().contains("|1 COMMIT=4567cdef"), "{}", second.config);
    // With a value from the environment, and one that `--build-arg` gives.
    is_cached(&build(&lab, &dockerfile, &["COMMIT"]).env("COMMIT", "from-environment").success(), step);
    let given = ["--build-arg", "COMMIT=from-flag"];
    is_cached(&build(&lab, &dockerfile, &["COMMIT"]).args(given).env("COMMIT", "other").success(), step);
    // What is different besides counts, and so does the argument where it is not said to be unkeyed.
    lab.build(&dockerfile).args(["--build-arg", "COMMIT=4567cdef"]).success().says("1 run");
    build(&lab, &dockerfile.replace("COMMIT\nRUN", "COMMIT\nENV A=b\nRUN"), &["COMMIT=1"])
        .success()
        .says("1 run");
    // A variable of the image is no argument any more.
    let image = dockerfile.replace("COMMIT\nRUN", "COMMIT\nENV COMMIT=$COMMIT\nRUN");
    build(&lab, &image, &["COMMIT=first-value"]).success().says("1 run");
    build(&lab, &image, &["COMMIT=other-value"]).success().says("1 run");
}

/// A step that shows the value runs again for another one, finds what it made for the same, and says so.
#[test]
fn what_shows_counts() {
    for (step, place) in [
        ("echo $COMMIT > /version", "what it made or printed"),
        ("head -c 200000 /dev/zero > /binary; echo -n $COMMIT >> /binary", "what it made or printed"),
        ("mkdir -p /a/b$COMMIT", "what it made or printed"),
        ("ln -s to-$COMMIT /link", "what it made or printed"),
        ("echo building $COMMIT", "what it made or printed"),
        ("test ! -e /flags-$COMMIT", "a path that it looked at"),
    ] {
        let lab = Lab::new();
        let dockerfile = format!("FROM busybox\nARG COMMIT\nRUN {step}\n");
        let first = build(&lab, &dockerfile, &["COMMIT=0123abcd"]).success();
        assert!(first.stderr().contains(ALL_THE_SAME) && first.stderr().contains(place), "{first}");
        let other = build(&lab, &dockerfile, &["COMMIT=4567cdef"]).success();
        assert_eq!(outcome(&other, step), "RUN because: the variable `COMMIT` changed", "{other}");
        is_cached(&build(&lab, &dockerfile, &["COMMIT=0123abcd"]).success(), step);
        is_cached(&lab.build(&dockerfile).args(["--build-arg", "COMMIT=4567cdef"]).success(), step);
    }
}

/// Each argument for itself, on runners that start with nothing too.
#[test]
fn arguments_show_one_by_one() {
    let lab = Lab::new();
    let step = "head -c 9 /dev/urandom > /made; echo $VERSION > /version; : $COMMIT";
    let dockerfile = format!("FROM busybox\nARG VERSION\nARG COMMIT\nRUN {step}\n");
    let cache = format!("file://{}", lab.context.path("cache").display());
    let runner = |name: &str, arguments: &[&str]| {
        let build = build(&lab, &dockerfile, arguments).option("--cache", &cache);
        build.env("CROSSDOCK_LOCAL", lab.context.path(name)).success()
    };
    let first = runner("one", &["VERSION=version-1", "COMMIT=0123abcd"]);
    assert!(first.stderr().contains("keyed on `VERSION` all the same"), "{first}");
    is_cached(&runner("one", &["VERSION=version-1", "COMMIT=4567cdef"]), step);
    is_cached(&runner("two", &["VERSION=version-1", "COMMIT=89ab0123"]), step);
    assert!(outcome(&runner("three", &["VERSION=version-2", "COMMIT=0123abcd"]), step).starts_with("RUN"));
}

/// Where nobody knows what a step looked at, it may have looked for the value.
#[test]
fn without_tracing_it_is_keyed() {
    let lab = Lab::new();
    let step = "head -c 9 /dev/urandom > /made; : $COMMIT";
    let dockerfile = format!("FROM busybox\nARG COMMIT\nRUN {step}\n");
    let first = build(&lab, &dockerfile, &["COMMIT=0123abcd"]).arg("--no-trace").success();
    assert!(first.stderr().contains("what it looked at was not traced"), "{first}");
    let other = build(&lab, &dockerfile, &["COMMIT=4567cdef"]).success();
    assert_eq!(outcome(&other, step), "RUN because: the variable `COMMIT` changed");
    is_cached(&build(&lab, &dockerfile, &["COMMIT=0123abcd"]).success(), step);
}
