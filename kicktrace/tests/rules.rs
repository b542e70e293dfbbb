//! Single rules, on traces of a few records written by hand.

use kicktrace::event::name;
use kicktrace::summary::Domain;
use kicktrace::{Certainty, Options, summarise};

/// Records of two pCPUs; vCPU 0 of domain 1 runs on pCPU 0, vCPU 1 on pCPU 1.
#[derive(Default)]
struct Hand([Vec<u32>; 2]);

const RUNS: u32 = 0x0002_1101;
const BLOCKS: u32 = 0x0002_1021;
const WAKES_UP: u32 = 0x0002_1211;
const CONTINUES: u32 = 0x0002_1002;
const WAKE: u32 = 0x0002_8004;
const BLOCK: u32 = 0x0002_8006;
const HYPERCALL: u32 = 0x0020_100d;
const MARK_KICK: u32 = 0x0800_f703;
const POLL: [u32; 2] = [29 | 1 << 20, 3];
const EVTCHN_OP: [u32; 1] = [32];
const HVM_OP: [u32; 1] = [34];

impl Hand {
    fn at(&mut self, tsc: u32, cpu: usize, event: u32, words: &[u32]) -> &mut Self {
        // A guest's own record carries no TSC.
        let timed = event & 0x0800_0000 == 0;
        self.0[cpu].push(event | (words.len() as u32) << 28 | u32::from(timed) << 31);
        if timed {
            self.0[cpu].extend([tsc, 0]);
        }
        self.0[cpu].extend(words);
        self
    }

    fn domain(&self) -> Domain {
        let mut trace = Vec::new();
        for (cpu, words) in self.0.iter().enumerate() {
            trace.extend([0x2001_f003, cpu as u32, words.len() as u32 * 4]);
            trace.extend(words);
        }
        let bytes: Vec<u8> = trace.into_iter().flat_map(u32::to_le_bytes).collect();
        summarise(&bytes[..], &Options::default()).expect("a sound trace").domains.remove(0)
    }
}

const V0: u32 = 1 << 16;
const V1: u32 = 1 << 16 | 1;

/// Both vCPUs run; vCPU 1 polls at 100.
fn polling() -> Hand {
    let mut hand = Hand::default();
    hand.at(10, 0, RUNS, &[V0]).at(10, 1, RUNS, &[V1]).at(100, 1, HYPERCALL, &POLL);
    hand
}

/// Xen sets the vCPU blocked, lets it be woken, and only then writes BLOCK.
#[test]
fn a_wake_just_before_the_block_aborts_the_poll() {
    let mut hand = polling();
    hand.at(105, 0, HYPERCALL, &EVTCHN_OP).at(110, 0, WAKE, &[1, 1]).at(112, 1, BLOCK, &[1, 1]);
    hand.at(120, 1, CONTINUES, &[V1]).at(200, 0, HYPERCALL, &HVM_OP).at(200, 1, HYPERCALL, &HVM_OP);
    let counts = hand.domain().counts;
    assert_eq!((counts.polls_aborted.value, counts.polls_immediate.value), (1, 0));
    assert_eq!((counts.waking_kicks.value, counts.idle_kicks.value), (1, 0));
    assert_eq!((counts.waits.value, counts.waits_kicked.value), (1, 1));
}

/// The same poll, woken without a BLOCK: it returned at once.
#[test]
fn a_poll_without_a_block_returned_at_once() {
    let mut hand = polling();
    hand.at(105, 0, HYPERCALL, &EVTCHN_OP).at(110, 0, WAKE, &[1, 1]);
    hand.at(200, 0, HYPERCALL, &HVM_OP).at(200, 1, HYPERCALL, &HVM_OP);
    let counts = hand.domain().counts;
    assert_eq!((counts.polls_aborted.value, counts.polls_immediate.value), (0, 1));
    assert_eq!(counts.waits.value, 0);
}

/// vCPU 1 sleeps and vCPU 0 wakes it, by an operation that is not marked.
fn slept_and_woken(marks: bool) -> Hand {
    let mut hand = polling();
    hand.at(110, 1, BLOCK, &[1, 1]).at(120, 1, BLOCKS, &[V1]);
    if marks {
        // A kick of somebody else, before: from here on the guest is known to mark.
        hand.at(130, 0, HYPERCALL, &HVM_OP).at(0, 0, MARK_KICK, &[0, 7]);
        hand.at(140, 0, HYPERCALL, &EVTCHN_OP);
    }
    hand.at(150, 0, HYPERCALL, &EVTCHN_OP).at(155, 0, WAKE, &[1, 1]).at(156, 0, WAKES_UP, &[V1]);
    hand.at(170, 1, RUNS, &[V1]).at(200, 0, HYPERCALL, &HVM_OP).at(200, 1, HYPERCALL, &HVM_OP);
    hand
}

#[test]
fn what_a_marking_guest_does_not_mark_is_no_kick() {
    let plain = slept_and_woken(false).domain().counts;
    assert_eq!((plain.waking_kicks.value, plain.waits_kicked.value), (1, 1));
    assert_eq!(plain.waking_kicks.certainty, Certainty::Inferred);
    let marked = slept_and_woken(true).domain().counts;
    assert_eq!((marked.waking_kicks.value, marked.waits_kicked.value), (0, 0));
    assert_eq!((marked.waits.value, marked.waits_other.value), (1, 1));
    assert_eq!(marked.waking_kicks.certainty, Certainty::Exact);
    assert_eq!((marked.marked_kicks.value, marked.kicks_without_wake.value), (1, 1));
}

/// vCPU 1 sleeps from 120 on; vCPU 0 begins a marked kick of it at 150, the pCPU is held up in Xen,
/// and the wake comes milliseconds later, behind `between`.
fn a_kick_that_is_held_up(slept_before: bool, between: Option<u32>) -> Domain {
    const LATER: u32 = 4_400_000;
    let mut hand = polling();
    if slept_before {
        hand.at(110, 1, BLOCK, &[1, 1]).at(120, 1, BLOCKS, &[V1]);
    }
    hand.at(140, 0, HYPERCALL, &HVM_OP).at(0, 0, MARK_KICK, &[0, 1]);
    hand.at(150, 0, HYPERCALL, &EVTCHN_OP);
    if !slept_before {
        hand.at(200, 1, BLOCK, &[1, 1]).at(220, 1, BLOCKS, &[V1]);
    }
    if let Some(event) = between {
        hand.at(300, 0, event, &[0x30, 0, 0]);
    }
    hand.at(LATER, 0, WAKE, &[1, 1]).at(LATER + 1, 0, WAKES_UP, &[V1]);
    hand.at(LATER + 10, 1, RUNS, &[V1]);
    hand.at(LATER + 20, 0, HYPERCALL, &HVM_OP).at(LATER + 20, 1, HYPERCALL, &HVM_OP);
    hand.domain()
}

/// Of vCPUs, the target and the kicker: waits that were kicked, waking kicks.
fn kicked(domain: &Domain) -> [(u64, Certainty); 2] {
    let (target, kicker) = (&domain.vcpus[1].counts, &domain.vcpus[0].counts);
    [target.waits_kicked, kicker.waking_kicks].map(|count| (count.value, count.certainty))
}

#[test]
fn a_marked_kick_of_a_sleeper_wakes_it_however_long_it_takes() {
    const IRQ_HANDLED: u32 = 0x0080_2008;
    let one = (1, Certainty::Exact);
    assert_eq!(kicked(&a_kick_that_is_held_up(true, None)), [one; 2]);
    // An interrupt in the middle of the hypercall ends it no more than time does.
    assert_eq!(kicked(&a_kick_that_is_held_up(true, Some(IRQ_HANDLED))), [one; 2]);
    // A vCPU that went to sleep after the kick was woken by something else: its timer, for one.
    assert_eq!(kicked(&a_kick_that_is_held_up(false, None))[0].0, 0);
    assert_eq!(kicked(&a_kick_that_is_held_up(false, Some(IRQ_HANDLED)))[0].0, 0);
}

/// vCPU 1 of domain 1 polls again and again, and its timer, on a pCPU that has been idle ever since
/// the trace began and so writes no change of its own, wakes it.
#[test]
fn a_pcpu_that_is_idle_all_the_time_wakes_vcpus_too() {
    const TURN: u32 = 5_000_000;
    let mut hand = polling();
    for at in (1..20).map(|n| n * TURN) {
        hand.at(at, 1, BLOCK, &[1, 1]).at(at + 10, 1, BLOCKS, &[V1]);
        hand.at(at + TURN / 2, 0, WAKE, &[1, 1]).at(at + TURN / 2 + 5, 0, WAKES_UP, &[V1]);
        hand.at(at + TURN / 2 + 20, 1, RUNS, &[V1]).at(at + TURN / 2 + 30, 1, HYPERCALL, &POLL);
    }
    // Nothing else of pCPU 0: what set vCPU 0 running there is not in the trace.
    hand.0[0].drain(..4);
    let counts = hand.domain().counts;
    // Of the first one nobody knows what its pCPU had begun before.
    assert_eq!((counts.waits_tainted.value, counts.waits.value), (1, 18));
    assert_eq!((counts.waits_other.value, counts.waits_kicked.value), (18, 0));
}

/// The events of Xen public/trace.h that Xen 4.17 to 4.20 write.
#[test]
fn every_event_of_xens_public_header_has_a_name() {
    let of = |base: u32, minors: &[std::ops::RangeInclusive<u32>]| {
        let all = minors.iter().cloned().flatten();
        all.map(|minor| base + minor).collect::<Vec<_>>()
    };
    let events = [
        of(0x0001_f000, &[1..=3]),
        of(0x0002_1000, &[2..=2, 0x011..=0x011, 0x101..=0x101, 0x311..=0x311]),
        of(0x0002_8000, &[1..=17]),
        of(0x0004_1000, &[1..=2]),
        of(0x0008_1000, &[1..=3, 0x102..=0x103, 0x401..=0x403]),
        of(0x0008_2000, &[1..=0x1a, 0x20..=0x25, 0x126..=0x127, 0x216..=0x217]),
        of(0x0008_2000, &[0x101..=0x102, 0x108..=0x109, 0x114..=0x114, 0x119..=0x119]),
        of(0x0008_4000, &[1..=0x11]),
        of(0x0010_f000, &[1..=5, 16..=18]),
        of(0x0020_1000, &[1..=1, 3..=13, 0x103..=0x10c]),
        of(0x0020_2000, &[14..=14]),
        of(0x0040_f000, &[1..=15, 0x101..=0x10f, 0x201..=0x20f]),
        of(0x0080_1000, &[1..=3]),
        of(0x0080_2000, &[1..=8]),
    ];
    let nameless = |event: &u32| name(*event).is_none();
    let unnamed: Vec<_> = events.concat().into_iter().filter(nameless).collect();
    assert!(unnamed.is_empty(), "{unnamed:#x?}");
}

/// Small rings are emptied often. A pCPU that is held up between reading its TSC and writing the
/// record, for milliseconds in an emulator, writes it passes later.
#[test]
fn a_record_that_is_written_late_has_its_place_all_the_same() {
    let mut words = Vec::new();
    let mut window = |cpu: u32, tsc: u32| {
        words.extend([0x2001_f003, cpu, 16, CONTINUES | 1 << 31 | 1 << 28, tsc, 0]);
        words.push(0x7fff << 16 | cpu);
    };
    for pass in 10..100 {
        window(0, pass * 1_000_000);
        if pass % 8 == 0 {
            // It read its TSC seven passes ago.
            window(1, (pass - 7) * 1_000_000 + 500_000);
        }
        window(2, pass * 1_000_000 + 100_000);
    }
    let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    let summary = summarise(&bytes[..], &Options::default()).expect("a sound trace");
    assert_eq!(summary.reading.late_records, 0);
}

/// vCPU 1 sleeps since before the trace began: in a poll or not.
#[test]
fn a_kick_of_a_vcpu_that_slept_before_the_trace_makes_waking_kicks_a_lower_bound() {
    let mut hand = Hand::default();
    hand.at(10, 0, RUNS, &[V0]).at(105, 0, HYPERCALL, &EVTCHN_OP);
    hand.at(110, 0, WAKE, &[1, 1]).at(112, 0, WAKES_UP, &[V1]).at(120, 1, RUNS, &[V1]);
    hand.at(200, 0, HYPERCALL, &HVM_OP).at(200, 1, HYPERCALL, &HVM_OP);
    let kicks = |hand: &Hand| hand.domain().vcpus[0].counts.waking_kicks;
    let before = kicks(&hand);
    assert_eq!((before.value, before.certainty), (0, Certainty::LowerBound));
    // A second kick, of a poll that the trace shows, is counted.
    hand.at(300, 1, HYPERCALL, &POLL).at(310, 1, BLOCK, &[1, 1]).at(320, 1, BLOCKS, &[V1]);
    hand.at(400, 0, HYPERCALL, &EVTCHN_OP).at(410, 0, WAKE, &[1, 1]).at(412, 0, WAKES_UP, &[V1]);
    hand.at(420, 1, RUNS, &[V1]).at(500, 0, HYPERCALL, &HVM_OP);
    let both = kicks(&hand);
    assert_eq!(both.value, 1);
    assert_ne!(both.certainty, Certainty::Exact);
}
