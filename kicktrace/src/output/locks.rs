//! Locks one by one and acquisitions one by one, as the guests marked them: table and CSV.
//!
//! Every figure here is exact: a guest that marks names the lock of each wait and the end of each
//! acquisition, and the waits and wakes themselves are Xen's own records.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::ops::Range;

use super::columns::{Column, left, right, selected, wrap};
use crate::analysis::{AcquisitionStory, VcpuId};
use crate::summary::{Clock, Distribution, Domain, Lock, LongestWait, Summary};

/// Columns the table needs with the histograms and the longest waits.
const WHOLE: usize = 172;

/// And with all its counts.
const COUNTS: usize = 104;

/// The table for a terminal of 60 columns.
const NARROW: [&str; 5] = ["lock", "blocked", "kicks", "per acq.", "p99"];

/// A table of the locks of `domain`, `most` of them; empty if it marked none. In fewer than 172
/// columns, if that is a limit, histograms and longest waits are left out, in fewer than 104 some
/// counts.
#[must_use]
pub fn table(
    domain: &Domain,
    clock: &Clock,
    first_tsc: u64,
    most: usize,
    columns: Option<usize>,
) -> String {
    let mut out = String::new();
    if domain.locks.is_empty() {
        return out;
    }
    let unit = if clock.hz.is_some() { "us" } else { "ticks" };
    let narrow = columns.is_some_and(|columns| columns < COUNTS);
    let whole = columns.is_none_or(|columns| columns >= WHOLE);
    let octaves = octaves(&domain.locks);
    let mut heads = vec![
        "lock", "vCPUs", "blocked", "waits", "kicks", "per acq.", "twice", "wait p50", "p99", "max",
    ];
    let mut shape = vec![
        left(2, 12),
        right(1, 5),
        right(1, 8),
        right(1, 8),
        right(1, 8),
        right(1, 8),
        right(1, 7),
        right(1, 12),
        right(1, 12),
        right(1, 12),
    ];
    if whole {
        heads.extend(["waits", "longest"]);
        shape.extend([left(2, 5), left(2, 0)]);
    }
    let shown = |name: &str| !narrow || NARROW.contains(&name);
    let last = heads.iter().rposition(|name| shown(name)).unwrap_or(0);
    let head = |(at, name): (usize, &&str)| match at == last {
        true => format!("{name} ({unit})"),
        false => (*name).into(),
    };
    let mut rows: Vec<Vec<String>> = vec![heads.iter().enumerate().map(head).collect()];
    for of in domain.locks.iter().take(most) {
        let acquired = &of.acquisitions;
        let mut row = vec![
            name(of),
            of.vcpus.to_string(),
            acquired.blocked.to_string(),
            of.waits.to_string(),
            of.waits_kicked.to_string(),
            acquired.waking_kicks_per_blocked.map_or("-".into(), |each| format!("{each:.3}")),
            acquired.slept_twice.to_string(),
        ];
        row.extend([of.wait.p50, of.wait.p99, of.wait.max].map(|ticks| time(ticks, clock)));
        if whole {
            row.push(bars(&of.wait, octaves.clone()));
            row.push(of.longest.map_or_else(String::new, |of| longest(&of, first_tsc, clock)));
        }
        rows.push(row);
    }
    let keep: Vec<_> = (0..heads.len()).filter(|&at| shown(heads[at])).collect();
    for line in selected(&rows, &shape, &keep) {
        let _ = writeln!(out, "{line}");
    }
    if domain.locks.len() > most {
        let more = domain.locks.len() - most;
        let _ = writeln!(out, "  ... and {more} more locks (kicktrace locks)");
    }
    out
}

/// Whose wait was the longest, when, and who ended it.
fn longest(of: &LongestWait, first_tsc: u64, clock: &Clock) -> String {
    let at = clock.ns(of.blocked.saturating_sub(first_tsc));
    let at = at.map_or_else(String::new, |ns| format!(" at {:.6} s", ns / 1e9));
    let by = of.kicked_by.map_or("not kicked".into(), |by| format!("kicked by v{by}"));
    format!("v{}{at}, {by}", of.vcpu)
}

/// The doublings of time that hold all waits of these locks.
pub(super) fn octaves(locks: &[Lock]) -> Range<u32> {
    let classes = || locks.iter().flat_map(|of| &of.wait.histogram);
    let first = classes().map(|&(ticks, _)| ticks.max(1).ilog2()).min();
    let last = classes().map(|&(ticks, _)| ticks.max(1).ilog2()).max();
    first.unwrap_or(0)..last.map_or(0, |last| last + 1)
}

/// How many values each doubling of time holds.
pub(super) fn by_octave(of: &Distribution, octaves: Range<u32>) -> Vec<u64> {
    let mut counts = vec![0; octaves.len()];
    for &(ticks, count) in &of.histogram {
        let at = ticks.max(1).ilog2().saturating_sub(octaves.start) as usize;
        if let Some(sum) = counts.get_mut(at) {
            *sum += count;
        }
    }
    counts
}

/// A histogram in one line: a bar for each doubling, as tall as its share.
fn bars(of: &Distribution, octaves: Range<u32>) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let counts = by_octave(of, octaves);
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    // Rounded up: what is there is seen.
    counts.iter().map(|&count| BARS[(count * 8).div_ceil(most) as usize]).collect()
}

/// The lock as printed: the low half of its address.
#[must_use]
pub fn name(of: &Lock) -> String {
    of.lock.map_or_else(|| "all others".into(), |lock| format!("{lock:#010x}"))
}

/// Writes one line for each lock of each domain, after a line with the columns' names. Times are in
/// nanoseconds, or in ticks where the column `unit` says so. An empty `lock` stands for all locks
/// beyond the first [`MAX_LOCKS`](crate::analysis::MAX_LOCKS).
///
/// # Errors
/// Whatever `out` returns.
pub fn csv(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    writeln!(
        out,
        "domain,life,lock,certainty,unit,vcpus,blocked_acquisitions,waits,waits_kicked,waking_kicks,\
         kicked_0,kicked_1,kicked_2,kicked_3_or_more,slept_twice,kicked_again_by_same_sender,\
         kicked_again_by_other_sender,wait_p50,wait_p90,wait_p99,wait_p999,wait_max,longest_vcpu,\
         longest_at,longest_kicked_by"
    )?;
    let clock = &summary.clock;
    for domain in &summary.domains {
        for of in &domain.locks {
            let acquired = &of.acquisitions;
            let [k0, k1, k2, k3] = acquired.by_waking_kicks;
            let mut cells = vec![
                domain.id.to_string(),
                domain.life.to_string(),
                of.lock.map_or_else(String::new, |lock| format!("{lock:#010x}")),
                of.wait.certainty.name().into(),
                if clock.hz.is_some() { "ns" } else { "ticks" }.into(),
            ];
            let counts = [
                u64::from(of.vcpus),
                acquired.blocked,
                of.waits,
                of.waits_kicked,
                acquired.waking_kicks,
                k0,
                k1,
                k2,
                k3,
                acquired.slept_twice,
                acquired.kicked_again_by_same_sender,
                acquired.kicked_again_by_other_sender,
            ];
            cells.extend(counts.map(|count| count.to_string()));
            let wait = &of.wait;
            let times = [wait.p50, wait.p90, wait.p99, wait.p999, wait.max];
            cells.extend(times.map(|ticks| nanoseconds(ticks, clock)));
            match of.longest {
                Some(longest) => {
                    let at = longest.blocked.saturating_sub(summary.reading.first_tsc);
                    cells.push(longest.vcpu.to_string());
                    cells.push(nanoseconds(at, clock));
                    cells.push(longest.kicked_by.map_or_else(String::new, |by| by.to_string()));
                }
                None => cells.extend([const { String::new() }; 3]),
            }
            writeln!(out, "{}", cells.join(","))?;
        }
    }
    Ok(())
}

/// How acquisitions are written, one a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// Columns for people.
    Table,
    /// Comma-separated values.
    Csv,
    /// One JSON object a line.
    Json,
}

/// The columns of [`Lines::Table`], whose widths are fixed: lines are written as they come.
const EACH: [(&str, Column); 9] = [
    ("blocked at", right(0, 16)),
    ("vCPU", left(1, 8)),
    ("lock", left(0, 12)),
    ("waits", right(0, 6)),
    ("kicks", right(0, 6)),
    ("slept", right(0, 15)),
    ("longest", right(0, 15)),
    ("until marked", right(0, 15)),
    ("kicked by", left(2, 19)),
];

/// Those that a narrow terminal has no room for, in the order in which they are missed least.
const EACH_SPARE: [&str; 4] = ["until marked", "longest", "kicks", "kicked by"];

/// Writes acquisitions as they come.
#[derive(Debug)]
pub struct Acquisitions<W> {
    out: W,
    lines: Lines,
    /// The columns of a table that are shown, as indices into [`EACH`].
    shown: Vec<usize>,
    clock: Clock,
    first_tsc: u64,
}

impl<W: Write> Acquisitions<W> {
    /// A writer that has written the columns' names. Times in `clock`'s unit; `at` counts from
    /// `first_tsc`. A table has at most `columns` columns, if that is a limit: what has no room is
    /// left out.
    ///
    /// # Errors
    /// Whatever `out` returns.
    pub fn new(
        mut out: W,
        lines: Lines,
        clock: Clock,
        first_tsc: u64,
        columns: Option<usize>,
    ) -> io::Result<Self> {
        let unit = if clock.hz.is_some() { "us" } else { "ticks" };
        let mut shown: Vec<_> = (0..EACH.len()).collect();
        let mut gone = Vec::new();
        for name in EACH_SPARE {
            let width: usize = shown.iter().map(|&at| EACH[at].1.width()).sum();
            if columns.is_some_and(|columns| columns < width) {
                shown.retain(|&at| EACH[at].0 != name);
                gone.push(name);
            }
        }
        match lines {
            Lines::Table => {
                let mut told = format!("times in {unit}");
                if !gone.is_empty() {
                    told += &format!("; no room for {} (--json, --csv)", gone.join(", "));
                }
                writeln!(out, "{}", wrap(&told, columns.unwrap_or(usize::MAX), 2))?;
                let heads = EACH.map(|(name, _)| name.to_owned());
                writeln!(out, "{}", of_each(&shown, &heads))?;
            }
            Lines::Csv => writeln!(
                out,
                "domain,vcpu,lock,certainty,unit,blocked_at,ran_at,marked_at,slept,longest_wait,\
                 waits,waking_kicks,first_kicked_by,last_kicked_by"
            )?,
            Lines::Json => {}
        }
        Ok(Self { out, lines, shown, clock, first_tsc })
    }

    /// Writes one acquisition.
    ///
    /// # Errors
    /// Whatever `out` returns.
    pub fn write(&mut self, of: &AcquisitionStory) -> io::Result<()> {
        let clock = &self.clock;
        let since = |tsc: u64| tsc.saturating_sub(self.first_tsc);
        let vcpu = |of: Option<VcpuId>| of.map_or_else(String::new, |of| of.vcpu.to_string());
        match self.lines {
            Lines::Table => {
                let by = match (of.first_kicked_by, of.last_kicked_by) {
                    (Some(first), Some(last)) if first != last => format!("{first}, then {last}"),
                    (Some(first), _) => first.to_string(),
                    _ => "nobody".into(),
                };
                let row = [
                    time(since(of.blocked), clock),
                    of.vcpu.to_string(),
                    format!("{:#010x}", of.lock),
                    of.waits.to_string(),
                    of.waking_kicks.to_string(),
                    time(of.slept, clock),
                    time(of.longest, clock),
                    time(of.marked.saturating_sub(of.blocked), clock),
                    by,
                ];
                writeln!(self.out, "{}", of_each(&self.shown, &row))
            }
            Lines::Csv => {
                let times = [since(of.blocked), since(of.running), since(of.marked)];
                let [blocked, running, marked] = times.map(|ticks| nanoseconds(ticks, clock));
                writeln!(
                    self.out,
                    "{},{},{:#010x},{},{},{blocked},{running},{marked},{},{},{},{},{},{}",
                    of.vcpu.domain,
                    of.vcpu.vcpu,
                    of.lock,
                    of.certainty.name(),
                    if clock.hz.is_some() { "ns" } else { "ticks" },
                    nanoseconds(of.slept, clock),
                    nanoseconds(of.longest, clock),
                    of.waits,
                    of.waking_kicks,
                    vcpu(of.first_kicked_by),
                    vcpu(of.last_kicked_by),
                )
            }
            Lines::Json => {
                serde_json::to_writer(&mut self.out, of).map_err(io::Error::from)?;
                writeln!(self.out)
            }
        }
    }

    /// Hands on what is written so far.
    ///
    /// # Errors
    /// Whatever `out` returns.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The cells of one acquisition that are shown, in a line.
fn of_each(shown: &[usize], row: &[String; EACH.len()]) -> String {
    selected(&[row], &EACH.map(|(_, column)| column), shown).concat()
}

/// Microseconds, or ticks.
fn time(ticks: u64, clock: &Clock) -> String {
    clock.ns(ticks).map_or_else(|| ticks.to_string(), |ns| format!("{:.3}", ns / 1e3))
}

/// Nanoseconds, or ticks.
fn nanoseconds(ticks: u64, clock: &Clock) -> String {
    clock.ns(ticks).map_or_else(|| ticks.to_string(), |ns| format!("{ns:.0}"))
}
