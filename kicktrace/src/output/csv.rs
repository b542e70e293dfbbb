//! Counts and times as comma-separated values.

use std::io::{self, Write};

use crate::summary::{
    Acquisitions, Certainty, Clock, Counts, Latencies, Summary, Times, TimesCertainty,
};

/// Writes one line for each vCPU, after a line with the columns' names. Times and latencies are in
/// nanoseconds, or in TSC ticks when the frequency is unknown; the column `unit` says which. Beside
/// each figure, or group of figures, stands a column `..._certainty`.
///
/// # Errors
/// Whatever `out` returns.
pub fn write(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let (mut header, clock) = (true, &summary.clock);
    for domain in &summary.domains {
        for vcpu in &domain.vcpus {
            let mut cells = vec![
                ("domain".to_owned(), domain.id.to_string()),
                ("life".into(), domain.life.to_string()),
                ("vcpu".into(), vcpu.id.to_string()),
                ("coverage_percent".into(), format!("{:.3}", vcpu.coverage_percent)),
                ("unit".into(), if clock.hz.is_some() { "ns" } else { "ticks" }.into()),
            ];
            let figures = Figures {
                counts: &vcpu.counts,
                times: &vcpu.times,
                times_certainty: &domain.times_certainty,
                latencies: &vcpu.latencies,
                marked: vcpu.marked.as_ref(),
                inferred: &vcpu.inferred,
            };
            figures.cells(&mut cells, clock);
            row(out, &cells, std::mem::take(&mut header))?;
        }
    }
    Ok(())
}

/// What is written of a vCPU or of a domain.
pub(super) struct Figures<'a> {
    pub(super) counts: &'a Counts,
    pub(super) times: &'a Times,
    pub(super) times_certainty: &'a TimesCertainty,
    pub(super) latencies: &'a Latencies,
    pub(super) marked: Option<&'a Acquisitions>,
    pub(super) inferred: &'a Acquisitions,
}

impl Figures<'_> {
    /// Adds a cell for each figure, with its column's name.
    pub(super) fn cells(&self, cells: &mut Vec<(String, String)>, clock: &Clock) {
        let mut group = |name: &str, figures: &[(&str, String)], certainty: Certainty| {
            cells.extend(figures.iter().map(|(name, value)| ((*name).into(), value.clone())));
            cells.push((format!("{name}_certainty"), certainty.name().into()));
        };
        for (name, count) in self.counts.named() {
            group(name, &[(name, count.value.to_string())], count.certainty);
        }
        for (name, ticks, certainty) in self.times.named(self.times_certainty) {
            group(name, &[(name, time(ticks, clock))], certainty);
        }
        let latencies = self.latencies;
        for (name, [p50, p99, max], of) in [
            (
                "kick_to_wake",
                ["kick_to_wake_p50", "kick_to_wake_p99", "kick_to_wake_max"],
                &latencies.kick_to_wake,
            ),
            (
                "wake_to_run",
                ["wake_to_run_p50", "wake_to_run_p99", "wake_to_run_max"],
                &latencies.wake_to_run,
            ),
            (
                "kick_to_run",
                ["kick_to_run_p50", "kick_to_run_p99", "kick_to_run_max"],
                &latencies.kick_to_run,
            ),
            ("wait", ["wait_p50", "wait_p99", "wait_max"], &latencies.wait),
        ] {
            let told = [(p50, of.p50), (p99, of.p99), (max, of.max)];
            group(name, &told.map(|(name, ticks)| (name, time(ticks, clock))), of.certainty);
        }
        for (name, names, of) in [
            ("marked", ["marked_blocked", "marked_waits", "marked_waking_kicks"], self.marked),
            (
                "inferred",
                ["inferred_blocked", "inferred_waits", "inferred_waking_kicks"],
                Some(self.inferred),
            ),
        ] {
            let values = of.map(|of| [of.blocked, of.waits, of.waking_kicks]);
            let told = [0, 1, 2].map(|at| {
                (names[at], values.map_or_else(String::new, |values| values[at].to_string()))
            });
            group(name, &told, of.map_or(Certainty::Exact, |of| of.certainty));
        }
    }
}

/// Writes one line, and before it the columns' names if it is the first.
pub(super) fn row(out: &mut dyn Write, cells: &[(String, String)], header: bool) -> io::Result<()> {
    if header {
        line(out, cells.iter().map(|(name, _)| name.as_str()))?;
    }
    line(out, cells.iter().map(|(_, value)| value.as_str()))
}

/// No cell needs quotes: all are numbers or fixed names.
fn line<'a>(out: &mut dyn Write, cells: impl Iterator<Item = &'a str>) -> io::Result<()> {
    let cells: Vec<_> = cells.collect();
    writeln!(out, "{}", cells.join(","))
}

pub(super) fn time(ticks: u64, clock: &Clock) -> String {
    clock.ns(ticks).map_or_else(|| ticks.to_string(), |ns| format!("{ns:.0}"))
}
