//! What the program says when it is called: help, versions, completions, wrong command lines.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

/// Runs the program with nothing of the surroundings.
fn crossdock(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossdock"));
    command.args(args).env_clear().env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn help_has_examples_for_every_command() {
    for command in [
        &[][..],
        &["build"],
        &["fingerprint"],
        &["explain"],
        &["inspect"],
        &["inspect", "step"],
        &["serve"],
        &["token"],
        &["token", "create"],
        &["token", "ls"],
        &["token", "revoke"],
        &["cache"],
        &["cache", "ls"],
        &["cache", "du"],
        &["cache", "prune"],
        &["cache", "verify"],
        &["cache", "mounts"],
        &["cache", "mounts", "ls"],
        &["cache", "mounts", "inspect"],
        &["cache", "mounts", "rm"],
        &["cache", "mounts", "export"],
        &["cache", "mounts", "import"],
        &["doctor"],
        &["demo"],
        &["completion"],
        &["man"],
        &["version"],
    ] {
        let output = crossdock(&[command, &["--help"]].concat());
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(stdout(&output).contains("Examples:\n"), "{command:?}: {}", stdout(&output));
        assert_eq!(stderr(&output), "");
    }
    let help = crossdock(&["build", "--help"]);
    assert!(
        !stdout(&help).contains("--cache-from"),
        "flags that are only answered with advice are not advertised"
    );
}

#[test]
fn versions_agree() {
    let expected = format!("crossdock {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(&crossdock(&["version"])), expected);
    assert_eq!(stdout(&crossdock(&["--version"])), expected);
}

#[test]
fn every_shell_gets_its_completion() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = crossdock(&["completion", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("fingerprint"), "{shell}");
    }
}

#[test]
fn wrong_command_lines_end_with_2_and_the_nearest_word() {
    for (args, part) in [
        (&["biuld", "."][..], "'build'"),
        (&["build", "--no-cahce", "."], "'--no-cache'"),
        (&["build", "-o", "type=oic,dest=x", "."], "did you mean `oci`"),
        (&["build", "--secret", "id=a,scr=x", "."], "did you mean `src`"),
        (&["build", "."], ""),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let output = command(args).current_dir(directory.path()).output().unwrap();
        let code = if part.is_empty() { 1 } else { 2 };
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("error: "), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

#[test]
fn a_missing_dockerfile_is_named_with_advice() {
    let directory = tempfile::tempdir().unwrap();
    let output = command(&["build", "."]).current_dir(directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.starts_with("error: the Dockerfile `./Dockerfile` cannot be read\n"), "{text}");
    assert!(text.contains("\nhint: name it with `--file`"), "{text}");
}

#[test]
fn errors_are_json_where_progress_is() {
    let directory = tempfile::tempdir().unwrap();
    let output =
        command(&["build", "--progress", "json", "."]).current_dir(directory.path()).output().unwrap();
    let value: serde_json::Value = serde_json::from_str(stderr(&output).trim()).unwrap();
    assert_eq!(value["event"], "error");
    assert_eq!(value["exit_code"], 1);
    assert!(value["hint"].as_str().unwrap().contains("--file"));
}

#[test]
fn variables_stand_in_for_flags() {
    let output = command(&["build", "."]).env("CROSSDOCK_PROGRESS", "fancy").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("fancy"), "{}", stderr(&output));
    let output = command(&["cache", "du"]).env_remove("HOME").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--local-cache"), "{}", stderr(&output));
}

#[test]
fn a_broken_archive_on_standard_input_is_no_dockerfile() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = command(&["build", "--local-cache", directory.path().to_str().unwrap(), "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\x1f\x8b\x08 not a Dockerfile").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("standard input"), "{}", stderr(&output));
    assert!(stderr(&output).contains("is no tar"), "{}", stderr(&output));
}

#[test]
fn pruning_asks_first() {
    let directory = tempfile::tempdir().unwrap();
    let local = directory.path().to_str().unwrap();
    let output = crossdock(&["cache", "prune", "--all", "--local-cache", local]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--force"), "{}", stderr(&output));
}

#[test]
fn the_page_about_the_command_line_is_in_step() {
    let output = crossdock(&["__docs"]);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
    let page = fs_err::read_to_string(path).unwrap();
    assert!(page == stdout(&output), "docs/cli.md is out of date: run `crossdock __docs > docs/cli.md`");
}
