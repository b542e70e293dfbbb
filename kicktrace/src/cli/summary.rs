//! `kicktrace summary`.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::input::{Input, Window};
use super::{Failure, finished};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) input: Input,
    /// Print the summary as JSON (schema in the book)
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print the counts and times as CSV, one line a vCPU
    #[arg(long)]
    csv: bool,
    /// Also write a report for the browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The part of the trace the report draws; by default a few typical waits
    #[command(flatten)]
    pub(super) window: Window,
    /// Learn from the trace how far the pCPUs' TSCs are out of step, and correct it
    #[arg(long)]
    fix_skew: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut input = args.input.clone();
    if args.fix_skew {
        input.learn_skew()?;
        for (cpu, ticks) in input.tsc_offsets() {
            eprintln!("kicktrace: TSC of pCPU {cpu} corrected by {ticks} ticks");
        }
    }
    let summary = match &args.html {
        Some(path) => super::report::write(&input, args.window, path)?,
        None => input.summarise()?,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        serde_json::to_writer_pretty(&mut out, &summary)?;
        writeln!(out)?;
    } else if args.csv {
        crate::output::csv::write(&mut out, &summary)?;
    } else {
        match rustix::termios::tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 => {
                write!(out, "{summary:width$}", width = usize::from(size.ws_col))?;
            }
            // No terminal: whoever reads it has room.
            _ => write!(out, "{summary}")?,
        }
    }
    out.flush()?;
    finished(&input, &summary.reading)?;
    match summary.classes.missing() {
        None => Ok(()),
        Some((what, mask)) => {
            let (name, bytes) = (input.file.clone(), summary.reading.bytes);
            Err(Failure::Classes { name, bytes, what, mask })
        }
    }
}
