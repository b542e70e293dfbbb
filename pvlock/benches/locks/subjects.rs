//! The locks under comparison, and the bare instructions that any lock of this kind needs.
//!
//! Owns what is compared, for both benchmarks. Never measures.

use crate::machine::{native, pv};
use core::arch::asm;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The lock in PV mode.
pub(crate) type Pv<K> = pvlock::Mutex<u64, pv::Machine, K>;
/// The lock in native mode.
pub(crate) type Native = pvlock::Mutex<u64, native::Machine, pvlock::KickAtUnlock>;

/// A lock around a number.
pub(crate) trait Subject: Sync {
    fn make() -> Self;
    /// Runs `body` on the number, under the lock.
    fn locked(&self, body: impl FnOnce(&mut u64));
}

macro_rules! subject {
    ($type:ty) => {
        impl Subject for $type {
            fn make() -> Self {
                <$type>::new(0)
            }
            #[inline]
            fn locked(&self, body: impl FnOnce(&mut u64)) {
                body(&mut *self.lock());
            }
        }
    };
}

subject!(Native);
subject!(Pv<pvlock::KickTwice>);
subject!(Pv<pvlock::KickAtUnlock>);
subject!(Pv<pvlock::Hybrid>);
subject!(Pv<pvlock::Adaptive>);
subject!(spin::Mutex<u64>);
subject!(spin::mutex::TicketMutex<u64>);
subject!(parking_lot::Mutex<u64>);

impl Subject for std::sync::Mutex<u64> {
    fn make() -> Self {
        Self::new(0)
    }
    #[inline]
    fn locked(&self, body: impl FnOnce(&mut u64)) {
        body(&mut self.lock().unwrap());
    }
}

/// A queue lock.
pub(crate) type Mcs = mcslock::raw::spins::Mutex<u64>;

impl Subject for Mcs {
    fn make() -> Self {
        Self::new(0)
    }
    #[inline]
    fn locked(&self, body: impl FnOnce(&mut u64)) {
        self.lock_then(|value| body(value));
    }
}

/// `lock cmpxchg`, then a store of one byte: no lock does with less and wakes nobody.
pub(crate) struct BareStore(AtomicU32, UnsafeCell<u64>);
/// `lock cmpxchg`, then `lock cmpxchg` of one byte: no lock does with less and can wake somebody.
pub(crate) struct BareExchange(AtomicU32, UnsafeCell<u64>);

// SAFETY: used by one thread.
unsafe impl Sync for BareStore {}
// SAFETY: used by one thread.
unsafe impl Sync for BareExchange {}

fn bare_take(word: &AtomicU32) {
    while word.compare_exchange(0, 1, std::sync::atomic::Ordering::Acquire, Relaxed).is_err() {}
}

impl Subject for BareStore {
    fn make() -> Self {
        Self(AtomicU32::new(0), UnsafeCell::new(0))
    }
    #[inline]
    fn locked(&self, body: impl FnOnce(&mut u64)) {
        bare_take(&self.0);
        // SAFETY: used by one thread.
        body(unsafe { &mut *self.1.get() });
        // SAFETY: writes one byte of a word that lives, as one instruction.
        unsafe { asm!("mov byte ptr [{}], 0", in(reg) self.0.as_ptr(), options(nostack)) };
    }
}

impl Subject for BareExchange {
    fn make() -> Self {
        Self(AtomicU32::new(0), UnsafeCell::new(0))
    }
    #[inline]
    fn locked(&self, body: impl FnOnce(&mut u64)) {
        bare_take(&self.0);
        // SAFETY: used by one thread.
        body(unsafe { &mut *self.1.get() });
        // SAFETY: exchanges one byte of a word that lives, as one instruction.
        unsafe {
            asm!("lock cmpxchg byte ptr [{}], {}", in(reg) self.0.as_ptr(), in(reg_byte) 0_u8,
                 inout("al") 1_u8 => _, options(nostack));
        }
    }
}

/// Runs `$do!(name, type)` for every lock.
macro_rules! for_all {
    ($do:ident) => {
        $do!("pvlock native", Native);
        $do!("pvlock kick-twice", Pv<pvlock::KickTwice>);
        $do!("pvlock kick-at-unlock", Pv<pvlock::KickAtUnlock>);
        $do!("pvlock hybrid", Pv<pvlock::Hybrid>);
        $do!("pvlock adaptive", Pv<pvlock::Adaptive>);
        $do!("spin::Mutex", spin::Mutex<u64>);
        $do!("spin::TicketMutex", spin::mutex::TicketMutex<u64>);
        $do!("mcslock", Mcs);
        $do!("parking_lot", parking_lot::Mutex<u64>);
        $do!("std::sync::Mutex", std::sync::Mutex<u64>);
    };
}
pub(crate) use for_all;
