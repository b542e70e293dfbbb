//! The two hypercalls event channels need, as a trait.
//!
//! This file owns the seam between event channels and whoever carries them out: real Xen (in a
//! guest) or `FakeXen` (feature `fake`) (in host tests). No policy lives here.

use core::ffi::c_void;
use core::fmt;

use xen_sys as sys;

use crate::{Errno, Port};

macro_rules! event_channel_ops {
    ($($(#[$doc:meta])* $variant:ident($argument:ident), $cmd:ident;)*) => {
        /// `event_channel_op` with its argument structure; output fields are filled in by the call.
        ///
        /// Operations are typed so that a fake Xen can decode them without a pointer, and so that
        /// a command can never meet another command's structure.
        pub enum EventChannelOp<'a> {
            $($(#[$doc])* $variant(&'a mut sys::$argument),)*
        }

        impl EventChannelOp<'_> {
            /// The command number and the argument, as the hypercall takes them in its first and
            /// second parameter. The pointer lives as long as the borrow of `self`.
            ///
            /// See [`Hypercalls`] for a real implementation.
            pub fn raw(&mut self) -> (u32, *mut c_void) {
                match self {
                    $(Self::$variant(argument) => {
                        (sys::$cmd, core::ptr::from_mut::<sys::$argument>(argument).cast())
                    })*
                }
            }

            /// The name of the operation in Xen public/event_channel.h.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => stringify!($cmd),)*
                }
            }
        }
    };
}

event_channel_ops! {
    /// Connects a new local port to a remote domain's unbound one.
    #[doc(alias = "EVTCHNOP_bind_interdomain")]
    BindInterdomain(evtchn_bind_interdomain), EVTCHNOP_bind_interdomain;
    /// Connects a new port to a virtual interrupt of one vCPU.
    #[doc(alias = "EVTCHNOP_bind_virq")]
    BindVirq(evtchn_bind_virq), EVTCHNOP_bind_virq;
    /// Closes a port.
    #[doc(alias = "EVTCHNOP_close")]
    Close(evtchn_close), EVTCHNOP_close;
    /// Makes the other end of a port pending.
    #[doc(alias = "EVTCHNOP_send")]
    Send(evtchn_send), EVTCHNOP_send;
    /// Asks what a port is connected to.
    #[doc(alias = "EVTCHNOP_status")]
    Status(evtchn_status), EVTCHNOP_status;
    /// Makes a new port that a given domain may connect to.
    #[doc(alias = "EVTCHNOP_alloc_unbound")]
    AllocUnbound(evtchn_alloc_unbound), EVTCHNOP_alloc_unbound;
    /// Makes a new port whose other end is itself, on one vCPU.
    #[doc(alias = "EVTCHNOP_bind_ipi")]
    BindIpi(evtchn_bind_ipi), EVTCHNOP_bind_ipi;
    /// Moves a port's upcalls to another vCPU.
    #[doc(alias = "EVTCHNOP_bind_vcpu")]
    BindVcpu(evtchn_bind_vcpu), EVTCHNOP_bind_vcpu;
    /// Unmasks a port and delivers its event if it is pending.
    #[doc(alias = "EVTCHNOP_unmask")]
    Unmask(evtchn_unmask), EVTCHNOP_unmask;
    /// Closes all ports and goes back to the 2-level ABI.
    #[doc(alias = "EVTCHNOP_reset")]
    Reset(evtchn_reset), EVTCHNOP_reset;
    /// Gives a vCPU its FIFO control block.
    #[doc(alias = "EVTCHNOP_init_control")]
    InitControl(evtchn_init_control), EVTCHNOP_init_control;
    /// Adds a page to the FIFO event array.
    #[doc(alias = "EVTCHNOP_expand_array")]
    ExpandArray(evtchn_expand_array), EVTCHNOP_expand_array;
    /// Sets a port's FIFO priority.
    #[doc(alias = "EVTCHNOP_set_priority")]
    SetPriority(evtchn_set_priority), EVTCHNOP_set_priority;
}

// By hand: xen-sys cannot derive Debug for a structure with a union in it (evtchn_status).
impl fmt::Debug for EventChannelOp<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `sched_op` with its argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchedOp {
    /// Blocks until a port is pending. Always one port: with several, Xen ends the poll at *any*
    /// newly pending port of the domain.
    #[doc(alias = "SCHEDOP_poll")]
    Poll {
        /// The port.
        port: Port,
        /// Absolute Xen system time in nanoseconds; 0 = no deadline.
        deadline_ns: u64,
    },
    /// Gives the pCPU to another vCPU, if one wants it.
    #[doc(alias = "SCHEDOP_yield")]
    Yield,
    /// Unmasks upcalls and blocks until one is due.
    #[doc(alias = "SCHEDOP_block")]
    Block,
}

impl SchedOp {
    /// Calls `hypercall` with the command number and the argument, as `sched_op` takes them in its
    /// first and second parameter. The pointers are valid during the call only.
    ///
    /// See [`Hypercalls`] for a real implementation.
    pub fn with_raw<R>(self, hypercall: impl FnOnce(u32, *mut c_void) -> R) -> R {
        match self {
            Self::Poll { port, deadline_ns } => {
                let mut port: sys::evtchn_port_t = port.get();
                #[cfg(target_arch = "x86_64")]
                let ports = &raw mut port;
                // On ARM the pointer has 64 bits whatever the guest's have.
                #[cfg(not(target_arch = "x86_64"))]
                let ports = sys::__guest_handle_64_evtchn_port_t { p: &raw mut port };
                let mut poll = sys::sched_poll { ports, nr_ports: 1, timeout: deadline_ns };
                hypercall(sys::SCHEDOP_poll, (&raw mut poll).cast())
            }
            Self::Yield => hypercall(sys::SCHEDOP_yield, core::ptr::null_mut()),
            Self::Block => hypercall(sys::SCHEDOP_block, core::ptr::null_mut()),
        }
    }
}

/// Whoever carries out the two hypercalls, on behalf of the vCPU that calls.
///
/// A real implementation is a few lines around one `unsafe` function of the kernel's own:
///
/// ```
/// use core::ffi::c_void;
/// use evtchn::{Errno, EventChannelOp, Hypercalls, SchedOp};
///
/// struct Xen;
///
/// # mod kernel {
/// #     pub unsafe fn hypercall2(_: u32, _: u32, _: *mut core::ffi::c_void) -> i64 { -38 }
/// #     pub fn pv_clock() -> u64 { 1 }
/// # }
/// impl Hypercalls for Xen {
///     fn event_channel_op(&self, mut op: EventChannelOp<'_>) -> Result<(), Errno> {
///         let (cmd, argument) = op.raw();
///         // SAFETY: `raw` pairs the command with its own structure, valid during the call.
///         Errno::check(unsafe {
///             kernel::hypercall2(xen_sys::__HYPERVISOR_event_channel_op, cmd, argument)
///         })
///     }
///     fn sched_op(&self, op: SchedOp) -> Result<(), Errno> {
///         op.with_raw(|cmd, argument| {
///             // SAFETY: as above.
///             Errno::check(unsafe {
///                 kernel::hypercall2(xen_sys::__HYPERVISOR_sched_op, cmd, argument)
///             })
///         })
///     }
///     fn system_time_ns(&self) -> u64 {
///         kernel::pv_clock()
///     }
/// }
/// assert_eq!(evtchn::bind_ipi(&Xen, 0), Err(Errno::ENOSYS));
/// ```
pub trait Hypercalls {
    /// Carries out one `event_channel_op`.
    ///
    /// # Errors
    ///
    /// What Xen answered; every function of this crate names the errors its operation can meet.
    fn event_channel_op(&self, op: EventChannelOp<'_>) -> Result<(), Errno>;

    /// Carries out one `sched_op`.
    ///
    /// # Errors
    ///
    /// What Xen answered.
    fn sched_op(&self, op: SchedOp) -> Result<(), Errno>;

    /// Xen's system time in nanoseconds, the clock of [`SchedOp::Poll`]'s deadline: what the guest
    /// computes from `vcpu_info.time` and the TSC. Never 0.
    fn system_time_ns(&self) -> u64;
}

// The layouts Xen reads and writes (Xen public/event_channel.h, public/sched.h). xen-sys checks
// its own in its tests only; a wrong one would corrupt memory here, so they fail the build.
const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<sys::evtchn_alloc_unbound>() == 8);
    assert!(offset_of!(sys::evtchn_alloc_unbound, port) == 4);
    assert!(size_of::<sys::evtchn_bind_interdomain>() == 12);
    assert!(offset_of!(sys::evtchn_bind_interdomain, local_port) == 8);
    assert!(size_of::<sys::evtchn_bind_virq>() == 12);
    assert!(size_of::<sys::evtchn_bind_ipi>() == 8);
    assert!(size_of::<sys::evtchn_status>() == 24);
    assert!(offset_of!(sys::evtchn_status, u) == 16);
    assert!(size_of::<sys::evtchn_bind_vcpu>() == 8);
    assert!(size_of::<sys::evtchn_init_control>() == 24);
    assert!(offset_of!(sys::evtchn_init_control, link_bits) == 16);
    assert!(size_of::<sys::evtchn_expand_array>() == 8);
    assert!(size_of::<sys::evtchn_set_priority>() == 8);
    assert!(size_of::<sys::sched_poll>() == 24);
    assert!(offset_of!(sys::sched_poll, timeout) == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_pairs_each_command_with_its_own_structure() {
        let mut argument = sys::evtchn_send { port: 7 };
        let expected: *mut c_void = (&raw mut argument).cast();
        let mut op = EventChannelOp::Send(&mut argument);
        assert_eq!(op.raw(), (4, expected));
        assert_eq!(op.name(), "EVTCHNOP_send");
    }

    #[test]
    fn poll_passes_one_port_and_its_deadline() {
        let op = SchedOp::Poll { port: Port::new(9).unwrap(), deadline_ns: 123 };
        op.with_raw(|cmd, argument| {
            // SAFETY: `with_raw` of a poll hands out a valid sched_poll.
            let poll = unsafe { *argument.cast::<sys::sched_poll>() };
            #[cfg(target_arch = "x86_64")]
            let ports = poll.ports;
            #[cfg(not(target_arch = "x86_64"))]
            // SAFETY: a pointer is what `with_raw` has put in.
            let ports = unsafe { poll.ports.p };
            // SAFETY: and its port handle points to `nr_ports` = 1 ports.
            let port = unsafe { *ports };
            assert_eq!((cmd, poll.nr_ports, poll.timeout, port), (3, 1, 123, 9));
        });
        SchedOp::Yield.with_raw(|cmd, argument| assert!(cmd == 0 && argument.is_null()));
        SchedOp::Block.with_raw(|cmd, argument| assert!(cmd == 1 && argument.is_null()));
    }
}
