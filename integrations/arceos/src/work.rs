//! What a task does: count under a lock, allocate, sleep, again and again.
//!
//! Owns the lock under test and the loop that stands for work. It prints nothing.

use alloc::vec;
use alloc::vec::Vec;
use core::hint::black_box;
use core::time::Duration;

use kspin::SpinNoIrq;
use std::thread;
use std::time::Instant;
use xen_guest::vcpu;

use crate::plan::Plan;

/// What the lock protects: read, held on to for a while, written back one higher.
pub(crate) static COUNTER: SpinNoIrq<u64> = SpinNoIrq::new(0);

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
pub(crate) fn run(task: u32, plan: Plan) -> Done {
    let mut done = Done::default();
    let mut kept: Vec<Vec<u32>> = Vec::new();
    while done.taken < plan.rounds {
        done.ran_on.insert(vcpu::current());
        count(plan, &mut done);
        allocate(task, done.taken, &mut kept);
        work(plan.outside);
        if plan.nap > 0 && done.taken % plan.nap == 0 {
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
    work(plan.critical);
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

/// Works for so many turns, as long as this vCPU runs. No PAUSE: it may exit to the hypervisor.
fn work(turns: u64) {
    let mut value = turns;
    for turn in 0..turns {
        value = black_box(value ^ turn);
    }
}
