//! The terminal table.

use std::fmt::{self, Display, Formatter};

use super::columns::{aligned, left, right, wrap};
use crate::summary::{
    Acquisitions, Certainty, Clock, ClockSource, Count, Distribution, Domain, DomainKind, Summary,
    Verdict,
};

impl Display for Count {
    /// The value with its mark: `~` inferred, `<=` at most, `>=` at least, nothing when exact.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}{}", mark(self.certainty), self.value))
    }
}

pub(super) fn mark(certainty: Certainty) -> &'static str {
    match certainty {
        Certainty::Exact => "",
        Certainty::Inferred => "~",
        Certainty::UpperBound => "<=",
        Certainty::LowerBound => ">=",
    }
}

/// Which of the domains of its number one is, if it is not the first.
pub(crate) fn of_its_number(life: u32) -> String {
    if life == 0 { String::new() } else { format!(", domain {} of this number", life + 1) }
}

/// Columns where nobody says how many there are: room for the domain and eight vCPUs.
const WIDE: usize = 132;

/// Columns a table of latencies needs with all its quantiles.
const ALL_QUANTILES: usize = 96;

/// And with three of them.
const THREE_QUANTILES: usize = 72;

/// The table. A width, as in `{summary:80}`, is that of the terminal: what does not fit is left
/// out.
impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let reading = &self.reading;
        let pcpus = reading.pcpus.len();
        let width = f.width().unwrap_or(usize::MAX);
        let read = format!(
            "{} records of {pcpus} pCPUs in {} bytes; {} lost; coverage {:.2} %",
            reading.records,
            reading.bytes,
            reading.lost_records(),
            self.coverage_percent
        );
        writeln!(f, "{}", wrap(&read, width, 2))?;
        match (self.clock.hz, self.seconds) {
            (Some(hz), Some(seconds)) => {
                let clock = format!(
                    "{seconds:.6} s at {:.6} GHz ({})",
                    hz / 1e9,
                    match (self.clock.source, self.clock.error_text()) {
                        (ClockSource::Calibrated, Some(error)) =>
                            format!("measured on {} runs, +-{error}", self.clock.runs),
                        _ => "given".into(),
                    }
                );
                writeln!(f, "{}", wrap(&clock, width, 2))?;
            }
            _ => writeln!(f, "{} ticks of unknown length (see --cpu-hz)", self.ticks)?,
        }
        if let Some(of) = self.window {
            match (self.clock.ns(of.from), self.clock.ns(of.to)) {
                (Some(from), Some(to)) => {
                    writeln!(f, "the part from {:.6} s to {:.6} s", from / 1e9, to / 1e9)?;
                }
                _ => writeln!(f, "the part from {} to {} ticks", of.from, of.to)?,
            }
        }
        writeln!(f, "marks: none exact, ~ inferred, <= at most, >= at least")?;
        for domain in &self.domains {
            self::domain(f, domain, self)?;
        }
        let told = [Verdict::Missing, Verdict::Doubtful, Verdict::Note];
        for finding in told.into_iter().flat_map(|verdict| self.found(verdict)) {
            let mut text = format!("{}: {}", finding.verdict.name(), finding.what);
            if !finding.remedy.is_empty() {
                text += &format!("; {}", finding.remedy);
            }
            writeln!(f, "\n{}", wrap(&text, width, 2))?;
        }
        Ok(())
    }
}

fn domain(f: &mut Formatter<'_>, domain: &Domain, summary: &Summary) -> fmt::Result {
    let clock = &summary.clock;
    let kind = match domain.kind {
        DomainKind::Unknown => "unknown kind",
        DomainKind::Pv => "PV",
        DomainKind::Hvm => "HVM or PVH",
    };
    let mut head = format!("d{} ({kind}), coverage {:.2} %", domain.id, domain.coverage_percent);
    head += &of_its_number(domain.life);
    if let Some(ended) = domain.ended {
        let after = ended.saturating_sub(summary.reading.first_tsc);
        head += &match clock.ns(after) {
            Some(ns) => format!(", ended at {:.6} s", ns / 1e9),
            None => format!(", ended at tick {after}"),
        };
    }
    writeln!(f, "\n{}", wrap(&head, f.width().unwrap_or(usize::MAX), 2))?;
    let mut header = format!("  {:<22}{:>12}", "", "domain");
    // A wide host would not fit; the JSON and CSV outputs have every vCPU.
    let width = f.width().unwrap_or(WIDE);
    let fit = (width.saturating_sub(header.len()) / 12).clamp(1, 8);
    let (vcpus, others) = domain.vcpus.split_at(domain.vcpus.len().min(fit));
    for vcpu in vcpus {
        header += &format!("{:>12}", format!("v{}", vcpu.id));
    }
    writeln!(f, "{header}")?;
    if !others.is_empty() {
        writeln!(f, "  (and {} vCPUs more: see --json or --csv)", others.len())?;
    }
    let columns: Vec<_> = vcpus.iter().map(|vcpu| vcpu.counts.named()).collect();
    for (row, (name, total)) in domain.counts.named().into_iter().enumerate() {
        if total.value == 0
            && matches!(
                name,
                "inconsistent"
                    | "marked_kicks"
                    | "marked_waits"
                    | "waits_tainted"
                    | "polls_unresolved"
                    | "blocks_unknown"
            )
        {
            continue;
        }
        write!(f, "  {:<22}{total:>12}", name.replace('_', " "))?;
        for column in &columns {
            write!(f, "{:>12}", column[row].1)?;
        }
        writeln!(f)?;
    }
    let percent = |part: u64, of: f64| part as f64 * 100.0 / of.max(1.0);
    let of = &domain.times_certainty;
    let columns: Vec<_> = vcpus.iter().map(|vcpu| vcpu.times.named(of)).collect();
    for (row, (name, total, certainty)) in domain.times.named(of).into_iter().enumerate() {
        if total == 0 && matches!(name, "offline" | "unknown") {
            continue;
        }
        let name = format!("{}{}", mark(certainty), TIMES[row]);
        write!(f, "  {name:<22}{:>10.2} %", percent(total, domain.ticks as f64))?;
        for (column, vcpu) in columns.iter().zip(vcpus) {
            write!(f, "{:>10.2} %", percent(column[row].1, vcpu.ticks as f64))?;
        }
        writeln!(f)?;
    }
    let latencies = &domain.latencies;
    if latencies.wait.count > 0 {
        let unit = if clock.hz.is_some() { "latency in us" } else { "latency in ticks" };
        let mut head = vec![unit.into(), "count".into()];
        head.extend(quantiles(&latencies.wait, width).into_iter().map(|(name, _)| name.into()));
        let mut rows: Vec<Vec<String>> = vec![head];
        for (name, of) in [
            ("kick to wake", &latencies.kick_to_wake),
            ("wake to run", &latencies.wake_to_run),
            ("kick to run", &latencies.kick_to_run),
            ("block to run", &latencies.wait),
        ] {
            rows.push(distribution(name, of, clock, width));
        }
        let columns = [[left(2, 22)].as_slice(), &[right(1, 11); 6]].concat();
        aligned(&rows, &columns).iter().try_for_each(|line| writeln!(f, "{line}"))?;
    }
    f.write_str(&super::locks::table(domain, clock, summary.reading.first_tsc, LOCKS, f.width()))?;
    if let Some(marked) = &domain.marked {
        acquisitions(f, "acquisitions that blocked (guest's marks)", marked)?;
    }
    if domain.inferred.blocked > 0 {
        acquisitions(f, "acquisitions that blocked (inferred)", &domain.inferred)?;
    }
    Ok(())
}

/// Locks shown of each domain; `kicktrace locks` shows all.
const LOCKS: usize = 8;

/// What [`Times::named`](crate::summary::Times::named) is called here, in its order.
const TIMES: [&str; 9] = [
    "running",
    "stolen",
    "  after a wake",
    "blocked",
    "  in polls",
    "offline",
    "spinning in waits",
    "kicker stolen",
    "unknown",
];

/// The quantiles for which there is room.
fn quantiles(of: &Distribution, width: usize) -> Vec<(&'static str, u64)> {
    let all =
        [("p50", of.p50), ("p90", of.p90), ("p99", of.p99), ("p99.9", of.p999), ("max", of.max)];
    let told: &[&str] = match width {
        ALL_QUANTILES.. => &["p50", "p90", "p99", "p99.9", "max"],
        THREE_QUANTILES.. => &["p50", "p99", "max"],
        _ => &["p50", "p99"],
    };
    all.into_iter().filter(|(name, _)| told.contains(name)).collect()
}

fn distribution(name: &str, d: &Distribution, clock: &Clock, width: usize) -> Vec<String> {
    let mut row = vec![format!("{}{name}", mark(d.certainty)), d.count.to_string()];
    row.extend(quantiles(d, width).into_iter().map(|(_, ticks)| match clock.ns(ticks) {
        Some(ns) => format!("{:.3}", ns / 1e3),
        None => ticks.to_string(),
    }));
    row
}

fn acquisitions(f: &mut Formatter<'_>, title: &str, of: &Acquisitions) -> fmt::Result {
    let m = mark(of.certainty);
    let ratio = |r: Option<f64>| r.map_or_else(|| "-".into(), |r| format!("{m}{r:.3}"));
    let width = f.width().unwrap_or(usize::MAX);
    let head = format!(
        "  {title}: {m}{}; {m}{} waits, {m}{} waking kicks",
        of.blocked, of.waits, of.waking_kicks
    );
    writeln!(f, "{}", wrap(&head, width, 4))?;
    let [w1, w2, w3] = of.by_waits;
    let [k0, k1, k2, k3] = of.by_waking_kicks;
    writeln!(f, "    waits         1: {m}{w1}   2: {m}{w2}   3+: {m}{w3}")?;
    writeln!(f, "    waking kicks  0: {m}{k0}   1: {m}{k1}   2: {m}{k2}   3+: {m}{k3}")?;
    let each = format!(
        "    waking kicks each: {}; of the {m}{} that slept twice or more: {}",
        ratio(of.waking_kicks_per_blocked),
        of.slept_twice,
        ratio(of.waking_kicks_per_slept_twice)
    );
    writeln!(f, "{}", wrap(&each, width, 6))?;
    if of.excluded + of.disagreements > 0 {
        let left = format!(
            "    left out (cut by the trace's start or a gap): {}; guest disagrees: {}",
            of.excluded, of.disagreements
        );
        writeln!(f, "{}", wrap(&left, width, 6))?;
    }
    Ok(())
}
