//! Marks of a lock in the hypervisor's trace: which wait was for which lock, who was kicked, and
//! when a lock that was waited for is owned.
//!
//! Owns their numbers and layouts, whether they are written, and which lock each vCPU is after. It
//! changes nothing of a wait or a kick. Off, a mark is one relaxed load; on, it is a hypercall.
//!
//! | event | words (32 bits each) | written |
//! |---|---|---|
//! | [`WAIT_BEGIN`] | vCPU, lock, 0 = on its node / 1 = as head | before a poll |
//! | [`WAIT_END`] | vCPU, lock, outcome | after it |
//! | [`KICK`] | vCPU, target vCPU | just before `EVTCHNOP_send` |
//! | [`ACQUIRED_AFTER_BLOCK`] | vCPU, lock, polls, polls ended by a kick | once it owns the lock |
//!
//! `lock` is the low half of the lock's address. `outcome` is 0 = kicked, 1 = condition gone, 2 =
//! timed out, 3 = early. The last one is written once per acquisition that blocked.
//!
//! The first three are written by locks on the kernel [`Marked`]. Which lock they are about, and
//! the last one, is up to whoever takes the lock: [`acquire`] does both.
//!
//! ```no_run
//! use xen_guest::glue::XenPlatform;
//! use xen_guest::markers::{self, Marked};
//!
//! type RawLock = pvlock::RawPvLock<XenPlatform<Marked>, pvlock::Adaptive>;
//!
//! fn lock(raw: &RawLock) {
//!     markers::acquire(raw, || raw.lock());
//! }
//! # static LOCK: RawLock = RawLock::new();
//!
//! markers::enable(true); // once at boot, where somebody traces
//! # lock(&LOCK);
//! ```

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use evtchn::WaitOutcome;
use pvlock::Counter;

use crate::glue::{self, Kernel, XenPlatform};
use crate::vcpu::{self, MAX_VCPUS, PerVcpu};
use crate::xen::hypercall;

/// A vCPU is about to block for a lock.
pub const WAIT_BEGIN: u16 = 0x701;
/// A vCPU came back from blocking for a lock.
pub const WAIT_END: u16 = 0x702;
/// A vCPU kicks another.
pub const KICK: u16 = 0x703;
/// A vCPU that blocked owns the lock, or has owned it.
pub const ACQUIRED_AFTER_BLOCK: u16 = 0x704;

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Turns marks on or off; before the first contended lock.
pub fn enable(on: bool) {
    // Relaxed: set before the other vCPUs start, which orders it for them.
    ENABLED.store(on, Ordering::Relaxed);
}

/// Whether marks are written.
#[inline]
pub fn enabled() -> bool {
    // Relaxed: see `enable`.
    ENABLED.load(Ordering::Relaxed)
}

/// The lock each vCPU is after. A vCPU reads and writes its own entry only.
static CURRENT: PerVcpu<AtomicU32> =
    PerVcpu::new([const { PerVcpu::entry(AtomicU32::new(0)) }; MAX_VCPUS]);

/// Notes that `vcpu`, which runs this, is about to acquire `lock`; returns what was noted before,
/// for a context that interrupts another and must put it back.
#[inline]
pub fn acquiring(vcpu: u32, lock: u32) -> u32 {
    let entry = CURRENT.of(vcpu);
    // Relaxed, and no exchange: only this vCPU uses the entry.
    let before = entry.load(Ordering::Relaxed);
    entry.store(lock, Ordering::Relaxed);
    before
}

/// The lock `vcpu`, which runs this, noted last.
#[inline]
pub fn current_lock(vcpu: u32) -> u32 {
    // Relaxed: only this vCPU uses the entry.
    CURRENT.of(vcpu).load(Ordering::Relaxed)
}

/// How a lock is named in marks.
#[inline]
pub fn lock_id<L>(lock: &L) -> u32 {
    core::ptr::from_ref(lock).addr() as u32
}

/// Calls `take`, which acquires `lock` on the vCPU this runs on, and marks it if it had to block.
/// The mark is written with the lock held, which is held for so much longer.
#[inline]
pub fn acquire<L, R>(lock: &L, take: impl FnOnce() -> R) -> R {
    if enabled() { acquire_marked(lock_id(lock), take) } else { take() }
}

#[cold]
fn acquire_marked<R>(lock: u32, take: impl FnOnce() -> R) -> R {
    let vcpu = vcpu::current();
    // A latched kick ends a wait before it blocks: no wait in the sense of the marks.
    let waits = || {
        let counts = glue::wait_counts(vcpu as usize);
        (counts.polls, counts.kicked.saturating_sub(counts.latched))
    };
    let interrupted = acquiring(vcpu, lock);
    let before = waits();
    let taken = take();
    let after = waits();
    acquiring(vcpu, interrupted);
    let (polls, kicked) = (after.0 - before.0, after.1 - before.1);
    if polls > 0 {
        mark(ACQUIRED_AFTER_BLOCK, &[vcpu, lock, polls as u32, kicked as u32]);
    }
    taken
}

/// The kernel as this crate makes it, whose locks leave marks.
#[derive(Debug)]
pub struct Marked;

// SAFETY: it answers nothing otherwise than this crate does, and takes no lock when it is told.
unsafe impl Kernel for Marked {
    #[inline]
    fn around_wait(vcpu: u32, wait: impl FnOnce() -> WaitOutcome) -> WaitOutcome {
        if !enabled() {
            return wait();
        }
        let lock = mark_wait_begin(vcpu);
        let outcome = wait();
        mark(WAIT_END, &[vcpu, lock, outcome_code(outcome)]);
        outcome
    }

    #[inline]
    fn before_kick(target: u32) {
        if enabled() {
            mark(KICK, &[vcpu::current(), target]);
        }
    }
}

/// Marks the begin of a wait; returns the lock's name for the end of it.
#[cold]
fn mark_wait_begin(vcpu: u32) -> u32 {
    /// How often each vCPU has waited as head, at its last mark.
    static AS_HEAD: PerVcpu<AtomicU64> =
        PerVcpu::new([const { PerVcpu::entry(AtomicU64::new(0)) }; MAX_VCPUS]);
    // The counters are those of the vCPU, whatever the kernel.
    let as_head = pvlock::counters::<XenPlatform>(vcpu as usize)[Counter::WaitHead as usize];
    // The lock counts a wait before it waits. Relaxed: only this vCPU uses the entry.
    let head = AS_HEAD.of(vcpu).swap(as_head, Ordering::Relaxed) != as_head;
    let lock = current_lock(vcpu);
    mark(WAIT_BEGIN, &[vcpu, lock, u32::from(head)]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupting_context_can_put_the_lock_back() {
        acquiring(127, 1);
        let before = acquiring(127, 2);
        assert_eq!((before, current_lock(127)), (1, 2));
        acquiring(127, before);
        assert_eq!(current_lock(127), 1);
    }

    #[test]
    fn event_numbers_fit_the_hypercall() {
        // HVMOP_xentrace refuses numbers from 0x1000 on.
        for event in [WAIT_BEGIN, WAIT_END, KICK, ACQUIRED_AFTER_BLOCK] {
            assert!(event < 0x1000);
        }
    }
}
