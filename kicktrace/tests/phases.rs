//! Windows and phases of a trace: together they are the whole, and each is what happened then.

#[path = "common/filter.rs"]
mod filter;

use kicktrace::analysis::{Bounds, Phases, complete};
use kicktrace::event;
use kicktrace::reader::{ReadOptions, read};
use kicktrace::summary::{Domain, Verdict};
use kicktrace::synth::{Guest, Kicks, Plan, generate};
use kicktrace::{Options, Summary, summarise};

const TWICE: &[u8] = include_bytes!("data/kick-twice-pv.xentrace.bin");

fn phases(trace: &[u8], bounds: Bounds) -> Vec<Summary> {
    let mut told = Vec::new();
    let mut phases = Phases::new(&Options::default(), (), bounds, |phase, _: &mut ()| {
        told.push(phase);
    });
    let reading = read(trace, &ReadOptions::default(), &mut phases).expect("a sound trace");
    phases.finish(reading);
    told
}

fn traces() -> Vec<Vec<u8>> {
    let mut traces = vec![TWICE.to_vec()];
    for (guest, kicks, markers, ring) in [
        (Guest::Pv, Kicks::Twice, true, 1 << 20),
        (Guest::Pvh, Kicks::AtUnlock, false, 1 << 20),
        (Guest::PvhAmd419, Kicks::Twice, true, 4 << 10),
    ] {
        let plan = Plan {
            guest,
            kicks,
            markers,
            ring,
            drain_when_half_full: ring > 4 << 10,
            drain_ns: 500_000,
            timer_every: 7,
            locks: 2,
            ..Plan::default()
        };
        let mut trace = Vec::new();
        generate(&plan, &mut trace).expect("a Vec takes everything");
        traces.push(trace);
    }
    traces
}

/// Counts, times and acquisitions: what adds up.
fn sums(domain: &Domain) -> Vec<(String, u64)> {
    let mut sums: Vec<_> =
        domain.counts.named().into_iter().map(|(name, of)| (name.to_owned(), of.value)).collect();
    let times = domain.times.named(&domain.times_certainty);
    sums.extend(times.into_iter().map(|(name, ticks, _)| (name.to_owned(), ticks)));
    for (name, of) in [("marked", domain.marked.as_ref()), ("inferred", Some(&domain.inferred))] {
        let cells = of.map(|of| of.table).unwrap_or_default();
        sums.extend(cells.as_flattened().iter().map(|&cell| (format!("{name} table"), cell)));
        let all = of.map_or([0; 3], |of| [of.waits, of.waking_kicks, of.excluded]);
        sums.extend(all.map(|count| (name.to_owned(), count)));
    }
    let latencies = &domain.latencies;
    for of in
        [&latencies.kick_to_wake, &latencies.wake_to_run, &latencies.kick_to_run, &latencies.wait]
    {
        sums.push(("latency".into(), of.count));
    }
    sums.push(("waits of locks".into(), domain.locks.iter().map(|of| of.waits).sum()));
    sums
}

#[test]
fn phases_add_up_to_the_whole() {
    for trace in traces() {
        // Not by `summarise`, which does not wait for each record's place among all: what a gap
        // makes doubtful depends on it.
        let whole = phases(&trace, Bounds::default()).remove(0);
        for every in [whole.ticks / 7, whole.ticks / 101, whole.ticks * 2] {
            let told = phases(&trace, Bounds { every: Some(every), ..Bounds::default() });
            // The last record has its phase, even if that begins with it.
            assert_eq!(told.len() as u64, whole.ticks / every + 1);
            assert_eq!(told.iter().map(|phase| phase.ticks).sum::<u64>(), whole.ticks);
            let records = |of: &Summary| of.reading.records;
            assert_eq!(told.iter().map(records).sum::<u64>(), records(&whole));
            let lost = |of: &Summary| of.reading.lost_records();
            assert_eq!(told.iter().map(lost).sum::<u64>(), lost(&whole));
            for domain in &whole.domains {
                let parts = told.iter().filter_map(|phase| {
                    phase.domains.iter().find(|of| of.id == domain.id).map(sums)
                });
                let mut all = sums(domain);
                all.iter_mut().for_each(|(_, sum)| *sum = 0);
                for part in parts {
                    for ((_, sum), (_, of)) in all.iter_mut().zip(part) {
                        *sum += of;
                    }
                }
                let mut real = sums(domain);
                // Before a guest's first mark this is an upper bound. A state that a later record
                // contradicts, as happens beside a gap, is no longer known: a phase that ended
                // before has told it.
                let doubtful =
                    ["stolen", "stolen_after_wake", "blocked", "blocked_in_poll", "unknown"];
                for of in [&mut all, &mut real] {
                    of.retain(|(name, _)| {
                        (domain.id == 0 || name != "kicks_without_wake")
                            && (lost(&whole) == 0 || !doubtful.contains(&name.as_str()))
                    });
                }
                assert_eq!(all, real, "d{} in phases of {every}", domain.id);
            }
        }
    }
}

/// A preemption that spans hundreds of phases is one, and pushes no other out of memory.
#[test]
fn thousands_of_phases_add_up_to_the_whole() {
    let whole = phases(TWICE, Bounds::default()).remove(0);
    let all = phases(TWICE, Bounds { every: Some(whole.ticks / 9_000), ..Bounds::default() });
    assert!(all.len() >= 9_000);
    let sum = |id: u16, of: &dyn Fn(&Domain) -> u64| -> u64 {
        all.iter().flat_map(|phase| &phase.domains).filter(|domain| domain.id == id).map(of).sum()
    };
    for domain in &whole.domains {
        for (at, (name, ticks, _)) in
            domain.times.named(&domain.times_certainty).into_iter().enumerate()
        {
            let parts = sum(domain.id, &|of| of.times.named(&of.times_certainty)[at].1);
            assert_eq!(parts, ticks, "d{}: {name}", domain.id);
        }
        assert_eq!(sum(domain.id, &|of| of.counts.waits.value), domain.counts.waits.value);
    }
}

#[test]
fn a_window_is_its_phase() {
    for trace in traces() {
        let whole = summarise(&trace[..], &Options::default()).expect("a sound trace");
        let every = whole.ticks / 9;
        let told = phases(&trace, Bounds { every: Some(every), ..Bounds::default() });
        for at in [0, 3, 8] {
            let from = every * at as u64;
            let window = phases(&trace, Bounds { from, to: Some(from + every), every: None });
            let [window] = &window[..] else { panic!("one window is one phase") };
            let json = |of: &Summary| {
                serde_json::to_value((&of.domains, of.window, of.ticks, &of.warnings)).unwrap()
            };
            assert_eq!(json(window), json(&told[at]));
        }
    }
}

#[test]
fn a_domain_s_states_fill_a_phase() {
    // No vCPU of this host is ever offline, and none appears late.
    let mut trace = Vec::new();
    generate(&Plan::default(), &mut trace).expect("a Vec takes everything");
    let told =
        phases(&trace, Bounds { from: 14_000_000, to: Some(42_000_000), every: Some(700_000) });
    assert_eq!(told.len(), 40);
    for phase in &told {
        for vcpu in phase.domains.iter().flat_map(|domain| &domain.vcpus) {
            let times = &vcpu.times;
            assert_eq!(times.running + times.stolen + times.blocked, phase.ticks);
            assert!(times.blocked_in_poll <= times.blocked, "{times:?}");
            assert!(times.stolen_after_wake <= times.stolen, "{times:?}");
        }
    }
}

#[test]
fn what_is_marked_before_a_window_is_known_in_it() {
    let whole = summarise(TWICE, &Options::default()).expect("a sound trace");
    let half = Bounds { from: whole.ticks / 2, ..Bounds::default() };
    let told = phases(TWICE, half);
    for domain in told[0].domains.iter().filter(|domain| domain.id > 0) {
        assert_eq!(domain.counts.waking_kicks.certainty, kicktrace::Certainty::Exact);
    }
}

/// A part in which nothing of a class happens lacks it only if the whole trace does.
#[test]
fn what_a_part_lacks_may_be_in_the_rest() {
    let missing = |trace: &[u8], to: u64| {
        let mut told = Vec::new();
        let bounds = Bounds { to: Some(to), ..Bounds::default() };
        let mut phases =
            Phases::new(&Options::default(), (), bounds, |phase, _: &mut ()| told.push(phase));
        let reading = read(trace, &ReadOptions::default(), &mut phases).expect("a sound trace");
        let (_, whole) = phases.finish(reading);
        let mut summary = told.pop().expect("a part");
        complete(&mut summary, whole);
        summary.found(Verdict::Missing).map(|finding| finding.topic).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    let classes = [
        (event::SCHED_MIN, "runstate changes"),
        (event::SCHED_VERBOSE, "wake or block records"),
        (event::PV_ENTRY, "hypercalls"),
    ];
    for to in [1, 1_000, 100_000, u64::MAX] {
        assert_eq!(missing(TWICE, to), none, "to {to}");
        for (group, topic) in classes {
            assert_eq!(missing(&filter::without(TWICE, group), to), [topic], "to {to}");
        }
    }
    // What is there from the middle on does not bring back what a part before it needed.
    let whole = summarise(TWICE, &Options::default()).expect("a sound trace");
    let mut half = TWICE.len() / 2 / 4 * 4;
    while TWICE[half..half + 4] != 0x2001_f003_u32.to_le_bytes() {
        half += 4;
    }
    for (group, topic) in classes {
        let later = [&filter::without(&TWICE[..half], group), &TWICE[half..]].concat();
        assert_eq!(missing(&later, 1), none);
        assert_eq!(missing(&later, whole.ticks / 4), [topic]);
    }
}

#[test]
fn a_trace_of_endless_time_is_refused() {
    // A TSC that jumps by hours would be millions of phases.
    let mut trace = Vec::new();
    // Twice: a single one would be taken for absurd.
    let far = [0xa002_8004, 7, 0x7fff, 1, 3];
    let near = [0x2001_f003u32, 0, 60, 0xa002_8004, 7, 0, 1, 3];
    for word in near.into_iter().chain(far).chain(far) {
        trace.extend_from_slice(&word.to_le_bytes());
    }
    let bounds = Bounds { every: Some(1_000), ..Bounds::default() };
    let mut phases = Phases::new(&Options::default(), (), bounds, |_, _: &mut ()| {});
    let error = read(&trace[..], &ReadOptions::default(), &mut phases).expect_err("too many");
    assert!(error.to_string().contains("--every"), "{error}");
    assert_eq!(error.offset(), Some(32));
}
