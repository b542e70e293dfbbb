//! The two hypercalls event channels need, as a trait.
//!
//! This file owns the seam between event channels and whoever carries them out: real Xen (in the
//! guest) or [`FakeXen`](crate::fake::FakeXen) (in host tests). No policy lives here.

use xen_sys as sys;

/// An error number a hypercall returned, positive (`22` is `EINVAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// `event_channel_op` with its argument structure; output fields are filled in by the call.
#[derive(Debug)]
pub enum EventChannelOp<'a> {
    /// See `EVTCHNOP_bind_ipi` in Xen's `public/event_channel.h`.
    BindIpi(&'a mut sys::evtchn_bind_ipi),
    // ... one variant an operation, each with `#[doc(alias)]`
}

/// `sched_op` with its argument.
#[derive(Debug)]
pub enum SchedOp {
    /// `SCHEDOP_poll` of one port; always one, see spec: with several, any event ends the poll.
    Poll {
        /// The port.
        port: u32,
        /// Absolute system time in nanoseconds; 0 = none.
        deadline_ns: u64,
    },
    /// `SCHEDOP_yield`.
    Yield,
    /// `SCHEDOP_block`.
    Block,
}

/// Whoever carries out the two hypercalls.
pub trait Hypercalls {
    /// Carries out one `event_channel_op`.
    fn event_channel_op(&self, op: EventChannelOp<'_>) -> Result<(), Errno>;
    /// Carries out one `sched_op`.
    fn sched_op(&self, op: SchedOp) -> Result<(), Errno>;
}
