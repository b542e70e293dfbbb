//! The steps on a part of the word, by 32-bit operations only. [`Steps`] says what each means.
//!
//! Each is a read-modify-write of the whole word that leaves the other bits as they are. Used on
//! every target but x86-64, by the model checkers, and by Miri.

use super::{FREE, LOCKED, LOCKED_MASK, PENDING, SLOW, Snapshot, Steps, TAIL_SHIFT, Tail};
use crate::sync::{AtomicU32, Ordering, Ordering::Relaxed, const_fn, ord};

/// The lock word.
#[repr(transparent)]
pub(crate) struct Word(AtomicU32);

/// Bits of the pending and the locked byte.
const LOW_HALF: u32 = 0xffff;
const LOCKED_BIT: u32 = LOCKED as u32;
const SLOW_BITS: u32 = SLOW as u32;

impl Word {
    const_fn! {
        pub(crate) fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    /// Replaces the bits of `mask`, which have to be `from`, by `to`; or the word that it is.
    fn try_replace(&self, mask: u32, from: u32, to: u32, order: Ordering) -> Result<(), Snapshot> {
        let mut seen = self.0.load(Relaxed);
        while seen & mask == from {
            match self.0.compare_exchange_weak(seen, seen & !mask | to, order, Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
        Err(Snapshot(seen))
    }
}

impl Steps for Word {
    #[inline]
    fn whole(&self) -> &AtomicU32 {
        &self.0
    }

    #[inline]
    fn locked(&self) -> u8 {
        self.load().locked()
    }

    #[inline]
    fn try_take_byte(&self) -> Option<bool> {
        let before = Snapshot(self.0.fetch_or(LOCKED_BIT, ord!("take-byte", Acquire)));
        (before.locked() == FREE).then(|| !before.is_free())
    }

    #[inline]
    fn release(&self) {
        self.0.fetch_and(!LOCKED_MASK, ord!("release", Release));
    }

    #[inline]
    fn try_release(&self) -> Result<(), u8> {
        self.try_replace(LOCKED_MASK, LOCKED_BIT, 0, ord!("try-release", Release))
            .map_err(Snapshot::locked)
    }

    fn set_locked(&self) {
        self.0.fetch_or(LOCKED_BIT, Relaxed);
    }

    fn exchange_slow(&self) -> u8 {
        Snapshot(self.0.fetch_or(SLOW_BITS, ord!("exchange-slow", AcqRel))).locked()
    }

    fn set_slow(&self) {
        self.0.fetch_or(SLOW_BITS, Relaxed);
    }

    fn slow_to_locked(&self) {
        self.0.fetch_and(!(SLOW_BITS ^ LOCKED_BIT), Relaxed);
    }

    fn exchange_pending(&self) -> Snapshot {
        Snapshot(self.0.fetch_or(PENDING, Relaxed))
    }

    fn clear_pending(&self) {
        self.0.fetch_and(!PENDING, Relaxed);
    }

    fn try_take_pending(&self) -> bool {
        self.try_replace(LOW_HALF, PENDING, LOCKED_BIT, ord!("take-pending", Acquire)).is_ok()
    }

    fn try_steal(&self) -> bool {
        self.try_replace(LOW_HALF, 0, LOCKED_BIT, ord!("take", Acquire)).is_ok()
    }

    fn try_take_as_head(&self) -> bool {
        let order = ord!("take", Acquire);
        self.try_replace(LOW_HALF, 0, LOCKED_BIT, order).is_ok()
            || self.try_replace(LOW_HALF, PENDING, LOCKED_BIT, order).is_ok()
    }

    fn try_release_reserved(&self) -> Result<(), u8> {
        self.try_replace(LOW_HALF, LOCKED_BIT, PENDING, ord!("release-reserved", Release))
            .map_err(Snapshot::locked)
    }

    fn release_reserved(&self) {
        let _ = self.try_replace(LOW_HALF, SLOW_BITS, PENDING, ord!("release-slow", Release));
    }

    #[inline]
    fn is_waited_for(&self) -> bool {
        self.0.load(Relaxed) & !LOCKED_MASK != 0
    }

    fn exchange_tail(&self, tail: Tail) -> Option<Tail> {
        let mut seen = self.0.load(Relaxed);
        loop {
            let new = (seen & LOW_HALF) | u32::from(tail.0) << TAIL_SHIFT;
            match self.0.compare_exchange_weak(seen, new, ord!("exchange-tail", AcqRel), Relaxed) {
                Ok(_) => return Tail::from_bits((seen >> TAIL_SHIFT) as u16),
                Err(now) => seen = now,
            }
        }
    }
}
