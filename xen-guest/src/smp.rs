//! vCPUs: starting, parking, sleeping.
//!
//! This file owns how a vCPU comes into Rust code and how it leaves. It knows nothing of what it runs.

use core::arch::naked_asm;
use core::mem::MaybeUninit;
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use alloc::boxed::Box;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;
use xen_sys as sys;

use crate::abi::{self, RegisterVcpuInfo};
use crate::boot::{pv, pvh};
use crate::hypercall::{self, Xen};
use crate::machine::{DomainType, Machine};
use crate::percpu::{self, PerCpu};
use crate::{clock, hvm, stack, timer, trap, upcall};
use evtchn::{Errno, Port};

/// `EBUSY`: the vCPU is up.
const EBUSY: Errno = Errno(16);

/// See [`Machine::start_vcpu`].
pub(crate) fn start(machine: &Machine, vcpu: u32, entry: fn(u32)) -> Result<(), Errno> {
    if vcpu >= machine.vcpus() {
        return Err(Errno::EINVAL);
    }
    if hypercall::vcpu_is_up(vcpu)? {
        return Err(EBUSY);
    }
    let area = PerCpu::of(vcpu);
    // Release: pairs with the load in `run`. The hypercall that starts the vCPU orders it too.
    area.entry.store(entry as usize, Release);
    let start = Start { pv: enter, pvh: enter_pvh, stack: stack::top(vcpu) as u64 };
    initialise(machine, vcpu, start)?;
    // SAFETY: the operation takes no argument; the vCPU starts where its context says, or goes on
    // in `park`.
    unsafe { hypercall::vcpu_op(abi::vcpuop::UP, vcpu, &mut ()) }.map(drop)
}

/// Takes the vCPU this runs on down, as it is; returns when another vCPU [brings it back](bring_back),
/// even if the domain was saved and restored in between. Hold no lock.
pub fn go_down() {
    let before = upcall::disable();
    leave(percpu::current_vcpu());
    if before {
        upcall::enable();
    }
}

/// Lets a vCPU that [went down](go_down) go on.
///
/// # Errors
///
/// What Xen says: `ENOENT` where there is no such vCPU.
pub fn bring_back(machine: &Machine, vcpu: u32) -> Result<(), Errno> {
    // Relaxed: the vCPU is down, and the hypercalls by which it went and that was seen order it.
    let stack = PerCpu::of(vcpu).stack_pointer.load(Relaxed);
    initialise(machine, vcpu, Start { pv: come_back, pvh: come_back_pvh, stack })?;
    // SAFETY: the operation takes no argument; the vCPU goes on in `leave`, or in `come_back` as if it had.
    unsafe { hypercall::vcpu_op(abi::vcpuop::UP, vcpu, &mut ()) }.map(drop)
}

/// Where a vCPU starts.
struct Start {
    pv: extern "C" fn() -> !,
    pvh: extern "C" fn() -> !,
    stack: u64,
}

/// Tells Xen of a vCPU that is down, unless it knows already.
fn initialise(machine: &Machine, vcpu: u32, start: Start) -> Result<(), Errno> {
    let area = PerCpu::of(vcpu);
    // Relaxed: whoever starts vCPUs does so from one place; two at a time would make Xen refuse.
    if area.initialised.load(Relaxed) {
        return Ok(());
    }
    let gs = PerCpu::prepare(vcpu);
    // A new vCPU starts with upcalls held back.
    let _ = area.flags().mask_upcalls();
    register_vcpu_info(vcpu)?;
    let _ = area.flags().mask_upcalls();
    trap::register_runstate(vcpu)?;
    match machine.domain_type() {
        DomainType::Pv => initialise_pv(vcpu, gs, start)?,
        DomainType::Pvh => initialise_pvh(vcpu, start)?,
    }
    timer::stop_periodic(vcpu);
    area.initialised.store(true, Relaxed);
    Ok(())
}

/// Calls `VCPUOP_down` for `vcpu`, this one, with all that a function must preserve on the stack, and the
/// stack pointer noted, so that [`come_back`] can return from here as well.
#[unsafe(naked)]
extern "C" fn leave(vcpu: u32) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov gs:[{stack_pointer}], rsp",
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
        stack_pointer = const offset_of!(PerCpu, stack_pointer),
        down = const abi::vcpuop::DOWN,
        vcpu_op = const sys::__HYPERVISOR_vcpu_op,
    );
}

/// Where a vCPU that went down in [`leave`] starts anew, on the stack it had then: it returns from there.
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
fn initialise_pv(vcpu: u32, gs: u64, start: Start) -> Result<(), Errno> {
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
    context.gs_base_kernel = gs;
    trap::fill_context(&mut context);
    // SAFETY: the context leads into code made for it, on the vCPU's own stack with its GS base set;
    // Xen copies it.
    unsafe { hypercall::vcpu_op(abi::vcpuop::INITIALISE, vcpu, &mut *context) }.map(drop)
}

/// Paging, write protection in kernel mode too, x87 as compiled code expects it, protected mode.
pub const CR0: u32 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1;
/// Physical address extension, and SSE: prebuilt `core` uses it.
pub const CR4: u32 = 1 << 5 | 1 << 9 | 1 << 10;
/// 64-bit mode and no-execute pages, as the entry code sets them.
pub const EFER_LME_NXE: u32 = 1 << 8 | 1 << 11;
/// 64-bit mode is active: what a vCPU that starts there has in addition.
const EFER_LMA: u32 = 1 << 10;

/// Tells Xen where a vCPU of a PVH domain starts: in 64-bit mode, with our page tables.
fn initialise_pvh(vcpu: u32, start: Start) -> Result<(), Errno> {
    let mut context = abi::VcpuHvmContext {
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
    // SAFETY: the context leads into code made for it, on the vCPU's own stack; Xen copies it.
    unsafe { hypercall::vcpu_op(abi::vcpuop::INITIALISE, vcpu, &mut context) }.map(drop)
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
    GsBase::write(VirtAddr::from_ptr(PerCpu::of(vcpu)));
    hvm::init_vcpu();
    if let Err(errno) = hvm::init_upcalls(vcpu) {
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
    let area = PerCpu::current();
    // Acquire: pairs with the store in `start`. Taken, so that it runs once a start.
    let entry = area.entry.swap(0, Acquire);
    if entry != 0 {
        // SAFETY: only `start` stores anything but 0 here, and it stores a `fn(u32)`.
        let entry = unsafe { core::mem::transmute::<usize, fn(u32)>(entry) };
        entry(percpu::current_vcpu());
    }
    park()
}

/// See [`Machine::vcpu_park`].
pub(crate) fn park() -> ! {
    let vcpu = percpu::current_vcpu();
    // Nobody serves upcalls of a vCPU that is down.
    let _ = PerCpu::current().flags().mask_upcalls();
    // It cannot fail for the vCPU itself. It returns when the vCPU is brought up again.
    let _ = hypercall::vcpu_down(vcpu);
    // SAFETY: the vCPU's own stack, of which nothing is used any more: this function never returns.
    unsafe { enter_again(stack::top(vcpu)) }
}

/// See [`Machine::sleep_until`].
pub(crate) fn sleep_until(ns: u64) {
    while clock::now() < ns {
        // A port of one's own that nobody sends to: only the deadline ends the poll, or an upcall.
        match sleep_port().and_then(|port| evtchn::poll(&Xen, port, ns)) {
            Ok(()) => {}
            // No port: time passes anyway.
            Err(_) => hypercall::sched_yield(),
        }
    }
}

/// The port this vCPU sleeps on, bound at its first sleep.
fn sleep_port() -> Result<Port, Errno> {
    let area = PerCpu::current();
    // Relaxed: only this vCPU uses it.
    if let Some(port) = Port::new(area.sleep_port.load(Relaxed)) {
        return Ok(port);
    }
    let port = evtchn::bind_ipi(&Xen, percpu::current_vcpu())?;
    area.sleep_port.store(port.get(), Relaxed);
    Ok(port)
}

/// Tells Xen to use the area's `vcpu_info`, where the [clock] is read. For the vCPU this runs
/// on, or one that is down.
///
/// # Errors
///
/// What Xen says: `EINVAL` for a vCPU that has one registered already.
pub fn register_vcpu_info(vcpu: u32) -> Result<(), Errno> {
    let address = core::ptr::from_ref(&PerCpu::of(vcpu).info) as usize;
    let mut argument = RegisterVcpuInfo {
        frame: pv::machine_frame(address),
        offset: (address % abi::PAGE_SIZE) as u32,
        rsvd: 0,
    };
    // SAFETY: the area is static, aligned so that it crosses no page, and all atomics.
    unsafe { hypercall::vcpu_op(abi::vcpuop::REGISTER_VCPU_INFO, vcpu, &mut argument) }.map(drop)
}
