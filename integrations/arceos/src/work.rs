//! What a task does: count under a lock, allocate, sleep, again and again.
//!
//! Owns the lock under test and the loop that stands for work. It prints nothing.

use alloc::vec;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;

use kspin::SpinNoIrq;
use std::thread;
use std::time::Instant;
use xen_guest::{glue, vcpu};

use crate::plan::Plan;

/// What the lock protects: read, held on to for a while, written back one higher.
pub(crate) static COUNTER: SpinNoIrq<u64> = SpinNoIrq::new(0);

/// How many vCPUs have slept in a wait and were kicked awake; never more than there are.
static SLEEPERS: AtomicU32 = AtomicU32::new(0);

/// Rounds of a task that was told no number, at least and at most: a kernel whose kicks wake nobody
/// ends too, and says so.
const AT_LEAST: u64 = 50;
const AT_MOST: u64 = 20_000;

/// A task sleeps after so many rounds.
const ROUNDS_PER_SLEEP: u64 = 8;

/// What came of a task.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// How often it had the lock.
    pub(crate) taken: u64,
    /// The longest it waited for it.
    pub(crate) longest_wait_ns: u64,
    /// Where it ran.
    pub(crate) ran_on: VcpuSet,
}

/// A set of vCPUs.
#[derive(Debug, Default)]
pub(crate) struct VcpuSet(u128);

impl VcpuSet {
    fn insert(&mut self, vcpu: u32) {
        self.0 |= 1 << vcpu;
    }

    /// Whether `vcpu` is one of them.
    pub(crate) fn get(&self, vcpu: u32) -> bool {
        self.0 >> vcpu & 1 == 1
    }
}

/// Task number `task` of `plan`.
pub(crate) fn run(task: u32, plan: Plan, vcpus: u32) -> Done {
    let mut done = Done::default();
    let mut kept: Vec<Vec<u32>> = Vec::new();
    loop {
        match plan.rounds {
            Some(rounds) if done.taken == rounds => break,
            None if done.taken >= AT_MOST => break,
            None if done.taken >= AT_LEAST && all_slept(vcpus) => break,
            _ => {}
        }
        done.ran_on.insert(vcpu::current());
        count(plan, &mut done);
        allocate(task, done.taken, &mut kept);
        work(plan.outside_us);
        if done.taken % ROUNDS_PER_SLEEP == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    done
}

fn count(plan: Plan, done: &mut Done) {
    let begin = Instant::now();
    let mut counter = COUNTER.lock();
    let waited = begin.elapsed().as_nanos() as u64;
    let before = black_box(*counter);
    work(plan.critical_us);
    *counter = before + 1;
    drop(counter);
    done.taken += 1;
    done.longest_wait_ns = done.longest_wait_ns.max(waited);
}

/// Keeps a few blocks of various sizes, and looks whether each still is what it was.
fn allocate(task: u32, round: u64, kept: &mut Vec<Vec<u32>>) {
    let mark = task << 16 | round as u32 & 0xffff;
    kept.push(vec![mark; 1 + (mark as usize * 7919) % 200]);
    if kept.len() > 4 {
        let block = kept.swap_remove(mark as usize % kept.len());
        assert!(block.iter().all(|word| *word == block[0]), "a block was given to two tasks");
    }
}

/// Works for so long, as long as this vCPU runs.
fn work(us: u64) {
    /// Turns of the loop that last a microsecond or so, here and on any machine of today.
    const TURNS_PER_US: u64 = 250;
    let mut value = us;
    for turn in 0..us * TURNS_PER_US {
        value = black_box(value ^ turn);
    }
}

fn all_slept(vcpus: u32) -> bool {
    // Relaxed: a hint when to end.
    SLEEPERS.load(Relaxed) == vcpus || {
        let now = sleepers(vcpus);
        SLEEPERS.fetch_max(now, Relaxed);
        now == vcpus
    }
}

/// How many vCPUs have slept in a wait for a lock and were kicked awake.
pub(crate) fn sleepers(vcpus: u32) -> u32 {
    let slept = |vcpu: &u32| {
        let counts = glue::wait_counts(*vcpu as usize);
        counts.polls > 0 && counts.kicked > counts.latched
    };
    (0..vcpus).filter(slept).count() as u32
}
