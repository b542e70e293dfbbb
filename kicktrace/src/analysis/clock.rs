//! How many TSC ticks a second has, learned from the trace itself.
//!
//! Owns the calibration. The file does not hold the frequency, but the scheduler writes how many
//! nanoseconds a vCPU ran (SWITCH_INFPREV), and the TSC tells when it came (SWITCH_INFNEXT) and
//! when it left: long runs give the frequency to a few parts in 10,000 or better.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::Read;

use crate::analysis::Options;
use crate::error::Error;
use crate::event;
use crate::reader::{self, Record, Visit};
use crate::summary::{Clock, ClockSource};

/// How many of the longest runs are kept.
const KEEP: usize = 256;
/// Runs shorter than this many ns say little: the two time stamps of a run are not taken at the
/// same instruction as its nanoseconds.
const SHORTEST_NS: u32 = 1_000;
/// The nanoseconds are cut to 32 bits; runs near the limit may have wrapped.
const LONGEST_NS: u32 = 4_000_000_000;

#[derive(Debug, Default)]
pub(super) struct Calibration {
    /// Per pCPU: who came, and when.
    came: Vec<Option<(u32, u32, u64)>>,
    /// The longest runs: (ns, ticks), shortest on top.
    runs: BinaryHeap<Reverse<(u32, u64)>>,
    pairs: u64,
}

impl Calibration {
    #[inline]
    pub(super) fn came(&mut self, record: &Record<'_>) {
        let &[domain, unit, ..] = record.words else { return };
        let cpu = record.cpu as usize;
        if self.came.len() <= cpu {
            self.came.resize(cpu + 1, None);
        }
        self.came[cpu] = Some((domain, unit, record.tsc));
    }

    #[inline]
    pub(super) fn left(&mut self, record: &Record<'_>) {
        let &[domain, unit, ns, ..] = record.words else { return };
        let Some(came) = self.came.get_mut(record.cpu as usize).and_then(Option::take) else {
            return;
        };
        if (came.0, came.1) != (domain, unit) || !(SHORTEST_NS..LONGEST_NS).contains(&ns) {
            return;
        }
        self.pairs += 1;
        let ticks = record.tsc.saturating_sub(came.2);
        if self.runs.len() < KEEP {
            self.runs.push(Reverse((ns, ticks)));
        } else if self.runs.peek().is_some_and(|&Reverse((shortest, _))| ns > shortest) {
            self.runs.pop();
            self.runs.push(Reverse((ns, ticks)));
        }
    }

    /// A gap on `cpu`: the run it cuts says nothing.
    pub(super) fn forget(&mut self, cpu: u32) {
        if let Some(came) = self.came.get_mut(cpu as usize) {
            *came = None;
        }
    }

    /// The clock: `given` if the caller knows the frequency, else the median of the longest runs.
    pub(super) fn clock(&self, given: Option<f64>) -> Clock {
        if let Some(hz) = given {
            let (hz, source) = (Some(hz), ClockSource::Given);
            return Clock { hz, source, error_ppm: None, runs: 0 };
        }
        let mut ratios: Vec<f64> = self
            .runs
            .iter()
            .filter(|Reverse((_, ticks))| *ticks > 0)
            .map(|&Reverse((ns, ticks))| ticks as f64 / f64::from(ns))
            .collect();
        ratios.sort_by(f64::total_cmp);
        if ratios.is_empty() {
            return Clock { hz: None, source: ClockSource::None, error_ppm: None, runs: 0 };
        }
        let median = ratios[ratios.len() / 2];
        // Half of the runs lie between the quartiles; their distance is the honest spread.
        let spread = ratios[ratios.len() * 3 / 4] - ratios[ratios.len() / 4];
        Clock {
            hz: Some(median * 1e9),
            source: ClockSource::Calibrated,
            error_ppm: Some(spread / 2.0 / median * 1e6),
            runs: self.pairs,
        }
    }
}

/// True for the two events [`Calibration`] needs.
pub(super) const fn is_scheduler_switch(event: u32) -> bool {
    matches!(event, event::SWITCH_INFPREV | event::SWITCH_INFNEXT)
}

/// Reads a trace for its frequency alone.
///
/// # Errors
/// As [`summarise`](crate::summarise).
pub fn calibrate<R: Read + Send>(input: R, options: &Options) -> Result<Clock, Error> {
    let mut calibration = Calibration::default();
    if options.cpu_hz.is_none() {
        reader::read(input, &options.read, &mut calibration)?;
    }
    Ok(calibration.clock(options.cpu_hz))
}

impl Visit for Calibration {
    fn record(&mut self, record: &Record<'_>) -> Result<(), Error> {
        match record.event {
            event::SWITCH_INFNEXT => self.came(record),
            event::SWITCH_INFPREV => self.left(record),
            event::LOST_RECORDS => self.forget(record.cpu),
            _ => {}
        }
        Ok(())
    }

    fn is_local(_: u32, _: &[u32]) -> bool {
        true
    }
}
