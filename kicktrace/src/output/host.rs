//! What the hypervisor did: table and CSV.

use std::io::{self, Write};

use super::table::{mark, wrap};
use crate::analysis::{Cause, Entry, HostDomain, HostPcpu, HostSummary, Runnable};
use crate::summary::{Certainty, Clock, Count, Distribution};

/// vCPUs told of each pCPU, hypercalls, traps and exits of each domain, and events of the trace, in the
/// table; JSON and CSV have all.
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
    let head = format!(
        "{:<6}{:>8}{:>8}{:>9}{:>8}{:>9}  who was on it",
        "pCPU", "busy", "idle", "unknown", "runs", "moved in"
    );
    writeln!(out, "\n{}", head.chars().take(columns).collect::<String>())?;
    for of in &host.pcpus {
        let HostPcpu { cpu, busy, idle, unknown, .. } = of;
        let m = mark(of.certainty);
        let share = |ticks: u64| format!("{m}{:.1} %", percent(ticks, host.ticks));
        let mut line = format!(
            "p{cpu:<5}{:>8}{:>8}{:>9}{:>8}{:>9} ",
            share(*busy),
            share(*idle),
            share(*unknown),
            of.runs,
            of.migrations
        );
        for (number, who) in of.vcpus.iter().enumerate() {
            let more = format!(" {} {:.0} %", who.vcpu, percent(who.ticks, host.ticks));
            if number == WHO || line.chars().count() + more.len() > columns {
                break;
            }
            line += &more;
        }
        writeln!(out, "{line}")?;
        if of.lost_records > 0 {
            writeln!(out, "      {} records lost here", of.lost_records)?;
        }
    }
    Ok(())
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
    write!(out, "{unit:<22}{:>9}{:>9}", "count", "of time")?;
    writeln!(out, "{}", head.iter().map(|name| format!("{name:>10}")).collect::<String>())?;
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
        writeln!(out, "    {name:<18}{count:>9}{share:>9}{}", quantiles(to_run))?;
    }
    if domain.poll_to_wake.count > 0 {
        let m = mark(domain.poll_to_wake.certainty);
        let count = format!("{m}{}", domain.poll_to_wake.count);
        let name = "poll to wake";
        writeln!(out, "    {name:<18}{count:>9}{:>9}{}", "", quantiles(&domain.poll_to_wake))?;
    }
    let moved: u64 = domain.vcpus.iter().map(|of| of.migrations.value).sum();
    let runs: u64 = domain.vcpus.iter().map(|of| of.runs.value).sum();
    let certainty = domain.vcpus.first().map_or(Certainty::Exact, |of| of.runs.certainty);
    let moved = Count { value: moved, certainty };
    writeln!(
        out,
        "  {moved} migrations between pCPUs in {} runs",
        Count { value: runs, certainty }
    )?;
    if !domain.entries.is_empty() {
        writeln!(
            out,
            "  {:<28}{:>10}{:>10}{:>9}",
            "came into Xen by", "count", "a second", "in Xen"
        )?;
    }
    for of in domain.entries.iter().take(ENTRIES) {
        let name: String = entry_name(of).chars().take(26).collect();
        let in_xen = of.in_xen.map_or_else(String::new, |ticks| {
            format!("{}{:.2} %", mark(of.count.certainty), percent(ticks, time))
        });
        writeln!(out, "    {name:<26}{:>10}{:>10}{in_xen:>9}", of.count, rate(of.count, host))?;
    }
    if domain.entries.len() > ENTRIES {
        writeln!(out, "    and {} more (--json, --csv)", domain.entries.len() - ENTRIES)?;
    }
    if !domain.owners_off.is_empty() {
        writeln!(
            out,
            "  {:<14}{:>9}{:>12}{:>12}{:>11}",
            "lock", "kicks", "owner off", "in all", "longest"
        )?;
    }
    for of in domain.owners_off.iter().take(LOCKS) {
        writeln!(
            out,
            "    {:<12}{:>9}{:>12}{:>12}{:>11}",
            format!("{:#010x}", of.lock),
            of.kicks,
            of.off,
            time_text(of.ticks, clock),
            time_text(of.each.max, clock)
        )?;
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

fn quantiles(of: &Distribution, clock: &Clock, columns: usize) -> String {
    let told = [of.p50, of.p90, of.p99, of.max];
    let told = told.into_iter().enumerate().filter(|(at, _)| columns >= 78 || [0, 2].contains(at));
    let m = if of.count == 0 { "" } else { mark(of.certainty) };
    told.map(|(_, ticks)| {
        let text = match clock.ns(ticks) {
            _ if of.count == 0 => "-".into(),
            Some(ns) => format!("{m}{:.1}", ns / 1e3),
            None => format!("{m}{ticks}"),
        };
        format!("{text:>10}")
    })
    .collect()
}

/// Writes one figure a line: `scope` (`pcpu`, `domain`, `vcpu`, `lock`, `host`), `domain`, `vcpu`, `pcpu`,
/// `figure`, `value`, `unit` (`ns`, or `ticks` when the frequency is unknown; `count`) and `certainty`. What
/// does not apply is empty.
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
