//! The policies' decisions, turn by turn, on a machine whose clock stands still unless told.

use crate::node::State;
use crate::policy::wait_early;
use crate::word::Tail;
use crate::{Adaptive, CpuNodes, HashStorage, HashTable, Hybrid, KickAtUnlock, Platform, Policy};
use crate::{Spin, Stage};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(1_000_000) };
    static PREEMPTED: Cell<Option<usize>> = const { Cell::new(None) };
    /// Turns done, and what the clock goes on in each.
    static TURNS: Cell<u32> = const { Cell::new(0) };
    static TURN: Cell<u64> = const { Cell::new(0) };
}

/// Threads of the test program share the nodes, so each test takes CPUs of its own.
fn cpus() -> (usize, usize) {
    static NEXT: AtomicUsize = AtomicUsize::new(2);
    let own = NEXT.fetch_add(2, Relaxed);
    (own, own + 1)
}

struct Still;

static NODES: [CpuNodes; 64] = [const { CpuNodes::new() }; 64];
static STORAGE: HashStorage<64> = HashStorage::new();
static TABLE: HashTable = HashTable::new(&STORAGE);

// SAFETY: nothing is locked here.
unsafe impl Platform for Still {
    const MAX_CPUS: usize = 64;

    fn current_cpu() -> usize {
        0
    }

    fn nodes(cpu: usize) -> &'static CpuNodes {
        &NODES[cpu]
    }

    fn hash() -> &'static HashTable {
        &TABLE
    }

    fn wait(_still_blocked: impl Fn() -> bool) {}

    fn kick(_cpu: usize) {}

    fn now() -> u64 {
        NOW.get()
    }

    fn vcpu_is_preempted(cpu: usize) -> bool {
        PREEMPTED.get() == Some(cpu)
    }

    fn relax(_turn: u32) {
        TURNS.set(TURNS.get() + 1);
        NOW.set(NOW.get() + TURN.get());
    }
}

/// A spin of `cpu` behind `before`, and the number of turns that `K` grants it, at most `most`.
fn turns<K: Policy>(stage: Stage, cpu: usize, before: Option<usize>, most: u32) -> u32 {
    let mut spin = Spin::new(stage, cpu, before.map(|cpu| Tail::new(cpu, 1)));
    while spin.turn() < most && K::keep_spinning::<Still>(&mut spin) {
        spin.advance();
    }
    spin.turn()
}

#[test]
fn a_spin_knows_who_spins_where() {
    let (cpu, before) = cpus();
    let mut spin = Spin::new(Stage::Head, cpu, Some(Tail::new(before, 1)));
    assert_eq!((spin.cpu(), spin.predecessor(), spin.turn()), (cpu, Some(before), 0));
    assert_eq!(spin.stage(), Stage::Head);
    spin.advance();
    assert_eq!(spin.turn(), 1);
    assert_eq!(Spin::new(Stage::Head, cpu, None).predecessor(), None);
    NODES[cpu].set_learned(5);
    assert_eq!(spin.nodes::<Still>().learned(), 5);
}

#[test]
fn the_predecessor_sleeps_unless_it_runs() {
    let (cpu, before) = cpus();
    let spin = Spin::new(Stage::Behind, cpu, Some(Tail::new(before, 1)));
    for (state, sleeps) in [
        (State::Running, false),
        (State::Halted, true),
        (State::Registering, true),
        (State::Hashed, true),
    ] {
        NODES[before].node(1).set_state(state);
        assert_eq!(spin.predecessor_sleeps::<Still>(), sleeps, "{state:?}");
    }
    assert!(!Spin::new(Stage::Behind, cpu, None).predecessor_sleeps::<Still>());
}

#[test]
fn a_waiter_behind_a_sleeper_follows_after_256_turns() {
    let (cpu, before) = cpus();
    NODES[before].node(1).set_state(State::Halted);
    let early = |stage, turn| {
        let mut spin = Spin::new(stage, cpu, Some(Tail::new(before, 1)));
        (0..turn).for_each(|_| spin.advance());
        wait_early::<Still>(&spin)
    };
    let behind = |turn| early(Stage::Behind, turn);
    let when: Vec<u32> = (0..1024).filter(|&turn| behind(turn)).collect();
    assert_eq!(when, [255, 511, 767, 1023]);
    assert!(!early(Stage::Head, 255), "the head follows nobody");
    NODES[before].node(1).set_state(State::Running);
    assert!(!behind(255));
}

#[test]
fn policies_that_count_turns_spin_as_long_as_the_platform_says() {
    let (cpu, before) = cpus();
    let budget = 1 << 15;
    assert_eq!(Still::spin_turns(), budget);
    for stage in [Stage::Behind, Stage::Head] {
        assert_eq!(turns::<KickAtUnlock>(stage, cpu, Some(before), u32::MAX), budget);
        assert_eq!(turns::<Hybrid>(stage, cpu, Some(before), u32::MAX), budget);
    }
    NODES[before].node(1).set_state(State::Hashed);
    assert_eq!(turns::<Hybrid>(Stage::Behind, cpu, Some(before), u32::MAX), 255);
    assert_eq!(turns::<KickAtUnlock>(Stage::Behind, cpu, Some(before), u32::MAX), budget);
}

#[test]
fn adaptive_spins_for_its_budget_of_time() {
    let (cpu, before) = cpus();
    let mut spin = Spin::new(Stage::Head, cpu, None);
    let begin = NOW.get();
    assert!(Adaptive::keep_spinning::<Still>(&mut spin));
    assert_eq!(spin.memo, begin + 20_000, "what a CPU gets that has learned nothing");
    // It looks at the clock every 16 turns.
    NOW.set(begin + 19_999);
    assert_eq!(turns_until_asked(&mut spin), None);
    NOW.set(begin + 20_000);
    assert_eq!(turns_until_asked(&mut spin), Some(16));
    // A wait that took longer moves the budget a little, a shorter one at once.
    Adaptive::waited(&NODES[cpu], 20_000 + 6_400);
    assert_eq!(NODES[cpu].learned(), 20_100);
    Adaptive::waited(&NODES[cpu], 7_000);
    assert_eq!(NODES[cpu].learned(), 7_000);
    let mut next = Spin::new(Stage::Behind, cpu, Some(Tail::new(before, 1)));
    assert!(Adaptive::keep_spinning::<Still>(&mut next));
    assert_eq!(next.memo, NOW.get() + 7_000);
}

#[test]
fn a_rest_is_measured_in_turns_or_in_time() {
    fn turns_of_rest<K: Policy>(turn: u64) -> u32 {
        TURN.set(turn);
        TURNS.set(0);
        K::rest::<Still>();
        TURNS.get()
    }
    for turn in [0, 3, 40] {
        assert_eq!(turns_of_rest::<KickAtUnlock>(turn), 64);
        assert_eq!(turns_of_rest::<Hybrid>(turn), 64);
    }
    assert_eq!(turns_of_rest::<Adaptive>(40), 25, "a microsecond");
    assert_eq!(turns_of_rest::<Adaptive>(1_000), 1);
    assert_eq!(turns_of_rest::<Adaptive>(0), 256, "a clock that stands still");
}

/// The turn of 16 more at which the spin ends.
fn turns_until_asked(spin: &mut Spin) -> Option<u32> {
    (1..=16).find(|_| {
        spin.advance();
        !Adaptive::keep_spinning::<Still>(spin)
    })
}

#[test]
fn adaptive_heads_sleep_when_the_owner_is_preempted_and_nobody_else_does() {
    let (cpu, before) = cpus();
    PREEMPTED.set(Some(before));
    assert_eq!(turns::<Adaptive>(Stage::Head, cpu, Some(before), 64), 0);
    assert_eq!(turns::<Adaptive>(Stage::Head, cpu, Some(cpu), 64), 64, "another CPU");
    assert_eq!(turns::<Adaptive>(Stage::Head, cpu, None, 64), 64, "no predecessor");
    // No chain of sleepers behind a preempted predecessor.
    assert_eq!(turns::<Adaptive>(Stage::Behind, cpu, Some(before), 64), 64);
    NODES[before].node(1).set_state(State::Halted);
    assert_eq!(turns::<Adaptive>(Stage::Behind, cpu, Some(before), 1000), 255);
}

#[test]
fn a_platform_has_defaults() {
    /// With nothing but what has to be said.
    struct Least;

    // SAFETY: nothing is locked here.
    unsafe impl Platform for Least {
        const MAX_CPUS: usize = 1;
        fn current_cpu() -> usize {
            0
        }
        fn nodes(cpu: usize) -> &'static CpuNodes {
            &NODES[cpu]
        }
        fn hash() -> &'static HashTable {
            &TABLE
        }
        fn wait(_still_blocked: impl Fn() -> bool) {}
        fn kick(_cpu: usize) {}
        fn now() -> u64 {
            0
        }
    }
    assert!(!Least::vcpu_is_preempted(0));
    assert_eq!(Least::mode(), crate::Mode::Pv);
    assert!(!Least::plain_unlock());
}
