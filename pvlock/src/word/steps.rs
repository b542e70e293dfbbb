//! Every step that may be taken on the lock word, and what it means.
//!
//! Owns the meaning and the ordering of each step, and the steps on the whole word, which are the
//! same everywhere. The steps on a part of it are required here and done twice: by
//! [`portable`](super::portable) and by [`x86_64`](super::x86_64). Never decides which step to
//! take.
//!
//! A step is written as the transition of (tail, pending, locked) that it makes; a field that is
//! left out keeps its value. `try_` steps do nothing when the word is not as they want it.

use super::{FREE, LOCKED, Snapshot, TAIL_SHIFT, Tail};
use crate::sync::{AtomicU32, Ordering::Relaxed, ord};

/// The steps on a lock word.
pub(crate) trait Steps: Sync {
    /// The whole word.
    fn whole(&self) -> &AtomicU32;

    // ----- on the whole word

    /// The word. Relaxed: a hint, which a step that orders has to confirm.
    #[inline]
    fn load(&self) -> Snapshot {
        Snapshot(self.whole().load(Relaxed))
    }

    /// The word. Acquire: who sees the locked byte clear sees what the last owner did (pairs with
    /// the releases below).
    #[inline]
    fn load_acquire(&self) -> Snapshot {
        Snapshot(self.whole().load(ord!("word-load", Acquire)))
    }

    /// (0,0,0) -> (0,0,1) by anybody, or what it is instead. Acquire, with the last owner's
    /// release.
    #[inline]
    fn try_acquire(&self) -> Result<(), Snapshot> {
        let acquire = ord!("try-acquire", Acquire);
        match self.whole().compare_exchange(0, LOCKED.into(), acquire, Relaxed) {
            Ok(_) => Ok(()),
            Err(now) => Err(Snapshot(now)),
        }
    }

    /// (0,0,1) -> (0,0,0) by the owner, or what it is instead. Release, with the next owner's
    /// acquire. Before a release of the byte alone, because a processor takes longer to load a word
    /// of which it has just stored one byte: the next `try_acquire` here would wait for the store.
    #[inline]
    fn try_release_unqueued(&self) -> Result<(), Snapshot> {
        let release = ord!("release-unqueued", Release);
        match self.whole().compare_exchange(LOCKED.into(), 0, release, Relaxed) {
            Ok(_) => Ok(()),
            Err(now) => Err(Snapshot(now)),
        }
    }

    /// (`tail`,0,1) -> (0,0,1) by the owner, if the queue still ends with its own node. Relaxed: it
    /// hands nothing over.
    fn try_clear_tail(&self, tail: Tail) -> bool {
        let whole = u32::from(tail.0) << TAIL_SHIFT | u32::from(LOCKED);
        self.whole().compare_exchange(whole, LOCKED.into(), Relaxed, Relaxed).is_ok()
    }

    /// `seen` -> (0,0,1) by a head that saw the lock free and itself alone in the queue. Acquire,
    /// as `try_acquire`, and not by the look before (R12): another owner may have come and gone
    /// since, and the word is as it was.
    fn try_take_alone(&self, seen: Snapshot) -> bool {
        let acquire = ord!("take-alone", Acquire);
        self.whole().compare_exchange(seen.0, LOCKED.into(), acquire, Relaxed).is_ok()
    }

    // ----- on the locked byte

    /// The locked byte. Relaxed: a hint. It may be this CPU's own store, which others do not see
    /// yet.
    fn locked(&self) -> u8;

    /// locked 0 -> 1 in native mode, and whether somebody waits, then or a moment later; nothing if
    /// it has an owner. The first half of `try_acquire_byte`. Acquire, as `try_acquire`.
    fn try_take_byte(&self) -> Option<bool>;

    /// locked -> 0 by the owner. Release, with the next owner's acquire.
    fn release(&self);

    /// locked 1 -> 0 by the owner, or what it is instead. Release, as `release`; a failure is
    /// Relaxed, the caller fences before it trusts the hash table (R3).
    fn try_release(&self) -> Result<(), u8>;

    /// locked 0 -> 1 by the head under a strict policy in PV mode, where nobody else may take the
    /// lock. Relaxed: it acquired by its look.
    fn set_locked(&self);

    /// locked -> 3 by the head, and what it was. Release publishes the head's hash entry to the
    /// unlock (R3); acquire, for the case that it was 0 and the head is the owner now (R4).
    fn exchange_slow(&self) -> u8;

    /// locked 1 -> 3 by the owner, for a sleeping head. Relaxed: the entry it speaks of was made by
    /// the same CPU, and who unlocks is that CPU.
    fn set_slow(&self);

    /// locked 3 -> 1 by a head that found itself the owner (R4). Relaxed: nobody else looks.
    fn slow_to_locked(&self);

    // ----- on the pending byte

    /// Native mode: pending -> 1, and the word before. Relaxed: who becomes the pending waiter by
    /// it acquires by `try_take_pending`.
    fn exchange_pending(&self) -> Snapshot;

    /// pending -> 0: native mode, by who set it; PV mode, by a head that owns the lock (R4).
    /// Relaxed: it orders nothing.
    fn clear_pending(&self);

    // ----- on both bytes

    /// (pending, locked) (1,0) -> (0,1) by the pending waiter of native mode, which looks first.
    /// Acquire, as `try_acquire`.
    fn try_take_pending(&self) -> bool;

    /// (pending, locked) (0,0) -> (0,1) whatever the tail: by a newcomer that steals, and by the
    /// head of native mode. Acquire, as `try_acquire`.
    fn try_steal(&self) -> bool;

    /// (pending, locked) (any,0) -> (0,1) by the head, where newcomers steal. Acquire, as
    /// `try_acquire`.
    fn try_take_as_head(&self) -> bool;

    /// (pending, locked) (0,1) -> (1,0) by the owner, who reserves the lock for the head: no
    /// newcomer steals it. Or what the locked byte is instead. Release, as `release`; a failure is
    /// Relaxed, as that of `try_release`.
    fn try_release_reserved(&self) -> Result<(), u8>;

    /// (pending, locked) (0,3) -> (1,0), as `try_release_reserved`, after the entry was taken out.
    fn release_reserved(&self);

    // ----- on the tail

    /// tail -> `tail`, and the one before. Release publishes the node, with the next
    /// `exchange_tail`; acquire, for the node that the old tail names.
    fn exchange_tail(&self, tail: Tail) -> Option<Tail>;

    // ----- of several

    /// Whether somebody waits: pending or a tail. Relaxed. Does not look at the locked byte.
    fn is_waited_for(&self) -> bool;

    /// (0,0,0) -> (0,0,1) by anybody in native mode, or what it is instead. As `try_acquire`, where
    /// a release stores the locked byte alone: a processor that has just stored one byte of a word
    /// waits for that store before it loads the whole word. So this never loads the locked byte
    /// together with the others.
    ///
    /// It takes the byte, and then looks who waits. If somebody does, that one comes first, and the
    /// byte is given back. For that moment the byte is 1 and nobody owns the lock; so a waiter of
    /// native mode takes the lock by a compare-exchange, never by a store.
    #[inline]
    fn try_acquire_byte(&self) -> Result<(), Snapshot> {
        match self.try_take_byte() {
            Some(false) => return Ok(()),
            Some(true) => self.release(),
            None => {}
        }
        Err(self.load())
    }

    /// Whether the lock was free and is taken now: `try_acquire`, but a look first, which keeps the
    /// cache line of a lock that is polled shared.
    #[inline]
    fn try_acquire_seen_free(&self) -> bool {
        self.load().is_free() && self.try_acquire().is_ok()
    }

    /// The same in native mode, by `try_acquire_byte`.
    #[inline]
    fn try_acquire_byte_seen_free(&self) -> bool {
        self.locked() == FREE && !self.is_waited_for() && self.try_acquire_byte().is_ok()
    }

    /// Whether the lock has an owner.
    #[inline]
    fn is_owned(&self) -> bool {
        self.locked() != FREE
    }
}
