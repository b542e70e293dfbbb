//! The figures a person is shown, one policy a column.
//!
//! Owns which figures there are, in which unit, and how far each can be trusted. It computes nothing but
//! sums and ratios of what is in [`Results`]; how they are laid out is the business of the table and of
//! the page.

use std::collections::BTreeSet;

use experiment::record::Histogram;
use experiment::{DomainType, EventAbi, Lock};
use kicktrace::summary::{Acquisitions, Certainty, Count, Counts, Domain};

use super::{Mode, PolicyResult, Results};
use crate::host::{DomainResult, End};

pub(super) type Figure = fn(&Column) -> Option<String>;

/// Name, who counted it, how to get it. No figure is `None`, which is not a zero.
pub(super) const ROWS: &[(&str, &str, Figure)] = &[
    ("domains that finished", "host", |c| {
        Some(format!("{} of {}", c.finished(), c.result.planned))
    }),
    ("acquisitions", "guest", |c| c.reported().map(|()| c.at_least(grouped(c.acquisitions)))),
    ("counter under the lock", "guest", |c| {
        Some(match (c.result.counter_exact()?, c.result.is_whole()) {
            (false, _) => "WRONG".to_owned(),
            (true, true) => "exact".to_owned(),
            (true, false) => format!("exact in {} of {}", c.whole, c.result.planned),
        })
    }),
    ("acquisitions per second", "guest", |c| c.throughput().map(|rate| grouped(rate as u64))),
    ("wait for the lock, p50", "guest", |c| c.quantile(0.5)),
    ("  p99", "guest", |c| c.quantile(0.99)),
    ("  p99.9", "guest", |c| c.quantile(0.999)),
    ("  longest", "guest", |c| c.longest()),
    ("time stolen from the vCPUs", "guest", |c| {
        c.ended().map(|()| c.at_least(duration(c.stolen_ns)))
    }),
    // Linux does not count them.
    ("acquisitions that blocked", "guest", |c| {
        c.ended().filter(|()| !c.is_linux()).map(|()| c.at_least(grouped(c.blocked)))
    }),
    ("kicks sent at unlock", "guest", |c| c.counter("pv_kick_unlock")),
    ("kicks sent to make a head", "guest", |c| c.counter("pv_kick_wake")),
    ("event channel operations", "trace", |c| c.count(|counts| counts.evtchn_ops)),
    ("polls that blocked", "trace", |c| c.count(|counts| counts.polls_blocked)),
    ("waking kicks", "trace", |c| c.count(|counts| counts.waking_kicks)),
    ("acquisitions that blocked", "trace", |c| {
        c.acquired().map(|a| certain(grouped(a.blocked), a.certainty))
    }),
    ("  of these slept twice or more", "trace", |c| {
        c.acquired().map(|a| certain(grouped(a.slept_twice), a.certainty))
    }),
    ("waking kicks per blocked acquisition", "trace", |c| {
        let acquired = c.acquired()?;
        acquired.per_blocked().map(|ratio| certain(format!("{ratio:.3}"), acquired.certainty))
    }),
    ("  per one that slept twice or more", "trace", |c| {
        let acquired = c.acquired()?;
        acquired.per_slept_twice().map(|ratio| certain(format!("{ratio:.3}"), acquired.certainty))
    }),
    ("lost records", "trace", |c| {
        c.result.trace.as_ref().map(|trace| grouped(trace.reading.lost_records()))
    }),
    ("coverage of the domains' time", "trace", |c| {
        c.domains
            .iter()
            .map(|d| d.coverage_percent)
            .reduce(f64::min)
            .map(|percent| format!("{percent:.2} %"))
    }),
    ("guest and trace count the same kicks", "both", |c| c.agreement()),
    ("watchdog and lost wake-ups", "guest", |c| c.watchdog()),
];

/// One policy's figures, summed over its domains.
pub(super) struct Column<'a> {
    pub(super) result: &'a PolicyResult,
    /// The run's own domains in the trace.
    domains: Vec<&'a Domain>,
    /// Domains whose run came to its end.
    whole: usize,
    /// Also of runs that were broken off, as far as they came.
    acquisitions: u64,
    blocked: u64,
    elapsed_ns: u64,
    /// Over all vCPUs.
    stolen_ns: u64,
    pub(super) latency: Histogram,
}

impl<'a> Column<'a> {
    pub(super) fn new(result: &'a PolicyResult) -> Self {
        let ours =
            |domain: &&Domain| result.domains.iter().any(|run| run.domid == u32::from(domain.id));
        let mut column = Column {
            result,
            domains: result.trace.iter().flat_map(|trace| &trace.domains).filter(ours).collect(),
            whole: result.domains.iter().filter(|domain| domain.whole().is_some()).count(),
            acquisitions: 0,
            blocked: 0,
            elapsed_ns: 0,
            stolen_ns: 0,
            latency: Histogram::default(),
        };
        // A damaged report may hold any number.
        let add = |sum: &mut u64, n: u64| *sum = sum.saturating_add(n);
        for report in result.domains.iter().filter_map(|domain| domain.report.as_ref()) {
            add(&mut column.acquisitions, report.acquisitions);
        }
        for report in result.domains.iter().filter_map(DomainResult::whole) {
            for vcpu in &report.vcpus {
                add(&mut column.blocked, vcpu.blocked_acquisitions);
                add(&mut column.stolen_ns, vcpu.stolen_ns);
            }
            column.elapsed_ns = column.elapsed_ns.max(report.elapsed_ns);
            column.latency.merge(&report.latency);
        }
        column
    }

    fn finished(&self) -> usize {
        self.result.domains.iter().filter(|domain| domain.end == End::Done).count()
    }

    /// `None` if no domain reported: then there is no figure, not a zero.
    fn reported(&self) -> Option<()> {
        self.result.domains.iter().any(|domain| domain.report.is_some()).then_some(())
    }

    fn is_linux(&self) -> bool {
        matches!(self.result.policy.parse(), Ok(Lock::Linux(_)))
    }

    /// `None` if no domain's run came to its end.
    fn ended(&self) -> Option<()> {
        (self.whole > 0).then_some(())
    }

    /// A sum over the domains that are there is a lower bound where one is missing.
    fn at_least(&self, sum: String) -> String {
        if self.result.is_whole() { sum } else { certain(sum, Certainty::LowerBound) }
    }

    /// Of all domains or of none: a part's rate says nothing of the whole.
    fn throughput(&self) -> Option<f64> {
        let whole = self.result.is_whole() && self.elapsed_ns > 0;
        whole.then(|| self.acquisitions as f64 * 1e9 / self.elapsed_ns as f64)
    }

    /// As [`throughput`](Self::throughput).
    fn quantile(&self, q: f64) -> Option<String> {
        let whole = self.result.is_whole() && self.latency.count() > 0;
        whole.then(|| duration(self.latency.quantile(q)))
    }

    fn longest(&self) -> Option<String> {
        (self.latency.count() > 0).then(|| self.at_least(duration(self.latency.max())))
    }

    /// A lock without this counter has no figure, not a zero.
    fn counter(&self, name: &str) -> Option<String> {
        let reports = self.result.domains.iter().filter_map(|domain| domain.report.as_ref());
        let counts = reports.filter_map(|report| report.counters.get(name)).copied();
        counts.reduce(u64::saturating_add).map(|sum| self.at_least(grouped(sum)))
    }

    fn count(&self, of: impl Fn(&Counts) -> Count) -> Option<String> {
        let counts = self.domains.iter().map(|domain| of(&domain.counts));
        let sum = counts
            .map(|count| (count.value, count.certainty))
            .reduce(|a, b| (a.0.saturating_add(b.0), a.1.max(b.1)));
        sum.map(|(value, certainty)| certain(grouped(value), self.seen(certainty)))
    }

    /// Where a domain left no record in the trace, a sum over the others is a lower bound.
    fn seen(&self, certainty: Certainty) -> Certainty {
        let all = self.domains.len() >= self.result.planned;
        if all { certainty } else { certainty.max(Certainty::LowerBound) }
    }

    /// By the guests' markers where they wrote them, else as the order of records suggests; but
    /// what a domain's vCPUs did elsewhere is no acquisition of a lock in which, by their own
    /// count, nobody slept. `None` for Linux, which marks nothing and does not count its sleeps.
    pub(super) fn acquired(&self) -> Option<Acquired> {
        if self.is_linux() {
            return None;
        }
        let slept = |domain: &Domain| {
            let run = self.result.domains.iter().find(|run| run.domid == u32::from(domain.id));
            let report = run.and_then(DomainResult::whole);
            report.is_none_or(|report| report.vcpus.iter().any(|vcpu| vcpu.waits > 0))
        };
        let of = |domain: &&Domain| match &domain.marked {
            Some(marked) => Acquired::of(marked),
            None if slept(domain) => Acquired::of(&domain.inferred),
            None => Acquired::none(),
        };
        let sum = self.domains.iter().map(of).reduce(Acquired::and)?;
        Some(Acquired { certainty: self.seen(sum.certainty), ..sum })
    }

    /// Whether the guests' own counters agree with the hypervisor's trace, which needs the markers
    /// and a trace without gaps.
    fn agreement(&self) -> Option<String> {
        let trace = self.result.trace.as_ref()?;
        if trace.reading.lost_records() > 0 || !trace.classes.markers {
            return None;
        }
        // A run that was broken off counts on while its report is written.
        if !self.result.is_whole() {
            return None;
        }
        let mut apart = 0u64;
        for domain in &self.result.domains {
            let counters = &domain.report.as_ref()?.counters;
            let seen = self.domains.iter().find(|seen| u32::from(seen.id) == domain.domid)?;
            let sent =
                counters.get("pv_kick_unlock")?.saturating_add(*counters.get("pv_kick_wake")?);
            apart = sent.abs_diff(seen.counts.marked_kicks.value).saturating_add(apart);
        }
        Some(if apart == 0 { "yes".to_owned() } else { format!("{} apart", grouped(apart)) })
    }

    /// Each kind from its own evidence: polls that ended by their deadline, domains whose watchdog broke the
    /// run off, domains that were still running at the host's deadline.
    fn watchdog(&self) -> Option<String> {
        let domains = &self.result.domains;
        let reports = domains.iter().filter_map(|domain| domain.report.as_ref());
        let lost = reports
            .filter_map(|report| report.counters.get("pv_poll_timeout"))
            .fold(0, |sum: u64, n| sum.saturating_add(*n));
        let stuck = domains.iter().filter(|domain| domain.broken_off().is_some()).count();
        let hung = domains.iter().filter(|domain| domain.end == End::Hung).count();
        let found: Vec<_> = [(lost, "LOST"), (stuck as u64, "STUCK"), (hung as u64, "HUNG")]
            .into_iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{n} {what}"))
            .collect();
        match (found.is_empty(), self.result.is_whole()) {
            (false, _) => Some(found.join(", ")),
            (true, true) => Some("none".to_owned()),
            // Of those that crashed nothing is known.
            (true, false) => None,
        }
    }
}

/// The part of [`Acquisitions`] that is shown, summed over domains.
pub(super) struct Acquired {
    certainty: Certainty,
    pub(super) blocked: u64,
    waking_kicks: u64,
    slept_twice: u64,
    /// Waking kicks of acquisitions that slept twice or more.
    kicks_of_slept_twice: f64,
    /// How many were kicked awake never, once, twice, three times or more.
    pub(super) by_waking_kicks: [u64; 4],
}

impl Acquired {
    fn of(a: &Acquisitions) -> Self {
        Acquired {
            certainty: a.certainty,
            blocked: a.blocked,
            waking_kicks: a.waking_kicks,
            slept_twice: a.slept_twice,
            kicks_of_slept_twice: a.waking_kicks_per_slept_twice.unwrap_or(0.0)
                * a.slept_twice as f64,
            by_waking_kicks: a.by_waking_kicks,
        }
    }

    fn none() -> Self {
        Acquired {
            certainty: Certainty::Exact,
            blocked: 0,
            waking_kicks: 0,
            slept_twice: 0,
            kicks_of_slept_twice: 0.0,
            by_waking_kicks: [0; 4],
        }
    }

    fn and(self, other: Self) -> Self {
        Acquired {
            certainty: self.certainty.max(other.certainty),
            blocked: self.blocked.saturating_add(other.blocked),
            waking_kicks: self.waking_kicks.saturating_add(other.waking_kicks),
            slept_twice: self.slept_twice.saturating_add(other.slept_twice),
            kicks_of_slept_twice: self.kicks_of_slept_twice + other.kicks_of_slept_twice,
            by_waking_kicks: std::array::from_fn(|n| {
                self.by_waking_kicks[n].saturating_add(other.by_waking_kicks[n])
            }),
        }
    }

    pub(super) fn per_blocked(&self) -> Option<f64> {
        (self.blocked > 0).then(|| self.waking_kicks as f64 / self.blocked as f64)
    }

    pub(super) fn per_slept_twice(&self) -> Option<f64> {
        (self.slept_twice > 0).then(|| self.kicks_of_slept_twice / self.slept_twice as f64)
    }
}

fn certain(figure: String, certainty: Certainty) -> String {
    match certainty {
        Certainty::Exact => figure,
        Certainty::Inferred => format!("~ {figure}"),
        Certainty::UpperBound => format!("<= {figure}"),
        Certainty::LowerBound => format!(">= {figure}"),
    }
}

/// What a reader must know before believing a figure.
pub(super) fn notes(results: &Results, columns: &[Column]) -> Vec<String> {
    let mut notes = vec![
        "trace: from the hypervisor's own trace. A figure alone is exact; ~ inferred from the order of records; \
         <= at most; >= at least."
            .to_owned(),
        match results.mode {
            Mode::Host => "Times are this machine's.".to_owned(),
            Mode::Simulated => "Simulated: times are virtual.".to_owned(),
            Mode::Parallel => {
                "Emulated pCPUs, in parallel: times and rates are the emulator's; read counts and ratios.".to_owned()
            }
            Mode::Repeatable => "Deterministic emulation: time counts instructions; the same run gives the same figures. \
                                 Spinning that yields costs almost no time in it."
                .to_owned(),
        },
    ];
    if results.mode != Mode::Repeatable {
        // There it is a problem.
        notes.extend(results.speed_doubt().map(|doubt| format!("Times of work: {doubt}.")));
    }
    notes.extend(kinds(results));
    for column in columns {
        let policy = &column.result.policy;
        let Some(trace) = &column.result.trace else { continue };
        let lost = trace.reading.lost_records();
        if lost > 0 {
            notes.push(format!("{policy}: {lost} records were lost: figures from the trace leave out what lies beside the gaps."));
        }
        notes.extend(trace.warnings.iter().map(|warning| format!("{policy}: trace: {warning}")));
    }
    notes.extend(results.problems().into_iter().map(|problem| format!("PROBLEM: {problem}")));
    notes
}

/// What was found, in one sentence.
pub(super) fn sentence(results: &Results, columns: &[Column]) -> String {
    let problems = results.problems().len();
    if problems > 0 {
        let s = if problems == 1 { "" } else { "s" };
        return format!(
            "Found: {problems} problem{s}, told above; the figures say what can be said."
        );
    }
    let ratio = |column: &Column| {
        let acquired = column.acquired()?;
        let (per, of) = match acquired.per_slept_twice() {
            Some(per) => (per, "acquisition that slept twice"),
            None => (acquired.per_blocked()?, "blocked acquisition"),
        };
        let per = certain(format!("{per:.3}"), acquired.certainty);
        Some(format!("{} {per} per {of}", column.result.policy))
    };
    let ratios: Vec<_> = columns.iter().filter_map(ratio).collect();
    let sound = "Found: every counter exact and no wake-up lost";
    if ratios.is_empty() {
        format!("{sound}; no acquisition that slept was seen in a trace.")
    } else {
        format!("{sound}; waking kicks: {}.", ratios.join(", "))
    }
}

/// How the domains booted and by which event channels they were kicked; `None` if none reported.
fn kinds(results: &Results) -> Option<String> {
    let domains = results.policies.iter().flat_map(|policy| &policy.domains);
    let kinds: BTreeSet<_> = domains
        .filter_map(|domain| domain.report.as_ref())
        .map(|report| {
            let kind = match report.domain_type {
                DomainType::Pv => "PV",
                DomainType::Pvh => "PVH",
            };
            let events = match report.events {
                EventAbi::TwoLevel => "2-level",
                EventAbi::Fifo => "FIFO",
            };
            format!("{kind} with {events} event channels")
        })
        .collect();
    let kinds: Vec<_> = kinds.into_iter().collect();
    (!kinds.is_empty()).then(|| format!("Domains: {}.", kinds.join("; ")))
}

/// 1234567 as 1,234,567.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Nanoseconds with three digits and the unit that fits.
pub(crate) fn duration(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let places = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.places$} {unit}")
}

#[cfg(test)]
mod tests {
    use experiment::record::DomainReport;

    use super::*;

    #[test]
    fn numbers_are_written_for_reading() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(duration(999), "999 ns");
        assert_eq!(duration(1_500), "1.50 us");
        assert_eq!(duration(12_345_678), "12.3 ms");
        assert_eq!(duration(250_000_000_000), "250 s");
    }

    /// Linux slept 2,388 times in a run whose table said 0.
    #[test]
    fn acquisitions_that_linux_slept_in_are_unknown_and_not_0() {
        let recorded = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("kicktrace/tests/data/kick-twice-pv.xentrace.bin");
        let trace = crate::report::summary_of(&recorded).unwrap();
        let domains = trace.domains.iter().map(|seen| DomainResult {
            name: seen.id.to_string(),
            domid: seen.id.into(),
            end: End::Done,
            message: String::new(),
            report: Some(DomainReport::default()),
        });
        let mut result = PolicyResult {
            policy: "linux-50us".to_owned(),
            planned: trace.domains.len(),
            unreadable: Vec::new(),
            domains: domains.collect(),
            trace: Some(trace),
            trace_problem: None,
        };
        assert!(Column::new(&result).acquired().is_none());
        result.policy = "adaptive".to_owned();
        assert!(Column::new(&result).acquired().is_some_and(|seen| seen.blocked > 0));
    }

    #[test]
    fn a_note_names_the_type_of_the_domains_and_their_event_channels() {
        let domain = |domain_type, events| DomainResult {
            name: "a".to_owned(),
            domid: 1,
            end: End::Done,
            message: String::new(),
            report: Some(DomainReport { domain_type, events, ..DomainReport::default() }),
        };
        let mut results = Results {
            schema: crate::report::SCHEMA,
            scenario: "s".to_owned(),
            mode: Mode::Parallel,
            settings: Vec::new(),
            markers: false,
            versions: serde_json::Value::Null,
            policies: vec![PolicyResult {
                policy: "spin".to_owned(),
                planned: 3,
                unreadable: Vec::new(),
                domains: Vec::new(),
                trace: None,
                trace_problem: None,
            }],
        };
        assert_eq!(kinds(&results), None);
        let pv = domain(DomainType::Pv, EventAbi::Fifo);
        let pvh = domain(DomainType::Pvh, EventAbi::TwoLevel);
        results.policies[0].domains = vec![pv.clone(), pv, pvh];
        let told = "Domains: PV with FIFO event channels; PVH with 2-level event channels.";
        assert_eq!(kinds(&results).as_deref(), Some(told));
        let columns: Vec<Column> = results.policies.iter().map(Column::new).collect();
        assert!(notes(&results, &columns).iter().any(|note| note == told));
    }
}
