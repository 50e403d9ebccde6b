//! The typed instructions of a Dockerfile. Values are as written: nothing is expanded yet.

use std::collections::BTreeMap;
use std::time::Duration;

use super::heredoc::{self, Heredoc};
use super::mount::RawMount;
use super::source::{Lines, SourceText};
use super::{Directives, lint, words};

/// A parsed Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The name that messages give the file.
    pub name: String,
    /// The text, for messages.
    pub source: SourceText,
    /// `# escape=`, `# syntax=`, `# check=`.
    pub directives: Directives,
    /// The arguments declared before the first FROM, one entry for each.
    pub meta_args: Vec<Spanned<ArgDecl>>,
    /// The stages in the order of the file; never empty.
    pub stages: Vec<Stage>,
    /// The comments directly above instructions, without their `#`, by the instruction's first line.
    pub comments: BTreeMap<usize, Vec<String>>,
}

impl Dockerfile {
    /// The comments directly above the instruction that begins on the first of `lines`.
    pub fn comments_above(&self, lines: Lines) -> &[String] {
        self.comments.get(&lines.start).map_or(&[], Vec::as_slice)
    }

    /// What the comments above an instruction say about the stage or argument `name` that it defines: the rest of the
    /// first one that begins with the name.
    pub fn description(&self, lines: Lines, name: &str) -> &str {
        let comments = self.comments_above(lines).iter();
        let mut described = comments.filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        described.next().filter(|_| !name.is_empty()).unwrap_or_default()
    }
}

/// One build stage: FROM and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// What the stage starts from.
    pub from: From,
    /// The lines of the FROM instruction.
    pub lines: Lines,
    /// The text of the FROM instruction.
    pub original: String,
    /// The instructions after FROM, without arguments that are global.
    pub instructions: Vec<Spanned<Instruction>>,
}

/// `FROM [--platform=…] image [AS name]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    /// Image, earlier stage, named context or `scratch`; not expanded.
    pub image: String,
    /// `--platform`, not expanded.
    pub platform: Option<String>,
    /// The stage's name in lower case.
    pub name: Option<String>,
}

/// Something and its place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The thing.
    pub node: T,
    /// All lines of the instruction, heredoc bodies included.
    pub lines: Lines,
    /// The instruction's text with continuation lines joined and without heredoc bodies, as it appears in step names.
    pub original: String,
}

impl Spanned<Instruction> {
    /// The keyword as written.
    pub fn keyword(&self) -> &str {
        lint::syntax::keyword_of(&self.original)
    }

    /// Whether this is ENV or LABEL in the old form, `name value` without `=`.
    pub fn is_legacy(&self, escape: char) -> bool {
        let (_, _, rest) = words::split_instruction(&self.original, escape);
        matches!(self.node, Instruction::Env(_) | Instruction::Label(_))
            && words::quoted_words(rest, escape).first().is_some_and(|word| !word.contains('='))
    }
}

/// One declaration of an ARG instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgDecl {
    /// The variable.
    pub name: String,
    /// Its default, not expanded; `Some("")` for `ARG x=`.
    pub default: Option<String>,
}

/// Every instruction but FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// `ARG name[=default] …`
    Arg(Vec<ArgDecl>),
    /// `ENV key=value …`, in order.
    Env(Vec<(String, String)>),
    /// `LABEL key=value …`, in order.
    Label(Vec<(String, String)>),
    /// `RUN …`
    Run(Run),
    /// `COPY …`
    Copy(Copy),
    /// `ADD …`
    Add(Add),
    /// `WORKDIR path`
    Workdir(String),
    /// `USER user[:group]`
    User(String),
    /// `CMD …`
    Cmd(CommandLine),
    /// `ENTRYPOINT …`
    Entrypoint(CommandLine),
    /// `SHELL ["program", "argument"…]`, never empty.
    Shell(Vec<String>),
    /// `EXPOSE port …`, sorted as text, each still to be expanded into words, then given to [`super::parse_port`].
    Expose(Vec<String>),
    /// `VOLUME path …`
    Volume(Vec<String>),
    /// `STOPSIGNAL signal`; see [`super::check_signal`] after expansion.
    StopSignal(String),
    /// `HEALTHCHECK …`
    Healthcheck(Healthcheck),
    /// `ONBUILD instruction`: the trigger's text with heredoc bodies, for [`super::parse_trigger`].
    OnBuild(String),
    /// `MAINTAINER name`
    Maintainer(String),
}

impl Instruction {
    /// The instruction's keyword in upper case.
    pub fn keyword(&self) -> &'static str {
        match self {
            Self::Arg(_) => "ARG",
            Self::Env(_) => "ENV",
            Self::Label(_) => "LABEL",
            Self::Run(_) => "RUN",
            Self::Copy(_) => "COPY",
            Self::Add(_) => "ADD",
            Self::Workdir(_) => "WORKDIR",
            Self::User(_) => "USER",
            Self::Cmd(_) => "CMD",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Shell(_) => "SHELL",
            Self::Expose(_) => "EXPOSE",
            Self::Volume(_) => "VOLUME",
            Self::StopSignal(_) => "STOPSIGNAL",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::OnBuild(_) => "ONBUILD",
            Self::Maintainer(_) => "MAINTAINER",
        }
    }
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// Text for the shell, as written. An empty text is no command at all (`ENTRYPOINT` alone resets it).
    Shell(String),
    /// Program and arguments; may be empty (`ENTRYPOINT []`).
    Exec(Vec<String>),
}

impl CommandLine {
    /// Whether there is no command: nothing was written, or `[]`.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Shell(text) => text.is_empty(),
            Self::Exec(arguments) => arguments.is_empty(),
        }
    }
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The command as written; what is executed is [`Run::program`].
    pub command: CommandLine,
    /// The heredocs named by the command.
    pub heredocs: Vec<Heredoc>,
    /// `--mount`, in order; values are expanded by [`RawMount::resolve`].
    pub mounts: Vec<RawMount>,
    /// `--network`
    pub network: Network,
    /// `--security`
    pub security: Security,
    /// `--device`, as written.
    pub devices: Vec<String>,
}

/// `RUN --network=`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// Whatever the build uses.
    #[default]
    Default,
    /// No network.
    None,
    /// The host's network.
    Host,
}

/// `RUN --security=`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Security {
    /// The usual sandbox.
    #[default]
    Sandbox,
    /// All privileges.
    Insecure,
}

/// What a RUN instruction executes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Program and arguments, executed without a shell.
    Exec(Vec<String>),
    /// Text for the stage's shell (`SHELL`, else `/bin/sh -c`).
    Shell(String),
    /// A file with mode 0755 and this body in a read-only mount at [`Program::SCRIPT_DIRECTORY`]; its path is the text
    /// given to the stage's shell.
    Script {
        /// The file's name, without a directory.
        name: String,
        /// The file's content, beginning with `#!`.
        body: String,
    },
}

impl Program {
    /// Where scripts from heredocs are mounted.
    pub const SCRIPT_DIRECTORY: &str = "/dev/pipes";
}

impl Run {
    /// What is executed. A command that is one heredoc and nothing else is replaced by the heredoc's body: as a script if
    /// it begins with `#!`, else as shell text. Other heredocs are put back behind the command for the shell to read.
    /// Quoting of the delimiter means nothing here; expansion is the shell's.
    pub fn program(&self) -> Program {
        let text = match &self.command {
            CommandLine::Exec(arguments) => return Program::Exec(arguments.clone()),
            CommandLine::Shell(text) => text,
        };
        let Some(first) = self.heredocs.first() else { return Program::Shell(text.clone()) };
        if heredoc::is_heredoc_word(text) {
            let body = first.body();
            return if body.starts_with("#!") {
                Program::Script { name: first.name.clone(), body }
            } else {
                Program::Shell(body)
            };
        }
        Program::Shell(heredoc::reassemble(text, &self.heredocs))
    }

    /// The first line of the heredoc that is the whole command, for names of steps: `RUN <<EOF (echo hello...)`.
    pub fn heredoc_summary(&self) -> Option<String> {
        let CommandLine::Shell(text) = &self.command else { return None };
        let first = self.heredocs.first().filter(|_| heredoc::is_heredoc_word(text))?;
        let mut lines = first.content.trim().lines();
        let summary = lines.next().unwrap_or_default();
        Some(if lines.next().is_some() { format!("{summary}...") } else { summary.to_owned() })
    }
}

/// `COPY`. What [`super`] lists as expanded is still to be expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The sources that are paths or patterns, in order.
    pub sources: Vec<String>,
    /// The sources that are heredocs: files with mode 0644 named after the delimiter, holding [`Heredoc::body`],
    /// expanded if [`Heredoc::expand`] by [`super::expand::Lexer::heredoc`].
    pub heredocs: Vec<Heredoc>,
    /// The destination, not expanded.
    pub dest: String,
    /// `--from`; never expanded.
    pub from: Option<String>,
    /// `--chown`, not expanded; then see [`super::Owner`].
    pub chown: Option<String>,
    /// `--chmod`, not expanded; then see [`super::Chmod`].
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--parents`
    pub parents: bool,
    /// `--exclude`; never expanded.
    pub exclude: Vec<String>,
}

/// `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Add {
    /// The sources that are paths, patterns, URLs or git references, in order.
    pub sources: Vec<String>,
    /// The sources that are heredocs, as in [`Copy::heredocs`].
    pub heredocs: Vec<Heredoc>,
    /// The destination, not expanded.
    pub dest: String,
    /// `--chown`, not expanded.
    pub chown: Option<String>,
    /// `--chmod`, not expanded.
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--exclude`; never expanded.
    pub exclude: Vec<String>,
    /// `--keep-git-dir`, if given.
    pub keep_git_dir: Option<bool>,
    /// `--checksum`, not expanded.
    pub checksum: Option<String>,
    /// `--unpack`, if given; without it local archives are unpacked and remote ones are not.
    pub unpack: Option<bool>,
}

/// `HEALTHCHECK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`
    None,
    /// `HEALTHCHECK CMD …`. Zero means the engine's default and is left out of the image configuration.
    Check {
        /// What is executed in the container: shell text becomes `CMD-SHELL`, a list `CMD`. Never empty.
        command: CommandLine,
        /// `--interval`
        interval: Duration,
        /// `--timeout`
        timeout: Duration,
        /// `--start-period`
        start_period: Duration,
        /// `--start-interval`
        start_interval: Duration,
        /// `--retries`
        retries: u32,
    },
}
