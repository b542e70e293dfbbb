//! The hypervisor in the report: pCPUs, wake to run, concurrency, ways into Xen.
//!
//! Owns what of `kicktrace host` the page shows. Words are those of the table.

use std::fmt::Write as _;

use super::svg;
use crate::analysis::{Cause, HostDomain, HostPcpu, HostSummary, Runnable};
use crate::output::host::{entry_name, event_name, percent};
use crate::summary::{Clock, Count, Distribution};

/// Shown of each pCPU, of each domain, of each domain, and of the trace; JSON and CSV of `kicktrace
/// host` have all, and the page says how many there are more.
const WHO: usize = 4;
const ENTRIES: usize = 16;
const LOCKS: usize = 8;
const EVENTS: usize = 24;

/// Width of a bar, in its own units.
const WIDTH: f64 = 600.0;

/// Writes the part of the page on what the hypervisor did.
pub(super) fn write(page: &mut String, host: &HostSummary) {
    if host.pcpus.is_empty() {
        return;
    }
    page.push_str("<h2>The hypervisor</h2>");
    pcpus(page, host);
    // What people came for first, as above: domains whose vCPUs waited.
    let (waited, quiet): (Vec<_>, Vec<_>) =
        host.domains.iter().partition(|domain| domain.poll_to_wake.count > 0);
    for domain in waited.into_iter().chain(quiet) {
        self::domain(page, domain, host);
    }
    events(page, host);
}

/// A bar of shares: class, name, ticks. Without a class it stays empty.
fn bar(page: &mut String, parts: &[(&str, &str, u64)]) {
    let all: f64 = parts.iter().map(|&(.., ticks)| ticks as f64).sum();
    let _ = write!(
        page,
        "<svg class=\"share\" viewBox=\"0 0 {WIDTH} 16\" preserveAspectRatio=\"none\" role=\"img\">"
    );
    let mut x = 0.0;
    for &(class, name, ticks) in parts {
        let width = ticks as f64 / all.max(1.0) * WIDTH;
        let _ = write!(
            page,
            "<rect class=\"{class}\" x=\"{x:.1}\" width=\"{width:.1}\" height=\"16\"><title>{name} {:.1} \
             %</title></rect>",
            width / WIDTH * 100.0
        );
        x += width;
    }
    page.push_str("</svg>");
}

fn legend(page: &mut String, parts: &[(&str, &str)]) {
    page.push_str("<div class=\"legend\">");
    for (class, name) in parts {
        let _ = write!(page, "<span><i class=\"{class}\"></i>{name}</span>");
    }
    page.push_str("</div>");
}

fn pcpus(page: &mut String, host: &HostSummary) {
    page.push_str("<h3>pCPUs</h3>");
    legend(page, &[("bar", "busy"), ("spare", "idle"), ("lost", "unknown")]);
    page.push_str(
        "<div class=\"wide\"><table class=\"host\"><tr><th>pCPU</th><th class=\"share\"></th><th>busy</th>\
         <th>idle</th><th>unknown</th><th>runs</th><th>moved in</th><th>records lost</th>\
         <th class=\"who\">who was on it</th></tr>",
    );
    for of in &host.pcpus {
        let HostPcpu { cpu, busy, idle, unknown, runs, migrations, lost_records, .. } = of;
        let _ = write!(page, "<tr><th>p{cpu}</th><td class=\"share\">");
        bar(
            page,
            &[("bar", "busy", *busy), ("spare", "idle", *idle), ("lost", "unknown", *unknown)],
        );
        page.push_str("</td>");
        let m = super::mark(of.certainty);
        for ticks in [busy, idle, unknown] {
            let _ = write!(page, "<td>{m}{:.1} %</td>", percent(*ticks, host.ticks));
        }
        let warn = if *lost_records > 0 { " class=\"bad\"" } else { " class=\"zero\"" };
        let _ = write!(
            page,
            "<td>{}{}</td><td>{}{}</td><td{warn}>{lost_records}</td><td class=\"who\">",
            super::mark(runs.certainty),
            runs.value,
            super::mark(migrations.certainty),
            migrations.value
        );
        for who in of.vcpus.iter().take(WHO) {
            let _ = write!(page, "{} {:.0} % ", who.vcpu, percent(who.ticks, host.ticks));
        }
        if of.vcpus.len() > WHO {
            let _ = write!(page, "and {} more", of.vcpus.len() - WHO);
        }
        page.push_str("</td></tr>");
    }
    page.push_str("</table></div>");
}

fn domain(page: &mut String, domain: &HostDomain, host: &HostSummary) {
    let _ = write!(page, "<h3>Domain {}: its vCPUs together, and on their pCPUs</h3>", domain.id);
    let of = &domain.concurrency;
    let m = super::mark(of.certainty);
    let parts = [
        ("running", "all its vCPUs run", of.all_run),
        ("bar", "some run, the others sleep", of.some_run),
        ("hazard", "some run while others want to (hazard)", of.hazard),
        ("runnable", "some want to run, none does", of.none_runs),
        ("blocked", "all sleep", of.none_wants),
        ("lost", "not known", of.unknown),
    ];
    let all = parts.iter().fold(0u64, |sum, &(.., ticks)| sum.saturating_add(ticks));
    bar(page, &parts);
    let named = parts
        .map(|(class, name, ticks)| (class, format!("{name} {m}{:.1} %", percent(ticks, all))));
    legend(page, &named.each_ref().map(|(class, name)| (*class, name.as_str())));
    page.push_str("<div class=\"grid\">");
    waits_to_run(page, domain, host);
    entries(page, domain, host);
    page.push_str("</div>");
    owners_off(page, domain, &host.clock);
}

/// How often in a second.
fn a_second(of: Count, host: &HostSummary) -> String {
    match host.clock.ns(host.ticks).filter(|&ns| ns > 0.0) {
        Some(ns) => format!("{}{:.0}", super::mark(of.certainty), of.value as f64 * 1e9 / ns),
        None => "–".into(),
    }
}

/// The time from runnable to running, by cause.
fn waits_to_run(page: &mut String, domain: &HostDomain, host: &HostSummary) {
    page.push_str(
        "<div class=\"wide\"><table><tr><th>until it runs</th><th>count</th><th>of its time</th>\
         <th>median</th><th>90 %</th><th>99 %</th><th>longest</th></tr>",
    );
    let time = host.ticks.saturating_mul(domain.vcpus.len() as u64);
    for Runnable { cause, count, ticks, ticks_certainty, to_run } in &domain.runnable {
        let name = match cause {
            Cause::Woken => "every wake",
            _ if count.value == 0 => continue,
            other => other.name(),
        };
        let _ = write!(
            page,
            "<tr><th>{name}</th><td>{}{}</td><td>{}{:.2} %</td>",
            super::mark(count.certainty),
            count.value,
            super::mark(*ticks_certainty),
            percent(*ticks, time)
        );
        quantiles(page, to_run, &host.clock);
    }
    if domain.poll_to_wake.count > 0 {
        let of = &domain.poll_to_wake;
        let m = super::mark(of.certainty);
        let _ = write!(page, "<tr><th>poll to wake</th><td>{m}{}</td><td></td>", of.count);
        quantiles(page, of, &host.clock);
    }
    page.push_str("</table></div>");
}

fn quantiles(page: &mut String, of: &Distribution, clock: &Clock) {
    let m = super::mark(of.certainty);
    for ticks in [of.p50, of.p90, of.p99, of.max] {
        let _ = match of.count {
            0 => write!(page, "<td class=\"zero\">–</td>"),
            _ => write!(page, "<td>{m}{}</td>", svg::time(ticks, clock)),
        };
    }
    page.push_str("</tr>");
}

fn entries(page: &mut String, domain: &HostDomain, host: &HostSummary) {
    if domain.entries.is_empty() {
        return;
    }
    page.push_str(
        "<div class=\"wide\"><table><tr><th>came into Xen by</th><th>count</th><th>a second</th>",
    );
    // A PV guest leaves no record of its return.
    let timed = domain.entries.iter().any(|of| of.in_xen.is_some());
    page.push_str(if timed { "<th>in Xen</th></tr>" } else { "</tr>" });
    let time = host.ticks.saturating_mul(domain.vcpus.len() as u64);
    for of in domain.entries.iter().take(ENTRIES) {
        let m = super::mark(of.count.certainty);
        let in_xen = of.in_xen.map(|ticks| format!("<td>{m}{:.2} %</td>", percent(ticks, time)));
        let in_xen = in_xen.unwrap_or_else(|| if timed { "<td></td>" } else { "" }.into());
        let _ = write!(
            page,
            "<tr><th>{}</th><td>{m}{}</td><td>{}</td>{in_xen}</tr>",
            super::escape(&entry_name(of)),
            of.count.value,
            a_second(of.count, host)
        );
    }
    page.push_str("</table>");
    if domain.entries.len() > ENTRIES {
        let more = domain.entries.len() - ENTRIES;
        let _ = write!(page, "<p class=\"facts\">and {more} more: see kicktrace host.</p>");
    }
    page.push_str("</div>");
}

fn owners_off(page: &mut String, domain: &HostDomain, clock: &Clock) {
    let off: Vec<_> = domain.owners_off.iter().filter(|of| of.off.value > 0).collect();
    if off.is_empty() {
        return;
    }
    page.push_str(
        "<div class=\"wide\"><table><tr><th>lock</th><th>handed over by a kick</th>\
         <th>its owner had been off its pCPU</th><th>in all</th><th>longest</th></tr>",
    );
    for of in off.iter().take(LOCKS) {
        let m = super::mark(of.off.certainty);
        let _ = write!(
            page,
            "<tr><th>{:#010x}</th><td>{}</td><td>{m}{}</td><td>{m}{}</td><td>{m}{}</td></tr>",
            of.lock,
            of.kicks,
            of.off.value,
            svg::time(of.ticks, clock),
            svg::time(of.each.max, clock)
        );
    }
    page.push_str("</table></div>");
    if off.len() > LOCKS {
        let more = off.len() - LOCKS;
        let _ =
            write!(page, "<p class=\"facts\">{more} more locks: see kicktrace host --json.</p>");
    }
}

fn events(page: &mut String, host: &HostSummary) {
    page.push_str(
        "<details><summary>Records by event</summary><div class=\"wide\"><table><tr><th>event</th>\
         <th>records</th><th>a second</th></tr>",
    );
    for of in host.events.iter().take(EVENTS) {
        let _ = write!(
            page,
            "<tr><th>{}</th><td>{}{}</td><td>{}</td></tr>",
            super::escape(&event_name(of.event, of.name)),
            super::mark(of.records.certainty),
            of.records.value,
            a_second(of.records, host)
        );
    }
    page.push_str("</table></div>");
    if host.events.len() > EVENTS {
        let more = host.events.len() - EVENTS;
        let _ =
            write!(page, "<p class=\"facts\">{more} more events: see kicktrace host --json.</p>");
    }
    page.push_str("</details>");
}
