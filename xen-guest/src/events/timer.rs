//! One timer a vCPU.
//!
//! This file owns `VIRQ_TIMER`: its port, and when it fires. What happens then is up to the upcall
//! handler. Waits with a deadline do not need it: `SCHEDOP_poll` has its own.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

use evtchn::{Abi, Errno, Port, Priority, Virq};

use super::choice::{self, events};
use super::xen::Xen;
use crate::vcpu::{self, MAX_VCPUS, PerVcpu};
use crate::xen::abi::vcpuop;
use crate::xen::hypercall;

/// One vCPU's.
struct Timer {
    /// Its port, or 0.
    port: AtomicU32,
    /// When it was last told to fire; 0 = never.
    deadline: AtomicU64,
}

static TIMERS: PerVcpu<Timer> = PerVcpu::new(
    [const { PerVcpu::entry(Timer { port: AtomicU32::new(0), deadline: AtomicU64::new(0) }) };
        MAX_VCPUS],
);

/// Binds the timer of the vCPU this runs on, and lets it interrupt. Once a vCPU.
///
/// # Errors
///
/// As [`evtchn::bind_virq`]; `EEXIST` if it is bound already.
pub fn bind() -> Result<Port, Errno> {
    bind_for(vcpu::current())
}

/// As [`bind`], for a vCPU that is down or held.
///
/// # Errors
///
/// As [`bind`].
pub fn bind_for(vcpu: u32) -> Result<Port, Errno> {
    let port = evtchn::bind_virq(&Xen, Virq::TIMER, vcpu)?;
    TIMERS.of(vcpu).port.store(port.get(), Relaxed);
    choice::handle_on(vcpu, port)?;
    // Whatever else is due can wait until the clock's handler is done.
    choice::prefer(port, Priority::MAX)?;
    events().unmask(&Xen, port)?;
    Ok(port)
}

/// Binds the timer of `vcpu` anew, if it was bound: after a restore.
pub(crate) fn bind_again(vcpu: u32) -> Result<(), Errno> {
    if TIMERS.of(vcpu).port.load(Relaxed) == 0 {
        return Ok(());
    }
    bind_for(vcpu).map(drop)
}

/// Sets the timer of the vCPU this runs on to when it was last set to, if it was: Xen forgets it
/// when the domain is saved.
pub(crate) fn set_again() {
    let deadline = TIMERS.of(vcpu::current()).deadline.load(Relaxed);
    if deadline != 0 {
        // A deadline that has passed fires at once. It cannot fail: it was accepted before.
        let _ = set(deadline);
    }
}

/// Closes the timer's port of `vcpu`, which is down.
///
/// # Errors
///
/// As [`evtchn::close`].
pub fn unbind(vcpu: u32) -> Result<(), Errno> {
    match Port::new(TIMERS.of(vcpu).port.swap(0, Relaxed)) {
        Some(port) => {
            choice::handle_no_more(vcpu, port);
            evtchn::close(&Xen, port)
        }
        None => Ok(()),
    }
}

/// The port of the timer of the vCPU this runs on, once it is bound.
pub fn port() -> Option<Port> {
    // Relaxed: only this vCPU writes it.
    Port::new(TIMERS.of(vcpu::current()).port.load(Relaxed))
}

/// Whether `at` is the timer of the vCPU this runs on.
pub fn is_mine(at: Port) -> bool {
    port() == Some(at)
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
    let vcpu = vcpu::current();
    // Relaxed: only this vCPU uses it.
    TIMERS.of(vcpu).deadline.store(deadline_ns, Relaxed);
    // SAFETY: the structure is the operation's own; what fires is an event of ours.
    unsafe { hypercall::vcpu_op(vcpuop::SET_SINGLESHOT_TIMER, vcpu, &mut argument) }.map(drop)
}
