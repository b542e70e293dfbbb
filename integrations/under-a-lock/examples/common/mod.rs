//! What every example runs on: four vCPUs that find a lock held.
//!
//! Owns the machine, which is that of `pvlock`'s own tests: threads as vCPUs. It knows nothing of what
//! is under the lock.

#[path = "../../../../pvlock/tests/common/threads.rs"]
pub(crate) mod threads;

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::thread;

use pvlock::{Counter, KickAtUnlock, RawPvLock};
use threads::{CPUS, Threads};

/// The lock: any policy would do.
pub(crate) type Raw = RawPvLock<Threads, KickAtUnlock>;

/// Data behind it.
pub(crate) type Mutex<T> = lock_api::Mutex<Raw, T>;

/// How many vCPUs there are.
pub(crate) const VCPUS: u64 = 4;

/// How often a vCPU has begun to wait in the hypervisor, all together.
pub(crate) fn waits() -> u64 {
    let of = |cpu| {
        let counters = pvlock::counters::<Threads>(cpu);
        counters[Counter::WaitHead as usize] + counters[Counter::WaitNode as usize]
    };
    (0..CPUS).map(of).sum()
}

/// Runs `work` on all vCPUs. `held` holds the lock that they want, until all of them wait for it.
pub(crate) fn contend<G>(held: G, work: impl Fn(u64) + Sync) {
    let (before, work) = (waits(), &work);
    thread::scope(|cpus| {
        for cpu in 0..VCPUS {
            cpus.spawn(move || work(cpu));
        }
        while waits() < before + VCPUS {
            thread::yield_now();
        }
        drop(held);
    });
}

/// Memory for a heap.
#[repr(C, align(4096))]
pub(crate) struct Arena(UnsafeCell<[u8; Arena::SIZE]>);

// SAFETY: only its address is known here; the heap that gets it looks after the rest.
unsafe impl Sync for Arena {}

impl Arena {
    pub(crate) const SIZE: usize = 256 * 1024;

    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new([0; Self::SIZE]))
    }

    /// All of it.
    pub(crate) const fn bytes(&self) -> *mut [u8; Self::SIZE] {
        self.0.get()
    }
}

/// Allocates, writes, looks and frees, on the vCPU `cpu`: no two blocks may overlap.
pub(crate) fn churn(heap: &impl GlobalAlloc, cpu: u64) {
    let mut blocks = Vec::new();
    for turn in 0..500 {
        let words = 1 + (turn * 7 + cpu) % 60;
        let layout = Layout::array::<u64>(words as usize).expect("small");
        // SAFETY: the layout is not empty.
        let block = unsafe { heap.alloc(layout) }.cast::<u64>();
        assert!(!block.is_null(), "the arena holds all that is asked for");
        // SAFETY: ours, and that long.
        let words = unsafe { core::slice::from_raw_parts_mut(block, words as usize) };
        words.fill(cpu << 32 | turn);
        blocks.push((words, layout, cpu << 32 | turn));
        if blocks.len() == 20 {
            blocks.drain(..10).for_each(|block| check_and_free(heap, block));
        }
    }
    blocks.drain(..).for_each(|block| check_and_free(heap, block));
}

fn check_and_free(heap: &impl GlobalAlloc, (words, layout, value): (&mut [u64], Layout, u64)) {
    assert!(words.iter().all(|word| *word == value), "another vCPU wrote into this block");
    // SAFETY: from this heap, of this layout, and used no more.
    unsafe { heap.dealloc(words.as_mut_ptr().cast(), layout) };
}
