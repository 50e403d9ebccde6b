//! Dockerfiles: text to typed instructions, exactly as BuildKit's Dockerfile frontend reads them.
//!
//! [`parse`] works in two layers. `node` knows lines: directives, comments, continuation, heredocs, and how each
//! instruction's arguments are split. `interpret` knows instructions: their flags, how many arguments they take, and what
//! these may be. Nothing is expanded here, because values depend on the build: the planner takes [`expand::Lexer`] to each
//! value when it knows the environment, and then the small languages inside of values ([`Mount`], [`Chmod`], [`Owner`],
//! [`parse_port`], [`check_signal`]). Everything is pure: no files, no network, no clock.

mod chmod;
mod device;
mod directive;
mod error;
pub mod expand;
mod flags;
mod heredoc;
mod instruction;
mod interpret;
pub mod lint;
mod mount;
mod node;
mod parse;
mod path;
mod source;
#[cfg(test)]
mod tests;
mod values;
mod warning;
mod words;

pub use chmod::{Chmod, ChmodError};
pub use device::Device;
pub use directive::{Check, Directives, Frontend, frontend_of};
pub use error::DockerfileError;
pub use heredoc::Heredoc;
pub use instruction::{
    Add, ArgDecl, CommandLine, Copy, Dockerfile, From, Healthcheck, Instruction, Network, Program, Run,
    Security, Spanned, Stage,
};
pub use mount::{Mount, MountError, RawMount, Sharing};
pub use parse::{Dialect, parse, parse_checked, parse_trigger, parse_with_syntax};
pub use path::clean_path;
pub use source::{Lines, SourceText};
pub use values::{Id, Owner, Ports, ValueError, check_signal, parse_port, parse_ports};
pub use warning::Warning;
