//! The shape of the code, checked: floors (a floor uses only what lies below it), what the library leaves to its
//! front ends, how large a file may grow, and what the package depends on.
//!
//! The floors are read from the table at the head of `src/lib.rs`, so that there is one list of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "architecture/dependencies.rs"]
mod dependencies;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A file is one idea. Beyond this there are two.
const MAX_LINES: usize = 900;

/// What a folder may do although the rule says otherwise, with the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("src/exec/", "process::exit", "the helper process of a step ends with the step's exit code"),
    ("src/layer/diff.rs", "std::fs", "reads what a step changed from a directory that is passed in, open"),
    ("src/layer/unpack.rs", "std::fs", "unpacks into a directory that is passed in, open"),
];

/// The modules of one floor, by name.
type Floors = Vec<(String, BTreeSet<String>)>;

#[test]
fn floors_use_only_what_lies_below() {
    let lib = read(&root().join("src/lib.rs"));
    let floors = floors(&lib);
    let sources: Vec<_> = sources("src").into_iter().map(|(path, text)| (path, tokens(&text))).collect();
    assert_clean(&arrows_up(&floors, &sources));
}

#[test]
fn every_module_has_a_floor() {
    let lib = read(&root().join("src/lib.rs"));
    let floors = floors(&lib);
    let declared: BTreeSet<String> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ").or(line.strip_prefix("mod "))?.strip_suffix(';'))
        .map(ToOwned::to_owned)
        .collect();
    let on_floors: BTreeSet<String> = floors.iter().flat_map(|(_, modules)| modules.clone()).collect();
    assert_eq!(declared, on_floors, "modules of src/lib.rs, and of the table at its head");
}

#[test]
fn the_library_leaves_the_outside_to_its_callers() {
    assert_clean(&forbidden(&sources("src"), &floors(&read(&root().join("src/lib.rs")))));
}

#[test]
fn a_file_is_one_idea() {
    let mut all = sources("src");
    all.extend(sources("tests"));
    assert_clean(&too_long(&all));
}

#[test]
fn nothing_is_left_for_later() {
    let mut all = sources("src");
    all.extend(sources("tests"));
    all.extend(sources("benches"));
    assert_clean(&left_for_later(&all));
}

/// A test file that no `mod` line names is silently not run.
#[test]
fn every_end_to_end_test_is_run() {
    let main = read(&root().join("tests/e2e/main.rs"));
    let mut missing = Vec::new();
    for entry in std::fs::read_dir(root().join("tests/e2e")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.strip_suffix(".rs").unwrap_or(&name);
        if module != "main" && !main.lines().any(|line| line == format!("mod {module};")) {
            missing.push(format!("tests/e2e/{name} is not named in tests/e2e/main.rs"));
        }
    }
    assert_clean(&missing);
}

// ---- the rules, over text that is passed in ----

/// The table of `src/lib.rs`, from the ground up.
fn floors(lib: &str) -> Floors {
    let mut floors: Floors = Vec::new();
    for line in lib.lines().filter_map(|line| line.strip_prefix("//! |")) {
        let Some((name, modules)) = line.split_once('|') else { continue };
        let modules: BTreeSet<String> = modules
            .split(['[', ']', '`'])
            .filter(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
            .map(ToOwned::to_owned)
            .collect();
        if !modules.is_empty() && name.trim() != "floor" {
            floors.push((name.trim().to_owned(), modules));
        }
    }
    floors.reverse();
    floors
}

/// Where a module uses one that lies above it, and cycles between modules of one floor.
fn arrows_up(floors: &Floors, sources: &[(String, Vec<Token>)]) -> Vec<String> {
    let floor_of: BTreeMap<&str, usize> = floors
        .iter()
        .enumerate()
        .flat_map(|(height, (_, modules))| modules.iter().map(move |module| (module.as_str(), height)))
        .collect();
    let mut wrong = Vec::new();
    let mut beside: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (path, tokens) in sources {
        let Some(module) = module_path(path).first().cloned() else { continue };
        let Some(&height) = floor_of.get(module.as_str()) else { continue };
        for (line, used) in modules_used(&module_path(path), tokens) {
            let Some(&used_height) = floor_of.get(used.as_str()) else { continue };
            if used_height > height {
                wrong.push(format!(
                    "{path}:{line}: `{module}` ({}) uses `{used}` ({}), which lies above it",
                    floors[height].0, floors[used_height].0
                ));
            } else if used_height == height && used != module {
                beside.entry(module.clone()).or_default().entry(used).or_insert(format!("{path}:{line}"));
            }
        }
    }
    for start in beside.keys() {
        if let Some(cycle) = cycle_from(start, &beside) {
            // Each cycle is found once for each of its members: keep the one that begins with the least.
            if cycle.iter().all(|member| start <= member) {
                let places: Vec<_> = cycle
                    .iter()
                    .zip(cycle.iter().cycle().skip(1))
                    .map(|(from, to)| format!("{from} → {to} at {}", beside[from][to]))
                    .collect();
                wrong.push(format!("modules of one floor in a circle: {}", places.join(", ")));
            }
        }
    }
    wrong
}

/// The shortest way from `start` back to itself.
fn cycle_from(start: &str, edges: &BTreeMap<String, BTreeMap<String, String>>) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut ways = vec![vec![start.to_owned()]];
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in edges.get(way.last()?).into_iter().flat_map(BTreeMap::keys) {
                if next == start {
                    return Some(way);
                }
                if seen.insert(next.clone()) {
                    let mut way = way.clone();
                    way.push(next.clone());
                    longer.push(way);
                }
            }
        }
        ways = longer;
    }
    None
}

/// What only front ends do, and what formats and words do not do at all.
fn forbidden(sources: &[(String, String)], floors: &Floors) -> Vec<String> {
    const FRONT_ENDS_ONLY: &[&str] = &[
        "println!",
        "eprintln!",
        "print!",
        "eprint!",
        "dbg!",
        "env::var",
        "env::var_os",
        "env::vars",
        "env::vars_os",
        "env::args",
        "env::args_os",
        "env::current_dir",
        "env::temp_dir",
        "env::home_dir",
        "SystemTime::now",
        "process::exit",
    ];
    const NOT_IN_FORMATS: &[&str] = &[
        "fs_err",
        "std::fs",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "std::process",
        "File::open",
        "File::create",
        "Instant::now",
        "tokio",
        "reqwest",
    ];
    let low: BTreeSet<&str> =
        floors.iter().take(2).flat_map(|(_, modules)| modules).map(String::as_str).collect();
    let mut wrong = Vec::new();
    for (path, text) in sources {
        let module = module_path(path);
        let Some(module) = module.first() else { continue };
        let tokens = tokens(text);
        let mut rules: Vec<(&str, &str)> = Vec::new();
        if module != "cli" {
            rules.extend(FRONT_ENDS_ONLY.iter().map(|what| (*what, "only front ends do that")));
        }
        if low.contains(module.as_str()) {
            rules.extend(
                NOT_IN_FORMATS.iter().map(|what| (*what, "formats know no files, sockets or clocks")),
            );
        }
        for (what, why) in rules {
            if EXCEPTIONS.iter().any(|(folder, excepted, _)| path.starts_with(folder) && *excepted == what) {
                continue;
            }
            let wanted = self::tokens(what);
            for window in tokens.windows(wanted.len()) {
                if window.iter().zip(&wanted).all(|(found, wanted)| found.text == wanted.text) {
                    wrong.push(format!("{path}:{}: {what} ({why})", window[0].line));
                }
            }
        }
    }
    wrong
}

fn too_long(sources: &[(String, String)]) -> Vec<String> {
    sources
        .iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| {
            format!("{path}: {lines} lines, more than {MAX_LINES}: give the second idea a file")
        })
        .collect()
}

fn left_for_later(sources: &[(String, String)]) -> Vec<String> {
    // Put together here, so that this file does not find itself.
    let words =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("unimple", "mented!")];
    let mut wrong = Vec::new();
    for (path, text) in sources {
        for (number, line) in text.lines().enumerate() {
            for word in words {
                let found = line.match_indices(word).any(|(at, _)| {
                    let beside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
                    !beside(line[..at].chars().next_back()) && !beside(line[at + word.len()..].chars().next())
                });
                if found {
                    wrong.push(format!("{path}:{}: {word}", number + 1));
                }
            }
        }
    }
    wrong
}

// ---- reading Rust, as far as it is needed ----

/// One word or sign of the source, and its line. Comments, literals and `#[cfg(test)]` items are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
}

/// `src/tree/merge.rs` → `tree`, `merge`; nothing for the roots `lib.rs` and `main.rs`.
fn module_path(path: &str) -> Vec<String> {
    let inner = path.strip_prefix("src/").unwrap_or(path);
    let inner = inner.strip_suffix(".rs").unwrap_or(inner);
    let inner = inner.strip_suffix("/mod").unwrap_or(inner);
    if inner == "lib" || inner == "main" {
        return Vec::new();
    }
    inner.split('/').map(ToOwned::to_owned).collect()
}

/// The top-level modules that a file names: `crate::x`, `use crate::{x, y::z}` and `super::` up to the root.
fn modules_used(module: &[String], tokens: &[Token]) -> Vec<(usize, String)> {
    let mut used = Vec::new();
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    // How many inline modules (`mod x { … }`) are open, by the brace depth at which each began.
    let mut depth = 0_usize;
    let mut inline = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match text(at) {
            "{" => {
                depth += 1;
                if at >= 2 && text(at - 2) == "mod" {
                    inline.push(depth);
                }
            }
            "}" => {
                if inline.last() == Some(&depth) {
                    inline.pop();
                }
                depth = depth.saturating_sub(1);
            }
            "crate" if text(at + 1) == "::" => {
                collect(tokens, at + 2, &mut used);
                at += 1;
            }
            "super" if text(at + 1) == "::" && (at == 0 || text(at - 1) != "::") => {
                let mut supers = 0;
                while text(at + 2 * supers) == "super" && text(at + 2 * supers + 1) == "::" {
                    supers += 1;
                }
                if supers == module.len() + inline.len() {
                    collect(tokens, at + 2 * supers, &mut used);
                }
                at += 2 * supers - 1;
            }
            _ => {}
        }
        at += 1;
    }
    used
}

/// The first words of the path, or of each path in braces, that begins at `at`.
fn collect(tokens: &[Token], at: usize, used: &mut Vec<(usize, String)>) {
    let Some(first) = tokens.get(at) else { return };
    if first.text != "{" {
        used.push((first.line, first.text.clone()));
        return;
    }
    let mut depth = 0;
    for (offset, token) in tokens[at..].iter().enumerate() {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ if depth == 1 && matches!(tokens[at + offset - 1].text.as_str(), "{" | ",") => {
                used.push((token.line, token.text.clone()));
            }
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}

/// Cuts a source into words and signs.
fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let mut tokens: Vec<Token> = Vec::new();
    let mut line = 1;
    let mut at = 0;
    let get = |at: usize| chars.get(at).copied().unwrap_or('\0');
    while at < chars.len() {
        let start = at;
        let c = chars[at];
        if c == '/' && get(at + 1) == '/' {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if c == '/' && get(at + 1) == '*' {
            let mut depth = 0;
            loop {
                if get(at) == '/' && get(at + 1) == '*' {
                    depth += 1;
                    at += 2;
                } else if get(at) == '*' && get(at + 1) == '/' {
                    depth -= 1;
                    at += 2;
                } else {
                    at += 1;
                }
                if depth == 0 || at >= chars.len() {
                    break;
                }
            }
        } else if c == '"' {
            at = skip_string(&chars, at);
        } else if let Some(end) = skip_raw_string(&chars, at) {
            at = end;
        } else if c == 'b' && get(at + 1) == '"' || c == 'c' && get(at + 1) == '"' {
            at = skip_string(&chars, at + 1);
        } else if c == '\'' {
            // A character, or a lifetime.
            if get(at + 1) == '\\' {
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            } else if get(at + 2) == '\'' {
                at += 3;
            } else {
                at += 1;
            }
        } else if c.is_alphanumeric() || c == '_' {
            while get(at).is_alphanumeric() || get(at) == '_' {
                at += 1;
            }
            tokens.push(Token { text: chars[start..at].iter().collect(), line });
        } else if c == ':' && get(at + 1) == ':' {
            at += 2;
            tokens.push(Token { text: "::".to_owned(), line });
        } else {
            at += 1;
            if !c.is_whitespace() {
                tokens.push(Token { text: c.to_string(), line });
            }
        }
        line += chars[start..at.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    without_tests(&tokens)
}

/// The index behind the string whose opening quote is at `at`.
fn skip_string(chars: &[char], mut at: usize) -> usize {
    at += 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The index behind the raw string that begins at `at`, if one does.
fn skip_raw_string(chars: &[char], at: usize) -> Option<usize> {
    if at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_') {
        return None;
    }
    let mut open = at;
    if matches!(chars[open], 'b' | 'c') {
        open += 1;
    }
    if *chars.get(open)? != 'r' {
        return None;
    }
    let hashes = chars[open + 1..].iter().take_while(|c| **c == '#').count();
    let mut end = open + 1 + hashes;
    if *chars.get(end)? != '"' {
        return None;
    }
    end += 1;
    while end < chars.len() {
        if chars[end] == '"' && chars[end + 1..].iter().take_while(|c| **c == '#').count() >= hashes {
            return Some(end + 1 + hashes);
        }
        end += 1;
    }
    Some(end)
}

/// Leaves out each item that stands under `#[cfg(test)]`, or an attribute that implies it.
fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let marks: Vec<&str> = tokens[at..].iter().take(7).map(|token| token.text.as_str()).collect();
        let is_test = marks.starts_with(&["#", "[", "cfg", "(", "test", ")", "]"])
            || marks.starts_with(&["#", "[", "test", "]"])
            || marks.starts_with(&["#", "[", "cfg", "(", "all", "(", "test"]);
        if !is_test {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        // To the end of the item: its first `;` or its closing brace, outside of any bracket.
        let mut depth = 0_i32;
        while at < tokens.len() {
            let text = tokens[at].text.as_str();
            match text {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            at += 1;
            if depth == 0 && (text == ";" || text == "}") {
                break;
            }
        }
    }
    kept
}

// ---- files ----

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The Rust files of a folder, by their path from the root, without the unit tests' own files (`tests.rs`, or in a
/// folder `tests`), which may use what they like.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found: Vec<_> = walkdir::WalkDir::new(root().join(folder))
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| {
            entry.file_type().is_file() && entry.path().extension().is_some_and(|ext| ext == "rs")
        })
        .map(|entry| {
            let relative = entry.path().strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            (relative, read(entry.path()))
        })
        .filter(|(path, _)| {
            let inner = path.strip_prefix("src/").unwrap_or("");
            !inner.split('/').any(|part| part == "tests.rs" || part == "tests")
        })
        .collect();
    found.sort();
    found
}

#[track_caller]
fn assert_clean(wrong: &[String]) {
    let text = wrong.iter().fold(String::new(), |mut text, line| {
        writeln!(text, "  {line}").unwrap();
        text
    });
    assert!(wrong.is_empty(), "{} found:\n{text}", wrong.len());
}

// ---- the rules can fail ----

/// Each rule is shown a program that breaks it, and one that does not.
mod the_rules_themselves {
    use super::*;

    const LIB: &str = "//! | floor | modules |\n//! |---|---|\n//! | front ends | [`cli`] |\n\
        //! | stores | [`store`] |\n//! | formats | [`tree`], [`layer`], [`image`] |\n//! | words | [`digest`] |\n";

    fn check(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> = files.iter().map(|(path, text)| ((*path).to_owned(), tokens(text))).collect();
        arrows_up(&floors(LIB), &files)
    }

    fn check_forbidden(path: &str, text: &str) -> usize {
        forbidden(&[(path.to_owned(), text.to_owned())], &floors(LIB)).len()
    }

    #[test]
    fn floors_come_from_the_table() {
        let floors = floors(LIB);
        let names: Vec<_> = floors.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["words", "formats", "stores", "front ends"]);
        assert_eq!(floors[1].1.len(), 3);
    }

    #[test]
    fn arrows_down_are_fine() {
        assert_eq!(check(&[("src/cli/mod.rs", "use crate::{store, tree::{self, Tree}};")]), [""; 0]);
        assert_eq!(check(&[("src/tree/a.rs", "use crate::digest::Digest; use super::merge;")]), [""; 0]);
    }

    #[test]
    fn arrows_up_are_found_in_every_spelling() {
        for text in [
            "use crate::store::Store;",
            "use crate::{digest::Digest, store::{Store, StoreError}};",
            "pub use crate::{store};",
            "fn f() -> crate::store::Store { loop {} }",
            "use super::super::store;",
            "mod inner { use super::super::super::store; }",
            "const A: &str = r#\"\"#; /* /* */ */ use crate::store;",
            "fn f<'a>(c: char) -> bool { c == '\"' || c == '\\'' } use crate::store;",
        ] {
            let wrong = check(&[("src/tree/a.rs", text)]);
            assert_eq!(wrong.len(), 1, "{text}: {wrong:?}");
            assert!(
                wrong[0].starts_with("src/tree/a.rs:1: `tree` (formats) uses `store` (stores)"),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn tests_comments_and_text_are_no_arrows() {
        for text in [
            "//! [`crate::store`]\nfn f() {}",
            "const A: &str = \"use crate::store;\";",
            "const A: &str = r#\"\"use crate::store;\"#;",
            "#[cfg(test)] mod tests { use crate::store; fn f() { loop {} } }",
            "#[cfg(test)] use crate::store;",
            "#[cfg(test)] #[allow(x)] pub(crate) mod tests { use crate::store; }",
        ] {
            assert_eq!(check(&[("src/tree/a.rs", text)]), [""; 0], "{text}");
        }
        let after = "#[cfg(test)] mod tests { fn f() {} }\nuse crate::store;";
        assert_eq!(check(&[("src/tree/a.rs", after)]).len(), 1);
    }

    #[test]
    fn circles_on_one_floor_are_found_once() {
        let straight = [("src/tree/a.rs", "use crate::layer;"), ("src/layer/a.rs", "use crate::image;")];
        assert_eq!(check(&straight), [""; 0]);
        let mut round = straight.to_vec();
        round.push(("src/image/mod.rs", "fn f() {}\nuse crate::tree;"));
        let wrong = check(&round);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].contains("image → tree at src/image/mod.rs:2"), "{wrong:?}");
    }

    #[test]
    fn the_outside_is_found() {
        for text in [
            "fn f() { println!(\"{}\", 1) }",
            "fn f() { std::env::var(\"A\") }",
            "fn f() { env::var_os(\"A\") }",
            "use std::time::SystemTime; fn f() { SystemTime::now() }",
            "fn f() { std::process::exit(1) }",
        ] {
            assert_eq!(check_forbidden("src/store/a.rs", text), 1, "{text}");
            assert_eq!(check_forbidden("src/cli/a.rs", text), 0, "{text}");
        }
        assert_eq!(
            check_forbidden("src/store/a.rs", "fn f() { write!(f, \"println!\"); env::consts::OS }"),
            0
        );
        assert_eq!(check_forbidden("src/exec/a.rs", "fn f() { process::exit(1) }"), 0);
    }

    #[test]
    fn formats_know_no_files() {
        for text in ["use std::fs::File;", "use fs_err as fs;", "use tokio::io;", "fn f() { Instant::now() }"]
        {
            assert_eq!(check_forbidden("src/tree/a.rs", text), 1, "{text}");
            assert_eq!(check_forbidden("src/store/a.rs", text), 0, "{text}");
        }
    }

    #[test]
    fn long_files_and_leftovers_are_found() {
        let file = |text: String| [("src/a.rs".to_owned(), text)];
        assert_eq!(too_long(&file("\n".repeat(MAX_LINES))), [""; 0]);
        assert_eq!(too_long(&file("\n".repeat(MAX_LINES + 1))).len(), 1);
        assert_eq!(left_for_later(&file(concat!("fn f() {} // TO", "DO: more\n").to_owned())).len(), 1);
        assert_eq!(left_for_later(&file(concat!("// a_TO", "DO_list, TO", "DOS\n").to_owned())), [""; 0]);
    }
}
