//! The queue and native mode, step by step: what the other CPUs do happens in the turns of a
//! waiter's spin.

use crate::policy::{Policy, Spin, Stage};
use crate::word::{LEVELS, LOCKED, Steps, Tail, Word};
use crate::{CpuNodes, HashStorage, HashTable, KickAtUnlock, Mode, Platform, RawPvLock};
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
    /// What the other CPUs do, one in each turn or wait.
    static STEPS: RefCell<VecDeque<Step>> = const { RefCell::new(VecDeque::new()) };
    static TURNS: Cell<u32> = const { Cell::new(0) };
    /// Levels of nesting that there are when the steps begin: a newcomer's rest comes before.
    static FROM: Cell<usize> = const { Cell::new(0) };
}

/// CPU 0, in each test's own thread, in native mode or not.
struct Turns<const NATIVE: bool = false>;

// SAFETY: one thread, which is all CPUs; nothing is reached from another.
unsafe impl<const NATIVE: bool> Platform for Turns<NATIVE> {
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

    fn wait(still_blocked: impl Fn() -> bool) {
        assert!(still_blocked());
        STEPS.with_borrow_mut(VecDeque::pop_front).expect("somebody wakes it")();
    }

    fn kick(_cpu: usize) {}

    fn now() -> u64 {
        0
    }

    fn mode() -> Mode {
        if NATIVE { Mode::Native } else { Mode::Pv }
    }

    // One CPU plays several here, and takes what another has.
    fn report(_trouble: &crate::Trouble) {}

    fn relax(_turn: u32) {
        TURNS.set(TURNS.get() + 1);
        assert!(TURNS.get() < 1_000, "nothing comes of this spin");
        if Self::nodes(0).depth() >= FROM.get() {
            if let Some(step) = STEPS.with_borrow_mut(VecDeque::pop_front) {
                step();
            }
        }
    }
}

fn nodes(cpu: usize) -> &'static CpuNodes {
    Turns::<false>::nodes(cpu)
}

/// A lock that somebody owns.
fn held<P: Platform, K: Policy>() -> &'static RawPvLock<P, K> {
    let lock = Box::leak(Box::new(RawPvLock::new()));
    lock.lock();
    lock
}

/// The owner's part.
fn unlock<P: Platform, K: Policy>(lock: &RawPvLock<P, K>) {
    // SAFETY: these tests' thread plays the owner.
    unsafe { lock.unlock() };
}

#[test]
fn each_of_four_levels_has_a_node_and_the_fifth_takes_the_lock_without() {
    for level in 0..LEVELS + 2 {
        let lock = held::<Turns, KickAtUnlock>();
        #[cfg(feature = "counters")]
        let before = crate::counters::<Turns>(0);
        TURNS.set(0);
        FROM.set(level + 1);
        STEPS.set(VecDeque::from([
            Box::new(move || {
                let tail = (level < LEVELS).then(|| Tail::new(0, level));
                assert_eq!((nodes(0).depth(), lock.snapshot().tail()), (level + 1, tail));
            }) as Step,
            Box::new(move || unlock(lock)),
        ]));
        lock.lock();
        assert!(lock.is_locked() && !lock.is_contended());
        assert_eq!(nodes(0).depth(), level, "it gives back what it took");
        #[cfg(feature = "counters")]
        {
            use crate::Counter::{LockSlowpath, NoNode, UseNode2, UseNode3, UseNode4};
            let after = crate::counters::<Turns>(0);
            let counted = [LockSlowpath, UseNode2, UseNode3, UseNode4, NoNode]
                .map(|name| after[name as usize] - before[name as usize]);
            let used = |levels: core::ops::Range<usize>| u64::from(levels.contains(&level));
            assert_eq!(counted, [1, used(1..2), used(2..3), used(3..4), used(4..9)], "{level}");
        }
        nodes(0).enter();
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
    let lock = held::<Turns, Faulty>();
    let head = Tail::new(1, 0);
    assert_eq!(lock.word().exchange_tail(head), None);
    TURNS.set(0);
    FROM.set(1);
    STEPS.set(VecDeque::from([
        Box::new(move || unlock(lock)) as Step,
        Box::new(move || {
            assert!(!lock.word().is_owned(), "the head is first");
            lock.word().set_locked();
        }),
        Box::new(|| {
            assert_eq!(nodes(1).node(0).next(), Some(Tail::new(0, 0)), "it is linked");
            nodes(0).node(0).hand_over();
        }),
        Box::new(move || assert!(lock.word().is_owned(), "the head has it")),
        Box::new(move || unlock(lock)),
    ]));
    catch_unwind(AssertUnwindSafe(|| lock.lock())).expect_err("a defect of a policy");
    assert!(STEPS.with_borrow(VecDeque::is_empty), "it waited for all of that");
    assert!(!lock.is_locked());
    assert_eq!(nodes(0).depth(), 0);
}

/// The lines of the hash table that are looked at beyond the first, as an entry is made and as it
/// is taken out.
#[cfg(feature = "counters")]
#[test]
fn hops_in_a_crowded_hash_table_are_counted() {
    struct Tired;
    impl Policy for Tired {
        const NAME: &'static str = "tired";
        fn keep_spinning<P: Platform>(_: &mut Spin) -> bool {
            false
        }
    }
    let lock = held::<Turns, Tired>();
    let table = <Turns as Platform>::hash();
    let key = core::ptr::from_ref(lock.word()).addr();
    let hops = || {
        let hops = table.insert(key, other());
        table.remove(key);
        hops as u64
    };
    assert_eq!(hops(), 0);
    // Addresses that differ in the upper bits alone share a home line.
    for another in 1..=4 {
        table.insert(key.wrapping_add(another << 38), other());
    }
    assert_eq!(hops(), 1);
    TURNS.set(0);
    FROM.set(1);
    STEPS.set(VecDeque::from([Box::new(move || unlock(lock)) as Step]));
    let counted = || crate::counters::<Turns>(0)[crate::Counter::HashHops as usize];
    let before = counted();
    lock.lock();
    assert_eq!(counted() - before, 2);
}

/// Takes a lock of native mode, of which `prepare` makes what is found, while `steps` happen, one
/// in each turn; what the word is then.
fn natively<const N: usize>(prepare: fn(&Word), steps: [fn(&Word); N]) -> Fields {
    let lock = held::<Turns<true>, KickAtUnlock>();
    prepare(lock.word());
    TURNS.set(0);
    FROM.set(0);
    STEPS.set(steps.map(|step| Box::new(move || step(lock.word())) as Step).into());
    lock.lock();
    assert!(STEPS.with_borrow(VecDeque::is_empty), "it waited for all of that");
    assert_eq!(nodes(0).depth(), 0);
    fields(lock.word())
}

/// (tail, pending, locked)
type Fields = (Option<Tail>, bool, u8);

fn fields(word: &Word) -> Fields {
    let seen = word.load();
    (seen.tail(), seen.pending(), seen.locked())
}

/// Held, and nobody waits.
const HELD: Fields = (None, false, LOCKED);
/// Held, and somebody waits who uses no node.
const PENDING: Fields = (None, true, LOCKED);

/// The waiter's node.
fn own() -> Tail {
    Tail::new(0, 0)
}

/// That of the other CPU.
fn other() -> Tail {
    Tail::new(1, 0)
}

#[test]
fn the_second_cpu_of_native_mode_is_pending_and_uses_no_node() {
    let mut steps: [fn(&Word); 11] = [|word| assert_eq!(fields(word), HELD, "it rests"); 11];
    steps[8] = |word| assert_eq!((fields(word), nodes(0).depth()), (PENDING, 0));
    steps[9] = steps[8];
    steps[10] = |word| word.release();
    assert_eq!(natively(|_| {}, steps), HELD);
}

#[test]
fn a_newcomer_of_native_mode_takes_a_lock_that_comes_free_while_it_rests() {
    let mut steps: [fn(&Word); 8] = [|_| {}; 8];
    steps[7] = |word| word.release();
    assert_eq!(natively(|_| {}, steps), HELD);
}

/// A newcomer looks again while the lock is being handed over, and need not queue.
#[test]
fn a_newcomer_of_native_mode_lets_a_hand_over_come_to_its_end() {
    let handed = |word: &Word| {
        word.exchange_pending();
        word.release();
    };
    let mut steps: [fn(&Word); 10] = [|_| {}; 10];
    steps[3] = |word| assert!(word.try_take_pending());
    steps[8] = |word| assert_eq!((fields(word), nodes(0).depth()), (PENDING, 0));
    steps[9] = |word| word.release();
    assert_eq!(natively(handed, steps), HELD);
}

/// Neither before it is the head, nor while somebody is pending, does a waiter take a free lock.
#[test]
fn a_waiter_of_native_mode_comes_after_the_pending_one_and_the_head() {
    let queue = |word: &Word| {
        word.exchange_pending();
        assert_eq!(word.exchange_tail(other()), None);
    };
    let last = natively(
        queue,
        [
            |word| {
                assert_eq!(nodes(1).node(0).next(), Some(own()), "it is linked");
                word.release();
            },
            |word| assert!(word.try_take_pending(), "the pending one is first"),
            |word| word.release(),
            |word| assert!(word.try_steal(), "the head is next"),
            |_| nodes(0).node(0).hand_over(),
            |word| assert_eq!(word.exchange_pending().locked(), LOCKED),
            |word| word.release(),
            |word| {
                assert!(!word.is_owned(), "a newcomer is pending for a moment");
                word.clear_pending();
            },
        ],
    );
    assert_eq!(last, HELD, "it was alone in the queue");
}

#[test]
fn a_head_of_native_mode_makes_the_next_one_the_head() {
    nodes(1).node(0).reset(0);
    let last = natively(
        |word| _ = word.exchange_pending(),
        [
            |word| {
                assert_eq!(word.exchange_tail(other()), Some(own()));
                nodes(0).node(0).set_next(other());
            },
            |word| word.release(),
            |word| assert!(word.try_take_pending()),
            |word| word.release(),
        ],
    );
    assert_eq!(last, (Some(other()), false, LOCKED), "somebody stands behind");
    assert!(nodes(1).node(0).is_handed());
}

#[test]
fn a_kick_that_is_under_way_is_waited_for() {
    nodes(1).begin_kick();
    TURNS.set(0);
    FROM.set(0);
    STEPS.set(VecDeque::from([Box::new(|| {}) as Step, Box::new(|| nodes(1).end_kick())]));
    crate::wait_for_kicks::<Turns>();
    assert!(STEPS.with_borrow(VecDeque::is_empty));
}
