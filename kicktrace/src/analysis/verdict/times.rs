//! Whether times are what they seem.
//!
//! Owns what is said of sessions, the order of records, the pCPUs' TSCs, and the frequency.

use super::evidence::backwards;
use super::judge::{Judge, some, time};
use crate::analysis::Analyser;
use crate::reader::Reading;
use crate::summary::{ClockSource, Summary, Verdict};

/// The order of records.
pub(super) const ORDER: &str = "order";

/// How long a tick is.
pub(super) const FREQUENCY: &str = "frequency";
pub(super) const SYSTEM_TIME: &str = "system time";

/// A frequency with a larger error than this (parts per million) is doubtful.
const ROUGH_PPM: f64 = 10_000.0;

/// Whether times are what they seem.
pub(super) fn findings<O>(judge: &mut Judge, summary: &Summary, analyser: &Analyser<O>) {
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
}

/// Whether records came in the order of their times.
pub(super) fn order(judge: &mut Judge, reading: &Reading) {
    let backwards = backwards(reading);
    if reading.late_records + backwards > 0 {
        judge.say(
            Verdict::Doubtful,
            ORDER,
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
        judge.say(Verdict::Good, ORDER, "all records are in order".into(), "");
    }
}

/// How long a tick is, and whether the pCPUs agree on it.
pub(super) fn clock(judge: &mut Judge, summary: &Summary) {
    frequency(judge, summary);
    system_times(judge, summary);
}

fn frequency(judge: &mut Judge, summary: &Summary) {
    let clock = &summary.clock;
    let remedy = match clock.error_open {
        true => "use --fix-skew, or give --cpu-hz",
        false => "give --cpu-hz (xl dmesg: \"Detected ... MHz processor\"), or trace for longer",
    };
    match (clock.hz, clock.error_ppm) {
        (Some(hz), _) if clock.source == ClockSource::Given => {
            let what = format!("frequency {:.6} GHz, given", hz / 1e9);
            judge.say(Verdict::Good, FREQUENCY, what, "");
        }
        (Some(hz), error) => {
            let told = clock.error_text().unwrap_or_else(|| "an unknown error".into());
            let what = format!("frequency {:.6} GHz, +-{told}", hz / 1e9);
            let good = error.is_some_and(|ppm| ppm <= ROUGH_PPM) && !clock.error_open;
            judge.find(FREQUENCY, good, Verdict::Doubtful, what, remedy);
        }
        (None, _) => judge.say(
            Verdict::Note,
            FREQUENCY,
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
        SYSTEM_TIME,
        format!(
            "the nanoseconds that pCPU {} counts do not agree with the others' (by up to {ppm:.0} ppm)",
            some(&pcpus)
        ),
        "its system time is badly calibrated, or its TSC runs at another rate: check the frequency with \
         xl dmesg, and give --cpu-hz",
    );
}
