//! The rules that need nothing but the text.

use std::collections::BTreeSet;

use super::super::instruction::{Dockerfile, Stage};
use super::super::node::Node;
use super::super::source::Lines;
use super::{Finding, Linter};

/// Names of stages that mean something else.
const RESERVED: [&str; 2] = ["context", "scratch"];

/// What is wrong with one instruction, found before it is understood (`instructions/parse.go`).
pub(in super::super) fn instruction(node: &Node, lint: &Linter) {
    let report = |finding| lint.above(&node.comments).report(finding, node.lines);
    match node.name().as_str() {
        "MAINTAINER" => report(Finding::maintainer_deprecated()),
        "FROM" => {
            let [_, keyword, name, more @ ..] = &node.arguments[..] else { return };
            if more.is_empty() && *name != name.to_lowercase() {
                report(Finding::stage_name_casing(name));
            }
            let from = &node.keyword;
            let matches = match () {
                () if *from == from.to_lowercase() => *keyword == keyword.to_lowercase(),
                () if *from == from.to_uppercase() => *keyword == keyword.to_uppercase(),
                () => true,
            };
            if !matches {
                report(Finding::from_as_casing(from, keyword));
            }
        }
        _ => {}
    }
}

/// A comment directly above a definition that does not describe it.
pub(in super::super) fn description(node: &Node, names: &[&str], lint: &Linter) {
    let Some(comment) = node.comments.last() else { return };
    let first = comment.split(' ').next().unwrap_or_default();
    if names.is_empty() || names.contains(&first) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { names[0] };
    let finding = Finding::invalid_definition_description(&node.name(), example);
    lint.above(&node.comments).report(finding, node.lines);
}

/// What is wrong with the stages together. Comments above instructions do not matter here.
pub(in super::super) fn stages(dockerfile: &Dockerfile, lint: &Linter) {
    let mut names = BTreeSet::new();
    for stage in &dockerfile.stages {
        let Some(name) = &stage.from.name else { continue };
        if RESERVED.contains(&name.as_str()) {
            lint.report(Finding::reserved_stage_name(name), stage.lines);
        }
        if !names.insert(name) {
            lint.report(Finding::duplicate_stage_name(name), stage.lines);
        }
    }
    casing(&dockerfile.stages, lint);
}

/// The keywords of all instructions should be in the case that most of them are in.
fn casing(stages: &[Stage], lint: &Linter) {
    let keywords: Vec<(&str, Lines)> = stages
        .iter()
        .flat_map(|stage| {
            let instructions = stage.instructions.iter().map(|found| (found.keyword(), found.lines));
            std::iter::once((keyword_of(&stage.original), stage.lines)).chain(instructions)
        })
        .collect();
    let is_lower = |keyword: &str| keyword == keyword.to_lowercase();
    let is_upper = |keyword: &str| keyword == keyword.to_uppercase();
    let lower = keywords.iter().filter(|(keyword, _)| is_lower(keyword)).count();
    let upper = keywords.iter().filter(|(keyword, _)| !is_lower(keyword) && is_upper(keyword)).count();
    for (keyword, lines) in keywords {
        if lower > upper && !is_lower(keyword) {
            lint.report(Finding::consistent_instruction_casing(keyword, "lowercase"), lines);
        } else if lower <= upper && !is_upper(keyword) {
            lint.report(Finding::consistent_instruction_casing(keyword, "uppercase"), lines);
        }
    }
}

/// The keyword of an instruction's text, as written.
pub(in super::super) fn keyword_of(original: &str) -> &str {
    original.split_whitespace().next().unwrap_or_default()
}
