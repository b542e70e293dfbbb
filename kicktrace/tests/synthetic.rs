//! What the analyser says about simulated traces, against what really happened.

use std::collections::BTreeMap;

use kicktrace::analysis::{AcquisitionStory, Analyser, Observe};
use kicktrace::reader::{ReadOptions, read};
use kicktrace::synth::{Guest, Kicks, Plan, Truth, VcpuTruth, generate};
use kicktrace::{Options, Summary, fix_skew, summarise};

fn run(plan: &Plan) -> (Truth, Summary) {
    let mut trace = Vec::new();
    let truth = generate(plan, &mut trace).expect("a Vec takes everything");
    let summary = summarise(&trace[..], &Options::default()).expect("a sound trace");
    (truth, summary)
}

/// Calls `check` with every vCPU's summary and truth.
fn each(
    truth: &Truth,
    summary: &Summary,
    mut check: impl FnMut(&kicktrace::summary::Vcpu, &VcpuTruth),
) {
    let mut seen = 0;
    for domain in &summary.domains {
        for vcpu in &domain.vcpus {
            check(vcpu, &truth.vcpus[&(domain.id, vcpu.id)]);
            seen += 1;
        }
    }
    assert_eq!(seen, truth.vcpus.len(), "every vCPU is told");
}

fn counts_match(truth: &Truth, summary: &Summary) {
    assert_eq!(summary.reading.records, truth.records);
    assert_eq!(summary.reading.bytes, truth.bytes);
    assert_eq!(summary.reading.late_records, 0);
    assert!(summary.warnings.is_empty(), "{:?}", summary.warnings);
    assert_eq!(summary.coverage_percent, 100.0);
    each(truth, summary, |vcpu, truth| {
        let counts = &vcpu.counts;
        let told = (
            counts.evtchn_ops.value,
            counts.waking_kicks.value,
            counts.polls_immediate.value,
            counts.polls_blocked.value,
            counts.polls_aborted.value,
            counts.inconsistent.value,
        );
        let real = (
            truth.evtchn_ops,
            truth.waking_kicks,
            truth.polls_immediate,
            truth.polls_blocked,
            truth.polls_aborted,
            0,
        );
        assert_eq!(told, real, "vCPU {}", vcpu.id);
        // A wait whose vCPU is on its pCPU again but has not run yet at the end: one at most.
        assert!(counts.waits_kicked.value - truth.waits_kicked <= 1);
        assert!(counts.waits_other.value - truth.waits_other <= 1);
    });
}

fn plans() -> Vec<Plan> {
    let mut plans = Vec::new();
    for guest in [Guest::Pv, Guest::Pvh, Guest::PvhAmd419] {
        for kicks in [Kicks::Twice, Kicks::AtUnlock] {
            for markers in [false, true] {
                for seed in 1..4 {
                    plans.push(Plan { seed, guest, kicks, markers, ..Plan::default() });
                }
            }
        }
    }
    plans
}

#[test]
fn counts_of_a_whole_trace_are_the_truth() {
    for plan in plans() {
        let (truth, summary) = run(&plan);
        assert!(truth.vcpus.values().any(|vcpu| vcpu.polls_aborted > 0), "the plan shows aborts");
        assert!(truth.vcpus.values().all(|vcpu| vcpu.polls_blocked > 10), "the plan sleeps");
        counts_match(&truth, &summary);
    }
}

#[test]
fn marked_acquisitions_are_the_truth() {
    for plan in plans().into_iter().filter(|plan| plan.markers) {
        let (truth, summary) = run(&plan);
        each(&truth, &summary, |vcpu, truth| {
            let marked = vcpu.marked.as_ref().expect("the guest marks");
            assert_eq!(marked.table[1..], truth.acquisitions[1..]);
            assert_eq!((marked.excluded, marked.disagreements), (0, 0));
        });
    }
}

#[test]
fn locks_one_by_one_are_the_truth() {
    for (kicks, guest) in [(Kicks::Twice, Guest::Pv), (Kicks::AtUnlock, Guest::PvhAmd419)] {
        let plan = Plan {
            locks: 3,
            vcpus: 8,
            kicks,
            guest,
            outside_ns: 1_000,
            markers: true,
            ..Plan::default()
        };
        let mut trace = Vec::new();
        let truth = generate(&plan, &mut trace).expect("a Vec takes everything");
        let mut analyser = Analyser::observed(&Options::default(), Each::default());
        let reading =
            read(&trace[..], &ReadOptions::default(), &mut analyser).expect("a sound trace");
        let (summary, each) = analyser.finish(reading);
        assert_eq!(truth.locks.len(), 6, "the plan contends for each lock");
        let mut told = 0;
        for domain in &summary.domains {
            for of in &domain.locks {
                let real = truth.locks[&(domain.id, of.lock.expect("few locks"))];
                assert_eq!(of.acquisitions.table[1..], real[1..]);
                assert!(of.waits >= of.acquisitions.waits && of.wait.count == of.waits);
                assert!(of.waits_kicked >= of.acquisitions.waking_kicks);
                let longest = of.longest.expect("it was waited for");
                assert!(longest.ticks <= of.wait.max, "a histogram rounds up");
                told += 1;
            }
        }
        assert_eq!(told, truth.locks.len());
        // One by one they are the same acquisitions.
        assert_eq!(each.0, truth.locks);
    }
}

/// Sums up acquisitions as they are told.
#[derive(Default)]
struct Each(BTreeMap<(u16, u32), [[u64; 4]; 4]>);

impl Observe for Each {
    fn acquisition(&mut self, of: &AcquisitionStory) {
        assert!(of.blocked < of.running && of.running <= of.marked);
        assert!(of.longest <= of.slept && of.slept <= of.running - of.blocked);
        assert_eq!(of.first_kicked_by.is_some(), of.waking_kicks > 0);
        let table = self.0.entry((of.vcpu.domain, of.lock)).or_default();
        table[of.waits.min(3) as usize][of.waking_kicks.min(3) as usize] += 1;
    }
}

#[test]
fn inference_comes_close_to_the_marks() {
    for plan in plans().into_iter().filter(|plan| plan.markers) {
        let (_, summary) = run(&plan);
        for domain in &summary.domains {
            let marked = domain.marked.as_ref().expect("the guest marks");
            let inferred = &domain.inferred;
            let (exact, guess) = (
                marked.waking_kicks_per_blocked.expect("it blocked"),
                inferred.waking_kicks_per_blocked.expect("it blocked"),
            );
            assert!(
                (exact - guess).abs() / exact < 0.15,
                "{:?}: marked {exact}, inferred {guess}",
                plan.kicks
            );
        }
    }
}

#[test]
fn the_patch_shows_in_the_kicks() {
    let ratio = |kicks| {
        let plan = Plan { kicks, markers: true, domains: 1, ..Plan::default() };
        let (_, summary) = run(&plan);
        let marked = summary.domains[0].marked.clone().expect("the guest marks");
        (marked.waking_kicks_per_blocked.unwrap(), marked.waking_kicks_per_slept_twice)
    };
    let (twice, slept_twice) = ratio(Kicks::Twice);
    let (at_unlock, _) = ratio(Kicks::AtUnlock);
    assert!(slept_twice.expect("some sleep twice") > 1.9);
    assert!(twice > 1.1, "{twice}");
    assert!(at_unlock <= 1.0, "{at_unlock}");
}

#[test]
fn frequency_is_learned_from_the_trace() {
    for hz in [1.0e9, 2.8e9, 4.7e9] {
        let (_, summary) = run(&Plan { hz, ..Plan::default() });
        let found = summary.clock.hz.expect("the trace has switches");
        assert!((found / hz - 1.0).abs() < 1e-3, "{found} for {hz}");
    }
}

#[test]
fn times_are_the_truth() {
    for plan in plans() {
        let (truth, summary) = run(&plan);
        each(&truth, &summary, |vcpu, truth| {
            let ns = |ticks: u64| ticks as f64 / 2.8;
            let close = |told: u64, real: u64| (ns(told) - real as f64).abs() < 40_000.0;
            assert!(close(vcpu.times.running, truth.running_ns), "{:?} {truth:?}", vcpu.times);
            assert!(close(vcpu.times.stolen, truth.runnable_ns), "{:?} {truth:?}", vcpu.times);
            assert!(close(vcpu.times.blocked, truth.blocked_ns), "{:?} {truth:?}", vcpu.times);
        });
    }
}

#[test]
fn timers_are_not_kicks() {
    let (truth, summary) = run(&Plan { timer_every: 5, markers: true, ..Plan::default() });
    assert!(truth.vcpus.values().any(|vcpu| vcpu.waits_other > 10), "the plan has timers");
    counts_match(&truth, &summary);
}

#[test]
fn padding_changes_nothing() {
    let (_, plain) = run(&Plan::default());
    let (_, padded) = run(&Plan { padding: true, ..Plan::default() });
    let json = |summary: &Summary| serde_json::to_value(&summary.domains).unwrap();
    assert_eq!(json(&plain), json(&padded));
}

#[test]
fn more_than_32_pcpus() {
    let plan =
        Plan { pcpus: 96, domains: 12, vcpus: 16, duration_ns: 10_000_000, ..Plan::default() };
    let (truth, summary) = run(&plan);
    assert_eq!(summary.reading.pcpus.len(), 96);
    counts_match(&truth, &summary);
}

#[test]
fn small_rings_change_nothing_unless_records_are_lost() {
    let plan = Plan { ring: 4096, ..Plan::default() };
    let (truth, summary) = run(&plan);
    assert_eq!(truth.lost, 0, "passes come in time");
    counts_match(&truth, &summary);
}

#[test]
fn lost_records_taint_and_never_invent() {
    let plan = Plan {
        ring: 4 << 10,
        drain_ns: 500_000,
        drain_when_half_full: false,
        markers: true,
        ..Plan::default()
    };
    let (truth, summary) = run(&plan);
    assert!(truth.lost > 1000 && truth.gaps > 20, "the plan loses records");
    // Records dropped at the very end have no lost record to tell of them.
    let untold = truth.lost - summary.reading.lost_records();
    assert!(untold * 10 < truth.lost, "{untold} of {}", truth.lost);
    assert_eq!(summary.reading.records, truth.records);
    assert!(summary.coverage_percent < 100.0);
    each(&truth, &summary, |vcpu, truth| {
        let counts = &vcpu.counts;
        assert!(counts.evtchn_ops.value <= truth.evtchn_ops);
        assert!(counts.waking_kicks.value <= truth.waking_kicks);
        assert!(counts.polls_blocked.value <= truth.polls_blocked);
        let marked = vcpu.marked.as_ref().expect("the guest marks");
        let total = |table: &[[u64; 4]; 4]| table[1..].iter().flatten().sum::<u64>();
        assert!(total(&marked.table) <= total(&truth.acquisitions));
    });
}

#[test]
fn skewed_tscs_are_noticed_and_corrected() {
    // 10 us is more than a wake takes, so vCPUs run before they are woken.
    let plan = Plan { skew: vec![0, 28_000, -14_000, 3_000], markers: true, ..Plan::default() };
    let mut trace = Vec::new();
    let truth = generate(&plan, &mut trace).expect("a Vec takes everything");
    let mut options = Options::default();
    let first = summarise(&trace[..], &options).expect("a sound trace");
    assert!(!first.tsc_offsets.is_empty());
    assert!(!first.warnings.is_empty());
    fix_skew(|| Ok(&trace[..]), |error| error, &mut options).expect("a sound trace");
    let summary = summarise(&trace[..], &options).expect("a sound trace");
    assert_eq!(summary.tsc_offsets, [], "no contradiction is left");
    assert_eq!(summary.reading.late_records, 0);
    // Only what runstates contradict is learned, so each TSC is right up to the time a wake takes;
    // whether a wake came just before a vCPU left its pCPU can still be told wrongly.
    let learned: std::collections::BTreeMap<_, _> = options.read.tsc_offsets.into_iter().collect();
    for (cpu, needed) in [(0, 28_000), (1, 0), (2, 42_000), (3, 25_000)] {
        let offset = learned.get(&cpu).copied().unwrap_or(0);
        assert!((offset - needed as i64).abs() < 6_000, "pCPU {cpu}: {offset} of {needed}");
    }
    each(&truth, &summary, |vcpu, truth| {
        let counts = &vcpu.counts;
        assert_eq!(counts.inconsistent.value, 0);
        assert_eq!(counts.evtchn_ops.value, truth.evtchn_ops);
        assert_eq!(counts.waking_kicks.value, truth.waking_kicks);
        let waits = truth.waits_kicked + truth.waits_other;
        assert!(counts.waits.value.abs_diff(waits) <= 2, "{} of {waits}", counts.waits.value);
    });
}
