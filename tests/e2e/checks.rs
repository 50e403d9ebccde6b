//! `--check` and `--call`: the answers are BuildKit's.
//!
//! `tests/data/checks/answers.json` has what BuildKit answers about `cases.txt`. With `BUILDKIT_BIN` (`./test --long`) it
//! is asked again; with `CROSSDOCK_UPDATE_ANSWERS` as well, its answers are written to the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::buildkit::BuildKit;
use crate::support::registry::Registry;
use crate::support::{Context, Run, base, oci, text};

/// One Dockerfile with its surroundings.
struct Case {
    name: String,
    options: BTreeMap<String, String>,
    dockerfile: String,
    ignore: Option<String>,
}

impl Case {
    fn questions(&self) -> Vec<&'static str> {
        let mut questions = vec!["lint", "outline", "targets"];
        questions.retain(|question| self.options.get("without").is_none_or(|without| without != question));
        questions
    }
}

/// BuildKit's answers by case, and by question and form: `lint.json`, `lint.txt`, or `lint.error`.
type Answers = BTreeMap<String, BTreeMap<String, String>>;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checks").join(name)
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(data("cases.txt")).unwrap();
    text.split("\n=== ")
        .skip(1)
        .map(|part| {
            let (head, body) = part.split_once('\n').unwrap();
            let mut words = head.split(' ');
            let name = words.next().unwrap().to_owned();
            let options = words.map(|word| word.split_once('=').unwrap());
            let options = options.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            let (dockerfile, ignore) = match body.split_once("\n--- .dockerignore\n") {
                Some((dockerfile, ignore)) => (dockerfile, Some(ignore.to_owned())),
                None => (body, None),
            };
            // The line end of the last line went with the next case's mark.
            Case { name, options, dockerfile: format!("{}\n", dockerfile.trim_end()), ignore }
        })
        .collect()
}

fn write(context: &Context, case: &Case) -> PathBuf {
    let directory = context.path(&case.name);
    context.write(directory.join("Dockerfile"), &case.dockerfile);
    if let Some(ignore) = &case.ignore {
        context.write(directory.join(".dockerignore"), ignore);
    }
    directory
}

fn ask(context: &Context, case: &Case, call: &str) -> Run {
    let directory = write(context, case);
    let layout = format!("busybox=oci-layout://{}", text(base::busybox()));
    let mut run = context
        .crossdock()
        .args(["build", "--progress=quiet", "--platform=linux/amd64", "--build-context", &layout])
        .args([&format!("--call={call}")]);
    for (name, value) in case.options.iter().filter(|(name, _)| *name != "without") {
        run = match name.strip_prefix("build-arg:") {
            Some(argument) => run.args(["--build-arg", &format!("{argument}={value}")]),
            None => run.args([&format!("--{name}={value}")]),
        };
    }
    run.arg(directory)
}

/// BuildKit's answers as they are checked in: without the definition of the source.
fn without_definition(text: &str) -> String {
    let mut lines = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "      \"definition\": {" => inside = true,
            "      }," if inside => inside = false,
            _ if inside => {}
            line => lines.push(line),
        }
    }
    lines.join("\n")
}

/// Asks the real BuildKit, if there is one.
fn buildkit_answers(context: &Context) -> Option<Answers> {
    let buildkit = BuildKit::start(context)?;
    let questions: Vec<Value> = cases()
        .iter()
        .map(|case| {
            let directory = write(context, case);
            let mut options = case.options.clone();
            options.insert("context:busybox".to_owned(), BuildKit::busybox());
            options.insert("platform".to_owned(), "linux/amd64".to_owned());
            options.remove("without");
            json!({
                "name": case.name,
                "directory": text(&directory),
                "options": options,
                "questions": case.questions(),
            })
        })
        .collect();
    let questions = serde_json::to_string(&questions).unwrap();
    let output = buildkit.subrequests(context, &questions);
    let mut answers: Answers = serde_json::from_str(&output).unwrap();
    for answers in answers.values_mut() {
        if let Some(lint) = answers.get_mut("lint.json") {
            *lint = without_definition(lint);
        }
    }
    Some(answers)
}

/// The exact text of an answer, but for the message of an error.
fn comparable(answer: &str) -> String {
    let lines: Vec<&str> =
        answer.trim().lines().filter(|line| !line.starts_with("    \"message\": ")).collect();
    lines.join("\n")
}

/// What is wrong with the answer to one question in both forms.
fn compare(
    context: &Context,
    case: &Case,
    question: &str,
    expected: &BTreeMap<String, String>,
) -> Option<String> {
    let ours = ask(context, case, &format!("{question},format=json")).output();
    let Some(theirs) = expected.get(&format!("{question}.json")) else {
        return ours.status.success().then(|| "BuildKit fails, this does not".to_owned());
    };
    if comparable(&ours.stdout()) != comparable(theirs) {
        return Some(format!("{ours}\n--- BuildKit\n{theirs}"));
    }
    let ours = ask(context, case, question).output();
    let code = if question == "lint" { expected["lint.statuscode"].parse().unwrap() } else { 0 };
    if ours.status.code() != Some(code) {
        return Some(format!("exit code {code} is wanted\n{ours}"));
    }
    // buildx puts how many warnings there are in front of BuildKit's text, or that there are none.
    let text_of = ours.stdout();
    let text_of = match question {
        "lint" => text_of.split_once('\n').map_or("", |(_, rest)| rest),
        _ => &text_of,
    };
    let text_of = text_of.replace(&format!("{}/", text(&context.path(&case.name))), "");
    let theirs = &expected[&format!("{question}.txt")];
    (text_of.trim_matches('\n') != theirs.trim_matches('\n'))
        .then(|| format!("as text:\n{ours}\n--- BuildKit\n{theirs}"))
}

#[test]
fn answers_are_those_of_buildkit() {
    let context = Context::new();
    let fresh = buildkit_answers(&context);
    if let Some(fresh) = fresh.as_ref().filter(|_| std::env::var_os("CROSSDOCK_UPDATE_ANSWERS").is_some()) {
        std::fs::write(data("answers.json"), serde_json::to_string_pretty(fresh).unwrap() + "\n").unwrap();
    }
    let answers = fresh.unwrap_or_else(|| {
        serde_json::from_str(&std::fs::read_to_string(data("answers.json")).unwrap()).unwrap()
    });
    let cases = cases();
    assert!(cases.len() >= 60 && cases.len() == answers.len(), "answers.json is not about cases.txt");
    let mut differences = Vec::new();
    for case in &cases {
        for question in case.questions() {
            if let Some(difference) = compare(&context, case, question, &answers[&case.name]) {
                differences.push(format!("==== {} {question}: {difference}", case.name));
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn every_rule_is_found_in_a_case() {
    let answers = std::fs::read_to_string(data("answers.json")).unwrap();
    for rule in crossdock::dockerfile::lint::RULES {
        // That one needs an image of another platform, and a registry to get it from: the next test has it.
        let is_elsewhere = rule.name == "InvalidBaseImagePlatform";
        assert!(is_elsewhere || answers.contains(&format!("\\\"{}\\\"", rule.name)), "{}", rule.name);
    }
}

#[test]
fn base_images_of_another_platform_are_found() {
    let context = Context::new();
    let registry = Registry::start();
    let own = oci::architecture();
    let name = format!("{}/other:1", registry.address());
    context.write("base/Dockerfile", "FROM scratch\nCOPY file /file\n");
    context.write("base/file", "content\n");
    let push = context.build().args(["--platform", "linux/s390x", "--push", "--tag", &name]);
    push.arg(context.path("base")).success();
    let finding = format!(
        "Base image {name} was pulled with platform \"linux/s390x\", expected \"linux/{own}\" for current build"
    );
    let dockerfile = |from: &str, copy: &str| {
        context.write("a/Dockerfile", format!("# a comment\nFROM {from}\nCOPY {copy} /copied\n"));
    };
    let check = |arguments: &[&str]| {
        let run = context.build().arg("--call=check,format=json").args(arguments).arg(context.path("a"));
        let answer: Value = serde_json::from_str(&run.output().stdout()).unwrap();
        assert!(answer["buildError"].is_null(), "{answer}");
        answer["warnings"].as_array().cloned().unwrap_or_default()
    };
    // Where it is started from, and where something is taken from it.
    for (from, copy, line) in [(name.as_str(), "file", 2), ("scratch", &format!("--from={name} /file"), 3)] {
        dockerfile(from, copy);
        let warnings = check(&[]);
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        assert_eq!(warnings[0]["ruleName"], "InvalidBaseImagePlatform");
        assert_eq!(warnings[0]["detail"], finding);
        assert_eq!(warnings[0]["location"]["ranges"][0]["start"]["line"], line, "{warnings:#?}");
        let checked = context.build().arg("--check").arg(context.path("a")).failure();
        checked.says("InvalidBaseImagePlatform").says(&finding);
    }
    // What is asked for is what it is.
    dockerfile(&name, "file");
    context.write("a/file", "content\n");
    assert_eq!(check(&["--platform", "linux/s390x"]), [] as [Value; 0]);
    // A build warns, is done, and says what the image is.
    let archive = context.path("image.tar");
    let build = context.build().option_path("--output", "type=oci,dest=", &archive);
    let built = build.arg(context.path("a")).success();
    built.says(&format!("Dockerfile:2: {finding} (InvalidBaseImagePlatform)"));
    assert_eq!(oci::Image::read(&archive).config["architecture"], "s390x");
    dockerfile(&format!("--platform=linux/s390x {name}"), "file");
    let built = context.build().arg(context.path("a")).success();
    assert!(!built.stderr().contains("InvalidBaseImagePlatform"), "{built}");
}

#[test]
fn builds_warn_once_and_fail_if_asked_to() {
    let context = Context::new();
    context.write("a/Dockerfile", "FROM scratch AS unused\nMAINTAINER x\nCMD echo\nFROM scratch\nCMD echo\n");
    let built = context.build().arg(context.path("a")).success();
    assert_eq!(built.stderr().matches("JSONArgsRecommended").count(), 1, "{built}");
    assert!(built.stderr().contains("Dockerfile:5: JSON arguments"), "{built}");
    assert_eq!(built.stderr().matches("MaintainerDeprecated").count(), 1, "{built}");
    let failed = context
        .build()
        .args(["--build-arg", "BUILDKIT_DOCKERFILE_CHECK=error=true"])
        .arg(context.path("a"))
        .output();
    assert_eq!(failed.status.code(), Some(1), "{failed}");
    failed.says("lint violation found for rules: JSONArgsRecommended, MaintainerDeprecated");
}

#[test]
fn checks_need_no_registry() {
    let context = Context::new();
    context.write("a/Dockerfile", "FROM 127.0.0.1:1/none\nENV A=$PERHAPS\nMAINTAINER x\n");
    let checked = context.build().arg("--check").arg(context.path("a")).output();
    assert_eq!(checked.status.code(), Some(1), "{checked}");
    checked.says("1 warning has been found").says("MaintainerDeprecated").says("is not checked");
}

#[test]
fn checks_show_the_error_behind_the_warnings() {
    let context = Context::new();
    context.write("a/Dockerfile", "FROM scratch\nMAINTAINER x\nCOYP a b\n");
    let checked = context.build().arg("--check").arg(context.path("a")).output();
    assert_eq!(checked.status.code(), Some(1), "{checked}");
    checked.says("MaintainerDeprecated").says("unknown instruction").says("   3 | >>> COYP a b");
    let quiet = context.build().args(["--call=check,ignorestatus=true", "--target=x"]).arg(context.path("b"));
    context.write("b/Dockerfile", "FROM scratch AS x\nMAINTAINER x\n");
    quiet.success();
}
