//! `kicktrace host`: pCPUs, scheduling, hypercalls and exits.

use std::io::{self, BufWriter, Write};

use clap::Args as ClapArgs;

use super::input::{Input, Window, beyond};
use super::sink::terminal_width;
use super::summary::{bounds, phases};
use super::{Failure, judged};
use crate::analysis::{Host, Phases, complete};
use crate::output::host;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) input: Input,
    /// The part of the trace that is reported
    #[command(flatten)]
    pub(super) window: Window,
    /// Print JSON (fields in the book)
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV, one figure a line
    #[arg(long)]
    csv: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let input = &args.input;
    let bounds = bounds(input, args.window, None)?;
    let mut told = None;
    let sink = |summary: crate::Summary, host: &mut Host| {
        let host = host.figures(&summary);
        told = Some((summary, host));
    };
    let options = input.reading.options();
    let (_, whole) = phases(input, Phases::new(&options, Host::default(), bounds, sink))?;
    let (mut summary, mut host) = told.ok_or_else(|| beyond(input, args.window, bounds))?;
    // Those of the summary stand first.
    let before = summary.warnings.len();
    complete(&mut summary, whole);
    host.clock = summary.clock.clone();
    host.warnings.splice(..before, summary.warnings.iter().cloned());
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        serde_json::to_writer_pretty(&mut out, &host)?;
        writeln!(out)?;
    } else if args.csv {
        host::csv(&mut out, &host)?;
    } else {
        host::table(&mut out, &host, terminal_width())?;
    }
    out.flush()?;
    judged(input, &summary)
}
