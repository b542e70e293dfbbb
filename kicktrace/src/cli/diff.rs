//! `kicktrace diff`: two traces side by side.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::input::{Input, Reading, is_dash};
use super::sink::terminal_width;
use super::{Failure, judged, say};
use crate::compare::{Change, Estimate, RankTest, compare};
use crate::output::columns::{aligned, left, right, wrap};
use crate::summary::Certainty;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The trace to compare with
    pub(super) before: PathBuf,
    /// The trace to judge
    pub(super) after: PathBuf,
    #[command(flatten)]
    pub(super) reading: Reading,
    /// End with exit code 1 if a figure rose ('NAME>PERCENT') or fell ('NAME<-PERCENT') by more
    /// than so many percent, with its whole 95 % interval (may be repeated)
    #[arg(long, value_name = "GATE", value_parser = parse_gate)]
    fail_if: Vec<Gate>,
    /// Print the comparison as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug)]
struct Gate {
    name: String,
    above: bool,
    percent: f64,
    text: String,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if [&args.before, &args.after].into_iter().all(|file| is_dash(file)) {
        let text = "standard input holds one trace: save the other one to a file";
        return Err(Failure::Usage(text.into()));
    }
    if args.reading.domains.contains(&0) {
        let text = "--dom 0: diff compares guests, and leaves dom0 out: name a guest's number";
        return Err(Failure::Usage(text.into()));
    }
    let inputs = [&args.before, &args.after]
        .map(|file| Input { file: file.clone(), reading: args.reading.clone() });
    let [first, second] = &inputs;
    let (before, after) = (first.summarise()?, second.summarise()?);
    let changes = compare(&before, &after);
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        serde_json::to_writer_pretty(&mut out, &changes)?;
        writeln!(out)?;
    } else {
        table(&mut out, &changes, terminal_width().unwrap_or(usize::MAX))?;
    }
    out.flush()?;
    match (before.clock.hz, after.clock.hz) {
        (Some(_), Some(_)) => {}
        (None, None) => {
            say("both frequencies are unknown: latencies are in ticks, which compare on the \
                             same host only (see --cpu-hz)")
        }
        (hz, _) => say(format_args!(
            "{}: frequency unknown: rates and latencies are left out (see --cpu-hz)",
            if hz.is_none() { first } else { second }.name()
        )),
    }
    // All that is to be said is said, and what is wrong with the traces comes before what they
    // show.
    let gates = judge(&args.fail_if, &changes);
    let done = [judged(first, &before), judged(second, &after), gates];
    let mut failed = done.into_iter().filter_map(Result::err);
    let Some(failure) = failed.next() else { return Ok(()) };
    failed.for_each(say);
    Err(failure)
}

/// Whether all gates hold.
fn judge(gates: &[Gate], changes: &[Change]) -> Result<(), Failure> {
    let mut failed = Vec::new();
    for gate in gates {
        let Some(change) = changes.iter().find(|change| change.name == gate.name) else {
            let names: Vec<_> = changes.iter().map(|change| change.name).collect();
            return Err(Failure::Usage(format!(
                "--fail-if {}: no such figure in both traces; there are: {}",
                gate.text,
                names.join(", ")
            )));
        };
        // Without an interval the figure itself is judged.
        let Estimate { value, low, high } = change.percent;
        let (low, high) = (low.unwrap_or(value), high.unwrap_or(value));
        if if gate.above { low > gate.percent } else { high < gate.percent } {
            failed.push(format!("{} ({})", gate.text, interval(change.percent)));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::Check(failed.join("; "))) }
}

/// The interval of a change in percent; the change itself where there is none.
fn interval(of: Estimate) -> String {
    match (of.low, of.high) {
        (Some(low), Some(high)) => format!("{low:+.1} to {high:+.1} %"),
        (Some(low), None) => format!("{low:+.1} % or more"),
        (None, Some(high)) => format!("{high:+.1} % or less"),
        (None, None) => change(of.value),
    }
}

fn change(percent: f64) -> String {
    if percent.is_finite() { format!("{percent:+.1} %") } else { "from nothing".into() }
}

/// One line a figure; where the terminal has no room for that, three.
fn table(out: &mut dyn Write, changes: &[Change], most: usize) -> io::Result<()> {
    if changes.is_empty() {
        return writeln!(out, "nothing to compare: not both traces have a guest");
    }
    let mut rows =
        vec![["", "before", "", "after", "", "change (95 % interval)"].map(String::from)];
    for of in changes {
        let mark = if of.certainty == Certainty::Exact { "" } else { "~" };
        let side = |side: Estimate| {
            let error = side.error().map_or_else(|| "?".into(), |error| format!("{error:.3}"));
            [format!("{mark}{:.3}", side.value), format!("+-{error} {}", of.unit)]
        };
        let ([before, before_error], [after, after_error]) = (side(of.before), side(of.after));
        let bounds = match of.percent {
            Estimate { low: None, high: None, .. } => "no interval".into(),
            percent => interval(percent),
        };
        let verdict = match (of.is_significant(), of.percent.low.or(of.percent.high)) {
            (true, _) => "",
            (false, Some(_)) => "; no significant change",
            (false, None) => "; nothing shows how much is chance",
        };
        let changed = format!("{} ({bounds}){verdict}", change(of.percent.value));
        rows.push([of.name.into(), before, before_error, after, after_error, changed]);
    }
    let columns = [left(0, 0), right(2, 0), left(1, 0), right(2, 0), left(1, 0), left(2, 0)];
    let mut lines = aligned(&rows, &columns);
    if lines.iter().any(|line| line.chars().count() > most) {
        lines = rows.iter().map(in_three_lines).collect();
        lines[0] = "before and after; change (95 % interval)".into();
    }
    // Below a latency's median stands the test of all its values.
    let (head, lines) = lines.split_first().map_or(("", &[][..]), |(head, rest)| (head, rest));
    writeln!(out, "{head}")?;
    for (line, of) in lines.iter().zip(changes) {
        writeln!(out, "{line}")?;
        let mark = if of.certainty == Certainty::Exact { "" } else { "~" };
        if let Some(RankTest { before, after, longer, p_value }) = of.rank {
            let p = if p_value < 0.001 { "< 0.001".into() } else { format!("= {p_value:.3}") };
            let test = format!(
                "  all {before} and {after} values: one after is longer than one before with \
                 probability {mark}{longer:.3} (rank test: p {p})"
            );
            writeln!(out, "{}", wrap(&test, most, 4))?;
        }
    }
    Ok(())
}

/// A row of the table below its name.
fn in_three_lines(
    [name, before, before_error, after, after_error, changed]: &[String; 6],
) -> String {
    let after_error = after_error.trim_end();
    format!("{name}\n  {before} {before_error}   {after} {after_error}\n  {changed}")
}

fn parse_gate(text: &str) -> Result<Gate, String> {
    let parse = || {
        let at = text.find(['<', '>'])?;
        let percent = text[at + 1..].trim();
        let percent = percent.strip_suffix('%').unwrap_or(percent).trim_end();
        let percent = percent.parse().ok().filter(|percent: &f64| percent.is_finite())?;
        let above = text.as_bytes()[at] == b'>';
        let name = text[..at].trim();
        (!name.is_empty()).then(|| Gate { name: name.into(), above, percent, text: text.into() })
    };
    parse().ok_or_else(|| {
        "NAME>PERCENT or NAME<PERCENT, such as 'waking_kicks_per_acquisition>5' (rose by more than 5 %) or \
         'waits_per_second<-10' (fell by more than 10 %)"
            .into()
    })
}
