//! The experiment's report as one HTML file that needs no other: no script, no font, nothing fetched.
//!
//! Owns what is shown and in which order: who wins, how throughput falls with load, how long one waits, what that
//! costs in kicks, and what the neighbour loses. The figures are the report's; nothing is computed here.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use experiment::Lock;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::folder::Setup;
use super::matrix::{Cell, Section, load, pcpus};
use super::plot::{Axis, Look, Series, chart};
use super::report::{Report, Row};
use super::stats::Spread;
use crate::report::{Mode, duration, grouped};

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1b1b1b;--soft:#666;--line:#ccc;--paper:#fff;--best:#e6f4ea}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--soft:#a0a0a0;--line:#444;--paper:#16181c;--best:#1d3a26}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:80rem;margin:1.5rem auto;
padding:0 1rem;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
td.best{background:var(--best);font-weight:bold}.soft,small{color:var(--soft)}.failed{color:#d62728}
.charts{display:flex;flex-wrap:wrap;gap:1rem}.charts svg{max-width:100%;height:auto}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;padding:0;list-style:none;position:sticky;top:0;
background:var(--paper)}.legend svg{vertical-align:middle}
pre{white-space:pre-wrap}";

/// Writes `results.json`, `report.html` and the plots as SVG files of their own into `folder`.
///
/// # Errors
///
/// If one of them cannot be written.
pub fn write(report: &Report, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let json = serde_json::to_string_pretty(report)? + "\n";
    let mut files =
        vec![("results.json".to_owned(), json), ("report.html".to_owned(), page(report))];
    for section in report.sections() {
        let name = section.file_name();
        for pcpus in pcpu_counts(report) {
            let plot = overcommit(report, section, pcpus, true);
            files.push((format!("overcommit-on-{pcpus}_{name}.svg"), plot.into_string()));
        }
        for topology in report.topologies() {
            let plot = tradeoff(report, topology, section, true);
            files.push((format!("tradeoff_{topology}_{name}.svg"), plot.into_string()));
        }
    }
    for (name, text) in files.into_iter().filter(|(_, text)| !text.is_empty()) {
        let file = folder.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// The whole page.
pub fn page(report: &Report) -> String {
    let failed: Vec<_> =
        report.cells.iter().filter_map(|d| Some((&d.cell, d.outcome.as_ref().err()?))).collect();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "pvlab bench: which lock should a Xen guest have?" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Which lock should a Xen guest have?" }
                p { "How: " (report.setup.words()) ". " (report.cells.len()) " cells, " (failed.len()) " of them failed. "
                    "Compared with " b { (report.baseline) } "." }
                @if report.setup.mode != Mode::Host { p class="soft" { (caution(&report.setup)) } }
                h2 { "Winners" }
                (winners(report))
                h2 { "Acquisitions a second" }
                (rates(report))
                (legend(report))
                h2 { "Throughput against overcommit" }
                p class="soft" { "Runnable vCPUs for each pCPU; median of the seeds. PV topologies." }
                div class="charts" { @for pcpus in pcpu_counts(report) { @for section in report.sections() { (overcommit(report, section, pcpus, false)) } } }
                h2 { "Throughput against the longest wait" }
                p class="soft" { "Down and to the right is better: more acquisitions, shorter waits." }
                div class="charts" { @for (topology, section) in places(report) { (tradeoff(report, topology, section, false)) } }
                h2 { "Waits" }
                p class="soft" { "The share of acquisitions that waited longer than a time; the first seed." }
                div class="charts" { @for (topology, section) in places(report) { (waits(report, topology, section)) } }
                h2 { "What it costs" }
                (costs(report))
                (neighbour(report))
                @if !failed.is_empty() {
                    h2 { "Failed cells" }
                    ul { @for (cell, why) in &failed { li class="failed" { b { (cell) } ": " (why) } } }
                }
                h2 { "Repeat it" }
                p { "The first cell by itself:" }
                pre { (report.command()) }
                p { (grounds(report)) }
                details { summary { "Versions" } pre { (serde_json::to_string_pretty(&report.versions).unwrap_or_default()) } }
            }
        }
    };
    page.into_string()
}

fn caution(setup: &Setup) -> &'static str {
    match setup.mode {
        Mode::Repeatable if !setup.pause => {
            "Emulated, by counting instructions: the same command gives the same figures. All pCPUs share one budget of \
             instructions, and nobody pauses: on two pCPUs a spinner slows the holder, which flatters locks that sleep. On one \
             pCPU the effect does not exist."
        }
        Mode::Repeatable => {
            "Emulated, by counting instructions: the same command gives the same figures. All pCPUs share one budget of \
             instructions, and a PAUSE ends a pCPU's turn: on two pCPUs spinning is nearly free, which flatters locks that \
             spin. On one pCPU the effect does not exist."
        }
        Mode::Simulated => {
            "Without a hypervisor: what scheduling and wake-ups do to a lock; caches cost nothing here."
        }
        Mode::Host | Mode::Parallel => {
            "Emulated, in parallel: times are the emulator's and noisy. Believe ratios above two, and counts."
        }
    }
}

fn places(report: &Report) -> Vec<(&str, Section)> {
    let sections = report.sections();
    report.topologies().into_iter().flat_map(|t| sections.iter().map(move |s| (t, *s))).collect()
}

fn winners(report: &Report) -> Markup {
    html! {
        div class="wide" { table {
            tr { th { "topology" } @for section in report.sections() { th { (section) " us" } } }
            @for topology in report.topologies() {
                tr {
                    td { (topology) }
                    @for section in report.sections() {
                        @match report.winner(topology, section) {
                            None => td { "-" },
                            Some(lock) => td { (lock) (against(report, topology, section, lock)) },
                        }
                    }
                }
            }
        } }
    }
}

fn against(report: &Report, topology: &str, section: Section, lock: Lock) -> Markup {
    let ratio = report.row(topology, section, lock).and_then(|row| row.against_baseline);
    html! { @if let Some(ratio) = ratio.filter(|_| lock != report.baseline) { small { " " (format!("{ratio:.2}x")) } } }
}

fn rates(report: &Report) -> Markup {
    html! {
        p class="soft" { "Median over the seeds, smallest and largest; then the multiple of the baseline, with the probability "
            "that chance alone makes such a difference (exact permutation test; with 3 seeds never below 0.1)." }
        div class="wide" { table {
            tr { th { "topology, section" } @for lock in report.locks() { th { (lock) } } }
            @for (topology, section) in places(report) {
                tr {
                    td { (topology) " · " (section) }
                    @for lock in report.locks() {
                        @let best = report.winner(topology, section) == Some(lock);
                        td class=[best.then_some("best")] { (rate(report.row(topology, section, lock))) }
                    }
                }
            }
        } }
    }
}

fn rate(row: Option<&Row>) -> Markup {
    let Some(row) = row else { return html! { "-" } };
    let Some(rate) = row.figures.get("rate") else {
        return html! { span class="failed" { "failed" } };
    };
    let whole = |value: f64| grouped(value.round() as u64);
    html! {
        (whole(rate.median))
        @if rate.min < rate.max { br; small { (whole(rate.min)) "–" (whole(rate.max)) } }
        @if let Some(ratio) = row.against_baseline {
            br; small { (format!("{ratio:.2}x")) @if let Some(p) = row.p.filter(|_| row.seeds > 1) { (format!(" p={p:.2}")) } }
        }
    }
}

fn looks(report: &Report) -> Vec<(Lock, Look)> {
    report.locks().into_iter().enumerate().map(|(n, lock)| (lock, Look::of(n, lock))).collect()
}

fn legend(report: &Report) -> Markup {
    html! {
        ul class="legend" {
            @for (lock, look) in looks(report) {
                li { svg width="14" height="14" viewBox="0 0 14 14" { (look.mark(7.0, 7.0)) } " " (lock) }
            }
        }
    }
}

/// The numbers of pCPUs on which loads can be compared.
fn pcpu_counts(report: &Report) -> BTreeSet<u32> {
    report.topologies().into_iter().filter_map(pcpus).collect()
}

const RATE: Axis = Axis { name: "acquisitions/s", label: count, decades: true };
const LOAD: Axis = Axis { name: "vCPUs a pCPU", label: count, decades: false };
const WAIT: Axis = Axis { name: "waited longer than", label: time, decades: true };
const LONGEST: Axis = Axis { name: "longest wait", label: time, decades: true };
const SHARE: Axis = Axis { name: "share", label: percent, decades: true };

fn count(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e3 => format!("{}k", v / 1e3),
        v => format!("{v}"),
    }
}

fn time(ns: f64) -> String {
    duration(ns.round() as u64).replace(".00", "").replace(".0 ", " ")
}

fn percent(share: f64) -> String {
    format!("{}%", (share * 1e8).round() / 1e6)
}

/// Throughput against overcommit for one section, on so many pCPUs. Nothing where there is only one load to show.
pub fn overcommit(report: &Report, section: Section, count: u32, names: bool) -> Markup {
    // A neighbour without a lock is load of another kind, and PVH's clock does not compare with PV's.
    let topologies: Vec<&str> =
        report.topologies().into_iter().filter(|name| pcpus(name) == Some(count)).collect();
    let series = looks(report).into_iter().map(|(lock, look)| {
        let mut points: Vec<(f64, f64)> = topologies
            .iter()
            .filter_map(|topology| {
                let load = load(topology)?;
                Some((load, report.row(topology, section, lock)?.figures.get("rate")?.median))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series { name: lock.to_string(), look, points, line: true }
    });
    if topologies.len() < 2 {
        return html! {};
    }
    let many = if count == 1 { "" } else { "s" };
    chart(
        &format!("{section} us · {count} pCPU{many}"),
        &LOAD,
        &RATE,
        &series.collect::<Vec<_>>(),
        names,
    )
}

/// Throughput against the longest wait, of one topology and section.
pub fn tradeoff(report: &Report, topology: &str, section: Section, names: bool) -> Markup {
    let series = looks(report).into_iter().filter_map(|(lock, look)| {
        let figures = &report.row(topology, section, lock)?.figures;
        let points = vec![(figures.get("rate")?.median, figures.get("longest_ns")?.median)];
        Some(Series { name: lock.to_string(), look, points, line: false })
    });
    chart(
        &format!("{topology} · {section} us"),
        &RATE,
        &LONGEST,
        &series.collect::<Vec<_>>(),
        names,
    )
}

/// What share of the acquisitions waited longer than a time.
pub fn waits(report: &Report, topology: &str, section: Section) -> Markup {
    let series = looks(report).into_iter().filter_map(|(lock, look)| {
        let of =
            |cell: &Cell| cell.topology == topology && cell.section == section && cell.lock == lock;
        let figures =
            report.cells.iter().filter(|d| of(&d.cell)).find_map(|d| d.outcome.as_ref().ok())?;
        let all: u64 = figures.latency.iter().map(|(_, n)| n).sum();
        let mut longer = all;
        let mut points = Vec::new();
        for (from, n) in &figures.latency {
            let share = |count: u64| count as f64 / all.max(1) as f64;
            points.extend([(*from as f64, share(longer)), (*from as f64, share(longer - n))]);
            longer -= n;
        }
        Some(Series { name: lock.to_string(), look, points, line: true })
    });
    chart(&format!("{topology} · {section} us"), &WAIT, &SHARE, &series.collect::<Vec<_>>(), false)
}

fn costs(report: &Report) -> Markup {
    let columns = ["hypercalls", "kicks", "waking_kicks", "blocks", "kicks_per_blocked"];
    html! {
        p class="soft" { "Of an acquisition, from the hypervisor's trace; waking kicks of a blocked one by the guest's count. "
            "Shares of the vCPUs' time by Xen's account; spun: running, but not at work." }
        div class="wide" { table {
            tr { th { "topology, section, lock" } th { "hypercalls" } th { "kicks" } th { "waking" } th { "blocks" }
                th { "kicks/blocked" } th { "spun" } th { "blocked" } th { "stolen" } th { "Jain" } th { "p99" } th { "p99.9" } th { "longest" } }
            @for row in &report.rows {
                tr {
                    td { (row.topology) " · " (row.section) " · " (row.lock) }
                    @for name in columns { td { (fine(row.figures.get(name))) } }
                    @for name in ["spun", "blocked", "stolen"] { td { (share(row.figures.get(name))) } }
                    td { (fine(row.figures.get("jain"))) }
                    @for name in ["p99_ns", "p999_ns", "longest_ns"] {
                        td { (row.figures.get(name).map_or("-".to_owned(), |s| duration(s.median as u64))) }
                    }
                }
            }
        } }
    }
}

fn fine(spread: Option<&Spread>) -> String {
    spread.map_or("-".to_owned(), |spread| format!("{:.3}", spread.median))
}

fn share(spread: Option<&Spread>) -> String {
    spread.map_or("-".to_owned(), |spread| format!("{:.0} %", spread.median * 100.0))
}

fn neighbour(report: &Report) -> Markup {
    let rows: Vec<(&Row, f64)> = report
        .rows
        .iter()
        .filter_map(|row| Some((row, row.figures.get("neighbour")?.median)))
        .collect();
    html! {
        @if !rows.is_empty() {
            h2 { "What the neighbour gets" }
            p class="soft" { "Work of a domain that only computes beside the lock's, in turns a second; what of it was lost against running alone; and against what it gets beside the baseline." }
            div class="wide" { table {
                tr { th { "topology, section" } th { "lock" } th { "turns/s" } th { "lost" } th { "against the baseline" } }
                @for (row, turns) in &rows {
                    @let base = report.row(&row.topology, row.section, report.baseline).and_then(|r| r.figures.get("neighbour"));
                    tr {
                        td { (row.topology) " · " (row.section) } td { (row.lock) } td { (grouped(turns.round() as u64)) }
                        td { (row.figures.get("neighbour_loss").map_or("-".to_owned(), |s| format!("{:.1} %", s.median * 100.0))) }
                        td { (base.map_or("-".to_owned(), |base| format!("{:+.1} %", (turns / base.median - 1.0) * 100.0))) }
                    }
                }
            } }
        }
    }
}

/// What every figure rests on.
fn grounds(report: &Report) -> String {
    let figures = report.cells.iter().filter_map(|done| done.outcome.as_ref().ok());
    let speeds: Vec<f64> = figures.clone().map(|f| f.work_turns_per_ms.0 as f64).collect();
    let speed = Spread::of(&speeds).map_or(String::new(), |speed| {
        format!("Turns of work in a millisecond, over all cells: {} to {}. ", speed.min, speed.max)
    });
    let mut loops: Vec<String> = report
        .locks()
        .into_iter()
        .filter_map(|lock| {
            let of = report.cells.iter().filter(|d| d.cell.lock == lock);
            let costs: Vec<f64> = of
                .filter_map(|d| Some(d.outcome.as_ref().ok()?.loop_ns as f64))
                .filter(|ns| *ns > 0.0)
                .collect();
            Some(format!("{lock} {} ns", Spread::of(&costs)?.median))
        })
        .collect();
    loops.dedup();
    format!("{speed}The loop around an uncontended lock costs: {}.", loops.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn the_page_shows_every_lock_and_fetches_nothing() {
        let report = report(&[("linux", 1000.0), ("adaptive", 2000.0)]);
        let page = page(&report);
        for words in [
            "Winners",
            "adaptive",
            "2.00x",
            "p=0.10",
            "longest wait",
            "pvlab bench --topology 4-on-1",
        ] {
            assert!(page.contains(words), "{words}");
        }
        assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("@import"));
        let links = page.matches("http").count();
        assert_eq!(links, page.matches("http://www.w3.org/2000/svg").count());
    }

    #[test]
    fn labels_are_short() {
        assert_eq!([1e3, 1e6, 10.0].map(count), ["1k", "1M", "10"]);
        assert_eq!([1e3, 1e7].map(time), ["1 us", "10 ms"]);
        assert_eq!([1.0, 0.001].map(percent), ["100%", "0.1%"]);
    }
}
