//! What a target can be given: arguments, secrets and agents, as BuildKit's outline tells them
//! (`dockerfile2llb/outline.go`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Input;
use super::draft::{Base, Draft};
use crate::dockerfile::{Dockerfile, Lines};

/// What a target can be given, each kind in the order of the Dockerfile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// The target's name, if it has one.
    pub name: String,
    /// What the comments above it say.
    pub description: String,
    /// The build arguments that it declares, or uses in FROM.
    pub args: Vec<OutlineArg>,
    /// The secrets that its commands mount.
    pub secrets: Vec<OutlineMount>,
    /// The agents that its commands mount.
    pub ssh: Vec<OutlineMount>,
}

/// A build argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineArg {
    /// Its name.
    pub name: String,
    /// What the comments above it say.
    pub description: String,
    /// The value that it has in this build.
    pub value: String,
    /// Where it is declared.
    pub lines: Lines,
}

/// A secret or an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineMount {
    /// Its id.
    pub name: String,
    /// Whether the command fails without it.
    pub required: bool,
    /// The command that mounts it first.
    pub lines: Lines,
}

/// What is known of one stage.
#[derive(Debug, Clone, Default)]
pub(super) struct Capture {
    args: BTreeMap<String, Argument>,
    used: BTreeSet<String>,
    secrets: BTreeMap<String, (bool, Lines)>,
    ssh: BTreeMap<String, (bool, Lines)>,
}

#[derive(Debug, Clone)]
struct Argument {
    shown: OutlineArg,
    /// The arguments that its default is made of.
    parts: BTreeSet<String>,
}

impl Capture {
    /// Takes a declaration before the first FROM. `parts` are the arguments in its default.
    pub(super) fn global(
        &mut self,
        dockerfile: &Dockerfile,
        name: &str,
        value: Option<&str>,
        lines: Lines,
        mut parts: BTreeSet<String>,
    ) {
        if parts.remove(name)
            && let Some(before) = self.args.get(name)
        {
            parts.extend(before.parts.iter().cloned());
        }
        let shown = shown(dockerfile, name, value, lines);
        self.args.insert(name.to_owned(), Argument { shown, parts });
    }

    /// Takes a declaration in a stage. One that only hands on a global argument is told as the global one.
    pub(super) fn declared(
        &mut self,
        dockerfile: &Dockerfile,
        name: &str,
        value: Option<&str>,
        lines: Lines,
        is_global: bool,
    ) {
        if !is_global {
            let shown = shown(dockerfile, name, value, lines);
            self.args.insert(name.to_owned(), Argument { shown, parts: BTreeSet::new() });
        }
        self.used.insert(name.to_owned());
    }

    /// Takes the arguments that FROM uses.
    pub(super) fn uses(&mut self, names: &BTreeSet<String>) {
        self.used.extend(names.iter().cloned());
    }

    /// Takes a mounted secret.
    pub(super) fn secret(&mut self, id: &str, required: bool, lines: Lines) {
        self.secrets.entry(id.to_owned()).or_insert((required, lines));
    }

    /// Takes a mounted agent.
    pub(super) fn ssh(&mut self, id: &str, required: bool, lines: Lines) {
        self.ssh.entry(id.to_owned()).or_insert((required, lines));
    }

    /// The arguments in use, those included that others' defaults are made of.
    fn all_used(&self) -> BTreeSet<&str> {
        let mut all = BTreeSet::new();
        let mut todo: Vec<&str> = self.used.iter().map(String::as_str).collect();
        while let Some(name) = todo.pop() {
            if all.insert(name) {
                let parts = self.args.get(name).map(|argument| &argument.parts);
                todo.extend(parts.into_iter().flatten().map(String::as_str));
            }
        }
        all
    }
}

fn shown(dockerfile: &Dockerfile, name: &str, value: Option<&str>, lines: Lines) -> OutlineArg {
    OutlineArg {
        name: name.to_owned(),
        description: dockerfile.description(lines, name).to_owned(),
        value: value.unwrap_or_default().to_owned(),
        lines,
    }
}

impl Draft<'_> {
    /// What is known of a stage before its instructions: what FROM uses, here and in the stages that it is based on.
    pub(super) fn first_capture(&self, number: usize) -> Capture {
        let mut capture = self.capture.clone();
        let mut number = number;
        loop {
            // A stage that a named context replaces has no FROM.
            if !self.is_replaced(number) {
                capture.uses(&self.stages[number].used_args);
            }
            match self.stages[number].base {
                Base::Stage(base) if base < number => number = base,
                _ => return capture,
            }
        }
    }

    /// What the target can be given, from what is known of the stages that it needs.
    pub(super) fn outline(&self, captures: &HashMap<usize, Capture>) -> Outline {
        let stage = &self.dockerfile.stages[self.target];
        let name = stage.from.name.clone().unwrap_or_default();
        let description = self.dockerfile.description(stage.lines, &name).to_owned();
        let mut outline = Outline { name, description, ..Outline::default() };
        let mut seen = BTreeSet::new();
        let mut todo = vec![self.target];
        // A stage comes before what it is based on, because its own declaration is the one that counts.
        while let Some(number) = todo.pop() {
            if !seen.insert(number) {
                continue;
            }
            if let Some(capture) = captures.get(&number) {
                outline.add(capture);
            }
            let stage = &self.stages[number];
            let inputs = stage.inputs.values().filter_map(|input| match input {
                Input::Stage(stage) => Some(*stage),
                _ => None,
            });
            todo.extend(inputs);
            if let Base::Stage(base) = stage.base {
                todo.push(base);
            }
        }
        outline.args.sort_by_key(|argument| argument.lines.start);
        outline.secrets.sort_by_key(|secret| secret.lines.start);
        outline.ssh.sort_by_key(|agent| agent.lines.start);
        outline
    }
}

impl Outline {
    fn add(&mut self, capture: &Capture) {
        for name in capture.all_used() {
            if let Some(argument) = capture.args.get(name)
                && self.args.iter().all(|known| known.name != name)
            {
                self.args.push(argument.shown.clone());
            }
        }
        let merge = |all: &mut Vec<OutlineMount>, more: &BTreeMap<String, (bool, Lines)>| {
            for (name, (required, lines)) in more {
                if all.iter().all(|known| known.name != *name) {
                    all.push(OutlineMount { name: name.clone(), required: *required, lines: *lines });
                }
            }
        };
        merge(&mut self.secrets, &capture.secrets);
        merge(&mut self.ssh, &capture.ssh);
    }
}
