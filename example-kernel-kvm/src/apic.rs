//! The local APIC, in x2APIC mode: starting vCPUs, and one periodic tick.
//!
//! Owns its registers (Intel SDM volume 3, chapter 11.12). The tick does nothing but end a HLT: it bounds
//! what a lost kick could cost.

use core::arch::asm;

use crate::cpu::{read_msr, write_msr};

/// The vector of the tick.
pub const TICK_VECTOR: u32 = 0x20;
/// How many nanoseconds lie between two ticks.
pub const TICK_NS: u64 = 1_000_000_000;

/// Delivery modes of [`send`].
pub const INIT: u32 = 5 << 8 | 1 << 14;
pub const STARTUP: u32 = 6 << 8 | 1 << 14;

const APIC_BASE: u32 = 0x1b;
const SPURIOUS: u32 = 0x80f;
/// End of interrupt.
pub const EOI: u32 = 0x80b;
const COMMAND: u32 = 0x830;
const TIMER: u32 = 0x832;
const TIMER_COUNT: u32 = 0x838;
const TIMER_DIVIDE: u32 = 0x83e;
/// In `TIMER`: again and again.
const PERIODIC: u64 = 1 << 17;
/// In `TIMER_DIVIDE`: by 1.
const BY_ONE: u64 = 0b1011;

/// Switches this vCPU's APIC on.
pub fn init() {
    // Enabled, x2APIC.
    write(APIC_BASE, read_msr(APIC_BASE) | 1 << 11 | 1 << 10);
    // Enabled, with the spurious vector 0xff.
    write(SPURIOUS, 0x1ff);
}

/// Starts this vCPU's tick. It arrives only in [`halt`].
pub fn start_tick() {
    write(TIMER_DIVIDE, BY_ONE);
    write(TIMER, PERIODIC | u64::from(TICK_VECTOR));
    // KVM's APIC bus runs at 1 GHz: a count is a nanosecond (KVM API, KVM_CAP_X86_APIC_BUS_CYCLES_NS).
    write(TIMER_COUNT, TICK_NS);
}

/// Halts until something wakes this vCPU: a kick, the tick, or nothing at all. Interrupts are on here and
/// nowhere else; `sti` takes effect after the next instruction, so none comes before the HLT.
pub fn halt() {
    // SAFETY: the tick's handler restores every register; without `nostack` it may use the stack.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Sends `command` to `vcpu`, whose APIC id is its number.
pub fn send(vcpu: u32, command: u32) {
    write(COMMAND, u64::from(vcpu) << 32 | u64::from(command));
}

/// Writes one of the registers above.
fn write(register: u32, value: u64) {
    // SAFETY: the APIC touches no memory. The one interrupt it is told of has a handler, and a CPU that it
    // starts begins at the trampoline.
    unsafe { write_msr(register, value) };
}
