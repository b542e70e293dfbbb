//! The report's charts, as SVG inside the page.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::analysis::VcpuId;
use crate::event::Runstate;
use crate::output::story::Story;
use crate::summary::{Clock, Distribution, Domain};

/// Width of the drawing, and of the names at its left, in its own units.
const WIDTH: f64 = 1200.0;
const LEFT: f64 = 64.0;
/// Kick arrows drawn at most: more would cover the chart.
const ARROWS: usize = 400;

/// A time for people.
pub(super) fn time(ticks: u64, clock: &Clock) -> String {
    match clock.ns(ticks) {
        None => format!("{ticks} ticks"),
        Some(ns) if ns >= 1e9 => format!("{:.3} s", ns / 1e9),
        Some(ns) if ns >= 1e6 => format!("{:.2} ms", ns / 1e6),
        Some(ns) if ns >= 1e3 => format!("{:.1} µs", ns / 1e3),
        Some(ns) => format!("{ns:.0} ns"),
    }
}

/// The least of 1, 2, 2.5 and 5 times a power of ten that is no less than `value`, in units of
/// `unit`.
pub(super) fn round_up(value: f64, unit: f64) -> f64 {
    let of = value / unit;
    if of <= 0.0 || !of.is_finite() {
        return 0.0;
    }
    let ten = 10f64.powf(of.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|step| step * ten >= of * 0.999_999);
    step.unwrap_or(10.0) * ten * unit
}

/// The largest unit that so many nanoseconds fill, or ticks where these have no length.
fn unit(value: f64, clock: &Clock) -> (f64, &'static str) {
    match (clock.hz, value) {
        (None, _) => (1.0, ""),
        (_, value) if value >= 1e9 => (1e9, " s"),
        (_, value) if value >= 1e6 => (1e6, " ms"),
        (_, value) if value >= 1e3 => (1e3, " µs"),
        _ => (1.0, " ns"),
    }
}

/// A round number of nanoseconds, or of ticks where these have no length, in its largest unit.
fn round_time(value: f64, clock: &Clock) -> String {
    let (unit, name) = unit(value, clock);
    format!("{}{name}", trimmed(value / unit))
}

/// Ticks at an axis whose largest number is `top`, in one unit.
pub(super) fn axis_time(ticks: f64, top: f64, clock: &Clock) -> String {
    let ns = |ticks: f64| ticks * clock.hz.map_or(1.0, |hz| 1e9 / hz);
    let (unit, name) = unit(ns(top), clock);
    format!("{}{name}", trimmed(ns(ticks) / unit))
}

/// A number with the digits it needs, three behind the point at most: what is left over is noise.
pub(super) fn trimmed(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Round moments of `from..=to`, about `wanted` of them, and their labels: times where the
/// frequency is known, all in one unit.
pub(super) fn ticks(from: u64, to: u64, wanted: u32, clock: &Clock) -> Vec<(u64, String)> {
    // Ticks of the TSC for each nanosecond.
    let scale = clock.hz.map_or(1.0, |hz| hz / 1e9);
    let (begin, end) = (from as f64 / scale, to as f64 / scale);
    let step = round_up((end - begin) / f64::from(wanted.max(1)), 1.0).max(1.0);
    let (unit, name) = match (clock.hz, step) {
        (None, _) => (1.0, ""),
        (_, step) if step >= 1e8 => (1e9, " s"),
        (_, step) if step >= 1e5 => (1e6, " ms"),
        (_, step) if step >= 1e2 => (1e3, " µs"),
        _ => (1.0, " ns"),
    };
    let mut ticks = Vec::new();
    let mut number = (begin / step).ceil();
    while number * step <= end * 1.000_000_001 && ticks.len() <= 4 * wanted as usize {
        let at = number * step;
        // A step of 250 ms has two digits behind the point in seconds.
        let label = format!("{}{name}", trimmed(at / unit));
        ticks.push((((at * scale).round() as u64).clamp(from, to), label));
        number += 1.0;
    }
    ticks
}

fn legend(page: &mut String) {
    page.push_str("<div class=\"legend\">");
    for (name, text) in [
        ("running", "running"),
        ("runnable", "runnable, no pCPU (stolen)"),
        ("blocked", "blocked"),
        ("offline", "offline"),
    ] {
        let _ = write!(page, "<span><i style=\"background:var(--{name})\"></i>{text}</span>");
    }
    page.push_str("</div>");
}

/// One bar for each vCPU: the shares of its runstates.
pub(super) fn runstates(page: &mut String, domain: &Domain) {
    legend(page);
    let row = 20.0;
    let height = domain.vcpus.len() as f64 * row;
    let _ = write!(page, "<div class=\"wide\"><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    for (at, vcpu) in domain.vcpus.iter().enumerate() {
        let y = at as f64 * row;
        let _ = write!(page, "<text x=\"0\" y=\"{}\">v{}</text>", y + 14.0, vcpu.id);
        let mut x = LEFT;
        let times = &vcpu.times;
        for (name, part) in [
            ("running", times.running),
            ("runnable", times.stolen),
            ("blocked", times.blocked),
            ("offline", times.offline),
        ] {
            let share = part as f64 / vcpu.ticks.max(1) as f64;
            let width = share * (WIDTH - LEFT);
            let _ = write!(
                page,
                "<rect class=\"{name}\" x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"15\">\
                 <title>v{} {name} {:.2} %</title></rect>",
                y + 2.0,
                vcpu.id,
                share * 100.0
            );
            if width > 46.0 {
                // Of what is blocked the colour is a quiet one, on which ordinary text stands out.
                let class = if name == "blocked" { "quiet" } else { "on" };
                let _ = write!(
                    page,
                    "<text class=\"{class}\" x=\"{:.1}\" y=\"{}\">{:.1} %</text>",
                    x + 4.0,
                    y + 13.5,
                    share * 100.0
                );
            }
            x += width;
        }
    }
    page.push_str("</svg></div>");
}

/// A latency's histogram over a logarithmic axis, two bars for each doubling.
pub(super) fn histogram(page: &mut String, name: &str, of: &Distribution, clock: &Clock) {
    let m = super::mark(of.certainty);
    let _ = write!(
        page,
        "<figure><figcaption><b>{m}{name}</b>: {} values, median {}, 90 % {}, 99 % {}, 99.9 % {}, most \
         {}</figcaption>",
        of.count,
        time(of.p50, clock),
        time(of.p90, clock),
        time(of.p99, clock),
        time(of.p999, clock),
        time(of.max, clock)
    );
    if of.count == 0 {
        page.push_str("</figure>");
        return;
    }
    let mut bars: BTreeMap<i32, u64> = BTreeMap::new();
    for &(value, count) in &of.histogram {
        *bars.entry(((value.max(1) as f64).log2() * 2.0).floor() as i32).or_default() += count;
    }
    let (first, last) =
        (bars.keys().next().copied().unwrap_or(0), bars.keys().last().copied().unwrap_or(0));
    let most = bars.values().max().copied().unwrap_or(1) as f64;
    let (width, height, foot, head) = (560.0, 130.0, 20.0, 16.0);
    let bar_width = (width / f64::from(last - first + 1)).min(80.0);
    let _ = write!(page, "<svg viewBox=\"0 0 {width} {}\" role=\"img\">", height + foot);
    for (&bar, &count) in &bars {
        let tall = count as f64 / most * (height - head);
        let (from, to) = (2f64.powf(f64::from(bar) / 2.0), 2f64.powf(f64::from(bar + 1) / 2.0));
        let _ = write!(
            page,
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
             <title>{} to {}: {count}</title></rect>",
            f64::from(bar - first) * bar_width + 0.5,
            height - tall,
            (bar_width - 1.0).max(1.0),
            tall.max(0.8),
            time(from as u64, clock),
            time(to as u64, clock),
        );
    }
    // The tallest bar's number is the scale of all.
    if let Some((&bar, count)) = bars.iter().max_by_key(|&(_, &count)| count) {
        let middle = (f64::from(bar - first) + 0.5) * bar_width;
        let _ = write!(
            page,
            "<text class=\"soft\" x=\"{:.1}\" y=\"12\" text-anchor=\"middle\">{count}</text>",
            middle.clamp(20.0, width - 20.0)
        );
    }
    let _ = write!(
        page,
        "<line class=\"grid-line\" x1=\"0\" x2=\"{width}\" y1=\"{height}\" y2=\"{height}\"/>"
    );
    // Round times, every decade or its half: five labels at most.
    let scale = clock.hz.map_or(1.0, |hz| hz / 1e9);
    let (low, high) = (2f64.powf(f64::from(first) / 2.0), 2f64.powf(f64::from(last + 1) / 2.0));
    let decades = (low / scale).log10().floor() as i32..=(high / scale).log10().ceil() as i32;
    let steps: &[f64] = match decades.clone().count() {
        4.. => &[1.0],
        3 => &[1.0, 3.0],
        _ => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
    };
    let every = decades.clone().count().div_ceil(6);
    for decade in decades.step_by(every) {
        for step in steps {
            let ticks = step * 10f64.powi(decade) * scale;
            let at = ((ticks.max(1.0)).log2() * 2.0 - f64::from(first)) * bar_width;
            // A label needs its room, at the right end too.
            if ticks < 1.0 || !(0.0..width - 64.0).contains(&at) {
                continue;
            }
            let _ = write!(
                page,
                "<line class=\"grid-line\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{height}\" y2=\"{}\"/>\
                 <text class=\"soft\" x=\"{at:.1}\" y=\"{}\">{}</text>",
                height + 4.0,
                height + foot - 2.0,
                round_time(step * 10f64.powi(decade), clock)
            );
        }
    }
    page.push_str("</svg></figure>");
}

/// A histogram without words, for a table's cell.
pub(super) fn spark(page: &mut String, counts: &[u64]) {
    let (bar, tall) = (6.0, 18.0);
    let width = counts.len() as f64 * bar;
    let _ = write!(
        page,
        "<svg class=\"spark\" viewBox=\"0 0 {width} {tall}\" style=\"width:{width}px\" role=\"img\">"
    );
    let most = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    for (at, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
        let height = (count as f64 / most * tall).max(1.0);
        let _ = write!(
            page,
            "<rect class=\"bar\" x=\"{}\" y=\"{:.1}\" width=\"{}\" height=\"{height:.1}\">\
             <title>{count}</title></rect>",
            at as f64 * bar,
            tall - height,
            bar - 1.0
        );
    }
    page.push_str("</svg>");
}

/// pCPUs with who runs there, vCPUs with their runstates, and an arrow for each kick.
/// `start` is the trace's first TSC.
pub(super) fn gantt(page: &mut String, story: &Story, start: u64, clock: &Clock) {
    let Some((from, to)) = story.span() else { return };
    let (vcpus, pcpus) = (story.vcpus(), story.pcpus());
    let _ = write!(
        page,
        "<p class=\"facts\">{} of the trace, from {} on. Arrows go from a kick to the vCPU \
         that runs because of it.</p>",
        time(to - from, clock),
        time(from.saturating_sub(start), clock)
    );
    legend(page);
    let x = |tsc: u64| {
        let part = tsc.clamp(from, to).saturating_sub(from) as f64 / (to - from).max(1) as f64;
        LEFT + part * (WIDTH - LEFT)
    };
    let (tall, gap, top) = (18.0, 10.0, 18.0);
    let vcpu_top = top + pcpus.len() as f64 * tall + gap;
    let height = vcpu_top + vcpus.len() as f64 * tall + 4.0;
    let row = |of: VcpuId| vcpu_top + vcpus.binary_search(&of).unwrap_or(0) as f64 * tall;
    let _ = write!(page, "<div class=\"wide\"><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    // Moments are round from the start of the trace.
    for (tick, label) in ticks(from.saturating_sub(start), to.saturating_sub(start), 6, clock) {
        let at = x(start.saturating_add(tick));
        let anchor = if at > WIDTH - 40.0 { "end" } else { "start" };
        let _ = write!(
            page,
            "<line class=\"grid-line\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"12\" y2=\"{height}\"/>\
             <text class=\"soft\" x=\"{at:.1}\" y=\"10\" text-anchor=\"{anchor}\">{label}</text>"
        );
    }
    for (at, cpu) in pcpus.iter().enumerate() {
        let y = top + at as f64 * tall;
        let _ = write!(page, "<text x=\"0\" y=\"{}\">pCPU {cpu}</text>", y + 13.0);
    }
    for vcpu in &vcpus {
        let _ = write!(page, "<text x=\"0\" y=\"{}\">{vcpu}</text>", row(*vcpu) + 13.0);
    }
    for interval in &story.intervals {
        let (left, right) = (x(interval.from), x(interval.to));
        let width = (right - left).max(0.3);
        let state = interval.state.name();
        let title =
            format!("{} {state} {}", interval.vcpu, time(interval.to - interval.from, clock));
        let _ = write!(
            page,
            "<rect class=\"{state}\" x=\"{left:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\">\
             <title>{title}</title></rect>",
            row(interval.vcpu) + 2.0,
            tall - 5.0,
        );
        if interval.state != Runstate::Running {
            continue;
        }
        let y = top + pcpus.binary_search(&interval.cpu).unwrap_or(0) as f64 * tall + 2.0;
        // From cyan to pink, where no runstate has its colour; by the golden ratio, so neighbours
        // differ.
        let number = vcpus.binary_search(&interval.vcpu).unwrap_or(0);
        let hue = 185.0 + (number as f64 * 0.618_034).fract() * 150.0;
        let light = [38, 52][number % 2];
        let _ = write!(
            page,
            "<rect style=\"fill:hsl({hue:.0} 55% {light}%)\" x=\"{left:.1}\" y=\"{y}\" width=\"{width:.1}\" \
             height=\"{}\"><title>{title} on pCPU {}</title></rect>",
            tall - 4.0,
            interval.cpu
        );
        if width > 34.0 {
            let _ = write!(
                page,
                "<text class=\"chip\" x=\"{:.1}\" y=\"{}\">{}</text>",
                left + 3.0,
                y + 10.5,
                interval.vcpu
            );
        }
    }
    for gap in &story.gaps {
        let Ok(at) = pcpus.binary_search(&gap.cpu) else { continue };
        let (left, right) = (x(gap.from), x(gap.to));
        let _ = write!(
            page,
            "<rect class=\"lost\" x=\"{left:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\">\
             <title>records lost on pCPU {}</title></rect>",
            top + at as f64 * tall + 2.0,
            (right - left).max(1.0),
            tall - 4.0,
            gap.cpu
        );
    }
    let inside = |tsc: u64| (from..=to).contains(&tsc);
    let kicks = story.waits.iter().filter_map(|wait| Some((wait, wait.kick?)));
    let kicks = kicks.filter(|(wait, kick)| inside(kick.tsc) && inside(wait.running));
    let mut arrows = 0;
    for (wait, kick) in kicks {
        arrows += 1;
        if arrows > ARROWS {
            continue;
        }
        let (x1, x2) = (x(kick.tsc), x(wait.running));
        let (y1, y2) = (row(kick.by) + tall / 2.0, row(wait.vcpu) + tall / 2.0);
        let _ = write!(
            page,
            "<g><path class=\"kick\" d=\"M{x1:.1} {y1} L{x2:.1} {y2}\"/>\
             <circle class=\"kick-head\" cx=\"{x2:.1}\" cy=\"{y2}\" r=\"2.4\"/>\
             <title>{} kicks {}, which runs {} later</title></g>",
            kick.by,
            wait.vcpu,
            time(wait.running.saturating_sub(kick.tsc), clock)
        );
    }
    page.push_str("</svg></div>");
    if arrows > ARROWS {
        let _ = write!(
            page,
            "<p class=\"facts\">Arrows of the first {ARROWS} of {arrows} kicks: choose a shorter part with \
             --from and --to.</p>"
        );
    }
    if !story.gaps.is_empty() {
        page.push_str("<p class=\"facts\">Veiled in red: records were lost there.</p>");
    }
    if story.dropped > 0 {
        page.push_str(
            "<p class=\"facts\">The chart ends early: the window holds more than fits.</p>",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{axis_time, trimmed};
    use crate::summary::Clock;

    #[test]
    fn numbers_of_an_axis_are_round_and_of_one_unit() {
        let clock = Clock::known(Some(2e9));
        let ms = |ms: f64| ms * 2e6;
        let labels = [0.0, 100.0, 200.0].map(|part| axis_time(ms(part), ms(200.0), &clock));
        assert_eq!(labels, ["0 ms", "100 ms", "200 ms"]);
        assert_eq!(axis_time(5.0, 10.0, &Clock::known(None)), "5");
        assert_eq!([0.1 + 0.2, 2.0].map(trimmed), ["0.3", "2"]);
    }
}
