//! Which vCPU this is, and its model-specific registers.
//!
//! Owns the GS base: it points to the vCPU's number. Everything else stands on this file.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// How many vCPUs this kernel uses. Their numbers are their APIC ids.
pub const MAX_VCPUS: usize = 16;

/// Each vCPU's number, where its GS base points.
static NUMBERS: [AtomicU64; MAX_VCPUS] = [const { AtomicU64::new(0) }; MAX_VCPUS];

const GS_BASE: u32 = 0xc000_0101;

/// The number of the vCPU this runs on.
#[inline]
pub fn current_vcpu() -> usize {
    let number;
    // SAFETY: the GS base of a vCPU points to its number before anything else runs on it.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) number, options(pure, readonly, nostack, preserves_flags))
    };
    number
}

/// Makes the vCPU that runs this number `vcpu`. First thing there.
pub fn become_vcpu(vcpu: u32) {
    let number = &NUMBERS[vcpu as usize];
    // Relaxed: this vCPU's own.
    number.store(u64::from(vcpu), Ordering::Relaxed);
    // SAFETY: only `current_vcpu` reads through it, and the number is static.
    unsafe { write_msr(GS_BASE, core::ptr::from_ref(number) as u64) };
}

/// Reads a model-specific register, which must exist.
pub fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading the registers that this kernel names has no effect.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high,
             options(nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes one.
///
/// # Safety
///
/// What the register does with `value` breaks no memory that is in use.
pub unsafe fn write_msr(register: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags))
    };
}
