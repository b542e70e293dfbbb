//! From the analyser's counters to the [`Summary`]: sums, quantiles, certainties, warnings.
//!
//! Owns which figure is exact, inferred or a bound. Counts nothing itself.

use crate::analysis::Analyser;
use crate::analysis::acquisition::Tally;
use crate::analysis::latency::Latency;
use crate::analysis::vcpu::{LatencySet, Vcpu};
use crate::reader::Reading;
use crate::summary::{
    self, Certainty, Count, Counts, Distribution, Domain, DomainKind, Latencies, Summary, Times,
    TimesCertainty,
};

/// What `analyser` has found so far; `reading` ends where its vCPUs' times do.
pub(super) fn summary<O>(analyser: &Analyser<O>, reading: Reading) -> Summary {
    let clock = analyser.calibration.clock(analyser.options.cpu_hz);
    let ticks = reading.ticks();
    let mut warnings = warnings(analyser, &reading);
    let classes = analyser.classes;
    let last = reading.last_tsc;
    let mut vcpus: Vec<&Vcpu> = analyser.vcpus.iter().collect();
    vcpus.sort_by_key(|vcpu| (vcpu.domain, vcpu.id));
    let mut domains = Vec::new();
    let (mut sure, mut observed) = (0, 0);
    for of_domain in vcpus.chunk_by(|a, b| a.domain == b.domain) {
        let (mut domain, its_sure, its_observed) = domain(of_domain, last);
        domain.locks = analyser.locks.summary(domain.id);
        sure += its_sure;
        observed += its_observed;
        if domain.counts.inconsistent.value > 0 {
            warnings.push(format!(
                "d{}: {} runstate changes contradict the ones before: lost records, or the pCPUs' \
                 TSCs are not in step",
                domain.id, domain.counts.inconsistent.value
            ));
        }
        domains.push(domain);
    }
    Summary {
        schema: summary::SCHEMA,
        clock,
        window: None,
        ticks,
        seconds: clock.ns(ticks).map(|ns| ns / 1e9),
        coverage_percent: percent(sure, observed),
        classes,
        domains,
        tsc_offsets: analyser.skew.offsets(),
        warnings,
        reading,
    }
}

fn percent(part: u128, whole: u128) -> f64 {
    // Divided first: a whole over itself is 1, but a hundred of them may round to a bit more.
    if whole == 0 { 100.0 } else { part as f64 / whole as f64 * 100.0 }
}

fn domain(vcpus: &[&Vcpu], last: u64) -> (Domain, u128, u128) {
    let mut counts = Counts::default();
    let mut times = Times::default();
    let mut latencies = LatencySet::default();
    let mut inferred = Tally::default();
    let mut marked: Option<Tally> = None;
    let mut kind = DomainKind::Unknown;
    let (mut sure, mut observed) = (0, 0);
    let mut told = Vec::new();
    let trust = Trust::of(vcpus);
    for vcpu in vcpus {
        let one = self::vcpu(vcpu, last, &trust);
        counts.add(&one.counts);
        times.add(&one.times);
        latencies.kick_to_wake.add(&vcpu.latencies.kick_to_wake);
        latencies.wake_to_run.add(&vcpu.latencies.wake_to_run);
        latencies.kick_to_run.add(&vcpu.latencies.kick_to_run);
        latencies.wait.add(&vcpu.latencies.wait);
        inferred.add(&vcpu.inferred);
        if let Some(of) = &vcpu.marked {
            marked.get_or_insert_default().add(&of.tally);
        }
        if vcpu.kind != DomainKind::Unknown {
            kind = vcpu.kind;
        }
        let (its_sure, its_observed) = vcpu.coverage(last);
        sure += its_sure;
        observed += its_observed;
        told.push(one);
    }
    let domain = Domain {
        id: vcpus.first().map_or(0, |vcpu| vcpu.domain),
        kind,
        coverage_percent: percent(sure, observed),
        counts,
        times,
        times_certainty: TimesCertainty {
            blocked_in_poll: trust.polls,
            kicker_stolen: if vcpus.iter().any(|vcpu| vcpu.kicker_stolen_more) {
                Certainty::LowerBound
            } else {
                trust.kicks
            },
            ..TimesCertainty::default()
        },
        latencies: self::latencies(&latencies, &trust),
        marked: marked.map(|tally| tally.summary(Certainty::Exact)),
        inferred: inferred.summary(Certainty::Inferred),
        locks: Vec::new(),
        vcpus: told,
    };
    (domain, sure, observed)
}

/// What a domain's marks make certain.
struct Trust {
    /// Once a guest marks its kicks, an operation that is not marked is none.
    marks_kicks: bool,
    kicks: Certainty,
    /// A PVH guest's sched_op does not show its command: it is a poll unless it yields, or unless
    /// the guest marks its waits.
    polls: Certainty,
}

impl Trust {
    fn of(vcpus: &[&Vcpu]) -> Self {
        let inferred_if = |it: bool| if it { Certainty::Inferred } else { Certainty::Exact };
        let marks_kicks = vcpus.iter().any(|vcpu| vcpu.marks_kicks);
        let marks_waits = vcpus.iter().any(|vcpu| vcpu.marked.is_some());
        let hvm = vcpus.iter().any(|vcpu| vcpu.kind == DomainKind::Hvm);
        Self {
            marks_kicks,
            kicks: inferred_if(!marks_kicks),
            polls: inferred_if(hvm && !marks_waits),
        }
    }
}

fn vcpu(vcpu: &Vcpu, last: u64, trust: &Trust) -> summary::Vcpu {
    let raw = &vcpu.raw;
    let poll = |value| Count { value, certainty: trust.polls };
    let kick = |value| Count { value, certainty: trust.kicks };
    let (sure, observed) = vcpu.coverage(last);
    summary::Vcpu {
        id: vcpu.id,
        coverage_percent: percent(sure, observed),
        counts: Counts {
            evtchn_ops: Count::exact(raw.evtchn_ops),
            waking_kicks: kick(raw.waking_kicks),
            idle_kicks: Count::inferred(raw.idle_kicks),
            kicks_without_wake: if trust.marks_kicks {
                Count::exact(raw.marked_without_wake)
            } else {
                Count::at_most(raw.kicks_without_wake)
            },
            marked_kicks: Count::exact(raw.marked_kicks),
            polls: poll(raw.polls),
            polls_blocked: poll(raw.polls_blocked),
            polls_aborted: poll(raw.polls_aborted),
            polls_immediate: poll(raw.polls_immediate),
            idle_blocks: poll(raw.idle_blocks),
            yields: Count::exact(raw.yields),
            waits: poll(raw.waits),
            marked_waits: Count::exact(vcpu.marked.as_ref().map_or(0, |marked| marked.waits)),
            waits_kicked: kick(raw.waits_kicked),
            waits_other: kick(raw.waits - raw.waits_kicked),
            waits_tainted: Count::exact(raw.waits_tainted),
            spurious_wakes: Count::inferred(raw.spurious_wakes),
            kicker_preempted: kick(raw.kicker_preempted),
            inconsistent: Count::exact(raw.inconsistent),
        },
        times: vcpu.times,
        latencies: latencies(&vcpu.latencies, trust),
        marked: vcpu.marked.as_ref().map(|marked| marked.tally.summary(Certainty::Exact)),
        inferred: vcpu.inferred.summary(Certainty::Inferred),
    }
}

fn latencies(set: &LatencySet, trust: &Trust) -> Latencies {
    let from_kick = trust.kicks.max(trust.polls);
    Latencies {
        kick_to_wake: distribution(&set.kick_to_wake, from_kick),
        wake_to_run: distribution(&set.wake_to_run, trust.polls),
        kick_to_run: distribution(&set.kick_to_run, from_kick),
        wait: distribution(&set.wait, trust.polls),
    }
}

pub(super) fn distribution(latency: &Latency, certainty: Certainty) -> Distribution {
    let Some(histogram) = latency.histogram() else {
        return Distribution { certainty, ..Distribution::default() };
    };
    Distribution {
        certainty,
        count: histogram.len(),
        min: histogram.min(),
        p50: histogram.value_at_quantile(0.5),
        p90: histogram.value_at_quantile(0.9),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
        max: histogram.max(),
        mean: histogram.mean(),
        histogram: histogram
            .iter_recorded()
            .map(|class| (class.value_iterated_to(), u64::from(class.count_at_value())))
            .collect(),
    }
}

fn warnings<O>(analyser: &Analyser<O>, reading: &Reading) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |condition: bool, text: String| {
        if condition {
            warnings.push(text);
        }
    };
    let classes = &analyser.classes;
    if let Some(cut) = reading.truncated {
        warn(
            true,
            format!(
                "the file is cut at byte {}, {} bytes before its last window ends: read up to there",
                cut.offset, cut.missing
            ),
        );
    }
    let lost = reading.lost_records();
    warn(
        lost > 0,
        format!(
            "{lost} records were lost: use larger buffers (xentrace -S), or fewer classes (-e)"
        ),
    );
    warn(
        reading.late_records > 0,
        format!(
            "{} records came out of order: the pCPUs' TSCs are not in step (see --fix-skew), or \
             --buffer is too small",
            reading.late_records
        ),
    );
    let backwards: u64 = reading.pcpus.iter().map(|pcpu| pcpu.backwards).sum();
    warn(
        backwards > 0,
        format!("{backwards} records have a TSC before their predecessor's on the same pCPU"),
    );
    warn(
        !classes.runstates || !classes.wakes,
        "no runstate changes or no wakes: capture with the mask of `kicktrace capture`".into(),
    );
    warn(
        !classes.pv_hypercalls && !classes.hvm_hypercalls,
        "no hypercalls: kicks and polls cannot be seen; capture with the mask of `kicktrace \
         capture`"
            .into(),
    );
    for domain in &analyser.options.domains {
        warn(
            !analyser.vcpus.iter().any(|vcpu| vcpu.domain == *domain),
            format!("domain {domain} was asked for (--dom), and no record names it"),
        );
    }
    warn(
        analyser.shared_cores > 0,
        "vCPUs are scheduled by cores or sockets (sched-gran): which pCPU a vCPU is on is not \
         always known, so waking kicks may be missed"
            .into(),
    );
    warn(
        analyser.bad_markers > 0,
        format!("{} of the guest's marks are malformed and were ignored", analyser.bad_markers),
    );
    warnings
}
