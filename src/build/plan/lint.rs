//! The checks that need values: arguments, platforms, base images, the ignore file (`dockerfile2llb/validations.go`).

use std::collections::BTreeSet;

use super::draft::{Base, Draft, StageDraft};
use super::env::Variables;
use super::{ImageSpec, Input, SourceSpec};
use crate::context::ignore::Ignore;
use crate::dockerfile::expand::{Expanded, Lexer};
use crate::dockerfile::lint::{Finding, Linter, suggestion};
use crate::dockerfile::{Dockerfile, Instruction, Lines, Spanned, Stage, clean_path};
use crate::platform::Platform;
use crate::reference::Reference;

/// Base images have to be named with the defaults of global arguments, too. `arguments` are the platform's.
pub(super) fn default_images(dockerfile: &Dockerfile, lexer: Lexer, mut arguments: Variables, lint: &Linter) {
    for declared in &dockerfile.meta_args {
        let Some(default) = &declared.node.default else { continue };
        // What cannot be expanded fails the build a little later.
        let Ok(value) = lexer.word(default, &arguments) else { return };
        arguments.set(declared.node.name.clone(), value.text);
    }
    for stage in &dockerfile.stages {
        let Ok(name) = lexer.word(&stage.from.image, &arguments) else { return };
        if name.text.parse::<Reference>().is_err() {
            lint.report(Finding::invalid_default_arg_in_from(&stage.from.image), stage.lines);
        }
    }
}

/// Arguments in FROM have to be declared before the first FROM.
pub(super) fn from_arguments(
    dockerfile: &Dockerfile,
    globals: &Variables,
    expanded: &Expanded,
    lines: Lines,
    lint: &Linter,
) {
    let declared = || {
        let given = dockerfile.meta_args.iter().map(|declared| declared.node.name.as_str());
        given.chain(globals.pairs().iter().map(|(name, _)| name.as_str()))
    };
    for name in &expanded.unmatched {
        if !declared().any(|known| known == name) {
            lint.report(Finding::undefined_arg_in_from(name, suggestion(name, declared())), lines);
        }
    }
}

/// `FROM --platform` is of use only with a variable that is not the default anyway.
pub(super) fn from_platform(stage: &Stage, expanded: &Expanded, globals: &Variables, lint: &Linter) {
    const TARGET: &str = "TARGETPLATFORM";
    let written = stage.from.platform.as_deref().unwrap_or_default();
    let only_target = expanded.unmatched.is_empty() && expanded.used.iter().eq([TARGET]);
    if only_target && Some(expanded.text.as_str()) == globals.get(TARGET) {
        lint.report(Finding::redundant_target_platform(written), stage.lines);
    }
    if !expanded.used.is_empty() || !expanded.unmatched.is_empty() {
        return;
    }
    let Ok(platform) = expanded.text.parse::<Platform>() else { return };
    let name = stage.from.name.as_deref().unwrap_or_default();
    if !name.contains(&platform.os) && !name.contains(&platform.architecture) {
        lint.report(Finding::from_platform_flag_const_disallowed(&expanded.text), stage.lines);
    }
}

impl Draft<'_> {
    /// Images should be for the platform that was asked for. All must be resolved.
    pub(crate) fn check_platforms(&self) {
        for number in self.reachable() {
            let stage = &self.stages[number];
            let replaced = self.is_replaced(number);
            if let (Base::Source(source), false) = (stage.base, replaced) {
                self.check_platform(source, &stage.base_name, Some(stage.lines));
            }
            for command in &stage.commands {
                let lines = command.instruction.lines;
                match &command.instruction.node {
                    Instruction::Copy(copy) => self.check_input(stage, copy.from.as_deref(), Some(lines)),
                    Instruction::Run(run) => {
                        for mount in &run.mounts {
                            self.check_input(stage, mount.from.as_deref(), None);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn check_input(&self, stage: &StageDraft, from: Option<&str>, lines: Option<Lines>) {
        let Some(from) = from else { return };
        if let Some(Input::Source(source)) = stage.inputs.get(from) {
            self.check_platform(*source, from, lines);
        }
    }

    fn check_platform(&self, source: usize, name: &str, lines: Option<Lines>) {
        let SourceSpec::Image { image: ImageSpec::Registry(_), platform } = &self.sources[source] else {
            return;
        };
        let Some(config) = self.configs.get(&source) else { return };
        let nothing =
            config.rootfs.diff_ids.is_empty() && config.history.iter().all(|entry| entry.empty_layer);
        if self.unknown.contains(&source) || nothing || self.named_context(name).is_some() {
            return;
        }
        if config.os != platform.os || config.architecture != platform.architecture {
            let variant = config.variant.as_deref();
            let actual = Platform {
                os_version: config.os_version.clone(),
                ..Platform::new(&config.os, &config.architecture, variant)
            };
            self.lint.report(Finding::invalid_base_image_platform(name, platform, &actual), lines);
        }
    }
}

/// Which instructions of a stage were there already, of those that only count once.
#[derive(Debug, Default)]
pub(super) struct Once {
    cmd: Option<Lines>,
    entrypoint: Option<Lines>,
    healthcheck: Option<Lines>,
}

impl Once {
    /// Reports the instruction before this one, because it is without effect.
    pub(super) fn check(&mut self, instruction: &Spanned<Instruction>, lint: &Linter) {
        let slot = match &instruction.node {
            Instruction::Cmd(_) => &mut self.cmd,
            Instruction::Entrypoint(_) => &mut self.entrypoint,
            Instruction::Healthcheck(_) => &mut self.healthcheck,
            _ => return,
        };
        if let Some(before) = slot.replace(instruction.lines) {
            lint.report(Finding::multiple_instructions_disallowed(instruction.keyword()), before);
        }
    }
}

/// Variables that are used and neither set nor declared.
pub(super) fn undefined(
    unmatched: &BTreeSet<String>,
    declared: &[(String, Option<String>)],
    env: &Variables,
    lines: Lines,
    lint: &Linter,
) {
    for name in unmatched {
        let is_known = declared.iter().any(|(known, _)| known == name);
        if is_known || super::lower::NOT_IN_ENVIRONMENT.contains(&name.as_str()) {
            continue;
        }
        let meant = suggestion(name, env.pairs().iter().map(|(name, _)| name.as_str()));
        lint.report(Finding::undefined_var(name, meant), lines);
    }
}

/// What is copied from the context should not be ignored. `command` is `Copy` or `Add`.
pub(super) fn copied(command: &str, source: &str, ignore: &Ignore, lines: Lines, lint: &Linter) {
    let path = clean_path(source);
    if path == "." || path == "/" {
        let everything = ["*", "**", "**/*"];
        let is_everything = |text: &str| everything.contains(&clean_path(text).trim_start_matches('/'));
        if !ignore.rules().iter().any(|rule| !rule.negated && is_everything(&rule.text)) {
            return;
        }
    }
    if ignore.excludes_as_written(&path) {
        lint.report(Finding::copy_ignored_file(command, &path), lines);
    }
}
