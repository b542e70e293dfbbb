//! The trace in phases, as small charts one under the other.

use std::fmt::Write as _;

use super::svg;
use crate::output::series::{Phase, Series, share};
use crate::output::table::of_its_number;
use crate::summary::{Clock, Domain, Summary};

/// Width and height of a chart, and of the numbers at its left, in its own units.
const WIDTH: f64 = 560.0;
const TALL: f64 = 84.0;
const LEFT: f64 = 62.0;
const TOP: f64 = 8.0;
const FOOT: f64 = 20.0;

/// Charts of every domain that waited in any phase.
pub(super) fn write(page: &mut String, series: &Series, summary: &Summary) {
    let phases = series.phases();
    let (Some(first), Some(last)) = (phases.first(), phases.last()) else { return };
    let clock = &summary.clock;
    let _ = write!(
        page,
        "<h2>Phase by phase</h2><p class=\"facts\">{} phases of {}. {}</p>",
        phases.len(),
        svg::time(first.window.to - first.window.from, clock),
        if phases.iter().any(|phase| phase.lost_records > 0) {
            "Phases with lost records are veiled in red: their figures are of what is left."
        } else {
            "No phase lost records."
        }
    );
    let span = (first.window.from, last.window.to);
    for (id, life) in series.domains() {
        let of = |phase: &Phase| {
            let mut domains = phase.domains.iter();
            domains.find(|domain| (domain.id, domain.life) == (id, life)).cloned()
        };
        let domains: Vec<(&Phase, Domain)> =
            phases.iter().filter_map(|phase| Some((phase, of(phase)?))).collect();
        if domains.iter().all(|(_, domain)| domain.counts.waits.value == 0) {
            continue;
        }
        let number = of_its_number(life);
        let _ = write!(page, "<h3>Domain {id}{number}</h3><div class=\"grid\">");
        let mark = |certainty| super::mark(certainty);
        let values = |value: &dyn Fn(&Phase, &Domain) -> f64| -> Vec<(&Phase, f64)> {
            domains.iter().map(|(phase, domain)| (*phase, value(phase, domain))).collect()
        };
        let certainty = domains.iter().map(|(_, domain)| domain.counts.waking_kicks.certainty);
        let seconds = |phase: &Phase| clock.ns(phase.window.to - phase.window.from);
        let rate = |phase: &Phase, count: u64| {
            seconds(phase).map_or(count as f64, |ns| count as f64 * 1e9 / ns.max(1.0))
        };
        let per = if clock.hz.is_some() { "a second" } else { "a phase" };
        let m = certainty.max().map_or("", mark);
        let kicks = values(&|phase, domain| rate(phase, domain.counts.waking_kicks.value));
        let title = format!("{m}waking kicks {per}");
        chart(page, &title, &kicks, span, clock, &plain, &|value, _| svg::trimmed(value));
        let certainty = domains.iter().map(|(_, domain)| domain.latencies.wait.certainty);
        let m = certainty.max().map_or("", mark);
        let waits = values(&|_, domain| domain.latencies.wait.p99 as f64);
        let time = |ticks: f64| svg::time(ticks as u64, clock);
        let axis = |ticks, top| svg::axis_time(ticks, top, clock);
        chart(page, &format!("{m}block to run, 99 %"), &waits, span, clock, &time, &axis);
        let each = values(&|_, domain| {
            let of = domain.marked.as_ref().unwrap_or(&domain.inferred);
            of.waking_kicks_per_blocked.unwrap_or(0.0)
        });
        let marked = domains.iter().all(|(_, domain)| domain.marked.is_some());
        let m = if marked { "" } else { "~" };
        let title = format!("{m}waking kicks per blocked acquisition");
        let say = |value| format!("{value:.2}");
        chart(page, &title, &each, span, clock, &say, &|value, _| svg::trimmed(value));
        states(page, &domains, span, clock);
        page.push_str("</div>");
    }
}

fn plain(value: f64) -> String {
    if value >= 100.0 || value == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// A bar for each phase, with round numbers at the left and below. A value is named by `say`, at
/// the axis, beside its largest number, by `axis`.
fn chart(
    page: &mut String,
    title: &str,
    values: &[(&Phase, f64)],
    span: (u64, u64),
    clock: &Clock,
    say: &dyn Fn(f64) -> String,
    axis: &dyn Fn(f64, f64) -> String,
) {
    let most = values.iter().map(|&(_, value)| value).fold(0.0, f64::max);
    let top = svg::round_up(most, clock_scale(title, clock));
    open(page, title);
    // Where all is 0, so is the axis.
    for &part in if top > 0.0 { &[0.0, 0.5, 1.0][..] } else { &[0.0] } {
        let y = TOP + TALL * (1.0 - part);
        let _ = write!(
            page,
            "<line class=\"grid-line\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"soft\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 4.0,
            y + 4.0,
            axis(top * part, top)
        );
    }
    for &(phase, value) in values {
        let (left, width) = place(phase, span);
        let tall = if top > 0.0 { value / top * TALL } else { 0.0 };
        lost(page, phase, left, width);
        let _ = write!(
            page,
            "<rect class=\"bar\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{tall:.1}\">\
             <title>{}: {}</title></rect>",
            TOP + TALL - tall,
            when(phase, clock),
            say(value)
        );
    }
    close(page, span, clock);
}

/// Whether a chart's numbers are times, which are round in nanoseconds and not in ticks.
fn clock_scale(title: &str, clock: &Clock) -> f64 {
    if title.contains("block to run") { clock.hz.map_or(1.0, |hz| hz / 1e9) } else { 1.0 }
}

/// The runstates of each phase, stacked.
fn states(page: &mut String, domains: &[(&Phase, Domain)], span: (u64, u64), clock: &Clock) {
    open(page, "where the vCPUs' time went");
    for part in [0.0, 50.0, 100.0] {
        let y = TOP + TALL * (1.0 - part / 100.0);
        let _ = write!(
            page,
            "<text class=\"soft\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{part:.0} %</text>",
            LEFT - 4.0,
            y + 4.0,
        );
    }
    for (phase, of) in domains {
        let (left, width) = place(phase, span);
        let mut y = TOP + TALL;
        for (name, ticks) in [
            ("running", of.times.running),
            ("runnable", of.times.stolen),
            ("blocked", of.times.blocked),
            ("offline", of.times.offline),
        ] {
            let percent = share(of, ticks);
            let tall = percent / 100.0 * TALL;
            y -= tall;
            let _ = write!(
                page,
                "<rect class=\"{name}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
                 height=\"{tall:.1}\"><title>{}: {name} {percent:.1} %</title></rect>",
                when(phase, clock)
            );
        }
        lost(page, phase, left, width);
    }
    close(page, span, clock);
}

fn open(page: &mut String, title: &str) {
    let _ = write!(
        page,
        "<figure><figcaption><b>{title}</b></figcaption><svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\">",
        TOP + TALL + FOOT
    );
}

/// The axis of time, and the end of the chart.
fn close(page: &mut String, (from, to): (u64, u64), clock: &Clock) {
    for (tick, label) in svg::ticks(from, to, 6, clock) {
        let x = LEFT + (tick - from) as f64 / (to - from).max(1) as f64 * (WIDTH - LEFT);
        // At the corner stands the lowest number of the other axis.
        let anchor = match x {
            x if x > WIDTH - 30.0 => "end",
            x if x < LEFT + 30.0 => "start",
            _ => "middle",
        };
        let _ = write!(
            page,
            "<text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{label}</text>",
            TOP + TALL + FOOT - 3.0
        );
    }
    page.push_str("</svg></figure>");
}

/// A phase that lost records is veiled over its whole height.
fn lost(page: &mut String, phase: &Phase, left: f64, width: f64) {
    if phase.lost_records == 0 {
        return;
    }
    let _ = write!(
        page,
        "<rect class=\"lost\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{TALL}\">\
         <title>{} records lost</title></rect>",
        phase.lost_records
    );
}

fn place(phase: &Phase, (from, to): (u64, u64)) -> (f64, f64) {
    let scale = (WIDTH - LEFT) / (to - from).max(1) as f64;
    let left = LEFT + (phase.window.from - from) as f64 * scale;
    let width = (phase.window.to - phase.window.from) as f64 * scale;
    (left, if width > 3.0 { width - 1.0 } else { width })
}

fn when(phase: &Phase, clock: &Clock) -> String {
    format!("from {} on", svg::time(phase.window.from, clock))
}
