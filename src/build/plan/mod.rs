//! The plan: which steps a build consists of, with every variable expanded, and the image's configuration.
//!
//! Planning decides and does nothing: it needs the configurations of base images (their environment enters
//! expansion, their `ONBUILD` triggers bring instructions along) but no file of the context and no layer.

mod draft;
mod env;
mod epoch;
mod history;
mod lint;
mod lower;
mod outline;

use std::path::PathBuf;

use super::remotes::RemoteSpec;
use crate::dockerfile::{Chmod, Lines, Mount, Security};
use crate::event::StepId;
use crate::exec::Network;
use crate::image::ImageConfig;
use crate::platform::Platform;
use crate::reference::Reference;

pub(crate) use draft::Draft;
pub(crate) use env::argument;
pub(crate) use epoch::{EPOCH, Epoch, epoch};
pub(crate) use lower::is_named_owner;
pub use outline::{Outline, OutlineArg, OutlineMount};

/// Everything that has to be done for one target.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The stages that the target needs, in the order of the Dockerfile: a stage uses only earlier ones.
    pub(crate) stages: Vec<PlannedStage>,
    /// The stage that becomes the image: an index into `stages`.
    pub(crate) target: usize,
    /// What comes from outside, each once.
    pub(crate) sources: Vec<SourceSpec>,
    /// The steps' names, in the order of their [`StepId`]s.
    pub(crate) names: Vec<String>,
    /// What the target can be given.
    pub(crate) outline: Outline,
}

impl Plan {
    /// Numbers the steps from `first` on: they share the numbers with those of other plans.
    pub(crate) fn number_from(&mut self, first: usize) {
        let first = u32::try_from(first).unwrap_or(u32::MAX);
        let renumber = |id: &mut StepId| id.0 = id.0.saturating_add(first);
        for stage in &mut self.stages {
            stage.start_step.iter_mut().for_each(renumber);
            stage.steps.iter_mut().map(|step| &mut step.id).for_each(renumber);
        }
    }
}

/// Something that a build takes from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SourceSpec {
    /// The build context.
    Context,
    /// A named directory context.
    Directory(PathBuf),
    /// What is fetched: a URL or a git repository.
    Remote(RemoteSpec),
    /// An image for a platform.
    Image { image: ImageSpec, platform: Platform },
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ImageSpec {
    /// In a registry.
    Registry(Reference),
    /// In an OCI layout directory: `path[:tag][@digest]`.
    Layout(String),
    /// In a docker or OCI archive.
    Archive(PathBuf),
}

/// One stage.
#[derive(Debug)]
pub(crate) struct PlannedStage {
    /// What it starts from.
    pub(crate) start: Start,
    /// The step in the events that stands for getting the base image, if there is one.
    pub(crate) start_step: Option<StepId>,
    /// The platform that its commands run on.
    pub(crate) platform: Platform,
    /// What has to be done, in order. Each step adds one layer.
    pub(crate) steps: Vec<PlannedStep>,
    /// The configuration of the stage as an image. Its history says which entries have layers; `rootfs` and times
    /// are filled in by the export.
    pub(crate) image: ImageConfig,
    /// Records are not used for this stage.
    pub(crate) no_cache: bool,
}

/// What a stage starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Nothing.
    Empty,
    /// An earlier stage: an index into [`Plan::stages`].
    Stage(usize),
    /// An image: an index into [`Plan::sources`].
    Source(usize),
}

/// What a step reads besides the tree that it starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Nothing at all (`from=scratch`).
    Empty,
    /// The result of another stage.
    Stage(usize),
    /// A context or an image.
    Source(usize),
}

/// One step.
#[derive(Debug)]
pub(crate) struct PlannedStep {
    /// Its number in the events.
    pub(crate) id: StepId,
    /// Its place in the build, stable under edits elsewhere.
    pub(crate) slot: String,
    /// Where it stands in the Dockerfile.
    pub(crate) lines: Lines,
    /// The instruction as written, for messages.
    pub(crate) instruction: String,
    /// What to do.
    pub(crate) op: Op,
}

/// What a step does.
#[derive(Debug)]
pub(crate) enum Op {
    /// Runs a command.
    Run(Box<RunOp>),
    /// Copies files.
    Copy(Box<CopyOp>),
    /// Makes a directory.
    Workdir(WorkdirOp),
}

impl Op {
    /// What is read besides the tree that the step starts from: for a copy the place of its files, then what is fetched;
    /// for a command what its mounts show, in their order.
    pub(crate) fn inputs(&self) -> Vec<Input> {
        match self {
            Self::Copy(copy) => {
                let remotes = copy.remotes.iter().map(|remote| remote.input);
                std::iter::once(copy.input).chain(remotes).collect()
            }
            Self::Run(run) => run.mounts.iter().map(|mount| mount.input).collect(),
            Self::Workdir(_) => Vec::new(),
        }
    }
}

/// RUN.
#[derive(Debug)]
pub(crate) struct RunOp {
    /// The command with its arguments, the shell's included.
    pub(crate) args: Vec<String>,
    /// The environment, in order.
    pub(crate) env: Vec<(String, String)>,
    /// Proxy variables: part of the environment, never of a key.
    pub(crate) proxy: Vec<(String, String)>,
    /// Build arguments in the environment that it is not keyed on unless their values show. None is empty.
    pub(crate) unkeyed: Vec<(String, String)>,
    /// The working directory.
    pub(crate) cwd: String,
    /// `USER`, unresolved; empty for root.
    pub(crate) user: String,
    /// The network.
    pub(crate) network: Network,
    /// The security mode.
    pub(crate) security: Security,
    /// `--mount`, targets absolute.
    pub(crate) mounts: Vec<RunMount>,
    /// A script from a heredoc: its name and text, to be put under `/dev/pipes`.
    pub(crate) script: Option<(String, Vec<u8>)>,
    /// Whether what it reads may be traced: not if a comment above it says otherwise.
    pub(crate) trace: bool,
    /// The host name that the command sees, if not the usual one (`BUILDKIT_SANDBOX_HOSTNAME`).
    pub(crate) hostname: Option<String>,
}

/// One mount of a RUN.
#[derive(Debug)]
pub(crate) struct RunMount {
    /// The mount as written, expanded, with defaults.
    pub(crate) mount: Mount,
    /// Where it is mounted, absolute and clean; for secrets as written, if at all, and for agents as written or by default.
    pub(crate) target: Option<String>,
    /// What it shows.
    pub(crate) input: Input,
}

/// COPY and ADD.
#[derive(Debug, Clone)]
pub(crate) struct CopyOp {
    /// Where `sources` are looked for.
    pub(crate) input: Input,
    /// Source patterns, expanded.
    pub(crate) sources: Vec<String>,
    /// Heredocs: name and content.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// The destination: absolute; a trailing slash is kept, because it matters.
    pub(crate) destination: String,
    /// `--chown`.
    pub(crate) owner: Option<String>,
    /// `--chmod`: as written, and what it means.
    pub(crate) chmod: Option<(String, Chmod)>,
    /// `--parents`.
    pub(crate) parents: bool,
    /// `--link`, as it is in effect: it is not where `--chmod` is given.
    pub(crate) link: bool,
    /// `--exclude`.
    pub(crate) exclude: Vec<String>,
    /// Whether archives are unpacked.
    pub(crate) unpack: bool,
    /// Sources that are fetched, in order.
    pub(crate) remotes: Vec<RemoteAdd>,
}

/// A source of an ADD that is fetched.
#[derive(Debug, Clone)]
pub(crate) struct RemoteAdd {
    /// What is fetched.
    pub(crate) input: Input,
    /// The path in it; empty for all that is in it.
    pub(crate) name: String,
    /// How many of the sources that are not fetched come before it.
    pub(crate) after: usize,
    /// Whether an archive is unpacked.
    pub(crate) unpack: bool,
}

impl CopyOp {
    /// Copies `source` to the root, as it is.
    pub(crate) fn everything(input: Input, source: &str) -> Self {
        Self {
            input,
            sources: vec![source.to_owned()],
            files: Vec::new(),
            destination: "/".to_owned(),
            owner: None,
            chmod: None,
            parents: false,
            link: false,
            exclude: Vec::new(),
            unpack: false,
            remotes: Vec::new(),
        }
    }
}

/// WORKDIR.
#[derive(Debug)]
pub(crate) struct WorkdirOp {
    /// The directory: absolute and clean.
    pub(crate) path: String,
    /// `USER` at this point, who owns what is made.
    pub(crate) user: String,
}
