//! The image's global allocator: the kernel's heap, or for a vCPU that says so an [`Arena`] of the
//! experiment.
//!
//! This file owns the switch between the two. It must not be used while the lock under test is
//! held: the heap has a plain spinlock of its own.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use crossbeam_utils::CachePadded;
use spin::Once;
use xen_guest::kernel::heap::Heap;
use xen_guest::vcpu::{self, MAX_VCPUS};

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

/// Serves `vcpu`, which runs this, from the arena from now on, or no longer. Memory goes back to
/// where it came from in any case.
pub fn serve_from_arena(vcpu: u32, on: bool) {
    // Relaxed: only this vCPU uses the entry.
    SERVED[vcpu as usize].store(on, Ordering::Relaxed);
}

/// The arena, if it is to serve the vCPU this runs on, and that vCPU.
fn serving() -> Option<(&'static dyn Arena, u32)> {
    let arena = *ARENA.get()?;
    let vcpu = vcpu::current();
    // Relaxed: as in `serve_from_arena`.
    SERVED[vcpu as usize].load(Ordering::Relaxed).then_some((arena, vcpu))
}

/// The allocator, for `#[global_allocator]`.
#[derive(Debug)]
pub struct RoutedHeap;

// SAFETY: memory comes from the heap or from an arena, each of which promises what is asked here.
// It goes back to where it came from.
unsafe impl GlobalAlloc for RoutedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match serving() {
            Some((arena, vcpu)) => arena.allocate(vcpu, layout),
            // SAFETY: the caller's promise.
            None => unsafe { Heap.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if let Some(arena) = ARENA.get()
            && arena.contains(memory)
            && let Some(memory) = NonNull::new(memory)
        {
            // SAFETY: the arena handed it out; the layout is the caller's promise.
            unsafe { arena.deallocate(vcpu::current(), memory, layout) };
        } else {
            // SAFETY: the heap handed it out; the layout is the caller's promise.
            unsafe { Heap.dealloc(memory, layout) };
        }
    }
}
