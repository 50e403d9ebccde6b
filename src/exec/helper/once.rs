//! One step in a process of its own, which is how a program that already has threads, such as the doctor or
//! a test, can have a step run in a new user namespace.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::event::Stream;
use crate::exec::{
    CancelToken, ExecError, ExecStep, Executor, Exit, Ids, NativeExecutor, Settings, UserNamespaceError,
    enter_user_namespace,
};
use crate::hint::Hint;

/// More output than this is cut off: a probe has nothing to say, a test little.
const MAX_OUTPUT: usize = 1 << 20;

/// How it went; written to standard output as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Once {
    /// The step ran.
    Ran {
        /// Which ids it had.
        ids: Ids,
        /// What was done in a lesser way.
        notes: Vec<String>,
        /// How it ended.
        exit: Exit,
        /// Standard output.
        stdout: String,
        /// Standard error.
        stderr: String,
    },
    /// It could not be run.
    Failed {
        /// Which ids it would have had; `None` if there is no user namespace to be had.
        ids: Option<Ids>,
        /// The error with its causes.
        error: String,
        /// What to do about it.
        advice: Option<String>,
    },
}

/// Reads a step as JSON from standard input, until its end.
pub(super) fn main() -> ExitCode {
    let mut text = Vec::new();
    let step = io::stdin().read_to_end(&mut text).ok().and_then(|_| serde_json::from_slice(&text).ok());
    let Some(step) = step else { return ExitCode::FAILURE };
    let answer = run(&step);
    match serde_json::to_vec(&answer).map_err(io::Error::from).and_then(|json| io::stdout().write_all(&json))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(step: &ExecStep) -> Once {
    let program = PathBuf::from("/proc/self/exe");
    let space = match enter_user_namespace(&program) {
        Ok(space) => space,
        Err(error) => return failed_to_enter(&error),
    };
    let ids = space.ids;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut log = |stream, data: &[u8]| {
        let output = if stream == Stream::Stdout { &mut stdout } else { &mut stderr };
        output.extend(data.iter().take(MAX_OUTPUT.saturating_sub(output.len())));
    };
    let result = CancelToken::new()
        .map_err(|source| ExecError::Channel { doing: "making a descriptor", source })
        .and_then(|cancel| {
            NativeExecutor::new(program, Settings::new(ids)).run(step, &[], &mut log, &cancel)
        });
    match result {
        Ok(outcome) => {
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            let notes = space.note.into_iter().chain(outcome.notes).collect();
            Once::Ran { ids, notes, exit: outcome.exit, stdout: text(stdout), stderr: text(stderr) }
        }
        Err(error) => Once::Failed { ids: Some(ids), error: chain(&error), advice: error.hint() },
    }
}

fn failed_to_enter(error: &UserNamespaceError) -> Once {
    Once::Failed { ids: None, error: chain(error), advice: error.hint() }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
