//! The marks a guest writes into the trace with `HVMOP_xentrace`.
//!
//! Owns their numbers and layouts as this crate reads them. The guest repeats the numbers; a test
//! of the workspace asserts that both agree. Every word is 32 bits, little endian; `lock` is the
//! low half of the lock's address. See `docs/markers.md`.

/// The bits every guest record's event has beside its 12-bit number (Xen public/trace.h).
#[doc(alias = "TRC_GUEST")]
pub const GUEST: u32 = 0x0800_f000;

/// A vCPU is about to poll its kicker port: `vcpu, lock, word`. `word` is 0 for a queue node's
/// state, 1 for the lock word seen by the head of the queue.
pub const WAIT_BEGIN: u32 = 0x701;

/// The wait is over: `vcpu, lock, outcome`. See [`outcome`].
pub const WAIT_END: u32 = 0x702;

/// The very next event channel operation of this vCPU is a kick: `vcpu, target`.
pub const KICK: u32 = 0x703;

/// A vCPU owns a lock it had to wait for: `vcpu, lock, waits, kicked_waits`. Written once for each
/// acquisition that waited at least once.
pub const ACQUIRED_AFTER_BLOCK: u32 = 0x704;

/// The third word of [`WAIT_END`].
pub mod outcome {
    /// The kicker port was pending: somebody kicked.
    pub const KICKED: u32 = 0;
    /// The condition had gone before the poll.
    pub const CONDITION_GONE: u32 = 1;
    /// The deadline passed.
    pub const TIMED_OUT: u32 = 2;
    /// The poll ended for another reason.
    pub const EARLY: u32 = 3;
}
