//! Event upcalls and NMIs: what interrupts a vCPU and goes back.
//!
//! This file owns their entry code, the handlers they call, and on PVH their vector. Which event
//! means what is not known here; the switch that holds upcalls back is [`mask`](crate::vcpu::mask).
//!
//! # Alone
//!
//! A PVH kernel puts [`upcall_pvh`] into its own IDT, at a vector of its choice, and tells Xen
//! ([`connect_pvh`], on each vCPU). The entry saves and restores what compiled code may change,
//! vector registers too (by FXSAVE: with CR0.TS and CR0.EM clear), and ends the interrupt at the
//! [local APIC](super::lapic). [`interrupt_entry!`](crate::interrupt_entry!) makes the same entry
//! around a handler of the kernel's. A kernel with entry code of its own for all vectors calls
//! [`serve`] from there instead:
//!
//! ```no_run
//! use xen_guest::events::{lapic, upcall};
//!
//! const VECTOR: u8 = 0xf3;
//!
//! fn init_interrupts(vcpu: u32) -> Result<(), evtchn::Errno> {
//!     upcall::set_upcall_handler(|port| { /* whose port is it? */ });
//!     upcall::connect_pvh(vcpu, VECTOR)
//! }
//!
//! fn on_interrupt(vector: u8) {
//!     if vector == VECTOR {
//!         lapic::end_of_interrupt(); // first: what comes meanwhile raises the vector again
//!         upcall::serve();
//!     }
//! }
//! ```

use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{Acquire, Release};

use evtchn::{Errno, Port};
use xen_sys as sys;

use super::{choice, lapic};
use crate::xen::{abi, hypercall};

/// Lets Xen deliver event upcalls of `vcpu`, which runs this in a PVH domain, by `vector`, 0x10 or
/// more. Nothing arrives while interrupts are off.
///
/// # Errors
///
/// What Xen says.
pub fn connect_pvh(vcpu: u32, vector: u8) -> Result<(), Errno> {
    lapic::enable();
    hypercall::set_upcall_vector(vcpu, vector)
}

/// Tells Xen and the toolstack that the domain handles event upcalls: without it the toolstack
/// takes it for one that cannot be told of a suspend that was cancelled. Each vCPU's own vector
/// goes first. Once, on any vCPU; again after a restore.
///
/// # Errors
///
/// What Xen says.
pub fn announce_pvh(vector: u8) -> Result<(), Errno> {
    let how = abi::CALLBACK_TYPE_VECTOR | u64::from(vector);
    hypercall::set_hvm_param(abi::hvm_param::CALLBACK_IRQ, how)
}

/// Saves what a handler written in Rust may change, calls `{handler}`, and restores it. Vector
/// registers too: the handler is compiled code that may use them.
#[doc(hidden)] // named by `interrupt_entry!`
#[macro_export]
macro_rules! __around_handler {
    ($($before:literal,)* [call] $($after:literal,)* ; $($operands:tt)*) => {
        ::core::arch::naked_asm!(
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
/// which restores the upcall mask together with the rest: returning by `iretq` would leave a
/// window.
///
/// # Safety
///
/// Only the CPU, or Xen, comes here: as the handler of the event callback, of a PV domain.
#[unsafe(naked)]
pub unsafe extern "C" fn upcall_pv() {
    __around_handler!(
        [call]
        "push 0", // flags of the iret hypercall
        "jmp xen_hypercall_page + {iret} * 32",;
        handler = sym upcall,
        iret = const sys::__HYPERVISOR_iret,
    );
}

/// Entry of NMIs on PV: as an upcall. Xen holds back further ones until the return.
///
/// # Safety
///
/// Only the CPU, or Xen, comes here: as the handler of trap 2, of a PV domain.
#[unsafe(naked)]
pub unsafe extern "C" fn nmi_pv() {
    __around_handler!(
        [call]
        "push 0",
        "jmp xen_hypercall_page + {iret} * 32",;
        handler = sym nmi,
        iret = const sys::__HYPERVISOR_iret,
    );
}

/// Makes the entry code of an interrupt whose handler is compiled code: for the IDT of a kernel
/// whose own entry code saves no vector registers (a PVH domain, kernel mode only). The handler is an
/// `extern "C" fn()`; it ends the interrupt, and may switch to another task and come back.
///
/// ```
/// xen_guest::interrupt_entry! {
///     /// To be put into the IDT, at the vector given to `connect_pvh`.
///     pub unsafe fn entry() calls on_interrupt
/// }
///
/// extern "C" fn on_interrupt() {
///     xen_guest::events::lapic::end_of_interrupt();
///     xen_guest::events::upcall::serve();
///     // and here the kernel's scheduler
/// }
/// ```
#[macro_export]
macro_rules! interrupt_entry {
    ($(#[$attribute:meta])* $visible:vis unsafe fn $name:ident() calls $handler:path) => {
        $(#[$attribute])*
        ///
        /// # Safety
        ///
        /// Only the CPU comes here: as the handler of a vector without an error code, through an
        /// interrupt gate.
        #[unsafe(naked)]
        $visible unsafe extern "C" fn $name() {
            $crate::__around_handler!(
                "push r11", "push rcx", [call] "iretq",; handler = sym $handler,
            );
        }
    };
}

interrupt_entry! {
    /// Entry of event upcalls on PVH: an interrupt.
    pub unsafe fn upcall_pvh() calls upcall_with_eoi
}

interrupt_entry! {
    /// Entry of NMIs on PVH.
    pub unsafe fn nmi_pvh() calls nmi
}

extern "C" fn upcall() {
    serve();
}

extern "C" fn upcall_with_eoi() {
    // First: an event that comes during the handler raises the vector again.
    lapic::end_of_interrupt();
    serve();
}

/// The handler of NMIs, as the address of a `fn()`.
static NMI_HANDLER: AtomicUsize = AtomicUsize::new(0);

/// Makes `handler` what an NMI calls, on every vCPU. An NMI can come anywhere, also while upcalls
/// are held back. Without a handler it is ignored.
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

/// Makes `handler` what event upcalls call for each event, on every vCPU, with upcalls held back.
/// It must neither block for good nor allocate. A vCPU handles the ports that
/// [`handle_on`](choice::handle_on) made its own; unmask a port, and the vCPU's upcalls, to get
/// any.
pub fn set_upcall_handler(handler: fn(Port)) {
    // Release: pairs with the load in `serve`.
    HANDLER.store(handler as usize, Release);
}

/// Serves what is due on this vCPU: calls the handler for each event. With upcalls held back, from
/// an interrupt's own entry code.
pub fn serve() {
    choice::dispatch(|port| {
        let handler = HANDLER.load(Acquire);
        if handler != 0 {
            // SAFETY: only `set_upcall_handler` stores here, and it stores a `fn(Port)`.
            let handler = unsafe { core::mem::transmute::<usize, fn(Port)>(handler) };
            handler(port);
        }
    });
}
