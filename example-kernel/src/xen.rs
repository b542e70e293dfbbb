//! What this kernel asks of Xen: hypercalls, the shared page, the clock.
//!
//! Owns the calling convention and the layouts `xen-sys` lacks. Structures and numbers are those of
//! Xen's public headers, named at each item.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, _rdtsc};
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use evtchn::{DomId, Errno, EventChannelOp, Hypercalls, SchedOp, TwoLevel};
use xen_sys as sys;

use crate::current_vcpu;

/// Whether hypercalls are made by `vmmcall` (AMD) and not by `vmcall` (Intel).
static VMMCALL: AtomicBool = AtomicBool::new(false);

/// The page Xen shares with the domain is put in this one's place.
#[repr(C, align(4096))]
struct SharedPage(UnsafeCell<[u8; 4096]>);

// SAFETY: accessed through raw pointers only: its event bits by `evtchn`, its clocks by
// `system_time`.
unsafe impl Sync for SharedPage {}

static SHARED_PAGE: SharedPage = SharedPage(UnsafeCell::new([0; 4096]));

fn shared_info() -> NonNull<sys::shared_info> {
    NonNull::new(SHARED_PAGE.0.get().cast()).expect("a static has an address")
}

/// Makes hypercalls work and maps the shared page. First thing on vCPU 0.
pub fn init() -> Result<(), Errno> {
    let vendor = __cpuid(0).ebx.to_le_bytes();
    // Relaxed: the other vCPUs are started afterwards, by a hypercall.
    VMMCALL.store(vendor == *b"Auth" || vendor == *b"Hygo", Ordering::Relaxed);
    let frame = shared_info().as_ptr() as u64 / 4096;
    // Space 0 = the shared page.
    let mut argument = AddToPhysmap { domid: DomId::SELF.0, frame, ..Default::default() };
    // SAFETY: the frame is a placeholder that nobody has looked at yet.
    unsafe {
        call(sys::__HYPERVISOR_memory_op, XENMEM_ADD_TO_PHYSMAP, &raw mut argument as usize)
    }?;
    // All ports start unmasked.
    events().mask_all();
    Ok(())
}

/// The event channels of this domain.
pub fn events() -> TwoLevel {
    // SAFETY: mapped by `init` for ever; only `evtchn` touches its event bits.
    unsafe { TwoLevel::new(shared_info()) }
}

/// A hypercall of two arguments. Xen public/arch-x86/xen-x86_64.h.
///
/// # Safety
///
/// The arguments are what hypercall `nr` expects, and what it does breaks no memory of ours.
unsafe fn call(nr: u32, first: usize, second: usize) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { call3(nr, first, second, 0) }.map(drop)
}

/// The same with three arguments, and what Xen answered.
///
/// # Safety
///
/// As [`call`].
unsafe fn call3(nr: u32, first: usize, second: usize, third: usize) -> Result<usize, Errno> {
    let result: isize;
    macro_rules! by {
        ($instruction:literal) => {
            // SAFETY: the caller's promise; the convention loses the argument registers, and memory
            // counts as changed.
            unsafe {
                asm!($instruction, inlateout("rax") nr as usize => result,
                     inlateout("rdi") first => _, inlateout("rsi") second => _,
                     inlateout("rdx") third => _, lateout("r10") _, lateout("r8") _,
                     options(nostack))
            }
        };
    }
    // Relaxed: see `init`.
    if VMMCALL.load(Ordering::Relaxed) {
        by!("vmmcall")
    } else {
        by!("vmcall")
    }
    if result < 0 { Err(Errno(-result as i32)) } else { Ok(result as usize) }
}

/// The two hypercalls `evtchn` needs, and the clock.
pub struct Xen;

impl Hypercalls for Xen {
    fn event_channel_op(&self, mut op: EventChannelOp<'_>) -> Result<(), Errno> {
        let (command, argument) = op.raw();
        // SAFETY: `raw` pairs the command with its own structure, which outlives the call.
        unsafe { call(sys::__HYPERVISOR_event_channel_op, command as usize, argument as usize) }
    }

    fn sched_op(&self, op: SchedOp) -> Result<(), Errno> {
        op.with_raw(|command, argument| {
            // SAFETY: as above.
            unsafe { call(sys::__HYPERVISOR_sched_op, command as usize, argument as usize) }
        })
    }

    fn system_time_ns(&self) -> u64 {
        system_time()
    }
}

/// Nanoseconds since Xen booted, by this vCPU's clock. Xen public/xen.h, `vcpu_time_info`.
pub fn system_time() -> u64 {
    // SAFETY: in bounds of the shared page, which has clocks for 32 vCPUs.
    let clock = unsafe { &raw const (*shared_info().as_ptr()).vcpu_info[current_vcpu()].time };
    loop {
        // SAFETY: mapped. Xen writes it on this pCPU only, while this vCPU does not run: a version
        // that is even and the same afterwards says that nothing was written in between.
        let (time, tsc) = unsafe { (clock.read_volatile(), _rdtsc()) };
        // SAFETY: as above.
        let version = unsafe { (&raw const (*clock).version).read_volatile() };
        if time.version & 1 == 0 && time.version == version {
            let ticks = tsc.wrapping_sub(time.tsc_timestamp);
            let shift = time.tsc_shift;
            let ticks = if shift < 0 { ticks >> -shift } else { ticks << shift };
            let ns = (u128::from(ticks) * u128::from(time.tsc_to_system_mul)) >> 32;
            return time.system_time + ns as u64;
        }
    }
}

/// Ends the domain. `reason`: `SHUTDOWN_*`, Xen public/sched.h.
pub fn shutdown(reason: u32) -> ! {
    let mut argument = sys::sched_shutdown { reason };
    let argument = &raw mut argument as usize;
    loop {
        // SAFETY: the structure outlives the call.
        let _ =
            unsafe { call(sys::__HYPERVISOR_sched_op, sys::SCHEDOP_shutdown as usize, argument) };
    }
}

/// Lets another vCPU run.
pub fn yield_now() {
    // It cannot fail.
    let _ = Xen.sched_op(SchedOp::Yield);
}

/// Whether the domain has a vCPU of that number.
pub fn has_vcpu(vcpu: u32) -> bool {
    // SAFETY: the operation takes no argument and changes nothing.
    unsafe { vcpu_op(VCPUOP_IS_UP, vcpu, &mut ()) }.is_ok()
}

/// Takes the vCPU this runs on down, for good.
pub fn vcpu_down(vcpu: u32) -> ! {
    loop {
        // SAFETY: the operation takes no argument.
        let _ = unsafe { vcpu_op(VCPUOP_DOWN, vcpu, &mut ()) };
    }
}

/// A `vcpu_op`. Xen public/vcpu.h.
///
/// # Safety
///
/// `argument` is what `operation` expects.
pub unsafe fn vcpu_op<T>(operation: usize, vcpu: u32, argument: &mut T) -> Result<(), Errno> {
    let argument = core::ptr::from_mut(argument) as usize;
    // SAFETY: the structure outlives the call; the rest is the caller's promise.
    unsafe { call3(sys::__HYPERVISOR_vcpu_op, operation, vcpu as usize, argument) }.map(drop)
}

/// A parameter of this domain. Xen public/hvm/params.h.
pub fn hvm_param(index: u32) -> Result<u64, Errno> {
    let mut argument = HvmParam { domid: DomId::SELF.0, index, value: 0 };
    // SAFETY: the structure outlives the call, which fills in the value.
    unsafe { call(sys::__HYPERVISOR_hvm_op, HVMOP_GET_PARAM, &raw mut argument as usize) }?;
    Ok(argument.value)
}

// Xen public/vcpu.h, public/memory.h, public/hvm/hvm_op.h.
pub const VCPUOP_INITIALISE: usize = 0;
pub const VCPUOP_UP: usize = 1;
const VCPUOP_DOWN: usize = 2;
const VCPUOP_IS_UP: usize = 3;
const XENMEM_ADD_TO_PHYSMAP: usize = 7;
const HVMOP_GET_PARAM: usize = 1;

/// `xen_add_to_physmap`. Xen public/memory.h.
#[repr(C)]
#[derive(Default)]
struct AddToPhysmap {
    domid: u16,
    size: u16,
    space: u32,
    index: u64,
    frame: u64,
}

/// `xen_hvm_param`. Xen public/hvm/params.h.
#[repr(C)]
struct HvmParam {
    domid: u16,
    index: u32,
    value: u64,
}

/// `vcpu_hvm_context`, 64-bit form. Xen public/hvm/hvm_vcpu.h.
#[repr(C)]
#[derive(Default)]
pub struct VcpuHvmContext {
    pub mode: u32,
    pub pad: u32,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    // The 32-bit form, which shares the space, is longer.
    pub rest: [u64; 8],
}
