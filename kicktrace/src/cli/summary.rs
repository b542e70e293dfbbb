//! `kicktrace summary`.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::input::{Input, Window, beyond, is_dash, ticks};
use super::sink::terminal_width;
use super::{Failure, corrected, finished, judged, say};
use crate::Summary;
use crate::analysis::{Bounds, Fixed, Observe, Phases, Whole, complete};
use crate::output::series::Series;
use crate::reader::read;
use crate::summary::{Finding, Verdict};

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
    /// The part of the trace that is reported, and that the report draws
    #[command(flatten)]
    pub(super) window: Window,
    /// Report phases of this length, one after the other (100ms, 2s, 500us): a line for each domain
    /// and phase, with its kicks, waits and times; with --html as charts too
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    every: Option<f64>,
    /// Learn from the trace how far the pCPUs' TSCs are out of step, and correct it
    #[arg(long)]
    fix_skew: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut input = args.input.clone();
    // The report is what goes to standard output.
    let only_report = args.html.as_deref().is_some_and(is_dash);
    if only_report && (args.json || args.csv) {
        let other = if args.json { "--json" } else { "--csv" };
        return Err(Failure::Usage(format!(
            "--html - and {other}: standard output holds one of them: name a file for --html"
        )));
    }
    if args.fix_skew {
        tell_fixed(&input.fix_skew()?, &input);
    }
    let bounds = bounds(&input, args.window, args.every)?;
    let summary = match (&args.html, args.every) {
        (Some(path), every) => {
            let (summary, series) = super::report::write(&input, args.window, bounds, path)?;
            if every.is_some() && !only_report {
                print(args, &series)?;
                return judged(&input, &summary);
            }
            summary
        }
        (None, None) => windowed(&input, args.window, bounds)?,
        (None, Some(_)) => return series(args, &input, bounds),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if only_report {
        // It is written.
    } else if args.json {
        serde_json::to_writer_pretty(&mut out, &summary)?;
        writeln!(out)?;
    } else if args.csv {
        crate::output::csv::write(&mut out, &summary)?;
    } else {
        match terminal_width() {
            Some(width) => write!(out, "{summary:width$}")?,
            // No terminal: there is room.
            None => write!(out, "{summary}")?,
        }
    }
    out.flush()?;
    if args.csv { judged(&input, &summary) } else { finished(&input, &summary) }
}

/// Says how far the pCPUs' TSCs could be brought into step.
fn tell_fixed(fixed: &Fixed, input: &Input) {
    for of in &fixed.corrections {
        let (ticks, per_tick) = input.correction(of.cpu);
        let slope = match per_tick {
            0.0 => String::new(),
            per_tick => format!(" and {:+.3} ppm", per_tick * 1e6),
        };
        let open = of.open.map_or_else(String::new, |open| {
            format!("; {open} ticks more would contradict nothing either")
        });
        say(format_args!("TSC of pCPU {} corrected by {ticks} ticks{slope}{open}", of.cpu));
    }
    match (fixed.before, fixed.left) {
        (0, _) => say("--fix-skew: nothing contradicts the TSCs as they are"),
        (_, 0) => say(
            "--fix-skew: no contradiction is left; figures that span pCPUs stay inferred (~): they are off \
             by what the corrections leave open",
        ),
        (before, left) => say(format_args!(
            "--fix-skew failed: {left} of {before} contradictions are left, so figures that span pCPUs may \
             be wrong; the reason is no offset with a slope, or records are missing (kicktrace check)"
        )),
    }
}

/// Seconds to ticks, for which the frequency must be known before the trace is read.
pub(super) fn bounds(input: &Input, window: Window, every: Option<f64>) -> Result<Bounds, Failure> {
    if window.from.or(window.to).or(every).is_none() {
        return Ok(Bounds::default());
    }
    let Some(hz) = input.clock()? else {
        return Err(Failure::Usage(format!(
            "{}: --from, --to and --every are in seconds, and the TSC frequency of {} is not known \
             beforehand: give --cpu-hz or --xl-dmesg",
            input.name(),
            if input.is_rereadable() { "this trace" } else { "a pipe" }
        )));
    };
    let (from, to) = window.ticks(hz);
    Ok(Bounds { from, to, every: every.map(|every| ticks(every, hz).max(1)) })
}

/// The summary of one window, or of the whole trace.
pub(super) fn windowed(input: &Input, window: Window, bounds: Bounds) -> Result<Summary, Failure> {
    if bounds == Bounds::default() {
        return input.summarise();
    }
    let mut told = None;
    let sink = |summary, _: &mut ()| told = Some(summary);
    let options = input.reading.options();
    let (_, whole) = phases(input, Phases::new(&options, (), bounds, sink))?;
    let mut summary = told.ok_or_else(|| beyond(input, window, bounds))?;
    complete(&mut summary, whole);
    Ok(summary)
}

/// Reads the trace for its phases.
pub(super) fn phases<O: Observe, F: FnMut(Summary, &mut O)>(
    input: &Input,
    mut phases: Phases<O, F>,
) -> Result<(O, Whole), Failure> {
    let options = input.reading.options();
    let reading =
        read(input.open()?, &options.read, &mut phases).map_err(|source| input.failure(source))?;
    corrected(input, &reading)?;
    Ok(phases.finish(reading))
}

fn series(args: &Args, input: &Input, bounds: Bounds) -> Result<(), Failure> {
    let mut series = Series::default();
    let mut last = None;
    let sink = |summary: Summary, _: &mut ()| last = Some(series.push(summary));
    let options = input.reading.options();
    let (_, whole) = phases(input, Phases::new(&options, (), bounds, sink))?;
    series.set_clock(whole.clock.clone());
    let mut last = last.ok_or_else(|| beyond(input, args.window, bounds))?;
    // What was captured shows by the end at the latest.
    complete(&mut last, whole);
    // The last phase has those of the whole trace too: records out of order, a cut.
    series.doubt(last.found(Verdict::Doubtful));
    print(args, &series)?;
    let all = series.phases().len();
    for (Finding { what, remedy, .. }, phases) in series.doubts() {
        let name = input.name();
        say(format_args!("{name}: doubtful in {phases} of {all} phases: {what}; {remedy}"));
    }
    finished(input, &last)
}

/// The phases, as they are asked for.
fn print(args: &Args, series: &Series) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        serde_json::to_writer_pretty(&mut out, &series)?;
        writeln!(out)?;
    } else if args.csv {
        series.csv(&mut out)?;
    } else {
        series.table(&mut out, terminal_width())?;
    }
    Ok(out.flush()?)
}

/// A length of time: a number with a unit, or of seconds.
fn parse_time(text: &str) -> Result<f64, String> {
    let units = [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("s", 1.0), ("", 1.0)];
    let found = units.iter().find_map(|(unit, factor)| {
        let number = text.strip_suffix(unit)?.trim().parse::<f64>().ok()?;
        Some(number * factor)
    });
    found
        .filter(|seconds| seconds.is_finite() && *seconds > 0.0)
        .ok_or_else(|| "a length of time, such as 100ms, 2s or 500us".into())
}
