//! The table of sleepers, used by two CPUs at once. A model of one lock never does that: a lock has
//! one head.

use crate::explore::{Bounds, SLEEP, Shared, on_cpus, run};
use pvlock::{KickAtUnlock, KickTwice, Policy};
use std::sync::Arc;

/// CPU 0 holds two locks, and a CPU is the head of each: both enter the table, whose one line has
/// one home for all.
fn explore_two_heads<K: Policy>(bounds: Bounds) {
    run(&format!("{}: two heads of two locks", K::NAME), bounds, move || {
        let locks = Arc::new([Shared::<K>::new(), Shared::<K>::new()]);
        on_cpus(3, {
            let locks = locks.clone();
            move |cpu| match cpu {
                0 => {
                    locks[0].add_one_around(|| {
                        locks[1].add_one();
                    });
                }
                _ => {
                    locks[cpu - 1].add_one();
                }
            }
        });
        locks.iter().for_each(|lock| lock.assert_done(2));
    });
}

#[test]
fn two_heads_enter_the_table_at_once() {
    explore_two_heads::<KickAtUnlock>(Bounds { preemptions: 2, ..SLEEP });
    explore_two_heads::<KickTwice>(Bounds { preemptions: 2, ..SLEEP });
}
