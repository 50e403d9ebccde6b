//! The `crossdock` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    // Before anything else: the helper processes of a step must not have threads.
    if let Some(code) = crossdock::exec::helper_main(&args) {
        return code;
    }
    crossdock::cli::main()
}
