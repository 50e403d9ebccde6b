//! Golden tests against BuildKit's own test data, and properties of the whole parser.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::expand::Lexer;
use super::node::{self, Node};
use super::*;

/// The golden data, or a notice that it is not there.
fn data(part: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/dockerfile").join(part);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no golden data at {}", path.display());
    None
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<_> = fs_err::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

/// Go's `%q`.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if c.is_control() => write!(out, "\\x{:02x}", u32::from(c)).unwrap(),
            c => out.push(c),
        }
    }
    out + "\""
}

/// The form of the golden `result` files.
fn dump(node: &Node) -> String {
    let mut out = node.keyword.to_lowercase();
    if !node.flags.is_empty() {
        let flags: Vec<_> = node.flags.iter().map(|flag| quote(flag)).collect();
        write!(out, " [{}]", flags.join(" ")).unwrap();
    }
    if let Some(trigger) = &node.trigger {
        write!(out, " ({})", dump(trigger)).unwrap();
    }
    let pairs = matches!(node.name().as_str(), "ENV" | "LABEL");
    for (index, argument) in node.arguments.iter().enumerate() {
        write!(out, " {}", quote(argument)).unwrap();
        if pairs && index % 2 == 1 {
            out.push_str(if node.legacy { " \"\"" } else { " \"=\"" });
        }
    }
    out
}

#[test]
fn golden_parses() {
    let Some(path) = data("parser/testfiles") else { return };
    let folders = folders(&path);
    assert!(folders.len() > 25);
    for folder in folders {
        let text = fs_err::read_to_string(folder.join("Dockerfile")).unwrap();
        let expected = fs_err::read_to_string(folder.join("result")).unwrap();
        let nodes = node::parse(&SourceText::new("Dockerfile", &text), &text).unwrap();
        let mut result = String::new();
        for node in &nodes.nodes {
            writeln!(result, "({})", dump(node)).unwrap();
        }
        assert_eq!(result.trim(), expected.trim(), "{}", folder.display());
    }
}

#[test]
fn golden_errors() {
    let Some(path) = data("parser/testfiles-negative") else { return };
    for folder in folders(&path) {
        let text = fs_err::read(folder.join("Dockerfile")).unwrap();
        assert!(parse("Dockerfile", &text).is_err(), "{}", folder.display());
    }
}

#[test]
fn golden_line_numbers() {
    let Some(path) = data("parser/testfile-line/Dockerfile") else { return };
    let text = fs_err::read_to_string(path).unwrap();
    let nodes = node::parse(&SourceText::new("Dockerfile", &text), &text).unwrap().nodes;
    let lines: Vec<_> = nodes.iter().map(|node| (node.lines.start, node.lines.end)).collect();
    assert_eq!(lines, [(5, 5), (11, 12), (17, 31)]);
}

#[test]
fn golden_contexts_parse() {
    let Some(path) = data("contexts") else { return };
    let mut pending = vec![path];
    let mut count = 0;
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(folders(&path));
        } else if path.file_name().unwrap().to_string_lossy().starts_with("Dockerfile") {
            count += 1;
            // One asks for Docker's frontend from a mirror.
            let syntax = Some("docker/dockerfile:1");
            if let Err(error) = parse_with_syntax("Dockerfile", &fs_err::read(&path).unwrap(), syntax) {
                panic!("{}: {error}", path.display());
            }
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn golden_expansion() {
    let Some(path) = data("expand/envVarTest") else { return };
    let env = [("PWD", "/home"), ("SHELL", "bash"), ("KOREAN", "한국어"), ("NULL", "")];
    let mut count = 0;
    for line in fs_err::read_to_string(path).unwrap().lines() {
        let parts: Vec<_> = line.split('|').map(str::trim).collect();
        let [platform, source, expected] = parts[..] else { continue };
        if line.starts_with('#') || platform == "W" {
            continue;
        }
        count += 1;
        let result = Lexer::new('\\').word(source, &env);
        match result {
            Ok(word) => assert_eq!(word.text, expected, "{line}"),
            Err(error) => assert_eq!("error", expected, "{line}: {error}"),
        }
    }
    assert!(count > 200, "{count}");
}

#[test]
fn golden_words() {
    let Some(path) = data("expand/wordsTest") else { return };
    let text = fs_err::read_to_string(path).unwrap();
    let mut env: Vec<(String, String)> = Vec::new();
    let mut count = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(pair) = line.strip_prefix("ENV ") {
            let (key, value) = pair.trim_start().split_once('=').unwrap();
            env.push((key.to_owned(), value.to_owned()));
        } else if let Some((source, expected)) = line.split_once('|') {
            count += 1;
            let result = Lexer::new('\\')
                .words(source.trim(), &env)
                .unwrap_or_else(|_| vec!["error".to_owned()])
                .join(",");
            assert_eq!(result, expected.trim_start(), "{line}");
        }
    }
    assert!(count > 20, "{count}");
}
