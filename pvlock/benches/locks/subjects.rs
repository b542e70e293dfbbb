//! The locks under comparison, and the bare instructions that any lock of this kind needs.
//!
//! Owns what is compared, for both benchmarks. Never measures.

use crate::machine::{native, pv};
use std::cell::UnsafeCell;
use std::sync::atomic::{
    AtomicU8, AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};

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

/// A lock with a cache line of its own.
#[repr(align(128))]
pub(crate) struct Alone<L>(pub(crate) L);

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

// SAFETY: used by one thread.
unsafe impl Sync for BareStore {}

impl Subject for BareStore {
    fn make() -> Self {
        Self(AtomicU8::new(0), UnsafeCell::new(0))
    }
    #[inline]
    fn locked(&self, body: impl FnOnce(&mut u64)) {
        while self.0.compare_exchange(0, 1, Acquire, Relaxed).is_err() {}
        // SAFETY: used by one thread.
        body(unsafe { &mut *self.1.get() });
        self.0.store(0, Release);
    }
}

/// `lock cmpxchg` twice, of one byte or of a word: no lock does with less that can wake somebody,
/// because its release has to see whether somebody sleeps.
pub(crate) struct BareExchange<A>(A, UnsafeCell<u64>);

// SAFETY: used by one thread.
unsafe impl<A> Sync for BareExchange<A> {}

macro_rules! bare_exchange {
    ($atomic:ty) => {
        impl Subject for BareExchange<$atomic> {
            fn make() -> Self {
                Self(<$atomic>::new(0), UnsafeCell::new(0))
            }
            #[inline]
            fn locked(&self, body: impl FnOnce(&mut u64)) {
                while self.0.compare_exchange(0, 1, Acquire, Relaxed).is_err() {}
                // SAFETY: used by one thread.
                body(unsafe { &mut *self.1.get() });
                while self.0.compare_exchange(1, 0, Release, Relaxed).is_err() {}
            }
        }
    };
}

bare_exchange!(AtomicU8);
bare_exchange!(AtomicU32);

/// Runs `$do!(name, type)` for the bare instructions.
macro_rules! for_bare {
    ($do:ident) => {
        $do!("bare cmpxchg + store", BareStore);
        $do!("bare pair, byte", BareExchange<std::sync::atomic::AtomicU8>);
        $do!("bare pair, word", BareExchange<std::sync::atomic::AtomicU32>);
    };
}
pub(crate) use for_bare;

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
