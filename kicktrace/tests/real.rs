//! A trace captured on real Xen; see data/README.md.

use kicktrace::summary::DomainKind;
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
