//! A chart for the terminal: one row a pCPU and one a vCPU, and the kicks below.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::columns::wrap;
use super::story::Story;
use crate::analysis::{Interval, VcpuId, WaitStory};
use crate::event::Runstate;
use crate::summary::Clock;

/// Waits listed below the chart.
const WAITS: usize = 40;

/// Writes the chart, `width` columns wide, and the waits below it in lines of at most `columns`
/// columns, if that is a limit.
///
/// # Errors
/// Whatever `out` returns.
pub fn write(
    out: &mut dyn Write,
    story: &Story,
    clock: &Clock,
    width: usize,
    columns: Option<usize>,
) -> io::Result<()> {
    let Some((from, to)) = story.span() else {
        return writeln!(out, "nothing happened in this window");
    };
    let vcpus = story.vcpus();
    let ticks = (to - from).max(1) as f64;
    writeln!(
        out,
        "{} in {width} columns of {}",
        time(to - from, clock),
        time((ticks / width as f64) as u64, clock)
    )?;
    // Each column shows what lasted longest in it.
    let row = |intervals: &[&Interval], of: &dyn Fn(&Interval) -> Option<char>| -> String {
        let mut most = vec![(0.0, ' '); width];
        for (interval, sign) in intervals.iter().filter_map(|i| Some((i, of(i)?))) {
            let begin = (interval.from - from) as f64 / ticks * width as f64;
            let end = (interval.to - from) as f64 / ticks * width as f64;
            let columns = begin as usize..(end as usize + 1).min(width);
            for (column, best) in most.iter_mut().enumerate().take(columns.end).skip(columns.start)
            {
                let share = end.min((column + 1) as f64) - begin.max(column as f64);
                if share > best.0 {
                    *best = (share, sign);
                }
            }
        }
        most.into_iter().map(|(_, sign)| sign).collect()
    };
    writeln!(out, "\nwho runs on each pCPU:")?;
    let runs = |interval: &Interval| {
        (interval.state == Runstate::Running).then(|| letter(&vcpus, interval.vcpu))
    };
    for (cpu, here) in rows(story, |interval| interval.cpu) {
        writeln!(out, "  p{cpu:<6}|{}|", row(&here, &runs))?;
    }
    let most = columns.unwrap_or(usize::MAX);
    let signs = "each vCPU: # running, - runnable without a pCPU (stolen), . blocked, x offline:";
    writeln!(out, "\n{}", wrap(signs, most, 2))?;
    let state = |interval: &Interval| {
        Some(match interval.state {
            Runstate::Running => '#',
            Runstate::Runnable => '-',
            Runstate::Blocked => '.',
            Runstate::Offline => 'x',
        })
    };
    for (vcpu, its) in rows(story, |interval| interval.vcpu) {
        let name = letter(&vcpus, vcpu);
        writeln!(out, "{name} {:<7}|{}|", vcpu.to_string(), row(&its, &state))?;
    }
    let mut worst: Vec<&WaitStory> = story.waits.iter().collect();
    let all = worst.len();
    worst.sort_by_key(|wait| std::cmp::Reverse(wait.running.saturating_sub(wait.blocked)));
    worst.truncate(WAITS);
    worst.sort_by_key(|wait| wait.blocked);
    writeln!(out, "\n{all} waits{}:", if all > WAITS { ", the longest" } else { "" })?;
    for wait in worst {
        let at = time(wait.blocked.saturating_sub(from), clock);
        let slept = time(wait.woken.saturating_sub(wait.blocked), clock);
        let came = time(wait.running.saturating_sub(wait.woken), clock);
        let by = match wait.kick {
            Some(kick) => format!("kicked by {:<7}", kick.by.to_string()),
            None => "woken without a kick".into(),
        };
        let mut line = format!(
            "  at {at:>13} {:<7} slept {slept:>13}, {by}, ran {came:>13} later on p{}",
            wait.vcpu.to_string(),
            wait.cpu
        );
        if wait.kicker_stolen > 0 {
            line +=
                &format!("; its kicker had been preempted for {}", time(wait.kicker_stolen, clock));
        }
        writeln!(out, "{}", wrap(&line, most, 4))?;
    }
    if story.dropped > 0 {
        writeln!(out, "{} more than fit: choose a shorter window", story.dropped)?;
    }
    Ok(())
}

/// The intervals of each row.
fn rows<K: Ord>(story: &Story, key: impl Fn(&Interval) -> K) -> BTreeMap<K, Vec<&Interval>> {
    let mut rows = BTreeMap::<K, Vec<&Interval>>::new();
    for interval in &story.intervals {
        rows.entry(key(interval)).or_default().push(interval);
    }
    rows
}

fn letter(vcpus: &[VcpuId], of: VcpuId) -> char {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let at = vcpus.binary_search(&of).unwrap_or(0);
    LETTERS.get(at).map_or('*', |&letter| char::from(letter))
}

/// A time for people.
fn time(ticks: u64, clock: &Clock) -> String {
    match clock.ns(ticks) {
        None => format!("{ticks} ticks"),
        Some(ns) if ns >= 1e9 => format!("{:.3} s", ns / 1e9),
        Some(ns) if ns >= 1e6 => format!("{:.3} ms", ns / 1e6),
        Some(ns) => format!("{:.3} us", ns / 1e3),
    }
}
