//! The kernel that the locks under test are on: that of `xen-guest`, with an experiment that is
//! told of waits, kicks and polls that expired.
//!
//! Owns the writing of the markers that belong to a wait and a kick ([`markers`] has their
//! numbers), and whom an expired poll is passed on to. It changes nothing of a wait.

use core::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use evtchn::WaitOutcome;
use pvlock::Counter;
use spin::Once;
use xen_guest::glue::{Kernel, XenPlatform};
use xen_guest::vcpu::{self, MAX_VCPUS};
use xen_guest::xen::hypercall;

use super::markers;

/// The platform of the locks under test.
pub type TestedPlatform = XenPlatform<Told>;

/// The kernel as `xen-guest` makes it, with an experiment that is told.
#[derive(Debug)]
pub struct Told;

// SAFETY: it answers nothing otherwise than `xen-guest` does, and takes no lock when it is told.
unsafe impl Kernel for Told {
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
            mark(markers::KICK, &[vcpu::current(), target]);
        }
    }

    #[cold]
    fn poll_expired(_: u32) {
        look();
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

static ON_EXPIRY: Once<fn()> = Once::new();

/// Says what is to happen when a waiter's bounded poll expires: a kick may have been lost. The
/// first call counts.
pub fn on_poll_expiry(look: fn()) {
    ON_EXPIRY.call_once(|| look);
}

/// Does what is to happen then, if anything.
pub fn look() {
    if let Some(look) = ON_EXPIRY.get() {
        look();
    }
}
