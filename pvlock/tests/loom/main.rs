//! The lock's real code under the model checker, generic over the policy.
//!
//! Built only with `--cfg loom`; `tests/model_suite.rs` builds and runs it as part of `cargo test`.
//!
//! # What is bounded
//!
//! The checker tries every order of the atomic operations of all CPUs, and every value that a load
//! may see by the C11 model, with at most `Bounds::preemptions` involuntary switches between CPUs, one or two
//! acquisitions a CPU, spin budgets of 0 or 1 turns, and `MAX_TURNS` turns of all spin loops together. Longer runs are not covered, nor are values that
//! C11 allows but the checker does not produce (load buffering).
#![cfg(loom)]

mod machine;

use loom::cell::UnsafeCell;
use loom::model::Builder;

use loom::thread;
use machine::{Machine, NATIVE, SPIN_TURNS, SPURIOUS};
use pvlock::{Hybrid, KickAtUnlock, KickTwice, Mode, Platform, Policy, RawPvLock, Spin};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

/// The patch as it was posted in 2015: a negative control.
struct Posted;

impl Policy for Posted {
    const NAME: &'static str = "posted";
    const AS_POSTED: bool = true;
}

/// The protocol of `Adaptive` (theft, re-arm, bounded theft) with budgets in turns: a model has no
/// clock.
struct AdaptiveInTurns;

impl Policy for AdaptiveInTurns {
    const NAME: &'static str = "adaptive";
    const STEALS: u32 = 1;
    const REARM: bool = pvlock::Adaptive::REARM;
    const MAX_THEFTS: u32 = 1;

    fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
        spin.turn() < P::spin_turns()
    }
}

/// What to explore.
#[derive(Clone, Copy)]
struct Bounds {
    /// Involuntary switches in one execution.
    preemptions: usize,
    spin_turns: u32,
    mode: Mode,
    /// The first wait of every CPU ends for no reason.
    spurious: bool,
}

/// A number that only the owner of the lock touches: the checker reports a race if two do.
struct Shared<K: Policy> {
    lock: RawPvLock<Machine, K>,
    value: UnsafeCell<usize>,
}

// SAFETY: `value` is reached under `lock`; that this holds is what the checker checks.
unsafe impl<K: Policy> Sync for Shared<K> {}
// SAFETY: as above.
unsafe impl<K: Policy> Send for Shared<K> {}

impl<K: Policy> Shared<K> {
    fn add_one(&self) {
        self.lock.lock();
        // SAFETY: the lock is held; the checker would report another access.
        self.value.with_mut(|value| unsafe { *value += 1 });
        // SAFETY: taken above.
        unsafe { self.lock.unlock() };
    }
}

/// Runs CPU `i` for `rounds[i]` acquisitions of one lock, in every order within `bounds`.
///
/// Returns the steps that were done in any of them.
fn explore<K: Policy>(rounds: &'static [usize], bounds: Bounds) -> BTreeSet<String> {
    static EXECUTIONS: AtomicUsize = AtomicUsize::new(0);
    let _one_at_a_time = one_at_a_time();
    SPIN_TURNS.store(bounds.spin_turns, Relaxed);
    NATIVE.store(bounds.mode == Mode::Native, Relaxed);
    SPURIOUS.store(bounds.spurious, Relaxed);
    EXECUTIONS.store(0, Relaxed);
    let begin = std::time::Instant::now();
    let mut builder = Builder::new();
    builder.preemption_bound = Some(bounds.preemptions + extra_preemptions());
    pvlock::model::take_reached();
    builder.max_branches = 10_000;
    builder.check(move || {
        EXECUTIONS.fetch_add(1, Relaxed);
        Machine::boot();
        let shared = Arc::new(Shared::<K> { lock: RawPvLock::new(), value: UnsafeCell::new(0) });
        let others: Vec<_> = (1..rounds.len())
            .map(|cpu| {
                let shared = shared.clone();
                thread::spawn(move || {
                    Machine::become_cpu(cpu);
                    (0..rounds[cpu]).for_each(|_| shared.add_one());
                })
            })
            .collect();
        Machine::become_cpu(0);
        (0..rounds[0]).for_each(|_| shared.add_one());
        others.into_iter().for_each(|cpu| cpu.join().unwrap());

        // SAFETY: all other CPUs are done.
        assert_eq!(shared.value.with(|value| unsafe { *value }), rounds.iter().sum());
        assert!(!shared.lock.is_locked() && !shared.lock.is_contended());
        Machine::assert_idle();
    });
    println!(
        "{}, {:?}{}: {rounds:?} acquisitions, {} spin turns, {} preemptions: {} executions in {:.1} s",
        K::NAME,
        bounds.mode,
        if bounds.spurious { ", spurious wake-ups" } else { "" },
        bounds.spin_turns,
        bounds.preemptions + extra_preemptions(),
        EXECUTIONS.load(Relaxed),
        begin.elapsed().as_secs_f32()
    );
    pvlock::model::take_reached()
}

/// For a deeper run than the test command's: `PVLOCK_EXTRA_PREEMPTIONS=1`.
fn extra_preemptions() -> usize {
    std::env::var("PVLOCK_EXTRA_PREEMPTIONS").map_or(0, |extra| extra.parse().expect("a number"))
}

/// Models share statics of the machine, and a core each.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

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

const SPIN: Bounds = Bounds { preemptions: 3, spin_turns: 1, mode: Mode::Pv, spurious: false };
/// With one preemption less the posted patch's defect is not found.
const SLEEP: Bounds = Bounds { spin_turns: 0, ..SPIN };

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
models_of!(Hybrid, hybrid);
models_of!(AdaptiveInTurns, adaptive);

/// Some orderings matter only in schedules this far from a fair one.
#[test]
fn two_cpus_deeper() {
    explore::<KickAtUnlock>(&[2, 1], Bounds { preemptions: 5, ..SLEEP });
}

/// The exploration reaches the steps that only a theft brings about, and a FIFO policy none of them.
#[test]
fn thefts_are_explored() {
    const THEFTS: [&str; 3] =
        ["newcomer: steals", "head: lost to a thief, registers again", "head: forbids thefts"];
    let reached = explore::<AdaptiveInTurns>(&[3, 1], SLEEP);
    assert!(THEFTS.iter().all(|&step| reached.contains(step)), "{reached:#?}");
    let reached = explore::<KickAtUnlock>(&[3, 1], SLEEP);
    assert!(!THEFTS.iter().any(|&step| reached.contains(step)), "{reached:#?}");
}

#[test]
fn native_mode() {
    let native = Bounds { mode: Mode::Native, ..SPIN };
    explore::<KickAtUnlock>(&[2, 2], native);
    explore::<KickAtUnlock>(&[1, 1, 1], Bounds { preemptions: 2, ..native });
}

/// S1: after the owner handed the head over, and before it looks whether the new head sleeps, that
/// head halts for itself. Both then enter the lock.
#[test]
fn the_patch_as_posted_enters_a_lock_twice() {
    let message = explore_to_failure::<Posted>(&[2, 1], SLEEP);
    assert!(message.contains("two entries for one lock"), "another failure: {message}");
}
