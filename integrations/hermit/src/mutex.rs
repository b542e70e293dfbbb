//! Which lock is behind which mutex.

use interrupt_mutex::RawInterruptMutex;
use one_shot_mutex::sync::RawOneShotMutex;

#[cfg(feature = "all-one-shot")]
pub use one_shot_mutex::sync::{
    RawOneShotMutex as RawSpinMutex, RawOneShotMutex as RawTicketMutex,
};

/// The lock of [`SpinMutex`]: a running vCPU may pass those that sleep, for a bounded time.
#[cfg(not(feature = "all-one-shot"))]
pub type RawSpinMutex = pvlock::RawPvLock<crate::platform::Platform, pvlock::Adaptive>;

/// The lock of [`TicketMutex`]: who comes first is served first.
#[cfg(not(feature = "all-one-shot"))]
pub type RawTicketMutex = pvlock::RawPvLock<crate::platform::Platform, pvlock::KickAtUnlock>;

/// Data behind a [`RawSpinMutex`].
pub type SpinMutex<T> = lock_api::Mutex<RawSpinMutex, T>;

/// The guard of a [`SpinMutex`].
pub type SpinMutexGuard<'a, T> = lock_api::MutexGuard<'a, RawSpinMutex, T>;

/// Data behind a [`RawTicketMutex`].
pub type TicketMutex<T> = lock_api::Mutex<RawTicketMutex, T>;

/// The guard of a [`TicketMutex`].
pub type TicketMutexGuard<'a, T> = lock_api::MutexGuard<'a, RawTicketMutex, T>;

/// A [`RawOneShotMutex`] that is held with interrupts off.
pub type RawInterruptOneShotMutex = RawInterruptMutex<RawOneShotMutex>;

/// Data behind a [`RawInterruptOneShotMutex`].
pub type InterruptOneShotMutex<T> = lock_api::Mutex<RawInterruptOneShotMutex, T>;

/// The guard of an [`InterruptOneShotMutex`].
pub type InterruptOneShotMutexGuard<'a, T> = lock_api::MutexGuard<'a, RawInterruptOneShotMutex, T>;

/// A [`RawSpinMutex`] that is held with interrupts off.
pub type RawInterruptSpinMutex = RawInterruptMutex<RawSpinMutex>;

/// Data behind a [`RawInterruptSpinMutex`].
pub type InterruptSpinMutex<T> = lock_api::Mutex<RawInterruptSpinMutex, T>;

/// The guard of an [`InterruptSpinMutex`].
pub type InterruptSpinMutexGuard<'a, T> = lock_api::MutexGuard<'a, RawInterruptSpinMutex, T>;

/// A [`RawTicketMutex`] that is held with interrupts off.
pub type RawInterruptTicketMutex = RawInterruptMutex<RawTicketMutex>;

/// Data behind a [`RawInterruptTicketMutex`].
pub type InterruptTicketMutex<T> = lock_api::Mutex<RawInterruptTicketMutex, T>;

/// The guard of an [`InterruptTicketMutex`].
pub type InterruptTicketMutexGuard<'a, T> = lock_api::MutexGuard<'a, RawInterruptTicketMutex, T>;
