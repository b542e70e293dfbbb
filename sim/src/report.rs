//! What a simulation came to: figures, or what did not hold.
//!
//! Owns the figures, their names, and how they are shown. Holds nothing that depends on the machine
//! or its clock: two runs of one configuration give equal reports.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use hdrhistogram::Histogram;
use pvlock::Counter;
use serde::Serialize;

use crate::config::Config;
use crate::tally::{Switches, Tally};

/// What the acquisitions of one policy came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Its name.
    pub policy: String,
    /// The command that runs it again.
    pub command: String,
    /// What was simulated.
    pub cell: Cell,
    /// Virtual time at the end, in nanoseconds.
    pub virtual_ns: u64,
    /// Acquisitions of all vCPUs.
    pub acquisitions: u64,
    /// Of the vCPU that had the fewest.
    pub acquisitions_fewest: u64,
    /// Of the vCPU that had the most.
    pub acquisitions_most: u64,
    /// Jain's index over the vCPUs' acquisitions: 1 where all have as many.
    pub jain: f64,
    /// Acquisitions in a second of virtual time.
    pub per_second: f64,
    /// From wanting a lock to owning it.
    pub wait_ns: Wait,
    /// Acquisitions that slept.
    pub blocked: Blocked,
    /// Of those, acquisitions that slept twice or more.
    pub blocked_twice: Blocked,
    /// Slices that ended while others were waiting for a pCPU.
    pub preempted: u64,
    /// Times that something else took a pCPU away.
    pub pcpu_taken: u64,
    /// The lock's own counters, summed over all vCPUs.
    pub counters: BTreeMap<&'static str, u64>,
}

/// What was simulated, as far as it names a cell of an experiment; the command has everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// vCPUs.
    pub vcpus: usize,
    /// pCPUs.
    pub pcpus: usize,
    /// Locks.
    pub locks: usize,
    /// Mean of the work inside the lock, in nanoseconds.
    pub critical_ns: f64,
    /// Mean of the work between two acquisitions, in nanoseconds.
    pub outside_ns: f64,
    /// Where all random numbers come from.
    pub seed: u64,
}

/// Nanoseconds of virtual time, to three digits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Wait {
    /// Half of the acquisitions waited no longer.
    pub p50: u64,
    /// Nine tenths.
    pub p90: u64,
    /// All but one in a hundred.
    pub p99: u64,
    /// All but one in a thousand.
    pub p999: u64,
    /// The longest wait.
    pub max: u64,
    /// Lowest value of a class, and how many are in it.
    pub histogram: Vec<(u64, u64)>,
}

/// Acquisitions that slept, and the kicks that woke them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Blocked {
    /// How many.
    pub acquisitions: u64,
    /// Kicks that ended one of their sleeps.
    pub waking_kicks: u64,
    /// The one by the other.
    pub waking_kicks_each: Option<f64>,
}

impl Blocked {
    fn new((acquisitions, waking_kicks): (u64, u64)) -> Self {
        let each = waking_kicks as f64 / acquisitions as f64;
        Self { acquisitions, waking_kicks, waking_kicks_each: (acquisitions > 0).then_some(each) }
    }
}

impl Report {
    pub(crate) fn new(
        (policy, command): (String, String),
        config: &Config,
        virtual_ns: u64,
        tally: &Tally,
        switches: Switches,
        counters: [u64; Counter::COUNT],
    ) -> Self {
        let quantile = |q| tally.waits.value_at_quantile(q);
        Self {
            policy,
            command,
            cell: Cell {
                vcpus: config.vcpus,
                pcpus: config.pcpus,
                locks: config.locks,
                critical_ns: config.critical.mean(),
                outside_ns: config.outside.mean(),
                seed: config.seed,
            },
            virtual_ns,
            acquisitions: tally.acquisitions,
            acquisitions_fewest: tally.by_vcpu.iter().copied().min().unwrap_or(0),
            acquisitions_most: tally.by_vcpu.iter().copied().max().unwrap_or(0),
            jain: jain(&tally.by_vcpu),
            per_second: tally.acquisitions as f64 * 1e9 / virtual_ns.max(1) as f64,
            wait_ns: Wait {
                p50: quantile(0.5),
                p90: quantile(0.9),
                p99: quantile(0.99),
                p999: quantile(0.999),
                max: tally.waits.max(),
                histogram: classes(&tally.waits),
            },
            blocked: Blocked::new(tally.slept),
            blocked_twice: Blocked::new(tally.slept_twice),
            preempted: switches.preempted,
            pcpu_taken: switches.taken,
            counters: Counter::ALL.iter().map(|c| c.name()).zip(counters).collect(),
        }
    }

    /// One of the lock's counters by its name; 0 where there is none of that name.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }
}

fn jain(shares: &[u64]) -> f64 {
    let sum = shares.iter().sum::<u64>() as f64;
    let squares: f64 = shares.iter().map(|n| (*n as f64).powi(2)).sum();
    if squares > 0.0 { sum * sum / (shares.len() as f64 * squares) } else { 0.0 }
}

/// Four classes an octave: enough for a curve.
fn classes(waits: &Histogram<u64>) -> Vec<(u64, u64)> {
    let mut classes: BTreeMap<u64, u64> = BTreeMap::new();
    for value in waits.iter_recorded() {
        let ns = value.value_iterated_to();
        let keep = ns.max(1).ilog2().saturating_sub(2);
        *classes.entry(ns >> keep << keep).or_default() += value.count_at_value();
    }
    classes.into_iter().collect()
}

/// Something did not hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// With which policy.
    pub policy: String,
    /// What.
    pub what: String,
    /// When, in nanoseconds of virtual time.
    pub at_ns: u64,
    /// Acquisitions until then.
    pub acquisitions: u64,
    /// The lock, who waits for it, and the last steps.
    pub details: Vec<String>,
    /// The command that shows it again.
    pub command: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, what, at_ns, acquisitions, details, command } = self;
        writeln!(f, "{policy}: {what}")?;
        writeln!(f, "  at {at_ns} ns of virtual time, after {acquisitions} acquisitions")?;
        for line in details {
            writeln!(f, "  {line}")?;
        }
        write!(f, "replay: {command}")
    }
}

impl std::error::Error for Failure {}

/// All reports side by side.
pub fn table(reports: &[Report]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let names = reports.iter().map(|report| report.policy.clone());
    table.set_header(std::iter::once(String::new()).chain(names));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut row = |name: &str, show: &dyn Fn(&Report) -> String| {
        table.add_row(std::iter::once(name.to_owned()).chain(reports.iter().map(show)));
    };
    row("virtual time", &|r| time(r.virtual_ns));
    row("acquisitions", &|r| group(r.acquisitions));
    row("  fewest and most of a vCPU", &|r| {
        format!("{} .. {}", group(r.acquisitions_fewest), group(r.acquisitions_most))
    });
    row("acquisitions per second", &|r| group(r.per_second as u64));
    row("wait for the lock, p50", &|r| time(r.wait_ns.p50));
    row("  p90", &|r| time(r.wait_ns.p90));
    row("  p99", &|r| time(r.wait_ns.p99));
    row("  longest", &|r| time(r.wait_ns.max));
    row("acquisitions that blocked", &|r| group(r.blocked.acquisitions));
    row("  waking kicks each", &|r| each(&r.blocked));
    row("  of these slept twice or more", &|r| group(r.blocked_twice.acquisitions));
    row("    waking kicks each", &|r| each(&r.blocked_twice));
    row("vCPUs preempted", &|r| group(r.preempted + r.pcpu_taken));
    for counter in Counter::ALL {
        let name = counter.name();
        if reports.iter().any(|report| report.counter(name) > 0) {
            row(name, &|r| group(r.counter(name)));
        }
    }
    table.to_string()
}

fn each(blocked: &Blocked) -> String {
    blocked.waking_kicks_each.map_or("-".into(), |each| format!("{each:.3}"))
}

/// 1234567 as 1,234,567.
fn group(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three digits and a unit.
fn time(nanoseconds: u64) -> String {
    let units = [("s", 1e9), ("ms", 1e6), ("us", 1e3)];
    let Some((unit, size)) = units.into_iter().find(|(_, size)| nanoseconds as f64 >= *size) else {
        return format!("{nanoseconds} ns");
    };
    let value = nanoseconds as f64 / size;
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(group), ["0", "999", "1,000", "1,234,567"]);
        let times = [0, 999, 1_000, 12_340, 123_456_789, 9_990_000_000].map(time);
        assert_eq!(times, ["0 ns", "999 ns", "1.00 us", "12.3 us", "123 ms", "9.99 s"]);
    }
}
