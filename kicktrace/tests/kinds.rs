//! The kinds of trouble a host's trace may hold, on generated traces whose truth is known: pauses,
//! domains that end, pCPUs without records, late starts, drift, core scheduling, partial marks.

use std::collections::BTreeMap;

use kicktrace::summary::{Counts, Verdict};
use kicktrace::synth::{Guest, Kicks, Plan, Truth, generate};
use kicktrace::{Certainty, Options, Summary, fix_skew, summarise};

fn run(plan: &Plan) -> (Vec<u8>, Truth, Summary) {
    let mut trace = Vec::new();
    let truth = generate(plan, &mut trace).expect("a Vec takes everything");
    let summary = summarise(&trace[..], &Options::default()).expect("a sound trace");
    (trace, truth, summary)
}

const GUESTS: [(Guest, bool); 4] =
    [(Guest::Pv, false), (Guest::Pv, true), (Guest::Pvh, false), (Guest::PvhAmd419, true)];

/// Sums over all domains that had one number.
fn sums(summary: &Summary, of: fn(&Counts) -> u64) -> BTreeMap<(u16, u16), u64> {
    let mut sums = BTreeMap::new();
    for domain in &summary.domains {
        for vcpu in &domain.vcpus {
            *sums.entry((domain.id, vcpu.id)).or_default() += of(&vcpu.counts);
        }
    }
    sums
}

fn kicks_are_the_truth(truth: &Truth, summary: &Summary) {
    let kicks = sums(summary, |counts| counts.waking_kicks.value);
    let blocked = sums(summary, |counts| counts.polls_blocked.value);
    let aborted = sums(summary, |counts| counts.polls_aborted.value);
    for (who, truth) in &truth.vcpus {
        let told = (kicks[who], blocked[who], aborted[who]);
        assert_eq!(told, (truth.waking_kicks, truth.polls_blocked, truth.polls_aborted), "{who:?}");
    }
}

fn topics(summary: &Summary) -> Vec<&'static str> {
    summary.found(Verdict::Doubtful).map(|finding| finding.topic).collect()
}

/// Every poll is told once, whatever became of it.
fn polls_add_up(summary: &Summary) {
    for domain in &summary.domains {
        for counts in domain.vcpus.iter().map(|vcpu| &vcpu.counts) {
            let ended = counts.polls_blocked.value
                + counts.polls_aborted.value
                + counts.polls_immediate.value
                + counts.polls_unresolved.value;
            assert_eq!(counts.polls.value, ended, "d{}", domain.id);
        }
    }
}

#[test]
fn pauses_wake_nobody() {
    for (guest, markers) in GUESTS {
        let plan = Plan { guest, markers, pause_ns: 7_000, ..Plan::default() };
        let (_, truth, summary) = run(&plan);
        assert!(truth.pauses > 200, "the plan pauses sleepers: {}", truth.pauses);
        kicks_are_the_truth(&truth, &summary);
        polls_add_up(&summary);
        assert_eq!(topics(&summary), Vec::<&str>::new());
    }
}

#[test]
fn domains_that_get_a_number_again_are_others() {
    for (guest, markers) in GUESTS {
        let plan = Plan { guest, markers, rebirths: 3, duration_ns: 8_000_000, ..Plan::default() };
        let (_, truth, summary) = run(&plan);
        assert_eq!(summary.domains.len(), 2 * 4, "two numbers, four lives");
        kicks_are_the_truth(&truth, &summary);
        polls_add_up(&summary);
        assert_eq!(topics(&summary), Vec::<&str>::new(), "{:?}", summary.warnings);
        for domain in &summary.domains {
            assert_eq!(domain.ended.is_some(), domain.life < 3);
            let lived = domain.ticks as f64 / 2.8e6 / domain.vcpus.len() as f64;
            assert!((7.0..9.5).contains(&lived), "{lived} ms");
            assert!(domain.latencies.wait.max < 2_800 * 5_000, "no wait spans two lives");
            if let Some(marked) = &domain.marked {
                assert_eq!(marked.disagreements, 0);
            }
        }
    }
}

#[test]
fn many_short_lived_domains_are_no_damage() {
    let plan = Plan {
        domains: 30,
        vcpus: 2,
        pcpus: 60,
        rebirths: 80,
        duration_ns: 50_000,
        ..Plan::default()
    };
    let (_, _, summary) = run(&plan);
    let told: usize = summary.domains.iter().map(|domain| domain.vcpus.len()).sum();
    assert!(told > 4_200, "{told} vCPUs");
    assert_eq!(topics(&summary), Vec::<&str>::new());
}

#[test]
fn a_pcpu_without_records_is_named() {
    for (absent, guest) in [(1, Guest::Pv), (0, Guest::Pv), (2, Guest::Pvh), (3, Guest::Pv)] {
        let mut late = vec![0; 4];
        late[absent] = u64::MAX;
        let (_, truth, summary) = run(&Plan { late, guest, ..Plan::default() });
        assert!(topics(&summary).contains(&"pCPUs"), "{absent}: {:?}", summary.warnings);
        let text = summary.warnings.join("\n");
        // The last one leaves no hole in the numbers.
        assert!(absent == 3 || text.contains(&format!("no record of pCPU {absent}")), "{text}");
        let told = sums(&summary, |counts| counts.waking_kicks.value).values().sum::<u64>();
        let real = truth.vcpus.values().map(|vcpu| vcpu.waking_kicks).sum::<u64>();
        assert!(told < real, "{told} of {real}");
        for domain in &summary.domains {
            assert_ne!(domain.counts.evtchn_ops.certainty, Certainty::Exact);
            assert_ne!(domain.latencies.wait.certainty, Certainty::Exact);
        }
    }
}

#[test]
fn a_pcpu_that_begins_late_is_told() {
    for late in [0, 1, 3] {
        let mut starts = vec![0; 4];
        starts[late] = 10_000_000;
        let (_, _, summary) = run(&Plan { late: starts, ..Plan::default() });
        let topics = topics(&summary);
        assert!(topics.contains(&"start") || topics.contains(&"contradictions"), "{topics:?}");
        assert_ne!(summary.domains[0].counts.evtchn_ops.certainty, Certainty::Exact);
    }
}

#[test]
fn partial_marks_leave_the_others_inferred() {
    for guest in [Guest::Pv, Guest::Pvh] {
        for kicks in [Kicks::Twice, Kicks::AtUnlock] {
            let plan = Plan { guest, kicks, markers: true, markers_below: 2, ..Plan::default() };
            let (_, _, summary) = run(&plan);
            for domain in &summary.domains {
                for vcpu in &domain.vcpus {
                    let exact = vcpu.counts.waking_kicks.certainty == Certainty::Exact;
                    assert_eq!(exact, vcpu.id < 2, "v{}", vcpu.id);
                    // Each was woken by some that do not mark.
                    assert_eq!(vcpu.counts.waits_kicked.certainty, Certainty::Inferred);
                    if let Some(marked) = &vcpu.marked {
                        assert_eq!(marked.certainty, Certainty::Inferred);
                    }
                }
                assert!(domain.locks.iter().all(|of| of.certainty == Certainty::Inferred));
            }
        }
    }
}

#[test]
fn core_scheduling_is_noticed() {
    for guest in [Guest::Pv, Guest::Pvh] {
        let plan = Plan { guest, core_scheduling: true, ..Plan::default() };
        let (_, _, summary) = run(&plan);
        assert!(topics(&summary).contains(&"cores"), "{:?}", summary.warnings);
        for domain in &summary.domains {
            for (name, count) in domain.counts.named() {
                let by_rule = ["evtchn_ops", "waking_kicks", "polls", "waits"].contains(&name);
                assert!(!by_rule || count.certainty != Certainty::Exact, "{name}");
            }
        }
    }
}

#[test]
fn offsets_and_slopes_are_learned() {
    let cases: [(&str, Vec<i64>, Vec<f64>); 5] = [
        ("an offset", vec![0, 280_000], vec![]),
        ("a second", vec![2_800_000_000, 0], vec![]),
        ("a slope", vec![], vec![0.0, 1e-3]),
        ("both", vec![0, -300_000], vec![1e-4]),
        ("four pCPUs", vec![0, 90_000, -50_000, 400_000], vec![0.0, 0.0, 2e-4, 0.0]),
    ];
    for (name, skew, drift) in cases {
        let pcpus = skew.len().max(drift.len()).max(2) as u32;
        let plan = Plan { skew, drift, pcpus, markers: true, ..Plan::default() };
        let (trace, truth, before) = run(&plan);
        assert_eq!(before.verdict, Verdict::Doubtful, "{name}");
        let mut options = Options::default();
        let fixed = fix_skew(|| Ok(&trace[..]), |error| error, &mut options);
        let fixed = fixed.expect("a sound trace");
        // Along several pCPUs errors add up: one in a hundred may be left, and is told.
        let allowed = if pcpus > 2 { fixed.before / 100 } else { 0 };
        assert!(fixed.before > 0 && fixed.left <= allowed, "{name}: {fixed:?}");
        let after = summarise(&trace[..], &options).expect("a sound trace");
        let contradictions: u64 =
            after.domains.iter().map(|domain| domain.counts.inconsistent.value).sum();
        assert!(contradictions <= allowed, "{name}: {:?} {:?}", options.read, after.warnings);
        let told = sums(&after, |counts| counts.waking_kicks.value);
        for (who, truth) in &truth.vcpus {
            let slack = 1 + allowed;
            assert!(told[who].abs_diff(truth.waking_kicks) <= slack, "{name} {who:?}");
        }
        for domain in &after.domains {
            assert_eq!(domain.latencies.wake_to_run.certainty, Certainty::Inferred, "{name}");
            let us = domain.latencies.wake_to_run.p50 as f64 / 2_800.0;
            let (_, _, sound) = run(&Plan { pcpus, markers: true, ..Plan::default() });
            let right = sound.domains[0].latencies.wake_to_run.p50 as f64 / 2_800.0;
            // What the fastest hand-overs leave open.
            assert!((us - right).abs() < 10.0, "{name}: {us} us, {right} without skew");
        }
    }
}

#[test]
fn tscs_in_step_are_left_alone() {
    for seed in 1..4 {
        let (trace, _, _) = run(&Plan { seed, ..Plan::default() });
        let mut options = Options::default();
        let fixed = fix_skew(|| Ok(&trace[..]), |error| error, &mut options);
        assert_eq!(fixed.expect("a sound trace").before, 0);
        assert!(!options.read.corrects());
    }
}

#[test]
fn every_poll_is_told_once() {
    for (guest, markers) in GUESTS {
        let lossy = Plan {
            guest,
            markers,
            timer_every: 5,
            ring: 4 << 10,
            drain_ns: 500_000,
            drain_when_half_full: false,
            ..Plan::default()
        };
        for plan in [Plan { guest, markers, ..Plan::default() }, lossy] {
            polls_add_up(&run(&plan).2);
        }
    }
}

/// One absurd TSC anywhere moves no time but its own.
#[test]
fn one_absurd_tsc_moves_nothing() {
    let (trace, truth, sound) = run(&Plan { duration_ns: 3_000_000, ..Plan::default() });
    let words = |trace: &[u8]| -> Vec<u32> {
        trace.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    };
    // Where each record with a TSC stands.
    let (all, mut at, mut timed) = (words(&trace), 0, Vec::new());
    while at < all.len() {
        let end = at + 3 + all[at + 2] as usize / 4;
        at += 3;
        while at < end {
            if all[at] >> 31 != 0 {
                timed.push(at);
            }
            at += (1 + 2 * (all[at] >> 31) + (all[at] >> 28 & 7)) as usize;
        }
    }
    for &at in timed.iter().skip(timed.len() / 3).step_by(timed.len() / 9) {
        for absurd in [0u64, 1 << 62, u64::MAX] {
            let mut damaged = all.clone();
            (damaged[at + 1], damaged[at + 2]) = (absurd as u32, (absurd >> 32) as u32);
            let bytes: Vec<u8> = damaged.into_iter().flat_map(u32::to_le_bytes).collect();
            let summary = summarise(&bytes[..], &Options::default()).expect("a sound file");
            assert_eq!(summary.reading.records, truth.records);
            assert!(summary.ticks.abs_diff(sound.ticks) < 100_000, "{absurd:#x} at word {at}");
            assert!(topics(&summary).contains(&"stray TSCs"), "{:?}", summary.findings);
        }
    }
}
