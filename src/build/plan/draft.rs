//! From a Dockerfile to the stages that a target needs, before anything is known of base images.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::env::{Variables, argument, platform_arguments};
use super::lint;
use super::outline::Capture;
use super::{ImageSpec, Input, SourceSpec};
use crate::build::options::{BuildRequest, NamedContext};
use crate::build::remotes::RemoteSpec;
use crate::context::ignore::Ignore;
use crate::dockerfile::expand::Lexer;
use crate::dockerfile::lint::Linter;
use crate::dockerfile::{self, Dockerfile, DockerfileError, Instruction, Lines, Spanned};
use crate::image::ImageConfig;
use crate::platform::Platform;
use crate::reference::Reference;

/// Triggers can bring along stages whose images have triggers again; more rounds than this are a mistake.
const TRIGGER_ROUNDS_MAX: usize = 32;

/// A Dockerfile with its stages found, while base images are being resolved.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pub(super) dockerfile: &'a Dockerfile,
    pub(super) request: &'a BuildRequest,
    /// The platform of the image.
    pub(super) target_platform: Platform,
    pub(super) globals: Variables,
    pub(super) lexer: Lexer,
    pub(super) stages: Vec<StageDraft>,
    pub(super) target: usize,
    pub(super) sources: Vec<SourceSpec>,
    /// Configurations of the images among `sources`, as they become known.
    pub(super) configs: HashMap<usize, ImageConfig>,
    /// Images among `sources` whose configuration could not be had; an empty one stands for it.
    pub(super) unknown: HashSet<usize>,
    /// Takes what is questionable.
    pub(super) lint: Linter,
    /// The rules of the context's ignore file, for checks.
    pub(super) ignore: Option<Ignore>,
    /// All stages count as needed.
    pub(super) all_stages: bool,
    /// What is known of the arguments before the first FROM.
    pub(super) capture: Capture,
    rounds: usize,
}

/// A stage while it is drafted.
#[derive(Debug)]
pub(super) struct StageDraft {
    /// The name, or `stage-N`.
    pub(super) label: String,
    pub(super) lines: Lines,
    pub(super) base: Base,
    /// The base as written, expanded, for names.
    pub(super) base_name: String,
    pub(super) platform: Platform,
    pub(super) commands: Vec<Command>,
    /// What `COPY --from` and `RUN --mount=from` name, resolved.
    pub(super) inputs: BTreeMap<String, Input>,
    /// The arguments that FROM uses.
    pub(super) used_args: BTreeSet<String>,
    triggers_done: bool,
}

/// What a stage is based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    Scratch,
    Stage(usize),
    Source(usize),
}

/// An instruction of a stage.
#[derive(Debug, Clone)]
pub(super) struct Command {
    pub(super) instruction: Spanned<Instruction>,
    /// It is a trigger of the base image.
    pub(super) is_trigger: bool,
}

impl<'a> Draft<'a> {
    /// Finds the stages and the target of `dockerfile`.
    ///
    /// Without a `platform`, it is the host's.
    pub(crate) fn new(
        dockerfile: &'a Dockerfile,
        request: &'a BuildRequest,
        platform: Option<&Platform>,
        lint: &Linter,
    ) -> Result<Self, DockerfileError> {
        let build_platform = Platform::host();
        let target_platform = platform.cloned().unwrap_or_else(|| build_platform.clone());
        let lexer = Lexer::new(dockerfile.directives.escape);
        let last_name = dockerfile.stages.last().and_then(|stage| stage.from.name.as_deref());
        let target_name = request.target.as_deref().or(last_name).unwrap_or_default();
        let mut globals =
            platform_arguments(&build_platform, &target_platform, target_name, &request.build_args);
        lint::default_images(dockerfile, lexer, globals.clone(), lint);
        let mut capture = Capture::default();
        for declared in &dockerfile.meta_args {
            let mut parts = BTreeSet::new();
            let value = match (argument(&request.build_args, &declared.node.name), &declared.node.default) {
                (Some(given), _) => Some(given.to_owned()),
                (None, Some(default)) => {
                    let expanded = lexer.word(default, &globals).map_err(|error| {
                        DockerfileError::at(&dockerfile.source, declared.lines, error.to_string())
                    })?;
                    parts = expanded.used;
                    Some(expanded.text)
                }
                (None, None) => None,
            };
            capture.global(dockerfile, &declared.node.name, value.as_deref(), declared.lines, parts);
            if let Some(value) = value {
                globals.set(declared.node.name.clone(), value);
            }
        }
        let mut draft = Self {
            dockerfile,
            request,
            target_platform: target_platform.clone(),
            globals,
            lexer,
            stages: Vec::new(),
            target: 0,
            sources: Vec::new(),
            configs: HashMap::new(),
            unknown: HashSet::new(),
            lint: lint.clone(),
            ignore: None,
            all_stages: false,
            capture,
            rounds: 0,
        };
        let mut names: HashMap<String, usize> = HashMap::new();
        for (number, stage) in dockerfile.stages.iter().enumerate() {
            let drafted = draft.draft_stage(number, stage, &names, &target_platform)?;
            draft.stages.push(drafted);
            if let Some(name) = &stage.from.name {
                names.insert(name.to_lowercase(), number);
            }
        }
        draft.target = match &request.target {
            None => draft.stages.len() - 1,
            Some(name) => *names.get(&name.to_lowercase()).ok_or_else(|| {
                let message = format!("target stage \"{name}\" could not be found");
                let last = dockerfile.stages.last().map_or(Lines::one(1), |stage| stage.lines);
                let known = names.keys().map(String::as_str);
                DockerfileError::at(&dockerfile.source, last, message).suggest(name, known)
            })?,
        };
        for number in 0..draft.stages.len() {
            draft.find_inputs(number, &names)?;
        }
        if draft.stages.len() == 1 {
            "stage-0".clone_into(&mut draft.stages[0].label);
        }
        Ok(draft)
    }

    fn draft_stage(
        &mut self,
        number: usize,
        stage: &dockerfile::Stage,
        names: &HashMap<String, usize>,
        target_platform: &Platform,
    ) -> Result<StageDraft, DockerfileError> {
        let error = |message: String| DockerfileError::at(&self.dockerfile.source, stage.lines, message);
        let expand = |text: &str| self.lexer.word(text, &self.globals);
        let lint = self.lint.above(self.dockerfile.comments_above(stage.lines));
        let expanded = expand(&stage.from.image).map_err(|cause| error(cause.to_string()))?;
        lint::from_arguments(self.dockerfile, &self.globals, &expanded, stage.lines, &lint);
        let (base_name, mut used_args) = (expanded.text, expanded.used);
        if base_name.is_empty() {
            let message = format!("base name ({}) should not be blank", stage.from.image);
            return Err(error(message)
                .word(&stage.from.image)
                .with_hint("give the ARG a default before the first FROM, or pass it with --build-arg"));
        }
        let mut platform = target_platform.clone();
        if let Some(raw) = &stage.from.platform {
            let expanded = expand(raw).map_err(|cause| error(cause.to_string()))?;
            lint::from_arguments(self.dockerfile, &self.globals, &expanded, stage.lines, &lint);
            lint::from_platform(stage, &expanded, &self.globals, &lint);
            used_args.extend(expanded.used);
            let text = expanded.text;
            if text.is_empty() {
                return Err(error(format!("empty platform value from expression {raw}")).word(raw));
            }
            platform = text.parse().map_err(|cause| error(format!("{cause}")).word(raw))?;
        }
        // A named context with a stage's name replaces the stage, instructions and all.
        let replacement =
            stage.from.name.as_ref().and_then(|name| self.request.build_contexts.get(name)).cloned();
        let (base, commands) = match replacement {
            Some(context) => {
                let base = self.context_base(&context, names, stage.lines, &platform)?;
                (base, Vec::new())
            }
            None => {
                let base = self.find_base(&base_name, names, stage.lines, &platform)?;
                let command = |instruction: &Spanned<Instruction>| Command {
                    instruction: instruction.clone(),
                    is_trigger: false,
                };
                (base, stage.instructions.iter().map(command).collect())
            }
        };
        match base {
            Base::Stage(base) => platform = self.stages[base].platform.clone(),
            // Nothing has no platform, whatever FROM says.
            Base::Scratch => platform = target_platform.clone(),
            Base::Source(_) => {}
        }
        Ok(StageDraft {
            label: stage.from.name.clone().unwrap_or_else(|| format!("stage-{number}")),
            lines: stage.lines,
            base,
            base_name,
            platform,
            commands,
            inputs: BTreeMap::new(),
            used_args,
            triggers_done: false,
        })
    }

    fn find_base(
        &mut self,
        name: &str,
        names: &HashMap<String, usize>,
        lines: Lines,
        platform: &Platform,
    ) -> Result<Base, DockerfileError> {
        if name == "scratch" {
            return Ok(Base::Scratch);
        }
        if let Some(stage) = names.get(&name.to_lowercase()) {
            return Ok(Base::Stage(*stage));
        }
        if let Some(context) = self.named_context(name).cloned() {
            return self.context_base(&context, names, lines, platform);
        }
        let reference: Reference = name.parse().map_err(|cause| {
            DockerfileError::at(&self.dockerfile.source, lines, format!("{cause}"))
                .word(name)
                .suggest(name, names.keys().map(String::as_str))
        })?;
        Ok(Base::Source(self.image(ImageSpec::Registry(reference), platform)))
    }

    fn context_base(
        &mut self,
        context: &NamedContext,
        names: &HashMap<String, usize>,
        lines: Lines,
        platform: &Platform,
    ) -> Result<Base, DockerfileError> {
        Ok(match context {
            NamedContext::Directory(path) => Base::Source(self.source(SourceSpec::Directory(path.clone()))),
            NamedContext::Remote(source) => {
                Base::Source(self.source(SourceSpec::Remote(RemoteSpec::of_context(source))))
            }
            NamedContext::Image(reference) => {
                Base::Source(self.image(ImageSpec::Registry(reference.clone()), platform))
            }
            NamedContext::OciLayout(location) => {
                Base::Source(self.image(ImageSpec::Layout(location.clone()), platform))
            }
            NamedContext::Archive(path) => {
                Base::Source(self.image(ImageSpec::Archive(path.clone()), platform))
            }
            NamedContext::Stage(name) => Base::Stage(*names.get(&name.to_lowercase()).ok_or_else(|| {
                let message = format!("the build context `target:{name}` names no earlier stage");
                DockerfileError::at(&self.dockerfile.source, lines, message)
                    .suggest(name, names.keys().map(String::as_str))
            })?),
        })
    }

    /// The named context that stands for an image name: names are compared in their familiar form, without
    /// `:latest` (`dockerui/namedcontext.go`).
    pub(super) fn named_context(&self, name: &str) -> Option<&NamedContext> {
        let familiar = |name: &str| {
            let reference: Option<Reference> = name.parse().ok();
            let text = reference.map_or_else(|| name.to_owned(), |reference| reference.familiar());
            text.strip_suffix(":latest").map_or(text.clone(), str::to_owned)
        };
        let wanted = familiar(name);
        self.request
            .build_contexts
            .iter()
            .find(|(given, _)| familiar(given) == wanted)
            .map(|(_, context)| context)
    }

    fn image(&mut self, image: ImageSpec, platform: &Platform) -> usize {
        self.source(SourceSpec::Image { image, platform: platform.clone() })
    }

    /// The number of a source, which is added if it is new.
    pub(super) fn source(&mut self, spec: SourceSpec) -> usize {
        match self.sources.iter().position(|known| *known == spec) {
            Some(number) => number,
            None => {
                self.sources.push(spec);
                self.sources.len() - 1
            }
        }
    }

    /// Resolves what the instructions of a stage take from elsewhere.
    fn find_inputs(&mut self, number: usize, names: &HashMap<String, usize>) -> Result<(), DockerfileError> {
        let mut wanted: Vec<(String, Lines)> = Vec::new();
        for command in &self.stages[number].commands {
            let lines = command.instruction.lines;
            let froms: Vec<String> = match &command.instruction.node {
                Instruction::Copy(copy) => copy.from.iter().cloned().collect(),
                Instruction::Run(run) => run.mounts.iter().filter_map(|mount| mount.from.clone()).collect(),
                _ => continue,
            };
            wanted.extend(froms.into_iter().map(|from| (from, lines)));
        }
        for (from, lines) in wanted {
            if self.stages[number].inputs.contains_key(&from) {
                continue;
            }
            let input = self.find_input(number, &from, names, lines)?;
            self.stages[number].inputs.insert(from, input);
        }
        Ok(())
    }

    fn find_input(
        &mut self,
        number: usize,
        from: &str,
        names: &HashMap<String, usize>,
        lines: Lines,
    ) -> Result<Input, DockerfileError> {
        let error = |message: String| DockerfileError::at(&self.dockerfile.source, lines, message).word(from);
        if from.contains('$') {
            let hint = "define a new stage with FROM using ARG from global scope as a workaround";
            return Err(error("variable expansion is not supported for --from".to_owned()).with_hint(hint));
        }
        let stage = match from.parse::<usize>() {
            Ok(index) if index >= self.stages.len() => {
                return Err(error(format!("invalid stage index {index}")));
            }
            Ok(index) => Some(index),
            Err(_) => names.get(&from.to_lowercase()).copied(),
        };
        if let Some(stage) = stage {
            if stage >= number {
                let label = &self.stages[number].label;
                return Err(error(format!(
                    "cannot copy from stage \"{from}\", it needs to be defined before current stage \"{label}\""
                )));
            }
            return Ok(Input::Stage(stage));
        }
        Ok(match self.find_base(from, names, lines, &self.target_platform.clone())? {
            Base::Scratch => Input::Empty,
            Base::Stage(stage) => Input::Stage(stage),
            Base::Source(source) => Input::Source(source),
        })
    }

    /// The stages that the target needs, itself included.
    pub(super) fn reachable(&self) -> BTreeSet<usize> {
        if self.all_stages {
            return (0..self.stages.len()).collect();
        }
        let mut reachable = BTreeSet::new();
        let mut todo = vec![self.target];
        while let Some(number) = todo.pop() {
            if !reachable.insert(number) {
                continue;
            }
            let stage = &self.stages[number];
            if let Base::Stage(base) = stage.base {
                todo.push(base);
            }
            todo.extend(stage.inputs.values().filter_map(|input| match input {
                Input::Stage(stage) => Some(*stage),
                _ => None,
            }));
        }
        reachable
    }

    /// The images that the target needs and whose configuration is not known yet: numbers of sources.
    pub(crate) fn unresolved(&self) -> Vec<(usize, &SourceSpec)> {
        let mut wanted = BTreeSet::new();
        for number in self.reachable() {
            let stage = &self.stages[number];
            if let Base::Source(source) = stage.base {
                wanted.insert(source);
            }
            wanted.extend(stage.inputs.values().filter_map(|input| match input {
                Input::Source(source) => Some(*source),
                _ => None,
            }));
        }
        wanted
            .into_iter()
            .filter(|number| !self.configs.contains_key(number))
            .map(|number| (number, &self.sources[number]))
            .filter(|(_, spec)| matches!(spec, SourceSpec::Image { .. }))
            .collect()
    }

    /// Where an image is used first, for errors about it.
    pub(crate) fn place_of(&self, source: usize) -> (Lines, &str) {
        let used = |stage: &&StageDraft| {
            stage.base == Base::Source(source)
                || stage.inputs.values().any(|input| *input == Input::Source(source))
        };
        self.stages
            .iter()
            .find(used)
            .map_or((Lines::one(1), ""), |stage| (stage.lines, stage.base_name.as_str()))
    }

    /// Takes the configuration of an image. What OCI's and Docker's formats do not define goes: it described the image
    /// or the container that it was made in, and BuildKit does not hand it down either.
    pub(crate) fn resolve(&mut self, source: usize, mut config: ImageConfig) {
        config.extra.retain(|key, _| key == "os.features");
        config.config.extra.clear();
        self.configs.insert(source, config);
    }

    /// Goes on without the configuration of an image: what depends on it is not checked.
    pub(crate) fn do_without(&mut self, source: usize) {
        if let SourceSpec::Image { platform, .. } = &self.sources[source] {
            self.configs.insert(source, ImageConfig::new(platform));
            self.unknown.insert(source);
        }
    }

    /// Takes all stages for needed, not only those of the target.
    pub(crate) fn need_all(&mut self) {
        self.all_stages = true;
    }

    /// Checks copies against the rules of an ignore file.
    pub(crate) fn check_ignored(&mut self, ignore: Option<Ignore>) {
        self.ignore = ignore;
    }

    /// Whether a named context takes the place of stage `number`, or of its base.
    pub(super) fn is_replaced(&self, number: usize) -> bool {
        let name = self.dockerfile.stages[number].from.name.as_ref();
        name.is_some_and(|name| self.request.build_contexts.contains_key(name))
            || self.named_context(&self.stages[number].base_name).is_some()
    }

    /// Puts the `ONBUILD` triggers of base images in front of the stages' instructions. They may need more images:
    /// `true` if [`Draft::unresolved`] must be asked again.
    pub(crate) fn add_triggers(&mut self) -> Result<bool, DockerfileError> {
        self.rounds += 1;
        if self.rounds > TRIGGER_ROUNDS_MAX {
            let message = format!("ONBUILD triggers are nested more than {TRIGGER_ROUNDS_MAX} deep");
            return Err(DockerfileError::at(&self.dockerfile.source, Lines::one(1), message));
        }
        let mut names: HashMap<String, usize> = HashMap::new();
        for (number, stage) in self.dockerfile.stages.iter().enumerate() {
            if let Some(name) = &stage.from.name {
                names.insert(name.to_lowercase(), number);
            }
        }
        for number in self.reachable() {
            if self.stages[number].triggers_done {
                continue;
            }
            let texts: Vec<String> = match self.stages[number].base {
                Base::Scratch => Vec::new(),
                Base::Source(source) => match self.configs.get(&source) {
                    Some(config) => config.config.on_build.clone(),
                    None => Vec::new(),
                },
                Base::Stage(base) => self.stages[base]
                    .commands
                    .iter()
                    .filter_map(|command| match &command.instruction.node {
                        Instruction::OnBuild(text) => Some(text.clone()),
                        _ => None,
                    })
                    .collect(),
            };
            let stage = &mut self.stages[number];
            stage.triggers_done = true;
            let mut commands = Vec::new();
            for text in texts {
                let mut instruction = dockerfile::parse_trigger(&text).map_err(|cause| {
                    let message = format!("in the base image's ONBUILD trigger: {}", cause.message());
                    DockerfileError::at(&self.dockerfile.source, stage.lines, message)
                })?;
                instruction.lines = stage.lines;
                commands.push(Command { instruction, is_trigger: true });
            }
            if !commands.is_empty() {
                commands.append(&mut stage.commands);
                stage.commands = commands;
                self.find_inputs(number, &names)?;
            }
        }
        Ok(!self.unresolved().is_empty()
            || self.reachable().into_iter().any(|number| !self.stages[number].triggers_done))
    }
}
