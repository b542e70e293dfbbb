//! How a model is explored, and what is checked at the end of every execution.

use crate::machine::{Machine, NATIVE, SPIN_TURNS, SPURIOUS};
use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::thread;
use pvlock::{Mode, Policy, RawPvLock};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

/// What to explore.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// Involuntary switches in one execution.
    pub(crate) preemptions: usize,
    pub(crate) spin_turns: u32,
    pub(crate) mode: Mode,
    /// The first wait of every CPU ends for no reason.
    pub(crate) spurious: bool,
}

pub(crate) const SPIN: Bounds =
    Bounds { preemptions: 3, spin_turns: 1, mode: Mode::Pv, spurious: false };
/// With one preemption less the posted patch's defect is not found.
pub(crate) const SLEEP: Bounds = Bounds { spin_turns: 0, ..SPIN };

/// A number that only the owner of the lock touches: the checker reports a race if two do.
pub(crate) struct Shared<K: Policy> {
    lock: RawPvLock<Machine, K>,
    value: UnsafeCell<usize>,
}

// SAFETY: `value` is reached under `lock`; that this holds is what the checker checks.
unsafe impl<K: Policy> Sync for Shared<K> {}
// SAFETY: as above.
unsafe impl<K: Policy> Send for Shared<K> {}

impl<K: Policy> Shared<K> {
    pub(crate) fn new() -> Self {
        Self { lock: RawPvLock::new(), value: UnsafeCell::new(0) }
    }

    /// Takes the lock, for somebody who is no part of the model.
    pub(crate) fn hold(&self) {
        assert!(self.lock.try_lock());
    }

    /// Gives up what [`hold`](Self::hold) took.
    pub(crate) fn give_up(&self) {
        // SAFETY: taken by `hold`.
        unsafe { self.lock.unlock() };
    }

    /// Adds one under the lock, and returns the sum.
    pub(crate) fn add_one(&self) -> usize {
        self.add_one_around(|| {})
    }

    /// Adds one under the lock, does `more` under it, and returns the sum.
    pub(crate) fn add_one_around(&self, more: impl FnOnce()) -> usize {
        self.lock.lock();
        let sum = self.value.with_mut(|value| {
            // SAFETY: the lock is held; the checker would report another access.
            unsafe { *value += 1 };
            // SAFETY: as above.
            unsafe { *value }
        });
        more();
        // SAFETY: taken above.
        unsafe { self.lock.unlock() };
        sum
    }

    /// Adds one under the lock. If somebody waits then, it gets the lock before this returns.
    pub(crate) fn add_one_and_bump(&self) {
        self.lock.lock();
        // SAFETY: the lock is held; the checker would report another access.
        self.value.with_mut(|value| unsafe { *value += 1 });
        self.bump_and_give_up();
    }

    /// If somebody waits for the lock, which the caller holds, it gets it before this returns, and the
    /// caller once more. Gives it up.
    pub(crate) fn bump_and_give_up(&self) {
        // SAFETY: the lock is held.
        let before = self.value.with(|value| unsafe { *value });
        let contended = self.lock.is_contended();
        // SAFETY: taken above.
        unsafe { self.lock.bump() };
        // SAFETY: the lock is held again.
        let after = self.value.with(|value| unsafe { *value });
        assert!(!contended || after > before, "the waiter went first");
        // SAFETY: taken above.
        unsafe { self.lock.unlock() };
    }

    /// After all CPUs are done: every acquisition counted, nobody owns, nobody waits.
    pub(crate) fn assert_done(&self, sum: usize) {
        // SAFETY: all other CPUs are done.
        assert_eq!(self.value.with(|value| unsafe { *value }), sum);
        assert!(!self.lock.is_locked() && !self.lock.is_contended());
    }
}

/// Explores `model`, which is called on a booted machine once an execution. Returns the steps that
/// were done in any execution.
pub(crate) fn run(
    name: &str,
    bounds: Bounds,
    model: impl Fn() + Send + Sync + 'static,
) -> BTreeSet<String> {
    static EXECUTIONS: AtomicUsize = AtomicUsize::new(0);
    let _one_at_a_time = one_at_a_time();
    SPIN_TURNS.store(bounds.spin_turns, Relaxed);
    NATIVE.store(bounds.mode == Mode::Native, Relaxed);
    SPURIOUS.store(bounds.spurious, Relaxed);
    EXECUTIONS.store(0, Relaxed);
    pvlock::model::take_reached();
    let preemptions = bounds.preemptions + extra_preemptions();
    let begin = std::time::Instant::now();
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(move || {
        EXECUTIONS.fetch_add(1, Relaxed);
        Machine::boot();
        model();
        Machine::assert_idle();
    });
    println!(
        "{name}, {:?}{}, {} spin turns, {preemptions} preemptions: {} executions in {:.1} s",
        bounds.mode,
        if bounds.spurious { ", spurious wake-ups" } else { "" },
        bounds.spin_turns,
        EXECUTIONS.load(Relaxed),
        begin.elapsed().as_secs_f32()
    );
    pvlock::model::take_reached()
}

/// Runs CPU `i` for `rounds[i]` acquisitions of one lock, in every order within `bounds`.
pub(crate) fn explore<K: Policy>(rounds: &'static [usize], bounds: Bounds) -> BTreeSet<String> {
    run(&format!("{}: {rounds:?} acquisitions", K::NAME), bounds, move || {
        let shared = Arc::new(Shared::<K>::new());
        on_cpus(rounds.len(), {
            let shared = shared.clone();
            move |cpu| {
                (0..rounds[cpu]).for_each(|_| {
                    shared.add_one();
                });
            }
        });
        shared.assert_done(rounds.iter().sum());
    })
}

/// Runs `body(cpu)` on each of `cpus` CPUs, to the end.
pub(crate) fn on_cpus(cpus: usize, body: impl Fn(usize) + Clone + 'static) {
    let others: Vec<_> = (1..cpus)
        .map(|cpu| {
            let body = body.clone();
            thread::spawn(move || {
                Machine::become_cpu(cpu);
                body(cpu);
            })
        })
        .collect();
    Machine::become_cpu(0);
    body(0);
    others.into_iter().for_each(|cpu| cpu.join().unwrap());
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
