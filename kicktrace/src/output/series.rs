//! A trace in phases: one line for each phase of each domain, as table, JSON and CSV.
//!
//! Owns which figures of a [`Summary`] a series keeps. A phase's figures follow the rules of the
//! whole trace's; see [`Phases`](crate::analysis::Phases).

use std::io::{self, Write};

use serde::Serialize;

use super::columns::{Column, fitting, right};
use super::csv::{self, Figures};
use super::table::mark;
use crate::analysis::WHOLE_ONLY;
use crate::summary::{Clock, Distribution, Domain, Finding, SCHEMA, Summary, Verdict, Window};

/// Phases in order of time.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    schema: u32,
    clock: Option<Clock>,
    phases: Vec<Phase>,
}

/// One of them.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// Where in the trace, in ticks after its first record.
    pub window: Window,
    /// Percent of the vCPUs' time that no lost record makes doubtful.
    pub coverage_percent: f64,
    /// Records lost in gaps that begin in this phase.
    pub lost_records: u64,
    /// The domains, without their vCPUs, locks and histograms: a window's summary has these.
    pub domains: Vec<Domain>,
    /// What makes the figures of this phase doubtful.
    pub doubts: Vec<Finding>,
}

impl Default for Series {
    fn default() -> Self {
        Self { schema: SCHEMA, clock: None, phases: Vec::new() }
    }
}

impl Series {
    /// Adds a phase that is over; returns its summary without the domains.
    pub fn push(&mut self, mut summary: Summary) -> Summary {
        self.clock = Some(summary.clock.clone());
        let mut domains = std::mem::take(&mut summary.domains);
        for domain in &mut domains {
            (domain.vcpus, domain.locks) = (Vec::new(), Vec::new());
            let of = &mut domain.latencies;
            for latency in
                [&mut of.kick_to_wake, &mut of.wake_to_run, &mut of.kick_to_run, &mut of.wait]
            {
                latency.histogram = Vec::new();
            }
        }
        let doubts = summary.found(Verdict::Doubtful);
        let doubts = doubts.filter(|of| !WHOLE_ONLY.contains(&of.topic) && !of.unproved);
        self.phases.push(Phase {
            window: summary.window.unwrap_or(Window { from: 0, to: summary.ticks }),
            coverage_percent: summary.coverage_percent,
            lost_records: summary.reading.lost_records(),
            domains,
            doubts: doubts.cloned().collect(),
        });
        summary
    }

    /// Adds to the last phase what only the whole trace shows.
    pub fn doubt<'a>(&mut self, findings: impl Iterator<Item = &'a Finding>) {
        let Some(last) = self.phases.last_mut() else { return };
        for finding in findings {
            if last.doubts.iter().all(|of| of.topic != finding.topic) {
                last.doubts.push(finding.clone());
            }
        }
    }

    /// What makes figures doubtful: of each topic the first finding, and in how many phases there
    /// is one.
    #[must_use]
    pub fn doubts(&self) -> Vec<(&Finding, usize)> {
        let mut found: Vec<(&Finding, usize)> = Vec::new();
        for doubt in self.phases.iter().flat_map(|phase| &phase.doubts) {
            match found.iter_mut().find(|(of, _)| of.topic == doubt.topic) {
                Some((_, phases)) => *phases += 1,
                None => found.push((doubt, 1)),
            }
        }
        found
    }

    /// Shows times by this clock from now on.
    pub fn set_clock(&mut self, clock: Clock) {
        self.clock = Some(clock);
    }

    /// The clock: if none was set, as measured up to the end of the last phase.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock.clone().unwrap_or(Clock::known(None))
    }

    /// The phases.
    #[must_use]
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// Every domain seen in any phase, in order: its number, and which of the domains of this
    /// number.
    #[must_use]
    pub fn domains(&self) -> Vec<(u16, u32)> {
        let all = self.phases.iter().flat_map(|phase| &phase.domains);
        let all = all.map(|domain| (domain.id, domain.life));
        let mut all: Vec<_> = all.collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// A table for each domain, one line a phase, in at most `columns` columns if that is a limit.
    ///
    /// # Errors
    /// Whatever `out` returns.
    pub fn table(&self, out: &mut dyn Write, columns: Option<usize>) -> io::Result<()> {
        let clock = self.clock();
        writeln!(out, "marks: none exact, ~ inferred, <= at most, >= at least")?;
        for (id, life) in self.domains() {
            writeln!(out, "\nd{id}{}", super::table::of_its_number(life))?;
            let of = |phase: &Phase| {
                let mut domains = phase.domains.iter();
                domains.position(|of| (of.id, of.life) == (id, life))
            };
            let phases = self.phases.iter().filter_map(|phase| Some((phase, of(phase)?)));
            let rows: Vec<_> =
                phases.map(|(phase, at)| row(phase, &phase.domains[at], &clock)).collect();
            let rows = with_head(&rows, &clock);
            let (lines, gone) = fitting(&rows, &COLUMNS, columns, &SPARE);
            lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
            if !gone.is_empty() {
                let gone: Vec<_> = gone.iter().map(|&at| rows[0][at].as_str()).collect();
                writeln!(out, "(no room for {}: --json, --csv)", gone.join(", "))?;
            }
        }
        Ok(())
    }

    /// One line for each phase and domain, after a line with the columns' names: as the CSV of a
    /// summary, with `from` and `to` in the column `unit` names.
    ///
    /// # Errors
    /// Whatever `out` returns.
    pub fn csv(&self, out: &mut dyn Write) -> io::Result<()> {
        let (mut header, clock) = (true, self.clock());
        for (number, phase) in self.phases.iter().enumerate() {
            for of in &phase.domains {
                let mut cells = vec![
                    ("phase".to_owned(), number.to_string()),
                    ("from".into(), csv::time(phase.window.from, &clock)),
                    ("to".into(), csv::time(phase.window.to, &clock)),
                    ("lost_records".into(), phase.lost_records.to_string()),
                    ("domain".into(), of.id.to_string()),
                    ("life".into(), of.life.to_string()),
                    ("coverage_percent".into(), format!("{:.3}", of.coverage_percent)),
                    ("unit".into(), if clock.hz.is_some() { "ns" } else { "ticks" }.into()),
                ];
                let figures = Figures {
                    counts: &of.counts,
                    times: &of.times,
                    times_certainty: &of.times_certainty,
                    latencies: &of.latencies,
                    marked: of.marked.as_ref(),
                    inferred: &of.inferred,
                };
                figures.cells(&mut cells, &clock);
                csv::row(out, &cells, std::mem::take(&mut header))?;
            }
        }
        Ok(())
    }
}

/// The table's columns.
const COLUMNS: [Column; 9] = [
    right(0, 12),
    right(1, 6),
    right(1, 6),
    right(1, 8),
    right(1, 11),
    right(1, 8),
    right(1, 7),
    right(1, 7),
    right(1, 5),
];

/// Those that a narrow terminal has no room for, in the order in which they are missed least: the
/// median, the waits, who ran.
const SPARE: [usize; 3] = [4, 2, 6];

/// The rows behind the columns' names.
fn with_head(rows: &[Vec<String>], clock: &Clock) -> Vec<Vec<String>> {
    let (at, median, p99) = match clock.hz {
        Some(_) => ("from (s)", "wait p50 us", "p99 us"),
        None => ("from (ticks)", "wait p50", "p99"),
    };
    let head = [at, "kicks", "waits", "per acq.", median, p99, "running", "stolen", "lost"];
    let head = head.map(String::from).to_vec();
    std::iter::once(head).chain(rows.iter().cloned()).collect()
}

/// A phase of a domain.
fn row(phase: &Phase, of: &Domain, clock: &Clock) -> Vec<String> {
    let from = match clock.ns(phase.window.from) {
        Some(ns) => format!("{:.6}", ns / 1e9),
        None => phase.window.from.to_string(),
    };
    let acquired = of.marked.as_ref().unwrap_or(&of.inferred);
    let each = acquired
        .waking_kicks_per_blocked
        .map_or("-".into(), |each| format!("{}{each:.3}", mark(acquired.certainty)));
    let latency = |ticks| latency(&of.latencies.wait, ticks, clock);
    let percent = |ticks, certainty| format!("{}{:.1} %", mark(certainty), share(of, ticks));
    vec![
        from,
        of.counts.waking_kicks.to_string(),
        of.counts.waits.to_string(),
        each,
        latency(of.latencies.wait.p50),
        latency(of.latencies.wait.p99),
        percent(of.times.running, of.times_certainty.running),
        percent(of.times.stolen, of.times_certainty.stolen),
        phase.lost_records.to_string(),
    ]
}

/// Percent of a domain's time, all its vCPUs together.
pub(crate) fn share(of: &Domain, ticks: u64) -> f64 {
    let times = &of.times;
    let all = [times.running, times.stolen, times.blocked, times.offline, times.unknown];
    let all = all.into_iter().fold(0, u64::saturating_add);
    ticks as f64 * 100.0 / all.max(1) as f64
}

fn latency(of: &Distribution, ticks: u64, clock: &Clock) -> String {
    if of.count == 0 {
        return "-".into();
    }
    let mark = mark(of.certainty);
    match clock.ns(ticks) {
        Some(ns) => format!("{mark}{:.1}", ns / 1e3),
        None => format!("{mark}{ticks}"),
    }
}
