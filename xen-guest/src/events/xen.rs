//! The hypervisor as `evtchn` wants it.
//!
//! This file joins the hypercalls and the clock. It keeps no state.

use evtchn::{Errno, EventChannelOp, Hypercalls, SchedOp};
use xen_sys as sys;

use crate::vcpu::clock;
use crate::xen::hypercall::call;

/// The hypervisor under this kernel, for everything in `evtchn`.
///
/// Asks for the hypercall page ([`hypercall`](crate::xen::hypercall)), and where the time is needed
/// (a [`Kicker`](evtchn::Kicker)'s deadline) for the vCPU's [clock].
#[derive(Clone, Copy, Debug)]
pub struct Xen;

impl Hypercalls for Xen {
    fn event_channel_op(&self, mut op: EventChannelOp<'_>) -> Result<(), Errno> {
        let (command, argument) = op.raw();
        let arguments = [command as usize, argument as usize, 0, 0];
        // SAFETY: `raw` pairs the command with its own structure, which outlives the call.
        unsafe { call(sys::__HYPERVISOR_event_channel_op, arguments) }.map(drop)
    }

    fn sched_op(&self, op: SchedOp) -> Result<(), Errno> {
        op.with_raw(|command, argument| {
            let arguments = [command as usize, argument as usize, 0, 0];
            // SAFETY: as above. What runs meanwhile on this vCPU are our own upcall handlers.
            unsafe { call(sys::__HYPERVISOR_sched_op, arguments) }.map(drop)
        })
    }

    #[inline]
    fn system_time_ns(&self) -> u64 {
        clock::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_xen_fills_the_page_every_call_is_enosys() {
        assert_eq!(evtchn::bind_ipi(&Xen, 0), Err(Errno::ENOSYS));
        assert_eq!(Xen.sched_op(SchedOp::Yield), Err(Errno::ENOSYS));
    }
}
