//! What is to be said of the trace as a whole.
//!
//! Owns the one place where evidence becomes a verdict: `check`, the summary, the exit code and every
//! output tell what is found here, and the certainty of figures follows [`Doubt`]. Counts nothing.

use std::cmp::Reverse;

use crate::analysis::Analyser;
use crate::event;
use crate::reader::{PcpuReading, Reading};
use crate::summary::{
    Certainty, Classes, Clock, ClockSource, DomainKind, Finding, Summary, Verdict,
};

/// Where the others' records begin so much of the trace earlier, a pCPU that was busy begins late.
const LATE_START: u64 = 20;

/// One in so many: marks are mistaken if more of them name another target than interrupts explain, which
/// wake vCPUs inside an operation too.
const MISTAKEN: u64 = 20;

/// A frequency with a larger error than this (parts per million) is doubtful.
const ROUGH_PPM: f64 = 10_000.0;

/// Coverage below so many percent is told by itself.
const COVERED: f64 = 99.0;

/// Doubts that concern figures of every domain.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Doubt {
    /// The order of different pCPUs' records is not certain: nothing that spans pCPUs is exact.
    order: bool,
    /// Records of some pCPUs are missing: every count is a lower bound.
    pub(super) partial: bool,
    /// Which pCPU a vCPU is on is not always known.
    pub(super) cores: bool,
}

impl Doubt {
    pub(super) fn of<O>(analyser: &Analyser<O>, reading: &Reading) -> Self {
        let read = &analyser.options.read;
        // The same for all changes nothing between them.
        let offset = |cpu: u32| {
            let of = read.tsc_offsets.iter().rev().find(|&&(of, _)| of == cpu);
            of.map_or(0, |&(_, ticks)| ticks)
        };
        let differs = |two: &[PcpuReading]| offset(two[0].cpu) != offset(two[1].cpu);
        let corrected = !read.tsc_drifts.is_empty() || reading.pcpus.windows(2).any(differs);
        let order = reading.late_records > 0
            || contradicted(analyser)
            || corrected
            || backwards(reading) > 0;
        Self { order, partial: is_partial(analyser, reading), cores: analyser.shared_cores > 0 }
    }

    /// How far figures that span pCPUs can be trusted at best.
    pub(super) fn order(self) -> Certainty {
        if self.order || self.cores { Certainty::Inferred } else { Certainty::Exact }
    }
}

fn is_partial<O>(analyser: &Analyser<O>, reading: &Reading) -> bool {
    let of = &analyser.classes;
    let captured = of.runstates && of.knows_wakes() && of.knows_hypercalls();
    reading.lost_records() > 0
        || !captured
        || has_hidden_wakes(analyser, reading)
        || !unseen(analyser, reading).is_empty()
        || !absent_pcpus(reading).is_empty()
        || skipped(analyser) > 0
        || !late_pcpus(analyser, reading).is_empty()
}

fn backwards(reading: &Reading) -> u64 {
    reading.pcpus.iter().map(|pcpu| pcpu.backwards).sum()
}

/// Whether the file holds more than one session.
fn is_joined(reading: &Reading) -> bool {
    reading.resets() > 0 || !reading.silences.is_empty() || reading.pause.is_some()
}

/// Changes of runstates that are not in the trace.
fn skipped<O>(analyser: &Analyser<O>) -> u64 {
    analyser.vcpus.iter().map(|vcpu| vcpu.raw.skipped).sum()
}

/// Records that are not in the trace, though all of it seems to be: a topic, and what happened
/// without them. Of a class that is not there at all nothing is told here.
fn unseen<O>(analyser: &Analyser<O>, reading: &Reading) -> Vec<(&'static str, String)> {
    if has_breaks(reading) {
        return Vec::new();
    }
    let (of, classes) = (&analyser.unseen, &analyser.classes);
    // Where pCPUs are out of step, or one writes for another, who runs is not certain either.
    let who_runs = classes.runstates && analyser.shared_cores == 0 && !contradicted(analyser);
    let all = [
        ("wakes", classes.wakes, of.wakes, "were woken", "a WAKE"),
        ("blocks", classes.wakes && who_runs, of.blocks, "went to sleep", "a BLOCK"),
        ("entries", who_runs, of.entries, "blocked", "the call or the exit they did it in"),
        ("changes", who_runs, of.changes, "blocked", "a change that set them running"),
    ];
    let found = all.into_iter().filter(|&(_, sure, times, ..)| sure && times > 0);
    let told = |(topic, _, times, what, record)| {
        (topic, format!("vCPUs {what} {times} times without a record of {record}"))
    };
    found.map(told).collect()
}

/// Whether there were wakes without a record, though all records seem to be there.
fn has_hidden_wakes<O>(analyser: &Analyser<O>, reading: &Reading) -> bool {
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
fn absent_pcpus(reading: &Reading) -> Vec<u32> {
    let highest = reading.pcpus.last().map_or(0, |pcpu| pcpu.cpu);
    let has = |cpu: &u32| reading.pcpus.binary_search_by_key(cpu, |pcpu| pcpu.cpu).is_ok();
    (0..highest).filter(|cpu| !has(cpu)).collect()
}

/// pCPUs whose records begin while a guest runs there, long after those of others: ticks after the
/// trace's start.
fn late_pcpus<O>(analyser: &Analyser<O>, reading: &Reading) -> Vec<(u32, u64)> {
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

/// A few numbers as people write them, and how many more there are.
fn some(numbers: &[u32]) -> String {
    let told: Vec<_> = numbers.iter().take(8).map(ToString::to_string).collect();
    match numbers.len().saturating_sub(told.len()) {
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}

/// Collects findings.
struct Judge(Vec<Finding>);

impl Judge {
    fn say(&mut self, verdict: Verdict, topic: &'static str, what: String, remedy: &str) {
        let remedy = remedy.into();
        self.0.push(Finding { verdict, topic, what, remedy, mask: None, unproved: false });
    }

    /// Good, or `otherwise` with its remedy.
    fn find(
        &mut self,
        topic: &'static str,
        good: bool,
        otherwise: Verdict,
        what: String,
        remedy: &str,
    ) {
        match good {
            true => self.say(Verdict::Good, topic, what, ""),
            false => self.say(otherwise, topic, what, remedy),
        }
    }

    /// A class of events: seen, captured though nothing of it happened, or not captured.
    fn class(&mut self, topic: &'static str, seen: bool, captured: bool, mask: u32, remedy: &str) {
        if seen {
            self.say(Verdict::Good, topic, format!("{topic}: seen"), "");
        } else if captured {
            self.0.push(none_happened(topic));
        } else {
            self.say(Verdict::Missing, topic, format!("{topic}: not captured"), remedy);
            if let Some(finding) = self.0.last_mut() {
                (finding.mask, finding.unproved) = (Some(mask), true);
            }
        }
    }
}

/// A class was captured, and nothing of it happened.
fn none_happened(topic: &'static str) -> Finding {
    let what = format!("{topic}: none happened (their class was captured)");
    let (verdict, remedy) = (Verdict::Note, String::new());
    Finding { verdict, topic, what, remedy, mask: None, unproved: false }
}

/// The classes that are judged.
const RUNSTATES: &str = "runstate changes";
const WAKES: &str = "wake or block records";
const HYPERCALLS: &str = "hypercalls";
const HVM_HYPERCALLS: &str = "hypercalls of HVM or PVH guests";

/// Whether a whole trace shows that the class of this topic was captured.
fn is_captured(topic: &str, whole: &Classes) -> bool {
    match topic {
        RUNSTATES => whole.runstates,
        WAKES => whole.knows_wakes(),
        HYPERCALLS => whole.knows_hypercalls(),
        HVM_HYPERCALLS => whole.hvm_hypercalls || whole.hvm_handlers,
        _ => false,
    }
}

/// Judges the trace and writes what was found into the summary.
pub(super) fn judge<O>(summary: &mut Summary, analyser: &Analyser<O>) {
    let mut judge = Judge(Vec::new());
    classes(&mut judge, summary, analyser);
    records(&mut judge, summary, analyser);
    times(&mut judge, summary, analyser);
    figures(&mut judge, summary, analyser);
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

/// Whether the mask had what a kick count needs.
fn classes<O>(judge: &mut Judge, summary: &Summary, analyser: &Analyser<O>) {
    let classes = &summary.classes;
    let unseen = unseen(analyser, &summary.reading);
    judge.class(
        RUNSTATES,
        classes.runstates,
        false,
        event::SCHED_MIN,
        "add 0x00021000 to the mask (xentrace -e), or trace while a vCPU runs",
    );
    judge.class(
        WAKES,
        classes.wakes,
        classes.knows_wakes() && !has_hidden_wakes(analyser, &summary.reading),
        event::SCHED_VERBOSE,
        "add 0x00028000 to the mask",
    );
    for (topic, what) in unseen {
        judge.say(
            Verdict::Doubtful,
            topic,
            format!("{what}, which Xen always writes"),
            "some records of the trace were taken out of it, or its mask was changed while it was \
             taken (by another xentrace)",
        );
    }
    let hvm_only = classes.hvm_exits && !classes.pv_entries;
    judge.class(
        HYPERCALLS,
        classes.pv_hypercalls || classes.hvm_hypercalls,
        classes.knows_hypercalls(),
        if hvm_only { event::HVM_HANDLER } else { event::PV_ENTRY },
        "PV guests: add 0x00201000 to the mask; PVH guests: 0x00083000 (with its subclass 2)",
    );
    let hvm = summary.domains.iter().any(|domain| domain.kind == DomainKind::Hvm);
    if hvm && !hvm_only {
        judge.class(
            HVM_HYPERCALLS,
            classes.hvm_hypercalls,
            classes.hvm_handlers,
            event::HVM_HANDLER,
            "add 0x00082000 to the mask",
        );
    }
    // What happened without a class shows that the rest of a trace does not help: somebody blocked
    // twice without leaving, was woken, or blocked again and again (once it may have been in a call
    // from before the trace).
    let woken = has_hidden_wakes(analyser, &summary.reading);
    let blocked = analyser.vcpus.iter().any(|vcpu| vcpu.raw.blocks_unknown > 1);
    for finding in &mut judge.0 {
        finding.unproved &= match finding.topic {
            RUNSTATES => analyser.unseen.changes == 0,
            WAKES => !woken,
            HYPERCALLS | HVM_HYPERCALLS => !blocked,
            _ => true,
        };
    }
}

/// Whether all records are there.
fn records<O>(judge: &mut Judge, summary: &Summary, analyser: &Analyser<O>) {
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
        judge.say(
            Verdict::Doubtful,
            "pCPUs",
            format!(
                "no record of pCPU {}: what vCPUs do there is unknown, and all counts are lower bounds",
                some(&absent)
            ),
            "capture every pCPU (no xentrace -c, and with -M rings large enough for the busiest one)",
        );
    } else if skipped > 0 && lost == 0 && !is_joined(reading) && summary.tsc_offsets.is_empty() {
        judge.say(
            Verdict::Doubtful,
            "pCPUs",
            format!(
                "vCPUs changed their state {skipped} times without a record, though no record is told \
                 as lost: {}",
                out_of_sight(summary).unwrap_or_else(|| format!(
                    "a pCPU beside {} has no records, or not all",
                    some(&there)
                ))
            ),
            "capture every pCPU (no xentrace -c, and with -M rings large enough for the busiest one)",
        );
    } else {
        judge.say(Verdict::Good, "pCPUs", format!("pCPUs with records: {}", there.len()), "");
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

/// pCPUs that wrote nothing in a good part of the trace, at its start or its end; none if the trace does
/// not tell.
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

fn time(summary: &Summary, ticks: u64) -> String {
    summary.clock.ns(ticks).map_or_else(
        || format!("{ticks} ticks"),
        |ns| if ns < 1e6 { format!("{:.1} us", ns / 1e3) } else { format!("{:.3} s", ns / 1e9) },
    )
}

/// Whether the file ends as it should.
fn file_end(judge: &mut Judge, reading: &Reading) {
    judge.find(
        "cut",
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

/// Whether records came in the order of their times.
fn order(judge: &mut Judge, reading: &Reading) {
    let backwards = backwards(reading);
    if reading.late_records + backwards > 0 {
        judge.say(
            Verdict::Doubtful,
            "order",
            match reading.late_records {
                0 => format!(
                    "{backwards} records have a TSC before their predecessor's on the same pCPU"
                ),
                late => format!(
                    "{late} records came out of order: the pCPUs' TSCs are not in step, or --buffer is \
                     too small"
                ),
            },
            "larger --buffer, or --fix-skew",
        );
    } else {
        judge.say(Verdict::Good, "order", "all records are in order".into(), "");
    }
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

/// Fills in what only the whole trace tells into the summary of a part of it.
pub fn complete(summary: &mut Summary, whole: Whole) {
    let Whole { reading: whole, clock, classes } = whole;
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
    let mut judge = Judge(std::mem::take(&mut summary.findings));
    judge.0.retain(|finding| !["cut", "order"].contains(&finding.topic));
    for finding in &mut judge.0 {
        if finding.unproved && is_captured(finding.topic, &classes) {
            *finding = none_happened(finding.topic);
        }
    }
    file_end(&mut judge, &summary.reading);
    order(&mut judge, &summary.reading);
    conclude(summary, judge);
}

/// Whether times are what they seem.
fn times<O>(judge: &mut Judge, summary: &Summary, analyser: &Analyser<O>) {
    let reading = &summary.reading;
    if reading.resets() > 0 {
        judge.say(
            Verdict::Doubtful,
            "TSC restart",
            format!(
                "the TSCs start again (how often: {}): two sessions in one file, or the host slept; what \
                 was under way then is left out",
                reading.resets()
            ),
            "read each session by itself (xentrace appends without -D; do not join files)",
        );
    }
    // A restart is told as such.
    for silence in reading.silences.iter().skip(reading.resets() as usize) {
        let at = silence.from.saturating_sub(reading.first_tsc);
        judge.say(
            Verdict::Doubtful,
            "silence",
            format!(
                "nothing was recorded for {} from {} after the first record on: what is before belongs \
                 to another session; that time is not counted",
                time(summary, silence.ticks()),
                time(summary, at)
            ),
            "xentrace -D drops what is left in the rings from before; do not join files",
        );
    }
    if let Some(pause) = reading.pause {
        judge.say(
            Verdict::Doubtful,
            "silence",
            format!(
                "nothing was recorded for {} from {} after the first record on, and no other pause of the \
                 trace is near as long",
                time(summary, pause.ticks()),
                time(summary, pause.from.saturating_sub(reading.first_tsc))
            ),
            "if the host was not idle then, records of another session are in the file (xentrace -D \
             drops them)",
        );
    }
    let strays: u64 = reading.pcpus.iter().map(|pcpu| pcpu.strays).sum();
    if strays > 0 {
        judge.say(
            Verdict::Doubtful,
            "stray TSCs",
            format!("{strays} records have an absurd TSC and got the time of the record before"),
            "the file is damaged there",
        );
    }
    order(judge, reading);
    let read = &analyser.options.read;
    let corrected = read.tsc_offsets.iter().filter(|&&(_, ticks)| ticks != 0).count();
    let corrected = corrected.max(read.tsc_drifts.len());
    let spans = "times and waits that span pCPUs are inferred (~)";
    let out: Vec<_> = summary.tsc_offsets.iter().map(|&(cpu, _)| cpu).collect();
    match (out.len(), corrected) {
        (0, 0) => judge.say(
            Verdict::Good,
            "TSCs",
            "no contradiction shows the pCPUs' TSCs out of step".into(),
            "",
        ),
        (0, corrected) => judge.say(
            Verdict::Note,
            "TSCs",
            format!("the TSCs of {corrected} pCPUs are corrected, no contradiction is left: {spans}"),
            "",
        ),
        (_, 0) => judge.say(
            Verdict::Doubtful,
            "TSCs",
            format!("the TSCs of pCPU {} are out of step: {spans}", some(&out)),
            "use --fix-skew",
        ),
        (_, _) => judge.say(
            Verdict::Doubtful,
            "TSCs",
            format!(
                "the TSCs of pCPU {} are out of step even as corrected: {spans}, and may be wrong by \
                 more than they tell",
                some(&out)
            ),
            "their difference is no offset with a slope: trace on a host with TSCs in step (xl \
             debug-keys s), or pin the guest",
        ),
    }
    let contradictions: u64 = analyser.vcpus.iter().map(|vcpu| vcpu.raw.inconsistent).sum();
    judge.find(
        "contradictions",
        contradictions == 0,
        Verdict::Doubtful,
        match contradictions {
            0 => "every runstate change follows from the one before".into(),
            n => format!("{n} runstate changes contradict the ones before"),
        },
        "missing records (see lost records and pCPUs), or TSCs that are not in step (--fix-skew)",
    );
    clock(judge, summary);
    system_times(judge, summary);
}

fn clock(judge: &mut Judge, summary: &Summary) {
    let clock = &summary.clock;
    let remedy = match clock.error_open {
        true => "use --fix-skew, or give --cpu-hz",
        false => "give --cpu-hz (xl dmesg: \"Detected ... MHz processor\"), or trace for longer",
    };
    match (clock.hz, clock.error_ppm) {
        (Some(hz), _) if clock.source == ClockSource::Given => {
            let what = format!("frequency {:.6} GHz, given", hz / 1e9);
            judge.say(Verdict::Good, "frequency", what, "");
        }
        (Some(hz), error) => {
            let told = clock.error_text().unwrap_or_else(|| "an unknown error".into());
            let what = format!("frequency {:.6} GHz, +-{told}", hz / 1e9);
            let good = error.is_some_and(|ppm| ppm <= ROUGH_PPM) && !clock.error_open;
            judge.find("frequency", good, Verdict::Doubtful, what, remedy);
        }
        (None, _) => judge.say(
            Verdict::Note,
            "frequency",
            "frequency unknown: times are in ticks".into(),
            "add 0x00028000 to the mask, or give --cpu-hz (xl dmesg: \"Detected ... MHz processor\")",
        ),
    }
}

/// pCPUs whose system time disagrees.
fn system_times(judge: &mut Judge, summary: &Summary) {
    let disagreeing = &summary.clock.disagreeing;
    let Some(&(_, ppm)) = disagreeing.iter().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())) else {
        return;
    };
    let pcpus: Vec<_> = disagreeing.iter().map(|&(cpu, _)| cpu).collect();
    judge.say(
        Verdict::Doubtful,
        "system time",
        format!(
            "the nanoseconds that pCPU {} counts do not agree with the others' (by up to {ppm:.0} ppm)",
            some(&pcpus)
        ),
        "its system time is badly calibrated, or its TSC runs at another rate: check the frequency with \
         xl dmesg, and give --cpu-hz",
    );
}

/// What the figures rest on.
fn figures<O>(judge: &mut Judge, summary: &Summary, analyser: &Analyser<O>) {
    let classes = &summary.classes;
    if analyser.shared_cores > 0 {
        judge.say(
            Verdict::Doubtful,
            "cores",
            "vCPUs are scheduled by cores or sockets (sched-gran): which pCPU a vCPU is on is not \
             always known, so kicks and polls may be missed"
                .into(),
            "boot Xen with sched-gran=cpu to count kicks",
        );
    }
    for domain in &analyser.options.domains {
        if !analyser.vcpus.iter().any(|vcpu| vcpu.domain == *domain) {
            judge.say(
                Verdict::Missing,
                "domains",
                format!("domain {domain} was asked for (--dom), and no record names it"),
                "see xl list for its number while the trace was taken",
            );
        }
    }
    if analyser.beyond_limit > 0 {
        judge.say(
            Verdict::Doubtful,
            "limit",
            format!(
                "more than {} vCPUs, which is kicktrace's limit and no damage: {} records of further \
                 ones are left out",
                crate::analysis::MAX_VCPUS,
                analyser.beyond_limit
            ),
            "choose domains with --dom, or a part of the trace",
        );
    }
    let marked: u64 = analyser.vcpus.iter().map(|vcpu| vcpu.raw.marked_kicks).sum();
    if analyser.mistaken_marks * MISTAKEN > marked {
        judge.say(
            Verdict::Doubtful,
            "mistaken marks",
            format!(
                "{} operations marked as a kick of one vCPU woke another vCPU of the domain, of {marked} \
                 marked kicks",
                analyser.mistaken_marks
            ),
            "the guest marks another target than it sends to",
        );
    }
    if analyser.bad_markers > 0 {
        judge.say(
            Verdict::Doubtful,
            "malformed marks",
            format!("{} of the guest's marks are malformed and were ignored", analyser.bad_markers),
            "",
        );
    }
    let waits: u64 = summary.domains.iter().map(|domain| domain.counts.waits.value).sum();
    judge.find(
        "waits",
        waits > 0,
        Verdict::Note,
        format!("waits (polls that blocked and ended): {waits}"),
        "no vCPU slept for a lock: more contention, or PV spinlocks are off in the guest",
    );
    if classes.markers {
        judge.say(Verdict::Good, "marks", "the guest's marks: seen".into(), "");
        let mut unmarked: Vec<_> = analyser
            .vcpus
            .iter()
            .filter(|vcpu| vcpu.raw.unmarked_waking > 0 || vcpu.raw.marks_in_part())
            .map(|vcpu| (vcpu.raw.unmarked_waking + vcpu.raw.unmarked_late, vcpu.name()))
            .collect();
        unmarked.sort_by_key(|&(kicks, name)| (Reverse(kicks), name));
        if let Some((_, name)) = unmarked.first() {
            let marks =
                |domain| analyser.vcpus.iter().any(|of| of.domain == domain && of.marks_kicks);
            if marks(name.domain) {
                let what = format!(
                    "{} vCPUs kick without marks ({name} most) beside kicks that are marked: what they \
                     did is inferred (~)",
                    unmarked.len()
                );
                judge.say(Verdict::Note, "partial marks", what, "");
            }
        }
    } else {
        let (what, remedy) = match classes.mark_calls {
            false => (
                "the guest's marks: none",
                "without marks kicks and acquisitions are inferred; let the guest mark and add \
                 0x08000000 to the mask",
            ),
            true => (
                "the guest's marks: none, though a guest calls hvm_op as it does to mark",
                "without marks kicks and acquisitions are inferred; add 0x08000000 to the mask",
            ),
        };
        judge.say(Verdict::Note, "marks", what.into(), remedy);
    }
}
