//! The answer to "who am I" for a kernel that has none of its own: the GS base.
//!
//! This file owns a constant for each vCPU, to which that vCPU's GS base points, and the one load
//! that reads it. It never writes the GS base: on PV that is a hypercall, on PVH a register, and
//! boot code does it.

use core::arch::asm;

use super::per_vcpu::MAX_VCPUS;

/// Each vCPU's number, where its GS base points. Never written: vCPUs may share cache lines of it.
static NUMBERS: [u64; MAX_VCPUS] = {
    let mut numbers = [0; MAX_VCPUS];
    let mut vcpu = 0;
    while vcpu < MAX_VCPUS {
        numbers[vcpu] = vcpu as u64;
        vcpu += 1;
    }
    numbers
};

/// What the GS base of `vcpu` has to be.
///
/// # Panics
///
/// If `vcpu` is not below [`MAX_VCPUS`].
pub fn of(vcpu: u32) -> u64 {
    core::ptr::from_ref(&NUMBERS[vcpu as usize]) as u64
}

/// The number to which this vCPU's GS base points.
///
/// # Safety
///
/// The GS base of this vCPU is [`of`] its number.
#[inline]
pub(super) unsafe fn number() -> u32 {
    let number: u64;
    // SAFETY: the caller's promise. The value never changes, so the load may be merged with others.
    unsafe {
        asm!(
            "mov {number}, gs:[0]",
            number = out(reg) number,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpus_gs_base_leads_to_its_number() {
        for vcpu in 0..MAX_VCPUS as u32 {
            // SAFETY: the address of a constant of this file.
            assert_eq!(unsafe { (of(vcpu) as *const u64).read() }, u64::from(vcpu));
        }
    }
}
