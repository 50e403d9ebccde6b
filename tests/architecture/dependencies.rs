//! What the package depends on: how much, from where, under which licences. `deny.toml` says what is allowed;
//! this checks it without cargo-deny and without the network, for the platform that the tests run on.
//! `./test --long` runs cargo-deny itself, which also knows about advisories.

use std::process::Command;

use serde_json::Value;

/// The packages that Cargo.lock may list. Each is something to build, to audit and to keep current: before this
/// number is raised, look for one to do without.
const BUDGET: usize = 330;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[test]
fn the_dependencies_stay_within_their_budget() {
    let lock = super::read(&super::root().join("Cargo.lock"));
    let count = lock.lines().filter(|line| *line == "[[package]]").count();
    assert!(count > 0, "Cargo.lock lists no packages");
    assert!(count <= BUDGET, "Cargo.lock lists {count} packages, more than the {BUDGET} of the budget");
}

#[test]
fn every_dependency_is_allowed() {
    let rules = super::read(&super::root().join("deny.toml"));
    let licences = array(&rules, "licenses", "allow");
    let banned = array(&rules, "bans", "deny");
    assert!(licences.contains(&"MIT".to_owned()) && !banned.is_empty(), "deny.toml was not understood");
    super::assert_clean(&wrong_packages(&metadata(), &licences, &banned));
}

fn wrong_packages(metadata: &Value, licences: &[String], banned: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = format!("{} {}", package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        let licence = package["license"].as_str().unwrap_or("(none)");
        if !allowed(licence, licences) {
            wrong.push(format!("{name}: its licence {licence} is not one that deny.toml allows"));
        }
        if banned.iter().any(|banned| Some(banned.as_str()) == package["name"].as_str()) {
            wrong.push(format!("{name}: deny.toml bans it, and says why"));
        }
        if package["source"].as_str().is_some_and(|source| source != REGISTRY) {
            wrong.push(format!("{name}: comes from {}, not from crates.io", package["source"]));
        }
    }
    wrong
}

fn metadata() -> Value {
    let version = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    // Only what was needed to build this test is asked for, so that nothing has to be fetched.
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", host])
        .current_dir(super::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Whether an SPDX expression can be satisfied with the licences of the list. `/` is the old spelling of `OR`.
fn allowed(expression: &str, licences: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    either(&words, &mut at, licences) && at == words.len()
}

fn either(words: &[&str], at: &mut usize, licences: &[String]) -> bool {
    let mut fine = both(words, at, licences);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        fine |= both(words, at, licences);
    }
    fine
}

fn both(words: &[&str], at: &mut usize, licences: &[String]) -> bool {
    let mut fine = one(words, at, licences);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        fine &= one(words, at, licences);
    }
    fine
}

fn one(words: &[&str], at: &mut usize, licences: &[String]) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let fine = either(words, at, licences);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return fine && closed;
    }
    let mut name = (*word).to_owned();
    if words.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    licences.contains(&name)
}

/// The names in an array of `deny.toml`: strings, or tables with a `crate` or `name`. Comments are skipped.
fn array(text: &str, section: &str, key: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut in_section = false;
    let mut in_array = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') && !in_array {
            in_section = line == format!("[{section}]");
        } else if in_section && line == format!("{key} = [") {
            in_array = true;
        } else if in_array && line == "]" {
            return names;
        } else if in_array && !line.starts_with('#') {
            names.extend(line.split('"').nth(1).map(ToOwned::to_owned));
        }
    }
    names
}

mod the_rules_themselves {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn licence_expressions() {
        let licences = list(&["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]);
        for fine in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "ISC AND (MIT OR GPL-3.0)",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0",
        ] {
            assert!(allowed(fine, &licences), "{fine}");
        }
        for wrong in
            ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND Zlib", "Apache-2.0", "(none)", "", "(MIT"]
        {
            assert!(!allowed(wrong, &licences), "{wrong}");
        }
    }

    #[test]
    fn arrays_of_deny_toml() {
        let text = "[a]\nallow = [\n  \"X\",\n]\n[b]\n# c\nallow = [\n  # \"no\"\n  \"Y\",\n  \
            { crate = \"z\", reason = \"r\" },\n]\n";
        assert_eq!(array(text, "b", "allow"), ["Y", "z"]);
        assert_eq!(array(text, "c", "allow"), [""; 0]);
    }

    #[test]
    fn wrong_packages_are_found() {
        let metadata = serde_json::json!({"packages": [
            {"name": "own", "version": "1.0.0", "license": "MIT", "source": null},
            {"name": "good", "version": "1.0.0", "license": "MIT", "source": REGISTRY},
            {"name": "viral", "version": "1.0.0", "license": "GPL-3.0", "source": REGISTRY},
            {"name": "nameless", "version": "1.0.0", "license": null, "source": REGISTRY},
            {"name": "bad", "version": "1.0.0", "license": "MIT", "source": REGISTRY},
            {"name": "elsewhere", "version": "1.0.0", "license": "MIT", "source": "git+https://example.com/a"},
        ]});
        let wrong = wrong_packages(&metadata, &list(&["MIT"]), &list(&["bad"]));
        let names: Vec<_> = wrong.iter().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(names, ["viral", "nameless", "bad", "elsewhere"]);
    }
}
