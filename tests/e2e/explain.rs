//! What a build says of itself: why a step ran, where a result came from, what a step read.

use serde_json::Value;

use crate::support::base;
use crate::support::lab::Lab;
use crate::support::{Output, Run};

const DOCKERFILE: &str =
    "FROM busybox\nCOPY . /src\nRUN cat /src/read > /out; ls /src/d; cat /src/none || true\n";

fn lab() -> Lab {
    let lab = Lab::new();
    lab.file("read", "1").file("other", "1").file("d/a", "1").file(".dockerignore", "Dockerfile\n");
    lab
}

/// A command about the build of this Dockerfile.
fn about(lab: &Lab, command: &[&str], dockerfile: &str) -> Run {
    lab.file("Dockerfile", dockerfile);
    lab.context
        .crossdock()
        .args(command)
        .option_path("--build-context", "busybox=oci-layout://", base::busybox())
        .arg(lab.context.path("project"))
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// The steps of `crossdock explain`, by their places.
fn explained(lab: &Lab, dockerfile: &str, options: &[&str]) -> Vec<Value> {
    let output = about(lab, &["explain", "--format=json"], dockerfile).args(options).success();
    json(&output).as_array().unwrap().clone()
}

/// The end of the step whose name has this in it, as `--progress=json` tells it.
fn finished(output: &Output, step: &str) -> Value {
    let log = output.stderr();
    let events: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let planned = events.iter().find(|event| event["event"] == "planned").unwrap();
    let number =
        planned["steps"].as_array().unwrap().iter().position(|name| name.as_str().unwrap().contains(step));
    let number = number.unwrap_or_else(|| panic!("no step {step}: {output}"));
    let is_end = |event: &&Value| event["event"] == "step_finished" && event["step"] == number;
    events.iter().find(is_end).unwrap().clone()
}

#[test]
fn programs_are_told_every_difference_from_the_nearest_record() {
    let lab = lab();
    let build = || lab.build_showing("json", DOCKERFILE).success();
    assert_eq!(finished(&build(), "RUN cat")["causes"], serde_json::json!([{"kind": "first"}]));
    lab.file("read", "2").file("d/b", "1").file("none", "1");
    let end = finished(&build(), "RUN cat");
    let causes: Vec<(&str, &str)> = end["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| (cause["kind"].as_str().unwrap(), cause["name"].as_str().unwrap()))
        .collect();
    for expected in [("content", "/src/read"), ("appeared", "/src/none"), ("names", "/src/d")] {
        assert!(causes.contains(&expected), "{end:#}");
    }
    // The latest record saw three things otherwise; the one before it, one.
    lab.file("read", "1").file("d/c", "1");
    std::fs::remove_file(lab.path("d/b")).unwrap();
    std::fs::remove_file(lab.path("none")).unwrap();
    let end = finished(&build(), "RUN cat");
    assert_eq!(
        end["causes"],
        serde_json::json!([{"kind": "names", "name": "/src/d", "by": "ls"}]),
        "{end:#}"
    );
    assert_eq!(end["reason"], "the names in /src/d, which ls listed, changed");
}

#[test]
fn variables_and_arguments_are_told_apart() {
    let lab = Lab::new();
    let dockerfile =
        |value: &str| format!("FROM busybox\nARG GIVEN=none\nENV SET={value}\nRUN echo $GIVEN $SET > /out\n");
    lab.build(&dockerfile("a")).success();
    let output = lab.build_showing("json", &dockerfile("b")).args(["--build-arg", "GIVEN=some"]).success();
    let end = finished(&output, "RUN echo");
    let causes = end["causes"].as_array().unwrap();
    for cause in [
        serde_json::json!({"kind": "argument", "name": "GIVEN"}),
        serde_json::json!({"kind": "variable", "name": "SET"}),
    ] {
        assert!(causes.contains(&cause), "{end:#}");
    }
    let other = lab.build_showing("json", "FROM busybox\nARG GIVEN=none\nENV SET=b\nRUN echo no > /out\n");
    let end = finished(&other.success(), "RUN echo");
    assert_eq!(end["causes"][0], serde_json::json!({"kind": "command"}), "{end:#}");
}

#[test]
fn hits_say_which_record_they_are() {
    let lab = lab();
    lab.build(DOCKERFILE).args(["--cache-scope", "main"]).success();
    lab.file("other", "2");
    let build = || lab.build_showing("json", DOCKERFILE).args(["--cache-scope", "pr/1,main"]).success();
    let traced = finished(&build(), "RUN cat");
    let record = &traced["record"];
    assert_eq!((&record["found"], &record["scope"]), (&"traced".into(), &"main".into()), "{traced:#}");
    assert!(record["builder"].as_str().unwrap().starts_with("crossdock "));
    assert!(record["created"].as_str().unwrap().ends_with('Z'));
    // Now it is known under all that it could have read as well.
    let exact = finished(&build(), "RUN cat");
    assert_eq!(exact["record"]["found"], "exact", "{exact:#}");
    lab.file("other", "3");
    let plain = lab.build(DOCKERFILE).args(["--cache-scope", "pr/1,main"]).success().stderr();
    let line = plain.lines().find(|line| line.contains("CACHED")).unwrap();
    assert!(line.ends_with("it read nothing that changed)"), "{plain}");
}

#[test]
fn explain_runs_nothing_and_says_everything() {
    let lab = lab();
    let first = explained(&lab, DOCKERFILE, &[]);
    assert_eq!(first[0]["causes"], serde_json::json!([{"kind": "first"}]));
    assert_eq!(first[1]["causes"], serde_json::json!([{"kind": "unknown"}]));
    lab.build(DOCKERFILE).success();
    let cached = explained(&lab, DOCKERFILE, &[]);
    assert!(cached.iter().all(|step| step["status"] == "cached"), "{cached:?}");
    // Without the copy in between the step itself is looked at.
    let dockerfile = |word: &str| {
        format!("FROM busybox\nARG WORD={word}\nRUN --mount=type=bind,target=/m cat /m/read > /out\n")
    };
    lab.build(&dockerfile("a")).success();
    lab.file("read", "2");
    let output = about(&lab, &["explain"], &dockerfile("a")).success();
    output.says("would run: /read, which cat read, changed").says("    content     /read  (cat)\n");
    output.says("0 would be taken from the cache, 1 would run\n");
    assert_eq!(explained(&lab, &dockerfile("a"), &[])[0]["status"], "would run", "nothing was run");
    lab.file("read", "1");
    let steps = explained(&lab, &dockerfile("b"), &[]);
    assert_eq!(steps[0]["causes"], serde_json::json!([{"kind": "argument", "name": "WORD"}]), "{steps:?}");
}

#[test]
fn a_record_shows_what_its_step_read() {
    let lab = lab();
    lab.build(DOCKERFILE).success();
    let key = explained(&lab, DOCKERFILE, &[])[1]["record"]["key"].as_str().unwrap().to_owned();
    let inspect = |options: &[&str], key: &str| {
        lab.context.crossdock().args(["inspect", "step"]).args(options).arg(key)
    };
    let short = &key["sha256:".len()..][..12];
    let output = inspect(&[], short).success();
    for line in [
        "content     /src/read  (cat)",
        "names       /src/d  (ls)",
        "absent      /src/none",
        &format!("key       {key}"),
        "scope     default",
    ] {
        output.says(line);
    }
    assert!(!output.stdout().contains("/src/other"), "it did not read this: {output}");
    let names = inspect(&["--names"], &key).success();
    names.says("read set (1 path)").says("names       /src/d  (ls)");
    let value = json(&inspect(&["--format=json", "--files"], &key).success());
    assert_eq!(value["key"], key.as_str());
    let reads = value["reads"].as_array().unwrap();
    assert!(
        reads
            .contains(&serde_json::json!({"tree": "/", "path": "/src/read", "look": "content", "by": "cat"})),
        "{value:#}"
    );
    assert_eq!(
        inspect(&["--log"], short).success().stdout(),
        "a\ncat: can't open '/src/none': No such file or directory\n"
    );
    inspect(&[], "zz").failure().says("is no key of a step");
    inspect(&[], "00000000000000").failure().says("no record has a key that begins with");
}

/// A runner without a record asks the shared cache for it.
#[test]
fn records_of_others_are_shown_too() {
    let lab = lab();
    let shared = format!("file://{}", lab.context.path("shared").display());
    let options = ["--cache", shared.as_str()];
    lab.build(DOCKERFILE).args(options).success();
    let key = explained(&lab, DOCKERFILE, &options)[1]["record"]["key"].as_str().unwrap().to_owned();
    let empty = lab.context.path("empty");
    let output = lab
        .context
        .crossdock()
        .args(["inspect", "step", "--files"])
        .args(options)
        .option("--local-cache", empty)
        .arg(&key)
        .success();
    output.says("content     /src/read");
}

/// What `explain --advice` finds for a Dockerfile: kinds and what they are about.
fn advised(lab: &Lab, dockerfile: &str) -> Vec<(String, Vec<String>, u64)> {
    let output = about(lab, &["explain", "--advice", "--format=json"], dockerfile).success();
    let found = json(&output);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let advice = |advice: &Value| {
        let subjects = advice["subjects"].as_array().unwrap().iter().map(text).collect();
        (text(&advice["kind"]), subjects, advice["runs"].as_u64().unwrap())
    };
    found.as_array().unwrap().iter().map(advice).collect()
}

#[test]
fn advice_is_what_the_records_show() {
    let lab = lab();
    let dockerfile = |revision: u32| {
        format!(
            "FROM busybox\nARG REVISION={revision}\nRUN echo same > /made\nCOPY . /src\nRUN cat /src/read > /out; ls /src/d\n\
             RUN cat /src/.git/HEAD > /version\n"
        )
    };
    lab.file(".git/HEAD", "1");
    lab.build(&dockerfile(1)).success();
    let first = advised(&lab, &dockerfile(1));
    assert_eq!(
        first,
        [("git".to_owned(), vec!["/src/.git/HEAD".to_owned()], 0)],
        "of one build little is known"
    );
    // Another value that is of no use, a file that nobody reads, a name that is only listed, another commit.
    lab.build(&dockerfile(2)).success();
    lab.file("other", "2");
    lab.build(&dockerfile(2)).success();
    lab.file("d/b", "1");
    lab.build(&dockerfile(2)).success();
    lab.file(".git/HEAD", "2");
    lab.build(&dockerfile(2)).success();
    let found = advised(&lab, &dockerfile(2));
    let has = |kind: &str, subject: &str| {
        found.iter().any(|(found, subjects, runs)| {
            found == kind && *runs > 0 && subjects.iter().any(|name| name == subject)
        })
    };
    assert!(has("variables", "REVISION"), "{found:?}");
    assert!(has("ignore", "other"), "{found:?}");
    assert!(has("listing", "/src/d"), "{found:?}");
    assert!(has("git", "/src/.git/HEAD"), "{found:?}");
    let of_files = found.iter().filter(|(kind, ..)| kind == "ignore").flat_map(|(_, subjects, _)| subjects);
    assert!(of_files.clone().all(|name| name != "read" && name != ".git/HEAD"), "{found:?}");
    about(&lab, &["explain", "--advice"], &dockerfile(2))
        .success()
        .says("made the same: declare it behind this step");
}

#[test]
fn without_records_there_is_no_advice() {
    let lab = lab();
    about(&lab, &["explain", "--advice"], DOCKERFILE)
        .success()
        .says("nothing that the records of earlier builds show");
}

/// Builds of one Dockerfile under two names do not get in each other's way: their records are told apart.
#[test]
fn the_name_of_a_build_leads_to_its_records() {
    let lab = lab();
    lab.build(DOCKERFILE).args(["--tag", "here.example/app:1"]).success();
    lab.file("new", "1");
    let causes = |options: &[&str]| explained(&lab, DOCKERFILE, options)[0]["causes"].clone();
    assert_eq!(causes(&[]), serde_json::json!([{"kind": "first"}]));
    assert_eq!(
        causes(&["--tag", "here.example/app:2"]),
        serde_json::json!([{"kind": "file", "name": "/src/new"}])
    );
}
