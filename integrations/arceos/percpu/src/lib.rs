//! ArceOS' `percpu` where the kernel is compiled with the host's toolchain: the same names as
//! `percpu` 0.2.3-preview.1, for `[patch.crates-io]`. The macro is theirs.
//!
//! Theirs asks the target whether it is a test on Linux or a kernel, and allocates memory and makes
//! system calls in the first case. Here the target is Linux' and the programme is a kernel.
//!
//! This crate owns the areas of the CPUs (the section `.percpu`, one copy a CPU, see `link.ld`) and
//! the GS base, which leads to each CPU's own.
#![no_std]

// For the macros, which name the crate they are used from.
extern crate self as percpu;

use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

pub use percpu_macros::def_percpu;
use percpu_macros::percpu_symbol_vma;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

#[doc(hidden)]
pub mod __priv {
    #[cfg(feature = "preempt")]
    pub use kernel_guard::NoPreempt as NoPreemptGuard;
}

// From link.ld. The last two are offsets, not addresses, and are read by `percpu_symbol_vma` alone.
unsafe extern "C" {
    static _percpu_start: u8;
    static _percpu_end: u8;
    fn _percpu_load_start();
    fn _percpu_load_end();
}

/// Where this CPU's area is: what the macros read.
#[unsafe(no_mangle)]
#[def_percpu]
static SELF_PTR: usize = 0;

/// Distance from one area to the next.
fn stride() -> usize {
    percpu_area_size().next_multiple_of(64)
}

/// How many areas there are.
pub fn percpu_area_num() -> usize {
    (&raw const _percpu_end as usize - &raw const _percpu_start as usize) / stride()
}

/// Bytes of an area.
pub fn percpu_area_size() -> usize {
    percpu_symbol_vma!(_percpu_load_end) - percpu_symbol_vma!(_percpu_load_start)
}

/// Address of the area of CPU `cpu_id`.
pub fn percpu_area_base(cpu_id: usize) -> usize {
    &raw const _percpu_start as usize + cpu_id * stride()
}

/// Gives every CPU a copy of the first one's area: once, before any other CPU runs. Returns how many
/// areas were made, 0 the second time.
pub fn init() -> usize {
    static DONE: AtomicBool = AtomicBool::new(false);
    // Relaxed: one CPU runs.
    if DONE.swap(true, Relaxed) {
        return 0;
    }
    let first = percpu_area_base(0) as *const u8;
    for cpu in 1..percpu_area_num() {
        // SAFETY: areas do not overlap, link.ld reserves this many, and nobody uses them yet.
        unsafe {
            first.copy_to_nonoverlapping(percpu_area_base(cpu) as *mut u8, percpu_area_size())
        };
    }
    percpu_area_num()
}

/// Where this CPU's area is.
pub fn read_percpu_reg() -> usize {
    GsBase::read().as_u64() as usize
}

/// Says where this CPU's area is.
///
/// # Safety
///
/// There is an area, and no other CPU uses it.
pub unsafe fn write_percpu_reg(area: usize) {
    GsBase::write(VirtAddr::new(area as u64));
    // SAFETY: the area is this CPU's own, and this is its start.
    unsafe { SELF_PTR.write_current_raw(area) };
}

/// Gives this CPU, whose number is `cpu_id`, its area.
pub fn init_percpu_reg(cpu_id: usize) {
    // SAFETY: the area of that number is reserved for this CPU.
    unsafe { write_percpu_reg(percpu_area_base(cpu_id)) }
}
