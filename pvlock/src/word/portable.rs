//! The word by 32-bit atomic operations only. See the parent module for what each step means.
//!
//! A step on one byte is a read-modify-write of the whole word that leaves the other bits as they
//! are. Used on every target but x86-64, by the model checker, and by Miri.

use super::{LOCKED, LOCKED_MASK, PENDING, SLOW, Snapshot, TAIL_SHIFT, Tail};
use crate::sync::{AtomicU32, Ordering::Relaxed, const_fn, ord};

/// The lock word.
pub(crate) struct Word(AtomicU32);

const LOW_HALF: u32 = 0xffff;

impl Word {
    const_fn! {
        pub(crate) fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    /// The word, ordering nothing.
    #[inline]
    pub(crate) fn load(&self) -> Snapshot {
        Snapshot(self.0.load(Relaxed))
    }

    /// The word. Acquire: a reader that sees the locked byte clear sees what the last owner did
    /// (pairs with `release`, `try_release`).
    #[inline]
    pub(crate) fn load_acquire(&self) -> Snapshot {
        Snapshot(self.0.load(ord!("word-load", Acquire)))
    }

    /// (0,0,0) -> (0,0,1), or what it is instead. Acquire, with the last owner's release.
    #[inline]
    pub(crate) fn try_acquire(&self) -> Result<(), Snapshot> {
        match self.0.compare_exchange(0, u32::from(LOCKED), ord!("try-acquire", Acquire), Relaxed) {
            Ok(_) => Ok(()),
            Err(now) => Err(Snapshot(now)),
        }
    }

    /// locked -> 0. Release, with the next owner's acquire. The caller owns the lock.
    #[inline]
    pub(crate) fn release(&self) {
        self.0.fetch_and(!LOCKED_MASK, ord!("release", Release));
    }

    /// locked 1 -> 0, or what it is instead. Release as in `release`; a failure is Relaxed, the
    /// caller fences before it trusts the hash table.
    #[inline]
    pub(crate) fn try_release(&self) -> Result<(), u8> {
        let mut seen = self.0.load(Relaxed);
        while seen & LOCKED_MASK == u32::from(LOCKED) {
            match self.0.compare_exchange_weak(
                seen,
                seen & !LOCKED_MASK,
                ord!("try-release", Release),
                Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
        Err(Snapshot(seen).locked())
    }

    /// pending -> 1, and the word before. Relaxed: the pending waiter acquires by `load_acquire` when it
    /// sees the locked byte clear.
    pub(crate) fn exchange_pending(&self) -> Snapshot {
        Snapshot(self.0.fetch_or(PENDING, Relaxed))
    }

    /// (pending, locked) (1,0) -> (0,1) by the pending waiter, who alone may. Relaxed, it acquired before.
    pub(crate) fn clear_pending_set_locked(&self) {
        self.0.fetch_sub(PENDING - u32::from(LOCKED), Relaxed);
    }

    /// Puts `tail` into the word and returns the one before. Release: publishes the node, with the
    /// next `exchange_tail` and `load`s of it; acquire: the node that the old tail names.
    pub(crate) fn exchange_tail(&self, tail: Tail) -> Option<Tail> {
        let mut seen = self.0.load(Relaxed);
        loop {
            let new = (seen & LOW_HALF) | u32::from(tail.0) << TAIL_SHIFT;
            match self.0.compare_exchange_weak(seen, new, ord!("exchange-tail", AcqRel), Relaxed) {
                Ok(_) => return Tail::from_bits((seen >> TAIL_SHIFT) as u16),
                Err(now) => seen = now,
            }
        }
    }

    /// (tail,0,1) -> (0,0,1) if the queue still ends with `tail`. Relaxed: it hands nothing over.
    pub(crate) fn try_clear_tail(&self, tail: Tail) -> bool {
        let whole = u32::from(tail.0) << TAIL_SHIFT | u32::from(LOCKED);
        self.0.compare_exchange(whole, u32::from(LOCKED), Relaxed, Relaxed).is_ok()
    }

    /// `seen` -> (0,0,1) by the head of the queue that saw itself alone in it and the lock free. Acquire, as
    /// `try_acquire`: while the head is patient, a thief may have come and gone since it looked, and the
    /// word is as it was.
    pub(crate) fn try_take_alone(&self, seen: Snapshot) -> bool {
        self.0
            .compare_exchange(seen.0, u32::from(LOCKED), ord!("take-alone", Acquire), Relaxed)
            .is_ok()
    }

    /// locked 0 -> 1 by the head of the queue where nobody else may take the lock. Relaxed, it acquired before.
    pub(crate) fn set_locked(&self) {
        self.0.fetch_or(u32::from(LOCKED), Relaxed);
    }

    /// (pending, locked) (0,0) -> (0,1), past the queue. Acquire, as `try_acquire`.
    pub(crate) fn try_steal(&self) -> bool {
        self.try_low_half(0)
    }

    /// (pending, locked) (any,0) -> (0,1) by the head of the queue. Acquire, as `try_acquire`.
    pub(crate) fn try_take_as_head(&self) -> bool {
        self.try_low_half(0) || self.try_low_half(PENDING)
    }

    fn try_low_half(&self, expected: u32) -> bool {
        let mut seen = self.0.load(Relaxed);
        while seen & LOW_HALF == expected {
            let new = (seen & !LOW_HALF) | u32::from(LOCKED);
            match self.0.compare_exchange_weak(seen, new, ord!("take", Acquire), Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// pending -> 1: the head spins, nobody steals. Relaxed: a hint about timing only.
    pub(crate) fn set_pending(&self) {
        self.0.fetch_or(PENDING, Relaxed);
    }

    /// pending -> 0. Relaxed, as `set_pending`.
    pub(crate) fn clear_pending(&self) {
        self.0.fetch_and(!PENDING, Relaxed);
    }

    /// locked -> 3 by the head of the queue, and what it was. Release publishes the head's hash
    /// entry to the unlocker; acquire, when it was 0 and the head owns the lock now.
    pub(crate) fn exchange_slow(&self) -> u8 {
        Snapshot(self.0.fetch_or(u32::from(SLOW), ord!("exchange-slow", AcqRel))).locked()
    }

    /// locked 1 -> 3 by the owner, for a sleeping head. Relaxed: the entry it speaks of was made by
    /// the same CPU, and who unlocks is that CPU, or was handed the lock by it.
    pub(crate) fn set_slow(&self) {
        self.0.fetch_or(u32::from(SLOW), Relaxed);
    }

    /// locked 3 -> 1 by the head that found itself the owner. Relaxed: the caller owns the lock.
    pub(crate) fn slow_to_locked(&self) {
        self.0.fetch_and(!u32::from(SLOW ^ LOCKED), Relaxed);
    }
}
