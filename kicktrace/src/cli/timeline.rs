//! `kicktrace timeline`: a part of the trace as a chart, a Perfetto trace or JSON.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::input::{Input, Window};
use super::{Failure, judged, sink};
use crate::analysis::{AcquisitionStory, Analyser, Interval, Observe, WaitStory};
use crate::output::perfetto::Perfetto;
use crate::output::{gantt, story::Story};
use crate::reader::read;
use crate::{Clock, Summary};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) input: Input,
    #[command(flatten)]
    pub(super) window: Window,
    /// Write a trace for ui.perfetto.dev (protobuf) instead of a chart
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    perfetto: Option<PathBuf>,
    /// Print intervals and waits as JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Columns of time in the chart; as many as the terminal has room for by default, 100 without
    /// one
    #[arg(long, value_name = "COLUMNS", conflicts_with_all = ["json", "perfetto"],
          value_parser = clap::value_parser!(u16).range(20..=1000))]
    width: Option<u16>,
}

/// Columns of the chart beside those of time: names and borders.
const NAMES: usize = 11;

/// Perfetto knows nanoseconds only.
const NO_CLOCK: &str = "a Perfetto trace is in nanoseconds, and the frequency is unknown: give --cpu-hz or \
                        --xl-dmesg, or name a file instead of a pipe, on which it is measured first";

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let hz = args.input.clock()?;
    args.window.unit(hz, &args.input)?;
    if let Some(path) = &args.perfetto {
        let hz = hz.ok_or_else(|| Failure::Usage(NO_CLOCK.into()))?;
        let file = sink::create(path, sink::Kind::Binary, &args.input.files())?;
        let perfetto = Perfetto::new(file, hz);
        let (summary, perfetto) = observe(args, Windowed::new(args.window, Some(hz), perfetto))?;
        perfetto.finish()?;
        return told(args, &summary, Some(hz));
    }
    if args.json {
        let out = BufWriter::new(io::stdout().lock());
        let lines = Lines { out, failed: None };
        let (summary, mut lines) = observe(args, Windowed::new(args.window, hz, lines))?;
        if let Some(error) = lines.failed {
            return Err(error.into());
        }
        lines.out.flush()?;
        return told(args, &summary, hz);
    }
    // A chart of 100 columns needs no more than this many intervals to be read.
    let story = Story::with_limit(2_000_000);
    let (summary, story) = observe(args, Windowed::new(args.window, hz, story))?;
    let clock = Clock::known(hz);
    let mut out = BufWriter::new(io::stdout().lock());
    let columns = sink::terminal_width();
    let room = columns.map_or(100, |columns| columns.saturating_sub(NAMES).max(20));
    let width = args.width.map_or(room, usize::from);
    gantt::write(&mut out, &story, &clock, width, columns)?;
    out.flush()?;
    told(args, &summary, hz)
}

/// What the command ends with.
fn told(args: &Args, summary: &Summary, hz: Option<f64>) -> Result<(), Failure> {
    judged(&args.input, summary)?;
    args.window.reached(summary.ticks, hz, &args.input.name())
}

fn observe<O: Observe>(args: &Args, observer: Windowed<O>) -> Result<(Summary, O), Failure> {
    let options = args.input.reading.options();
    let mut analyser = Analyser::observed(&options, observer);
    let reading = read(args.input.open()?, &options.read, &mut analyser)
        .map_err(|source| args.input.failure(source))?;
    let (summary, windowed) = analyser.finish(reading);
    Ok((summary, windowed.to))
}

/// Passes on what lies in the window, cut to it.
pub(super) struct Windowed<O> {
    window: Window,
    hz: f64,
    from: u64,
    end: u64,
    pub(super) to: O,
}

impl<O> Windowed<O> {
    pub(super) fn new(window: Window, hz: Option<f64>, to: O) -> Self {
        // Without a frequency the window is in ticks.
        Self { window, hz: hz.unwrap_or(1.0), from: 0, end: u64::MAX, to }
    }

    /// The part of a time that lies in the window.
    pub(super) fn within(&self, from: u64, to: u64) -> Option<(u64, u64)> {
        let (from, to) = (from.max(self.from), to.min(self.end));
        (from < to).then_some((from, to))
    }

    pub(super) fn holds(&self, tsc: u64) -> bool {
        (self.from..self.end).contains(&tsc)
    }
}

impl<O: Observe> Observe for Windowed<O> {
    fn start(&mut self, tsc: u64) {
        let (from, to) = self.window.ticks(self.hz);
        self.from = tsc.saturating_add(from);
        self.end = to.map_or(u64::MAX, |to| tsc.saturating_add(to));
        self.to.start(tsc.max(self.from));
    }

    fn interval(&mut self, interval: &Interval) {
        if let Some((from, to)) = self.within(interval.from, interval.to) {
            self.to.interval(&Interval { from, to, ..*interval });
        }
    }

    fn wait(&mut self, wait: &WaitStory) {
        if wait.blocked < self.end && wait.running >= self.from {
            self.to.wait(wait);
        }
    }

    fn caught_up(&mut self) {
        self.to.caught_up();
    }

    fn acquisition(&mut self, acquisition: &AcquisitionStory) {
        if acquisition.blocked < self.end && acquisition.marked >= self.from {
            self.to.acquisition(acquisition);
        }
    }
}

/// One JSON object a line.
struct Lines<W> {
    out: W,
    failed: Option<serde_json::Error>,
}

impl<W: Write> Lines<W> {
    fn line(&mut self, kind: &str, of: &impl serde::Serialize) {
        if self.failed.is_some() {
            return;
        }
        let written = serde_json::to_value(of).and_then(|mut value| {
            value["kind"] = kind.into();
            serde_json::to_writer(&mut self.out, &value)
        });
        let ended = written.and_then(|()| self.out.write_all(b"\n").map_err(serde_json::Error::io));
        self.failed = ended.err();
    }
}

impl<W: Write> Observe for Lines<W> {
    fn interval(&mut self, interval: &Interval) {
        self.line("interval", interval);
    }

    fn wait(&mut self, wait: &WaitStory) {
        self.line("wait", wait);
    }

    fn acquisition(&mut self, acquisition: &AcquisitionStory) {
        self.line("acquisition", acquisition);
    }

    fn caught_up(&mut self) {
        if self.failed.is_none() {
            self.failed = self.out.flush().map_err(serde_json::Error::io).err();
        }
    }
}
