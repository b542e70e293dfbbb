//! The `kicktrace` command. All of it is in [`kicktrace::cli`], so that other tools can offer the
//! same commands.

use std::process::ExitCode;

fn main() -> ExitCode {
    kicktrace::cli::main(std::env::args_os())
}
