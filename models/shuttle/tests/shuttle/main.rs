//! Lock and event channels together, under random schedules: 4 to 8 vCPUs, every policy, both event
//! channel ABIs, nested acquisition.
//!
//! Schedules come in batches of [`BATCH`], each from a seed: the same ones in every run.
//! `FIRST=1000 SCHEDULES=100000` runs that many for each test, from another seed on. A failing test
//! prints the command that runs its batch again, up to the schedule that failed.

mod controls;
mod machine;

use std::any::type_name;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pvlock::{Adaptive, AdaptiveWithin, KickAtUnlock, KickTwice, Policy, RawPvLock};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, Runner, thread};

use machine::{
    CPU, CPUS, DROPS_KICKS, FOUND, INTERRUPTS, USE_FIFO, Vm, XEN, machine, with_interrupts_off,
};

/// The patch as posted in 2015, for the negative control.
struct AsPosted;

impl Policy for AsPosted {
    const NAME: &'static str = "as-posted";
    const AS_POSTED: bool = true;
}

/// A lock, and a count that only its owner changes.
struct Guarded<M, K> {
    lock: RawPvLock<M, K>,
    count: shuttle::sync::atomic::AtomicUsize,
}

impl<M: Vm, K: Policy> Guarded<M, K> {
    const fn new() -> Self {
        Self { lock: RawPvLock::new(), count: shuttle::sync::atomic::AtomicUsize::new(0) }
    }

    fn add_one(&self) {
        self.lock.lock();
        // Not one step: a second owner would be between the two.
        let count = self.count.load(Ordering::Relaxed);
        if machine::chance() && machine::chance() {
            // Long enough for a newcomer of any policy to join the queue and go to sleep.
            for _ in 0..LONG_SECTION {
                thread::yield_now();
            }
        }
        self.count.store(count + 1, Ordering::Relaxed);
        // SAFETY: locked above, by this context.
        unsafe { self.lock.unlock() };
    }
}

/// Turns of a long critical section.
const LONG_SECTION: usize = 64;

#[derive(Clone, Copy)]
struct Plan {
    cpus: usize,
    /// Acquisitions of each vCPU.
    rounds: usize,
    /// Interrupts of each even vCPU; their handlers take a second lock, as the odd vCPUs do too.
    interrupts: usize,
}

/// One schedule. `task` is the lock of the vCPUs' tasks, `irq` that of the interrupt handlers.
fn run<M: Vm, K: Policy>(plan: Plan, [task, irq]: [&'static Guarded<M, K>; 2]) {
    task.count.store(0, Ordering::Relaxed);
    irq.count.store(0, Ordering::Relaxed);
    for cpu in 0..CPUS {
        // Or a schedule would depend on those before it.
        M::nodes(cpu).forget();
        if cpu < plan.cpus {
            machine::bind::<M>(cpu);
        } else {
            XEN.vcpu(cpu as u32).down();
        }
    }
    let handled = Arc::new(AtomicUsize::new(0));
    let vcpus: Vec<_> = (0..plan.cpus)
        .map(|cpu| {
            let handled = handled.clone();
            thread::spawn(move || {
                CPU.with(|number| number.set(cpu));
                if cpu % 2 == 0 {
                    for _ in 0..plan.interrupts {
                        let handled = handled.clone();
                        let handler = move || {
                            irq.add_one();
                            handled.fetch_add(1, Ordering::Relaxed);
                        };
                        INTERRUPTS.with(|due| due.borrow_mut().push(Box::new(handler)));
                    }
                }
                for _ in 0..plan.rounds {
                    task.add_one();
                    if plan.interrupts > 0 && cpu % 2 == 1 {
                        with_interrupts_off(|| irq.add_one());
                    }
                }
                machine::vcpu().down();
            })
        })
        .collect();
    for vcpu in vcpus {
        vcpu.join().expect("a vCPU");
    }

    let (tasks, odd) = (plan.cpus * plan.rounds, plan.cpus / 2 * plan.rounds);
    assert_eq!(task.count.load(Ordering::Relaxed), tasks);
    let handled = handled.load(Ordering::Relaxed);
    let irqs = if plan.interrupts > 0 { odd + handled } else { 0 };
    assert_eq!(irq.count.load(Ordering::Relaxed), irqs);
    assert!(!task.lock.is_locked() && !task.lock.is_contended());
    assert!(M::hash().is_empty(), "entries left: {:?}", M::hash().entries().collect::<Vec<_>>());
    assert!((0..plan.cpus).all(|cpu| M::nodes(cpu).depth() == 0));
    SLEPT.with(|slept| slept.set(slept.get() + XEN.seen().blocked_polls));
    // Each unlock kicks once at most, and each hand-over of KickTwice once more.
    let kicks_a_turn = if K::HANDOVER == pvlock::Handover::Kick { 2 } else { 1 };
    assert!(XEN.seen().sends as usize <= (tasks + irqs) * kicks_a_turn);
}

std::thread_local! {
    /// Polls that slept, in all schedules of a test.
    static SLEPT: Cell<u64> = const { Cell::new(0) };
}

/// Schedules of a batch.
const BATCH: usize = 100;

/// How a batch is scheduled: at random, or by priorities that change at few but arbitrary places.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Random,
    Pct,
}

/// What runs one test of this suite.
const COMMAND: &str = " cargo test -p pvlock-shuttle --test shuttle ";

/// Runs one batch; if a schedule fails, prints how to run it again.
fn run_batch<M: Vm, K: Policy>(
    kind: Kind,
    seed: u64,
    plan: Plan,
    locks: [&'static Guarded<M, K>; 2],
) {
    let mut config = Config::default();
    config.failure_persistence = FailurePersistence::None;
    let one = move || run(plan, locks);
    let batch = AssertUnwindSafe(|| match kind {
        Kind::Random => Runner::new(RandomScheduler::new_from_seed(seed, BATCH), config).run(one),
        Kind::Pct => Runner::new(PctScheduler::new_from_seed(seed, 3, BATCH), config).run(one),
    });
    if let Err(panic) = catch_unwind(batch) {
        // "shuttle::adaptive::four_vcpus::Machine": a platform stands in its test.
        let test = type_name::<M>().trim_start_matches("shuttle::").trim_end_matches("::Machine");
        println!("replay: REPLAY={kind:?}:{seed}{COMMAND}{test} -- --exact --nocapture");
        match FOUND.take() {
            Some(found) => resume_unwind(Box::new(found)),
            None => resume_unwind(panic),
        }
    }
}

/// A number in an environment variable.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Many schedules, half of them of each kind.
fn explore<M: Vm, K: Policy>(plan: Plan, locks: [&'static Guarded<M, K>; 2], schedules: usize) {
    explore_from(1, plan, locks, schedules);
}

/// The same from the seed `first` on, unless another is asked for.
fn explore_from<M: Vm, K: Policy>(
    first: u64,
    plan: Plan,
    locks: [&'static Guarded<M, K>; 2],
    schedules: usize,
) {
    if let Ok(replay) = std::env::var("REPLAY") {
        let (kind, seed) = replay.split_once(':').expect("REPLAY=Random:SEED or Pct:SEED");
        let kind = if kind == "Pct" { Kind::Pct } else { Kind::Random };
        run_batch(kind, seed.parse().expect("the seed is a number"), plan, locks);
        return;
    }
    let schedules = number("SCHEDULES").unwrap_or(schedules as u64);
    let first = number("FIRST").unwrap_or(first);
    for seed in (first..).take(schedules.div_ceil(2 * BATCH as u64) as usize) {
        run_batch(Kind::Random, seed, plan, locks);
        run_batch(Kind::Pct, seed, plan, locks);
    }
    // Or nothing of this was about kicks.
    let slept = SLEPT.with(Cell::get);
    assert!(slept > schedules, "only {slept} polls slept in {schedules} schedules");
}

const SCHEDULES: usize = 2_000;
const FOUR: Plan = Plan { cpus: 4, rounds: 3, interrupts: 0 };
const EIGHT: Plan = Plan { cpus: 8, rounds: 2, interrupts: 0 };
const NESTED: Plan = Plan { cpus: 4, rounds: 2, interrupts: 2 };

macro_rules! policy {
    ($module:ident, $policy:ident) => {
        mod $module {
            use super::*;

            #[test]
            fn four_vcpus() {
                let locks = machine!($policy);
                explore(FOUR, locks, SCHEDULES);
            }

            #[test]
            fn eight_vcpus() {
                let locks = machine!($policy);
                explore(EIGHT, locks, SCHEDULES);
            }

            #[test]
            fn nested_acquisition() {
                let locks = machine!($policy);
                explore(NESTED, locks, SCHEDULES);
            }

            #[test]
            fn nested_acquisition_under_fifo() {
                let locks = machine!($policy);
                USE_FIFO.with(|fifo| fifo.set(true));
                explore(NESTED, locks, SCHEDULES);
            }
        }
    };
}

policy!(kick_twice, KickTwice);
policy!(kick_at_unlock, KickAtUnlock);
policy!(adaptive, Adaptive);

/// Of a budget that is soon over and a horizon of some steps of the machine's clock, so that heads
/// are late, locks are reserved and thieves have to queue.
type Hasty = AdaptiveWithin<20, 100, 0, 1>;

policy!(hasty, Hasty);

/// S1, the negative control.
#[test]
fn the_posted_patch_enters_a_lock_twice() {
    let locks = machine!(AsPosted);
    // Ends with the first that finds it, one seed in some hundred: these begin just before one.
    let search = || explore_from(1_216, FOUR, locks, 100_000);
    let found = catch_unwind(AssertUnwindSafe(search));
    let found = found.expect_err("the second entry is noticed");
    let told = found.downcast_ref::<String>().expect("a failed assertion says what it found");
    // The hash notices the second entry, or it is left over when all is done.
    assert!(told.contains("two entries for lock") || told.contains("entries left"), "{told}");
}

/// The other one: without it, "no deadlock" would say nothing.
#[test]
#[should_panic(expected = "deadlock: every vCPU sleeps")]
fn a_dropped_kick_is_a_deadlock() {
    let locks = machine!(KickAtUnlock);
    DROPS_KICKS.with(|drops| drops.set(true));
    explore(FOUR, locks, SCHEDULES);
}
