//! What the engine tells the world while it works: one ordered stream of typed events.
//!
//! The engine and the workers only emit; reporters (terminal, plain lines, JSON) print.

use std::sync::Arc;
use std::time::Duration;

/// Names one step in the events of one build. Steps are numbered in the order of the plan, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepId(pub u32);

/// Which of a command's outputs a piece of log came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why a step was not taken from a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Why {
    /// One short sentence with what matters most.
    pub reason: String,
    /// All that is known to be different, what says most first.
    pub causes: Vec<Cause>,
    /// The key of the record that the step was compared with: the nearest of the earlier ones that are at hand.
    pub nearest: Option<String>,
}

impl From<&str> for Why {
    fn from(reason: &str) -> Self {
        Self { reason: reason.to_owned(), ..Self::default() }
    }
}

/// One thing that is different from an earlier record of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// What kind of thing.
    pub kind: CauseKind,
    /// Its path or name; empty where the kind says it all.
    pub name: String,
    /// The program that read or listed it, if that is known.
    pub by: Option<String>,
}

impl Cause {
    /// One that needs no name.
    pub fn of(kind: CauseKind) -> Self {
        Self { kind, name: String::new(), by: None }
    }
}

/// What kind of thing a [`Cause`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CauseKind {
    /// A file that the step read has another content.
    Content,
    /// Something that it looked for in vain is there now.
    Appeared,
    /// Something that it looked at is gone.
    Gone,
    /// A directory that it listed has other names in it.
    Names,
    /// Something that it looked at has another mode, owner, size or kind.
    Attributes,
    /// A file that it could have read, or that it copies, is another one.
    File,
    /// A variable of `ENV` has another value.
    Variable,
    /// A build argument has another value.
    Argument,
    /// The command is another one.
    Command,
    /// Another part of the instruction is different.
    Instruction,
    /// A setting that is not a part of the instruction is different: the user, the platform.
    Setting,
    /// What a mount shows is different.
    Mount,
    /// The base image is another one.
    Base,
    /// What it starts from is different, and how is not known.
    Tree,
    /// There is no earlier record.
    First,
    /// There was one for just this, and it is no longer there.
    Evicted,
    /// The cache is switched off for the step.
    Disabled,
    /// A step that it builds on would run.
    Unknown,
}

impl CauseKind {
    /// One word for it, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Appeared => "appeared",
            Self::Gone => "gone",
            Self::Names => "names",
            Self::Attributes => "attributes",
            Self::File => "file",
            Self::Variable => "variable",
            Self::Argument => "argument",
            Self::Command => "command",
            Self::Instruction => "instruction",
            Self::Setting => "setting",
            Self::Mount => "mount",
            Self::Base => "base",
            Self::Tree => "tree",
            Self::First => "first",
            Self::Evicted => "evicted",
            Self::Disabled => "disabled",
            Self::Unknown => "unknown",
        }
    }
}

/// The record that a step's result was taken from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Its key.
    pub key: String,
    /// The trust domain that it was written in.
    pub scope: String,
    /// When the step ran, in the form of RFC 3339.
    pub created: String,
    /// Which program made it: `crossdock 0.1.0`.
    pub builder: String,
    /// By what it was found.
    pub found: Found,
}

/// By what a record was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Found {
    /// All that the step could have read is the same.
    #[default]
    Exact,
    /// All that it did read is the same.
    Traced,
    /// It is a copy that does not depend on what it is put on.
    Linked,
}

impl Found {
    /// One word for it, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Traced => "traced",
            Self::Linked => "linked",
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepOutcome {
    /// Its result came from a record.
    Cached {
        /// Where the record was found: `local cache`, or the remote store's URL.
        from: String,
        /// How long the step took when it ran.
        saved: Duration,
        /// The record.
        origin: Origin,
    },
    /// It ran.
    Ran {
        /// Why there was no record for it.
        why: Why,
    },
    /// It is part of the plan but had nothing to do (its result is known without a record).
    Done,
    /// It failed; the error itself is what the build returns.
    Failed,
    /// The build ended before it did.
    Cancelled,
    /// With `--dry-run`: it would run.
    WouldRun {
        /// Why there is no record for it.
        why: Why,
    },
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Something is being fetched that the plan depends on: the build context, the Dockerfile. Comes before the plan.
    Fetching {
        /// The activity and its object: `asking https://example.com/r.git`.
        what: String,
        /// Bytes so far and, where that is known, in all; nothing where no bytes are counted.
        bytes: Option<(u64, Option<u64>)>,
    },
    /// The plan is made. Sent once, before any step event.
    Planned {
        /// Every step's name, in the order of [`StepId`]: `[build 2/4] RUN make`.
        steps: Vec<String>,
    },
    /// Work on a step began.
    StepStarted {
        /// The step.
        step: StepId,
    },
    /// A step that runs printed something. Not necessarily whole lines.
    StepLog {
        /// The step.
        step: StepId,
        /// Which output.
        stream: Stream,
        /// The bytes, as the command wrote them (secrets masked).
        data: Vec<u8>,
    },
    /// A step says what it is doing: `pulling sha256:…`, `waiting for another build`.
    StepStatus {
        /// The step.
        step: StepId,
        /// The activity.
        status: String,
    },
    /// Bytes moved for a step, in all so far.
    StepProgress {
        /// The step.
        step: StepId,
        /// What is moving.
        what: String,
        /// Bytes so far.
        current: u64,
        /// Bytes in all, where known.
        total: Option<u64>,
    },
    /// A step ended.
    StepFinished {
        /// The step.
        step: StepId,
        /// How.
        outcome: StepOutcome,
        /// How long it took now.
        duration: Duration,
    },
    /// A command whose result was cached has been run again, to compare.
    HitVerified {
        /// The step.
        step: StepId,
        /// Its place and its instruction: ``Dockerfile:3: `RUN make` ``.
        name: String,
        /// What it made otherwise this time, sorted by path: none if it is deterministic. Not more than some hundred.
        differences: Vec<HitDifference>,
        /// It has cache mounts, and found them empty this time.
        empty_mounts: bool,
    },
    /// Something that the reader should know but that does not stop the build.
    Warning {
        /// One sentence.
        message: String,
    },
    /// The image was loaded into an engine of this machine.
    Loaded {
        /// Which: `the Docker engine at /var/run/docker.sock`.
        engine: String,
        /// The image's names.
        names: Vec<String>,
    },
    /// The build ended well.
    Finished(Summary),
}

/// Where a command that was run again made something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HitDifference {
    /// The path.
    pub path: String,
    /// How it is different this time: `added`, `removed`, `content` or `metadata`.
    pub change: &'static str,
}

/// The figures at the end of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Steps whose result came from a record.
    pub cached: u32,
    /// Steps that ran.
    pub ran: u32,
    /// The whole build's duration.
    pub elapsed: Duration,
    /// The sum of what the cached steps took when they ran.
    pub saved: Duration,
    /// Bytes fetched from registries and remote stores.
    pub downloaded: u64,
    /// Bytes sent to registries and remote stores.
    pub uploaded: u64,
}

/// Where events go. Implementations must not block for long: the engine waits for them, on purpose, so that
/// a blocked terminal slows the build instead of filling memory.
pub trait EventSink: Send + Sync {
    /// Takes one event.
    fn emit(&self, event: Event);
}

/// A sink that can be handed around.
pub type Events = Arc<dyn EventSink>;

/// Drops everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEvents;

impl EventSink for NoEvents {
    fn emit(&self, _: Event) {}
}
