//! The lock as others see it: fast paths and `lock_api`.
//!
//! Owns what is inlined into callers. Every slow path is a call into another file.

use core::marker::PhantomData;

use crate::checker::{self, Checked, How};
use crate::sync::const_fn;
use crate::word::{Snapshot, Steps, Word};
use crate::{Mode, Platform, Policy, native, pv, queue};

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
    /// When it has to queue, if the CPU's number is not less than [`Platform::MAX_CPUS`] or the
    /// hash table has less than four entries for each CPU.
    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    pub fn lock(&self) {
        let wanted = checker::want::<P>(self.key(), How::Exclusive);
        self.acquire();
        checker::got::<P>(wanted);
    }

    /// What the hash table and the checker know this lock by.
    #[inline]
    fn key(&self) -> usize {
        core::ptr::from_ref(&self.word).addr()
    }

    /// Takes the lock, unknown to the checker.
    #[inline]
    pub(crate) fn acquire(&self) {
        let taken =
            if P::plain_unlock() { self.word.try_acquire_byte() } else { self.word.try_acquire() };
        if let Err(seen) = taken {
            self.lock_slow(seen);
        }
    }

    /// The lock is held, or somebody waits for it. Where a CPU steals, that is the way of most of
    /// its locks, so it calls nothing and saves no register until it knows that this is none.
    #[cold]
    #[inline(never)]
    fn lock_slow(&self, seen: Snapshot) {
        if K::HORIZON.is_none() || !pv::steals_at_once::<P>(&self.word, seen) {
            self.lock_contended(seen);
        }
    }

    #[inline(never)]
    fn lock_contended(&self, seen: Snapshot) {
        checker::blocked::<P>(self.key());
        match P::mode() {
            #[cfg(any(loom, shuttle, feature = "posted-patch"))]
            Mode::Pv if K::AS_POSTED => {
                pv::acquire::<Checked<P>, K, crate::posted::Posted<K>>(&self.word, seen);
            }
            Mode::Pv => pv::acquire::<Checked<P>, K, pv::Pv<K>>(&self.word, seen),
            Mode::Native => native::acquire::<Checked<P>>(&self.word, seen),
            Mode::TestAndSet => queue::acquire_unqueued::<Checked<P>>(&self.word),
        }
    }

    /// Takes the lock if it is free and nobody waits for it.
    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    pub fn try_lock(&self) -> bool {
        let taken = if P::plain_unlock() {
            self.word.try_acquire_byte_seen_free()
        } else {
            self.word.try_acquire_seen_free()
        };
        if taken {
            checker::got::<P>(checker::want::<P>(self.key(), How::Exclusive));
        }
        taken
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
        self.assert_owned();
        checker::leave::<P>(self.key());
        self.release();
    }

    /// Releases the lock, unknown to the checker.
    #[inline]
    pub(crate) fn release(&self) {
        if P::plain_unlock() {
            self.word.release();
        } else if self.word.try_release_unqueued().is_err() {
            if K::HORIZON.is_some() {
                // Most locks of a CPU that steals are released here: not worth a call.
                pv::release::<P, K>(&self.word);
            } else {
                self.unlock_queued();
            }
        }
    }

    /// Somebody waits for the lock.
    #[cold]
    #[inline(never)]
    fn unlock_queued(&self) {
        pv::release::<P, K>(&self.word);
    }

    /// Releases the lock for whoever has waited longest: no newcomer takes it before, whatever the
    /// policy. As [`unlock`](Self::unlock) where nobody waits, and in [`Mode::TestAndSet`], which
    /// has no order.
    ///
    /// # Safety
    ///
    /// The calling context owns the lock.
    ///
    /// # Panics
    ///
    /// As [`unlock`](Self::unlock).
    pub unsafe fn unlock_fair(&self) {
        self.assert_owned();
        checker::leave::<P>(self.key());
        // Where nobody steals, the order of the queue is the order in any case. The mode is asked
        // after the look: who waits has settled it.
        if K::HORIZON.is_some() && self.word.load().tail().is_some() && P::mode() == Mode::Pv {
            pv::release_reserved::<P, K>(&self.word);
        } else {
            self.release();
        }
    }

    /// Lets a waiter have the lock, and takes it again after it; does nothing if nobody waits.
    ///
    /// If it unwinds, because the policy panics, the caller has the lock.
    ///
    /// # Safety
    ///
    /// The calling context owns the lock.
    ///
    /// # Panics
    ///
    /// As [`lock`](Self::lock).
    #[cfg_attr(feature = "checker", track_caller)]
    pub unsafe fn bump(&self) {
        /// Takes the lock when it is dropped.
        struct Retake<'a, P: Platform, K: Policy>(&'a RawPvLock<P, K>);

        impl<P: Platform, K: Policy> Drop for Retake<'_, P, K> {
            fn drop(&mut self) {
                let wanted = checker::want::<P>(self.0.key(), How::Exclusive);
                queue::acquire_unqueued::<Checked<P>>(&self.0.word);
                checker::got::<P>(wanted);
            }
        }

        if self.is_contended() {
            // SAFETY: the caller owns the lock.
            unsafe { self.unlock_fair() };
            let retake = Retake(self);
            self.lock();
            core::mem::forget(retake);
        }
    }

    #[inline]
    fn assert_owned(&self) {
        debug_assert!(
            self.word.is_owned(),
            "pvlock: unlock of a lock that is not held (locked byte 0)"
        );
    }

    /// Whether somebody owns the lock, or waits for it and is about to:
    /// [`try_lock`](Self::try_lock) would fail. A snapshot.
    #[inline]
    pub fn is_locked(&self) -> bool {
        !self.word.load().is_free()
    }

    /// Whether somebody waits for the lock. A snapshot.
    #[inline]
    pub fn is_contended(&self) -> bool {
        self.word.load().is_waited_for()
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
