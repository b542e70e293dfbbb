//! `kicktrace locks`: lock by lock, or acquisition by acquisition.

use std::io::{self, BufWriter, Write};

use clap::Args as ClapArgs;
use serde::Serialize;

use super::input::{Input, Window};
use super::sink::terminal_width;
use super::summary::{bounds, windowed};
use super::timeline::Windowed;
use super::{Failure, judged};
use crate::Clock;
use crate::analysis::{AcquisitionStory, Analyser, Observe};
use crate::output::locks::{self, Acquisitions, Lines};
use crate::output::table::of_its_number;
use crate::reader::read;
use crate::summary::{Certainty, Lock, SCHEMA};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) input: Input,
    /// Each acquisition that blocked, one a line, instead of sums
    #[arg(long)]
    each: bool,
    /// Only acquisitions of this lock: its address, 0x1040c0; only the low half counts (with
    /// --each)
    #[arg(long, value_name = "ADDRESS", value_parser = parse_lock, requires = "each")]
    lock: Option<u32>,
    /// The part of the trace whose acquisitions are shown
    #[command(flatten)]
    pub(super) window: Window,
    /// Print JSON: one document, or one object a line with --each
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV
    #[arg(long)]
    csv: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    clock: &'a Clock,
    domains: Vec<OfDomain<'a>>,
}

#[derive(Serialize)]
struct OfDomain<'a> {
    id: u16,
    life: u32,
    locks: &'a [Lock],
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let summary = if args.each {
        each(args, &mut out)?
    } else {
        let bounds = bounds(&args.input, args.window, None)?;
        let summary = windowed(&args.input, args.window, bounds)?;
        if args.json {
            let domains = summary.domains.iter().filter(|domain| !domain.locks.is_empty());
            let domains =
                domains.map(|of| OfDomain { id: of.id, life: of.life, locks: &of.locks }).collect();
            let document = Document { schema: SCHEMA, clock: &summary.clock, domains };
            serde_json::to_writer_pretty(&mut out, &document)?;
            writeln!(out)?;
        } else if args.csv {
            locks::csv(&mut out, &summary)?;
        } else {
            let columns = terminal_width();
            for domain in summary.domains.iter().filter(|domain| !domain.locks.is_empty()) {
                let first = summary.reading.first_tsc;
                let exact = domain.locks.iter().all(|of| of.certainty == Certainty::Exact);
                let trust =
                    if exact { "every figure is exact" } else { "figures are inferred (~)" };
                let number = of_its_number(domain.life);
                writeln!(out, "d{}{number}: {trust}, from the guest's marks", domain.id)?;
                write!(
                    out,
                    "{}",
                    locks::table(domain, &summary.clock, first, usize::MAX, columns)
                )?;
            }
        }
        summary
    };
    out.flush()?;
    if !summary.classes.markers {
        return Err(Failure::Usage(format!(
            "{}: no guest marks in its {} bytes{}, and nothing else in a trace names a lock: let the \
             guest mark (pvlab's do with trace=markers) and capture with the mask of `kicktrace \
             capture --markers`",
            args.input.name(),
            summary.reading.bytes,
            if summary.window.is_some() { " up to the end of this window" } else { "" }
        )));
    }
    judged(&args.input, &summary)
}

fn each(args: &Args, out: impl Write) -> Result<crate::Summary, Failure> {
    let clock = Clock::known(args.input.clock()?);
    args.window.unit(clock.hz, &args.input)?;
    let lines = match (args.json, args.csv) {
        (true, _) => Lines::Json,
        (_, true) => Lines::Csv,
        _ => Lines::Table,
    };
    let hz = clock.hz;
    let (lock, to, failed, found) = (args.lock, None, None, false);
    let writer = Writer { out: Some(out), lines, clock, lock, found, to, failed };
    let options = args.input.reading.options();
    let mut analyser = Analyser::observed(&options, Windowed::new(args.window, hz, writer));
    let reading = read(args.input.open()?, &options.read, &mut analyser)
        .map_err(|source| args.input.failure(source))?;
    let (summary, windowed) = analyser.finish(reading);
    let found = windowed.to.found;
    match (windowed.to.failed, windowed.to.to) {
        (Some(error), _) => return Err(error.into()),
        (None, Some(mut to)) => to.flush()?,
        (None, None) => {}
    }
    args.window.reached(summary.ticks, hz, &args.input.name())?;
    if let (Some(lock), false, true) = (args.lock, found, summary.classes.markers) {
        return Err(Failure::Usage(format!(
            "{}: no acquisition of lock {lock:#010x} that blocked; kicktrace locks lists the locks",
            args.input.name()
        )));
    }
    Ok(summary)
}

/// Writes the acquisitions of one lock or of all.
struct Writer<W> {
    /// Until the trace has begun.
    out: Option<W>,
    lines: Lines,
    clock: Clock,
    lock: Option<u32>,
    /// Whether there was any.
    found: bool,
    to: Option<Acquisitions<W>>,
    failed: Option<io::Error>,
}

impl<W: Write> Observe for Writer<W> {
    fn start(&mut self, tsc: u64) {
        let Some(out) = self.out.take() else { return };
        match Acquisitions::new(out, self.lines, self.clock.clone(), tsc, terminal_width()) {
            Ok(to) => self.to = Some(to),
            Err(error) => self.failed = Some(error),
        }
    }

    fn acquisition(&mut self, of: &AcquisitionStory) {
        if self.failed.is_none()
            && self.lock.is_none_or(|lock| lock == of.lock)
            && let Some(to) = &mut self.to
        {
            self.found = true;
            self.failed = to.write(of).err();
        }
    }

    fn caught_up(&mut self) {
        if self.failed.is_none()
            && let Some(to) = &mut self.to
        {
            self.failed = to.flush().err();
        }
    }
}

fn parse_lock(text: &str) -> Result<u32, String> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let digits = !hex.is_empty() && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    let address = u64::from_str_radix(hex, 16).ok().filter(|_| digits);
    // The trace holds the low half alone.
    address.map(|address| address as u32).ok_or_else(|| {
        "the address of a lock in hexadecimal digits, or its low half, such as 0x1040c0".into()
    })
}
