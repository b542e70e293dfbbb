//! Interrupts that take locks, and locks whose memory is used again at once.

use crate::explore::{Bounds, SLEEP, Shared, on_cpus, run};
use crate::machine::{Arrival, Machine};
use pvlock::{KickAtUnlock, KickTwice, Policy};
use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

const DEEPER: Bounds = Bounds { preemptions: 4, ..SLEEP };

/// CPU 0 waits for one lock and is interrupted by a context that takes another; CPU 1 uses both.
fn explore_interrupted<K: Policy>(arrival: Arrival, bounds: Bounds) {
    let reached = run(&format!("{}: interrupted {arrival:?}", K::NAME), bounds, move || {
        let locks = Arc::new([Shared::<K>::new(), Shared::<K>::new()]);
        on_cpus(2, {
            let locks = locks.clone();
            move |cpu| {
                if cpu == 0 {
                    let of_interrupt = locks.clone();
                    Machine::interrupt_once(arrival, move || {
                        pvlock::model::note("interrupt: comes while waiting");
                        of_interrupt[1].add_one();
                    });
                    locks[0].add_one();
                } else {
                    locks[0].add_one();
                    locks[1].add_one();
                    locks[0].add_one();
                }
            }
        });
        locks[0].assert_done(3);
        locks[1].assert_done(1 + usize::from(Machine::was_interrupted()));
    });
    assert!(reached.contains("interrupt: comes while waiting"), "{reached:#?}");
}

#[test]
fn an_interrupt_before_the_sleep_takes_another_lock() {
    explore_interrupted::<KickTwice>(Arrival::BeforeSleep, DEEPER);
    explore_interrupted::<KickAtUnlock>(Arrival::BeforeSleep, DEEPER);
}

#[test]
fn an_interrupt_out_of_the_sleep_takes_another_lock() {
    explore_interrupted::<KickTwice>(Arrival::InSleep, DEEPER);
    explore_interrupted::<KickAtUnlock>(Arrival::InSleep, DEEPER);
}

#[test]
fn an_interrupt_of_a_spin_takes_another_lock() {
    explore_interrupted::<KickAtUnlock>(Arrival::WhileSpinning, Bounds { spin_turns: 1, ..DEEPER });
}

/// A lock that is made anew in place by whoever used it last.
struct Reused<K: Policy>(UnsafeCell<Shared<K>>);

// SAFETY: replaced only by the last user, which is what the model is about: an unlock that
// touched the memory after its release would meet the new lock, and the checker reports that.
unsafe impl<K: Policy> Sync for Reused<K> {}
// SAFETY: as above.
unsafe impl<K: Policy> Send for Reused<K> {}

fn explore_reused<K: Policy>(cpus: usize, bounds: Bounds) {
    run(&format!("{}: {cpus} CPUs, memory reused", K::NAME), bounds, move || {
        let memory = Arc::new(Reused(UnsafeCell::new(Shared::<K>::new())));
        on_cpus(cpus, {
            let memory = memory.clone();
            move |_| {
                // SAFETY: nobody replaces the lock before all have used it.
                let used = unsafe { &*memory.0.get() }.add_one();
                if used == cpus {
                    // SAFETY: all others have used the lock and are done with it, if unlock keeps
                    // its promise (R5).
                    unsafe { *memory.0.get() = Shared::new() };
                    // SAFETY: as above.
                    unsafe { &*memory.0.get() }.add_one();
                }
            }
        });
        // SAFETY: all CPUs are done.
        unsafe { &*memory.0.get() }.assert_done(1);
    });
}

#[test]
fn memory_reused_right_after_unlock() {
    explore_reused::<KickTwice>(2, DEEPER);
    explore_reused::<KickAtUnlock>(2, DEEPER);
    // Three, because an unlock that took its entry out after the release is only found with three.
    explore_reused::<KickAtUnlock>(3, Bounds { preemptions: 2, ..SLEEP });
}

/// An interrupt before the `n`th access to shared memory that CPU 0 makes for a lock and its
/// unlock, for every `n`, while CPU 1 takes that lock twice. The handler waits for a lock of its
/// own, on the next node of its CPU; whoever holds that one is no part of the model, and gives it
/// up as soon as the handler waits.
fn explore_interrupted_at_every_access<K: Policy>(bounds: Bounds) {
    for access in 0.. {
        let came = Arc::new(AtomicBool::new(false));
        let name = format!("{}: interrupted before access {access}", K::NAME);
        run(&name, bounds, {
            let came = came.clone();
            move || {
                let locks = Arc::new([Shared::<K>::new(), Shared::<K>::new()]);
                on_cpus(2, {
                    let locks = locks.clone();
                    move |cpu| {
                        if cpu == 0 {
                            let of_interrupt = locks.clone();
                            Machine::interrupt_once(Arrival::AtAccess(access), move || {
                                let holder = of_interrupt.clone();
                                holder[1].hold();
                                Machine::interrupt_once(Arrival::BeforeSleep, move || {
                                    holder[1].give_up();
                                });
                                of_interrupt[1].add_one();
                            });
                            locks[0].add_one();
                            Machine::disarm();
                        } else {
                            locks[0].add_one();
                            locks[0].add_one();
                        }
                    }
                });
                locks[0].assert_done(3);
                locks[1].assert_done(usize::from(Machine::was_interrupted()));
                came.fetch_or(Machine::was_interrupted(), Relaxed);
            }
        });
        if !came.load(Relaxed) {
            // No execution has as many accesses.
            assert!(access > 20, "only {access} accesses");
            return;
        }
    }
}

#[test]
fn an_interrupt_before_every_access() {
    explore_interrupted_at_every_access::<KickTwice>(Bounds { preemptions: 2, ..SLEEP });
    explore_interrupted_at_every_access::<KickAtUnlock>(Bounds { preemptions: 2, ..SLEEP });
}
