//! Whether all records are there.
//!
//! Owns what is said of lost records, missing and late pCPUs, the end of the file, and coverage.

use super::evidence::{LATE_START, absent_pcpus, is_joined, late_pcpus, skipped};
use super::judge::{Judge, some, time};
use crate::analysis::Analyser;
use crate::reader::Reading;
use crate::summary::{Finding, Summary, Verdict};

/// The end of the file.
pub(super) const CUT: &str = "cut";

/// pCPUs without records.
pub(super) const PCPUS: &str = "pCPUs";

/// Coverage below so many percent is a finding by itself.
const COVERED: f64 = 99.0;

/// Xen keeps the pCPUs of one `xentrace -c` for those that follow.
const EVERY_PCPU: &str = "capture every pCPU (xentrace -c all: what an earlier -c chose stays chosen), and \
                          with -M in rings large enough for the busiest one";

/// Whether all records are there.
pub(super) fn findings<O>(judge: &mut Judge, summary: &Summary, analyser: &Analyser<O>) {
    let reading = &summary.reading;
    let lost = reading.lost_records();
    judge.find(
        "lost records",
        lost == 0,
        Verdict::Doubtful,
        match lost {
            0 => "lost records: 0".into(),
            _ => format!("{lost} records were lost; coverage {:.2} %", summary.coverage_percent),
        },
        "larger rings (xentrace -S 1024, once per boot), fewer classes (-e), a pCPU of its own for \
         dom0, output to tmpfs",
    );
    file_end(judge, reading);
    let (absent, late) = (absent_pcpus(reading), late_pcpus(analyser, reading));
    let there: Vec<_> = reading.pcpus.iter().map(|pcpu| pcpu.cpu).collect();
    let skipped = skipped(analyser);
    if !absent.is_empty() {
        absent_finding(judge, &absent);
    } else if skipped > 0 && lost == 0 && !is_joined(reading) && summary.tsc_offsets.is_empty() {
        let beside = some(&there);
        let where_ = match out_of_sight(summary) {
            Some(some) => format!("{some}, or a pCPU beside {beside} has none at all"),
            None => format!(
                "a pCPU beside {beside} has no records, or not all (another xentrace may have read some)"
            ),
        };
        judge.say(
            Verdict::Doubtful,
            PCPUS,
            format!(
                "vCPUs changed their state {skipped} times without a record, though no record is told \
                 as lost: {where_}"
            ),
            EVERY_PCPU,
        );
    } else {
        all_there(judge, reading);
    }
    if let Some(&(_, ticks)) = late.iter().max_by_key(|&&(_, ticks)| ticks) {
        let pcpus: Vec<_> = late.iter().map(|&(cpu, _)| cpu).collect();
        judge.say(
            Verdict::Doubtful,
            "start",
            format!(
                "the records of pCPU {} begin up to {} after the others', while a guest runs there",
                some(&pcpus),
                time(summary, ticks)
            ),
            "xentrace -M keeps the last records of each pCPU only: larger -M, or --from behind that time",
        );
    }
    if summary.coverage_percent < COVERED {
        judge.say(
            Verdict::Doubtful,
            "coverage",
            format!(
                "what vCPUs did is known for {:.2} % of their time only",
                summary.coverage_percent
            ),
            "see the other findings for the reason",
        );
    }
}

/// pCPUs `absent` have no record.
fn absent_finding(judge: &mut Judge, absent: &[u32]) {
    judge.say(
        Verdict::Doubtful,
        PCPUS,
        format!(
            "no record of pCPU {}: what vCPUs do there is unknown, and all counts are lower bounds",
            some(absent)
        ),
        EVERY_PCPU,
    );
    if let Some(finding) = judge.0.last_mut() {
        finding.unproved = true;
    }
}

fn all_there(judge: &mut Judge, reading: &Reading) {
    let there = format!("pCPUs with records: {}", reading.pcpus.len());
    judge.say(Verdict::Good, PCPUS, there, "");
}

/// Which pCPUs have no record in the whole trace decides for a part of it too: in a part they may
/// have had nothing to write.
pub(super) fn decide_absent(judge: &mut Judge, whole: &Reading) {
    let open = |of: &Finding| of.topic == PCPUS && (of.unproved || of.verdict == Verdict::Good);
    let Some(at) = judge.0.iter().position(open) else { return };
    let absent = absent_pcpus(whole);
    if absent.is_empty() != (judge.0[at].verdict == Verdict::Good) {
        match absent.as_slice() {
            [] => all_there(judge, whole),
            absent => absent_finding(judge, absent),
        }
        judge.0.swap_remove(at);
    }
}

/// pCPUs that wrote nothing in a good part of the trace, at its start or its end; none if the trace
/// does not tell.
fn out_of_sight(summary: &Summary) -> Option<String> {
    let reading = &summary.reading;
    let told = |cpu: u32, ticks: u64, where_: &str| {
        let long = ticks.saturating_sub(reading.silent_ticks) > reading.ticks() / LATE_START;
        long.then(|| format!("pCPU {cpu} has no record in the {where_} {}", time(summary, ticks)))
    };
    // In a part of a trace nobody asked when each pCPU began.
    let whole = reading.pcpus.iter().filter(|pcpu| pcpu.last_tsc > 0);
    let found: Vec<_> = whole
        .flat_map(|pcpu| {
            let begins = pcpu.first_tsc.saturating_sub(reading.first_tsc);
            let ends = reading.last_tsc.saturating_sub(pcpu.last_tsc);
            [told(pcpu.cpu, begins, "first"), told(pcpu.cpu, ends, "last")]
        })
        .flatten()
        .take(8)
        .collect();
    (!found.is_empty()).then(|| found.join(", "))
}

/// Whether the file ends as it should.
pub(super) fn file_end(judge: &mut Judge, reading: &Reading) {
    judge.find(
        CUT,
        reading.truncated.is_none(),
        Verdict::Doubtful,
        match reading.truncated {
            Some(cut) => format!(
                "the file is cut at byte {}, {} bytes before its last window ends: read up to there",
                cut.offset, cut.missing
            ),
            None => "the file is whole".into(),
        },
        "stop xentrace with INT or TERM and let it write its last records; look for a full disk",
    );
}
