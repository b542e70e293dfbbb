//! The command line, and nothing else.
//!
//! Exit codes: 0 all is well; 1 an experiment ran and a check failed; 2 the input or the surroundings
//! did not allow it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use pvlab::scenario::Library;

/// Runs paravirtual spinlock experiments on real Xen and reports every kick the hypervisor saw.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the scenarios.
    Scenarios {
        /// A folder of scenarios to use instead of the built-in ones.
        #[arg(long, value_name = "DIR")]
        configs: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match perform(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pvlab: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn perform(command: Command) -> Result<ExitCode> {
    match command {
        Command::Scenarios { configs } => {
            let library = library(configs);
            for name in library.names()? {
                println!("{name:16} {}", library.load(&name)?.description);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn library(configs: Option<PathBuf>) -> Library {
    configs.map_or(Library::Embedded, Library::Folder)
}
