//! The smallest kernel that uses `pvlock` on KVM: a PVH guest whose vCPUs run the experiment's workload.
//!
//! | file | |
//! |---|---|
//! | `boot.rs` | entry, page tables, the other vCPUs: yours is there already |
//! | `cpu.rs` | which vCPU this is, and its registers: as above |
//! | `apic.rs`, `console.rs` | the local APIC and a serial port: as above |
//! | `kvm.rs` | what the machine is, its clock, what is stolen, the kick |
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
mod cpu;
mod kvm;
mod lock;
#[path = "../../example-kernel/src/mem.rs"]
mod mem;
mod run;

use core::fmt::Write;
use core::mem::MaybeUninit;

use console::Console;
use linked_list_allocator::LockedHeap;

/// What the report and the shares of the vCPUs need.
const HEAP: usize = 4 << 20;

static mut HEAP_MEMORY: [MaybeUninit<u8>; HEAP] = [MaybeUninit::uninit(); HEAP];

#[global_allocator]
static ALLOCATOR: LockedHeap = LockedHeap::empty();

/// Where every vCPU comes in.
extern "C" fn start(vcpu: u32) -> ! {
    cpu::become_vcpu(vcpu);
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
