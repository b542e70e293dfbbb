//! The fair hand-over, and the end of a CPU that may still be kicked.

use crate::explore::{Bounds, SLEEP, SPIN, Shared, on_cpus, run};
use crate::machine::Machine;
use crate::{Adaptive, AlwaysLate, NeverLate};
use pvlock::{KickAtUnlock, KickTwice, Policy};
use std::sync::Arc;

/// CPU 0 lets CPU 1 have the lock if it waits, in the middle of what it does.
fn explore_bump<K: Policy>(bounds: Bounds) {
    run(&format!("{}: bump", K::NAME), bounds, || {
        let shared = Arc::new(Shared::<K>::new());
        on_cpus(2, {
            let shared = shared.clone();
            move |cpu| {
                if cpu == 0 {
                    shared.add_one_and_bump();
                } else {
                    shared.add_one();
                }
            }
        });
        shared.assert_done(2);
    });
}

#[test]
fn a_bump_lets_the_waiter_go_first() {
    let spurious = Bounds { spurious: true, preemptions: 2, ..SLEEP };
    for bounds in [SPIN, SLEEP, spurious] {
        explore_bump::<KickTwice>(bounds);
        explore_bump::<KickAtUnlock>(bounds);
        explore_bump::<Adaptive>(bounds);
        // An owner that has reserved the lock comes back as a thief, by more ways than one.
        explore_bump::<AlwaysLate>(bounds);
        explore_bump::<NeverLate>(bounds);
    }
}

/// CPU 1 has the lock. It reserves it for CPU 0 between that one's registration and its sleep, and comes
/// back before CPU 0 has looked again.
#[test]
#[ignore = "170,000 executions; .ci/long breaks runs it"]
fn a_reservation_is_not_erased_by_the_head() {
    run("a reservation", SLEEP, || {
        let shared = Arc::new(Shared::<NeverLate>::new());
        shared.hold();
        on_cpus(2, {
            let shared = shared.clone();
            move |cpu| match cpu {
                0 => {
                    shared.add_one();
                }
                _ => shared.bump_and_give_up(),
            }
        });
        shared.assert_done(1);
    });
}

/// CPU 1 takes a lock, and goes offline at once: after `wait_for_kicks` nobody kicks it.
#[test]
fn no_kick_comes_to_a_cpu_that_is_gone() {
    run("a CPU goes offline", Bounds { spurious: true, ..SLEEP }, || {
        let shared = Arc::new(Shared::<KickAtUnlock>::new());
        on_cpus(2, {
            let shared = shared.clone();
            move |cpu| {
                shared.add_one();
                if cpu == 1 {
                    pvlock::wait_for_kicks::<Machine>();
                    Machine::take_port_away(cpu);
                }
            }
        });
        shared.assert_done(2);
    });
}
