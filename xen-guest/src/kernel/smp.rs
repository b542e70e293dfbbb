//! vCPUs: starting, parking, sleeping.
//!
//! This file owns how a vCPU comes into Rust code and how it leaves. It knows nothing of what it
//! runs.

use core::arch::naked_asm;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use alloc::boxed::Box;
use evtchn::Errno;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;
use xen_sys as sys;

use super::{descriptors, pv, pvh, stack, trap};
use crate::events::upcall;
use crate::vcpu::{self, Area, MAX_VCPUS, PerVcpu, area, gs_base, mask, start};
use crate::xen::abi::{VcpuHvmContext, vcpuop};
use crate::xen::frames::{DomainType, domain_type};
use crate::xen::hypercall;

/// `EBUSY`: the vCPU is up.
const EBUSY: Errno = Errno(16);

/// What is kept of one vCPU.
struct Vcpu {
    /// What it runs when it starts: the address of a `fn(u32)`, or 0.
    entry: AtomicUsize,
    /// Whether Xen knows where it starts.
    initialised: AtomicBool,
    /// Its stack pointer while it is down and will come back where it was.
    stack_pointer: AtomicU64,
}

static VCPUS: PerVcpu<Vcpu> = PerVcpu::new(
    [const {
        PerVcpu::entry(Vcpu {
            entry: AtomicUsize::new(0),
            initialised: AtomicBool::new(false),
            stack_pointer: AtomicU64::new(0),
        })
    }; MAX_VCPUS],
);

/// Starts a vCPU that is down: it runs `entry(vcpu)` on a stack of its own, with upcalls held back.
/// If `entry` returns, the vCPU [parks](park).
///
/// # Errors
///
/// `EBUSY`: it is up. What Xen says: `ENOENT` where there is no such vCPU.
pub fn start(vcpu: u32, entry: fn(u32)) -> Result<(), Errno> {
    if hypercall::vcpu_is_up(vcpu)? {
        return Err(EBUSY);
    }
    // Release: pairs with the load in `run`. The hypercall that starts the vCPU orders it too.
    VCPUS.of(vcpu).entry.store(entry as usize, Release);
    initialise(vcpu, Start { pv: enter, pvh: enter_pvh, stack: stack::top(vcpu) as u64 })?;
    start::up(vcpu)
}

/// Takes the vCPU this runs on down, as it is; returns when another vCPU [brings it
/// back](bring_back), even if the domain was saved and restored in between. Hold no lock.
pub fn go_down() {
    let before = mask::disable();
    let vcpu = vcpu::current();
    leave(vcpu, VCPUS.of(vcpu).stack_pointer.as_ptr());
    if before {
        mask::enable();
    }
}

/// Lets a vCPU that [went down](go_down) go on.
///
/// # Errors
///
/// What Xen says: `ENOENT` where there is no such vCPU.
pub fn bring_back(vcpu: u32) -> Result<(), Errno> {
    // Relaxed: the vCPU is down, and the hypercalls by which it went and that was seen order it.
    let stack = VCPUS.of(vcpu).stack_pointer.load(Relaxed);
    initialise(vcpu, Start { pv: come_back, pvh: come_back_pvh, stack })?;
    // It goes on in `leave`, or in `come_back` as if it had.
    start::up(vcpu)
}

/// Says that Xen has forgotten `vcpu`, which is down: it saves nothing of such.
pub(super) fn forget(vcpu: u32) {
    // Relaxed: the vCPU is down.
    VCPUS.of(vcpu).initialised.store(false, Relaxed);
}

/// Where a vCPU starts.
struct Start {
    pv: extern "C" fn() -> !,
    pvh: extern "C" fn() -> !,
    stack: u64,
}

/// Tells Xen of a vCPU that is down, unless it knows already.
fn initialise(vcpu: u32, start: Start) -> Result<(), Errno> {
    let initialised = &VCPUS.of(vcpu).initialised;
    // Relaxed: whoever starts vCPUs does so from one place; two at a time would make Xen refuse.
    if initialised.load(Relaxed) {
        return Ok(());
    }
    // A new vCPU starts with upcalls held back.
    let flags = Area::of(vcpu).flags();
    let _ = flags.mask_upcalls();
    area::register(vcpu)?;
    let _ = flags.mask_upcalls();
    match domain_type() {
        DomainType::Pv => initialise_pv(vcpu, start)?,
        DomainType::Pvh => initialise_pvh(vcpu, start)?,
    }
    initialised.store(true, Relaxed);
    Ok(())
}

/// Calls `VCPUOP_down` for `vcpu`, this one, with all that a function must preserve on the stack,
/// and the stack pointer written to `stack_pointer`, so that [`come_back`] can return from here as
/// well.
#[unsafe(naked)]
extern "C" fn leave(vcpu: u32, stack_pointer: *mut u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rsi], rsp",
        "mov esi, edi",
        "mov edi, {down}",
        "xor edx, edx",
        "call xen_hypercall_page + {vcpu_op} * 32",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        down = const vcpuop::DOWN,
        vcpu_op = const sys::__HYPERVISOR_vcpu_op,
    );
}

/// Where a vCPU that went down in [`leave`] starts anew, on the stack it had then: it returns from
/// there.
#[unsafe(naked)]
extern "C" fn come_back() -> ! {
    naked_asm!("cld", "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp", "ret",);
}

/// As [`come_back`], in a PVH domain: with the vCPU's number in rdi, and nothing of the CPU set up.
#[unsafe(naked)]
extern "C" fn come_back_pvh() -> ! {
    naked_asm!(
        "cld",
        "mov r12, rsp", // restored by what follows
        "and rsp, -16",
        "call {set_up}",
        "mov rsp, r12",
        "jmp {come_back}",
        set_up = sym set_up_pvh,
        come_back = sym come_back,
    );
}

/// Tells Xen where a vCPU that is down starts.
fn initialise_pv(vcpu: u32, start: Start) -> Result<(), Errno> {
    let context = Box::<sys::vcpu_guest_context>::new(
        // SAFETY: integers and addresses only, for all of which zero is a value.
        unsafe { MaybeUninit::zeroed().assume_init() },
    );
    let mut context = context;
    context.flags = u64::from(sys::VGCF_IN_KERNEL);
    let top = stack::top(vcpu) as u64;
    context.user_regs.__bindgen_anon_8.rip = start.pv as usize as u64;
    context.user_regs.__bindgen_anon_10.rsp = start.stack;
    context.user_regs.__bindgen_anon_9.rflags = 1 << 12; // IOPL 1: where a PV kernel runs
    context.user_regs.cs = trap::FLAT_KERNEL_CS;
    context.user_regs.ss = trap::FLAT_KERNEL_SS;
    context.kernel_ss = u64::from(trap::FLAT_KERNEL_SS);
    context.kernel_sp = top;
    context.ctrlreg[3] = pv::page_table_frame() << 12;
    context.gs_base_kernel = gs_base::of(vcpu);
    trap::fill_context(&mut context);
    // SAFETY: the context leads into code made for it, on the vCPU's own stack with its GS base
    // set.
    unsafe { start::initialise_pv(vcpu, &mut context) }
}

/// Paging, write protection in kernel mode too, x87 as compiled code expects it, protected mode.
#[doc(hidden)]
pub const CR0: u32 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1;
/// Physical address extension, and SSE: prebuilt `core` uses it.
#[doc(hidden)]
pub const CR4: u32 = 1 << 5 | 1 << 9 | 1 << 10;
/// 64-bit mode and no-execute pages, as the entry code sets them.
#[doc(hidden)]
pub const EFER_LME_NXE: u32 = 1 << 8 | 1 << 11;
/// 64-bit mode is active: what a vCPU that starts there has in addition.
const EFER_LMA: u32 = 1 << 10;

/// Tells Xen where a vCPU of a PVH domain starts: in 64-bit mode, with our page tables.
fn initialise_pvh(vcpu: u32, start: Start) -> Result<(), Errno> {
    let context = VcpuHvmContext {
        mode: 1,
        rip: start.pvh as usize as u64,
        rsp: start.stack,
        rdi: u64::from(vcpu),
        rflags: 2,
        cr0: u64::from(CR0),
        cr3: pvh::page_table_root(),
        cr4: u64::from(CR4),
        efer: u64::from(EFER_LME_NXE | EFER_LMA),
        ..Default::default()
    };
    // SAFETY: the context leads into code made for it, on the vCPU's own stack.
    unsafe { start::initialise_pvh(vcpu, context) }
}

/// Where a vCPU of a PVH domain comes in. It has no descriptor tables and no GS base yet.
#[unsafe(naked)]
extern "C" fn enter_pvh() -> ! {
    naked_asm!("cld", "xor ebp, ebp", "call {prepare}", "ud2", prepare = sym prepare_pvh);
}

extern "C" fn prepare_pvh(vcpu: u32) -> ! {
    set_up_pvh(vcpu);
    run()
}

extern "C" fn set_up_pvh(vcpu: u32) {
    GsBase::write(VirtAddr::new(gs_base::of(vcpu)));
    descriptors::init_vcpu();
    if let Err(errno) = upcall::connect_pvh(vcpu, descriptors::UPCALL_VECTOR) {
        panic!("vCPU {vcpu} gets no upcall vector: {errno}");
    }
}

/// Where a started vCPU comes in, and where a parked one starts again, with an empty stack.
#[unsafe(naked)]
extern "C" fn enter() -> ! {
    naked_asm!("cld", "xor ebp, ebp", "call {run}", "ud2", run = sym run);
}

/// Puts the stack pointer to `top` and goes to [`enter`].
#[unsafe(naked)]
unsafe extern "C" fn enter_again(top: usize) -> ! {
    naked_asm!("mov rsp, rdi", "jmp {enter}", enter = sym enter);
}

extern "C" fn run() -> ! {
    let vcpu = vcpu::current();
    // Acquire: pairs with the store in `start`. Taken, so that it runs once a start.
    let entry = VCPUS.of(vcpu).entry.swap(0, Acquire);
    if entry != 0 {
        // SAFETY: only `start` stores anything but 0 here, and it stores a `fn(u32)`.
        let entry = unsafe { core::mem::transmute::<usize, fn(u32)>(entry) };
        entry(vcpu);
    }
    park()
}

/// Takes the vCPU this runs on down for good: its work is done. It may be [started](start()) again.
pub fn park() -> ! {
    let vcpu = vcpu::current();
    // Nobody serves upcalls of a vCPU that is down.
    let _ = Area::of(vcpu).flags().mask_upcalls();
    // It cannot fail for the vCPU itself. It returns when the vCPU is brought up again.
    let _ = hypercall::vcpu_down(vcpu);
    // SAFETY: the vCPU's own stack, of which nothing is used any more: this function never returns.
    unsafe { enter_again(stack::top(vcpu)) }
}
