//! `kicktrace diff`: two traces side by side.

use std::io::{self, BufWriter, Write};

use clap::Args as ClapArgs;

use super::Failure;
use super::input::{Input, Reading};
use crate::compare::{Change, Estimate, RankTest, compare};
use crate::summary::Certainty;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The trace to compare with
    before: String,
    /// The trace to judge
    after: String,
    #[command(flatten)]
    pub(super) reading: Reading,
    /// End with exit code 1 if a figure rose (NAME>PERCENT) or fell (NAME<PERCENT) by more than so
    /// many percent, beyond its 95 % interval (may be repeated)
    #[arg(long, value_name = "NAME>PERCENT", value_parser = parse_gate)]
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
    if [&args.before, &args.after].into_iter().all(|file| file == "-") {
        let text = "standard input holds one trace: save the other one to a file";
        return Err(Failure::Usage(text.into()));
    }
    let summary =
        |file: &String| Input { file: file.clone(), reading: args.reading.clone() }.summarise();
    let (before, after) = (summary(&args.before)?, summary(&args.after)?);
    let changes = compare(&before, &after);
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        serde_json::to_writer_pretty(&mut out, &changes)?;
        writeln!(out)?;
    } else {
        table(&mut out, &changes)?;
    }
    out.flush()?;
    match (before.clock.hz, after.clock.hz) {
        (Some(_), Some(_)) => {}
        (None, None) => eprintln!(
            "kicktrace: both frequencies are unknown: latencies are in ticks, which compare on the same \
             host only (see --cpu-hz)"
        ),
        (hz, _) => eprintln!(
            "kicktrace: {}: frequency unknown: rates and latencies are left out (see --cpu-hz)",
            if hz.is_none() { &args.before } else { &args.after }
        ),
    }
    for (file, summary) in [(&args.before, &before), (&args.after, &after)] {
        for warning in &summary.warnings {
            eprintln!("kicktrace: {file}: {}: {warning}", summary.verdict.name());
        }
    }
    for (file, summary) in [(&args.before, &before), (&args.after, &after)] {
        if let Some(cut) = summary.reading.truncated {
            return Err(Failure::Cut { name: file.clone(), cut });
        }
    }
    let mut failed = Vec::new();
    for gate in &args.fail_if {
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
            failed.push(format!("{} ({low:+.1} to {high:+.1} %)", gate.text));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::Check(failed.join("; "))) }
}

fn table(out: &mut dyn Write, changes: &[Change]) -> io::Result<()> {
    writeln!(out, "{:<30}{:>32}{:>32}   change in percent (95 % interval)", "", "before", "after")?;
    for change in changes {
        let mark = if change.certainty == Certainty::Exact { "" } else { "~" };
        let side = |of: Estimate| {
            let unit = change.unit;
            let error = of.error().map_or_else(|| "+-?".into(), |error| format!("+-{error:.3}"));
            format!("{mark}{:.3} {error} {unit}", of.value)
        };
        let Estimate { value, low, high } = change.percent;
        let interval = match (low, high) {
            (Some(low), Some(high)) => format!("({low:+.1} to {high:+.1})"),
            _ => "(no interval)".into(),
        };
        writeln!(
            out,
            "{:<30}{:>32}{:>32}   {value:+.1} {interval}{}",
            change.name,
            side(change.before),
            side(change.after),
            match (change.is_significant(), low.is_some() && high.is_some()) {
                (true, _) => "",
                (false, true) => "  no significant change",
                (false, false) => "  nothing tells how much is chance",
            }
        )?;
        if let Some(RankTest { before, after, longer, p_value }) = change.rank {
            let p = if p_value < 0.001 { "< 0.001".into() } else { format!("= {p_value:.3}") };
            writeln!(
                out,
                "  all {before} and {after} values: one after is longer than one before with \
                 probability {mark}{longer:.3} (rank test: p {p})"
            )?;
        }
    }
    if changes.is_empty() {
        writeln!(out, "nothing to compare: no guest waits in both traces")?;
    }
    Ok(())
}

fn parse_gate(text: &str) -> Result<Gate, String> {
    let parse = || {
        let at = text.find(['<', '>'])?;
        let percent = text[at + 1..].trim().trim_end_matches('%').parse().ok()?;
        let above = text.as_bytes()[at] == b'>';
        Some(Gate { name: text[..at].trim().into(), above, percent, text: text.into() })
    };
    parse().ok_or_else(|| {
        "NAME>PERCENT or NAME<PERCENT, such as 'waking_kicks_per_acquisition>5'".into()
    })
}
