//! How commands end: exit codes, and errors as they are shown.

use std::fmt::Write as _;

use owo_colors::OwoColorize as _;

use crate::hint::Hint;

/// The exit code of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// It did what it was asked to do.
    Success = 0,
    /// The build failed, or what it was given is wrong.
    Failure = 1,
    /// The command line is wrong, or asks for something that this version does not have.
    Usage = 2,
    /// `build --dry-run`: at least one step would run. `cache verify`: damage was found.
    Found = 3,
    /// The machine or a cache got in the way: no space, no permission, steps cannot be run here.
    System = 4,
    /// Interrupted by SIGINT.
    Interrupted = 130,
    /// Terminated by SIGTERM.
    Terminated = 143,
}

impl ExitStatus {
    /// All of them with their meaning, as `docs/cli.md` lists them.
    pub const ALL: &[(Self, &str)] = &[
        (Self::Success, "success"),
        (Self::Failure, "the build failed, or what it was given is wrong"),
        (Self::Usage, "the command line is wrong, or asks for something that this version does not have"),
        (Self::Found, "`build --dry-run`: at least one step would run; `cache verify`: damage was found"),
        (
            Self::System,
            "the machine or a cache got in the way: no space, no permission, steps cannot run here",
        ),
        (Self::Interrupted, "interrupted (SIGINT)"),
        (Self::Terminated, "terminated (SIGTERM)"),
    ];

    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// Why a command did not succeed.
#[derive(Debug)]
pub struct CliError {
    /// The exit code.
    pub status: ExitStatus,
    /// The error with its causes.
    pub error: anyhow::Error,
    /// What to do about it.
    pub hint: Option<String>,
}

impl CliError {
    /// Something that the user gave is wrong.
    pub fn failure(error: impl Into<anyhow::Error>) -> Self {
        Self { status: ExitStatus::Failure, error: error.into(), hint: None }
    }

    /// As [`CliError::failure`], for a text.
    pub fn message(text: impl Into<String>) -> Self {
        Self::failure(anyhow::Error::msg(text.into()))
    }

    /// The command line is wrong.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { status: ExitStatus::Usage, ..Self::message(text) }
    }

    /// The machine is in the way.
    pub fn system(error: impl Into<anyhow::Error>) -> Self {
        Self { status: ExitStatus::System, ..Self::failure(error) }
    }

    /// Something that comes with a later version.
    pub fn next_version(what: &str) -> Self {
        Self::usage(format!("{what} is not supported by this version of Crossdock"))
    }

    /// An error that has its own advice.
    pub fn hinted<E: Hint + std::error::Error + Send + Sync + 'static>(status: ExitStatus, error: E) -> Self {
        let hint = error.hint();
        Self { status, error: error.into(), hint }
    }

    /// The same error with advice: one sentence without a final period.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The error, its causes and the advice as lines of text. Control characters in messages (a Dockerfile's or a
    /// registry's text may be in there) are removed.
    pub fn render(&self, colours: bool) -> String {
        let mut text = String::new();
        let label = |label: &str| match (colours, label) {
            (true, "error:") => label.red().bold().to_string(),
            (true, "hint:") => label.cyan().bold().to_string(),
            _ => label.to_owned(),
        };
        let clean = |message: &str| {
            let lines: Vec<String> = message
                .lines()
                .map(|line| super::report::sanitize(line.as_bytes(), false).trim_end().to_owned())
                .collect();
            lines.join("\n")
        };
        let _ = writeln!(text, "{} {}", label("error:"), clean(&self.error.to_string()));
        let mut last = self.error.to_string();
        for cause in self.error.chain().skip(1) {
            let message = cause.to_string();
            // Transparent wrappers repeat what they wrap.
            if message != last {
                let _ = writeln!(text, "  caused by: {}", clean(&message).replace('\n', "\n    "));
            }
            last = message;
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "{} {}", label("hint:"), clean(hint));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_show_causes_and_advice_without_control_characters() {
        let error = anyhow::Error::msg("disk \x1b[2Jfull").context("writing x").context("could not build");
        let error = CliError::failure(error).hint("make room");
        assert_eq!(
            error.render(false),
            "error: could not build\n  caused by: writing x\n  caused by: disk full\nhint: make room\n"
        );
        assert!(error.render(true).contains("\x1b["));
    }

    #[test]
    fn every_exit_code_is_documented_once() {
        let mut codes: Vec<u8> = ExitStatus::ALL.iter().map(|(status, _)| status.code()).collect();
        codes.dedup();
        assert_eq!(codes, [0, 1, 2, 3, 4, 130, 143]);
    }
}
