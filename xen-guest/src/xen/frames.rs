//! Addresses of this kernel as the frame numbers that Xen takes.
//!
//! This file owns the translation, and with it which kind of domain this is: a PV domain has a
//! table of machine frames, a PVH domain has none. It maps nothing.
//!
//! # Alone
//!
//! A PVH kernel whose virtual addresses are the guest-physical ones has nothing to do. Any other
//! says how it translates ([`translate_by`]), and a PV kernel where `start_info` put its table
//! ([`set_machine_frames`]): both before any other part of this crate gives Xen an address.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicPtr, AtomicUsize};

use super::abi::PAGE_SIZE;

/// How a domain was booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainType {
    /// Paravirtualised: page tables and upcalls are Xen's.
    Pv,
    /// Hardware-assisted: the CPU is the domain's own.
    Pvh,
}

/// The pseudo-physical-to-machine table of a PV domain.
static MACHINE_FRAMES: AtomicPtr<u64> = AtomicPtr::new(core::ptr::null_mut());

/// The kernel's own translation, as the address of a `fn(usize) -> usize`, or 0.
static TRANSLATE: AtomicUsize = AtomicUsize::new(0);

/// Says where a PV domain's table of machine frames is (`mfn_list` of `start_info`): from now on
/// this is a PV domain.
///
/// # Safety
///
/// The table has an entry for every page whose address is given to Xen, and stays there for ever.
pub unsafe fn set_machine_frames(table: *mut u64) {
    // Relaxed, here and below: vCPU 0 writes it before it starts another one by a hypercall.
    MACHINE_FRAMES.store(table, Relaxed);
}

/// Says how the kernel's virtual addresses become (pseudo-)physical ones. Without it they are the
/// same.
///
/// # Safety
///
/// `physical` is right for every static of the image.
pub unsafe fn translate_by(physical: fn(usize) -> usize) {
    TRANSLATE.store(physical as usize, Relaxed);
}

/// How this domain was booted.
#[inline]
pub fn domain_type() -> DomainType {
    if MACHINE_FRAMES.load(Relaxed).is_null() { DomainType::Pvh } else { DomainType::Pv }
}

/// Frame of the page at `address`: the machine frame on PV, the guest frame on PVH.
pub fn frame_of(address: usize) -> u64 {
    let page = physical(address) / PAGE_SIZE;
    let table = MACHINE_FRAMES.load(Relaxed);
    if table.is_null() {
        return page as u64;
    }
    // SAFETY: the table has an entry for every page of the domain, and all our addresses are in it.
    unsafe { table.wrapping_add(page).read() }
}

/// The (pseudo-)physical address of `address`.
fn physical(address: usize) -> usize {
    match TRANSLATE.load(Relaxed) {
        0 => address,
        translate => {
            // SAFETY: only `translate_by` stores here, and it stores a `fn(usize) -> usize`.
            let translate = unsafe { core::mem::transmute::<usize, fn(usize) -> usize>(translate) };
            translate(address)
        }
    }
}
