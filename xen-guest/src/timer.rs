//! One timer a vCPU.
//!
//! This file owns `VIRQ_TIMER`: its port, and when it fires. What happens then is up to the upcall
//! handler. Waits with a deadline do not need it: `SCHEDOP_poll` has its own.

use core::sync::atomic::Ordering::Relaxed;

use evtchn::{Abi, Errno, Port, Virq};

use crate::abi::vcpuop;
use crate::hypercall::{self, Xen};
use crate::percpu::{self, PerCpu};
use crate::shared_info::events;

/// Binds the timer of the vCPU this runs on, and lets it interrupt. Once a vCPU.
///
/// # Errors
///
/// As [`evtchn::bind_virq`]; `EEXIST` if it is bound already.
pub fn bind() -> Result<Port, Errno> {
    let area = PerCpu::current();
    let port = evtchn::bind_virq(&Xen, Virq::TIMER, percpu::current_vcpu())?;
    area.timer_port.store(port.get(), Relaxed);
    area.ports.insert(port);
    events().unmask(&Xen, port)?;
    Ok(port)
}

/// Whether `port` is the timer of the vCPU this runs on.
pub fn is_mine(port: Port) -> bool {
    // Relaxed: only this vCPU writes it.
    PerCpu::current().timer_port.load(Relaxed) == port.get()
}

/// Makes the timer fire once when the clock reaches `deadline_ns`; at once if it has. An earlier
/// deadline not yet reached is forgotten.
#[doc(alias = "VCPUOP_set_singleshot_timer")]
pub fn set(deadline_ns: u64) -> Result<(), Errno> {
    /// `vcpu_set_singleshot_timer`: the time, and no flags. Xen public/vcpu.h.
    #[repr(C)]
    struct Singleshot {
        timeout_abs_ns: u64,
        flags: u32,
    }
    let mut argument = Singleshot { timeout_abs_ns: deadline_ns, flags: 0 };
    let vcpu = percpu::current_vcpu();
    // SAFETY: the structure is the operation's own; what fires is an event of ours.
    unsafe { hypercall::vcpu_op(vcpuop::SET_SINGLESHOT_TIMER, vcpu, &mut argument) }.map(drop)
}

/// Stops the ticks that Xen sends each PV vCPU 100 times a second unasked. For the vCPU this runs
/// on, or one that is down.
#[doc(alias = "VCPUOP_stop_periodic_timer")]
pub(crate) fn stop_periodic(vcpu: u32) {
    // SAFETY: the operation takes no argument. A PVH vCPU has no such timer, and no error matters.
    let _ = unsafe { hypercall::vcpu_op(vcpuop::STOP_PERIODIC_TIMER, vcpu, &mut ()) };
}
