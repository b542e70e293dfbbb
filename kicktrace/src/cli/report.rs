//! The HTML report of `kicktrace summary --html`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::Path;

use super::Failure;
use super::input::{Input, Window, beyond};
use super::sink;
use super::timeline::Windowed;
use crate::Summary;
use crate::analysis::{
    Analyser, Both, Bounds, Host, HostSummary, Interval, Nothing, Observe, On, Phases, WaitStory,
    complete,
};
use crate::output::html::{self, Parts};
use crate::output::series::Series;
use crate::output::story::{Gap, Story};
use crate::reader::{Reading, Record, Visit, read};

/// Longest waits listed.
const WORST: usize = 20;
/// Intervals drawn at most: a browser stays quick, and more would be narrower than a pixel.
const DRAWN: usize = 4_000;

/// Reads the trace, writes the page and returns the summary and the phases it shows.
pub(super) fn write(
    input: &Input,
    window: Window,
    bounds: Bounds,
    path: &Path,
) -> Result<(Summary, Series), Failure> {
    // Before the trace is read, which may take long.
    sink::refuse_inputs(path, &input.files())?;
    // A given window can be drawn while the trace is read, if its frequency is known beforehand.
    let hz = input.clock()?;
    let observer = (Seen::new(window, hz), Host::default());
    let mut series = Series::default();
    let mut told = None;
    let tell = |summary: &Summary, (_, host): &mut (Seen, Host)| told = Some(host.figures(summary));
    let (summary, (mut seen, _)) = if bounds.every.is_some() {
        let options = input.reading.options();
        let sink = |summary, _: &mut ()| drop(series.push(summary));
        let mut phases = Phases::new(&options, (), bounds, sink);
        let (reading, found) = observe(input, observer, (window, bounds), &mut phases, tell)?;
        phases.finish(reading);
        series.set_clock(found.0.clock.clone());
        found
    } else {
        observe(input, observer, (window, bounds), &mut Nothing, tell)?.1
    };
    let host = told.map(|host| HostSummary { clock: summary.clock.clone(), ..host });
    let mut worst: Vec<_> = std::mem::take(&mut seen.longest).into_iter().map(|l| l.0.0).collect();
    worst.sort_by_key(|wait| Reverse(rank(wait)));
    let mut drawn = seen.window.to;
    if !window.is_given() && input.is_rereadable() {
        // A few typical waits around a kick from the middle of the trace.
        let seconds = |ticks: u64| ticks as f64 / hz.unwrap_or(1.0);
        let waits = summary.domains.iter().map(|domain| domain.latencies.wait.p50).max();
        let half = seconds(waits.unwrap_or(0).max(1)) * 4.0;
        let kick =
            seen.kicks.get(seen.kicks.len() / 2).copied().unwrap_or(summary.reading.first_tsc);
        let at = seconds(kick.saturating_sub(summary.reading.first_tsc));
        let window = Window { from: Some((at - half).max(0.0)), to: Some(at + half) };
        let seen = Seen::new(window, hz);
        let all = Bounds::default();
        drawn = observe(input, seen, (window, all), &mut Nothing, |_, _| {})?.1.1.window.to;
    }
    let parts = Parts { title: input.title(), window: drawn, worst, series, host };
    let mut file = sink::create(path, sink::Kind::Text, &input.files())?;
    html::write(&mut file, &summary, &parts)?;
    file.flush()?;
    Ok((summary, parts.series))
}

/// Reads the trace for the summary of a window, and for `beside`. When the summary is made, `tell`
/// is called with it and the observer.
fn observe<O: Observe>(
    input: &Input,
    observer: O,
    (window, bounds): (Window, Bounds),
    beside: &mut impl Visit,
    mut tell: impl FnMut(&Summary, &mut O),
) -> Result<(Reading, (Summary, O)), Failure> {
    let options = input.reading.options();
    let bounds = Bounds { every: None, ..bounds };
    if bounds == Bounds::default() {
        let mut analyser = Analyser::observed(&options, observer);
        let reading = read(input.open()?, &options.read, &mut Both(&mut analyser, beside))
            .map_err(|source| input.failure(source))?;
        let (summary, mut observer) = analyser.finish(reading.clone());
        tell(&summary, &mut observer);
        return Ok((reading, (summary, observer)));
    }
    let mut told = None;
    let sink = |summary: Summary, observer: &mut O| {
        tell(&summary, observer);
        told = Some(summary);
    };
    let mut phases = Phases::new(&options, observer, bounds, sink);
    let reading = read(input.open()?, &options.read, &mut Both(&mut phases, beside))
        .map_err(|source| input.failure(source))?;
    let (observer, whole) = phases.finish(reading.clone());
    let mut summary = told.ok_or_else(|| beyond(input, window, bounds))?;
    complete(&mut summary, whole);
    Ok((reading, (summary, observer)))
}

/// Keeps the longest waits and one window.
struct Seen {
    longest: BinaryHeap<Reverse<Longest>>,
    /// When kicks were, thinned out evenly.
    kicks: Vec<u64>,
    /// One in so many is kept, and how many were seen.
    thinned: usize,
    seen: usize,
    window: Windowed<Story>,
}

impl Seen {
    fn new(window: Window, hz: Option<f64>) -> Self {
        Self {
            longest: BinaryHeap::new(),
            kicks: Vec::new(),
            thinned: 1,
            seen: 0,
            window: Windowed::new(window, hz, Story::with_limit(DRAWN)),
        }
    }
}

/// Waits that a kick ended come first: the others are mostly not for a lock. Then the longer one.
fn rank(wait: &WaitStory) -> (bool, u64) {
    (wait.kick.is_some(), wait.running.saturating_sub(wait.blocked))
}

/// A wait, ordered by [`rank`].
struct Longest(WaitStory);

impl PartialEq for Longest {
    fn eq(&self, other: &Self) -> bool {
        rank(&self.0) == rank(&other.0)
    }
}

impl Eq for Longest {}

impl PartialOrd for Longest {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Longest {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        rank(&self.0).cmp(&rank(&other.0))
    }
}

impl Observe for Seen {
    const RECORDS: bool = true;

    fn record(&mut self, record: &Record<'_>, _: On) {
        if let Some(lost) = record.lost() {
            let from = lost.first_tsc.min(record.tsc);
            if let Some((from, to)) = self.window.within(from, record.tsc) {
                self.window.to.gap(Gap { cpu: record.cpu, from, to });
            }
        }
    }

    fn start(&mut self, tsc: u64) {
        self.window.start(tsc);
    }

    fn interval(&mut self, interval: &Interval) {
        self.window.interval(interval);
    }

    fn wait(&mut self, wait: &WaitStory) {
        self.window.wait(wait);
        if !self.window.holds(wait.running) {
            return;
        }
        self.longest.push(Reverse(Longest(*wait)));
        if self.longest.len() > WORST {
            self.longest.pop();
        }
        if let Some(kick) = wait.kick {
            if self.seen.is_multiple_of(self.thinned) {
                self.kicks.push(kick.tsc);
            }
            self.seen += 1;
            if self.kicks.len() == 2048 {
                let mut keep = false;
                self.kicks.retain(|_| {
                    keep = !keep;
                    keep
                });
                self.thinned *= 2;
            }
        }
    }
}
