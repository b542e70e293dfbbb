//! Calls into the hypervisor.
//!
//! This file owns the calling convention (Xen public/arch-x86/xen-x86_64.h: number chosen by the
//! entry of the hypercall page, arguments in rdi, rsi, rdx, r10, r8, result in rax; rcx and r11 are
//! lost) and a typed wrapper for each operation the guest uses. It keeps no state.
//!
//! The page is filled in by whoever boots us: by the domain builder on PV (ELF note
//! `HYPERCALL_PAGE`), through a model-specific register on PVH. Until then each entry returns
//! `-ENOSYS`, so that calling one in a host test is an error and not a crash.
//!
//! # Alone
//!
//! A PV kernel points its ELF note `HYPERCALL_PAGE` at the symbol `xen_hypercall_page`. A PVH
//! kernel calls [`enable_pvh`] once, and everything here works from then on:
//!
//! ```no_run
//! use xen_guest::xen::hypercall;
//!
//! assert!(hypercall::enable_pvh(), "this is no Xen");
//! hypercall::vcpu_is_up(0)?;
//! # Ok::<(), evtchn::Errno>(())
//! ```
//!
//! What `evtchn` needs of it is one floor up: [`events::Xen`](crate::events::Xen).

use core::arch::x86_64::__cpuid;
use core::arch::{asm, global_asm};

use evtchn::Errno;
use x86_64::registers::model_specific::Msr;
use xen_sys as sys;

use super::{abi, frames};

global_asm!(
    ".pushsection .text.xen_hypercall_page, \"ax\", @progbits",
    ".balign 4096",
    ".globl xen_hypercall_page",
    ".hidden xen_hypercall_page",
    "xen_hypercall_page:",
    ".rept 128",
    "mov $-38, %rax", // ENOSYS
    "ret",
    ".balign 32",
    ".endr",
    ".popsection",
    options(att_syntax)
);

unsafe extern "C" {
    static xen_hypercall_page: [[u8; 32]; 128];
}

/// Address of the hypercall page.
pub fn page() -> *const u8 {
    (&raw const xen_hypercall_page).cast()
}

/// Lets Xen fill the page with what this CPU wants, vmcall or vmmcall: for a PVH domain, once, on
/// vCPU 0. False where there is no Xen. Like everything on this floor it allocates nothing.
pub fn enable_pvh() -> bool {
    let Some(base) = cpuid_base() else { return false };
    let mut register = Msr::new(__cpuid(base + 2).ebx);
    // SAFETY: Xen writes the page named, which is there for that.
    unsafe { register.write(frames::frame_of(page() as usize) << 12) };
    true
}

/// The first of Xen's CPUID leaves, in a PVH domain; `None` where there is no Xen.
///
/// Found by signature, since another hypervisor's may come first. Xen public/arch-x86/cpuid.h.
#[doc(alias = "xen_cpuid_base")]
pub fn cpuid_base() -> Option<u32> {
    let is_xen = |base: u32| {
        let leaf = __cpuid(base);
        [leaf.ebx, leaf.ecx, leaf.edx] == [*b"XenV", *b"MMXe", *b"nVMM"].map(u32::from_le_bytes)
    };
    (0x4000_0000..0x4001_0000).step_by(0x100).find(|base| is_xen(*base))
}

/// Calls hypercall `nr`.
///
/// # Safety
///
/// Arguments that are addresses must be valid for what the hypercall does with them, and its
/// effect must not break the memory or control flow of the program.
#[inline]
pub unsafe fn call(nr: u32, args: [usize; 4]) -> Result<usize, Errno> {
    let target = page().wrapping_add(nr as usize * 32);
    let result: isize;
    // SAFETY: the page holds code that follows the convention above, and no stack option is given,
    // so the compiler leaves room for the call. Memory counts as changed. The rest is the caller's.
    unsafe {
        asm!(
            "call {target}",
            target = in(reg) target,
            inlateout("rdi") args[0] => _,
            inlateout("rsi") args[1] => _,
            inlateout("rdx") args[2] => _,
            inlateout("r10") args[3] => _,
            lateout("rax") result,
            lateout("r8") _,
            lateout("r9") _,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    if result < 0 { Err(Errno(-result as i32)) } else { Ok(result as usize) }
}

/// Gives the pCPU away for the rest of the slice; the vCPU stays runnable.
#[doc(alias = "SCHEDOP_yield")]
pub fn sched_yield() {
    let arguments = [sys::SCHEDOP_yield as usize, 0, 0, 0];
    // SAFETY: the operation takes no argument. It cannot fail.
    let _ = unsafe { call(sys::__HYPERVISOR_sched_op, arguments) };
}

fn address<T>(argument: &mut T) -> usize {
    core::ptr::from_mut(argument) as usize
}

/// Why a domain ends; what the toolstack does then stands in its configuration (`on_poweroff`,
/// `on_crash`, ...). Xen public/sched.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ShutdownReason {
    /// Everything done.
    #[doc(alias = "SHUTDOWN_poweroff")]
    Poweroff = sys::SHUTDOWN_poweroff,
    /// Start again.
    #[doc(alias = "SHUTDOWN_reboot")]
    Reboot = sys::SHUTDOWN_reboot,
    /// Be saved.
    #[doc(alias = "SHUTDOWN_suspend")]
    Suspend = sys::SHUTDOWN_suspend,
    /// Something went wrong.
    #[doc(alias = "SHUTDOWN_crash")]
    Crash = sys::SHUTDOWN_crash,
}

/// Ends the domain. Returns only where Xen refuses, which it does not.
#[doc(alias = "SCHEDOP_shutdown")]
pub fn sched_shutdown(reason: ShutdownReason) -> ! {
    let mut argument = sys::sched_shutdown { reason: reason as u32 };
    let arguments = [sys::SCHEDOP_shutdown as usize, address(&mut argument), 0, 0];
    loop {
        // SAFETY: the structure outlives the call, and Xen only reads it.
        let _ = unsafe { call(sys::__HYPERVISOR_sched_op, arguments) };
    }
}

/// How a suspended domain came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// As a new domain, made from what was saved: everything Xen held of the old one is gone.
    Restored,
    /// As the same domain: it was not suspended after all, or its image was only copied.
    Cancelled,
}

/// Stops the domain so that it can be saved; returns when it goes on. `start_info` is the machine
/// frame of that structure on PV, where the toolstack looks for it in this very argument, and 0 on
/// PVH.
#[doc(alias = "SHUTDOWN_suspend")]
pub(crate) fn sched_suspend(start_info: u64) -> Result<Resumed, Errno> {
    let mut argument = sys::sched_shutdown { reason: ShutdownReason::Suspend as u32 };
    let command = sys::SCHEDOP_shutdown as usize;
    let arguments = [command, address(&mut argument), start_info as usize, 0];
    // SAFETY: the structure outlives the call, and Xen only reads it.
    let returned = unsafe { call(sys::__HYPERVISOR_sched_op, arguments) }?;
    Ok(if returned == 0 { Resumed::Restored } else { Resumed::Cancelled })
}

/// Writes to Xen's own console. An ordinary domain's text is dropped by a release build of Xen.
#[doc(alias = "CONSOLEIO_write")]
pub fn console_io_write(bytes: &[u8]) {
    let arguments = [sys::CONSOLEIO_write as usize, bytes.len(), bytes.as_ptr() as usize, 0];
    // SAFETY: Xen reads `len` bytes at the pointer. There is nowhere to report a failure to.
    let _ = unsafe { call(sys::__HYPERVISOR_console_io, arguments) };
}

/// Carries out a `vcpu_op` whose argument Xen only reads during the call.
///
/// # Safety
///
/// `argument` must be what `operation` expects; memory it points Xen to must live as long as Xen
/// uses it.
#[doc(alias = "HYPERVISOR_vcpu_op")]
pub unsafe fn vcpu_op<T>(operation: usize, vcpu: u32, argument: &mut T) -> Result<usize, Errno> {
    let arguments = [operation, vcpu as usize, address(argument), 0];
    // SAFETY: the structure outlives the call; the rest is the caller's obligation.
    unsafe { call(sys::__HYPERVISOR_vcpu_op, arguments) }
}

/// Whether `vcpu` is up; `Err` where the domain has no such vCPU.
#[doc(alias = "VCPUOP_is_up")]
pub fn vcpu_is_up(vcpu: u32) -> Result<bool, Errno> {
    // SAFETY: the operation takes no argument and changes nothing.
    unsafe { vcpu_op(abi::vcpuop::IS_UP, vcpu, &mut ()) }.map(|up| up != 0)
}

/// Takes a vCPU down. Of another vCPU, it goes on until Xen stops it.
#[doc(alias = "VCPUOP_down")]
pub fn vcpu_down(vcpu: u32) -> Result<(), Errno> {
    // SAFETY: the operation takes no argument; a stopped vCPU breaks no memory.
    unsafe { vcpu_op(abi::vcpuop::DOWN, vcpu, &mut ()) }.map(drop)
}

/// Writes a record of the guest's own into the hypervisor's trace: an event number below 0x1000
/// and up to seven words; further words are left off.
#[doc(alias = "HVMOP_xentrace")]
pub fn xentrace(event: u16, words: &[u32]) -> Result<(), Errno> {
    let words = &words[..words.len().min(abi::TRACE_EXTRA_MAX)];
    let mut record =
        abi::HvmXentrace { event, extra_bytes: (words.len() * 4) as u16, ..Default::default() };
    record.extra[..words.len()].copy_from_slice(words);
    let arguments = [abi::HVMOP_XENTRACE, address(&mut record), 0, 0];
    // SAFETY: the structure outlives the call, and Xen only reads it.
    unsafe { call(sys::__HYPERVISOR_hvm_op, arguments) }.map(drop)
}

/// A parameter of this PVH domain; see [`abi::hvm_param`].
#[doc(alias = "HVMOP_get_param")]
pub fn hvm_param(index: u32) -> Result<u64, Errno> {
    let mut argument = abi::HvmParam { domid: abi::DOMID_SELF, index, value: 0 };
    let arguments = [abi::HVMOP_GET_PARAM, address(&mut argument), 0, 0];
    // SAFETY: the structure outlives the call, which fills in the value.
    unsafe { call(sys::__HYPERVISOR_hvm_op, arguments) }?;
    Ok(argument.value)
}

/// Sets a parameter of this PVH domain; see [`abi::hvm_param`].
#[doc(alias = "HVMOP_set_param")]
pub(crate) fn set_hvm_param(index: u32, value: u64) -> Result<(), Errno> {
    let mut argument = abi::HvmParam { domid: abi::DOMID_SELF, index, value };
    let arguments = [abi::HVMOP_SET_PARAM, address(&mut argument), 0, 0];
    // SAFETY: the structure outlives the call, and Xen only reads it. No parameter a domain may set
    // changes its memory.
    unsafe { call(sys::__HYPERVISOR_hvm_op, arguments) }.map(drop)
}

/// Chooses the interrupt vector of `vcpu`'s event upcalls.
#[doc(alias = "HVMOP_set_evtchn_upcall_vector")]
pub(crate) fn set_upcall_vector(vcpu: u32, vector: u8) -> Result<(), Errno> {
    let mut argument = abi::HvmUpcallVector { vcpu, vector };
    let arguments = [abi::HVMOP_SET_EVTCHN_UPCALL_VECTOR, address(&mut argument), 0, 0];
    // SAFETY: the structure outlives the call, and Xen only reads it. What happens at the vector
    // is up to the IDT.
    unsafe { call(sys::__HYPERVISOR_hvm_op, arguments) }.map(drop)
}

/// Makes the shared page appear at guest frame `frame` of this PVH domain, in place of what is
/// there.
#[doc(alias = "XENMEM_add_to_physmap")]
pub(crate) fn map_shared_info(frame: u64) -> Result<(), Errno> {
    let mut argument =
        abi::AddToPhysmap { domid: abi::DOMID_SELF, size: 0, space: 0, index: 0, frame };
    let arguments = [abi::XENMEM_ADD_TO_PHYSMAP, address(&mut argument), 0, 0];
    // SAFETY: the structure outlives the call, and the frame is a placeholder nobody uses.
    unsafe { call(sys::__HYPERVISOR_memory_op, arguments) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_xen_fills_the_page_every_call_is_enosys() {
        // SAFETY: nothing is called but the page's own instructions.
        assert_eq!(unsafe { call(sys::__HYPERVISOR_sched_op, [0; 4]) }, Err(Errno::ENOSYS));
        assert_eq!(vcpu_is_up(0), Err(Errno::ENOSYS));
        assert_eq!(xentrace(0x701, &[0; 9]), Err(Errno::ENOSYS));
        assert_eq!(page() as usize % abi::PAGE_SIZE, 0);
    }
}
