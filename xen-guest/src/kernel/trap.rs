//! Exceptions: how control gets from the CPU or Xen to the crash report.
//!
//! This file owns their entry code, and on PV their registration with Xen. An exception
//! ends the domain ([`crash`]). What comes back, events and NMIs, is in
//! [`upcall`].
//!
//! On PV, Xen pushes rcx and r11 on top of the hardware's frame, right at the interrupted stack
//! pointer: code must not use a red zone. After two pops the stack looks as on bare hardware.

use core::arch::naked_asm;
use core::sync::atomic::Ordering::Relaxed;

use x86_64::registers::control::Cr2;
use xen_sys as sys;

use super::crash::{self, TrapFrame};
use crate::events::upcall;
use crate::vcpu::{self, Area};
use crate::xen::abi::{self, CallbackRegister};
use crate::xen::hypercall;

/// Vectors below 32 whose exceptions push an error code: Intel SDM volume 3, table 6-1.
const WITH_ERROR_CODE: u32 = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;

/// Entry of exception `VECTOR` on PV. `DUMMY` is 1 where Xen pushes no error code.
#[unsafe(naked)]
extern "C" fn exception_pv<const VECTOR: u32>() {
    naked_asm!(
        "pop rcx",
        "pop r11",
        ".if ({with_error_code} >> {vector}) & 1 == 0",
        "push 0",
        ".endif",
        "push {vector}",
        "jmp {common}",
        with_error_code = const WITH_ERROR_CODE,
        vector = const VECTOR,
        common = sym exception_common,
    );
}

/// Entry of exception `VECTOR` on PVH.
#[unsafe(naked)]
extern "C" fn entry_hvm<const VECTOR: u32>() {
    naked_asm!(
        ".if ({with_error_code} >> {vector}) & 1 == 0",
        "push 0",
        ".endif",
        "push {vector}",
        "jmp {common}",
        with_error_code = const WITH_ERROR_CODE,
        vector = const VECTOR,
        common = sym exception_common,
    );
}

/// Completes a [`TrapFrame`] and reports it.
#[unsafe(naked)]
extern "C" fn exception_common() {
    naked_asm!(
        "push rax",
        "push rbx",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push rbp",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov rdi, rsp",
        "and rsp, -16",
        "cld",
        "call {report}",
        "ud2",
        report = sym report,
    );
}

extern "C" fn report(frame: &TrapFrame) -> ! {
    let fault_address = if frame.cs as u16 & !3 == FLAT_KERNEL_CS & !3 {
        // PV: Xen leaves it in the vCPU's own structure.
        Area::of(vcpu::current()).info.cr2.load(Relaxed)
    } else {
        Cr2::read_raw()
    };
    crash::exception(frame, fault_address)
}

/// Addresses of the entries for vectors 0 to 31.
macro_rules! entries {
    ($name:ident: $($vector:literal)*) => { [$($name::<$vector> as extern "C" fn()),*] };
}
static EXCEPTIONS_PV: [extern "C" fn(); 32] = entries!(exception_pv:
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
static EXCEPTIONS_HVM: [extern "C" fn(); 32] = entries!(entry_hvm:
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);

/// Address of the entry code of an exception on PVH.
pub(super) fn exception_hvm(vector: u8) -> *const () {
    EXCEPTIONS_HVM[usize::from(vector)] as *const ()
}

/// Flat kernel code segment of 64-bit PV domains. Xen public/arch-x86/xen-x86_64.h.
pub(super) const FLAT_KERNEL_CS: u16 = 0xe033;
/// Flat kernel stack segment of 64-bit PV domains. Xen public/arch-x86/xen-x86_64.h.
pub(super) const FLAT_KERNEL_SS: u16 = 0xe02b;

/// Vector of the non-maskable interrupt.
const NMI: u8 = 2;

/// The trap table: exceptions, and the NMI, with upcalls held back.
fn table() -> impl Iterator<Item = sys::trap_info> {
    /// `TI_SET_IF`: mask upcalls on entry. Xen public/arch-x86/xen.h.
    const MASK_EVENTS: u8 = 4;
    (0..32).map(|vector| sys::trap_info {
        vector,
        flags: MASK_EVENTS,
        cs: FLAT_KERNEL_CS,
        address: match vector {
            NMI => upcall::nmi_pv as *const () as u64,
            _ => EXCEPTIONS_PV[usize::from(vector)] as *const () as u64,
        },
    })
}

/// Fills a new vCPU's table and callbacks, which it does not inherit.
pub(super) fn fill_context(context: &mut sys::vcpu_guest_context) {
    for info in table() {
        context.trap_ctxt[usize::from(info.vector)] = info;
    }
    context.event_callback_eip = upcall::upcall_pv as *const () as u64;
    context.failsafe_callback_eip = failsafe_pv as *const () as u64;
}

/// Registers exceptions and callbacks of vCPU 0 of a PV domain.
pub(super) fn init_pv() {
    let mut list = [sys::trap_info { vector: 0, flags: 0, cs: 0, address: 0 }; 33];
    // The last entry stays zero: the end.
    for (slot, info) in list.iter_mut().zip(table()) {
        *slot = info;
    }
    let arguments = [list.as_mut_ptr() as usize, 0, 0, 0];
    // SAFETY: Xen copies the list; the entries are code that keeps to Xen's frame layout.
    unsafe { hypercall::call(sys::__HYPERVISOR_set_trap_table, arguments) }
        .expect("the trap table can be set");
    let callbacks: [(u16, *const ()); 2] = [
        (abi::CALLBACKTYPE_EVENT, upcall::upcall_pv as *const ()),
        (abi::CALLBACKTYPE_FAILSAFE, failsafe_pv as *const ()),
    ];
    for (kind, entry) in callbacks {
        let mut argument = CallbackRegister { kind, flags: 1, address: entry as u64 };
        /// `CALLBACKOP_register`. Xen public/callback.h.
        const REGISTER: usize = 0;
        let arguments = [REGISTER, &raw mut argument as usize, 0, 0];
        // SAFETY: Xen copies the structure; the entries keep to Xen's frame layout.
        unsafe { hypercall::call(sys::__HYPERVISOR_callback_op, arguments) }
            .expect("callbacks can be set");
    }
}

/// Xen could not reload our segments: nothing we do makes that happen.
#[unsafe(naked)]
extern "C" fn failsafe_pv() {
    naked_asm!("and rsp, -16", "call {report}", "ud2", report = sym report_failsafe);
}

extern "C" fn report_failsafe() -> ! {
    panic!("Xen called the failsafe callback: a segment register is broken");
}
