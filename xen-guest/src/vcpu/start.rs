//! How many vCPUs there are, and how one that is down comes up.
//!
//! This file owns the hypercalls of it. It knows no stack and no entry point of its own: whoever
//! starts a vCPU says where.
//!
//! # Alone
//!
//! A PVH kernel starts another vCPU with [`start_pvh`]: its own function, its own stack, the page
//! tables of the vCPU that asks. A PV kernel fills a `vcpu_guest_context` with its own trap table
//! and stacks, and calls [`initialise_pv`] and [`up`].
//!
//! ```no_run
//! use xen_guest::vcpu::{self, start};
//!
//! extern "C" fn entry(number: u32) -> ! {
//!     // The kernel's own first steps (descriptor tables, per-CPU area), then ours:
//!     vcpu::area::register(number).expect("a vCPU is registered once");
//!     loop {
//!         core::hint::spin_loop();
//!     }
//! }
//!
//! fn cpu_boot(number: u32, stack_top: usize) -> Result<(), evtchn::Errno> {
//!     // SAFETY: the stack is that vCPU's alone, and `entry` expects nothing but it.
//!     unsafe { start::start_pvh(number, entry, stack_top) }
//! }
//! ```

use evtchn::Errno;
use x86_64::registers::control::{Cr0, Cr3, Cr4};
use x86_64::registers::model_specific::Efer;
use xen_sys as sys;

use super::per_vcpu::MAX_VCPUS;
use crate::xen::abi::{self, VcpuHvmContext};
use crate::xen::hypercall;

/// How many vCPUs the domain has, up or down: the numbers up to the first that Xen does not know.
/// `None`: more than [`MAX_VCPUS`].
pub fn count() -> Option<u32> {
    let most = MAX_VCPUS as u32;
    (0..=most).find(|vcpu| hypercall::vcpu_is_up(*vcpu).is_err())
}

/// Starts `vcpu`, which was never started, in a PVH domain: it calls `entry` with its number, in
/// 64-bit mode, with interrupts off, on the stack that ends at `stack_top`, with control registers
/// and page tables as the vCPU that asks. It has no descriptor tables, no GS base and no upcall
/// vector yet.
///
/// # Errors
///
/// What Xen says: `ENOENT` where there is no such vCPU, `EEXIST` where it was started before,
/// `EINVAL` where it cannot start so.
///
/// # Safety
///
/// Nobody else uses the stack, which is mapped and long enough, and `entry` needs no more than what
/// it is given.
pub unsafe fn start_pvh(
    vcpu: u32,
    entry: extern "C" fn(u32) -> !,
    stack_top: usize,
) -> Result<(), Errno> {
    // As after a call: 8 bytes below a multiple of 16.
    let stack_top = (stack_top & !15) - 8;
    let context = VcpuHvmContext {
        mode: 1,
        rip: entry as usize as u64,
        rsp: stack_top as u64,
        rdi: u64::from(vcpu),
        rflags: 2,
        cr0: Cr0::read_raw(),
        cr3: Cr3::read_raw().0.start_address().as_u64(),
        cr4: Cr4::read_raw(),
        efer: Efer::read_raw(),
        ..VcpuHvmContext::default()
    };
    // SAFETY: the caller's promise.
    unsafe { initialise_pvh(vcpu, context) }?;
    up(vcpu)
}

/// Tells Xen where `vcpu`, which is down, starts in a PVH domain.
///
/// # Errors
///
/// What Xen says: `EEXIST` where it knows already.
///
/// # Safety
///
/// The context leads into code made for it, on a stack of its own.
#[doc(alias = "VCPUOP_initialise")]
pub unsafe fn initialise_pvh(vcpu: u32, mut context: VcpuHvmContext) -> Result<(), Errno> {
    // SAFETY: Xen copies the context; where it leads is the caller's promise.
    unsafe { hypercall::vcpu_op(abi::vcpuop::INITIALISE, vcpu, &mut context) }.map(drop)
}

/// Tells Xen where `vcpu`, which is down, starts in a PV domain.
///
/// # Errors
///
/// What Xen says: `EEXIST` where it knows already.
///
/// # Safety
///
/// The context leads into code made for it, on a stack of its own.
#[doc(alias = "VCPUOP_initialise")]
pub unsafe fn initialise_pv(vcpu: u32, context: &mut sys::vcpu_guest_context) -> Result<(), Errno> {
    // SAFETY: Xen copies the context; where it leads is the caller's promise.
    unsafe { hypercall::vcpu_op(abi::vcpuop::INITIALISE, vcpu, context) }.map(drop)
}

/// Lets `vcpu` run, from where it was told to start, or where it went down.
///
/// # Errors
///
/// What Xen says: `ENOENT` where there is no such vCPU, `EINVAL` where it was never told where to
/// start.
#[doc(alias = "VCPUOP_up")]
pub fn up(vcpu: u32) -> Result<(), Errno> {
    // SAFETY: the operation takes no argument; where the vCPU starts was promised by whoever
    // initialised it.
    unsafe { hypercall::vcpu_op(abi::vcpuop::UP, vcpu, &mut ()) }.map(drop)
}
