//! ArceOS' `kspin` with `pvlock` inside: the same names and the same promises as `kspin` 0.1.1, for
//! `[patch.crates-io]`.
//!
//! This crate owns the lock's face: which guard is taken around it, and in which order. The lock is
//! `pvlock`'s; what it asks of a kernel, `xen_guest::glue` answers. It knows nothing of ArceOS but
//! `kernel_guard`, since everything else in ArceOS stands on it.
#![no_std]

#[cfg(not(feature = "original"))]
mod base;
#[cfg(not(feature = "original"))]
pub use self::base::{BaseSpinLock, BaseSpinLockGuard};
#[cfg(feature = "original")]
mod theirs;
#[cfg(feature = "original")]
pub use self::theirs::{BaseSpinLock, BaseSpinLockGuard};

use kernel_guard::{NoOp, NoPreempt, NoPreemptIrqSave};

/// A spin lock that holds preemption off: for data that no interrupt handler takes.
pub type SpinNoPreempt<T> = BaseSpinLock<NoPreempt, T>;

/// What [`SpinNoPreempt`]'s `lock` returns.
pub type SpinNoPreemptGuard<'a, T> = BaseSpinLockGuard<'a, NoPreempt, T>;

/// A spin lock that holds preemption and interrupts off: for data that interrupt handlers take too.
pub type SpinNoIrq<T> = BaseSpinLock<NoPreemptIrqSave, T>;

/// What [`SpinNoIrq`]'s `lock` returns.
pub type SpinNoIrqGuard<'a, T> = BaseSpinLockGuard<'a, NoPreemptIrqSave, T>;

/// A spin lock that holds nothing off: for code that has done so itself, or data that no interrupt
/// handler takes.
pub type SpinRaw<T> = BaseSpinLock<NoOp, T>;

/// What [`SpinRaw`]'s `lock` returns.
pub type SpinRawGuard<'a, T> = BaseSpinLockGuard<'a, NoOp, T>;
