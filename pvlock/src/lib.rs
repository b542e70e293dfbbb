#![doc = include_str!("../README.md")]
//!
//! # Where to find what
//!
//! - [`Mutex`] is the face for data: `lock_api`'s mutex over [`RawPvLock`]. The names in this root
//!   are for `lock_api` 0.4, for 0.5 they are in `v05`.
//! - A [`Policy`] says when a waiter sleeps and who wakes it. [`Adaptive`] is the default: a
//!   running CPU may pass those that sleep, for a time that is bounded. [`KickTwice`] and
//!   [`KickAtUnlock`] are the two sides of the patch that this project grew from, and strictly
//!   FIFO.
//! - [`RwLock`] lets many readers in, or one writer.
//! - [`IrqMutex`] keeps interrupts off while it is held.
//! - [`Mode`] chooses at boot between sleeping waiters, a spinning queue, and test-and-set.
//! - The feature `checker` finds locks that are used wrongly, and tells [`Platform::report`].
//! - [`debug::Dump`] shows a stuck lock, [`counters()`] what happened.
//!
//! Inside: `word` has the four bytes and every step on them, `queue` what all waiters do, `native`
//! and `pv` how they wait, `hash` who sleeps on what. An arrow never runs back in this list.
#![cfg_attr(not(any(loom, test)), no_std)]

mod adaptive;
mod checker;
mod counters;
mod counts;
pub mod debug;
mod hash;
#[cfg(feature = "checker")]
mod held;
#[cfg(not(loom))]
mod irq;
mod mode;
#[cfg(loom)]
#[doc(hidden)]
pub mod model;
mod native;
mod node;
mod platform;
mod policy;
#[cfg(all(test, not(any(loom, shuttle))))]
mod policy_tests;
#[cfg(any(loom, shuttle, feature = "posted-patch"))]
mod posted;
mod pv;
#[cfg(all(test, not(any(loom, shuttle))))]
mod pv_tests;
mod queue;
#[cfg(all(test, not(any(loom, shuttle))))]
mod queue_tests;
mod raw;
mod rwlock;
mod sync;
mod trouble;
#[cfg(not(loom))]
pub mod v04;
#[cfg(all(feature = "lock_api_05", not(loom)))]
pub mod v05;
mod word;

pub use adaptive::{Adaptive, AdaptiveWithin};
pub use counters::{add as add_to_counter, counters};
pub use counts::Counter;
pub use hash::{HashStorage, HashTable};
#[cfg(not(loom))]
pub use irq::{Interrupts, Preemption, PreemptionOff, RawIrqLock};
pub use mode::{Mode, ModeCell, ModeSettled};
pub use node::CpuNodes;
pub use platform::{Platform, wait_for_kicks};
#[cfg(feature = "ablation")]
#[doc(hidden)]
pub use policy::Mechanism;
pub use policy::{Handover, KickAtUnlock, KickTwice, Policy, Spin, Stage};
pub use raw::RawPvLock;
pub use rwlock::RawPvRwLock;
pub use trouble::{Circle, Link, Trouble};
#[cfg(not(loom))]
pub use v04::{
    IrqMutex, IrqMutexGuard, MappedMutexGuard, Mutex, MutexGuard, RwLock, RwLockReadGuard,
    RwLockWriteGuard,
};
