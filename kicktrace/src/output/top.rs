//! One second of a trace as a screen of text.

use std::fmt::Write as _;
use std::time::Duration;

use super::columns::{aligned, left, right, wrap};
use super::host::percent;
use super::table::mark;
use crate::analysis::{Cause, HostDomain, HostSummary};
use crate::summary::{Clock, Distribution, Domain, Summary};

/// What is known of a second.
#[derive(Clone, Debug)]
pub struct Second {
    /// Kicks and waits.
    pub summary: Summary,
    /// Who ran, and how long who was kept waiting for a pCPU.
    pub host: HostSummary,
}

/// The screen: no line is longer than `columns`, and there are no more than `rows`. `age` is how
/// long ago the second ended.
#[must_use]
pub fn screen(
    second: Option<&Second>,
    age: Option<Duration>,
    columns: usize,
    rows: usize,
) -> Vec<String> {
    let Some(Second { summary, host }) = second else {
        return cut(vec!["kicktrace top: waiting for records    q quits".into()], columns, rows);
    };
    let mut lines = Vec::new();
    let clock = &summary.clock;
    let at = summary.window.map_or(0, |of| of.to);
    let mut head = match clock.ns(at) {
        Some(ns) => format!("kicktrace top  {:.1} s", ns / 1e9),
        None => format!("kicktrace top  {at} ticks"),
    };
    let seconds = clock.ns(summary.ticks).map(|ns| ns / 1e9).filter(|seconds| *seconds > 0.0);
    let per = |count: u64| seconds.map_or(count as f64, |seconds| count as f64 / seconds);
    let _ = write!(head, "  {:.0} records/s", per(summary.reading.records));
    let lost = summary.reading.lost_records();
    if lost > 0 {
        let _ = write!(head, "  {lost} LOST");
    }
    if let Some(age) = age.filter(|age| age.as_secs() >= 2) {
        let _ = write!(head, "  no news for {} s", age.as_secs());
    }
    head += "  q quits";
    lines.push(head);
    if columns >= 60 {
        lines.push("~ inferred, <= at most, >= at least; a figure alone is exact".into());
    }
    lines.push(String::new());
    lines.push(format!("{:<5}{:>7}  {:<20}  who was on it", "pCPU", "busy", ""));
    let pcpus = host.pcpus.len();
    // Domains need room too.
    let fit = rows.saturating_sub(6 + 2 * host.domains.len()).max(4).min(pcpus);
    for of in host.pcpus.iter().take(fit) {
        let busy = percent(of.busy, host.ticks);
        let full = (busy / 5.0).round() as usize;
        let bar = format!("{}{}", "#".repeat(full.min(20)), ".".repeat(20 - full.min(20)));
        let mut line =
            format!("p{:<4}{:>7}  {bar} ", of.cpu, format!("{}{busy:.0} %", mark(of.certainty)));
        line += &super::host::who(of, host.ticks, columns.saturating_sub(line.chars().count()));
        lines.push(line);
    }
    if fit < pcpus {
        lines.push(format!("      and {} more", pcpus - fit));
    }
    lines.push(String::new());
    let unit = if clock.hz.is_some() { "us" } else { "ticks" };
    let [p50, p99, wake] = ["wait p50", "p99", "wake>run"].map(|name| format!("{name} {unit}"));
    let head = ["dom", "kicks/s", "waits/s", &p50, &p99, &wake, "run", "stolen", "hazard"];
    let mut cells = vec![head.map(String::from).to_vec()];
    for domain in &summary.domains {
        let of = host.domains.iter().find(|of| of.id == domain.id);
        cells.push(row(domain, of, host, clock, &per));
    }
    // Whole columns, as many as there is room for.
    let shape = [[left(0, 5)].as_slice(), &[right(1, 7); 8]].concat();
    let mut table = aligned(&cells, &shape);
    while cells[0].len() > 2 && table.iter().any(|line| line.chars().count() > columns) {
        cells.iter_mut().for_each(|row| drop(row.pop()));
        table = aligned(&cells, &shape);
    }
    lines.append(&mut table);
    if cells[0].len() < head.len() {
        let (name, last) = (head[cells[0].len()], head[head.len() - 1]);
        let without = if name == last { name.into() } else { format!("{name} to {last}") };
        lines.push(format!("(no room: {without})"));
    }
    for warning in &summary.warnings {
        let warning = wrap(&format!("warning: {warning}"), columns, 2);
        lines.extend(warning.lines().map(String::from));
    }
    cut(lines, columns, rows)
}

/// A domain's row of the table.
fn row(
    domain: &Domain,
    host: Option<&HostDomain>,
    of: &HostSummary,
    clock: &Clock,
    per: &dyn Fn(u64) -> f64,
) -> Vec<String> {
    let mut row = vec![format!("d{}", domain.id)];
    for count in [domain.counts.waking_kicks, domain.counts.waits] {
        row.push(format!("{}{:.0}", mark(count.certainty), per(count.value)));
    }
    let wait = &domain.latencies.wait;
    let wake = host.and_then(|host| host.runnable.iter().find(|of| of.cause == Cause::Woken));
    let latencies = [
        Some((wait, wait.p50)),
        Some((wait, wait.p99)),
        wake.map(|of| (&of.to_run, of.to_run.p99)),
    ];
    for latency in latencies {
        row.push(latency.map_or("-".into(), |(of, ticks)| time(of, ticks, clock)));
    }
    let all = of.ticks.saturating_mul(domain.vcpus.len() as u64);
    let hazard = host.map_or(0, |host| host.concurrency.hazard);
    for (ticks, all) in
        [(domain.times.running, all), (domain.times.stolen, all), (hazard, of.ticks)]
    {
        row.push(format!("{:.1} %", percent(ticks, all)));
    }
    row
}

fn time(of: &Distribution, ticks: u64, clock: &Clock) -> String {
    let m = mark(of.certainty);
    match clock.ns(ticks) {
        _ if of.count == 0 => "-".into(),
        Some(ns) if ns >= 1e7 => format!("{m}{:.0}", ns / 1e3),
        Some(ns) => format!("{m}{:.1}", ns / 1e3),
        None => format!("{m}{ticks}"),
    }
}

fn cut(lines: Vec<String>, columns: usize, rows: usize) -> Vec<String> {
    lines.into_iter().take(rows).map(|line| line.chars().take(columns).collect()).collect()
}
