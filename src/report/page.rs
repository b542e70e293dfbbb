//! The report as one HTML file that needs nothing beside itself.
//!
//! Owns the page and its plots. The figures are the table's; the page adds what a table cannot show:
//! how kicks and waits are distributed. It has no script, follows the reader's light or dark theme, and
//! fetches nothing.

use experiment::record::Histogram;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Results;
use super::figures::{Column, ROWS, duration, notes};

/// As many colours as there are policies; chosen to stay apart for colour-blind readers (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#777777"];

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #666; --line: #ccc; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #a0a0a0; --line: #444; --paper: #16181c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
       margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); }
th { text-align: left; } td.name { white-space: pre; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.source, .soft { color: var(--soft); } .problem { color: #d62728; font-weight: bold; }
figure { margin: 2rem 0; } figcaption { color: var(--soft); max-width: 60rem; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg .soft { fill: var(--soft); } svg .axis { stroke: var(--line); fill: none; }
";

/// The whole page.
pub fn page(results: &Results) -> String {
    let columns: Vec<Column> = results.policies.iter().map(Column::new).collect();
    let notes = notes(results, &columns);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "pvlab: " (results.scenario) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (results.scenario) }
                (table(&columns))
                ul {
                    @for note in &notes {
                        li class=[note.starts_with("PROBLEM").then_some("problem")] { (note) }
                    }
                }
                (kicks(&columns))
                (waits(&columns))
                (versions(results))
            }
        }
    };
    page.into_string()
}

fn table(columns: &[Column]) -> Markup {
    html! {
        table {
            tr { th {} th { "source" } @for column in columns { th { (column.result.policy) } } }
            @for (name, source, figure) in ROWS {
                tr {
                    td class="name" { (name) }
                    td class="source" { (source) }
                    @for column in columns { td class="number" { (figure(column).unwrap_or_else(|| "-".into())) } }
                }
            }
        }
    }
}

/// How many waking kicks a blocked acquisition took: a group of bars for each policy.
fn kicks(columns: &[Column]) -> Markup {
    const BAR: f64 = 26.0;
    const LEFT: f64 = 150.0;
    const WIDTH: f64 = 620.0;
    let shown: Vec<_> = columns
        .iter()
        .zip(COLOURS)
        .filter_map(|(column, colour)| Some((column, column.acquired()?, colour)))
        .filter(|(_, acquired, _)| acquired.blocked > 0)
        .collect();
    if shown.is_empty() {
        return html! {};
    }
    let group = BAR * 4.0 + 34.0;
    let height = group * shown.len() as f64 + 10.0;
    html! {
        h2 { "Waking kicks of a blocked acquisition" }
        figure {
            svg viewBox=(format!("0 0 {} {height}", LEFT + WIDTH + 130.0)) width="900" role="img" {
                @for (index, (column, acquired, colour)) in shown.iter().enumerate() {
                    @let top = group * index as f64 + 20.0;
                    text x="0" y=(top) { (column.result.policy) }
                    @for (kicks, count) in acquired.by_waking_kicks.iter().enumerate() {
                        @let y = top + 8.0 + BAR * kicks as f64;
                        @let share = *count as f64 / acquired.by_waking_kicks.iter().sum::<u64>().max(1) as f64;
                        text class="soft" x=(LEFT - 10.0) y=(y + 16.0) text-anchor="end" { (kick_label(kicks)) }
                        rect x=(LEFT) y=(y) width=(format!("{:.1}", share * WIDTH)) height=(BAR - 6.0) fill=(colour) {}
                        text x=(format!("{:.1}", LEFT + share * WIDTH + 8.0)) y=(y + 16.0) {
                            (count) " (" (format!("{:.1} %", share * 100.0)) ")"
                        }
                    }
                }
            }
            figcaption {
                "From the hypervisor's trace: of the acquisitions that blocked at least once, how many were woken by how \
                 many kicks. Kicks that woke nobody are not among them."
            }
        }
    }
}

fn kick_label(kicks: usize) -> &'static str {
    ["no kick", "1 kick", "2 kicks", "3 or more"][kicks]
}

/// What share of acquisitions waited longer than a time: both axes logarithmic.
fn waits(columns: &[Column]) -> Markup {
    const LEFT: f64 = 70.0;
    const TOP: f64 = 20.0;
    const WIDTH: f64 = 700.0;
    const HEIGHT: f64 = 320.0;
    let shown: Vec<_> =
        columns.iter().zip(COLOURS).filter(|(column, _)| column.latency.count() > 0).collect();
    let Some(longest) = shown.iter().map(|(column, _)| column.latency.max()).max() else {
        return html! {};
    };
    let most = shown.iter().map(|(column, _)| column.latency.count()).max().unwrap_or(1);
    // Whole decades: from 100 ns, and down to one acquisition of the most numerous.
    let (first, last) = (2.0, (longest.max(1_000) as f64).log10().ceil());
    let decades = (most as f64).log10().ceil().max(1.0);
    let x = |ns: f64| LEFT + (ns.max(100.0).log10() - first) / (last - first) * WIDTH;
    let y = |share: f64| TOP - share.log10().max(-decades) / decades * HEIGHT;
    html! {
        h2 { "Waits for the lock" }
        figure {
            svg viewBox=(format!("0 0 {} {}", LEFT + WIDTH + 150.0, TOP + HEIGHT + 50.0)) width="920" role="img" {
                @for decade in first as i32..=last as i32 {
                    @let at = x(10f64.powi(decade));
                    path class="axis" d=(format!("M{at:.1} {TOP}V{}", TOP + HEIGHT)) {}
                    text class="soft" x=(format!("{at:.1}")) y=(TOP + HEIGHT + 20.0) text-anchor="middle" {
                        (power_of_ten(decade as u32))
                    }
                }
                @for decade in 0..=decades as i32 {
                    @let at = y(10f64.powi(-decade));
                    path class="axis" d=(format!("M{LEFT} {at:.1}H{}", LEFT + WIDTH)) {}
                    text class="soft" x=(LEFT - 8.0) y=(format!("{:.1}", at + 4.0)) text-anchor="end" {
                        (percent(decade as u32))
                    }
                }
                @for (index, (column, colour)) in shown.iter().enumerate() {
                    path d=(curve(&column.latency, x, y)) fill="none" stroke=(colour) stroke-width="2" {}
                    @let at = TOP + 14.0 + 20.0 * index as f64;
                    rect x=(LEFT + WIDTH + 12.0) y=(at - 10.0) width="12" height="12" fill=(colour) {}
                    text x=(LEFT + WIDTH + 30.0) y=(at) { (column.result.policy) }
                }
            }
            figcaption {
                "By the guests' clocks: the share of acquisitions (left) that waited longer than a time (below), from the call \
                 of lock to owning it. Both axes are logarithmic; lower is better."
            }
        }
    }
}

/// A staircase down from the upper left: after each bucket, the share that waited longer.
fn curve(latency: &Histogram, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let all = latency.count() as f64;
    let mut longer = latency.count();
    let mut path = format!("M{:.1} {:.1}", x(0.0), y(1.0));
    for (from, count) in latency.buckets() {
        path.push_str(&format!("H{:.1}", x(from as f64)));
        longer = longer.saturating_sub(count);
        if longer == 0 {
            // The last step would go down for ever on a logarithmic axis.
            path.push_str(&format!("H{:.1}V{:.1}", x(latency.max() as f64), y(1e-12)));
            break;
        }
        path.push_str(&format!("V{:.1}", y(longer as f64 / all)));
    }
    path
}

fn power_of_ten(decade: u32) -> String {
    let text = duration(10u64.saturating_pow(decade));
    text.replace(".00", "").replace(".0", "")
}

fn percent(decade: u32) -> String {
    match decade {
        0 => "100 %".to_owned(),
        1 => "10 %".to_owned(),
        _ => format!("{:.*} %", decade as usize - 2, 100.0 / 10f64.powi(decade as i32)),
    }
}

fn versions(results: &Results) -> Markup {
    let text = serde_json::to_string_pretty(&results.versions).unwrap_or_default();
    html! {
        h2 { "Made with" }
        p { "Mode: " (format!("{:?}", results.mode).to_lowercase()) "; settings: "
            @if results.settings.is_empty() { "the scenario's own" } @else { (results.settings.join(" ")) }
            ". The files beside this page hold everything it was made from."
        }
        details { summary { "Versions" } pre { (text) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_goes_down_by_each_buckets_share_and_ends_at_the_longest_wait() {
        let mut latency = Histogram::default();
        [4, 4, 8].into_iter().for_each(|ns| latency.record(ns));
        let path = curve(&latency, |ns| ns, |share| share * 30.0);
        assert_eq!(path, "M0.0 30.0H4.0V10.0H8.0H8.0V0.0");
    }

    #[test]
    fn axes_are_labelled_in_words_people_use() {
        assert_eq!(
            ["100 ns", "1 us", "10 us", "1 ms", "10 s"],
            [2, 3, 4, 6, 10].map(power_of_ten)[..]
        );
        assert_eq!(["100 %", "10 %", "1 %", "0.1 %"], [0, 1, 2, 3].map(percent)[..]);
    }
}
