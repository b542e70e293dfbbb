//! `kicktrace summary`.

use std::io::{self, Write};

use clap::Args as ClapArgs;

use super::Failure;
use super::input::Input;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    input: Input,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let summary = args.input.reading.summarise(&args.input.file)?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &summary)?;
        writeln!(out)?;
    } else {
        write!(out, "{summary}")?;
    }
    Ok(())
}
