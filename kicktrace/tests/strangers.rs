//! Variations of one sound trace, each with something that a stranger's trace may have and that is
//! in none of the given cases. What is right was written down before the program was asked.
//!
//! The sound one (`00_base`): v0 stays on pCPU 0 and kicks v1 fifty times, every 100 us, out of a
//! poll on pCPU 1. Its TSC has 1 GHz and starts at 1000 s.

#[path = "common/records.rs"]
mod records;

use kicktrace::analysis::{Analyser, Bounds, Cause, Host, HostSummary, Phases, complete};
use kicktrace::reader::{Reading, Record, Visit};
use kicktrace::summary::{Domain, Verdict};
use kicktrace::{Certainty, Options, Summary, event, reader, summarise};
use records::{Rec, file, records};

const BASE: &[u8] = include_bytes!("data/cases/00_base.bin");

/// When it starts.
const START: u64 = 1_000_000_000_000;

fn base() -> Vec<Rec> {
    records(BASE)
}

fn told(records: &[Rec]) -> Summary {
    summarise(&file(records)[..], &Options::default()).expect("a sound file")
}

fn guest(summary: &Summary) -> &Domain {
    summary.domains.iter().find(|domain| domain.id == 1).expect("the guest")
}

fn found<'a>(summary: &'a Summary, topic: &str) -> Option<&'a str> {
    summary.findings.iter().find(|of| of.topic == topic).map(|of| of.what.as_str())
}

/// Topics of what is doubtful or missing.
fn doubts(summary: &Summary) -> Vec<&'static str> {
    let bad = summary.findings.iter().filter(|of| of.verdict >= Verdict::Doubtful);
    bad.map(|of| of.topic).collect()
}

fn shifted(records: &[Rec], by: i64) -> Vec<Rec> {
    let shift =
        |rec: &Rec| Rec { tsc: rec.tsc.map(|tsc| tsc.wrapping_add_signed(by)), ..rec.clone() };
    records.iter().map(shift).collect()
}

fn is_wake(rec: &Rec) -> bool {
    rec.event == event::WAKE
}

#[test]
fn taken_apart_and_put_together_it_is_the_same() {
    assert!(file(&base()) == BASE);
}

/// An interrupt between a WAKE and the change it makes may wake another vCPU.
#[test]
fn a_wake_inside_a_wake_takes_nothing_from_it() {
    let mut all = base();
    let kicks: Vec<u64> = all.iter().filter(|rec| is_wake(rec)).filter_map(|rec| rec.tsc).collect();
    let other = |from: u32, to: u32| event::RUNSTATE_CHANGE | from << 8 | to << 4;
    for tsc in kicks {
        // d2v0 sleeps on pCPU 2 and is woken in between by pCPU 0.
        all.push(Rec::new(0, tsc + 30, event::WAKE, &[2, 0]));
        all.push(Rec::new(0, tsc + 60, other(2, 1), &[2 << 16]));
        all.push(Rec::new(2, tsc + 1_000, other(1, 0), &[2 << 16]));
        all.push(Rec::new(2, tsc + 2_000, other(0, 2), &[2 << 16]));
    }
    let summary = told(&all);
    let counts = &guest(&summary).counts;
    assert_eq!((counts.waking_kicks.value, counts.waits_kicked.value), (50, 50));
    assert_eq!(counts.waits_tainted.value, 0);
    assert_eq!(doubts(&summary), Vec::<&str>::new());
}

/// Records of a moment long before, on one pCPU or on all, whatever stands first behind them.
#[test]
fn what_is_left_from_before_is_told_as_silence() {
    let early = |cpu: u32, tsc: u64| Rec::new(cpu, tsc, event::CONTINUE_RUNNING, &[1 << 16 | cpu]);
    for (name, old) in [
        ("at TSC 0", vec![early(0, 0)]),
        ("at TSC 0, on the other pCPU", vec![early(1, 0)]),
        ("a second before", vec![early(1, START - 1_000_000_000), early(1, START - 999_000_000)]),
        ("on both", (0..2).map(|cpu| early(cpu, START - 4_000_000_000)).collect()),
    ] {
        let summary = told(&[old, base()].concat());
        let silence = found(&summary, "silence").unwrap_or_else(|| panic!("{name}"));
        assert!(silence.contains("nothing was recorded for"), "{name}: {silence}");
        assert_eq!(guest(&summary).counts.waking_kicks.value, 50, "{name}");
        assert!(!doubts(&summary).contains(&"pCPUs"), "{name}: {:?}", summary.warnings);
    }
    // A session of four seconds before one of ten: less than half, and no less odd.
    let slow: Vec<Rec> = base()
        .into_iter()
        .map(|rec| Rec { tsc: rec.tsc.map(|tsc| START + (tsc - START) * 2_000), ..rec })
        .collect();
    let summary = told(&[shifted(&base(), -4_000_000_000), slow].concat());
    assert!(found(&summary, "silence").is_some(), "{:?}", summary.warnings);
}

/// TSCs may start again by a little only: the same file twice, or a session that began shortly
/// before.
#[test]
fn sessions_that_overlap_are_told_apart() {
    for back in [0, 100_000_000, 1_000_000_000] {
        let mut both = file(&base());
        both.extend(file(&shifted(&base(), -back)));
        let summary = summarise(&both[..], &Options::default()).expect("a sound file");
        assert!(found(&summary, "TSC restart").is_some(), "{back}: {:?}", summary.warnings);
        assert_eq!(summary.reading.late_records, 0, "{back}");
        let counts = &guest(&summary).counts;
        assert_eq!((counts.waking_kicks.value, counts.inconsistent.value), (100, 0), "{back}");
    }
}

#[test]
fn a_pcpu_that_falls_silent_is_named() {
    let half = START + 2_500_000;
    for (cpu, before, place) in [(1, true, "first"), (1, false, "last"), (0, true, "first")] {
        let mut all = base();
        all.retain(|rec| rec.cpu != cpu || (rec.tsc.unwrap() > half) == before);
        let summary = told(&all);
        let what = found(&summary, "pCPUs").unwrap();
        let named = format!("pCPU {cpu} has no record in the {place} 0.00");
        assert!(what.contains(&named), "{what}");
        assert_ne!(guest(&summary).counts.waits.certainty, Certainty::Exact);
    }
}

/// What was not captured did not "not happen", whatever else of its group is there.
#[test]
fn a_class_that_is_not_there_leaves_nothing_exact() {
    let without = |out: fn(&Rec) -> bool| {
        let mut all = base();
        all.retain(|rec| !out(rec));
        told(&all)
    };
    let no_wakes = without(|rec| matches!(rec.event, event::WAKE | event::BLOCK));
    assert_eq!(doubts(&no_wakes), ["wake or block records"], "{:?}", no_wakes.findings);
    let no_calls = without(|rec| rec.event == event::PV_HYPERCALL);
    assert_eq!(doubts(&no_calls), ["hypercalls"]);
    // Nobody knows what they blocked in.
    let counts = &guest(&no_calls).counts;
    assert_eq!((counts.idle_blocks.value, counts.blocks_unknown.value), (0, 50));
    let no_changes = without(|rec| rec.event & event::GROUP_MASK == event::SCHED_MIN);
    assert!(doubts(&no_changes).contains(&"runstate changes"));
    for (summary, certainty) in [
        (&no_wakes, Certainty::LowerBound),
        (&no_calls, Certainty::LowerBound),
        // Who made a call is not certain either: whoever was on a pCPU seems to stay there.
        (&no_changes, Certainty::Inferred),
    ] {
        let counts = &guest(summary).counts;
        for of in [counts.waking_kicks, counts.waits, counts.evtchn_ops, counts.polls] {
            assert_eq!(of.certainty, certainty, "{of:?}");
        }
    }
    // A filter that took out some.
    let mut all = base();
    let mut odd = false;
    all.retain(|rec| {
        odd ^= is_wake(rec);
        !is_wake(rec) || odd
    });
    let some_wakes = told(&all);
    assert_eq!(doubts(&some_wakes), ["wakes"]);
    assert_ne!(guest(&some_wakes).counts.waits.certainty, Certainty::Exact);
}

/// The mask may be changed while a trace is taken. What the other records prove is told.
#[test]
fn a_class_that_ends_half_way_leaves_nothing_exact() {
    let half = START + 2_500_000;
    let until_half = |out: fn(&Rec) -> bool| {
        let mut all = base();
        all.retain(|rec| rec.tsc.unwrap() < half || !out(rec));
        told(&all)
    };
    let calls = until_half(|rec| rec.event == event::PV_HYPERCALL);
    let blocks = until_half(|rec| rec.event == event::BLOCK);
    let changes = until_half(|rec| rec.event & event::GROUP_MASK == event::SCHED_MIN);
    for (summary, topic) in [(calls, "entries"), (blocks, "blocks"), (changes, "changes")] {
        assert!(doubts(&summary).contains(&topic), "{topic}: {:?}", summary.findings);
        let counts = &guest(&summary).counts;
        for of in [counts.waking_kicks, counts.waits, counts.evtchn_ops, counts.polls] {
            assert_ne!(of.certainty, Certainty::Exact, "{topic}: {of:?}");
        }
        // Nothing tells which waits to leave out.
        let values = &guest(&summary).latencies;
        for of in [&values.wait, &values.wake_to_run, &values.kick_to_run] {
            assert_ne!(of.certainty, Certainty::Exact, "{topic}: {of:?}");
        }
        // There may be fewer of what is told by a record that does not come.
        for of in [
            counts.kicks_without_wake,
            counts.polls_immediate,
            counts.idle_blocks,
            counts.waits_other,
        ] {
            assert_eq!(of.certainty, Certainty::Inferred, "{topic}: {of:?}");
        }
        // What they blocked in is not known, but for one that had called before.
        assert!(counts.idle_blocks.value <= 1, "{topic}: {:?}", counts.idle_blocks);
    }
}

/// The guest's mark of a kick of vCPU `target` by `by`, a microsecond before each operation of
/// `kicks`.
fn marked(kicks: std::ops::Range<usize>, by: u32, target: u32) -> Summary {
    let mut all = Vec::new();
    let mut seen = 0;
    for rec in base() {
        let is_kick = rec.event == event::PV_HYPERCALL
            && rec.words[0] & 0xf_ffff == event::HYPERCALL_EVENT_CHANNEL_OP;
        if is_kick && kicks.contains(&seen) {
            let tsc = rec.tsc.unwrap() - 1_000;
            all.push(Rec::new(0, tsc, event::PV_HYPERCALL, &[event::HYPERCALL_HVM_OP]));
            let kick = kicktrace::markers::GUEST | kicktrace::markers::KICK;
            let words = vec![by, target, 0x1000, 0];
            all.push(Rec { cpu: 0, tsc: None, event: kick, words });
        }
        seen += usize::from(is_kick);
        all.push(rec);
    }
    told(&all)
}

#[test]
fn marks_of_some_kicks_are_no_proof_for_all() {
    let whole = marked(0..50, 0, 1);
    assert_eq!(guest(&whole).counts.waking_kicks, kicktrace::Count::exact(50));
    assert_eq!(guest(&whole).counts.waits_kicked, kicktrace::Count::exact(50));
    // Marks that begin late, end early, or come and go.
    for kicks in [25..50, 0..25, 10..40] {
        let summary = marked(kicks.clone(), 0, 1);
        let counts = &guest(&summary).counts;
        for of in [counts.waking_kicks, counts.waits_kicked, counts.waits_other] {
            assert_ne!(of.certainty, Certainty::Exact, "{kicks:?}: {of:?}");
        }
        assert!(found(&summary, "partial marks").is_some(), "{kicks:?}");
    }
    // Five of fifty may be other interrupts.
    let most = marked(0..46, 0, 1);
    assert_eq!(guest(&most).counts.waking_kicks, kicktrace::Count::exact(46));
}

#[test]
fn marks_that_the_hypervisor_contradicts_are_doubtful() {
    let summary = marked(0..50, 0, 7);
    assert_eq!(guest(&summary).counts.waking_kicks.value, 0, "v7 was not woken");
    assert_eq!(doubts(&summary), ["mistaken marks"]);
    assert_eq!(doubts(&marked(0..50, 1, 1)), ["malformed marks"], "v0 speaks for v1");
}

/// With core scheduling the change that ends a wait may come before the records that begin it: that
/// is no wait of no length.
#[test]
fn no_wait_ends_before_it_begins() {
    let mut all = base();
    for rec in &mut all {
        let comes = event::runstate_change(rec.event).is_some_and(|(old, new)| {
            old == event::Runstate::Runnable && new == event::Runstate::Running
        });
        // pCPU 0 sets v1 running on pCPU 1.
        if comes && rec.words[0] == 1 << 16 | 1 {
            rec.cpu = 0;
        }
    }
    all.retain(|rec| {
        rec.words.first().is_none_or(|key| key >> 16 != event::DOMID_IDLE || rec.cpu == 0)
    });
    let summary = told(&all);
    assert!(doubts(&summary).contains(&"cores"), "{:?}", summary.warnings);
    let guest = guest(&summary);
    assert!(guest.times.blocked_in_poll <= guest.times.blocked, "{:?}", guest.times);
    let wait = &guest.latencies.wait;
    assert!(wait.count == 0 || wait.min > 10_000, "{wait:?}");
}

/// A frequency is told with all that is known against it.
#[test]
fn no_uncertainty_is_zero() {
    let clock = told(&base()).clock;
    // The longest run has 52 us, whose ends may be off by 100 ns.
    assert!((1_900.0..2_000.0).contains(&clock.error_ppm.unwrap()), "{clock:?}");
    assert_eq!(clock.error_text().unwrap(), "1914 ppm");
    // The TSC of pCPU 1 runs away by 1 in 1000; of pCPU 0 no run ends, so nothing tells whose is
    // right.
    let drifting: Vec<Rec> = (0..10)
        .flat_map(|n| shifted(&base(), n * 5_000_000))
        .map(|rec| {
            let off = |tsc: u64| if rec.cpu == 1 { tsc + (tsc - START) / 1_000 } else { tsc };
            Rec { tsc: rec.tsc.map(off), ..rec }
        })
        .collect();
    let summary = told(&drifting);
    assert!(summary.clock.error_open, "{:?}", summary.clock);
    assert!(found(&summary, "frequency").unwrap().ends_with("ppm or more"));
    assert!(doubts(&summary).contains(&"frequency"));
}

/// A domain may end at any moment: between a WAKE of another domain's vCPU and the change it makes.
#[test]
fn a_domain_that_ends_takes_no_wake_with_it() {
    let mut all = base();
    let kicks: Vec<u64> = all.iter().filter(|rec| is_wake(rec)).filter_map(|rec| rec.tsc).collect();
    let comes = event::RUNSTATE_CHANGE | 1 << 8;
    for (number, tsc) in (10..).zip(kicks) {
        all.push(Rec::new(2, tsc - 500, comes, &[number << 16]));
        all.push(Rec::new(2, tsc + 50, event::DOM_REM, &[number]));
    }
    let summary = told(&all);
    assert_eq!(guest(&summary).counts.waits_kicked.value, 50);
    assert_eq!(doubts(&summary), Vec::<&str>::new(), "{:?}", summary.warnings);
}

/// vCPUs that are preempted and moved, and woken by nobody: a TSC that is ahead shows them running
/// before they have left, and no record is missing.
#[test]
fn a_move_that_seems_to_come_early_is_no_missing_record() {
    let change = |old: u32, new: u32| event::RUNSTATE_CHANGE | old << 8 | new << 4;
    for ahead in [0, 3_000, -3_000] {
        let mut all = Vec::new();
        for swap in 0..60 {
            let tsc = START + 50_000 * u64::from(swap);
            for cpu in 0..2 {
                let [before, after] = [0, 1].map(|more| (1 << 16) + (cpu + swap + more) % 2);
                let at = |tsc: u64| if cpu == 1 { tsc.wrapping_add_signed(ahead) } else { tsc };
                all.push(Rec::new(cpu, at(tsc), change(0, 1), &[before]));
                all.push(Rec::new(cpu, at(tsc + 1_000), change(1, 0), &[after]));
            }
        }
        let summary = told(&all);
        let missing = doubts(&summary).contains(&"pCPUs");
        assert!(!missing, "{ahead}: {:?}", summary.warnings);
        assert_eq!(doubts(&summary).contains(&"TSCs"), ahead != 0, "{:?}", summary.findings);
        assert!(summary.coverage_percent > 50.0, "{ahead}: {} %", summary.coverage_percent);
    }
}

/// Beside the guest, a PVH guest (d2) on pCPU 2 that calls Xen ten times, sleeps and is woken each
/// time.
fn beside_pvh() -> Vec<Rec> {
    let change = |old: u32, new: u32| event::RUNSTATE_CHANGE | old << 8 | new << 4;
    let mut all = base();
    for call in 0..10 {
        let tsc = START + 1_000 + 100_000 * call;
        let of = |after: u64, event: u32, words: &[u32]| Rec::new(2, tsc + after, event, words);
        let number = vec![event::HYPERCALL_EVENT_CHANNEL_OP];
        all.extend([
            of(0, change(1, 0), &[2 << 16]),
            of(100, event::VMENTRY, &[]),
            of(200, 0x0008_1102, &[18, 0, 0]),
            Rec { cpu: 2, tsc: None, event: event::VMMCALL, words: number },
            of(300, event::VMENTRY, &[]),
            of(400, 0x0008_1102, &[12, 0, 0]),
            of(500, event::BLOCK, &[2, 0]),
            Rec { cpu: 2, tsc: None, event: event::HLT, words: vec![0] },
            of(600, change(0, 2), &[2 << 16]),
            of(700, change(1, 0), &[event::DOMID_IDLE << 16 | 2]),
            of(50_000, event::WAKE, &[2, 0]),
            of(50_100, change(2, 1), &[2 << 16]),
            of(50_200, change(0, 1), &[event::DOMID_IDLE << 16 | 2]),
        ]);
    }
    all
}

/// Classes are captured guest type by guest type: what one type shows proves nothing for the other.
#[test]
fn calls_that_were_not_captured_are_not_none() {
    let beside_pvh = |out: fn(&Rec) -> bool| {
        let mut all = beside_pvh();
        all.retain(|rec| !out(rec));
        told(&all)
    };
    let of = |summary: &Summary, id: u16| {
        let domain = summary.domains.iter().find(|domain| domain.id == id);
        domain.map(|domain| domain.counts.evtchn_ops).expect("the domain")
    };
    let whole = beside_pvh(|_| false);
    assert_eq!(of(&whole, 2), kicktrace::Count::exact(10));
    assert_eq!(doubts(&whole), Vec::<&str>::new());
    // The mask has PVH guests' exits and not what they do then; then none of both.
    let exits = beside_pvh(|rec| rec.event & event::GROUP_MASK == event::HVM_HANDLER);
    assert_eq!(doubts(&exits), ["hypercalls of HVM or PVH guests"]);
    let neither = beside_pvh(|rec| rec.event & event::CLASS_MASK == 0x0008_0000);
    assert!(found(&neither, "calls").is_some_and(|what| what.contains("of domain 2 was captured")));
    assert_eq!(doubts(&neither), Vec::<&str>::new());
    for summary in [&exits, &neither] {
        assert_eq!(of(summary, 2), kicktrace::Count::at_least(0));
        assert_eq!(of(summary, 1), kicktrace::Count::exact(50));
    }
    // The mask is changed half way.
    let numbers = beside_pvh(|rec| rec.event == event::VMMCALL);
    assert_eq!(doubts(&numbers), ["calls"], "{:?}", numbers.findings);
    assert_eq!(of(&numbers, 2), kicktrace::Count::at_least(0));
    let late = beside_pvh(|rec| {
        let hvm = rec.event & event::CLASS_MASK == 0x0008_0000;
        hvm && rec.tsc.is_some_and(|tsc| tsc < START + 500_000)
    });
    assert_eq!(doubts(&late), ["entries"], "{:?}", late.findings);
    assert_ne!(of(&late, 2).certainty, Certainty::Exact);
}

/// A state may begin and end where nothing is recorded.
#[test]
fn no_time_is_exact_where_records_are_missing() {
    let exact = |summary: &Summary| {
        let of = &guest(summary).times_certainty;
        let times = [of.running, of.stolen, of.blocked, of.blocked_in_poll, of.offline];
        times.contains(&Certainty::Exact)
    };
    assert!(exact(&told(&base())));
    // v1 runs and sleeps again where pCPU 1 loses records.
    let (from, to) = (START + 1_000_000, START + 1_050_000);
    let mut lost = base();
    lost.retain(|rec| rec.cpu != 1 || !(from..to).contains(&rec.tsc.unwrap()));
    let words = [9, event::DOMID_IDLE | 1 << 16, from as u32, (from >> 32) as u32];
    lost.push(Rec::new(1, to, event::LOST_RECORDS, &words));
    // A pCPU is not there at all, on which nobody knows what v0 and v1 did.
    let absent = base().into_iter().map(|rec| Rec { cpu: 2 * rec.cpu, ..rec }).collect::<Vec<_>>();
    let unchanged =
        base().into_iter().filter(|rec| rec.event & event::GROUP_MASK != event::SCHED_MIN);
    for (name, all) in
        [("lost", lost), ("absent", absent), ("no changes", unchanged.collect::<Vec<_>>())]
    {
        assert!(!exact(&told(&all)), "{name}");
    }
}

/// What the hypervisor did, of all of a trace.
fn hypervisor(records: &[Rec]) -> (Summary, HostSummary) {
    let options = Options::default();
    let mut analyser = Analyser::observed(&options, Host::default());
    let reading = reader::read(&file(records)[..], &options.read, &mut analyser);
    let (summary, mut host) = analyser.finish(reading.expect("a sound file"));
    let figures = host.figures(&summary);
    (summary, figures)
}

/// The part of a trace between two times in ticks after its first record.
fn part(records: &[Rec], from: u64, to: u64) -> (Summary, HostSummary) {
    let options = Options { cpu_hz: Some(1e9), ..Options::default() };
    let mut found = None;
    let sink = |summary: Summary, host: &mut Host| {
        let figures = host.figures(&summary);
        found = Some((summary, figures));
    };
    let bounds = Bounds { from, to: Some(to), every: None };
    let mut phases = Phases::new(&options, Host::default(), bounds, sink);
    let reading = reader::read(&file(records)[..], &options.read, &mut phases);
    let (_, whole) = phases.finish(reading.expect("a sound file"));
    let (mut summary, host) = found.expect("a part");
    complete(&mut summary, whole);
    (summary, host)
}

fn instants(host: &HostSummary) -> [u64; 6] {
    let of = &host.domains.iter().find(|domain| domain.id == 1).expect("the guest").concurrency;
    [of.all_run, of.some_run, of.hazard, of.none_runs, of.none_wants, of.unknown]
}

/// Nobody sleeps in a domain that is no more, and another one of its number begins with no vCPU
/// known.
#[test]
fn a_domain_that_ended_has_no_time_on_the_host() {
    let length = base().last().unwrap().tsc.unwrap() - START;
    let mut all = base();
    all.push(Rec::new(0, START + length + 1_000, event::DOM_REM, &[1]));
    let idle = event::RUNSTATE_CHANGE | 1 << 4;
    all.push(Rec::new(1, START + 3 * length, idle, &[event::DOMID_IDLE << 16 | 1]));
    let (_, ended) = hypervisor(&all);
    assert_eq!(instants(&ended).iter().sum::<u64>(), length + 1_000);
    let mut again = all.clone();
    again.push(Rec::new(0, START + 4 * length, event::DOM_ADD, &[1]));
    again.extend(shifted(&base(), 5 * length as i64));
    let (_, again) = hypervisor(&again);
    let second = length + length;
    assert_eq!(instants(&again).iter().sum::<u64>(), length + 1_000 + second);
    // v1 is another one in the second life: it moved from nowhere.
    let guest = &again.domains[0];
    assert!(guest.vcpus.iter().all(|vcpu| vcpu.migrations.value == 0), "{:?}", guest.vcpus);
}

/// A time without any record is nobody's, and who ran before it may not run behind it.
#[test]
fn a_silence_is_no_time_of_the_host() {
    let pause = 7_200_000_000_000;
    let (summary, host) = hypervisor(&[base(), shifted(&base(), pause)].concat());
    assert!(summary.ticks < 20_000_000);
    for pcpu in &host.pcpus {
        assert_eq!(pcpu.busy + pcpu.idle + pcpu.unknown, summary.ticks, "pCPU {}", pcpu.cpu);
    }
    assert_eq!(instants(&host).iter().sum::<u64>(), summary.ticks);
    // Of v0 the second session tells nothing.
    let mut half = shifted(&base(), pause);
    half.retain(|rec| rec.cpu == 1);
    let (summary, host) = hypervisor(&[base(), half].concat());
    assert!(instants(&host)[5] > summary.ticks / 3, "{:?} of {}", instants(&host), summary.ticks);
}

/// What makes a summary's figures doubtful does so with those of the hypervisor.
#[test]
fn the_host_has_no_exact_figure_where_records_are_missing() {
    let half = START + 2_500_000;
    let gone = |out: &dyn Fn(&Rec) -> bool| {
        let mut all = base();
        all.retain(|rec| !out(rec));
        hypervisor(&all).1
    };
    let ends = gone(&|rec| rec.cpu == 1 && rec.tsc.unwrap() > half);
    let begins = gone(&|rec| rec.cpu == 1 && rec.tsc.unwrap() < half);
    let absent = gone(&|rec| rec.cpu == 0);
    let unwoken = gone(&|rec| {
        event::runstate_change(rec.event)
            == Some((event::Runstate::Blocked, event::Runstate::Runnable))
    });
    let apart: Vec<Rec> = base()
        .into_iter()
        .map(|rec| {
            let ahead = if rec.cpu == 0 { 30_000 } else { 0 };
            Rec { tsc: rec.tsc.map(|tsc| tsc + ahead), ..rec }
        })
        .collect();
    let apart = hypervisor(&apart).1;
    for (name, host) in [
        ("ends", &ends),
        ("begins", &begins),
        ("absent", &absent),
        ("unwoken", &unwoken),
        ("apart", &apart),
    ] {
        let guest = host.domains.iter().find(|domain| domain.id == 1).expect("the guest");
        assert_ne!(guest.concurrency.certainty, Certainty::Exact, "{name}");
        for of in &guest.runnable {
            assert_ne!(of.ticks_certainty, Certainty::Exact, "{name}: {of:?}");
        }
        for vcpu in &guest.vcpus {
            assert_ne!(vcpu.migrations.certainty, Certainty::Exact, "{name}");
            // Where TSCs are apart each record is there.
            assert_eq!(vcpu.runs.certainty == Certainty::Exact, name == "apart", "{name}");
        }
    }
    let (_, sound) = hypervisor(&base());
    assert_eq!(sound.domains[0].concurrency.certainty, Certainty::Exact);
    assert_eq!(sound.domains[0].vcpus[0].runs.certainty, Certainty::Exact);
}

/// A vCPU that yields before the first change that names it yields all the same.
#[test]
fn the_first_yield_counts() {
    let mut all = base();
    all.push(Rec::new(2, START + 1_000, event::YIELD, &[2, 0]));
    all.push(Rec::new(2, START + 1_100, event::RUNSTATE_CHANGE | 1 << 4, &[2 << 16]));
    let (_, host) = hypervisor(&all);
    let counts: Vec<u64> = host.domains[1].runnable.iter().map(|of| of.count.value).collect();
    assert_eq!((counts[Cause::Yielded as usize], counts[Cause::Preempted as usize]), (1, 0));
}

/// In a part of a trace a pCPU may have nothing to write.
#[test]
fn a_pcpu_without_records_in_a_part_is_there() {
    // pCPU 0 is idle, and says so at the start and the end only.
    let quiet = |tsc| Rec::new(0, tsc, event::CONTINUE_RUNNING, &[event::DOMID_IDLE << 16]);
    let mut all: Vec<Rec> = base().into_iter().map(|rec| Rec { cpu: rec.cpu + 1, ..rec }).collect();
    for rec in &mut all {
        let idle = |key: &&mut u32| **key >> 16 == event::DOMID_IDLE;
        rec.words.first_mut().filter(idle).into_iter().for_each(|key| *key += 1);
    }
    all.extend([quiet(START + 10), quiet(START + 6_000_000)]);
    let pcpus = |summary: &Summary| found(summary, "pCPUs").map(ToOwned::to_owned);
    for (from, to) in [(0, 1_000_000), (2_000_000, 3_000_000)] {
        let (summary, _) = part(&all, from, to);
        assert_eq!(pcpus(&summary).as_deref(), Some("pCPUs with records: 3"), "{from}");
    }
    // One that writes behind the part only is there too, and one that never does is not.
    let mut late = all.clone();
    late.retain(|rec| rec.cpu > 0 || rec.tsc > Some(START + 5_000_000));
    assert_eq!(pcpus(&part(&late, 0, 1_000_000).0).as_deref(), Some("pCPUs with records: 3"));
    late.retain(|rec| rec.cpu > 0);
    let never = pcpus(&part(&late, 0, 1_000_000).0);
    assert!(never.is_some_and(|what| what.starts_with("no record of pCPU 0")));
}

/// Records that came too late make doubtful the part they came in.
#[test]
fn late_records_leave_no_exact_time_in_their_part() {
    let options = Options { cpu_hz: Some(1e9), ..Options::default() };
    let mut exact = Vec::new();
    let sink = |summary: Summary, _: &mut ()| {
        exact.push(guest(&summary).times_certainty.running == Certainty::Exact);
    };
    let bounds = Bounds { every: Some(2_000_000), ..Bounds::default() };
    let mut phases = Phases::new(&options, (), bounds, sink);
    let mut all = base();
    all.sort_by_key(|rec| rec.tsc);
    // In the second part one record is put behind the next.
    let at = all.iter().position(|rec| rec.tsc > Some(START + 3_000_000)).unwrap();
    let at = at + all[at..].iter().position(|rec| rec.event == event::PV_HYPERCALL).unwrap();
    all.swap(at, at + 1);
    for rec in &all {
        let &Rec { cpu, event, ref words, .. } = rec;
        let tsc = rec.tsc.unwrap();
        let record = Record { cpu, tsc, event, timed: true, words, offset: 0 };
        phases.record(&record).expect("a sound record");
    }
    phases.finish(Reading { last_tsc: all.last().unwrap().tsc.unwrap(), ..Reading::default() });
    assert_eq!(exact, [true, false, true]);
}

/// What is under way when the trace ends is not resolved in its last part, nor in all of it.
#[test]
fn parts_hold_what_the_whole_holds() {
    let mut all = beside_pvh();
    // v1 sleeps in a poll when the trace ends.
    all.retain(|rec| rec.tsc.is_none_or(|tsc| tsc < START + 2_530_000));
    let (whole, host) = hypervisor(&all);
    let unresolved = |summary: &Summary| guest(summary).counts.polls_unresolved.value;
    assert_eq!(unresolved(&whole), 1);
    // Parts that end while the PVH guest sleeps in its HLT, and as it runs.
    let in_xen = |host: &HostSummary| {
        let of = host.domains.iter().find(|domain| domain.id == 2).expect("the PVH guest");
        of.entries.iter().filter_map(|of| of.in_xen).sum::<u64>()
    };
    assert!(in_xen(&host) > 0);
    let cuts = [0, 140_000, 501_250, 1_130_000, 3_000_000];
    let parts: Vec<_> = cuts.windows(2).map(|two| part(&all, two[0], two[1])).collect();
    assert_eq!(parts.iter().map(|(summary, _)| unresolved(summary)).sum::<u64>(), 1);
    assert_eq!(parts.iter().map(|(_, host)| in_xen(host)).sum::<u64>(), in_xen(&host));
}

/// Beside the guest, d2v0 polls ten times on pCPU 2 and goes on each time before it has left it,
/// woken by what `wake` gives for the number of the poll and its TSC.
fn aborted_polls(wake: impl Fn(u32, u64) -> Vec<Rec>) -> Summary {
    let comes = event::RUNSTATE_CHANGE | 1 << 8;
    let poll = [1 << 20 | event::HYPERCALL_SCHED_OP, event::SCHEDOP_POLL];
    let mut all = base();
    all.push(Rec::new(2, START + 1_000, comes, &[2 << 16]));
    for number in 0..10 {
        let tsc = START + 10_000 + 10_000 * u64::from(number);
        all.push(Rec::new(2, tsc, event::PV_HYPERCALL, &poll));
        all.push(Rec::new(2, tsc + 100, event::BLOCK, &[2, 0]));
        all.extend(wake(number, tsc + 200));
        all.push(Rec::new(2, tsc + 1_000, event::CONTINUE_RUNNING, &[2 << 16]));
    }
    told(&all)
}

/// A poll that a WAKE ends before its vCPU has left its pCPU is like any other: what is not seen of
/// the wake is not known, and what its sender marks not is no kick.
#[test]
fn what_aborts_a_poll_is_judged_as_what_ends_one() {
    let counts = |summary: &Summary| {
        let domain = summary.domains.iter().find(|domain| domain.id == 2).expect("the domain");
        domain.counts
    };
    let aborted = |counts: &kicktrace::summary::Counts| {
        (counts.polls_aborted.value, counts.waits_tainted.value, counts.waits_other.value)
    };
    let woken = |cpu: u32, tsc: u64| Rec::new(cpu, tsc, event::WAKE, &[2, 0]);
    // Nobody knows who is on pCPU 3.
    let unknown = aborted_polls(|_, tsc| vec![woken(3, tsc)]);
    assert_eq!(aborted(&counts(&unknown)), (10, 10, 0));
    // A timer's, on its own pCPU.
    let timer = aborted_polls(|_, tsc| vec![woken(2, tsc)]);
    assert_eq!(aborted(&counts(&timer)), (10, 0, 10));
    assert_eq!(doubts(&timer), Vec::<&str>::new());
    // Two of ten are not in the trace.
    let missing =
        aborted_polls(|number, tsc| vec![woken(2, tsc)].split_off(usize::from(number % 5 == 4)));
    assert_eq!(aborted(&counts(&missing)), (10, 2, 8));
    assert_eq!(doubts(&missing), ["wakes"], "{:?}", missing.findings);
    // v1 kicks, and marks the first time only.
    let in_part = aborted_polls(|number, tsc| {
        let of = |before: u64, event: u32, words: &[u32]| Rec::new(3, tsc - before, event, words);
        let mut all = Vec::new();
        if number == 0 {
            all.push(of(9_000, event::RUNSTATE_CHANGE | 1 << 8, &[2 << 16 | 1]));
            all.push(of(40, event::PV_HYPERCALL, &[event::HYPERCALL_HVM_OP]));
            let mark = kicktrace::markers::GUEST | kicktrace::markers::KICK;
            all.push(Rec { cpu: 3, tsc: None, event: mark, words: vec![1, 0, 0x1000, 0] });
        }
        all.push(of(20, event::PV_HYPERCALL, &[event::HYPERCALL_EVENT_CHANNEL_OP]));
        all.push(woken(3, tsc));
        all
    });
    let in_part = counts(&in_part);
    assert_eq!((in_part.waking_kicks.value, in_part.marked_kicks.value), (1, 1));
    assert_ne!(in_part.waking_kicks.certainty, Certainty::Exact);
    assert_ne!(in_part.waits_kicked.certainty, Certainty::Exact);
}

/// A trace may begin while a vCPU runs, which its first BLOCK tells: what it did before that is in
/// no count.
#[test]
fn what_a_vcpu_did_before_it_is_known_leaves_a_bound() {
    let call = |number: u32| 1 << 20 | number;
    for (calls, certainty) in [(1, Certainty::LowerBound), (0, Certainty::Exact)] {
        let mut all = base();
        for number in 0..calls {
            let kick = [call(event::HYPERCALL_EVENT_CHANNEL_OP), 4];
            all.push(Rec::new(2, START + 1_000 + number, event::PV_HYPERCALL, &kick));
        }
        let poll = [call(event::HYPERCALL_SCHED_OP), event::SCHEDOP_POLL];
        all.push(Rec::new(2, START + 2_000, event::PV_HYPERCALL, &poll));
        all.push(Rec::new(2, START + 2_100, event::BLOCK, &[2, 0]));
        all.push(Rec::new(2, START + 2_200, event::RUNSTATE_CHANGE | 2 << 4, &[2 << 16]));
        all.push(Rec::new(2, START + 2_300, event::RUNSTATE_CHANGE | 1 << 8, &[2 << 16 | 1]));
        all.push(Rec::new(2, START + 2_400, event::PV_HYPERCALL, &[24]));
        let summary = told(&all);
        let other = summary.domains.iter().find(|domain| domain.id == 2).expect("the domain");
        let counts = &other.vcpus[0].counts;
        assert_eq!(counts.evtchn_ops.value, 0);
        assert_eq!(counts.evtchn_ops.certainty, certainty, "{calls} calls");
        assert_eq!(counts.polls.value, 1);
    }
}

/// Between two sessions in one file vCPUs move without a record. That is no scheduling by cores.
#[test]
fn joined_sessions_are_not_taken_for_core_scheduling() {
    let moved = shifted(&base(), 5_000_000_000);
    let moved = moved.into_iter().map(|rec| Rec { cpu: 1 - rec.cpu, ..rec });
    let summary = told(&base().into_iter().chain(moved).collect::<Vec<_>>());
    assert!(found(&summary, "silence").is_some(), "{:?}", summary.findings);
    assert_eq!(found(&summary, "cores"), None);
    assert_ne!(guest(&summary).counts.waits.certainty, Certainty::Exact);
}
