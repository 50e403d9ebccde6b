//! The command line: arguments, settings, reporters.
//!
//! Environment variables, the home directory and the terminal are read here and nowhere else; everything below gets
//! values. A command's arguments ([`args`]) become one resolved struct, the engine is called in one place
//! (`build::run`), and its events are shown by a reporter ([`report`]).

mod admin;
pub mod args;
mod backend;
mod build;
mod cache;
mod call;
pub mod config;
mod credentials;
mod csv;
mod demo;
mod docker;
mod docs;
mod doctor;
pub mod env_vars;
pub mod environment;
pub mod error;
mod examples;
mod explain;
mod fingerprint;
mod inspect;
mod load;
mod login;
mod man;
mod mounts;
mod output;
mod policy;
mod proxies;
pub mod report;
pub(crate) mod request;
mod secrets;
mod serve;
mod signals;
mod sources;
mod ssh;
mod values;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Cli, Command};
use config::Config;
use environment::Environment;
use error::{CliError, ExitStatus};

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors of the parser as well; they go to standard output and succeed.
            let status = if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Success };
            // A reader that has gone away has seen what it wanted to see.
            let _ = error.print();
            return status.code().into();
        }
    };
    let mut environment = match Environment::of_process() {
        Ok(environment) => environment,
        Err(error) => {
            let error = anyhow::Error::new(error).context("the working directory cannot be used");
            return fail(&CliError::system(error), false).code().into();
        }
    };
    match Config::load(cli.config.as_deref(), &environment) {
        Ok(config) => environment.config = config,
        Err(error) => return fail(&error, environment.colours()).code().into(),
    }
    dispatch(&cli.command, &environment)
        .unwrap_or_else(|error| fail(&error, environment.colours()))
        .code()
        .into()
}

fn dispatch(command: &Command, environment: &Environment) -> Result<ExitStatus, CliError> {
    match command {
        Command::Build(command) => return Ok(build::command(command, environment)),
        Command::Fingerprint(command) => return build::fingerprint(command, environment),
        Command::Explain(command) => return explain::command(command, environment),
        Command::Inspect { command } => return inspect::command(command, environment),
        Command::Cache { command } => return cache::command(command, environment),
        Command::Serve(command) => return serve::command(command, environment),
        Command::Admin { command } => return admin::command(command, environment),
        Command::Policy { command } => return policy::command(command, environment),
        Command::Token { command } => return serve::token(command, environment),
        Command::Doctor(command) => return doctor::command(command, environment),
        Command::Demo(command) => return demo::command(command, environment),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "crossdock", &mut script);
            print(&String::from_utf8_lossy(&script))?;
        }
        Command::Man { directory } => man::write(&environment.absolute(directory))?,
        Command::Version => print(&format!("crossdock {}\n", env!("CARGO_PKG_VERSION")))?,
        Command::Docs => print(&docs::markdown())?,
    }
    Ok(ExitStatus::Success)
}

/// Shows an error that no reporter shows.
fn fail(error: &CliError, colours: bool) -> ExitStatus {
    // There is nobody to tell when standard error itself cannot be written.
    let _ = std::io::stderr().write_all(error.render(colours).as_bytes());
    error.status
}

/// Prints a result. A reader that has gone away (`| head`) is no error.
fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::system(anyhow::Error::new(error).context("writing to standard output")))
        }
        _ => Ok(()),
    }
}

/// The runtime of a command that needs one.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    descriptors().map_err(|error| {
        let error = anyhow::Error::new(error).context("this process may open too few files");
        CliError::system(error).hint("raise the limit: `ulimit -n 1024`")
    })?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::system(anyhow::Error::new(error).context("starting worker threads")))
}

/// Whether some file descriptors are left. The runtime takes a few where it cannot report that there are none.
fn descriptors() -> std::io::Result<()> {
    const NEEDED: usize = 16;
    let nothing = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
    let held: Result<Vec<_>, _> = (0..NEEDED).map(|_| nothing()).collect();
    held?;
    Ok(())
}
