//! `kicktrace check`: is this trace complete enough to count kicks?

use std::io::{self, Write};

use clap::Args as ClapArgs;

use super::input::Input;
use super::sink::terminal_width;
use super::{Failure, corrected};
use crate::output::columns::wrap;
use crate::summary::Verdict;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) input: Input,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

/// Where a finding's text stands, behind the verdict.
const INDENT: usize = 9;

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let summary = args.input.summarise()?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &summary.findings)?;
        writeln!(out)?;
    } else {
        let columns = terminal_width().unwrap_or(usize::MAX);
        let line = |text: &str| wrap(text, columns, INDENT);
        for finding in &summary.findings {
            writeln!(out, "{}", line(&format!("{:<8} {}", finding.verdict.name(), finding.what)))?;
            if !finding.remedy.is_empty() {
                writeln!(out, "{}", line(&format!("{:INDENT$}{}", "", finding.remedy)))?;
            }
        }
    }
    out.flush()?;
    corrected(&args.input, &summary.reading)?;
    let count = |verdict| summary.found(verdict).count();
    match summary.verdict {
        Verdict::Good | Verdict::Note => Ok(()),
        Verdict::Doubtful => Err(Failure::Check(format!(
            "{}: doubtful points: {}",
            args.input.name(),
            count(Verdict::Doubtful)
        ))),
        Verdict::Missing => Err(Failure::Check(format!(
            "{}: missing things that a kick count needs: {}",
            args.input.name(),
            count(Verdict::Missing)
        ))),
    }
}
