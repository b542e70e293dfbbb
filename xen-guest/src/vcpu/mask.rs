//! The switch that holds event upcalls back: the vCPU's mask on PV, the interrupt flag on PVH.
//!
//! This file owns the switch. What comes when they are let go is not known here.
//!
//! Alone: a PVH kernel needs nothing of it, since its own way to turn interrupts off is the same
//! flag.

use x86_64::instructions::interrupts;

use super::area::Area;
use super::identity;
use crate::xen::frames::{DomainType, domain_type};
use crate::xen::hypercall;

#[inline]
fn is_pvh() -> bool {
    domain_type() == DomainType::Pvh
}

/// The flags of the vCPU this runs on.
fn flags() -> evtchn::VcpuInfo {
    Area::of(identity::current()).flags()
}

/// Lets events interrupt this vCPU.
pub fn enable() {
    if is_pvh() {
        interrupts::enable();
    } else if flags().unmask_upcalls() {
        // One came meanwhile. Xen delivers it on the way out of any hypercall.
        hypercall::sched_yield();
    }
}

/// Holds events back on this vCPU, and says whether they could interrupt it before.
pub fn disable() -> bool {
    if is_pvh() {
        let before = interrupts::are_enabled();
        interrupts::disable();
        before
    } else {
        !flags().mask_upcalls()
    }
}

/// Whether events can interrupt this vCPU.
pub fn are_enabled() -> bool {
    if is_pvh() { interrupts::are_enabled() } else { !flags().upcalls_masked() }
}

/// Runs `section` with events held back.
///
/// ```no_run
/// // A lock that an upcall handler takes too is taken like this.
/// xen_guest::vcpu::mask::without(|| { /* lock, work, unlock */ });
/// ```
pub fn without<R>(section: impl FnOnce() -> R) -> R {
    let before = disable();
    let result = section();
    if before {
        enable();
    }
    result
}
