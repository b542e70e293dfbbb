//! What the counters of an analysis show about the trace.
//!
//! Owns each sign that records are missing, out of order or mixed up, and the [`Doubt`] that
//! follows for figures. Writes no sentence and decides no verdict.

use crate::analysis::Analyser;
use crate::reader::{PcpuReading, Reading};
use crate::summary::{DomainKind, Doubt};

/// Where the others' records begin so much of the trace earlier, a pCPU that was busy begins late.
pub(super) const LATE_START: u64 = 20;

/// What the evidence leaves in doubt for figures of every domain.
pub(in crate::analysis) fn doubt<O>(analyser: &Analyser<O>, reading: &Reading) -> Doubt {
    let read = &analyser.options.read;
    // The same for all changes nothing between them.
    let offset = |cpu: u32| {
        let of = read.tsc_offsets.iter().rev().find(|&&(of, _)| of == cpu);
        of.map_or(0, |&(_, ticks)| ticks)
    };
    let differs = |two: &[PcpuReading]| offset(two[0].cpu) != offset(two[1].cpu);
    let corrected = !read.tsc_drifts.is_empty() || reading.pcpus.windows(2).any(differs);
    let order =
        reading.late_records > 0 || contradicted(analyser) || corrected || backwards(reading) > 0;
    // Without a change whoever was on a pCPU seems to stay there.
    let cores = analyser.shared_cores > 0
        || !analyser.classes.runstates
        || analyser.unseen.changes > 0 && !has_breaks(reading);
    let untold = lacks_untold(analyser, reading);
    Doubt { order, partial: untold || reading.lost_records() > 0, untold, cores }
}

/// Whether records are missing, and none tells where.
fn lacks_untold<O>(analyser: &Analyser<O>, reading: &Reading) -> bool {
    let of = &analyser.classes;
    let captured = of.runstates && of.knows_wakes() && of.knows_hypercalls();
    !captured
        || has_hidden_wakes(analyser, reading)
        || !unseen(analyser, reading).is_empty()
        || !absent_pcpus(reading).is_empty()
        || skipped(analyser) > 0
        || !late_pcpus(analyser, reading).is_empty()
}

pub(super) fn backwards(reading: &Reading) -> u64 {
    reading.pcpus.iter().map(|pcpu| pcpu.backwards).sum()
}

/// Whether the file holds more than one session.
pub(super) fn is_joined(reading: &Reading) -> bool {
    reading.resets() > 0 || !reading.silences.is_empty() || reading.pause.is_some()
}

/// Changes of runstates that are not in the trace.
pub(super) fn skipped<O>(analyser: &Analyser<O>) -> u64 {
    analyser.vcpus.iter().map(|vcpu| vcpu.raw.skipped).sum()
}

/// Records that are not in the trace, though all of it seems to be: a topic, and what happened
/// without them. Of a class that is not there at all nothing is told here.
pub(super) fn unseen<O>(analyser: &Analyser<O>, reading: &Reading) -> Vec<(&'static str, String)> {
    if has_breaks(reading) {
        return Vec::new();
    }
    let (of, classes) = (&analyser.unseen, &analyser.classes);
    // Where pCPUs are out of step, or one writes for another, who runs is not certain either.
    let who_runs = classes.runstates && analyser.shared_cores == 0 && !contradicted(analyser);
    // Their first block may be in a call from before the trace.
    let calls = analyser.vcpus.iter().filter(|vcpu| vcpu.kind != DomainKind::Unknown);
    let in_no_call: u64 = calls.map(|vcpu| vcpu.raw.blocks_unknown.saturating_sub(1)).sum();
    let entries = of.entries.max(in_no_call);
    let all = [
        ("wakes", classes.wakes, of.wakes, "were woken", "a WAKE"),
        ("blocks", classes.wakes && who_runs, of.blocks, "went to sleep", "a BLOCK"),
        ("entries", who_runs, entries, "blocked", "the call or the exit they did it in"),
        (
            "calls",
            classes.hvm_handlers,
            of.calls(analyser.pcpus.len()),
            "called Xen",
            "the call's number",
        ),
        ("changes", who_runs, of.changes, "blocked", "a change that set them running"),
    ];
    let found = all.into_iter().filter(|&(_, sure, times, ..)| sure && times > 0);
    let told = |(topic, _, times, what, record)| {
        (topic, format!("vCPUs {what} {times} times without a record of {record}"))
    };
    found.map(told).collect()
}

/// Whether there were wakes without a record, though all records seem to be there.
pub(super) fn has_hidden_wakes<O>(analyser: &Analyser<O>, reading: &Reading) -> bool {
    analyser.unseen.wakes > 0 && !has_breaks(reading)
}

/// Whether the trace tells that records are missing.
fn has_breaks(reading: &Reading) -> bool {
    reading.lost_records() > 0 || is_joined(reading)
}

/// Whether changes of runstates contradict each other.
fn contradicted<O>(analyser: &Analyser<O>) -> bool {
    analyser.vcpus.iter().any(|vcpu| vcpu.raw.inconsistent > 0)
}

/// pCPUs without records among those with records.
pub(super) fn absent_pcpus(reading: &Reading) -> Vec<u32> {
    let highest = reading.pcpus.last().map_or(0, |pcpu| pcpu.cpu);
    let has = |cpu: &u32| reading.pcpus.binary_search_by_key(cpu, |pcpu| pcpu.cpu).is_ok();
    (0..highest).filter(|cpu| !has(cpu)).collect()
}

/// pCPUs whose records begin while a guest runs there, long after those of others: ticks after the
/// trace's start.
pub(super) fn late_pcpus<O>(analyser: &Analyser<O>, reading: &Reading) -> Vec<(u32, u64)> {
    let late = |cpu: u32| {
        let pcpu = analyser.pcpus.get(cpu as usize)?;
        (pcpu.began_mid || !pcpu.scheduled && pcpu.unattributed > 0).then_some(cpu)
    };
    let begun = reading.pcpus.iter().filter_map(|pcpu| {
        let after = pcpu.first_tsc.saturating_sub(reading.first_tsc);
        let after = after.saturating_sub(reading.silent_ticks);
        (after > reading.ticks() / LATE_START).then_some((late(pcpu.cpu)?, after))
    });
    begun.collect()
}
