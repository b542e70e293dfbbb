//! The smallest kernel that uses `pvlock` on KVM: a PVH guest whose vCPUs run the experiment's workload.
//!
//! | file | |
//! |---|---|
//! | `boot.rs` | entry, page tables, the other vCPUs: yours is there already |
//! | `apic.rs`, `console.rs` | the local APIC and a serial port: as above |
//! | `kvm.rs` | what the machine is, its clock, who is preempted, the kick |
//! | **`lock.rs`** | **`pvlock` on KVM: what you add** |
//! | `run.rs` | one run of the experiment, from the command line to the report |
//!
//! Read `lock.rs`, then [`kvm::Machine::mode`]. The experiment itself (what the vCPUs do with the lock, the
//! check that it held, the report) is `lab-guest`'s, the same code that runs on Xen.
//!
//! What is left out here, and a kernel should have: handlers of exceptions, guard pages and W^X, more
//! vCPUs than APIC ids of one byte.

#![no_std]
#![no_main]

extern crate alloc;

mod apic;
mod boot;
mod console;
mod kvm;
mod lock;
#[path = "../../example-kernel/src/mem.rs"]
mod mem;
mod run;

use core::arch::asm;
use core::fmt::Write;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering};

use console::Console;
use linked_list_allocator::LockedHeap;

/// What the report and the shares of the vCPUs need.
const HEAP: usize = 4 << 20;

static mut HEAP_MEMORY: [MaybeUninit<u8>; HEAP] = [MaybeUninit::uninit(); HEAP];

#[global_allocator]
static ALLOCATOR: LockedHeap = LockedHeap::empty();

/// Each vCPU's number, where its GS base points.
static NUMBERS: [AtomicU64; boot::MAX_VCPUS] = [const { AtomicU64::new(0) }; boot::MAX_VCPUS];

const GS_BASE: u32 = 0xc000_0101;

/// The number of the vCPU this runs on.
#[inline]
fn current_vcpu() -> usize {
    let number;
    // SAFETY: the GS base of a vCPU points to its number before anything else runs on it.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) number, options(pure, readonly, nostack, preserves_flags))
    };
    number
}

/// Where every vCPU comes in.
extern "C" fn start(vcpu: u32) -> ! {
    let number = &NUMBERS[vcpu as usize];
    // Relaxed: this vCPU's own.
    number.store(u64::from(vcpu), Ordering::Relaxed);
    kvm::write_msr(GS_BASE, core::ptr::from_ref(number) as u64);
    if vcpu == 0 {
        let memory = &raw mut HEAP_MEMORY;
        // SAFETY: vCPU 0 is alone and comes here once; nobody else names this memory.
        unsafe { ALLOCATOR.lock().init(memory.cast(), HEAP) };
        boot::init_idt();
        boot::place_trampoline();
    }
    let machine = kvm::Machine::ask();
    kvm::init(&machine, vcpu as usize);
    boot::load_idt();
    apic::init();
    apic::start_tick();
    if vcpu == 0 {
        run::first_vcpu(&machine)
    }
    run::other_vcpu()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // Writing to the console does not fail.
    let _ = writeln!(Console, "guest failure: {info}");
    console::exit(1)
}
