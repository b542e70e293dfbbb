//! What a fair hand-over promises, and what is left when a policy panics.
#![cfg(not(any(loom, shuttle)))]

#[allow(dead_code)]
#[path = "common/threads.rs"]
mod machine;

use machine::Threads;
use pvlock::{
    Adaptive, KickAtUnlock, KickTwice, Mutex, MutexGuard, Platform, Policy, RwLock, Spin, Stage,
};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

/// Bumps by an owner until a waiter, which was in the queue before the first, has had the lock.
fn bumps_until_the_waiter_ran<K: Policy>() -> u32 {
    let lock = Mutex::<u32, Threads, K>::new(0);
    let mut bumps = 0;
    std::thread::scope(|scope| {
        let mut guard = lock.lock();
        scope.spawn(|| *lock.lock() += 1);
        // SAFETY: only looks.
        while !unsafe { lock.raw() }.is_contended() {
            std::thread::yield_now();
        }
        while *guard == 0 {
            MutexGuard::bump(&mut guard);
            bumps += 1;
        }
    });
    bumps
}

#[test]
fn a_bump_lets_a_waiter_go_first_under_every_policy() {
    let _one = one_test();
    for _ in 0..100 {
        assert_eq!(bumps_until_the_waiter_ran::<KickTwice>(), 1);
        assert_eq!(bumps_until_the_waiter_ran::<KickAtUnlock>(), 1);
        assert_eq!(bumps_until_the_waiter_ran::<Adaptive>(), 1);
    }
}

/// The threads of one test at a time: they share nodes and hash table, and some tests look into
/// these.
fn one_test() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

thread_local!(static FAULTY: Cell<bool> = const { Cell::new(false) });

/// Panics where it is asked in the queue, once it is told to; steals, or not.
struct MayPanic<const STEALS: bool>;

impl<const STEALS: bool> Policy for MayPanic<STEALS> {
    const NAME: &'static str = "may-panic";
    const HORIZON: Option<u64> = if STEALS { Some(100_000) } else { None };

    fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
        let queued = spin.stage() != Stage::Newcomer;
        assert!(!(queued && FAULTY.take()), "a defect of a policy");
        // Not for long before the queue, or hardly any waiter would come to it.
        spin.turn() < if queued { 100 } else { 1 }
    }
}

/// The counter under the lock, with a check that nobody else is there.
fn alone(inside: &AtomicU32) {
    assert_eq!(inside.fetch_add(1, SeqCst), 0, "two owners");
    std::thread::yield_now();
    inside.fetch_sub(1, SeqCst);
}

fn a_panic_leaves_the_lock_whole<const STEALS: bool>(bump: bool) {
    let lock = Mutex::<(), Threads, MayPanic<STEALS>>::new(());
    let (inside, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let mut panics = 0;
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    let guard = lock.lock();
                    alone(&inside);
                    drop(guard);
                    // Now and then nobody waits, which is what a bump that unwinds waits for.
                    std::thread::yield_now();
                }
            });
        }
        while panics < 3 {
            FAULTY.set(true);
            let result = catch_unwind(AssertUnwindSafe(|| {
                let mut guard = lock.lock();
                alone(&inside);
                if bump {
                    MutexGuard::bump(&mut guard);
                    alone(&inside);
                }
            }));
            panics += u32::from(result.is_err());
        }
        FAULTY.set(false);
        stop.store(true, SeqCst);
    });
    // Everybody came out of the queue.
    drop(lock.lock());
    assert!(!lock.is_locked());
    assert!(Threads::hash().is_empty());
    assert_eq!(Threads::nodes(Threads::current_cpu()).depth(), 0);
}

#[test]
fn a_policy_that_panics_leaves_the_lock_whole() {
    let _one = one_test();
    for bump in [false, true] {
        a_panic_leaves_the_lock_whole::<false>(bump);
        a_panic_leaves_the_lock_whole::<true>(bump);
    }
}

/// The head of a readers-writer lock panics, while others stand behind it.
#[test]
fn a_policy_that_panics_leaves_a_rwlock_whole() {
    let _one = one_test();
    static LOCK: RwLock<(), Threads, MayPanic<false>> = RwLock::new(());
    static PANICS: AtomicU32 = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let guard = LOCK.write();
        for write in [false, true] {
            scope.spawn(move || {
                FAULTY.set(true);
                let take = || if write { drop(LOCK.write()) } else { drop(LOCK.read()) };
                catch_unwind(take).expect_err("a defect of a policy");
                PANICS.fetch_add(1, SeqCst);
            });
        }
        while PANICS.load(SeqCst) < 2 {
            std::thread::yield_now();
        }
        assert!(LOCK.try_read().is_none());
        drop(guard);
    });
    drop(LOCK.try_read().expect("nobody waits"));
    drop(LOCK.try_write().expect("nobody holds it"));
    assert!(Threads::hash().is_empty());
}

/// Found by a reader: a handler that reads by `read_recursive` stood in the queue behind the
/// context that it had interrupted.
#[test]
fn a_recursive_reader_does_not_wait_for_the_context_it_interrupts() {
    let _one = one_test();
    static LOCK: RwLock<u32, Threads> = RwLock::new(0);
    static INTERRUPTED: AtomicU32 = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let mut guard = LOCK.write();
        scope.spawn(|| {
            machine::nest(|level| {
                if level == 0 {
                    assert_eq!(*LOCK.read(), 7);
                } else {
                    INTERRUPTED.fetch_add(1, SeqCst);
                    assert_eq!(*LOCK.read_recursive(), 7);
                }
            });
        });
        while INTERRUPTED.load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        *guard = 7;
        drop(guard);
    });
    assert!(!LOCK.is_locked());
}

/// Found by a reader: the panic came between the unlock and the lock of a bump, and the guard
/// unlocked again.
#[test]
fn a_bump_that_panics_makes_no_second_owner() {
    let _one = one_test();
    static LOCK: Mutex<(), Threads, MayPanic<false>> = Mutex::new(());
    static INSIDE: AtomicU32 = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut guard = LOCK.lock();
            for _ in 0..2 {
                scope.spawn(|| {
                    let _guard = LOCK.lock();
                    alone(&INSIDE);
                });
            }
            // SAFETY: only looks.
            while !unsafe { LOCK.raw() }.is_contended() {
                std::thread::yield_now();
            }
            FAULTY.set(true);
            MutexGuard::bump(&mut guard);
            alone(&INSIDE);
        }));
        // The waiters may have been gone before this thread had to spin.
        assert_eq!(result.is_err(), !FAULTY.take());
    });
    assert!(!LOCK.is_locked());
}
