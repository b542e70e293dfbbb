//! The part that makes every vCPU sleep in a wait for a lock, and be kicked awake; or sleep for longer than
//! a poll lasts.
//!
//! Owns that this comes by itself, whatever the machine's speed: one vCPU holds a lock until it sees that it
//! has come for all others. It measures nothing.

use core::hint::spin_loop;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32};
use std::thread;

use evtchn::WaitCounts;
use kspin::SpinNoIrq;
use xen_guest::glue;
use xen_guest::vcpu::MAX_VCPUS;

use crate::team::{self, Place};

/// A vCPU that another event has woken for a moment may find the lock free without a kick. The next time it
/// sleeps again; where kicks wake nobody, there is an end all the same.
const MOST_TIMES: u32 = 50;

/// Does it until each of `vcpus` has been kicked awake, at least twice: whoever holds the lock does not
/// sleep.
pub(crate) fn run(vcpus: u32) {
    for time in 0..MOST_TIMES {
        if vcpus < 2 || time >= 2 && sleepers(vcpus) == vcpus {
            break;
        }
        hold_until(vcpus, time % vcpus, |counts| counts.polls);
    }
}

/// Lets vCPU 0 hold a lock until a poll of each other one has reached its deadline of a second. Each then
/// looks for itself and sleeps again: a timeout, and no kick is lost.
pub(crate) fn outlast_polls(vcpus: u32) {
    hold_until(vcpus, 0, |counts| counts.timed_out);
}

/// How many vCPUs have slept in a wait for a lock and were kicked awake.
pub(crate) fn sleepers(vcpus: u32) -> u32 {
    let slept = |vcpu: &u32| {
        let counts = glue::wait_counts(*vcpu as usize);
        counts.kicked > counts.latched
    };
    (0..vcpus).filter(slept).count() as u32
}

/// Lets vCPU `holder` hold a lock for which all others wait, until `count` has grown for each of them.
fn hold_until(vcpus: u32, holder: u32, count: fn(WaitCounts) -> u64) {
    static LOCK: SpinNoIrq<()> = SpinNoIrq::new(());
    static READY: AtomicU32 = AtomicU32::new(0);
    static HELD: AtomicBool = AtomicBool::new(false);
    // Relaxed: nobody reads them yet, and starting a task orders it for that task.
    READY.store(0, Relaxed);
    HELD.store(false, Relaxed);
    team::run(vcpus, Place::OwnVcpu, move |vcpu| {
        // Relaxed: a count. The holder gives its vCPU away to nobody: all others must be there before.
        READY.fetch_add(1, Relaxed);
        wait_until(|| READY.load(Relaxed) == vcpus);
        if vcpu != holder {
            // Acquire, with the release below: who sees it finds the lock taken.
            wait_until(|| HELD.load(Acquire));
            drop(LOCK.lock());
            return;
        }
        let now = |vcpu: usize| count(glue::wait_counts(vcpu));
        let held = LOCK.lock();
        let before: [u64; MAX_VCPUS] = core::array::from_fn(now);
        HELD.store(true, Release);
        let is_to_come = |vcpu| vcpu != holder as usize && now(vcpu) == before[vcpu];
        while (0..vcpus as usize).any(is_to_come) {
            spin_loop();
        }
        drop(held);
    });
}

/// Waits as a task that others may run beside.
fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::yield_now();
    }
}
