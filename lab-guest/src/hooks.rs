//! What the experiment is told by the lock's joint to the kernel: waits, kicks and polls that expired.
//!
//! Owns the writing of the markers that belong to a wait and a kick ([`markers`] has their numbers), and passes
//! an expired poll on to the [watchdog](crate::watchdog). It changes nothing of a wait.

use core::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use evtchn::WaitOutcome;
use pvlock::Counter;
use xen_guest::glue::{Hooks, XenPlatform};
use xen_guest::hypercall;
use xen_guest::percpu::{MAX_VCPUS, current_vcpu};

use crate::{markers, watchdog};

/// The platform of the locks under test.
pub type TestedPlatform = XenPlatform<Told>;

/// The experiment, told.
#[derive(Debug)]
pub struct Told;

impl Hooks for Told {
    #[inline]
    fn around_wait(vcpu: u32, wait: impl FnOnce() -> WaitOutcome) -> WaitOutcome {
        if !markers::enabled() {
            return wait();
        }
        let lock = mark_wait_begin(vcpu);
        let outcome = wait();
        mark(markers::WAIT_END, &[vcpu, lock, outcome_code(outcome)]);
        outcome
    }

    #[inline]
    fn before_kick(target: u32) {
        if markers::enabled() {
            mark(markers::KICK, &[current_vcpu(), target]);
        }
    }

    fn poll_expired(_: u32) {
        watchdog::poll_expired();
    }
}

/// Marks the begin of a wait; returns the lock's name for the end of it.
#[cold]
fn mark_wait_begin(vcpu: u32) -> u32 {
    /// How often each vCPU has waited as head, at its last mark.
    static AS_HEAD: [CachePadded<AtomicU64>; MAX_VCPUS] =
        [const { CachePadded::new(AtomicU64::new(0)) }; MAX_VCPUS];
    let at = vcpu as usize;
    let as_head = pvlock::counters::<TestedPlatform>(at)[Counter::WaitHead as usize];
    // The lock counts a wait before it waits. Relaxed: only this vCPU uses the entry.
    let head = AS_HEAD[at].swap(as_head, Ordering::Relaxed) != as_head;
    let lock = markers::current_lock(at);
    mark(markers::WAIT_BEGIN, &[vcpu, lock, u32::from(head)]);
    lock
}

#[cold]
fn mark(event: u16, words: &[u32]) {
    // A mark that is missing shows in the trace; there is nothing to do about it here.
    let _ = hypercall::xentrace(event, words);
}

fn outcome_code(outcome: WaitOutcome) -> u32 {
    match outcome {
        WaitOutcome::Kicked => 0,
        WaitOutcome::ConditionGone => 1,
        WaitOutcome::TimedOut => 2,
        WaitOutcome::Early | WaitOutcome::NoPort => 3,
    }
}
