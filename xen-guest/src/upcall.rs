//! Event upcalls and NMIs: what interrupts a vCPU and goes back.
//!
//! This file owns their entry code, the handlers they call, and the switch that holds upcalls back:
//! the vCPU's mask on PV, the interrupt flag on PVH. Which event means what is not known here.

use core::arch::naked_asm;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{Acquire, Release};

use evtchn::Port;
use x86_64::instructions::interrupts;
use xen_sys as sys;

use crate::boot;
use crate::percpu::PerCpu;
use crate::{events, hypercall};

/// Lets events interrupt this vCPU.
pub fn enable() {
    if boot::is_pvh() {
        interrupts::enable();
    } else if PerCpu::current().flags().unmask_upcalls() {
        // One came meanwhile. Xen delivers it on the way out of any hypercall.
        hypercall::sched_yield();
    }
}

/// Holds events back on this vCPU, and says whether they could interrupt it before.
pub fn disable() -> bool {
    if boot::is_pvh() {
        let before = interrupts::are_enabled();
        interrupts::disable();
        before
    } else {
        !PerCpu::current().flags().mask_upcalls()
    }
}

/// Whether events can interrupt this vCPU.
pub fn are_enabled() -> bool {
    if boot::is_pvh() {
        interrupts::are_enabled()
    } else {
        !PerCpu::current().flags().upcalls_masked()
    }
}

/// Runs `section` with events held back.
///
/// ```no_run
/// // A lock that an upcall handler takes too is taken like this.
/// xen_guest::upcall::without(|| { /* lock, work, unlock */ });
/// ```
pub fn without<R>(section: impl FnOnce() -> R) -> R {
    let before = disable();
    let result = section();
    if before {
        enable();
    }
    result
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
pub(crate) extern "C" fn upcall_pv() {
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
pub(crate) extern "C" fn nmi_pv() {
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
/// must neither block for good nor allocate. A vCPU handles the ports that
/// [`handle_on`](events::handle_on) made its own; unmask a port, and the vCPU's upcalls, to get any.
pub fn set_upcall_handler(handler: fn(Port)) {
    // Release: pairs with the load in `upcall`.
    HANDLER.store(handler as usize, Release);
}

/// Serves what is due on this vCPU.
extern "C" fn upcall() {
    events::dispatch(|port| {
        let handler = HANDLER.load(Acquire);
        if handler != 0 {
            // SAFETY: only `set_upcall_handler` stores here, and it stores a `fn(Port)`.
            let handler = unsafe { core::mem::transmute::<usize, fn(Port)>(handler) };
            handler(port);
        }
    });
}
