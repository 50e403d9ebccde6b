//! What the documentation tells people to type exists.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::Context;

/// The lines of fenced blocks that a reader would type, continued lines joined.
fn commands(markdown: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut fenced = false;
    let mut joined = String::new();
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if !fenced {
            continue;
        }
        let line = line.trim().trim_start_matches("$ ");
        if let Some(start) = line.strip_suffix('\\') {
            joined.push_str(start);
            continue;
        }
        joined.push_str(line);
        commands.push(std::mem::take(&mut joined));
    }
    commands
}

/// What a command line asks of `crossdock`: the subcommands, and the flags.
fn asked(command: &str) -> Option<(Vec<String>, Vec<String>)> {
    let mut words = command.split_whitespace().skip_while(|word| {
        let variable = word
            .split_once('=')
            .is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
        variable || *word == "sudo"
    });
    let program = words.next()?;
    let rest: Vec<_> = if program == "cargo" {
        let rest: Vec<_> = words.collect();
        let separator = rest.iter().position(|word| *word == "--")?;
        if rest.first() != Some(&"run") {
            return None;
        }
        rest[separator + 1..].to_vec()
    } else if program == "crossdock" || program.ends_with("/crossdock") {
        words.collect()
    } else {
        return None;
    };
    // What follows in a pipe, or as a comment, is somebody else's.
    let rest: Vec<_> =
        rest.into_iter().take_while(|word| !["|", ">", "&&", "#", ";"].contains(word)).collect();
    let subcommands = rest
        .iter()
        .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-'))
        .take(match rest[..] {
            ["cache", "mounts", ..] => 3,
            ["cache" | "inspect" | "token" | "admin" | "policy", ..] => 2,
            _ => 1,
        })
        .map(ToString::to_string)
        .collect();
    let flags = rest
        .iter()
        .filter(|word| word.starts_with('-') && **word != "-" && **word != "--")
        .map(|word| word.split('=').next().unwrap().to_owned())
        .collect();
    Some((subcommands, flags))
}

fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    for entry in std::fs::read_dir(root.join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
            pages.push(format!("docs/{name}"));
        }
    }
    pages.into_iter().map(|page| (page.clone(), std::fs::read_to_string(root.join(&page)).unwrap())).collect()
}

#[test]
fn every_command_in_the_documentation_exists() {
    let context = Context::new();
    let mut checked = 0;
    for (page, text) in pages() {
        for command in commands(&text) {
            let Some((subcommands, flags)) = asked(&command) else { continue };
            let help = context.crossdock().args(&subcommands).arg("--help").success().stdout();
            let known: BTreeSet<&str> = help
                .split(|c: char| {
                    c.is_whitespace() || c == ',' || c == '=' || c == '[' || c == ']' || c == '<'
                })
                .filter(|word| word.starts_with('-'))
                .collect();
            for flag in flags {
                assert!(
                    known.contains(flag.as_str()) || ["--help", "--version"].contains(&flag.as_str()),
                    "{page}: `{command}`: no {flag} in the help of {subcommands:?}"
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 5, "only {checked} commands found: are they still written in fenced blocks?");
}

/// The reference is what the program says of itself.
#[test]
fn the_reference_is_current() {
    let printed = Context::new().crossdock().arg("__docs").success().stdout();
    let kept = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md")).unwrap();
    assert!(printed == kept, "docs/cli.md is old: run `cargo run -- __docs > docs/cli.md`");
}

/// The two commands that a newcomer is promised.
#[test]
fn the_readme_names_the_two_commands() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let typed = commands(&readme);
    for promised in ["cargo run --release -- demo", "./test"] {
        assert!(
            typed.iter().any(|command| command == promised),
            "README.md does not tell to type `{promised}`"
        );
    }
}

#[test]
fn the_reader_of_commands_reads_commands() {
    let text = "text\n```sh\n$ A=b crossdock cache ls --long \\\n  --json | less -R\ncargo run --release -- demo --keep=x\nls -l\n```\ncrossdock nothing\n";
    let found: Vec<_> = commands(text).iter().filter_map(|command| asked(command)).collect();
    let words = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        found,
        [(words(&["cache", "ls"]), words(&["--long", "--json"])), (words(&["demo"]), words(&["--keep"])),]
    );
}
