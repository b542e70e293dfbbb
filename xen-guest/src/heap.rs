//! The global allocator: a fixed piece of the image, handed to a kept allocator crate.
//!
//! This file owns that memory, and the switch by which a vCPU is served from an [`Arena`] instead. It
//! must not be used in interrupt handlers or while the lock under test is held: it has a plain
//! spinlock of its own.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, Ordering};

use crossbeam_utils::CachePadded;
use linked_list_allocator::Heap as FreeList;
use spin::{Mutex, Once};

use crate::percpu::{MAX_VCPUS, current_vcpu};

/// Bytes of heap.
pub const SIZE: usize = 4 * 1024 * 1024;

#[repr(C, align(4096))]
struct Memory(UnsafeCell<[u8; SIZE]>);

// SAFETY: reached only through the one free list made of it, under its lock.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; SIZE]));
static FREE: Mutex<FreeList> = Mutex::new(FreeList::empty());

/// Another allocator, behind a lock of its own choice: for running a lock as an allocator's lock.
///
/// # Safety
///
/// `allocate` returns null, or memory that fits the layout and that it hands out to nobody else
/// until it was deallocated. `contains` is true for such memory and for no other.
pub unsafe trait Arena: Send + Sync {
    /// Whether it handed this out.
    fn contains(&self, memory: *mut u8) -> bool;

    /// Memory for `layout`, on behalf of `vcpu`, which runs this; null if there is none.
    fn allocate(&self, vcpu: u32, layout: Layout) -> *mut u8;

    /// Takes memory back, on behalf of `vcpu`, which runs this.
    ///
    /// # Safety
    ///
    /// It came from `allocate` of this arena with the same layout, and is not used any more.
    unsafe fn deallocate(&self, vcpu: u32, memory: NonNull<u8>, layout: Layout);
}

static ARENA: Once<&'static dyn Arena> = Once::new();

/// Whether each vCPU is served from the arena. A vCPU reads and writes its own entry only.
static SERVED: [CachePadded<AtomicBool>; MAX_VCPUS] =
    [const { CachePadded::new(AtomicBool::new(false)) }; MAX_VCPUS];

/// Makes `arena` the one that vCPUs can be served from. The first call counts.
pub fn install_arena(arena: &'static dyn Arena) {
    ARENA.call_once(|| arena);
}

/// Serves `vcpu`, which runs this, from the arena from now on, or no longer. Memory goes back to where
/// it came from in any case.
pub fn serve_from_arena(vcpu: u32, on: bool) {
    // Relaxed: only this vCPU uses the entry.
    SERVED[vcpu as usize].store(on, Ordering::Relaxed);
}

/// The arena, if it is to serve the vCPU this runs on, and that vCPU.
fn serving() -> Option<(&'static dyn Arena, u32)> {
    let arena = *ARENA.get()?;
    let vcpu = current_vcpu();
    // Relaxed: as in `serve_from_arena`.
    SERVED[vcpu as usize].load(Ordering::Relaxed).then_some((arena, vcpu))
}

/// The allocator, for `#[global_allocator]`. All values share the one heap.
#[derive(Debug)]
pub struct Heap;

// SAFETY: memory comes from one free list that never hands out a byte twice, whose lock makes its
// calls one at a time, or from an arena, which promises the same. It goes back to where it came from.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some((arena, vcpu)) = serving() {
            return arena.allocate(vcpu, layout);
        }
        let mut free = FREE.lock();
        if free.size() == 0 {
            // SAFETY: done once, under the lock, with memory nobody else refers to.
            unsafe { free.init(MEMORY.0.get().cast(), SIZE) };
        }
        free.allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if let Some(arena) = ARENA.get()
            && arena.contains(memory)
            && let Some(memory) = NonNull::new(memory)
        {
            // SAFETY: the arena handed it out; the layout is the caller's promise.
            unsafe { arena.deallocate(current_vcpu(), memory, layout) };
        } else if let Some(memory) = NonNull::new(memory) {
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
