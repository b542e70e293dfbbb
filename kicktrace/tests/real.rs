//! A trace captured on real Xen; see data/README.md.

use kicktrace::Certainty;
use kicktrace::summary::{Acquisitions, DomainKind};
use kicktrace::{Options, summarise};

const MINI: &[u8] = include_bytes!("data/mini-pv.xentrace.bin");

#[test]
fn a_pv_guest_that_polls_with_deadlines() {
    let summary = summarise(MINI, &Options::default()).expect("a sound trace");
    assert_eq!((summary.reading.records, summary.reading.windows), (44_643, 42));
    assert_eq!(summary.reading.lost_records(), 0);
    assert_eq!(summary.reading.late_records, 0);
    assert_eq!(summary.coverage_percent, 100.0);
    let ghz = summary.clock.hz.expect("it has switches") / 1e9;
    assert!((2.75..2.85).contains(&ghz), "the host has 2.8 GHz, found {ghz}");
    let ids: Vec<_> = summary.domains.iter().map(|domain| domain.id).collect();
    assert_eq!(ids, [0, 4]);
    let guest = &summary.domains[1];
    assert_eq!(guest.kind, DomainKind::Pv);
    let counts = &guest.counts;
    // It polls a port nobody kicks ten times, and ten times one that is pending.
    assert_eq!(counts.polls.value, 20);
    assert_eq!(counts.polls_blocked.value, 10);
    assert_eq!(counts.polls_immediate.value, 10);
    assert_eq!(counts.waits_other.value, 10);
    assert_eq!(counts.waking_kicks.value, 0);
    assert_eq!(counts.yields.value, 1000);
    assert_eq!(counts.inconsistent.value, 0);
    // Deadlines of 5 ms.
    let wait = summary.clock.ns(guest.latencies.wait.p50).expect("the frequency is known");
    assert!((3e6..6e6).contains(&wait), "{wait} ns");
}

/// Every figure that must hold on a trace of contended guests with marks.
fn contended(trace: &[u8]) -> Vec<(Acquisitions, Acquisitions)> {
    let summary = summarise(trace, &Options::default()).expect("a sound trace");
    assert_eq!(summary.reading.lost_records(), 0);
    assert!(summary.coverage_percent > 99.0, "{}", summary.coverage_percent);
    let guests = summary.domains.iter().filter(|domain| domain.id != 0);
    let guests: Vec<_> = guests
        .map(|domain| {
            assert_eq!(domain.kind, DomainKind::Pv);
            let counts = &domain.counts;
            assert!(counts.waking_kicks.value > 300);
            assert!(counts.waking_kicks.value <= counts.marked_kicks.value);
            // One whose target polled before the trace began looks idle.
            assert!(counts.idle_kicks.value <= 1);
            let marked = domain.marked.clone().expect("the guest marks");
            assert_eq!(marked.certainty, Certainty::Exact);
            assert_eq!(marked.disagreements, 0, "guest and hypervisor count the same");
            (marked, domain.inferred.clone())
        })
        .collect();
    assert_eq!(guests.len(), 2);
    guests
}

#[test]
fn marks_and_inference_agree_on_kick_twice() {
    for (marked, inferred) in contended(include_bytes!("data/kick-twice-pv.xentrace.bin")) {
        let slept_twice = marked.waking_kicks_per_slept_twice.expect("some slept twice");
        assert!((1.95..=2.0).contains(&slept_twice), "{slept_twice}");
        let (exact, guess) =
            (marked.waking_kicks_per_blocked.unwrap(), inferred.waking_kicks_per_blocked.unwrap());
        assert!(exact > 1.2 && (guess / exact - 1.0).abs() < 0.03, "{exact} {guess}");
        let (exact, guess) = (marked.slept_twice as f64, inferred.slept_twice as f64);
        assert!((guess / exact - 1.0).abs() < 0.15, "{exact} {guess}");
    }
}

#[test]
fn marks_and_inference_agree_on_kick_at_unlock() {
    for (marked, inferred) in contended(include_bytes!("data/kick-at-unlock-pv.xentrace.bin")) {
        let (exact, guess) =
            (marked.waking_kicks_per_blocked.unwrap(), inferred.waking_kicks_per_blocked.unwrap());
        assert!((0.95..=1.0).contains(&exact), "{exact}");
        assert!((guess / exact - 1.0).abs() < 0.03, "{exact} {guess}");
    }
}
