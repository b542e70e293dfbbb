//! The locks under comparison, and the bare instructions that any lock of this kind needs.
//!
//! Owns what is compared, for both benchmarks. Never measures.

use crate::machine::{native, pv};
use std::cell::UnsafeCell;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

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

/// `lock cmpxchg`, then a store, both of one byte: no lock does with less, and this one wakes
/// nobody and has no order.
pub(crate) struct BareStore(AtomicU8, UnsafeCell<u64>);
/// `lock cmpxchg` twice, of one byte: no lock does with less that can wake somebody.
pub(crate) struct BareExchange(AtomicU8, UnsafeCell<u64>);

// SAFETY: used by one thread.
unsafe impl Sync for BareStore {}
// SAFETY: used by one thread.
unsafe impl Sync for BareExchange {}

#[inline]
fn exchange(byte: &AtomicU8, from: u8, to: u8) {
    while byte.compare_exchange(from, to, Acquire, Relaxed).is_err() {}
}

impl Subject for BareStore {
    fn make() -> Self {
        Self(AtomicU8::new(0), UnsafeCell::new(0))
    }
    #[inline]
    fn locked(&self, body: impl FnOnce(&mut u64)) {
        exchange(&self.0, 0, 1);
        // SAFETY: used by one thread.
        body(unsafe { &mut *self.1.get() });
        self.0.store(0, Release);
    }
}

impl Subject for BareExchange {
    fn make() -> Self {
        Self(AtomicU8::new(0), UnsafeCell::new(0))
    }
    #[inline]
    fn locked(&self, body: impl FnOnce(&mut u64)) {
        exchange(&self.0, 0, 1);
        // SAFETY: used by one thread.
        body(unsafe { &mut *self.1.get() });
        exchange(&self.0, 1, 0);
    }
}

/// Runs `$do!(name, type)` for every lock.
macro_rules! for_all {
    ($do:ident) => {
        $do!("pvlock native", Native);
        $do!("pvlock kick-twice", Pv<pvlock::KickTwice>);
        $do!("pvlock kick-at-unlock", Pv<pvlock::KickAtUnlock>);
        $do!("pvlock adaptive", Pv<pvlock::Adaptive>);
        $do!("spin::Mutex", spin::Mutex<u64>);
        $do!("spin::TicketMutex", spin::mutex::TicketMutex<u64>);
        $do!("mcslock", Mcs);
        $do!("parking_lot", parking_lot::Mutex<u64>);
        $do!("std::sync::Mutex", std::sync::Mutex<u64>);
    };
}
pub(crate) use for_all;
