//! The head's dealings with thieves, step by step: one thread plays the owner and the thieves while
//! the head rests or waits, so that every number is exact.

use crate::node::State;
use crate::policy::{Handover, Policy, Spin, Stage};
use crate::pv::{Pv, is_late, steals_at_once, try_as_newcomer};
use crate::queue::{Discipline, Taken, Waiter};
use crate::word::{LEVELS, LOCKED, Steps, Tail};
use crate::{
    Adaptive, AdaptiveWithin, CpuNodes, HashStorage, HashTable, KickAtUnlock, Platform, RawPvLock,
};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// What the others do while the head is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// Nothing: the wait ends for no reason.
    Nothing,
    /// The owner unlocks.
    Unlock,
    /// The same, and a thief tries its luck.
    UnlockAndSteal,
    /// The same, and then the head is left without a pCPU for long.
    UnlockStealAndLinger,
}

type Lock<K> = RawPvLock<Script, K>;

thread_local! {
    /// One for each wait or turn to come. After the last the owner only unlocks and a thief tries.
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
    static TURNS: Cell<u32> = const { Cell::new(0) };
    static WAITS: Cell<u32> = const { Cell::new(0) };
    static ONLINE: Cell<usize> = const { Cell::new(1) };
    /// Where a policy was asked.
    static STAGES: RefCell<Vec<Stage>> = const { RefCell::new(Vec::new()) };
    /// The clock: a wait takes `WAIT`, a turn a microsecond.
    static NOW: Cell<u64> = const { Cell::new(1 << 40) };
    /// The lock, of whatever policy.
    static LOCK: Cell<*const ()> = const { Cell::new(core::ptr::null()) };
}

/// In nanoseconds.
const WAIT: u64 = 1_000_000;

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
        NOW.set(NOW.get() + WAIT);
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
        NOW.get()
    }

    fn online_cpus() -> usize {
        ONLINE.get()
    }

    // One CPU plays several here, and takes what another has.
    fn report(_trouble: &crate::Trouble) {}

    fn relax(_turn: u32) {
        one_more(&TURNS);
        NOW.set(NOW.get() + 1_000);
        if IN_TURNS.get() {
            play();
        }
    }
}

/// Has no budget, and a horizon of `WAITS` waits, or of `PER_CPU` for each CPU.
struct Robbed<const WAITS: u64, const PER_CPU: u64 = 0>;

impl<const WAITS: u64, const PER_CPU: u64> Policy for Robbed<WAITS, PER_CPU> {
    const NAME: &'static str = "robbed";
    const HORIZON: Option<u64> = Some(WAITS * WAIT);
    const HORIZON_PER_CPU: u64 = PER_CPU * WAIT;

    fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
        STAGES.with_borrow_mut(|stages| stages.push(spin.stage()));
        false
    }
}

/// Takes a lock of `K` whose owner and thieves follow `script`.
fn acquire<K: Policy>(script: &[Others]) {
    let lock: &'static Lock<K> = Box::leak(Box::new(Lock::new()));
    SCRIPT.set(script.iter().copied().collect());
    for cell in [&THEFTS, &REFUSED, &KICKS, &TURNS, &WAITS] {
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
        if others == Others::Unlock {
            return;
        }
        one_more(if lock.word().try_steal() { &THEFTS } else { &REFUSED });
        if others == Others::UnlockStealAndLinger {
            NOW.set(NOW.get() + 100 * WAIT);
        }
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
fn a_head_is_robbed_until_it_is_late() {
    acquire::<Robbed<2>>(&[]);
    assert_eq!(told(), (2, 1, 3, 3), "the unlock at the end of the third wait reserves the lock");
    #[cfg(feature = "counters")]
    {
        use crate::Counter::{KickUnlock, Rearm, SpuriousWakeup, WaitAgain, WaitHead, WaitNode};
        assert_eq!(
            counted([WaitHead, WaitAgain, Rearm, KickUnlock, SpuriousWakeup, WaitNode]),
            [3, 2, 2, 3, 0, 0]
        );
    }
    acquire::<Robbed<1>>(&[]);
    assert_eq!(told(), (1, 1, 2, 2));
    acquire::<Robbed<0>>(&[]);
    assert_eq!(told(), (0, 1, 1, 1));
    for (online, thefts) in [(1, 2), (2, 2), (3, 3), (5, 5)] {
        ONLINE.set(online);
        acquire::<Robbed<2, 1>>(&[]);
        assert_eq!(told(), (thefts, 1, thefts + 1, thefts + 1), "{online} CPUs");
    }
}

/// Kicked in time, and woken late: the next unlock reserves the lock, however the head was woken.
#[test]
fn a_head_that_wakes_up_late_is_robbed_once_more_at_most() {
    acquire::<Robbed<5>>(&[Others::UnlockStealAndLinger, Others::Nothing]);
    assert_eq!(told(), (1, 1, 3, 2));
    #[cfg(feature = "counters")]
    assert_eq!(counted([crate::Counter::LatencyWake]), [100 * WAIT], "since the kick, if any");
}

/// A clock that a restore set back, or one of another CPU: late or not, the lock goes on.
#[test]
fn a_time_that_makes_no_sense_decides_who_is_first_and_nothing_else() {
    acquire::<Robbed<0>>(&[]);
    NOW.set(0);
    acquire::<Robbed<1_000>>(&[Others::UnlockAndSteal, Others::Nothing]);
    let now = 1 << 40;
    for (since, late) in [(u64::MAX, true), (now + 5 * WAIT, false), (now + 6 * WAIT, true)] {
        assert_eq!(is_late::<Script, Robbed<5>>(now, since), late, "{since:#x}");
    }
}

#[test]
fn a_wake_up_for_no_reason_is_no_theft() {
    acquire::<Robbed<3>>(&[Others::Nothing, Others::UnlockAndSteal, Others::Nothing]);
    assert_eq!(told(), (1, 1, 4, 2));
    assert_eq!(TURNS.get(), 2, "each is a turn: one that ends at once, again and again, is a spin");
    #[cfg(feature = "counters")]
    {
        use crate::Counter::{Rearm, SpuriousWakeup, WaitAgain, WaitHead};
        assert_eq!(counted([WaitHead, WaitAgain, Rearm, SpuriousWakeup]), [4, 3, 1, 2]);
    }
}

/// The stages in which a waiter spins, one after the other.
#[test]
fn a_budget_is_spent_as_a_newcomer_and_after_each_kick() {
    thread_local!(static STAGES: RefCell<Vec<Stage>> = const { RefCell::new(Vec::new()) });
    struct Asked;
    impl Policy for Asked {
        const NAME: &'static str = "asked";
        const HORIZON: Option<u64> = Some(2 * WAIT);
        fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
            STAGES.with_borrow_mut(|stages| stages.push(spin.stage()));
            false
        }
    }
    acquire::<Asked>(&[]);
    use Stage::{Head, Newcomer, Woken};
    assert_eq!(STAGES.take(), [Newcomer, Head, Woken, Woken]);
    assert_eq!(told(), (2, 1, 3, 3));
}

/// `AdaptiveWithin` and the strict policies, as newcomers.
///
/// Whether a newcomer takes a lock in front of which others are as said and which is released in
/// the turn `release_at`, and how many turns it took.
fn comes<K: Policy>(tail: bool, pending: bool, release_at: usize) -> (bool, u32) {
    let lock: &'static Lock<K> = Box::leak(Box::new(Lock::new()));
    lock.lock();
    if tail {
        lock.word().exchange_tail(Tail::new(1, 0));
    }
    if pending {
        lock.word().exchange_pending();
    }
    let nothing = vec![Others::Nothing; release_at - 1];
    SCRIPT.set(nothing.into_iter().chain([Others::UnlockAndSteal]).collect());
    LOCK.set(core::ptr::from_ref(lock).cast());
    PLAY.set(|others| {
        // SAFETY: leaked, of this type.
        let lock = unsafe { &*LOCK.get().cast::<Lock<K>>() };
        if others != Others::Nothing && lock.is_locked() && lock.word().is_owned() {
            // SAFETY: the owner's part is played by this thread.
            unsafe { lock.unlock() };
        }
    });
    TURNS.set(0);
    IN_TURNS.set(true);
    let taken = try_as_newcomer::<Script, K>(lock.word(), lock.snapshot());
    IN_TURNS.set(false);
    (taken, TURNS.get())
}

#[test]
fn a_newcomer_keeps_trying_for_its_budget() {
    type K = AdaptiveWithin<10_000, WAIT>;
    for tail in [false, true] {
        assert_eq!(comes::<K>(tail, false, 1), (true, 1), "a turn takes a microsecond");
        assert_eq!(comes::<K>(tail, false, 10), (true, 10));
        assert_eq!(comes::<K>(tail, false, 11), (false, 10));
        assert_eq!(comes::<K>(tail, true, 1), (false, 0), "not past a reservation");
    }
}

#[test]
fn a_newcomer_of_a_strict_policy_looks_once_more_where_nobody_queues() {
    assert_eq!(comes::<KickAtUnlock>(false, false, 64), (true, 64));
    assert_eq!(comes::<KickAtUnlock>(false, false, 65), (false, 64));
    assert_eq!(comes::<KickAtUnlock>(true, false, 1), (false, 16), "the order of the queue");
    assert_eq!(KickAtUnlock::HANDOVER, Handover::Register);
}

/// A CPU that has taken the lock past a queue for longer than a stretch joins the queue, whoever
/// waits.
#[test]
fn a_thief_queues_when_it_has_stolen_for_longer_than_a_stretch() {
    fn steal<K: Policy>(passes: u64) -> Option<u32> {
        let lock = Lock::<K>::new();
        lock.word().exchange_tail(Tail::new(1, 0));
        Script::nodes(0).stretch.end();
        (0..200).find(|_| {
            let stolen = steals_at_once::<Script>(lock.word(), lock.snapshot())
                || try_as_newcomer::<Script, K>(lock.word(), lock.snapshot());
            if stolen {
                lock.word().release();
            }
            NOW.set(NOW.get() + passes);
            !stolen
        })
    }
    type K = AdaptiveWithin<0, 40_000>;
    assert_eq!(steal::<K>(0), None);
    #[cfg(feature = "counters")]
    assert_eq!(counted([crate::Counter::LockStealing]), [200], "before the stretch ends");
    assert_eq!(steal::<K>(50), None, "9.95 us");
    assert_eq!(steal::<K>(100), Some(101), "the first after 10 us");
    assert_eq!(steal::<K>(200), Some(51));
    assert_eq!(steal::<K>(1_000_000), Some(1));
    assert_eq!(steal::<Adaptive>(100_000), Some(16));
    ONLINE.set(32);
    assert_eq!(steal::<Adaptive>(100_000), Some(21), "a little longer among many");
    let nodes = Script::nodes(0);
    let levels = [(); LEVELS].map(|()| nodes.enter());
    assert_eq!(steal::<K>(1_000_000), None, "a fifth level has no queue to go to");
    levels.into_iter().rev().for_each(|level| nodes.leave(level));
}

/// A thief that need not look at the clock goes the short way, and no other.
#[test]
fn a_theft_that_need_not_be_looked_at_is_made_at_once() {
    let lock = Lock::<Robbed<9>>::new();
    let at_once = || steals_at_once::<Script>(lock.word(), lock.snapshot());
    lock.word().exchange_tail(Tail::new(1, 0));
    assert!(!at_once(), "the first looks at the clock");
    assert!(try_as_newcomer::<Script, Robbed<9>>(lock.word(), lock.snapshot()));
    lock.word().release();
    for _ in 0..2 {
        assert!(Script::nodes(0).stretch.look(NOW.get(), WAIT, 64));
        assert!(at_once() && !at_once(), "it is held");
        assert_eq!(lock.word().try_release_reserved(), Ok(()));
        assert!(!at_once(), "it is reserved");
        assert!(lock.word().try_take_as_head());
        lock.word().release();
    }
}

/// Another CPU took the lock after the look.
#[test]
fn a_theft_that_fails_is_not_counted() {
    let lock = Lock::<Adaptive>::new();
    lock.word().exchange_tail(Tail::new(1, 0));
    let seen = lock.snapshot();
    let stretch = &Script::nodes(0).stretch;
    stretch.end();
    // Of the first ones most look at the clock.
    for _ in 0..5 {
        assert!(try_as_newcomer::<Script, Adaptive>(lock.word(), seen));
        lock.word().release();
    }
    assert!(steals_at_once::<Script>(lock.word(), seen));
    assert_eq!(stretch.thefts(), 6);
    assert!(!steals_at_once::<Script>(lock.word(), seen), "it is held");
    assert_eq!(stretch.end(), 6);
}

/// R4: the owner unlocks when the head has made its entry. Nothing is left of that.
#[test]
fn a_lock_released_under_a_registration_is_the_heads() {
    /// Looks twice, with the owner gone when it registers.
    struct Late;
    impl Policy for Late {
        const NAME: &'static str = "late";
        const HORIZON: Option<u64> = Some(0);
        fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
            // A turn.
            let is_new = spin.stage() == Stage::Head && spin.turn() == 0;
            IN_HASH.set(spin.stage() != Stage::Newcomer && !is_new);
            is_new
        }
    }
    acquire::<Late>(&[Others::Unlock]);
    assert_eq!(told(), (0, 0, 0, 0), "it did not wait, and nobody was kicked");
}

/// A head that finds the lock free as it is about to sleep registers all the same: then whoever
/// robs it owes it a kick, and the lock if it is late.
#[test]
fn a_head_that_has_spun_registers_even_if_the_lock_is_free() {
    struct Tired;
    impl Policy for Tired {
        const NAME: &'static str = "tired";
        const HORIZON: Option<u64> = Some(0);
        fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
            if spin.stage() == Stage::Head {
                // SAFETY: leaked, of this type.
                let lock = unsafe { &*LOCK.get().cast::<Lock<Tired>>() };
                // SAFETY: the owner's part is played by this thread.
                unsafe { lock.unlock() };
                IN_HASH.set(true);
            }
            false
        }
    }
    let lock: &'static Lock<Tired> = Box::leak(Box::new(Lock::new()));
    for cell in [&THEFTS, &REFUSED, &KICKS, &TURNS, &WAITS] {
        cell.set(0);
    }
    LOCK.set(core::ptr::from_ref(lock).cast());
    PLAY.set(|_| {
        // SAFETY: leaked, of this type.
        let lock = unsafe { &*LOCK.get().cast::<Lock<Tired>>() };
        if lock.word().is_owned() {
            // SAFETY: the thief's part is played by this thread.
            unsafe { lock.unlock() };
        }
        one_more(if lock.word().try_steal() { &THEFTS } else { &REFUSED });
    });
    lock.lock();
    lock.lock();
    assert_eq!(told(), (1, 1, 1, 1), "robbed as it registers, and never again");
    assert!(lock.is_locked() && !lock.is_contended());
    assert!(Script::hash().is_empty());
}

/// The head of a lock that was stolen while its predecessor's entry woke it: one wake-up in vain.
#[test]
fn an_entry_used_up_before_the_first_look_is_a_theft() {
    type K = Robbed<0>;
    let lock: &'static Lock<K> = Box::leak(Box::new(Lock::new()));
    SCRIPT.set(VecDeque::new());
    for cell in [&THEFTS, &REFUSED, &KICKS, &TURNS, &WAITS] {
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
    node.reset(NOW.get());
    node.set_state(State::Hashed);
    let waiter = Waiter { cpu: 0, node, tail, predecessor: Some(Tail::new(1, 0)) };
    STAGES.take();
    #[cfg(feature = "counters")]
    let before = counted([crate::Counter::Rearm]);
    let taken = Pv::<K>::wait_as_head::<Script>(lock.word(), &waiter);
    assert!(matches!(taken, Taken::Alone));
    assert_eq!(told(), (0, 1, 1, 1), "no second theft");
    assert_eq!(STAGES.take(), [Stage::Woken], "it was a kick that brought it here");
    #[cfg(feature = "counters")]
    assert_eq!(counted([crate::Counter::Rearm]), before.map(|count| count + 1));
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
