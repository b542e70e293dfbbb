//! The lock as others see it: fast paths and `lock_api`.
//!
//! Owns what is inlined into callers. Every slow path is a call into another file.

use core::marker::PhantomData;

use crate::sync::const_fn;
use crate::word::{FREE, Snapshot, Word};
use crate::{Mode, Platform, Policy, native, pv};

/// A spinlock of four bytes whose waiters queue, and sleep in the hypervisor when they have to.
///
/// `P` is the kernel it lives in, `K` the policy of sleeping and waking. Usually reached through
/// [`Mutex`](crate::Mutex). It does not disable preemption or interrupts: a lock that is also taken
/// by interrupt handlers must be taken with interrupts off everywhere else.
#[repr(transparent)]
pub struct RawPvLock<P, K> {
    word: Word,
    _types: PhantomData<fn() -> (P, K)>,
}

impl<P: Platform, K: Policy> RawPvLock<P, K> {
    const_fn! {
        /// A free lock.
        pub fn new() -> Self {
            const { assert!(P::MAX_CPUS <= crate::word::MAX_CPUS, "at most 16,383 CPUs") };
            Self { word: Word::new(), _types: PhantomData }
        }
    }

    /// Takes the lock.
    ///
    /// # Panics
    ///
    /// When contended, if the CPU's number is not less than [`Platform::MAX_CPUS`] or the hash
    /// table has less than four entries for each CPU.
    #[inline]
    pub fn lock(&self) {
        if let Err(seen) = self.word.try_acquire() {
            self.lock_slow(seen);
        }
    }

    #[cold]
    #[inline(never)]
    fn lock_slow(&self, seen: Snapshot) {
        match P::mode() {
            Mode::Pv => pv::acquire::<P, K>(&self.word, seen),
            Mode::Native => native::acquire::<P>(&self.word, seen),
            Mode::TestAndSet => native::acquire_test_and_set::<P>(&self.word),
        }
    }

    /// Takes the lock if it is free and nobody waits for it.
    #[inline]
    pub fn try_lock(&self) -> bool {
        // The look first keeps a polled lock's cache line shared.
        self.word.load().is_free() && self.word.try_acquire().is_ok()
    }

    /// Releases the lock, and wakes the head of the queue if it sleeps.
    ///
    /// # Safety
    ///
    /// The calling context owns the lock.
    ///
    /// # Panics
    ///
    /// When the lock is free: in PV mode always, in the other modes in debug builds.
    #[inline]
    pub unsafe fn unlock(&self) {
        debug_assert!(
            self.is_locked(),
            "pvlock: unlock of a lock that is not held (locked byte 0)"
        );
        if P::plain_unlock() {
            self.word.release();
        } else if let Err(seen) = self.word.try_release() {
            // R9: a sleeping head may have registered; never a blind store.
            pv::release_slow::<P>(&self.word, seen);
        }
    }

    /// Whether somebody owns the lock. A snapshot.
    #[inline]
    pub fn is_locked(&self) -> bool {
        self.word.load().locked() != FREE
    }

    /// Whether somebody waits for the lock. A snapshot.
    #[inline]
    pub fn is_contended(&self) -> bool {
        let seen = self.word.load();
        seen.pending() || seen.tail().is_some()
    }

    #[cfg(all(test, not(any(loom, shuttle))))]
    pub(crate) fn word(&self) -> &Word {
        &self.word
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.word.load()
    }
}

impl<P: Platform, K: Policy> Default for RawPvLock<P, K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform, K: Policy> core::fmt::Debug for RawPvLock<P, K> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "RawPvLock<{}>({})", K::NAME, self.snapshot())
    }
}
