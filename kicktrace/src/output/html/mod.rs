//! A report in one file: no script, no font, no picture from elsewhere; light and dark.
//!
//! Owns the page. The charts are in `svg.rs`; this file puts text and tables around them.

mod host;
mod series;
mod svg;

use std::fmt::Write as _;
use std::io::{self, Write};

use super::series::Series;
use super::story::Story;
use crate::analysis::{HostSummary, WaitStory};
use crate::summary::{
    Acquisitions, Certainty, Clock, ClockSource, Domain, DomainKind, Summary, Verdict,
};

/// vCPU columns of a table; a wide domain goes on in the JSON and CSV outputs.
const COLUMNS: usize = 16;

const STYLE: &str = include_str!("style.css");

/// What the page shows beside the summary.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// The name of the trace.
    pub title: String,
    /// The part of the trace drawn as a chart.
    pub window: Story,
    /// The longest waits, longest first.
    pub worst: Vec<WaitStory>,
    /// The trace in phases; empty if none were asked for.
    pub series: Series,
    /// What the hypervisor did.
    pub host: Option<HostSummary>,
}

/// Writes the page.
///
/// # Errors
/// Whatever `out` returns.
pub fn write(out: &mut dyn Write, summary: &Summary, parts: &Parts) -> io::Result<()> {
    let title = escape(&parts.title);
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>kicktrace: {title}</title><style>{STYLE}</style></head><body><main>\n\
         <h1>{title}</h1>\n"
    );
    head(&mut page, summary);
    // What people came for first: domains whose vCPUs waited.
    let (waited, quiet): (Vec<_>, Vec<_>) =
        summary.domains.iter().partition(|domain| domain.counts.waits.value > 0);
    for domain in waited {
        self::domain(&mut page, domain, summary);
    }
    series::write(&mut page, &parts.series, summary);
    if parts.window.span().is_some() {
        let _ = write!(page, "<h2>Who ran where</h2>");
        svg::gantt(&mut page, &parts.window, summary.reading.first_tsc, &summary.clock);
    }
    worst(&mut page, &parts.worst, summary);
    if let Some(host) = &parts.host {
        host::write(&mut page, host);
    }
    for domain in quiet {
        self::domain(&mut page, domain, summary);
    }
    page.push_str("</main></body></html>\n");
    out.write_all(page.as_bytes())
}

fn head(page: &mut String, summary: &Summary) {
    let reading = &summary.reading;
    let clock = match (summary.clock.hz, summary.clock.source, summary.clock.error_text()) {
        (Some(hz), ClockSource::Calibrated, Some(error)) => {
            format!("{:.6} GHz, measured on the trace, ±{error}", hz / 1e9)
        }
        (Some(hz), ..) => format!("{:.6} GHz, given", hz / 1e9),
        _ => "unknown frequency: times are in TSC ticks".into(),
    };
    let _ = write!(
        page,
        "<p class=\"facts\">{} of trace, {} records of {} pCPUs, {} lost, coverage {:.2} %. {clock}.</p>\
         <p class=\"facts\">A figure without a mark is exact; ~ is inferred from the order of records, \
         ≤ is at most, ≥ is at least.</p>",
        svg::time(summary.ticks, &summary.clock),
        reading.records,
        reading.pcpus.len(),
        reading.lost_records(),
        summary.coverage_percent,
    );
    for warning in &summary.warnings {
        let _ = write!(page, "<p class=\"warning\">{}</p>", escape(warning));
    }
    for note in summary.found(Verdict::Note) {
        let _ = write!(page, "<p class=\"facts\">{}</p>", escape(&note.what));
    }
}

fn domain(page: &mut String, domain: &Domain, summary: &Summary) {
    let clock = &summary.clock;
    let kind = match domain.kind {
        DomainKind::Unknown => "unknown kind",
        DomainKind::Pv => "PV",
        DomainKind::Hvm => "HVM or PVH",
    };
    let _ = write!(
        page,
        "<section><h2>Domain {}{} <small>{kind}, {} vCPUs, coverage {:.2} %</small></h2>",
        domain.id,
        crate::output::table::of_its_number(domain.life),
        domain.vcpus.len(),
        domain.coverage_percent
    );
    let best = domain.marked.as_ref().unwrap_or(&domain.inferred);
    if best.blocked > 0 {
        tiles(page, domain, best, clock);
    }
    page.push_str("<div class=\"grid\">");
    for (title, of) in [
        ("Acquisitions, as the guest marked them", domain.marked.as_ref()),
        ("Acquisitions, inferred", Some(&domain.inferred)),
    ] {
        if let Some(of) = of.filter(|of| of.blocked > 0) {
            acquisitions(page, title, of);
        }
    }
    page.push_str("</div>");
    locks(page, domain, summary);
    page.push_str(
        "<h3>Where the time of each vCPU went</h3><p class=\"facts\">Of the time from the vCPU's \
         first record to its domain's end, or the trace's.</p>",
    );
    svg::runstates(page, domain);
    if domain.latencies.wait.count > 0 {
        page.push_str("<h3>Latencies</h3><div class=\"grid\">");
        for (name, of) in [
            ("kick to wake", &domain.latencies.kick_to_wake),
            ("wake to run", &domain.latencies.wake_to_run),
            ("kick to run", &domain.latencies.kick_to_run),
            ("block to run", &domain.latencies.wait),
        ] {
            svg::histogram(page, name, of, clock);
        }
        page.push_str("</div>");
    }
    counts(page, domain, clock);
    page.push_str("</section>");
}

fn tiles(page: &mut String, domain: &Domain, of: &Acquisitions, clock: &Clock) {
    let m = mark(of.certainty);
    let ratio = |r: Option<f64>| r.map_or_else(|| "–".into(), |r| format!("{m}{r:.3}"));
    page.push_str("<div class=\"tiles\">");
    let mut tile = |value: String, text: &str| {
        let _ = write!(page, "<div><b>{value}</b><span>{text}</span></div>");
    };
    tile(ratio(of.waking_kicks_per_blocked), "waking kicks per blocked acquisition");
    tile(ratio(of.waking_kicks_per_slept_twice), "… of those that slept twice or more");
    tile(format!("{m}{}", of.blocked), "acquisitions that blocked");
    tile(format!("{m}{}", of.slept_twice), "of those slept twice or more");
    let run = &domain.latencies.kick_to_run;
    let m = mark(run.certainty);
    tile(format!("{m}{}", svg::time(run.p50, clock)), "kick to run, median");
    tile(format!("{m}{}", svg::time(run.p99, clock)), "kick to run, 99 %");
    page.push_str("</div>");
}

fn acquisitions(page: &mut String, title: &str, of: &Acquisitions) {
    let m = mark(of.certainty);
    let _ = write!(
        page,
        "<div><h3>{title}</h3><table><tr><th>waits \\ waking kicks</th><th>0</th><th>1</th><th>2</th>\
         <th>3 or more</th></tr>"
    );
    for (waits, row) in of.table.iter().enumerate().skip(1) {
        let more = if waits == 3 { " or more" } else { "" };
        let _ = write!(page, "<tr><th>{waits}{more}</th>");
        for cell in row {
            let _ = write!(page, "<td>{m}{cell}</td>");
        }
        page.push_str("</tr>");
    }
    let _ = write!(
        page,
        "</table><p class=\"facts\">Kicked awake again by the same vCPU: {m}{}, by another: {m}{}. Left \
         out (cut by the trace's start or beside lost records): {}; guest and hypervisor disagree: \
         {}.</p></div>",
        of.kicked_again_by_same_sender,
        of.kicked_again_by_other_sender,
        of.excluded,
        of.disagreements
    );
}

/// Locks shown; the others are in the output of `kicktrace locks`.
const LOCKS: usize = 32;

fn locks(page: &mut String, domain: &Domain, summary: &Summary) {
    if domain.locks.is_empty() {
        return;
    }
    let clock = &summary.clock;
    page.push_str(
        "<h3>Lock by lock, as the guest marked them</h3><div class=\"wide\"><table><tr><th>lock</th>\
         <th>vCPUs</th><th>blocked acquisitions</th><th>waits</th><th>kicked awake</th>\
         <th>kicks per acquisition</th><th>slept twice</th><th>waits, short to long</th>\
         <th>median</th><th>99 %</th><th>longest</th><th>whose, when, kicked by</th></tr>",
    );
    let octaves = crate::output::locks::octaves(&domain.locks);
    for of in domain.locks.iter().take(LOCKS) {
        let acquired = &of.acquisitions;
        let each = acquired.waking_kicks_per_blocked.map_or("–".into(), |r| format!("{r:.3}"));
        let _ = write!(
            page,
            "<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{each}</td><td>{}</td><td>",
            crate::output::locks::name(of),
            of.vcpus,
            acquired.blocked,
            of.waits,
            of.waits_kicked,
            acquired.slept_twice,
        );
        svg::spark(page, &crate::output::locks::by_octave(&of.wait, octaves.clone()));
        let _ = write!(
            page,
            "</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            svg::time(of.wait.p50, clock),
            svg::time(of.wait.p99, clock),
            svg::time(of.wait.max, clock),
            of.longest.map_or_else(String::new, |longest| {
                let at = longest.blocked.saturating_sub(summary.reading.first_tsc);
                let by = longest.kicked_by.map_or("nobody".into(), |by| format!("v{by}"));
                format!("v{} at {}, {by}", longest.vcpu, svg::time(at, clock))
            })
        );
    }
    page.push_str("</table></div>");
    if domain.locks.len() > LOCKS {
        let more = domain.locks.len() - LOCKS;
        let _ = write!(page, "<p class=\"facts\">{more} more locks: see kicktrace locks.</p>");
    }
}

fn counts(page: &mut String, domain: &Domain, clock: &Clock) {
    let vcpus = &domain.vcpus[..domain.vcpus.len().min(COLUMNS)];
    page.push_str("<details><summary>Counts and times</summary>");
    let more = domain.vcpus.len() - vcpus.len();
    if more > 0 {
        let _ = write!(
            page,
            "<p class=\"facts\">{more} more vCPUs: see kicktrace summary --json or --csv.</p>"
        );
    }
    page.push_str("<div class=\"wide\"><table><tr><th></th><th>domain</th>");
    for vcpu in vcpus {
        let _ = write!(page, "<th>v{}</th>", vcpu.id);
    }
    page.push_str("</tr>");
    let columns: Vec<_> = vcpus.iter().map(|vcpu| vcpu.counts.named()).collect();
    for (row, (name, total)) in domain.counts.named().into_iter().enumerate() {
        let _ = write!(page, "<tr><th>{}</th>", name.replace('_', " "));
        for count in std::iter::once(total).chain(columns.iter().map(|column| column[row].1)) {
            let zero = if count.value == 0 { " class=\"zero\"" } else { "" };
            let _ = write!(page, "<td{zero}>{}{}</td>", mark(count.certainty), count.value);
        }
        page.push_str("</tr>");
    }
    let of = &domain.times_certainty;
    let columns: Vec<_> = vcpus.iter().map(|vcpu| vcpu.times.named(of)).collect();
    for (row, total) in domain.times.named(of).into_iter().enumerate() {
        let _ = write!(page, "<tr><th>{}</th>", total.0.replace('_', " "));
        for (_, ticks, certainty) in
            std::iter::once(total).chain(columns.iter().map(|column| column[row]))
        {
            let zero = if ticks == 0 { " class=\"zero\"" } else { "" };
            let _ = write!(page, "<td{zero}>{}{}</td>", mark(certainty), svg::time(ticks, clock));
        }
        page.push_str("</tr>");
    }
    page.push_str("</table></div></details>");
}

fn worst(page: &mut String, worst: &[WaitStory], summary: &Summary) {
    if worst.is_empty() {
        return;
    }
    page.push_str(
        "<h2>The longest waits</h2><div class=\"wide\"><table><tr><th>vCPU</th><th>at</th>\
         <th>wait</th><th>slept</th><th>wake to run</th><th>kicked by</th><th>kicker preempted</th><th>lock</th></tr>",
    );
    for wait in worst {
        let time = |ticks: u64| svg::time(ticks, &summary.clock);
        let _ = write!(
            page,
            "<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td></tr>",
            wait.vcpu,
            time(wait.blocked.saturating_sub(summary.reading.first_tsc)),
            time(wait.running.saturating_sub(wait.blocked)),
            time(wait.woken.saturating_sub(wait.blocked)),
            time(wait.running.saturating_sub(wait.woken)),
            wait.kick.map_or_else(|| "no kick".into(), |kick| kick.by.to_string()),
            match wait.kicker_stolen {
                0 => "–".into(),
                ticks => time(ticks),
            },
            wait.lock.map_or_else(|| "–".into(), |lock| format!("{lock:#x}")),
        );
    }
    page.push_str("</table></div>");
}

fn mark(certainty: Certainty) -> &'static str {
    match certainty {
        Certainty::Exact => "",
        Certainty::Inferred => "~",
        Certainty::UpperBound => "≤",
        Certainty::LowerBound => "≥",
    }
}

/// Text for HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
