//! Counts and times as comma-separated values.

use std::io::{self, Write};

use crate::summary::{Clock, Distribution, Summary, Times};

/// Writes one line for each vCPU, after a line with the columns' names. Times and latencies are in
/// nanoseconds, or in TSC ticks when the frequency is unknown; the column `unit` says which. A
/// count's certainty stands in the JSON output.
///
/// # Errors
/// Whatever `out` returns.
pub fn write(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let mut header = true;
    for domain in &summary.domains {
        for vcpu in &domain.vcpus {
            let mut cells = vec![
                ("domain", domain.id.to_string()),
                ("vcpu", vcpu.id.to_string()),
                ("coverage_percent", format!("{:.3}", vcpu.coverage_percent)),
                ("unit", if summary.clock.hz.is_some() { "ns" } else { "ticks" }.into()),
            ];
            for (name, count) in vcpu.counts.named() {
                cells.push((name, count.value.to_string()));
            }
            for (name, ticks) in times(&vcpu.times) {
                cells.push((name, time(ticks, &summary.clock)));
            }
            let latencies = &vcpu.latencies;
            for (names, of) in [
                (
                    ["kick_to_wake_p50", "kick_to_wake_p99", "kick_to_wake_max"],
                    &latencies.kick_to_wake,
                ),
                (["wake_to_run_p50", "wake_to_run_p99", "wake_to_run_max"], &latencies.wake_to_run),
                (["kick_to_run_p50", "kick_to_run_p99", "kick_to_run_max"], &latencies.kick_to_run),
                (["wait_p50", "wait_p99", "wait_max"], &latencies.wait),
            ] {
                cells.extend(quantiles(names, of, &summary.clock));
            }
            for (names, of) in [
                (["marked_blocked", "marked_waits", "marked_waking_kicks"], vcpu.marked.as_ref()),
                (
                    ["inferred_blocked", "inferred_waits", "inferred_waking_kicks"],
                    Some(&vcpu.inferred),
                ),
            ] {
                let values = of.map(|of| [of.blocked, of.waits, of.waking_kicks]);
                for (at, name) in names.into_iter().enumerate() {
                    cells.push((name, values.map_or_else(String::new, |v| v[at].to_string())));
                }
            }
            if std::mem::take(&mut header) {
                line(out, cells.iter().map(|(name, _)| *name))?;
            }
            line(out, cells.iter().map(|(_, value)| value.as_str()))?;
        }
    }
    Ok(())
}

/// No cell needs quotes: all are numbers or fixed names.
fn line<'a>(out: &mut dyn Write, cells: impl Iterator<Item = &'a str>) -> io::Result<()> {
    let cells: Vec<_> = cells.collect();
    writeln!(out, "{}", cells.join(","))
}

fn time(ticks: u64, clock: &Clock) -> String {
    clock.ns(ticks).map_or_else(|| ticks.to_string(), |ns| format!("{ns:.0}"))
}

fn quantiles(
    [p50, p99, max]: [&'static str; 3],
    of: &Distribution,
    clock: &Clock,
) -> [(&'static str, String); 3] {
    [(p50, time(of.p50, clock)), (p99, time(of.p99, clock)), (max, time(of.max, clock))]
}

fn times(times: &Times) -> [(&'static str, u64); 9] {
    [
        ("running", times.running),
        ("stolen", times.stolen),
        ("stolen_after_wake", times.stolen_after_wake),
        ("blocked", times.blocked),
        ("blocked_in_poll", times.blocked_in_poll),
        ("offline", times.offline),
        ("spinning", times.spinning),
        ("kicker_stolen", times.kicker_stolen),
        ("unknown", times.unknown),
    ]
}
