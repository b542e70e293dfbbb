//! `kicktrace check`: is this trace complete enough to count kicks?

use std::io::{self, Write};

use clap::Args as ClapArgs;
use serde::Serialize;

use super::Failure;
use super::input::Input;
use crate::Summary;
use crate::summary::{ClockSource, DomainKind};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) input: Input,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Good,
    Doubtful,
    Missing,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    what: String,
    /// What to do about it; empty when it is good.
    remedy: String,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let summary = args.input.summarise()?;
    let findings = findings(&summary);
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &findings)?;
        writeln!(out)?;
    } else {
        for finding in &findings {
            let sign = match finding.verdict {
                Verdict::Good => "good    ",
                Verdict::Doubtful => "doubtful",
                Verdict::Missing => "missing ",
            };
            writeln!(out, "{sign} {}", finding.what)?;
            if !finding.remedy.is_empty() {
                writeln!(out, "         {}", finding.remedy)?;
            }
        }
    }
    let missing = findings.iter().filter(|finding| finding.verdict == Verdict::Missing).count();
    if missing > 0 {
        return Err(Failure::Check(format!("{missing} things a kick count needs are missing")));
    }
    Ok(())
}

fn findings(summary: &Summary) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |good: bool, otherwise: Verdict, what: String, remedy: &str| {
        let (verdict, remedy) = if good { (Verdict::Good, "") } else { (otherwise, remedy) };
        findings.push(Finding { verdict, what, remedy: remedy.into() });
    };
    let (classes, reading) = (&summary.classes, &summary.reading);
    let seen = |is: bool, what: &str| format!("{what}: {}", if is { "seen" } else { "none" });
    find(
        classes.runstates,
        Verdict::Missing,
        seen(classes.runstates, "runstate changes"),
        "add 0x00021000 to the mask (xentrace -e), or trace while a vCPU runs",
    );
    find(
        classes.wakes,
        Verdict::Missing,
        seen(classes.wakes, "wakes"),
        "add 0x00028000 to the mask",
    );
    let hypercalls = classes.pv_hypercalls || classes.hvm_hypercalls;
    find(
        hypercalls,
        Verdict::Missing,
        seen(hypercalls, "hypercalls"),
        "PV guests: add 0x00201000 to the mask; PVH guests: 0x00083000 (with its subclass 2)",
    );
    let hvm = summary.domains.iter().any(|domain| domain.kind == DomainKind::Hvm);
    if hvm {
        find(
            classes.hvm_hypercalls,
            Verdict::Missing,
            seen(classes.hvm_hypercalls, "hypercalls of HVM or PVH guests"),
            "add 0x00082000 to the mask",
        );
    }
    let lost = reading.lost_records();
    find(
        lost == 0,
        Verdict::Doubtful,
        format!("lost records: {lost}; coverage {:.2} %", summary.coverage_percent),
        "larger rings (xentrace -S 1024, once per boot), fewer classes, a pCPU of its own for dom0, \
         output to tmpfs",
    );
    find(
        reading.truncated.is_none(),
        Verdict::Doubtful,
        match reading.truncated {
            Some(cut) => format!("the file is cut at byte {}", cut.offset),
            None => "the file is whole".into(),
        },
        "stop xentrace with INT or TERM and let it write its last records; look for a full disk",
    );
    find(
        summary.tsc_offsets.is_empty(),
        Verdict::Doubtful,
        match summary.tsc_offsets.len() {
            0 => "the pCPUs' TSCs are in step".into(),
            n => format!("the TSCs of {n} pCPUs are out of step"),
        },
        "use --fix-skew",
    );
    find(
        summary.clock.source != ClockSource::None,
        Verdict::Doubtful,
        match (summary.clock.hz, summary.clock.error_ppm) {
            (Some(hz), Some(ppm)) => format!("frequency {:.6} GHz, +-{ppm:.0} ppm", hz / 1e9),
            (Some(hz), None) => format!("frequency {:.6} GHz, given", hz / 1e9),
            _ => "frequency unknown".into(),
        },
        "add 0x00028000 to the mask, or give --cpu-hz (xl dmesg: \"Detected ... MHz processor\")",
    );
    let waits: u64 = summary.domains.iter().map(|domain| domain.counts.waits.value).sum();
    find(
        waits > 0,
        Verdict::Doubtful,
        format!("waits (polls that blocked and ended): {waits}"),
        "no vCPU slept for a lock: more contention, or PV spinlocks are off in the guest",
    );
    find(
        classes.markers,
        Verdict::Doubtful,
        seen(classes.markers, "the guest's marks"),
        "without marks acquisitions are inferred; add 0x08000000 to the mask and let the guest mark",
    );
    findings
}
