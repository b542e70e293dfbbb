//! Marks of our own in the hypervisor's trace, so that kicks and waits can be matched exactly.
//!
//! Owns the event numbers, whether markers are on, and which lock each vCPU is after. It writes
//! nothing itself: whoever has something to mark calls
//! [`Machine::trace_marker`](xen_guest::kernel::machine::Machine::trace_marker). Each marker costs
//! a hypercall; with markers off, one relaxed load.
//!
//! | event | words (32 bits each) | written |
//! |---|---|---|
//! | [`WAIT_BEGIN`] | vCPU, lock, 0 = on its node / 1 = as head | before a poll |
//! | [`WAIT_END`] | vCPU, lock, outcome | after it |
//! | [`KICK`] | vCPU, target vCPU | just before `EVTCHNOP_send` |
//! | [`ACQUIRED_AFTER_BLOCK`] | vCPU, lock, waits, waits ended by a kick | after the release |
//!
//! `lock` is the low half of the lock's address. `outcome` is 0 = kicked, 1 = condition gone, 2 =
//! timed out, 3 = early. The last one is written once per acquisition that blocked.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crossbeam_utils::CachePadded;

/// A vCPU is about to block for a lock.
pub const WAIT_BEGIN: u16 = 0x701;
/// A vCPU came back from blocking for a lock.
pub const WAIT_END: u16 = 0x702;
/// A vCPU kicks another.
pub const KICK: u16 = 0x703;
/// A vCPU that blocked got the lock. Written after the release, so that the marker's own hypercall
/// does not lengthen the critical section.
pub const ACQUIRED_AFTER_BLOCK: u16 = 0x704;

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Turns markers on or off; before the first contended lock.
pub fn enable(on: bool) {
    // Relaxed: set before the other vCPUs start, which orders it for them.
    ENABLED.store(on, Ordering::Relaxed);
}

/// Whether markers are on.
#[inline]
pub fn enabled() -> bool {
    // Relaxed: see `enable`.
    ENABLED.load(Ordering::Relaxed)
}

/// The most vCPUs whose lock is remembered; those beyond have lock 0 in their markers.
const VCPUS: usize = experiment::MAX_VCPUS as usize;

/// The lock each vCPU is after. A vCPU reads and writes its own entry only.
static CURRENT: [CachePadded<AtomicU32>; VCPUS] =
    [const { CachePadded::new(AtomicU32::new(0)) }; VCPUS];

/// Notes that `vcpu`, which runs this, is about to acquire `lock`; returns what was noted before,
/// for a context that interrupts another and must put it back.
#[inline]
pub fn acquiring(vcpu: usize, lock: u32) -> u32 {
    let Some(entry) = CURRENT.get(vcpu) else { return 0 };
    // Relaxed, and no exchange: only this vCPU uses the entry.
    let before = entry.load(Ordering::Relaxed);
    entry.store(lock, Ordering::Relaxed);
    before
}

/// The lock `vcpu`, which runs this, noted last.
#[inline]
pub fn current_lock(vcpu: usize) -> u32 {
    // Relaxed: only this vCPU uses the entry.
    CURRENT.get(vcpu).map_or(0, |entry| entry.load(Ordering::Relaxed))
}

/// How a lock is named in markers.
#[inline]
pub fn lock_id<L>(lock: &L) -> u32 {
    core::ptr::from_ref(lock).addr() as u32
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
        assert_eq!((acquiring(128, 9), current_lock(128)), (0, 0));
    }

    #[test]
    fn event_numbers_fit_the_hypercall() {
        // HVMOP_xentrace refuses numbers from 0x1000 on.
        for event in [WAIT_BEGIN, WAIT_END, KICK, ACQUIRED_AFTER_BLOCK] {
            assert!(event < 0x1000);
        }
    }
}
