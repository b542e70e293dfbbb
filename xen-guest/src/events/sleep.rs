//! Sleep until a time has come.
//!
//! This file owns the port on which each vCPU sleeps, to which nobody sends.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use evtchn::{Errno, Port};

use super::xen::Xen;
use crate::vcpu::{self, MAX_VCPUS, PerVcpu, clock};
use crate::xen::hypercall;

/// The port each vCPU sleeps on, or 0.
static PORTS: PerVcpu<AtomicU32> =
    PerVcpu::new([const { PerVcpu::entry(AtomicU32::new(0)) }; MAX_VCPUS]);

/// Blocks this vCPU until its clock reaches `ns`; serves upcalls meanwhile if they are let in.
pub fn sleep_until(ns: u64) {
    while clock::now() < ns {
        // A port of one's own that nobody sends to: only the deadline ends the poll, or an upcall.
        match port().and_then(|port| evtchn::poll(&Xen, port, ns)) {
            Ok(()) => {}
            // No port: time passes anyway.
            Err(_) => hypercall::sched_yield(),
        }
    }
}

/// The port this vCPU sleeps on, bound at its first sleep.
fn port() -> Result<Port, Errno> {
    let vcpu = vcpu::current();
    // Relaxed: only this vCPU uses it.
    if let Some(port) = Port::new(PORTS.of(vcpu).load(Relaxed)) {
        return Ok(port);
    }
    let port = evtchn::bind_ipi(&Xen, vcpu)?;
    PORTS.of(vcpu).store(port.get(), Relaxed);
    Ok(port)
}

/// Says that Xen has closed the port of `vcpu`, which is this one, or held, or down: it binds
/// another at its next sleep.
pub(crate) fn forget(vcpu: u32) {
    // Relaxed: as above.
    PORTS.of(vcpu).store(0, Relaxed);
}
