//! The lock's real code under the model checker, generic over the policy.
//!
//! ```text
//! cargo test -p pvlock-loom -- --nocapture
//! ```
//!
//! runs all of it; `PVLOCK_EXTRA_PREEMPTIONS=1` goes deeper, and `PVLOCK_WEAKEN=link` shows what
//! breaks when that ordering is one step weaker.
//!
//! # What is bounded
//!
//! The checker tries every order of the atomic operations of all CPUs, and every value that a load
//! may see by the C11 model, with at most `Bounds::preemptions` involuntary switches between CPUs,
//! one or two acquisitions a CPU, spin budgets of 0 or 1 turns, and `MAX_TURNS` turns of all spin
//! loops together. Longer runs are not covered, nor are values that C11 allows but the checker does
//! not produce (load buffering).
mod contexts;
mod explore;
mod fair;
mod machine;
mod mode;
mod orderings;
mod readers;
mod two_heads;

use explore::{Bounds, SLEEP, SPIN, explore};
use pvlock::{AdaptiveWithin, KickAtUnlock, KickTwice, Mode, Policy};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The patch as it was posted in 2015: a negative control.
struct Posted;

impl Policy for Posted {
    const NAME: &'static str = "posted";
    const AS_POSTED: bool = true;
}

/// `Adaptive`, with a budget of as many turns as the model says, and a waiter that is late when the
/// clock, which ticks with every turn and every wake-up, has ticked more than once.
type Adaptive = AdaptiveWithin<{ u64::MAX }, 1, 0, 1>;

/// Every waiter is late at the first tick.
type AlwaysLate = AdaptiveWithin<{ u64::MAX }, 0>;

/// No waiter is ever late.
type NeverLate = AdaptiveWithin<{ u64::MAX }, { u64::MAX }>;

/// `explore` must fail; its message and the steps that led there.
fn explore_to_failure<K: Policy>(rounds: &'static [usize], bounds: Bounds) -> String {
    let failure = catch_unwind(AssertUnwindSafe(|| explore::<K>(rounds, bounds)))
        .expect_err("the checker finds the defect");
    let message = failure
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| failure.downcast_ref::<&str>().map(|text| text.to_string()))
        .unwrap_or_default();
    println!("{}: found: {message}", K::NAME);
    for (cpu, step) in pvlock::model::trace() {
        println!("    cpu {cpu}: {step}");
    }
    message
}

/// Every policy goes through the same models.
macro_rules! models_of {
    ($policy:ident, $name:ident) => {
        mod $name {
            use super::*;

            #[test]
            fn two_cpus_that_spin_a_little() {
                explore::<$policy>(&[2, 2], SPIN);
            }

            #[test]
            fn two_cpus_that_sleep_at_once() {
                explore::<$policy>(&[2, 1], SLEEP);
                explore::<$policy>(&[2, 2], Bounds { preemptions: 2, ..SLEEP });
            }

            #[test]
            fn spurious_wake_ups() {
                explore::<$policy>(&[2, 1], Bounds { spurious: true, ..SLEEP });
            }

            #[test]
            fn three_cpus() {
                explore::<$policy>(&[1, 1, 1], Bounds { preemptions: 2, ..SPIN });
                explore::<$policy>(&[1, 1, 1], Bounds { preemptions: 2, ..SLEEP });
            }
        }
    };
}

models_of!(KickTwice, kick_twice);
models_of!(KickAtUnlock, kick_at_unlock);
models_of!(Adaptive, adaptive);
models_of!(AlwaysLate, always_late);
models_of!(NeverLate, never_late);

/// Some orderings matter only in schedules this far from a fair one.
#[test]
fn two_cpus_deeper() {
    explore::<KickAtUnlock>(&[2, 1], Bounds { preemptions: 5, ..SLEEP });
}

/// Each CPU stands behind the other, and one of them twice: with the node of the last time.
#[test]
fn a_cpu_that_is_handed_the_head_twice() {
    explore::<KickAtUnlock>(&[3, 2], Bounds { preemptions: 2, ..SLEEP });
}

/// A head that has somebody behind it, where nobody sleeps.
#[test]
fn a_head_with_a_successor() {
    let awake = Bounds { preemptions: 2, spin_turns: u32::MAX, ..SPIN };
    explore::<KickAtUnlock>(&[1, 1, 1], awake);
}

/// The exploration reaches the steps that only a theft brings about, and a FIFO policy none of
/// them.
#[test]
fn thefts_are_explored() {
    const THEFTS: [&str; 3] = [
        "newcomer: steals",
        "head: lost to a thief, has registered again",
        "unlock: reserves the lock, kicks cpu 1",
    ];
    let reached = explore::<Adaptive>(&[3, 1], SLEEP);
    assert!(THEFTS.iter().all(|&step| reached.contains(step)), "{reached:#?}");
    let reached = explore::<AlwaysLate>(&[3, 1], SLEEP);
    assert!(reached.contains("newcomer: has stolen for long, queues"), "{reached:#?}");
    let reached = explore::<KickAtUnlock>(&[3, 1], SLEEP);
    assert!(!THEFTS.iter().any(|&step| reached.contains(step)), "{reached:#?}");
}

#[test]
fn native_mode() {
    let native = Bounds { mode: Mode::Native, ..SPIN };
    explore::<KickAtUnlock>(&[2, 2], Bounds { preemptions: 4, ..native });
    // Three, so that the pending waiter meets a queue, and a queue the pending waiter.
    explore::<KickAtUnlock>(&[1, 1, 1], Bounds { preemptions: 3, ..native });
    explore::<KickAtUnlock>(&[2, 1, 1], Bounds { preemptions: 1, ..native });
}

/// S1: after the owner handed the head over, and before it looks whether the new head sleeps, that
/// head halts for itself. Both then enter the lock.
#[test]
fn the_patch_as_posted_enters_a_lock_twice() {
    let message = explore_to_failure::<Posted>(&[2, 1], SLEEP);
    assert!(message.contains("two entries for one lock"), "another failure: {message}");
}
