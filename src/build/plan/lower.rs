//! From drafted stages to steps: variables expanded, configuration and history written.

mod add;
mod run;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::draft::{Base, Command, Draft, StageDraft};
use super::env::{Variables, argument};
use super::history::{go_duration, plain_list, quoted_list};
use super::lint::{self, Once};
use super::outline::Capture;
use super::{CopyOp, Input, Op, Plan, PlannedStage, PlannedStep, RemoteAdd, SourceSpec, Start, WorkdirOp};
use crate::build::copy::view::clean;
use crate::dockerfile::expand::Lexer;
use crate::dockerfile::lint::{Finding, Linter, is_sensitive};
use crate::dockerfile::{
    Chmod, CommandLine, Copy, DockerfileError, Healthcheck, Heredoc, Instruction, Lines, Spanned,
};
use crate::event::StepId;
use crate::image::{self, History, ImageConfig};
use crate::platform::Platform;

/// The search path of images that set none (`system.DefaultPathEnvUnix`).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What BuildKit puts in the `comment` of its history entries.
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

/// Arguments that do not enter the environment of commands.
pub(super) const NOT_IN_ENVIRONMENT: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// The state of a stage after some of its instructions.
#[derive(Debug, Clone)]
struct State {
    env: Variables,
    declared: Vec<(String, Option<String>)>,
    /// Variables that are build arguments which commands are not to be keyed on.
    unkeyed: BTreeSet<String>,
    image: ImageConfig,
    cwd: String,
    /// A WORKDIR was given in this Dockerfile.
    has_workdir: bool,
    /// The base's environment is not known, so that no variable can be told to be undefined.
    is_unknown: bool,
}

impl Draft<'_> {
    /// Lowers the stages that the target needs. All images must be resolved.
    pub(crate) fn lower(self) -> Result<Plan, DockerfileError> {
        let reachable = self.reachable();
        let mut lowering = Lowering {
            draft: &self,
            numbers: HashMap::new(),
            states: HashMap::new(),
            context: None,
            sources: self.sources.clone(),
            names: Vec::new(),
            captures: HashMap::new(),
        };
        let mut stages = Vec::new();
        for number in reachable {
            let stage = lowering.stage(number)?;
            lowering.numbers.insert(number, stages.len());
            stages.push(stage);
        }
        let Lowering { numbers, sources, names, captures, .. } = lowering;
        let outline = self.outline(&captures);
        let target = numbers[&self.target];
        for (name, value) in &self.request.labels {
            stages[target].image.config.labels.insert(name.clone(), value.clone());
        }
        Ok(Plan { stages, target, sources, names, outline })
    }
}

struct Lowering<'d, 'a> {
    draft: &'d Draft<'a>,
    /// Numbers in the plan by numbers in the draft.
    numbers: HashMap<usize, usize>,
    states: HashMap<usize, State>,
    /// The build context's number among the sources, once it is needed.
    context: Option<usize>,
    sources: Vec<SourceSpec>,
    names: Vec<String>,
    captures: HashMap<usize, Capture>,
}

/// Everything needed while one stage is lowered.
struct StageLowering<'l, 'd, 'a> {
    all: &'l mut Lowering<'d, 'a>,
    drafted: &'d StageDraft,
    state: State,
    steps: Vec<PlannedStep>,
    /// A CMD was given in this stage.
    has_cmd: bool,
    /// How many named steps the stage has, and how many were named so far.
    total: usize,
    named: usize,
    is_trigger: bool,
    /// Takes what is questionable about the instruction.
    lint: Linter,
    once: Once,
    capture: Capture,
    slots: HashMap<&'static str, usize>,
}

impl<'d, 'a> Lowering<'d, 'a> {
    fn stage(&mut self, number: usize) -> Result<PlannedStage, DockerfileError> {
        let draft: &'d Draft<'a> = self.draft;
        let drafted = &draft.stages[number];
        let platform = drafted.platform.clone();
        let mut state = match drafted.base {
            Base::Stage(base) => {
                let mut state = self.states[&base].clone();
                state.image.config.on_build.clear();
                state
            }
            Base::Scratch => State::of(empty_image(&platform)),
            Base::Source(source) => match draft.configs.get(&source) {
                Some(config) => {
                    let mut config = config.clone();
                    config.created = None;
                    config.config.on_build.clear();
                    State::of(config)
                }
                None => State::of(empty_image(&platform)),
            },
        };
        if let Base::Source(source) = drafted.base {
            state.is_unknown = draft.unknown.contains(&source);
        }
        if state.env.get("PATH").is_none() {
            state.set_env("PATH", DEFAULT_PATH);
        }
        let (start, directory) = match drafted.base {
            Base::Scratch => (Start::Empty, None),
            Base::Stage(base) => (Start::Stage(self.numbers[&base]), None),
            Base::Source(source) if !matches!(self.sources[source], SourceSpec::Image { .. }) => {
                (Start::Empty, Some(source))
            }
            Base::Source(source) => (Start::Source(source), None),
        };
        let layered = |command: &&Command| {
            let node = &command.instruction.node;
            matches!(
                node,
                Instruction::Run(_) | Instruction::Copy(_) | Instruction::Add(_) | Instruction::Workdir(_)
            )
        };
        let from_source = matches!(start, Start::Source(_));
        let mut lowering = StageLowering {
            total: drafted.commands.iter().filter(layered).count()
                + usize::from(from_source || directory.is_some()),
            all: self,
            drafted,
            state,
            steps: Vec::new(),
            has_cmd: false,
            named: 0,
            is_trigger: false,
            lint: draft.lint.clone(),
            once: Once::default(),
            capture: draft.first_capture(number),
            slots: HashMap::new(),
        };
        let start_step = from_source.then(|| {
            let name = format!("FROM {}", drafted.base_name);
            lowering.name(&name)
        });
        if let Some(source) = directory {
            lowering.directory_base(source);
        }
        for command in &drafted.commands {
            lowering.is_trigger = command.is_trigger;
            // Triggers come from elsewhere, without comments.
            lowering.lint = if command.is_trigger {
                draft.lint.clone()
            } else {
                draft.lint.above(draft.dockerfile.comments_above(command.instruction.lines))
            };
            lowering.instruction(&command.instruction)?;
        }
        let StageLowering { state, steps, capture, .. } = lowering;
        let filters = &draft.request.no_cache_filter;
        let no_cache =
            draft.request.no_cache || filters.iter().any(|name| name.eq_ignore_ascii_case(&drafted.label));
        self.captures.insert(number, capture);
        self.states.insert(number, state.clone());
        Ok(PlannedStage { start, start_step, platform, steps, image: state.image, no_cache })
    }

    /// The number of a source, which is added if it is new.
    fn source(&mut self, spec: SourceSpec) -> usize {
        let known = self.sources.iter().position(|known| *known == spec);
        known.unwrap_or_else(|| {
            self.sources.push(spec);
            self.sources.len() - 1
        })
    }

    /// The build context's number among the sources.
    fn context(&mut self) -> usize {
        *self.context.get_or_insert_with(|| {
            self.sources.push(SourceSpec::Context);
            self.sources.len() - 1
        })
    }
}

impl State {
    fn of(image: ImageConfig) -> Self {
        let mut env = Variables::default();
        for variable in &image.config.env {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            env.set(name, value);
        }
        let cwd = absolute("/", &image.config.working_dir);
        Self {
            env,
            declared: Vec::new(),
            unkeyed: BTreeSet::new(),
            image,
            cwd,
            has_workdir: false,
            is_unknown: false,
        }
    }

    /// Sets a variable in the image's configuration too, in place if it is there.
    fn set_env(&mut self, name: &str, value: &str) {
        self.env.set(name, value);
        self.unkeyed.remove(name);
        let variables = &mut self.image.config.env;
        let text = format!("{name}={value}");
        let same = |variable: &&mut String| {
            variable.split_once('=').map_or(variable.as_str(), |(known, _)| known) == name
        };
        match variables.iter_mut().find(same) {
            Some(variable) => *variable = text,
            None => variables.push(text),
        }
    }

    /// The variables that commands are not keyed on, with their values. What is empty could be everywhere.
    fn unkeyed(&self) -> Vec<(String, String)> {
        let pairs = self.env.pairs().iter();
        let pairs = pairs.filter(|(name, value)| self.unkeyed.contains(name) && !value.is_empty());
        pairs.cloned().collect()
    }

    fn user(&self) -> String {
        self.image.config.user.clone()
    }
}

/// `path` in `directory`, absolute and clean.
fn absolute(directory: &str, path: &str) -> String {
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("{directory}/{path}") };
    let cleaned = clean(joined.as_bytes());
    format!("/{}", String::from_utf8_lossy(&cleaned))
}

impl StageLowering<'_, '_, '_> {
    fn error(&self, lines: Lines, message: impl Into<String>) -> DockerfileError {
        DockerfileError::at(&self.all.draft.dockerfile.source, lines, message)
    }

    /// Names a step as BuildKit does: `[build 2/4] RUN make`.
    fn name(&mut self, text: &str) -> StepId {
        self.named += 1;
        let width = self.total.to_string().len();
        let single = self.all.draft.stages.len() == 1;
        let stage = if single { String::new() } else { format!("{} ", self.drafted.label) };
        let trigger = if self.is_trigger { "ONBUILD " } else { "" };
        let platform = self.platform_of_name();
        self.all
            .names
            .push(format!("[{platform}{stage}{:width$}/{}] {trigger}{text}", self.named, self.total));
        StepId(u32::try_from(self.all.names.len() - 1).unwrap_or(u32::MAX))
    }

    /// What tells a step from the same one for another platform: `linux/amd64->arm64 `, where there are several.
    fn platform_of_name(&self) -> String {
        let draft = self.all.draft;
        if !draft.request.multi_platform {
            return String::new();
        }
        let (own, target) = (&self.drafted.platform, &draft.target_platform);
        if own.os != target.os {
            return format!("{own}->{target} ");
        }
        if own.architecture == target.architecture {
            return format!("{own} ");
        }
        let target = target.to_string();
        // The system is the same: `linux/amd64->arm64`.
        format!("{own}->{} ", target.split_once('/').map_or(target.as_str(), |(_, rest)| rest))
    }

    /// A stage that starts from a directory context: all of it is copied into an empty image.
    fn directory_base(&mut self, source: usize) {
        let text = format!("FROM {}", self.drafted.base_name);
        let id = self.name(&text);
        let op = CopyOp::everything(Input::Source(source), "/");
        self.steps.push(PlannedStep {
            id,
            slot: format!("{}:FROM", self.drafted.label),
            lines: self.drafted.lines,
            instruction: text.clone(),
            op: Op::Copy(Box::new(op)),
        });
        self.history(text, true);
    }

    fn expand(&self, lines: Lines, text: &str) -> Result<String, DockerfileError> {
        self.expand_with(self.all.draft.lexer, lines, text)
    }

    fn expand_with(&self, lexer: Lexer, lines: Lines, text: &str) -> Result<String, DockerfileError> {
        match lexer.word(text, &self.state.env) {
            Ok(expanded) => {
                self.check_defined(&expanded.unmatched, lines);
                Ok(expanded.text)
            }
            Err(error) => Err(self.error(lines, error.to_string()).word(text)),
        }
    }

    /// As [`Self::expand`], for a text that will be expanded once more: what is questionable about it is found then.
    fn peek(&self, lines: Lines, text: &str) -> Result<String, DockerfileError> {
        let expanded = self.all.draft.lexer.word(text, &self.state.env);
        expanded
            .map(|expanded| expanded.text)
            .map_err(|error| self.error(lines, error.to_string()).word(text))
    }

    fn check_defined(&self, unmatched: &BTreeSet<String>, lines: Lines) {
        if !self.state.is_unknown {
            lint::undefined(unmatched, &self.state.declared, &self.state.env, lines, &self.lint);
        }
    }

    /// A variable of ARG or ENV should hold no secret.
    fn check_secret(&self, keyword: &str, name: &str, lines: Lines) {
        if is_sensitive(name) {
            self.lint.report(Finding::secrets_used_in_arg_or_env(keyword, name), lines);
        }
    }

    fn expand_option(&self, lines: Lines, text: Option<&String>) -> Result<Option<String>, DockerfileError> {
        let expanded = text.map(|text| self.expand(lines, text)).transpose()?;
        Ok(expanded.filter(|text| !text.is_empty()))
    }

    fn expand_pairs(
        &self,
        lines: Lines,
        pairs: &[(String, String)],
    ) -> Result<Vec<(String, String)>, DockerfileError> {
        pairs
            .iter()
            .map(|(name, value)| Ok((self.expand(lines, name)?, self.expand(lines, value)?)))
            .collect()
    }

    fn history(&mut self, created_by: String, has_layer: bool) {
        self.state.image.history.push(History {
            created_by,
            comment: HISTORY_COMMENT.to_owned(),
            empty_layer: !has_layer,
            ..History::default()
        });
    }

    fn push(&mut self, instruction: &Spanned<Instruction>, op: Op) {
        let keyword = instruction.node.keyword();
        let name = self.display_name(instruction);
        let id = self.name(&name);
        let count = self.slots.entry(keyword).or_insert(0);
        *count += 1;
        let slot = format!("{}:{keyword}:{count}", self.drafted.label);
        self.steps.push(PlannedStep {
            id,
            slot,
            lines: instruction.lines,
            instruction: instruction.original.clone(),
            op,
        });
    }

    /// The instruction for people: variables expanded where that is possible.
    fn display_name(&self, instruction: &Spanned<Instruction>) -> String {
        let text = match &instruction.node {
            Instruction::Run(run) => match run.heredoc_summary() {
                Some(summary) => format!("{} ({summary})", instruction.original),
                None => instruction.original.clone(),
            },
            _ => {
                let lexer = Lexer { raw_quotes: true, skip_unset: true, ..self.all.draft.lexer };
                let expanded = lexer.word(&instruction.original, &self.state.env);
                expanded.map_or_else(|_| instruction.original.clone(), |expanded| expanded.text)
            }
        };
        match text.split_once(char::is_whitespace) {
            Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
            None => text.to_uppercase(),
        }
    }

    fn instruction(&mut self, instruction: &Spanned<Instruction>) -> Result<(), DockerfileError> {
        let lines = instruction.lines;
        self.once.check(instruction, &self.lint);
        match &instruction.node {
            Instruction::Arg(declarations) => {
                let mut texts = Vec::new();
                for declared in declarations {
                    let name = declared.name.clone();
                    self.check_secret("ARG", &name, lines);
                    let dockerfile = self.all.draft.dockerfile;
                    let mut is_global = false;
                    let value = match (argument(&self.all.draft.request.build_args, &name), &declared.default)
                    {
                        (Some(given), _) => Some(given.to_owned()),
                        (None, Some(default)) => Some(self.expand(lines, default)?),
                        (None, None) => {
                            let value = self.all.draft.globals.get(&name).map(str::to_owned);
                            is_global = value.is_some();
                            value
                        }
                    };
                    self.capture.declared(dockerfile, &name, value.as_deref(), lines, is_global);
                    if let Some(value) = &value
                        && !NOT_IN_ENVIRONMENT.contains(&name.as_str())
                    {
                        self.state.env.set(name.clone(), value.clone());
                        if self.all.draft.request.unkeyed_args.contains(&name) {
                            self.state.unkeyed.insert(name.clone());
                        }
                    }
                    texts.push(match &value {
                        Some(value) => format!("{name}={value}"),
                        None => name.clone(),
                    });
                    self.state.declared.push((name, value));
                }
                self.history(format!("ARG {}", texts.join(" ")), false);
            }
            Instruction::Env(pairs) => {
                let pairs = self.expand_pairs(lines, pairs)?;
                let mut text = String::from("ENV");
                for (name, value) in &pairs {
                    if name.is_empty() {
                        return Err(self.error(lines, "ENV names can not be blank"));
                    }
                    self.check_legacy(instruction);
                    self.check_secret("ENV", name, lines);
                    self.state.set_env(name, value);
                    text.push_str(&format!(" {name}={value}"));
                }
                self.history(text, false);
            }
            Instruction::Label(pairs) => {
                let pairs = self.expand_pairs(lines, pairs)?;
                self.check_legacy(instruction);
                let mut text = String::from("LABEL");
                let labels = &mut self.state.image.config.labels;
                for (name, value) in pairs {
                    text.push_str(&format!(" {name}={value}"));
                    labels.insert(name, value);
                }
                self.history(text, false);
            }
            Instruction::Run(run) => self.run(instruction, run)?,
            Instruction::Copy(copy) => self.copy(instruction, copy)?,
            Instruction::Add(add) => self.add(instruction, add)?,
            Instruction::Workdir(path) => {
                let written = self.expand(lines, path)?;
                if !self.state.has_workdir && !written.starts_with('/') {
                    self.lint.report(Finding::workdir_relative_path(&written), lines);
                }
                self.state.has_workdir = true;
                let path = absolute(&self.state.cwd, &written);
                // An absolute path stays in the configuration as it is written.
                let shown = if written.starts_with('/') { written } else { path.clone() };
                let has_layer = path != "/";
                if has_layer {
                    let op = WorkdirOp { path: path.clone(), user: self.state.user() };
                    self.push(instruction, Op::Workdir(op));
                }
                self.history(format!("WORKDIR {shown}"), has_layer);
                self.state.image.config.working_dir = shown;
                self.state.cwd = path;
            }
            Instruction::User(user) => {
                let user = self.expand(lines, user)?;
                self.history(format!("USER {user}"), false);
                self.state.image.config.user = user;
            }
            Instruction::Cmd(command) => {
                self.check_json(instruction, command);
                let args = self.command_line(command);
                self.history(format!("CMD {}", quoted_list(&args)), false);
                self.state.image.config.cmd = args;
                self.state.image.config.args_escaped = true;
                self.has_cmd = true;
            }
            Instruction::Entrypoint(command) => {
                self.check_json(instruction, command);
                let args = self.command_line(command);
                self.history(format!("ENTRYPOINT {}", quoted_list(&args)), false);
                self.state.image.config.entrypoint = args;
                if !self.has_cmd {
                    self.state.image.config.cmd.clear();
                }
            }
            Instruction::Shell(shell) => {
                self.history(format!("SHELL {}", plain_list(shell)), false);
                self.state.image.config.shell.clone_from(shell);
            }
            Instruction::Expose(ports) => {
                let mut words = Vec::new();
                for port in ports {
                    let expanded = self.all.draft.lexer.words(port, &self.state.env);
                    words.extend(expanded.map_err(|cause| self.error(lines, cause.to_string()).word(port))?);
                }
                let mut all = Vec::new();
                for word in words {
                    let ports = crate::dockerfile::parse_port(&word);
                    let ports = ports.map_err(|cause| self.error(lines, cause.to_string()).word(&word))?;
                    for finding in ports.findings {
                        self.lint.report(finding, lines);
                    }
                    all.extend(ports.ports);
                }
                self.state.image.config.exposed_ports.extend(all.iter().cloned());
                self.history(format!("EXPOSE {}", plain_list(&all)), false);
            }
            Instruction::Volume(paths) => {
                let mut volumes = Vec::new();
                for path in paths {
                    let path = self.expand(lines, path)?;
                    if path.is_empty() {
                        return Err(self.error(lines, "VOLUME specified can not be an empty string"));
                    }
                    volumes.push(path);
                }
                self.state.image.config.volumes.extend(volumes.iter().cloned());
                self.history(format!("VOLUME {}", plain_list(&volumes)), false);
            }
            Instruction::StopSignal(signal) => {
                let signal = self.expand(lines, signal)?;
                crate::dockerfile::check_signal(&signal)
                    .map_err(|cause| self.error(lines, cause.to_string()).word(&signal))?;
                self.history(format!("STOPSIGNAL {signal}"), false);
                self.state.image.config.stop_signal = signal;
            }
            Instruction::Healthcheck(check) => self.healthcheck(check),
            Instruction::OnBuild(trigger) => {
                self.state.image.config.on_build.push(trigger.clone());
            }
            Instruction::Maintainer(name) => {
                self.history(format!("MAINTAINER {name}"), false);
                self.state.image.author.clone_from(name);
            }
        }
        Ok(())
    }

    /// ENV and LABEL should have `=` between name and value.
    fn check_legacy(&self, instruction: &Spanned<Instruction>) {
        let escape = if self.is_trigger { '\\' } else { self.all.draft.lexer.escape };
        if instruction.is_legacy(escape) {
            self.lint.report(Finding::legacy_key_value_format(instruction.keyword()), instruction.lines);
        }
    }

    /// CMD and ENTRYPOINT should be JSON, unless the stage says itself which shell it means.
    fn check_json(&self, instruction: &Spanned<Instruction>, command: &CommandLine) {
        if matches!(command, CommandLine::Shell(_)) && self.state.image.config.shell.is_empty() {
            self.lint.report(Finding::json_args_recommended(instruction.keyword()), instruction.lines);
        }
    }

    fn shell(&self) -> Vec<String> {
        match self.state.image.config.shell.as_slice() {
            [] => vec!["/bin/sh".to_owned(), "-c".to_owned()],
            shell => shell.to_vec(),
        }
    }

    fn command_line(&self, command: &CommandLine) -> Vec<String> {
        match command {
            CommandLine::Exec(args) => args.clone(),
            CommandLine::Shell(text) => {
                let mut args = self.shell();
                args.push(text.clone());
                args
            }
        }
    }

    fn healthcheck(&mut self, check: &Healthcheck) {
        let none = Duration::ZERO;
        let (test, [interval, timeout, start_period, start_interval], retries) = match check {
            Healthcheck::None => (vec!["NONE".to_owned()], [none; 4], 0),
            Healthcheck::Check { command, interval, timeout, start_period, start_interval, retries } => {
                let test = match command {
                    CommandLine::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
                    CommandLine::Exec(args) => [vec!["CMD".to_owned()], args.clone()].concat(),
                };
                (test, [*interval, *timeout, *start_period, *start_interval], *retries)
            }
        };
        self.history(
            format!(
                "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{retries}}}",
                plain_list(&test),
                go_duration(interval),
                go_duration(timeout),
                go_duration(start_period),
                go_duration(start_interval),
            ),
            false,
        );
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        self.state.image.config.healthcheck = Some(image::Healthcheck {
            test,
            interval: nanos(interval),
            timeout: nanos(timeout),
            start_period: nanos(start_period),
            start_interval: nanos(start_interval),
            retries: retries.into(),
        });
    }

    fn input(&mut self, lines: Lines, from: &str) -> Result<Input, DockerfileError> {
        match self.drafted.inputs.get(from) {
            Some(Input::Stage(stage)) => Ok(Input::Stage(self.all.numbers[stage])),
            Some(input) => Ok(*input),
            None => Err(self.error(lines, format!("`{from}` is not known")).word(from)),
        }
    }

    fn copy(&mut self, instruction: &Spanned<Instruction>, copy: &Copy) -> Result<(), DockerfileError> {
        let lines = instruction.lines;
        self.refuse_remote(lines, copy)?;
        let input = match &copy.from {
            Some(from) => self.input(lines, from)?,
            None if copy.sources.is_empty() => Input::Empty,
            None => Input::Source(self.all.context()),
        };
        let common = Common {
            sources: &copy.sources,
            heredocs: &copy.heredocs,
            destination: &copy.dest,
            owner: copy.chown.as_ref(),
            chmod: copy.chmod.as_ref(),
            exclude: &copy.exclude,
            parents: copy.parents,
            link: copy.link,
            unpack: false,
            remotes: Vec::new(),
        };
        let from_context = copy.from.is_none();
        self.copy_files(instruction, "COPY", input, &common)?;
        self.check_copied(instruction, "Copy", from_context);
        Ok(())
    }

    /// What the step that was added last copies from the context should be there.
    fn check_copied(&self, instruction: &Spanned<Instruction>, command: &str, from_context: bool) {
        let Some(PlannedStep { op: Op::Copy(op), .. }) = self.steps.last() else { return };
        let Some(ignore) = self.all.draft.ignore.as_ref().filter(|_| from_context) else { return };
        for source in &op.sources {
            lint::copied(command, source, ignore, instruction.lines, &self.lint);
        }
    }

    fn copy_files(
        &mut self,
        instruction: &Spanned<Instruction>,
        keyword: &str,
        input: Input,
        common: &Common<'_>,
    ) -> Result<(), DockerfileError> {
        let lines = instruction.lines;
        let owner = self.expand_option(lines, common.owner)?;
        if let Some(owner) = owner.as_ref().filter(|owner| common.link && is_named_owner(owner)) {
            let message = format!(
                "--chown={owner}: user and group names can't be resolved when used with --link, use numeric uid[:gid] instead"
            );
            return Err(self.error(lines, message).word(owner));
        }
        let chmod_text = self.expand_option(lines, common.chmod)?;
        let chmod = match &chmod_text {
            None => None,
            Some(text) => match text.parse::<Chmod>() {
                Ok(chmod) => Some((text.clone(), chmod)),
                Err(cause) => return Err(self.error(lines, cause.to_string()).word(text)),
            },
        };
        let mut written_sources = Vec::new();
        let mut sources = Vec::new();
        for (number, source) in common.sources.iter().enumerate() {
            let source = self.expand(lines, source)?;
            if !common.remotes.iter().any(|(remote, _)| *remote == number) {
                sources.push(source.clone());
            }
            written_sources.push(source);
        }
        let written = self.expand(lines, common.destination)?;
        let mut files = Vec::new();
        for heredoc in common.heredocs {
            let mut body = heredoc.body();
            if heredoc.expand {
                body = self.expand_with(Lexer::heredoc(), lines, &body)?;
            }
            files.push((heredoc.name.clone(), body.into_bytes()));
        }
        let mut history = String::from(keyword);
        for (flag, value) in [
            (" --parents", common.parents.then_some("")),
            (" --chown=", owner.as_deref()),
            (" --chmod=", chmod_text.as_deref()),
        ] {
            if let Some(value) = value {
                history.push_str(&format!("{flag}{value}"));
            }
        }
        for source in &written_sources {
            history.push_str(&format!(" {source}"));
        }
        for (name, _) in &files {
            history.push_str(&format!(" <<{name}"));
        }
        history.push_str(&format!(" {written} # buildkit"));
        let op = CopyOp {
            input,
            sources,
            files,
            destination: destination(&self.state.cwd, &written),
            owner,
            chmod,
            parents: common.parents,
            // `convert_copy.go`: a merge is made only without --chmod.
            link: common.link && chmod_text.as_deref().unwrap_or_default().is_empty(),
            exclude: common.exclude.to_vec(),
            unpack: common.unpack,
            remotes: common.remotes.iter().map(|(_, remote)| remote.clone()).collect(),
        };
        self.push(instruction, Op::Copy(Box::new(op)));
        self.history(history, true);
        Ok(())
    }
}

/// The configuration of an image with nothing in it (`dockerfile2llb/image.go`, `emptyImage`).
fn empty_image(platform: &Platform) -> ImageConfig {
    let mut config = ImageConfig::new(platform);
    "/".clone_into(&mut config.config.working_dir);
    config.config.env.push(format!("PATH={DEFAULT_PATH}"));
    config
}

/// Whether an owner has to be looked up in an image (`convert_copy.go`, `chownByName`).
pub(crate) fn is_named_owner(owner: &str) -> bool {
    let named = |part: &str| part != "root" && !part.is_empty() && part.parse::<i32>().is_err();
    match owner.split_once(':') {
        Some((user, group)) => named(user) || named(group),
        None => named(owner),
    }
}

/// What COPY and ADD have in common, as written.
struct Common<'c> {
    sources: &'c [String],
    heredocs: &'c [Heredoc],
    destination: &'c str,
    owner: Option<&'c String>,
    chmod: Option<&'c String>,
    exclude: &'c [String],
    parents: bool,
    link: bool,
    unpack: bool,
    /// Sources that are fetched, by their number among all.
    remotes: Vec<(usize, RemoteAdd)>,
}

/// The destination of a copy: absolute, with what says that it is a directory (`/` or `/.` at the end) kept
/// (`pathRelativeToWorkingDir`).
fn destination(cwd: &str, written: &str) -> String {
    let written = if written.is_empty() || written == "." { "./" } else { written };
    let path = absolute(cwd, written);
    let is_directory = written.ends_with('/') || written.ends_with("/.");
    if is_directory && path != "/" { format!("{path}/") } else { path }
}
