//! The real code on threads as vCPUs: exclusion, progress, and nothing left behind.
//!
//! Each test takes the one machine of this process for itself; its vCPUs are its threads.

#[path = "common/threads.rs"]
mod machine;

use machine::{MODE, SPIN_TURNS, Threads};
use pvlock::debug::Dump;
use pvlock::{
    Adaptive, AdaptiveWithin, CpuNodes, KickAtUnlock, KickTwice, Platform, Policy, RawPvLock,
};
use std::cell::UnsafeCell;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard};

/// A counter that is exact only under a lock.
struct Counter<K: Policy> {
    lock: RawPvLock<Threads, K>,
    value: UnsafeCell<u64>,
}

// SAFETY: `value` is only reached under `lock`.
unsafe impl<K: Policy> Sync for Counter<K> {}

impl<K: Policy> Counter<K> {
    const fn new() -> Self {
        Self { lock: RawPvLock::new(), value: UnsafeCell::new(0) }
    }

    /// Adds one. With `linger` the owner lets others run between reading and writing, so that they
    /// queue up behind it, and a lock that lets two in loses a count for certain.
    fn add_one(&self, linger: bool) {
        self.lock.lock();
        // SAFETY: the lock is held.
        let value = unsafe { *self.value.get() };
        if linger {
            std::thread::yield_now();
        }
        // SAFETY: the lock is held.
        unsafe { *self.value.get() = value + 1 };
        // SAFETY: taken above.
        unsafe { self.lock.unlock() };
    }
}

/// The machine, for one test at a time.
fn machine(mode: usize, spin_turns: usize) -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    MODE.store(mode, Relaxed);
    SPIN_TURNS.store(spin_turns, Relaxed);
    guard
}

fn hammer<K: Policy>(vcpus: usize, locks: usize, rounds: u64) {
    // Miri runs a thousand times slower, and needs fewer rounds to see a race.
    let (vcpus, rounds) = if cfg!(miri) { (vcpus.min(3), 15) } else { (vcpus, rounds) };
    let counters: Vec<Counter<K>> = (0..locks).map(|_| Counter::new()).collect();
    std::thread::scope(|scope| {
        for vcpu in 0..vcpus {
            let counters = &counters;
            scope.spawn(move || {
                for round in 0..rounds {
                    let linger = round % rounds.div_ceil(16) == 0;
                    counters[(vcpu + round as usize) % locks].add_one(linger);
                }
            });
        }
    });
    let total: u64 = counters.iter().map(|c| unsafe_read(c)).sum();
    assert_eq!(total, vcpus as u64 * rounds);
    for counter in &counters {
        assert!(!counter.lock.is_locked() && !counter.lock.is_contended());
        assert!(
            Dump::new(&counter.lock).to_string().lines().count() == 1,
            "left behind:\n{}",
            Dump::new(&counter.lock)
        );
    }
}

fn unsafe_read<K: Policy>(counter: &Counter<K>) -> u64 {
    // SAFETY: all threads are joined.
    unsafe { *counter.value.get() }
}

#[test]
fn kick_twice_counts_exactly() {
    let _machine = machine(0, 20);
    hammer::<KickTwice>(8, 1, 6_000);
    hammer::<KickTwice>(8, 3, 6_000);
}

#[test]
fn kick_at_unlock_counts_exactly() {
    let _machine = machine(0, 20);
    hammer::<KickAtUnlock>(8, 1, 6_000);
    hammer::<KickAtUnlock>(8, 3, 6_000);
}

#[test]
fn adaptive_counts_exactly() {
    let _machine = machine(0, 20);
    hammer::<Adaptive>(8, 1, 6_000);
    hammer::<Adaptive>(8, 3, 6_000);
    // Everybody is late at once, and after a while: reservations, and thieves that queue.
    hammer::<AdaptiveWithin<1_000, 0>>(8, 1, 3_000);
    hammer::<AdaptiveWithin<1_000, 50_000>>(8, 2, 3_000);
}

#[test]
fn waiters_that_never_spin_count_exactly() {
    let _machine = machine(0, 0);
    hammer::<KickTwice>(6, 1, 5_000);
    hammer::<KickAtUnlock>(6, 2, 5_000);
    hammer::<AdaptiveWithin<0, 10_000>>(6, 2, 3_000);
}

#[test]
fn native_mode_counts_exactly() {
    let _machine = machine(1, 0);
    hammer::<KickAtUnlock>(2, 1, 5_000);
    hammer::<KickAtUnlock>(4, 2, 5_000);
    // An owner, a pending waiter, a head, and others behind it.
    hammer::<KickAtUnlock>(6, 1, 2_000);
}

#[test]
fn test_and_set_mode_counts_exactly() {
    let _machine = machine(2, 0);
    hammer::<KickAtUnlock>(4, 1, 5_000);
}

#[test]
fn try_lock_takes_a_free_lock_only() {
    let _machine = machine(0, 20);
    let lock = RawPvLock::<Threads, KickAtUnlock>::new();
    assert!(!lock.is_locked());
    assert!(lock.try_lock() && lock.is_locked() && !lock.is_contended());
    assert!(!lock.try_lock());
    // SAFETY: taken by the first try.
    unsafe { lock.unlock() };
    assert!(!lock.is_locked());
}

#[test]
#[should_panic(expected = "unlock of a lock that is not held (locked byte 0)")]
fn unlock_of_a_free_lock_is_named() {
    let _machine = machine(0, 20);
    // SAFETY: it is not: this is the error under test, and it has no memory to corrupt.
    unsafe { RawPvLock::<Threads, KickAtUnlock>::new().unlock() };
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "unlock of a lock that is not held (locked byte 0)")]
fn debug_builds_name_it_in_native_mode_too() {
    let _machine = machine(1, 0);
    // SAFETY: as above.
    unsafe { RawPvLock::<Threads, KickAtUnlock>::new().unlock() };
}

#[test]
fn lock_api_mutex_guards_data() {
    let _machine = machine(0, 20);
    const ROUNDS: u64 = if cfg!(miri) { 10 } else { 1000 };
    static DATA: pvlock::Mutex<u64, Threads> = pvlock::Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    *DATA.lock() += 1;
                }
            });
        }
    });
    assert_eq!(*DATA.lock(), 4 * ROUNDS);
}

/// One waiter is pending in native mode, and queued in PV mode.
#[test]
fn a_waiter_can_be_seen_wherever_it_waits() {
    for mode in [1, 0] {
        let _machine = machine(mode, 0);
        let lock = RawPvLock::<Threads, KickAtUnlock>::new();
        lock.lock();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                lock.lock();
                // SAFETY: taken just now.
                unsafe { lock.unlock() };
            });
            while !lock.is_contended() {
                std::thread::yield_now();
            }
            // SAFETY: taken above by this thread.
            unsafe { lock.unlock() };
        });
        assert!(!lock.is_locked() && !lock.is_contended());
    }
}

/// Four contexts on one CPU queue, each above the other's back, and a fifth finds no node.
#[test]
fn five_nested_contexts_find_four_nodes_and_a_fallback() {
    let _machine = machine(0, 0);
    static LOCKS: [RawPvLock<Threads, KickAtUnlock>; 5] = [const { RawPvLock::new() }; 5];
    #[cfg(feature = "counters")]
    use pvlock::Counter::{LockSlowpath, NoNode, UseNode2, UseNode3, UseNode4};
    #[cfg(feature = "counters")]
    let before = [LockSlowpath, UseNode2, UseNode3, UseNode4, NoNode].map(sum);
    for lock in &LOCKS {
        lock.lock();
    }
    let (ready, vcpu) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // A context that waits for lock N is interrupted by one that waits for lock N + 1.
        scope.spawn(|| {
            ready.send(Threads::current_cpu()).unwrap();
            machine::nest(|level| {
                LOCKS[level].lock();
                // SAFETY: taken just now.
                unsafe { LOCKS[level].unlock() };
            });
        });
        let nodes: &CpuNodes = Threads::nodes(vcpu.recv().unwrap());
        // All five stand on one CPU before the first is let go.
        while nodes.depth() < 5 {
            std::thread::yield_now();
        }
        for lock in LOCKS.iter().rev() {
            // SAFETY: taken above by this thread.
            unsafe { lock.unlock() };
        }
    });
    assert!(LOCKS.iter().all(|lock| !lock.is_locked()));
    #[cfg(feature = "counters")]
    {
        let after = [LockSlowpath, UseNode2, UseNode3, UseNode4, NoNode].map(sum);
        let more = std::array::from_fn(|level| after[level] - before[level]);
        assert_eq!(more, [5, 1, 1, 1, 1], "five slow paths, one on each level above the first");
    }
}

/// What all CPUs have counted.
#[cfg(feature = "counters")]
fn sum(counter: pvlock::Counter) -> u64 {
    (0..machine::CPUS).map(|cpu| pvlock::counters::<Threads>(cpu)[counter as usize]).sum()
}

#[cfg(feature = "counters")]
#[test]
fn counters_name_what_happened() {
    let _machine = machine(0, 0);
    use pvlock::Counter::{KickUnlock, Rearm, WaitHead};
    static LOCK: RawPvLock<Threads, KickAtUnlock> = RawPvLock::new();
    let before = [KickUnlock, WaitHead, Rearm].map(sum);
    LOCK.lock();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            LOCK.lock();
            // SAFETY: taken just now.
            unsafe { LOCK.unlock() };
        });
        // The counters can be read while they move: the waiter sleeps, or is about to.
        while sum(WaitHead) == before[1] {
            std::thread::yield_now();
        }
        // SAFETY: taken above by this thread.
        unsafe { LOCK.unlock() };
    });
    let after = [KickUnlock, WaitHead, Rearm].map(sum);
    assert_eq!(after[0], before[0] + 1, "the unlock found one sleeper");
    assert_eq!(after[2], before[2], "no thieves in a FIFO policy");
}

/// Two numbers that are equal unless a reader is in beside a writer.
#[test]
fn readers_see_what_a_writer_finished() {
    let _machine = machine(0, 5);
    const ROUNDS: u64 = if cfg!(miri) { 5 } else { 400 };
    static PAIR: pvlock::RwLock<(u64, u64), Threads> = pvlock::RwLock::new((0, 0));
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    if cpu < 2 {
                        let mut pair = PAIR.write();
                        pair.0 += 1;
                        if round % 16 == 0 {
                            std::thread::yield_now();
                        }
                        pair.1 += 1;
                    } else {
                        let pair = PAIR.read();
                        let before = *pair;
                        if round % 16 == 0 {
                            std::thread::yield_now();
                        }
                        assert_eq!(before.0, before.1);
                        assert_eq!(*pair, before);
                        assert_eq!(*PAIR.read_recursive(), before, "waits for nobody");
                    }
                }
            });
        }
    });
    assert_eq!(*PAIR.read(), (2 * ROUNDS, 2 * ROUNDS));
    assert_eq!(std::mem::size_of::<pvlock::RwLock<(), Threads>>(), 8);
}
