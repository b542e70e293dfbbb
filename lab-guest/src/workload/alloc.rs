//! The workload `alloc`: the lock under test as the lock of a real allocator, every vCPU
//! allocating.
//!
//! Owns the arena, a free list of the `linked_list_allocator` crate behind the lock under test, and
//! the loop that fills and frees blocks. While a vCPU is in that loop the guest's global allocator
//! serves it from the arena (see [`crate::locks::heap`]), so that each `Box` made or dropped is one
//! acquisition. A block handed out twice would show in its contents.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::fmt::{self, Write};
use core::ops::Range;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use experiment::Limit;
use linked_list_allocator::Heap as FreeList;
use xen_guest::markers;

use super::rng::Stream;
use super::work::work;
use super::{Plan, Share, Vcpu, WaitCounts};
use crate::locks::heap::Arena;
use crate::locks::{Family, TestedLock};

/// Blocks a vCPU holds at a time.
const BLOCKS: usize = 16;
/// The largest block, in bytes.
const LARGEST: u64 = 512;
/// Arena for each vCPU: twice what its blocks can take, so that it never runs out.
const ARENA_PER_VCPU: usize = 2 * BLOCKS * (LARGEST as usize + 32);

/// The arena of one run.
pub struct TestedArena<F: Family> {
    free: CachePadded<F::Lock<Counted>>,
    memory: Range<usize>,
    /// When each vCPU came to own the lock last, by its own clock.
    owned_at: Vec<CachePadded<AtomicU64>>,
    now: fn() -> u64,
}

struct Counted {
    list: FreeList,
    /// Calls so far; exact only under exclusion.
    calls: u64,
}

impl<F: Family> TestedArena<F> {
    /// An arena for `vcpus` vCPUs, with memory that is never given back. `now` is the clock of the
    /// vCPU that calls it.
    pub fn new(vcpus: u32, now: fn() -> u64) -> Self {
        let memory = vec![0u128; vcpus as usize * ARENA_PER_VCPU / size_of::<u128>()].leak();
        let size = size_of_val(memory);
        let start = memory.as_mut_ptr().cast::<u8>();
        let mut list = FreeList::empty();
        // SAFETY: the memory is leaked, so it is this list's for ever.
        unsafe { list.init(start, size) };
        TestedArena {
            free: CachePadded::new(F::Lock::new(Counted { list, calls: 0 })),
            memory: start.addr()..start.addr() + size,
            owned_at: (0..vcpus).map(|_| CachePadded::default()).collect(),
            now,
        }
    }

    /// How often the free list was changed, when every vCPU is done.
    pub fn counter(&self) -> u64 {
        self.free.with(|free| free.calls)
    }

    /// See [`TestedLock::describe`].
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        self.free.describe(out)
    }

    fn with<R>(&self, vcpu: u32, section: impl FnOnce(&mut FreeList) -> R) -> R {
        let id = markers::lock_id(&*self.free);
        let before = markers::acquiring(vcpu, id);
        let result = self.free.with(|free| {
            // Relaxed: only this vCPU uses its entry.
            self.owned_at[vcpu as usize].store((self.now)(), Ordering::Relaxed);
            let calls = *core::hint::black_box(&mut free.calls);
            let result = section(&mut free.list);
            *core::hint::black_box(&mut free.calls) = calls + 1;
            result
        });
        markers::acquiring(vcpu, before);
        result
    }
}

// SAFETY: one free list, changed only under its lock, never hands out a byte twice; its memory is
// its own. A lock that does not exclude breaks this promise: that is the fault the workload looks
// for.
unsafe impl<F: Family> Arena for TestedArena<F> {
    fn contains(&self, memory: *mut u8) -> bool {
        self.memory.contains(&memory.addr())
    }

    fn allocate(&self, vcpu: u32, layout: Layout) -> *mut u8 {
        self.with(vcpu, |list| list.allocate_first_fit(layout)).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn deallocate(&self, vcpu: u32, memory: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise is the free list's condition.
        self.with(vcpu, |list| unsafe { list.deallocate(memory, layout) });
    }
}

/// Fills and frees blocks on one vCPU, from its start to its end. `route` turns serving from the
/// arena on and off for the calling vCPU.
pub fn churn<F: Family>(
    arena: &TestedArena<F>,
    vcpu: &impl Vcpu,
    plan: &Plan,
    progress: &AtomicU64,
    route: impl Fn(bool),
) -> Share {
    let mut churn = Churn {
        owned_at: &arena.owned_at[vcpu.number() as usize],
        lock: markers::lock_id(&*arena.free),
        vcpu,
        progress,
        share: Share::default(),
    };
    let mut rng = Stream::new(plan.seed, vcpu.number());
    let mut blocks: [Option<Box<[u8]>>; BLOCKS] = Default::default();
    let started = vcpu.now();
    // Two acquisitions a block, so an even number.
    let (most, end) = match plan.limit {
        Limit::Acquisitions(n) => (n & !1, u64::MAX),
        Limit::Duration(time) => (u64::MAX, started.saturating_add(time.ns())),
    };
    route(true);
    let mut live = 0;
    while churn.share.acquisitions + live < most && vcpu.now() < end && vcpu.proceed() {
        work(rng.of(plan.outside));
        let block = &mut blocks[rng.below(BLOCKS as u64) as usize];
        if let Some(old) = block.take() {
            churn.free(old, vcpu.number());
            live -= 1;
        } else if churn.share.acquisitions + live + 2 <= most {
            *block = Some(churn.fill(1 + rng.below(LARGEST) as usize, vcpu.number()));
            live += 1;
        }
    }
    for old in blocks.iter_mut().filter_map(Option::take) {
        churn.free(old, vcpu.number());
    }
    route(false);
    churn.share.elapsed_ns = vcpu.now().saturating_sub(started);
    churn.share
}

struct Churn<'a, V> {
    owned_at: &'a AtomicU64,
    lock: u32,
    vcpu: &'a V,
    progress: &'a AtomicU64,
    share: Share,
}

impl<V: Vcpu> Churn<'_, V> {
    /// A block that says in every byte whose it is.
    fn fill(&mut self, size: usize, mark: u32) -> Box<[u8]> {
        self.timed(|| vec![mark as u8; size].into_boxed_slice())
    }

    fn free(&mut self, block: Box<[u8]>, mark: u32) {
        assert!(
            block.iter().all(|byte| *byte == mark as u8),
            "mutual exclusion is broken: a block of vCPU {mark} was handed out twice"
        );
        self.timed(|| drop(core::hint::black_box(block)));
    }

    /// Does what takes the lock once, and records it.
    fn timed<R>(&mut self, acquire: impl FnOnce() -> R) -> R {
        let before = self.vcpu.wait_counts();
        let asked = self.vcpu.now();
        let result = acquire();
        // Relaxed: only this vCPU uses the entry.
        let owned = self.owned_at.load(Ordering::Relaxed);
        self.share.latency.record(owned.saturating_sub(asked));
        self.share.acquisitions += 1;
        // Relaxed: a number to look at.
        self.progress.store(self.share.acquisitions, Ordering::Relaxed);
        let waited: WaitCounts = self.vcpu.wait_counts().since(before);
        if waited.waits > 0 {
            self.share.blocked_acquisitions += 1;
            self.share.waits.waits += waited.waits;
            self.share.waits.kicked += waited.kicked;
            if markers::enabled() {
                self.vcpu.acquired_after_block(self.lock, waited);
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Thread, plan};
    use super::*;
    use crate::locks::Spin;
    use std::cell::RefCell;
    use std::time::Instant;

    #[test]
    fn the_arena_serves_all_vcpus_at_their_most_and_counts_exactly() {
        let arena = TestedArena::<Spin>::new(3, || 7);
        let layout = Layout::from_size_align(LARGEST as usize, 1).unwrap();
        std::thread::scope(|scope| {
            for vcpu in 0..3 {
                let arena = &arena;
                scope.spawn(move || {
                    for _ in 0..50 {
                        let blocks = [(); BLOCKS].map(|()| arena.allocate(vcpu, layout));
                        for block in blocks {
                            assert!(arena.contains(block));
                            let block = NonNull::new(block).unwrap();
                            // SAFETY: allocated above with this layout, and not used.
                            unsafe { arena.deallocate(vcpu, block, layout) };
                        }
                    }
                });
            }
        });
        assert_eq!(arena.counter(), 3 * 50 * 2 * BLOCKS as u64);
        assert!(!arena.contains((&raw const arena).cast_mut().cast()));
    }

    #[test]
    fn a_vcpu_makes_as_many_calls_as_asked_for_and_keeps_no_block() {
        let arena = TestedArena::<Spin>::new(1, || 7);
        let vcpu = Thread { number: 0, start: Instant::now() };
        let switches = RefCell::new(Vec::new());
        let progress = AtomicU64::new(0);
        let plan = plan(Limit::Acquisitions(1_001));
        let share = churn(&arena, &vcpu, &plan, &progress, |on| switches.borrow_mut().push(on));
        assert_eq!((share.acquisitions, share.latency.count()), (1_000, 1_000));
        assert_eq!((progress.into_inner(), switches.into_inner()), (1_000, vec![true, false]));
    }
}
