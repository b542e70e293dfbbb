//! What the hypervisor did: table and CSV.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::columns::{aligned, left, right, wrap};
use super::table::mark;
use crate::analysis::{Cause, Entry, HostDomain, HostPcpu, HostSummary, Runnable};
use crate::summary::{Certainty, Clock, Count, Distribution};

/// vCPUs of each pCPU, hypercalls, traps and exits of each domain, and events of the trace that the
/// table shows; it says how many there are more, and JSON and CSV have all.
const WHO: usize = 4;
const ENTRIES: usize = 16;
const EVENTS: usize = 16;
const LOCKS: usize = 8;

/// Writes the table, in at most `columns` columns (60 at least), 80 if that is no limit.
///
/// # Errors
/// Whatever `out` returns.
pub fn table(out: &mut dyn Write, host: &HostSummary, columns: Option<usize>) -> io::Result<()> {
    let columns = columns.unwrap_or(80).max(60);
    let clock = &host.clock;
    match clock.ns(host.ticks) {
        Some(ns) => write!(out, "{:.6} s", ns / 1e9)?,
        None => write!(out, "{} ticks of unknown length (see --cpu-hz)", host.ticks)?,
    }
    match host.window.map(|of| (clock.ns(of.from), clock.ns(of.to))) {
        Some((Some(from), Some(to))) => {
            writeln!(out, ", the part from {:.6} s to {:.6} s", from / 1e9, to / 1e9)?;
        }
        _ => writeln!(out)?,
    }
    writeln!(out, "marks: none exact, ~ inferred, <= at most, >= at least")?;
    pcpus(out, host, columns)?;
    for domain in &host.domains {
        self::domain(out, domain, host, columns)?;
    }
    events(out, host)?;
    for warning in &host.warnings {
        writeln!(out, "\n{}", wrap(&format!("warning: {warning}"), columns, 2))?;
    }
    Ok(())
}

fn pcpus(out: &mut dyn Write, host: &HostSummary, columns: usize) -> io::Result<()> {
    let head = ["pCPU", "busy", "idle", "unknown", "runs", "moved in", "who was on it"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for of in &host.pcpus {
        let HostPcpu { cpu, busy, idle, unknown, .. } = of;
        let m = mark(of.certainty);
        let share = |ticks: u64| format!("{m}{:.1} %", percent(ticks, host.ticks));
        rows.push(vec![
            format!("p{cpu}"),
            share(*busy),
            share(*idle),
            share(*unknown),
            of.runs.to_string(),
            of.migrations.to_string(),
        ]);
    }
    let shape =
        [left(0, 6), right(0, 8), right(1, 7), right(1, 8), right(1, 7), right(1, 8), left(2, 0)];
    let mut lines = aligned(&rows, &shape).into_iter();
    writeln!(out, "\n{}", wrap(&lines.next().unwrap_or_default(), columns, 6))?;
    for (line, of) in lines.zip(&host.pcpus) {
        let room = columns.saturating_sub(line.chars().count() + 1);
        writeln!(out, "{line} {}", who(of, host.ticks, room))?;
        if of.lost_records > 0 {
            writeln!(out, "      {} records lost here", of.lost_records)?;
        }
    }
    Ok(())
}

/// The vCPUs that were longest on a pCPU, as many as there is room for, and how many more there
/// are.
pub(super) fn who(of: &HostPcpu, all: u64, room: usize) -> String {
    let names = |most: usize| {
        let mut text = String::new();
        for who in of.vcpus.iter().take(most) {
            let _ = write!(text, " {} {:.0} %", who.vcpu, percent(who.ticks, all));
        }
        match of.vcpus.len().saturating_sub(most) {
            0 => text,
            more => format!("{text} +{more}"),
        }
    };
    (0..=WHO).rev().map(names).find(|text| text.len() <= room).unwrap_or_default()
}

fn domain(
    out: &mut dyn Write,
    domain: &HostDomain,
    host: &HostSummary,
    columns: usize,
) -> io::Result<()> {
    let clock = &host.clock;
    writeln!(out, "\nd{} ({} vCPUs)", domain.id, domain.vcpus.len())?;
    let of = &domain.concurrency;
    let m = mark(of.certainty);
    let all = [of.all_run, of.some_run, of.hazard, of.none_runs, of.none_wants, of.unknown];
    let sum = all.iter().fold(0u64, |sum, ticks| sum.saturating_add(*ticks));
    writeln!(out, "  of its time")?;
    for (what, ticks) in [
        ("all its vCPUs run", of.all_run),
        ("some run, the others sleep", of.some_run),
        ("some run while others want to (hazard)", of.hazard),
        ("some want to run, none does", of.none_runs),
        ("all sleep", of.none_wants),
        ("not known", of.unknown),
    ] {
        if ticks > 0 || what != "not known" {
            let share = format!("{m}{:.2} %", percent(ticks, sum));
            writeln!(out, "    {what:<42}{share:>12}")?;
        }
    }
    let unit = if clock.hz.is_some() { "us" } else { "ticks" };
    let quantiles = |of: &Distribution| quantiles(of, clock, columns);
    let head: &[&str] = if columns < 78 { &["p50", "p99"] } else { &["p50", "p90", "p99", "max"] };
    let unit = format!("  until it runs, {unit}");
    let mut rows = vec![vec![unit, "count".into(), "of time".into()]];
    rows[0].extend(head.iter().map(|&name| name.into()));
    let time = host.ticks.saturating_mul(domain.vcpus.len() as u64);
    for Runnable { cause, count, ticks, ticks_certainty, to_run } in &domain.runnable {
        let name = match cause {
            Cause::Woken => "woken (every wake)",
            other => other.name(),
        };
        if count.value == 0 && *cause != Cause::Woken {
            continue;
        }
        let share = format!("{}{:.2} %", mark(*ticks_certainty), percent(*ticks, time));
        rows.push(vec![format!("    {name}"), count.to_string(), share]);
        rows.last_mut().into_iter().for_each(|row| row.extend(quantiles(to_run)));
    }
    if domain.poll_to_wake.count > 0 {
        let m = mark(domain.poll_to_wake.certainty);
        let count = format!("{m}{}", domain.poll_to_wake.count);
        let mut row = vec!["    poll to wake".into(), count, String::new()];
        row.extend(quantiles(&domain.poll_to_wake));
        rows.push(row);
    }
    let shape = [[left(0, 22)].as_slice(), &[right(1, 8); 2], &[right(1, 9); 4]].concat();
    aligned(&rows, &shape).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    let moved: u64 = domain.vcpus.iter().map(|of| of.migrations.value).sum();
    let runs: u64 = domain.vcpus.iter().map(|of| of.runs.value).sum();
    let certainty = domain.vcpus.first().map_or(Certainty::Exact, |of| of.runs.certainty);
    let moved = Count { value: moved, certainty };
    writeln!(
        out,
        "  {moved} migrations between pCPUs in {} runs",
        Count { value: runs, certainty }
    )?;
    let head = ["  came into Xen by", "count", "a second", "in Xen"];
    let mut rows = vec![head.map(String::from)];
    for of in domain.entries.iter().take(ENTRIES) {
        let in_xen = of.in_xen.map_or_else(String::new, |ticks| {
            format!("{}{:.2} %", mark(of.count.certainty), percent(ticks, time))
        });
        let name = format!("    {}", entry_name(of));
        rows.push([name, of.count.to_string(), rate(of.count, host), in_xen]);
    }
    if rows.len() > 1 {
        // Names are as long as they are: in a narrow terminal the columns move together.
        let least = if columns < 78 { [0; 4] } else { [30, 9, 9, 8] };
        let [name, count, rate, in_xen] = least;
        let shape = [left(0, name), right(1, count), right(1, rate), right(1, in_xen)];
        aligned(&rows, &shape).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    if domain.entries.len() > ENTRIES {
        writeln!(out, "    and {} more (--json, --csv)", domain.entries.len() - ENTRIES)?;
    }
    let mut rows = vec![["  lock", "kicks", "owner off", "in all", "longest"].map(String::from)];
    for of in domain.owners_off.iter().take(LOCKS) {
        rows.push([
            format!("    {:#010x}", of.lock),
            of.kicks.to_string(),
            of.off.to_string(),
            time_text(of.ticks, clock),
            time_text(of.each.max, clock),
        ]);
    }
    if rows.len() > 1 {
        let shape = [left(0, 16), right(1, 8), right(1, 11), right(1, 11), right(1, 10)];
        aligned(&rows, &shape).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    if domain.owners_off.len() > LOCKS {
        let more = domain.owners_off.len() - LOCKS;
        writeln!(out, "    and {more} more locks (--json, --csv)")?;
    }
    Ok(())
}

fn events(out: &mut dyn Write, host: &HostSummary) -> io::Result<()> {
    writeln!(out, "\n{:<30}{:>12}{:>12}", "records", "count", "a second")?;
    for of in host.events.iter().take(EVENTS) {
        let name = event_name(of.event, of.name);
        writeln!(out, "  {name:<28}{:>12}{:>12}", of.records, rate(of.records, host))?;
    }
    if host.events.len() > EVENTS {
        writeln!(out, "  and {} more events (--json, --csv)", host.events.len() - EVENTS)?;
    }
    Ok(())
}

/// A way into Xen as people know it.
pub(super) fn entry_name(of: &Entry) -> String {
    let name = of.name.map_or_else(|| format!("{:#x}", of.number), str::to_owned);
    format!("{} {name}", of.kind.name())
}

pub(super) fn event_name(event: u32, name: Option<&str>) -> String {
    match (crate::event::runstate_change(event), name) {
        (Some((old, new)), _) => format!("{} to {}", old.name(), new.name()),
        (None, Some(name)) => name.to_owned(),
        (None, None) => format!("{event:#010x}"),
    }
}

pub(super) fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole.max(1) as f64
}

/// How often in a second.
pub(super) fn rate(count: Count, host: &HostSummary) -> String {
    match host.clock.ns(host.ticks) {
        Some(ns) if ns > 0.0 => {
            format!("{}{:.0}", mark(count.certainty), count.value as f64 * 1e9 / ns)
        }
        _ => "-".into(),
    }
}

fn time_text(ticks: u64, clock: &Clock) -> String {
    match clock.ns(ticks) {
        None => ticks.to_string(),
        Some(ns) if ns >= 1e9 => format!("{:.2} s", ns / 1e9),
        Some(ns) if ns >= 1e6 => format!("{:.2} ms", ns / 1e6),
        Some(ns) => format!("{:.1} us", ns / 1e3),
    }
}

fn quantiles(of: &Distribution, clock: &Clock, columns: usize) -> Vec<String> {
    let told = [of.p50, of.p90, of.p99, of.max];
    let told = told.into_iter().enumerate().filter(|(at, _)| columns >= 78 || [0, 2].contains(at));
    let m = if of.count == 0 { "" } else { mark(of.certainty) };
    told.map(|(_, ticks)| match clock.ns(ticks) {
        _ if of.count == 0 => "-".into(),
        Some(ns) => format!("{m}{:.1}", ns / 1e3),
        None => format!("{m}{ticks}"),
    })
    .collect()
}

/// Writes one figure a line: `scope` (`pcpu`, `domain`, `vcpu`, `lock`, `host`), `domain`, `vcpu`,
/// `pcpu`, `figure`, `value`, `unit` (`ns`, or `ticks` when the frequency is unknown; `count`) and
/// `certainty`. What does not apply is empty.
///
/// # Errors
/// Whatever `out` returns.
pub fn csv(out: &mut dyn Write, host: &HostSummary) -> io::Result<()> {
    writeln!(out, "scope,domain,vcpu,pcpu,figure,value,unit,certainty")?;
    let clock = &host.clock;
    let unit = if clock.hz.is_some() { "ns" } else { "ticks" };
    let mut lines = Lines { out, clock, unit };
    for of in &host.pcpus {
        let place = format!("pcpu,,,{}", of.cpu);
        for (figure, ticks) in [("busy", of.busy), ("idle", of.idle), ("unknown", of.unknown)] {
            lines.time(&place, figure, ticks, of.certainty)?;
        }
        lines.count(&place, "runs", of.runs)?;
        lines.count(&place, "migrations", of.migrations)?;
        lines.count(&place, "lost_records", Count::exact(of.lost_records))?;
        for who in &of.vcpus {
            let place = format!("pcpu,{},{},{}", who.vcpu.domain, who.vcpu.vcpu, of.cpu);
            lines.time(&place, "ran", who.ticks, of.certainty)?;
        }
    }
    for domain in &host.domains {
        let place = format!("domain,{},,", domain.id);
        let of = &domain.concurrency;
        for (figure, ticks) in [
            ("all_run", of.all_run),
            ("some_run", of.some_run),
            ("hazard", of.hazard),
            ("none_runs", of.none_runs),
            ("none_wants", of.none_wants),
            ("unknown", of.unknown),
        ] {
            lines.time(&place, figure, ticks, of.certainty)?;
        }
        for (running, &ticks) in of.by_running.iter().enumerate() {
            lines.time(&place, &format!("running_{running}"), ticks, of.certainty)?;
        }
        lines.runnable(&place, &domain.runnable)?;
        lines.distribution(&place, "poll_to_wake", &domain.poll_to_wake)?;
        lines.entries(&place, &domain.entries)?;
        for of in &domain.owners_off {
            let place = format!("lock,{},,", domain.id);
            let figure = |name: &str| format!("{name} {:#010x}", of.lock);
            lines.count(&place, &figure("kicks"), Count::exact(of.kicks))?;
            lines.count(&place, &figure("owner_off"), of.off)?;
            lines.time(&place, &figure("owner_off_time"), of.ticks, of.off.certainty)?;
        }
        for vcpu in &domain.vcpus {
            let place = format!("vcpu,{},{},", domain.id, vcpu.id);
            lines.count(&place, "runs", vcpu.runs)?;
            lines.count(&place, "migrations", vcpu.migrations)?;
            lines.runnable(&place, &vcpu.runnable)?;
            lines.entries(&place, &vcpu.entries)?;
        }
    }
    for of in &host.events {
        let name = event_name(of.event, of.name).replace(' ', "_");
        lines.count("host,,,", &format!("records {name} {:#010x}", of.event), of.records)?;
    }
    Ok(())
}

/// No cell needs quotes: all are numbers or fixed names.
struct Lines<'a> {
    out: &'a mut dyn Write,
    clock: &'a Clock,
    unit: &'a str,
}

impl Lines<'_> {
    fn count(&mut self, place: &str, figure: &str, count: Count) -> io::Result<()> {
        writeln!(self.out, "{place},{figure},{},count,{}", count.value, count.certainty.name())
    }

    fn time(
        &mut self,
        place: &str,
        figure: &str,
        ticks: u64,
        certainty: Certainty,
    ) -> io::Result<()> {
        let value = super::csv::time(ticks, self.clock);
        writeln!(self.out, "{place},{figure},{value},{},{}", self.unit, certainty.name())
    }

    fn distribution(&mut self, place: &str, figure: &str, of: &Distribution) -> io::Result<()> {
        let count = Count { value: of.count, certainty: of.certainty };
        self.count(place, &format!("{figure}_count"), count)?;
        for (name, ticks) in
            [("p50", of.p50), ("p90", of.p90), ("p99", of.p99), ("p999", of.p999), ("max", of.max)]
        {
            self.time(place, &format!("{figure}_{name}"), ticks, of.certainty)?;
        }
        Ok(())
    }

    fn runnable(&mut self, place: &str, of: &[Runnable]) -> io::Result<()> {
        for of in of {
            let name = of.cause.name();
            self.count(place, name, of.count)?;
            self.time(place, &format!("{name}_time"), of.ticks, of.ticks_certainty)?;
            self.distribution(place, &format!("{name}_to_run"), &of.to_run)?;
        }
        Ok(())
    }

    fn entries(&mut self, place: &str, of: &[crate::analysis::Entry]) -> io::Result<()> {
        for of in of {
            let kind = of.kind.name().replace(' ', "_");
            let name = of.name.unwrap_or("?");
            let figure = format!("{kind} {name} {:#x}", of.number);
            self.count(place, &figure, of.count)?;
            if let Some(ticks) = of.in_xen {
                self.time(place, &format!("{figure} in_xen"), ticks, of.count.certainty)?;
            }
        }
        Ok(())
    }
}
