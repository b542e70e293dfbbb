//! What a kernel calls before it has a heap allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use xen_guest::daemons::console;
use xen_guest::events::toolstack;
use xen_guest::glue::Mutex;
use xen_guest::vcpu::{Area, identity};
use xen_guest::xen::{frames, hypercall};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator, counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// ArceOS, which has no heap yet when it asks, ended in "memory allocation of 12 bytes failed": the
/// signature was compared as a vector.
#[test]
fn finding_xen_allocates_nothing() {
    allocates_nothing(|| {
        hypercall::cpuid_base();
    });
}

#[test]
fn identity_areas_console_and_an_uncontended_lock_allocate_nothing() {
    static LOCK: Mutex<u32> = Mutex::new(0);
    allocates_nothing(|| {
        // SAFETY: one thread asks.
        unsafe { identity::identify_by(|| 0) };
        let area = Area::of(identity::current());
        let _ = area.flags().mask_upcalls();
        frames::frame_of(core::ptr::from_ref(area) as usize);
        toolstack::set_console(None);
        console::write(b"nobody reads it");
        console::read(&mut [0; 8]);
        *LOCK.lock() += 1;
    });
}

#[track_caller]
fn allocates_nothing(call: impl FnOnce()) {
    let before = ALLOCATIONS.get();
    call();
    assert_eq!(ALLOCATIONS.get(), before);
}
