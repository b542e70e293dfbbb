//! `linked_list_allocator`: its `LockedHeap` has a spinlock inside, so take `Heap`, without the feature
//! `use_spin`, and put it under a lock yourself. The joint is [`Heap`].

#[allow(dead_code)]
mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::{NonNull, null_mut};

use common::{Arena, Mutex};

/// The heap under the lock.
struct Heap(Mutex<linked_list_allocator::Heap>);

// SAFETY: the heap hands out each block once, and the lock lets one vCPU into it at a time.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller's promise.
            unsafe { self.0.lock().deallocate(block, layout) };
        }
    }
}

static ARENA: Arena = Arena::new();

// In a kernel: `#[global_allocator]`.
static HEAP: Heap = Heap(Mutex::new(linked_list_allocator::Heap::empty()));

fn main() {
    // SAFETY: the arena is this heap's alone, which is initialised once.
    unsafe { HEAP.0.lock().init(ARENA.bytes().cast(), Arena::SIZE) };
    common::contend(HEAP.0.lock(), |cpu| common::churn(&HEAP, cpu));
    assert_eq!(HEAP.0.lock().used(), 0);
    println!(
        "linked_list_allocator: {} vCPUs slept in the allocator's lock, and no block overlapped",
        common::VCPUS
    );
}

#[test]
fn runs() {
    main();
}
