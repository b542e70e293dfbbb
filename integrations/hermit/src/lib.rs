//! Hermit's `hermit-sync` with `pvlock` inside: the same names as `hermit-sync` 0.2.0, for `[patch.crates-io]`.
//!
//! This crate owns which lock stands behind which of these names, and nothing else. The two raw mutexes are
//! `pvlock`'s; what they ask of a kernel, `xen_guest::glue` answers. All others are the published ones.
//!
//! | name | was | is |
//! |---|---|---|
//! | [`RawSpinMutex`] | test-and-set | `pvlock` that may be stolen for a bounded time |
//! | [`RawTicketMutex`] | ticket lock | `pvlock`, strictly first come, first served |
//! | [`RawInterruptMutex`], [`OnceCell`], [`Lazy`], ... | over these two | the same, over these two |
//! | [`RawRwSpinLock`] | spins | the same: `pvlock` has no upgradable readers |
//! | [`OneShotMutex`], ... | panics instead of waiting | the same |
//! | everything, with `all-one-shot` | panics instead of waiting | the same |
//!
//! **Guards stay with their task.** A guard of the published spin and ticket mutex may be sent to another thread; one of
//! these may not, since a waiter's place in the queue is its CPU's. Code that sends one, or keeps one across
//! an `.await` of a future that has to be `Send`, does not compile:
//!
#![cfg_attr(not(feature = "all-one-shot"), doc = "```compile_fail,E0277")]
#![cfg_attr(feature = "all-one-shot", doc = "```")]
//! static DATA: hermit_sync::TicketMutex<u8> = hermit_sync::TicketMutex::new(1);
//! fn send(_: impl Send) {}
//! send(DATA.lock());
//! ```
//!
//! The guards of interrupt mutexes never could be sent, with the published crate neither.
//!
//! ```
//! static NUMBER: hermit_sync::SpinMutex<usize> = hermit_sync::SpinMutex::new(0);
//! *NUMBER.lock() = 2;
//! assert_eq!(*NUMBER.lock(), 2);
//! ```
#![no_std]

#[cfg(test)]
extern crate std;

mod mutex;
#[cfg(not(feature = "all-one-shot"))]
mod platform;
mod rwlock;
#[cfg(all(test, not(feature = "all-one-shot")))]
mod tests;

pub use exclusive_cell::{CallOnce, CallOnceError, ExclusiveCell};
pub use interrupt_mutex::{InterruptMutex, InterruptMutexGuard, RawInterruptMutex};
pub use interrupts::without as without_interrupts;
pub use mutex::{
    InterruptOneShotMutex, InterruptOneShotMutexGuard, InterruptSpinMutex, InterruptSpinMutexGuard,
    InterruptTicketMutex, InterruptTicketMutexGuard, RawInterruptOneShotMutex,
    RawInterruptSpinMutex, RawInterruptTicketMutex, RawSpinMutex, RawTicketMutex, SpinMutex,
    SpinMutexGuard, TicketMutex, TicketMutexGuard,
};
pub use one_shot_mutex::sync::{
    OneShotMutex, OneShotMutexGuard, OneShotRwLock, OneShotRwLockReadGuard,
    OneShotRwLockUpgradableReadGuard, OneShotRwLockWriteGuard, RawOneShotMutex, RawOneShotRwLock,
};
pub use rwlock::{
    RawRwSpinLock, RwSpinLock, RwSpinLockReadGuard, RwSpinLockUpgradableReadGuard,
    RwSpinLockWriteGuard,
};

/// A cell that is written once, under a [`RawSpinMutex`].
pub type OnceCell<T> = generic_once_cell::OnceCell<RawSpinMutex, T>;

/// A value that is made at its first use, under a [`RawSpinMutex`].
pub type Lazy<T, F = fn() -> T> = generic_once_cell::Lazy<RawSpinMutex, T, F>;

/// A cell that is written once, under a [`RawInterruptSpinMutex`].
pub type InterruptOnceCell<T> = generic_once_cell::OnceCell<RawInterruptSpinMutex, T>;

/// A value that is made at its first use, under a [`RawInterruptSpinMutex`].
pub type InterruptLazy<T, F = fn() -> T> = generic_once_cell::Lazy<RawInterruptSpinMutex, T, F>;
