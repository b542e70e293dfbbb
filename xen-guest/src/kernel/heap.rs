//! The global allocator: a fixed piece of the image, handed to a kept allocator crate.
//!
//! This file owns that memory. It must not be used in interrupt handlers: it has a plain spinlock
//! of its own.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};

use linked_list_allocator::Heap as FreeList;
use spin::Mutex;

/// Bytes of heap.
pub const SIZE: usize = 4 * 1024 * 1024;

#[repr(C, align(4096))]
struct Memory(UnsafeCell<[u8; SIZE]>);

// SAFETY: reached only through the one free list made of it, under its lock.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; SIZE]));
static FREE: Mutex<FreeList> = Mutex::new(FreeList::empty());

/// The allocator, for `#[global_allocator]`. All values share the one heap.
#[derive(Debug)]
pub struct Heap;

// SAFETY: memory comes from one free list that never hands out a byte twice, whose lock makes its
// calls one at a time.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut free = FREE.lock();
        if free.size() == 0 {
            // SAFETY: done once, under the lock, with memory nobody else refers to.
            unsafe { free.init(MEMORY.0.get().cast(), SIZE) };
        }
        free.allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if let Some(memory) = NonNull::new(memory) {
            // SAFETY: the caller promises that `alloc` returned it for this layout.
            unsafe { FREE.lock().deallocate(memory, layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_freed_can_be_had_again_and_too_much_is_null() {
        let layout = Layout::from_size_align(SIZE / 2, 64).unwrap();
        for _ in 0..10 {
            // SAFETY: the layout is not empty; the memory is freed with the same layout.
            let memory = unsafe { Heap.alloc(layout) };
            assert!(!memory.is_null() && (memory as usize).is_multiple_of(64));
            // SAFETY: as above.
            let second = unsafe { Heap.alloc(Layout::from_size_align(SIZE, 8).unwrap()) };
            assert!(second.is_null());
            // SAFETY: as above.
            unsafe { Heap.dealloc(memory, layout) };
        }
    }
}
