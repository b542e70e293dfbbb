//! The head's dealings with thieves, step by step: one thread plays the owner and the thieves while the head
//! rests or waits, so that every number is exact.

use crate::node::State;
use crate::policy::{Handover, Policy, Spin};
use crate::pv::{Pv, try_as_newcomer, try_take};
use crate::queue::{Discipline, Taken, Waiter};
use crate::word::{FREE, LOCKED, SLOW, Steps, Tail};
use crate::{
    CpuNodes, HashStorage, HashTable, Hybrid, KickAtUnlock, KickTwice, Platform, RawPvLock,
};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// What the others do while the head is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// Nothing: the wait ends for no reason.
    Nothing,
    /// The owner unlocks, and a thief tries its luck.
    UnlockAndSteal,
}

type Lock<K> = RawPvLock<Script, K>;

thread_local! {
    /// One for each wait, rest or turn to come. After the last the owner only unlocks.
    static SCRIPT: RefCell<VecDeque<Others>> = const { RefCell::new(VecDeque::new()) };
    /// What of the script comes during a turn of a spin.
    static IN_TURNS: Cell<bool> = const { Cell::new(false) };
    /// Whether the waiter came to a queue.
    static BEHIND: Cell<bool> = const { Cell::new(false) };
    /// What comes when the head makes its entry.
    static IN_HASH: Cell<bool> = const { Cell::new(false) };
    static PLAY: Cell<fn(Others)> = const { Cell::new(|_| {}) };
    static THEFTS: Cell<u32> = const { Cell::new(0) };
    static REFUSED: Cell<u32> = const { Cell::new(0) };
    static KICKS: Cell<u32> = const { Cell::new(0) };
    static RESTS: Cell<u32> = const { Cell::new(0) };
    static WAITS: Cell<u32> = const { Cell::new(0) };
    /// The lock, of whatever policy.
    static LOCK: Cell<*const ()> = const { Cell::new(core::ptr::null()) };
}

fn one_more(cell: &'static std::thread::LocalKey<Cell<u32>>) {
    cell.set(cell.get() + 1);
}

/// The machine: one CPU that waits, number 0 in each test's own thread.
struct Script;

thread_local! {
    // Leaked, because `Platform` wants them for ever.
    static NODES: &'static [CpuNodes; 2] = Box::leak(Box::new([const { CpuNodes::new() }; 2]));
    static TABLE: &'static HashTable = {
        let storage: &'static HashStorage<64> = Box::leak(Box::new(HashStorage::new()));
        Box::leak(Box::new(HashTable::new(storage)))
    };
}

fn play() {
    let others = SCRIPT.with_borrow_mut(VecDeque::pop_front);
    PLAY.get()(others.unwrap_or(Others::UnlockAndSteal));
}

// SAFETY: one thread, which is all CPUs; nothing is reached from another.
unsafe impl Platform for Script {
    const MAX_CPUS: usize = 2;

    fn current_cpu() -> usize {
        0
    }

    fn nodes(cpu: usize) -> &'static CpuNodes {
        &NODES.with(|nodes| *nodes)[cpu]
    }

    fn hash() -> &'static HashTable {
        if IN_HASH.take() {
            play();
        }
        TABLE.with(|table| *table)
    }

    fn wait(still_blocked: impl Fn() -> bool) {
        one_more(&WAITS);
        assert!(still_blocked(), "a wait for nothing");
        let node = Self::nodes(0).node(0);
        if BEHIND.get() && !node.is_handed() {
            assert_eq!(node.state(), State::Halted);
        } else {
            assert_eq!(node.state(), State::Hashed);
            let entries: Vec<_> = TABLE.with(|table| table.entries().collect());
            assert_eq!(entries, [(LOCK.get().addr(), 0)], "the lock, and who waits for it");
        }
        play();
    }

    fn kick(cpu: usize) {
        assert_eq!(cpu, 0);
        one_more(&KICKS);
    }

    fn now() -> u64 {
        0
    }

    // One CPU plays several here, and takes what another has.
    fn report(_trouble: &crate::Trouble) {}

    fn relax(_turn: u32) {
        if IN_TURNS.get() {
            play();
        }
    }
}

/// Waits through a theft at every opportunity, and sleeps at once.
struct Robbed<const MOST: u32, const PATIENCE: u32>;

impl<const MOST: u32, const PATIENCE: u32> Policy for Robbed<MOST, PATIENCE> {
    const NAME: &'static str = "robbed";
    const STEALS: u32 = 1;
    const MAX_THEFTS: u32 = MOST;
    const PATIENCE: u32 = PATIENCE;

    fn rest<P: Platform>() {
        // The newcomer's own rest, before it queues, is none of the head's.
        if P::nodes(0).depth() > 0 {
            one_more(&RESTS);
            play();
        }
    }

    fn keep_spinning<P: Platform>(_: &mut Spin) -> bool {
        false
    }
}

/// Takes a lock of `K` whose owner and thieves follow `script`.
fn acquire<K: Policy>(script: &[Others]) {
    let lock: &'static Lock<K> = Box::leak(Box::new(Lock::new()));
    SCRIPT.set(script.iter().copied().collect());
    for cell in [&THEFTS, &REFUSED, &KICKS, &RESTS, &WAITS] {
        cell.set(0);
    }
    LOCK.set(core::ptr::from_ref(lock).cast());
    PLAY.set(|others| {
        if others == Others::Nothing {
            return;
        }
        // SAFETY: leaked, of this type.
        let lock = unsafe { &*LOCK.get().cast::<Lock<K>>() };
        // SAFETY: the owner's part is played by this thread.
        unsafe { lock.unlock() };
        one_more(if lock.word().try_steal() { &THEFTS } else { &REFUSED });
    });
    lock.lock();
    lock.lock();
    assert_eq!(lock.snapshot().locked(), LOCKED);
    assert!(!lock.is_contended(), "{lock:?}");
    assert!(Script::hash().is_empty());
    assert_eq!(Script::nodes(0).depth(), 0);
}

/// (thefts, attempts refused, waits, kicks) of the last acquisition.
fn told() -> (u32, u32, u32, u32) {
    (THEFTS.get(), REFUSED.get(), WAITS.get(), KICKS.get())
}

#[cfg(feature = "counters")]
fn counted<const N: usize>(names: [crate::Counter; N]) -> [u64; N] {
    let all = crate::counters::<Script>(0);
    names.map(|name| all[name as usize])
}

#[test]
fn a_head_is_robbed_as_often_as_its_policy_says() {
    acquire::<Robbed<2, 0>>(&[]);
    assert_eq!(told(), (2, 1, 3, 3), "the third wake-up is not in vain");
    assert_eq!(RESTS.get(), 0);
    #[cfg(feature = "counters")]
    {
        use crate::Counter::{KickUnlock, Rearm, SpuriousWakeup, WaitAgain, WaitHead, WaitNode};
        assert_eq!(
            counted([WaitHead, WaitAgain, Rearm, KickUnlock, SpuriousWakeup, WaitNode]),
            [3, 2, 2, 3, 0, 0]
        );
    }
    acquire::<Robbed<1, 0>>(&[]);
    assert_eq!(told(), (1, 1, 2, 2));
    acquire::<Robbed<0, 0>>(&[]);
    assert_eq!(told(), (0, 1, 1, 1));
}

#[test]
fn a_wake_up_for_no_reason_is_no_theft() {
    acquire::<Robbed<1, 0>>(&[Others::Nothing, Others::UnlockAndSteal, Others::Nothing]);
    assert_eq!(told(), (1, 1, 4, 2));
    #[cfg(feature = "counters")]
    {
        use crate::Counter::{Rearm, SpuriousWakeup, WaitAgain, WaitHead};
        assert_eq!(counted([WaitHead, WaitAgain, Rearm, SpuriousWakeup]), [4, 3, 1, 2]);
    }
}

/// Thefts during the patience are bounded by its looks, and count for nothing afterwards.
#[test]
fn a_patient_head_is_robbed_once_a_rest_and_then_as_any() {
    acquire::<Robbed<0, 3>>(&[]);
    assert_eq!((told(), RESTS.get()), ((3, 1, 1, 1), 3));
    acquire::<Robbed<2, 1>>(&[]);
    assert_eq!((told(), RESTS.get()), ((3, 1, 3, 3), 1));
}

/// A head that was robbed, and may not register again, spins: the lock is never slow again.
#[test]
fn without_re_arming_a_robbed_head_spins() {
    struct Spins;
    impl Policy for Spins {
        const NAME: &'static str = "spins";
        const STEALS: u32 = 1;
        const REARM: bool = false;
        fn rest<P: Platform>() {}
        fn keep_spinning<P: Platform>(_: &mut Spin) -> bool {
            IN_TURNS.set(WAITS.get() > 0);
            false
        }
    }
    acquire::<Spins>(&[]);
    IN_TURNS.set(false);
    assert_eq!(told(), (1, 1, 1, 1));
}

#[test]
fn only_a_policy_that_steals_passes_a_queue() {
    fn passes<K: Policy>() -> [bool; 3] {
        let queued = |locked: u8| {
            let lock = Lock::<K>::new();
            lock.word().exchange_tail(Tail::new(1, 0));
            match locked {
                FREE => {}
                LOCKED => lock.word().set_locked(),
                _ => lock.word().set_slow(),
            }
            try_take::<K>(lock.word())
        };
        [queued(FREE), queued(LOCKED), queued(SLOW)]
    }
    assert_eq!(passes::<Hybrid>(), [true, false, false]);
    assert_eq!(passes::<KickAtUnlock>(), [false; 3]);
    assert_eq!(passes::<KickTwice>(), [false; 3]);
    assert_eq!(KickAtUnlock::HANDOVER, Handover::Register);
}

/// A policy that steals, or does not, and counts its rests.
struct Newcomer<const STEALS: u32>;

impl<const STEALS: u32> Policy for Newcomer<STEALS> {
    const NAME: &'static str = "newcomer";
    const STEALS: u32 = STEALS;

    fn rest<P: Platform>() {
        one_more(&RESTS);
        play();
    }

    fn keep_spinning<P: Platform>(_: &mut Spin) -> bool {
        panic!("a newcomer does not spin");
    }
}

/// Whether a newcomer takes a lock in front of which others are as said and which is released after
/// `release_after` rests, and how often it rested.
fn comes<const STEALS: u32>(tail: bool, pending: bool, release_after: usize) -> (bool, u32) {
    let lock: &'static Lock<Newcomer<STEALS>> = Box::leak(Box::new(Lock::new()));
    lock.lock();
    if tail {
        lock.word().exchange_tail(Tail::new(1, 0));
    }
    if pending {
        lock.word().set_pending();
    }
    SCRIPT.set(VecDeque::from(vec![Others::Nothing; release_after - 1]));
    LOCK.set(core::ptr::from_ref(lock).cast());
    PLAY.set(|others| {
        if others != Others::Nothing {
            // SAFETY: leaked, of this type.
            let lock = unsafe { &*LOCK.get().cast::<Lock<Newcomer<STEALS>>>() };
            // SAFETY: the owner's part is played by this thread.
            unsafe { lock.unlock() };
        }
    });
    RESTS.set(0);
    let taken = try_as_newcomer::<Script, Newcomer<STEALS>>(lock.word(), lock.snapshot());
    (taken, RESTS.get())
}

#[test]
fn a_newcomer_looks_as_often_as_its_policy_says() {
    assert_eq!(comes::<0>(false, false, 1), (true, 1), "any policy once, where nobody queues");
    assert_eq!(comes::<0>(false, false, 2), (false, 1));
    assert_eq!(comes::<4>(false, false, 2), (true, 2));
    assert_eq!(comes::<4>(false, false, 4), (true, 4));
    assert_eq!(comes::<4>(false, false, 5), (false, 4));
    assert_eq!(comes::<0>(true, false, 1), (false, 0), "the order of the queue is the order");
    assert_eq!(comes::<4>(true, false, 1), (true, 1), "past a queue");
    assert_eq!(comes::<4>(true, true, 1), (false, 0), "not past a head that spins");
    assert_eq!(comes::<4>(false, true, 1), (false, 0));
}

/// R4: the owner unlocks when the head has made its entry. Nothing is left of that.
#[test]
fn a_lock_released_under_a_registration_is_the_heads() {
    /// Looks once, with the owner gone when it registers.
    struct Late;
    impl Policy for Late {
        const NAME: &'static str = "late";
        const STEALS: u32 = 1;
        const MAX_THEFTS: u32 = 0;
        fn rest<P: Platform>() {}
        fn keep_spinning<P: Platform>(_: &mut Spin) -> bool {
            IN_HASH.set(true);
            false
        }
    }
    acquire::<Late>(&[]);
    assert_eq!(told(), (0, 1, 0, 0), "it did not wait, and nobody was kicked");
}

/// The head of a lock that was stolen while its predecessor's entry woke it: one wake-up in vain.
#[test]
fn an_entry_used_up_before_the_first_look_is_a_theft() {
    type K = Robbed<1, 0>;
    let lock: &'static Lock<K> = Box::leak(Box::new(Lock::new()));
    SCRIPT.set(VecDeque::new());
    for cell in [&THEFTS, &REFUSED, &KICKS, &RESTS, &WAITS] {
        cell.set(0);
    }
    LOCK.set(core::ptr::from_ref(lock).cast());
    PLAY.set(|_| {
        // SAFETY: leaked, of this type.
        let lock = unsafe { &*LOCK.get().cast::<Lock<K>>() };
        // SAFETY: the thief's part is played by this thread.
        unsafe { lock.unlock() };
        one_more(if lock.word().try_steal() { &THEFTS } else { &REFUSED });
    });
    lock.lock();
    let tail = Tail::new(0, 0);
    lock.word().exchange_tail(tail);
    let node = Script::nodes(0).node(0);
    node.set_state(State::Hashed);
    let waiter = Waiter { cpu: 0, node, tail, predecessor: Some(Tail::new(1, 0)) };
    let taken = Pv::<K>::wait_as_head::<Script>(lock.word(), &waiter);
    assert!(matches!(taken, Taken::Alone));
    assert_eq!(told(), (0, 1, 1, 1), "no second theft");
    assert!(lock.is_locked() && !lock.is_contended());
}

/// Behind the head a waiter sleeps until it is handed the head, however often it is woken.
#[test]
fn a_waiter_behind_sleeps_until_it_is_the_head() {
    /// Strict, and tired at once.
    struct Tired;
    impl Policy for Tired {
        const NAME: &'static str = "tired";
        fn keep_spinning<P: Platform>(_: &mut Spin) -> bool {
            false
        }
    }
    let lock: &'static Lock<Tired> = Box::leak(Box::new(Lock::new()));
    lock.lock();
    lock.word().exchange_tail(Tail::new(1, 0));
    SCRIPT.set(VecDeque::from([Others::Nothing]));
    WAITS.set(0);
    BEHIND.set(true);
    LOCK.set(core::ptr::from_ref(lock).cast());
    PLAY.set(|others| {
        let node = Script::nodes(0).node(0);
        if others != Others::Nothing && !node.is_handed() {
            assert_eq!(Script::nodes(1).node(0).next(), Some(Tail::new(0, 0)), "it is linked");
            node.hand_over();
        } else if others != Others::Nothing {
            // SAFETY: leaked, of this type.
            let lock = unsafe { &*LOCK.get().cast::<Lock<Tired>>() };
            // SAFETY: the owner's part is played by this thread.
            unsafe { lock.unlock() };
        }
    });
    lock.lock();
    assert_eq!(WAITS.get(), 3, "two behind, one as the head");
    #[cfg(feature = "counters")]
    {
        use crate::Counter::{SpuriousWakeup, WaitHead, WaitNode};
        assert_eq!(counted([WaitNode, WaitHead, SpuriousWakeup]), [2, 1, 1]);
    }
    assert!(lock.is_locked() && !lock.is_contended());
}
