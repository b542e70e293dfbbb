//! The smallest kernel that uses `pvlock`: a PVH guest of Xen whose vCPUs count under one lock.
//!
//! | file | |
//! |---|---|
//! | `boot.rs` | entry, page tables, the other vCPUs: yours is there already |
//! | `xen.rs` | hypercalls, shared page, clock: `evtchn` asks for two of the former |
//! | **`lock.rs`** | **`pvlock` on `evtchn`: what you add** |
//! | `console.rs`, `mem.rs` | what a freestanding program needs besides |
//!
//! Read `lock.rs`, then [`start`]. What is left out here, and a kernel should have: guard pages and
//! W^X, an IDT, suspend, more than 32 vCPUs. `xen-guest` next door has all of it.

#![no_std]
#![no_main]

mod boot;
mod console;
mod lock;
mod mem;
mod xen;

use core::arch::asm;
use core::fmt::Write;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use console::Console;
use lock::Mutex;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

/// How often each vCPU takes the lock at least; it goes on until all have slept and been kicked
/// awake.
const AT_LEAST: u64 = 200;
/// How often at most: a kernel whose kicks wake nobody ends too, and says so.
const AT_MOST: u64 = 20_000;

/// What the lock protects: read, held on to for a while, written back one higher.
static COUNTER: Mutex<u64> = Mutex::new(0);

/// vCPUs there are, and those that are done.
static VCPUS: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);

/// Acquisitions of those that are done.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Each vCPU's number, where its GS base points.
static NUMBERS: [AtomicU64; boot::MAX_VCPUS] = [const { AtomicU64::new(0) }; boot::MAX_VCPUS];

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
    GsBase::write(VirtAddr::from_ptr(number));
    if vcpu == 0 {
        main()
    }
    count();
    xen::vcpu_down(vcpu)
}

/// What vCPU 0 does.
fn main() -> ! {
    // There is no console yet to say a failure of the first on: Xen sees a crash.
    xen::init().expect("the shared page can be mapped");
    console::init().expect("the domain has a console");
    lock::bind(0).expect("vCPU 0 gets a port");
    let vcpus = (0..boot::MAX_VCPUS as u32).take_while(|vcpu| xen::has_vcpu(*vcpu)).count() as u32;
    // Relaxed: starting a vCPU hands it over.
    VCPUS.store(vcpus, Ordering::Relaxed);
    for vcpu in 1..vcpus {
        // Before the vCPU can wait.
        lock::bind(vcpu).expect("the vCPU gets a port");
        boot::start_vcpu(vcpu).expect("the vCPU starts");
    }
    count();
    // Acquire: pairs with the Release in `count`, and hands over `TAKEN` and the counts.
    while DONE.load(Ordering::Acquire) < vcpus {
        xen::yield_now();
    }
    report(vcpus)
}

/// Takes the lock again and again, with all the others.
fn count() {
    let mut taken = 0;
    let vcpus = VCPUS.load(Ordering::Relaxed);
    // A vCPU that is alone has nobody to wait for.
    while taken < AT_LEAST || (vcpus > 1 && taken < AT_MOST && sleepers() < vcpus) {
        let mut counter = COUNTER.lock();
        let before = core::hint::black_box(*counter);
        // Long enough for the others to go to sleep.
        let end = xen::system_time() + 20_000;
        while xen::system_time() < end {
            core::hint::spin_loop();
        }
        *counter = before + 1;
        taken += 1;
    }
    TAKEN.fetch_add(taken, Ordering::Relaxed);
    // Release: pairs with the load in `main`.
    DONE.fetch_add(1, Ordering::Release);
}

/// vCPUs that have slept in a wait and were kicked awake.
fn sleepers() -> u32 {
    let slept = |vcpu: &u32| {
        let counts = lock::counts(*vcpu);
        counts.polls > 0 && counts.kicked > counts.latched
    };
    (0..VCPUS.load(Ordering::Relaxed)).filter(slept).count() as u32
}

fn report(vcpus: u32) -> ! {
    let (counter, taken) = (*COUNTER.lock(), TAKEN.load(Ordering::Relaxed));
    for vcpu in 0..vcpus {
        let counts = lock::counts(vcpu);
        // Writing to the console does not fail, here and below.
        let _ = writeln!(
            Console,
            "vCPU {vcpu}: {} polls, {} kicks, {} timeouts",
            counts.polls, counts.kicked, counts.timed_out
        );
    }
    let _ = write!(Console, "example: counter {counter} of {taken}; ");
    let _ = if vcpus == 1 {
        writeln!(
            Console,
            "one vCPU never waits for a lock, so it never slept; give the domain more"
        )
    } else {
        writeln!(Console, "{} of {vcpus} vCPUs slept and were kicked awake", sleepers())
    };
    console::flush();
    let exact = counter == taken;
    xen::shutdown(if exact { xen_sys::SHUTDOWN_poweroff } else { xen_sys::SHUTDOWN_crash })
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Console, "example: {info}");
    console::flush();
    xen::shutdown(xen_sys::SHUTDOWN_crash)
}
