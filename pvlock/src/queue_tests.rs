//! The queue's own part, step by step: what is under it happens in the turns of a waiter's spin.

use crate::policy::{Policy, Spin, Stage};
use crate::word::{LEVELS, Steps, Tail};
use crate::{CpuNodes, HashStorage, HashTable, KickAtUnlock, Platform, RawPvLock};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

type Step = Box<dyn FnOnce()>;

thread_local! {
    // Leaked, because `Platform` wants them for ever.
    static NODES: &'static [CpuNodes; 2] = Box::leak(Box::new([const { CpuNodes::new() }; 2]));
    static TABLE: &'static HashTable = {
        let storage: &'static HashStorage<64> = Box::leak(Box::new(HashStorage::new()));
        Box::leak(Box::new(HashTable::new(storage)))
    };
    /// What the other CPUs do, one in each turn, once there is a waiter in the queue.
    static STEPS: RefCell<VecDeque<Step>> = const { RefCell::new(VecDeque::new()) };
    static TURNS: Cell<u32> = const { Cell::new(0) };
    /// Levels of nesting under the one that waits.
    static BELOW: Cell<usize> = const { Cell::new(0) };
}

/// CPU 0, in each test's own thread.
struct Turns;

// SAFETY: one thread, which is all CPUs; nothing is reached from another.
unsafe impl Platform for Turns {
    const MAX_CPUS: usize = 2;

    fn current_cpu() -> usize {
        0
    }

    fn nodes(cpu: usize) -> &'static CpuNodes {
        &NODES.with(|nodes| *nodes)[cpu]
    }

    fn hash() -> &'static HashTable {
        TABLE.with(|table| *table)
    }

    fn wait(_still_blocked: impl Fn() -> bool) {
        panic!("the steps are taken in turns of a spin");
    }

    fn kick(_cpu: usize) {}

    fn now() -> u64 {
        0
    }

    // One CPU plays several here, and takes what another has.
    fn report(_trouble: &crate::Trouble) {}

    fn relax(_turn: u32) {
        TURNS.set(TURNS.get() + 1);
        assert!(TURNS.get() < 1_000, "nothing comes of this spin");
        // A newcomer's rest is no place in the queue.
        if Self::nodes(0).depth() > BELOW.get() {
            if let Some(step) = STEPS.with_borrow_mut(VecDeque::pop_front) {
                step();
            }
        }
    }
}

/// A lock that somebody owns.
fn held<K: Policy>() -> &'static RawPvLock<Turns, K> {
    let lock = Box::leak(Box::new(RawPvLock::new()));
    lock.lock();
    lock
}

/// The owner's part.
fn unlock<K: Policy>(lock: &'static RawPvLock<Turns, K>) {
    // SAFETY: these tests' thread plays the owner.
    unsafe { lock.unlock() };
}

#[test]
fn each_of_four_levels_has_a_node_and_the_fifth_takes_the_lock_without() {
    for level in 0..LEVELS + 2 {
        let lock = held::<KickAtUnlock>();
        #[cfg(feature = "counters")]
        let before = crate::counters::<Turns>(0);
        TURNS.set(0);
        BELOW.set(level);
        STEPS.set(VecDeque::from([
            Box::new(move || {
                let own = Tail::new(0, level.min(LEVELS - 1));
                let tail = (level < LEVELS).then_some(own);
                assert_eq!((Turns::nodes(0).depth(), lock.snapshot().tail()), (level + 1, tail));
            }) as Step,
            Box::new(move || unlock(lock)),
        ]));
        lock.lock();
        assert!(lock.is_locked() && !lock.is_contended());
        assert_eq!(Turns::nodes(0).depth(), level, "it gives back what it took");
        #[cfg(feature = "counters")]
        {
            use crate::Counter::{LockSlowpath, NoNode, UseNode2, UseNode3, UseNode4};
            let after = crate::counters::<Turns>(0);
            let counted = [LockSlowpath, UseNode2, UseNode3, UseNode4, NoNode]
                .map(|name| after[name as usize] - before[name as usize]);
            let used = |levels: core::ops::Range<usize>| u64::from(levels.contains(&level));
            assert_eq!(counted, [1, used(1..2), used(2..3), used(3..4), used(4..9)], "{level}");
        }
        Turns::nodes(0).enter();
    }
}

/// A waiter whose policy panics goes through the queue like any other: not before its turn.
#[test]
fn a_policy_that_panics_behind_the_head_lets_the_head_go_first() {
    struct Faulty;
    impl Policy for Faulty {
        const NAME: &'static str = "faulty";
        fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
            assert_ne!(spin.stage(), Stage::Behind, "a defect of a policy");
            panic!("it is not asked again");
        }
    }
    let lock = held::<Faulty>();
    let head = Tail::new(1, 0);
    assert_eq!(lock.word().exchange_tail(head), None);
    TURNS.set(0);
    STEPS.set(VecDeque::from([
        Box::new(move || unlock(lock)) as Step,
        Box::new(move || {
            assert!(!lock.word().is_owned(), "the head is first");
            lock.word().set_locked();
        }),
        Box::new(|| {
            assert_eq!(Turns::nodes(1).node(0).next(), Some(Tail::new(0, 0)), "it is linked");
            Turns::nodes(0).node(0).hand_over();
        }),
        Box::new(move || assert!(lock.word().is_owned(), "the head has it")),
        Box::new(move || unlock(lock)),
    ]));
    catch_unwind(AssertUnwindSafe(|| lock.lock())).expect_err("a defect of a policy");
    assert!(STEPS.with_borrow(VecDeque::is_empty), "it waited for all of that");
    assert!(!lock.is_locked());
    assert_eq!(Turns::nodes(0).depth(), 0);
}
