//! What each vCPU shares with Xen: its clock and its event flags, and where its time went.
//!
//! This file owns that memory and its registration. It gives no meaning to what Xen writes there,
//! and does not know which vCPU asks.

use core::ptr::NonNull;

use evtchn::Errno;
use xen_sys as sys;

use super::per_vcpu::MAX_VCPUS;
use crate::xen::abi::{self, RegisterVcpuInfo, RunstateInfo, VcpuInfo};
use crate::xen::{frames, hypercall};

/// One vCPU's. Two cache lines, which Xen writes.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct Area {
    /// See [`register_vcpu_info`].
    pub info: VcpuInfo,
    /// See [`register_runstate`].
    pub runstate: RunstateInfo,
}

static AREAS: [Area; MAX_VCPUS] =
    [const { Area { info: VcpuInfo::new(), runstate: RunstateInfo::new() } }; MAX_VCPUS];

impl Area {
    /// That of `vcpu`.
    ///
    /// # Panics
    ///
    /// If `vcpu` is not below [`MAX_VCPUS`].
    #[inline]
    pub fn of(vcpu: u32) -> &'static Area {
        &AREAS[vcpu as usize]
    }

    /// The vCPU's event flags.
    #[inline]
    pub fn flags(&self) -> evtchn::VcpuInfo {
        let info = NonNull::from(&self.info).cast::<sys::vcpu_info>();
        // SAFETY: areas are static, the layouts agree (asserted at the declaration), and the
        // event fields are private atomics that nobody else touches.
        unsafe { evtchn::VcpuInfo::new(info) }
    }
}

/// All that a vCPU registers with Xen before it does anything else: [`register_vcpu_info`] and
/// [`register_runstate`]; and the tick that nobody asked for is stopped ([`stop_periodic_timer`]).
/// For the vCPU this runs on, or one that is down. Once, and again after a restore.
///
/// # Errors
///
/// As the first two.
pub fn register(vcpu: u32) -> Result<(), Errno> {
    register_vcpu_info(vcpu)?;
    register_runstate(vcpu)?;
    stop_periodic_timer(vcpu);
    Ok(())
}

/// Tells Xen to use the area's `vcpu_info`, where the [clock](super::clock) is read, and the event
/// flags. For the vCPU this runs on, or one that is down.
///
/// # Errors
///
/// What Xen says: `EINVAL` for a vCPU that has one registered already.
pub fn register_vcpu_info(vcpu: u32) -> Result<(), Errno> {
    let address = core::ptr::from_ref(&Area::of(vcpu).info) as usize;
    let mut argument = RegisterVcpuInfo {
        frame: frames::frame_of(address),
        offset: (address % abi::PAGE_SIZE) as u32,
        rsvd: 0,
    };
    // SAFETY: the area is static, aligned so that it crosses no page, and all atomics.
    unsafe { hypercall::vcpu_op(abi::vcpuop::REGISTER_VCPU_INFO, vcpu, &mut argument) }.map(drop)
}

/// Lets Xen keep `vcpu`'s runstate up to date in its area: where its time went, and whether it is
/// preempted now. For the vCPU this runs on, or one that is down.
///
/// # Errors
///
/// What Xen says.
pub fn register_runstate(vcpu: u32) -> Result<(), Errno> {
    let mut address = core::ptr::from_ref(&Area::of(vcpu).runstate) as u64;
    // SAFETY: the area is static, of the right layout, and all atomics.
    unsafe { hypercall::vcpu_op(abi::vcpuop::REGISTER_RUNSTATE_MEMORY_AREA, vcpu, &mut address) }
        .map(drop)
}

/// Stops the ticks that Xen sends each PV vCPU 100 times a second unasked. For the vCPU this runs
/// on, or one that is down.
#[doc(alias = "VCPUOP_stop_periodic_timer")]
pub fn stop_periodic_timer(vcpu: u32) {
    // SAFETY: the operation takes no argument. A PVH vCPU has no such timer, and no error matters.
    let _ = unsafe { hypercall::vcpu_op(abi::vcpuop::STOP_PERIODIC_TIMER, vcpu, &mut ()) };
}
