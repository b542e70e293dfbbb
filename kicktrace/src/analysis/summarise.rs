//! From the analyser's counters to the [`Summary`]: sums, quantiles, certainties.
//!
//! Owns which figure is exact, inferred or a bound, from the evidence of each. Counts nothing
//! itself; what is to be said of the trace as a whole is judged in the folder `verdict`.

use crate::analysis::Analyser;
use crate::analysis::acquisition::Tally;
use crate::analysis::vcpu::{LatencySet, Vcpu};
use crate::analysis::verdict;
use crate::reader::Reading;
use crate::summary::{
    self, Certainty, Classes, Count, Counts, Domain, DomainKind, Doubt, Latencies, Summary, Times,
    TimesCertainty, Verdict,
};

/// What `analyser` has found so far; `reading` ends where its vCPUs' times do.
pub(super) fn summary<O>(analyser: &Analyser<O>, reading: Reading) -> Summary {
    let ticks = reading.ticks();
    let clock = analyser.clock(ticks);
    let last = reading.last_tsc;
    // In a phase behind the end of its domain a vCPU is no more.
    let there = |vcpu: &&Vcpu| !vcpu.is_over() || vcpu.observed(last) > 0;
    let mut vcpus: Vec<&Vcpu> = analyser.vcpus.iter().filter(there).collect();
    vcpus.sort_by_key(|vcpu| (vcpu.domain, vcpu.life, vcpu.id));
    let doubt = verdict::doubt(analyser, &reading);
    let mut domains = Vec::new();
    let (mut sure, mut observed) = (0, 0);
    for of_domain in vcpus.chunk_by(|a, b| (a.domain, a.life) == (b.domain, b.life)) {
        let (mut domain, its_sure, its_observed) =
            domain(of_domain, last, doubt, &analyser.classes);
        domain.locks = analyser.locks.summary((domain.id, domain.life), doubt.values());
        sure += its_sure;
        observed += its_observed;
        domains.push(domain);
    }
    let mut summary = Summary {
        schema: summary::SCHEMA,
        window: None,
        ticks,
        seconds: clock.ns(ticks).map(|ns| ns / 1e9),
        clock,
        coverage_percent: percent(sure, observed),
        classes: analyser.classes,
        domains,
        tsc_offsets: analyser.skew.offsets(),
        verdict: Verdict::Good,
        findings: Vec::new(),
        warnings: Vec::new(),
        doubt,
        reading,
    };
    verdict::judge(&mut summary, analyser);
    summary
}

fn percent(part: u128, whole: u128) -> f64 {
    // Divided first: a whole over itself is 1, but a hundred of them may round to a bit more.
    if whole == 0 { 100.0 } else { part as f64 / whole as f64 * 100.0 }
}

/// Whether the classes of events that tell what a domain of this kind does were captured: of a kind
/// nobody knows, those of all kinds.
const fn captured(kind: DomainKind, classes: &Classes) -> bool {
    let hvm = classes.hvm_exits && classes.hvm_handlers;
    match kind {
        DomainKind::Pv => classes.pv_entries,
        DomainKind::Hvm => hvm,
        DomainKind::Unknown => classes.pv_entries && hvm,
    }
}

fn domain(vcpus: &[&Vcpu], last: u64, doubt: Doubt, classes: &Classes) -> (Domain, u128, u128) {
    let mut counts = Counts::default();
    let mut times = Times::default();
    let kind = vcpus.iter().map(|vcpu| vcpu.kind).rfind(|&kind| kind != DomainKind::Unknown);
    let kind = kind.unwrap_or_default();
    let captured = captured(kind, classes);
    let mut latencies = LatencySet::default();
    let mut inferred = Tally::default();
    let mut marked: Option<Tally> = None;
    let (mut sure, mut observed) = (0, 0);
    let mut told = Vec::new();
    let mut trust = Trust::certain(doubt);
    for vcpu in vcpus {
        let its = Trust::of(vcpu, doubt, captured);
        trust.add(its);
        let one = self::vcpu(vcpu, last, its);
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
        let (its_sure, its_observed) = vcpu.coverage(last);
        sure += its_sure;
        observed += its_observed;
        told.push(one);
    }
    let order = doubt.order();
    // A state may have begun and ended where records are missing.
    let unseen = doubt.partial || vcpus.iter().any(|vcpu| vcpu.is_tainted());
    let spent = order.max(if unseen { Certainty::Inferred } else { Certainty::Exact });
    let domain = Domain {
        id: vcpus.first().map_or(0, |vcpu| vcpu.domain),
        life: vcpus.first().map_or(0, |vcpu| vcpu.life),
        ended: vcpus.iter().filter_map(|vcpu| vcpu.life_span().1).max(),
        ticks: told.iter().fold(0, |sum, vcpu| sum.saturating_add(vcpu.ticks)),
        kind,
        coverage_percent: percent(sure, observed),
        counts,
        times,
        times_certainty: TimesCertainty {
            running: spent,
            stolen: spent,
            stolen_after_wake: spent,
            blocked: spent,
            blocked_in_poll: trust.polls.max(spent),
            offline: spent,
            kicker_stolen: if vcpus.iter().any(|vcpu| vcpu.kicker_stolen_more) {
                Certainty::LowerBound
            } else {
                trust.waits
            },
            ..TimesCertainty::default()
        },
        latencies: self::latencies(&latencies, trust),
        marked: marked.map(|tally| tally.of_marks(doubt.values().max(trust.marks))),
        inferred: inferred.summary(Certainty::Inferred),
        locks: Vec::new(),
        vcpus: told,
    };
    (domain, sure, observed)
}

/// What each kind of figure of a vCPU rests on.
#[derive(Clone, Copy, Debug)]
struct Trust {
    /// What it did by itself, on its own pCPU: at least so much where records are missing.
    own: Certainty,
    /// Whether its operations are kicks: exact if it marked those that woke somebody.
    kicks: Certainty,
    /// Whether its calls are polls: a PVH guest's `sched_op` does not show its command. It is a
    /// poll unless it yields, or unless the guest marks its waits.
    polls: Certainty,
    /// What ended its waits: exact if each kick that did is marked.
    waits: Certainty,
    /// Whether those that mark mark all they do.
    marks: Certainty,
    doubt: Doubt,
}

impl Trust {
    fn certain(doubt: Doubt) -> Self {
        let exact = Certainty::Exact;
        Self { own: exact, kicks: exact, polls: exact, waits: exact, marks: exact, doubt }
    }

    fn of(vcpu: &Vcpu, doubt: Doubt, captured: bool) -> Self {
        let inferred_if = |it: bool| if it { Certainty::Inferred } else { Certainty::Exact };
        let raw = &vcpu.raw;
        let hvm = vcpu.kind == DomainKind::Hvm && vcpu.marked.is_none();
        let polls = inferred_if(doubt.cores || hvm && raw.polls + raw.idle_blocks > 0);
        let order = doubt.order();
        Self {
            own: if doubt.cores {
                Certainty::Inferred
            } else if doubt.partial || !captured || vcpu.is_partial() {
                Certainty::LowerBound
            } else {
                Certainty::Exact
            },
            kicks: inferred_if(raw.unmarked_waking > 0 || raw.marks_in_part())
                .max(order)
                .and(if raw.woke_unknown > 0 { Certainty::LowerBound } else { Certainty::Exact }),
            polls,
            waits: inferred_if(raw.kicked_unmarked > 0 || raw.woken_in_part())
                .max(polls)
                .max(order),
            marks: inferred_if(raw.marks_in_part() || raw.woken_in_part()),
            doubt,
        }
    }

    fn add(&mut self, other: Self) {
        self.own = self.own.and(other.own);
        self.kicks = self.kicks.and(other.kicks);
        self.polls = self.polls.and(other.polls);
        self.waits = self.waits.and(other.waits);
        self.marks = self.marks.and(other.marks);
    }
}

fn vcpu(vcpu: &Vcpu, last: u64, trust: Trust) -> summary::Vcpu {
    let raw = &vcpu.raw;
    let order = trust.doubt.order();
    // What is missing makes each count a lower bound.
    let count = |value, certainty: Certainty| Count { value, certainty: certainty.and(trust.own) };
    let own = |value| count(value, Certainty::Exact);
    // What is told by a record that does not come may be less, too, where records are missing.
    let absence = |value, certainty| match trust.own {
        Certainty::LowerBound => Count::inferred(value),
        _ => count(value, certainty),
    };
    let poll = |value| count(value, trust.polls);
    let ended = |value| count(value, trust.polls.max(order));
    let kick = |value| count(value, trust.kicks);
    let waited = |value| count(value, trust.waits);
    let (sure, observed) = vcpu.coverage(last);
    summary::Vcpu {
        id: vcpu.id,
        ticks: vcpu.observed(last),
        coverage_percent: percent(sure, observed),
        counts: Counts {
            evtchn_ops: own(raw.evtchn_ops),
            waking_kicks: kick(raw.waking_kicks),
            idle_kicks: count(raw.idle_kicks, Certainty::Inferred),
            kicks_without_wake: if vcpu.marks_kicks {
                absence(raw.marked_without_wake, order)
            } else {
                absence(raw.kicks_without_wake, Certainty::UpperBound)
            },
            marked_kicks: own(raw.marked_kicks),
            polls: poll(raw.polls),
            polls_blocked: ended(raw.polls_blocked),
            polls_aborted: ended(raw.polls_aborted),
            polls_immediate: absence(raw.polls_immediate, trust.polls.max(order)),
            polls_unresolved: Count::exact(raw.polls_unresolved),
            idle_blocks: absence(raw.idle_blocks, trust.polls),
            blocks_unknown: Count::exact(raw.blocks_unknown),
            yields: own(raw.yields),
            waits: ended(raw.waits),
            marked_waits: own(vcpu.marked.as_ref().map_or(0, |marked| marked.waits)),
            waits_kicked: waited(raw.waits_kicked),
            // Where the call of a kick is missing, its wait seems to have ended otherwise.
            waits_other: absence(raw.waits - raw.waits_kicked, trust.waits),
            waits_tainted: Count::exact(raw.waits_tainted),
            spurious_wakes: Count::inferred(raw.spurious_wakes),
            kicker_preempted: waited(raw.kicker_preempted),
            inconsistent: Count::exact(raw.inconsistent),
        },
        times: vcpu.times,
        latencies: latencies(&vcpu.latencies, trust),
        marked: vcpu
            .marked
            .as_ref()
            .map(|of| of.tally.of_marks(trust.doubt.values().max(trust.marks))),
        inferred: vcpu.inferred.summary(Certainty::Inferred),
    }
}

fn latencies(set: &LatencySet, trust: Trust) -> Latencies {
    let values = trust.doubt.values();
    let (waits, kicked) = (trust.polls.max(values), trust.waits.max(values));
    Latencies {
        // Both ends are on the kicker's pCPU.
        kick_to_wake: set.kick_to_wake.told(kicked),
        wake_to_run: set.wake_to_run.told(waits),
        kick_to_run: set.kick_to_run.told(kicked),
        wait: set.wait.told(waits),
    }
}
