//! What is to be said of the trace as a whole.
//!
//! Owns the one place where evidence becomes a verdict: `check`, the summary, the exit code and
//! every output show what is found here, and the certainty of figures follows [`doubt`]. Counts
//! nothing.

mod classes;
mod evidence;
mod figures;
mod judge;
mod records;
mod times;

pub(super) use evidence::doubt;

use crate::analysis::Analyser;
use crate::reader::Reading;
use crate::summary::{Classes, Clock, Summary, Verdict};
use judge::Judge;

/// Judges the trace and writes what was found into the summary.
pub(super) fn judge<O>(summary: &mut Summary, analyser: &Analyser<O>) {
    let mut judge = Judge(Vec::new());
    classes::findings(&mut judge, summary, analyser);
    records::findings(&mut judge, summary, analyser);
    times::findings(&mut judge, summary, analyser);
    figures::findings(&mut judge, summary, analyser);
    conclude(summary, judge);
}

/// Writes the findings into the summary, and what follows from them.
fn conclude(summary: &mut Summary, judge: Judge) {
    summary.findings = judge.0;
    let verdicts = summary.findings.iter().map(|finding| finding.verdict);
    summary.verdict = verdicts.max().unwrap_or(Verdict::Good);
    let bad = summary.findings.iter().filter(|finding| finding.verdict >= Verdict::Doubtful);
    summary.warnings = bad
        .map(|finding| match finding.remedy.as_str() {
            "" => finding.what.clone(),
            remedy => format!("{}; {remedy}", finding.what),
        })
        .collect();
}

/// What only a whole trace tells of each part of it.
#[derive(Clone, Debug)]
pub struct Whole {
    /// What the file held.
    pub reading: Reading,
    /// The clock, as measured on all of the trace.
    pub clock: Clock,
    /// What was captured.
    pub classes: Classes,
}

/// Topics that the whole trace decides for each part of it: what a part says of them is void.
pub(crate) const WHOLE_ONLY: [&str; 4] =
    [records::CUT, times::ORDER, times::FREQUENCY, times::SYSTEM_TIME];

/// Fills in what only the whole trace tells into the summary of a part of it.
pub fn complete(summary: &mut Summary, whole: Whole) {
    let Whole { reading: whole, clock, classes } = whole;
    let mut judge = Judge(std::mem::take(&mut summary.findings));
    records::decide_absent(&mut judge, &whole);
    summary.seconds = clock.ns(summary.ticks).map(|ns| ns / 1e9);
    summary.clock = clock;
    let of = &mut summary.reading;
    *of = Reading {
        records: of.records,
        first_tsc: of.first_tsc,
        last_tsc: of.last_tsc,
        pcpus: std::mem::take(&mut of.pcpus),
        ..whole
    };
    judge.0.retain(|finding| !WHOLE_ONLY.contains(&finding.topic));
    for finding in &mut judge.0 {
        if finding.unproved && classes::is_captured(finding.topic, &classes) {
            *finding = judge::none_happened(finding.topic);
        }
    }
    records::file_end(&mut judge, &summary.reading);
    times::order(&mut judge, &summary.reading);
    times::clock(&mut judge, summary);
    conclude(summary, judge);
}
