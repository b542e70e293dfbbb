//! The local APIC of a PVH vCPU, as far as upcalls need it: by it Xen delivers them, and it must be
//! told that they were served.
//!
//! This file owns that access, by memory. A kernel that drives the APIC itself (by its registers of
//! x2APIC, say) uses nothing of it, and ends the interrupt its own way before it calls
//! [`upcall::serve`](super::upcall::serve).

use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;

// Registers as byte offsets. Intel SDM volume 3, table 11-1.
const EOI: usize = 0xb0;
const SPURIOUS_VECTOR: usize = 0xf0;

/// Where the registers are mapped: by default one to one, where they are at reset.
static BASE: AtomicUsize = AtomicUsize::new(0xfee0_0000);

/// Says where the kernel has mapped the registers, if it is not at the physical address.
///
/// # Safety
///
/// They are mapped there, uncached and writable, for ever.
pub unsafe fn map_at(address: usize) {
    // Relaxed: vCPU 0 writes it before it starts another one by a hypercall.
    BASE.store(address, Relaxed);
}

fn write(register: usize, value: u32) {
    let at = (BASE.load(Relaxed) + register) as *mut u32;
    // SAFETY: the APIC is mapped there, as `map_at` was promised, or in our own page tables; the
    // values written are those named here.
    unsafe { at.write_volatile(value) };
}

/// Enables the APIC of the vCPU this runs on.
pub fn enable() {
    /// Enabled, with vector 0xff for spurious interrupts.
    const ENABLE: u32 = 0x1ff;
    write(SPURIOUS_VECTOR, ENABLE);
}

/// Says that the upcall is being served; without it no further one comes.
pub fn end_of_interrupt() {
    write(EOI, 0);
}
