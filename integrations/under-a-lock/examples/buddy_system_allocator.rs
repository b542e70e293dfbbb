//! `buddy_system_allocator`: its `LockedHeap` has a spinlock inside, so take `Heap`, without the feature
//! `use_spin`, and put it under a lock yourself. The joint is [`Heap`].

#[allow(dead_code)]
mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::{NonNull, null_mut};

use common::{Arena, Mutex};

/// The heap under the lock: blocks of up to 2^31 bytes.
struct Heap(Mutex<buddy_system_allocator::Heap<32>>);

// SAFETY: the heap hands out each block once, and the lock lets one vCPU into it at a time.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().alloc(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller's promise.
            unsafe { self.0.lock().dealloc(block, layout) };
        }
    }
}

static ARENA: Arena = Arena::new();

// In a kernel: `#[global_allocator]`.
static HEAP: Heap = Heap(Mutex::new(buddy_system_allocator::Heap::new()));

fn main() {
    // SAFETY: the arena is this heap's alone, which gets it once.
    unsafe { HEAP.0.lock().init(ARENA.bytes().addr(), Arena::SIZE) };
    common::contend(HEAP.0.lock(), |cpu| common::churn(&HEAP, cpu));
    assert_eq!(HEAP.0.lock().stats_alloc_actual(), 0);
    println!(
        "buddy_system_allocator: {} vCPUs slept in the allocator's lock, and no block overlapped",
        common::VCPUS
    );
}

#[test]
fn runs() {
    main();
}
