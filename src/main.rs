//! The `crossdock` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Hidden subcommands, which must run while the process has a single thread, come before this line.
    crossdock::cli::main()
}
