//! Exceptions and event upcalls: how control gets from the CPU or Xen to Rust and back.
//!
//! This file owns the entry code, its frames, and their registration with Xen. An exception ends the
//! domain ([`crash`](crate::crash)); an event upcall calls the handler set by [`set_upcall_handler`].
//!
//! On PV, Xen pushes rcx and r11 on top of the hardware's frame, right at the interrupted stack
//! pointer: code must not use a red zone. After two pops the stack looks as on bare hardware.

use core::arch::naked_asm;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use x86_64::registers::control::Cr2;
use xen_sys as sys;

use crate::abi::{self, CallbackRegister};
use crate::hypercall;
use crate::percpu::PerCpu;
use crate::shared_info::events;
use evtchn::{Errno, Port};

/// Registers at an exception, in the order the entry code pushes them.
#[allow(missing_docs, reason = "registers are named by the architecture")]
#[derive(Debug)]
#[repr(C)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

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
        PerCpu::current().info.cr2.load(Relaxed)
    } else {
        Cr2::read_raw()
    };
    crate::crash::exception(frame, fault_address)
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
pub(crate) fn exception_hvm(vector: u8) -> *const () {
    EXCEPTIONS_HVM[usize::from(vector)] as *const ()
}

/// Flat kernel code segment of 64-bit PV domains. Xen public/arch-x86/xen-x86_64.h.
pub(crate) const FLAT_KERNEL_CS: u16 = 0xe033;
/// Flat kernel stack segment of 64-bit PV domains. Xen public/arch-x86/xen-x86_64.h.
pub(crate) const FLAT_KERNEL_SS: u16 = 0xe02b;

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
            NMI => nmi_pv as *const () as u64,
            _ => EXCEPTIONS_PV[usize::from(vector)] as *const () as u64,
        },
    })
}

/// Fills a new vCPU's table and callbacks, which it does not inherit.
pub(crate) fn fill_context(context: &mut sys::vcpu_guest_context) {
    for info in table() {
        context.trap_ctxt[usize::from(info.vector)] = info;
    }
    context.event_callback_eip = upcall_pv as *const () as u64;
    context.failsafe_callback_eip = failsafe_pv as *const () as u64;
}

/// Registers exceptions and callbacks of vCPU 0 of a PV domain.
pub(crate) fn init_pv() {
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
        (abi::CALLBACKTYPE_EVENT, upcall_pv as *const ()),
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

/// Saves what a handler written in Rust may change, calls `{handler}`, and restores it. Vector
/// registers too: the handler is compiled code that may use them.
macro_rules! around_handler {
    ($($before:literal,)* [call] $($after:literal,)* ; $($operands:tt)*) => {
        naked_asm!(
            $($before,)*
            "push rax",
            "push rdx",
            "push rsi",
            "push rdi",
            "push r8",
            "push r9",
            "push r10",
            "push rbp",
            "mov rbp, rsp",
            "sub rsp, 512",
            "and rsp, -16",
            "fxsave64 [rsp]",
            "cld",
            "call {handler}",
            "fxrstor64 [rsp]",
            "mov rsp, rbp",
            "pop rbp",
            "pop r10",
            "pop r9",
            "pop r8",
            "pop rdi",
            "pop rsi",
            "pop rdx",
            "pop rax",
            "pop rcx",
            "pop r11",
            $($after,)*
            $($operands)*
        )
    };
}

/// Entry of event upcalls on PV, with rcx and r11 on the stack already. The return is a hypercall,
/// which restores the upcall mask together with the rest: returning by `iretq` would leave a window.
#[unsafe(naked)]
extern "C" fn upcall_pv() {
    around_handler!(
        [call]
        "push 0", // flags of the iret hypercall
        "jmp xen_hypercall_page + {iret} * 32",;
        handler = sym upcall,
        iret = const sys::__HYPERVISOR_iret,
    );
}

/// Entry of NMIs on PV: as an upcall. Xen holds back further ones until the return.
#[unsafe(naked)]
extern "C" fn nmi_pv() {
    around_handler!(
        [call]
        "push 0",
        "jmp xen_hypercall_page + {iret} * 32",;
        handler = sym nmi,
        iret = const sys::__HYPERVISOR_iret,
    );
}

/// Entry of event upcalls on PVH: an interrupt.
#[unsafe(naked)]
pub(crate) extern "C" fn upcall_hvm() {
    around_handler!("push r11", "push rcx", [call] "iretq",; handler = sym upcall_with_eoi,);
}

/// Entry of NMIs on PVH.
#[unsafe(naked)]
pub(crate) extern "C" fn nmi_hvm() {
    around_handler!("push r11", "push rcx", [call] "iretq",; handler = sym nmi,);
}

extern "C" fn upcall_with_eoi() {
    // First: an event that comes during the handler raises the vector again.
    crate::hvm::end_of_interrupt();
    upcall();
}

/// The handler of NMIs, as the address of a `fn()`.
static NMI_HANDLER: AtomicUsize = AtomicUsize::new(0);

/// Makes `handler` what an NMI calls, on every vCPU. An NMI can come anywhere, also while upcalls are
/// held back. Without a handler it is ignored.
pub fn set_nmi_handler(handler: fn()) {
    // Release: pairs with the load in `nmi`.
    NMI_HANDLER.store(handler as usize, Release);
}

extern "C" fn nmi() {
    let handler = NMI_HANDLER.load(Acquire);
    if handler != 0 {
        // SAFETY: only `set_nmi_handler` stores here, and it stores a `fn()`.
        let handler = unsafe { core::mem::transmute::<usize, fn()>(handler) };
        handler();
    }
}

/// The handler, as the address of a `fn(Port)`.
static HANDLER: AtomicUsize = AtomicUsize::new(0);

/// Makes `handler` what event upcalls call for each event, on every vCPU, with upcalls held back. It
/// must neither block for good nor allocate. A vCPU handles the ports in its
/// [`PerCpu::ports`]; unmask a port, and the vCPU's upcalls, to get any.
pub fn set_upcall_handler(handler: fn(Port)) {
    // Release: pairs with the load in `upcall`.
    HANDLER.store(handler as usize, Release);
}

/// Serves what is due on this vCPU.
extern "C" fn upcall() {
    let area = PerCpu::current();
    events().dispatch(&area.flags(), &area.ports, |port| {
        let handler = HANDLER.load(Acquire);
        if handler != 0 {
            // SAFETY: only `set_upcall_handler` stores here, and it stores a `fn(Port)`.
            let handler = unsafe { core::mem::transmute::<usize, fn(Port)>(handler) };
            handler(port);
        }
    });
}

/// Lets Xen keep `vcpu`'s runstate up to date in its area. For the vCPU this runs on, or one that is
/// down.
pub(crate) fn register_runstate(vcpu: u32) -> Result<(), Errno> {
    let mut address = core::ptr::from_ref(&PerCpu::of(vcpu).runstate) as u64;
    // SAFETY: the area is static, of the right layout, and all atomics.
    unsafe { hypercall::vcpu_op(abi::vcpuop::REGISTER_RUNSTATE_MEMORY_AREA, vcpu, &mut address) }
        .map(drop)
}
