//! A queue spinlock for virtual machines: four bytes, and its waiters sleep in the hypervisor
//! instead of burning the time of the vCPU they wait for.
//!
//! This crate is the lock and nothing else. It knows no hypervisor: a kernel tells it who it is,
//! where the nodes lie and how a CPU sleeps and wakes, by the [`Platform`] trait. It allocates
//! nothing and runs in any context, interrupt handlers and NMIs included.
//!
//! - [`Mutex`] is the face for data: `lock_api`'s mutex over [`RawPvLock`].
//! - A [`Policy`] says when a waiter sleeps and who wakes it. [`KickTwice`] and [`KickAtUnlock`] are the
//!   two sides of the patch that this project grew from, [`Hybrid`] is what came after it elsewhere,
//!   [`Adaptive`] goes past it.
//! - [`IrqMutex`] keeps interrupts off while it is held.
//! - [`Mode`] chooses at boot between sleeping waiters, a spinning queue, and test-and-set.
//! - [`debug::Dump`] shows a stuck lock, [`counters()`] what happened.
//!
//! Inside: `word` has the four bytes and every step on them, `queue` what all waiters do, `native` and
//! `pv` how they wait, `hash` who sleeps on what. An arrow never runs back in this list.
#![cfg_attr(not(any(loom, test)), no_std)]

mod adaptive;
mod counters;
pub mod debug;
mod hash;
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
mod pv;
#[cfg(all(test, not(any(loom, shuttle))))]
mod pv_tests;
mod queue;
mod raw;
mod sync;
#[cfg(all(feature = "lock_api_04", not(loom)))]
pub mod v04;
mod word;

pub use adaptive::Adaptive;
pub use counters::{Counter, add as add_to_counter, counters};
pub use hash::{HashStorage, HashTable};
#[cfg(not(loom))]
pub use irq::{Interrupts, IrqGuard, RawIrqLock};
pub use mode::{Mode, ModeCell, ModeSettled};
pub use node::CpuNodes;
pub use platform::Platform;
pub use policy::{Handover, Hybrid, KickAtUnlock, KickTwice, Policy, Spin, Stage};
pub use raw::RawPvLock;

/// Data behind a [`RawPvLock`].
///
/// The methods have the names of `spin::Mutex` (`new`, `lock`, `try_lock`, `is_locked`, `get_mut`,
/// `into_inner`, `force_unlock`), so that a kernel moves from it by one alias of its own:
///
/// ```
/// # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
/// # use platform::Threads;
/// // was: use spin::Mutex;
/// type Mutex<T> = pvlock::Mutex<T, Threads>;
///
/// static QUEUE: Mutex<Vec<u32>> = Mutex::new(Vec::new());
/// QUEUE.lock().push(1);
/// assert!(!QUEUE.is_locked());
/// assert_eq!(QUEUE.try_lock().as_deref().map(Vec::len), Some(1));
/// ```
///
/// A guard does not leave its CPU:
///
/// ```compile_fail,E0277
/// # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
/// # use platform::Threads;
/// static DATA: pvlock::Mutex<u8, Threads> = pvlock::Mutex::new(1);
/// fn send(_: impl Send) {}
/// send(DATA.lock());
/// ```
///
/// Nor does a guard unlock another kind of lock than its own, or the same lock twice:
///
/// ```compile_fail,E0308
/// # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
/// # use platform::Threads;
/// static FIFO: pvlock::Mutex<u8, Threads, pvlock::KickAtUnlock> = pvlock::Mutex::new(1);
/// let guard: pvlock::MutexGuard<u8, Threads, pvlock::Hybrid> = FIFO.lock();
/// ```
///
/// ```compile_fail,E0382
/// # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
/// # use platform::Threads;
/// static DATA: pvlock::Mutex<u8, Threads> = pvlock::Mutex::new(1);
/// let guard = DATA.lock();
/// drop(guard);
/// drop(guard);
/// ```
#[cfg(not(loom))]
pub type Mutex<T, P, K = KickAtUnlock> = lock_api::Mutex<RawPvLock<P, K>, T>;

/// The guard of a [`Mutex`].
#[cfg(not(loom))]
pub type MutexGuard<'a, T, P, K = KickAtUnlock> = lock_api::MutexGuard<'a, RawPvLock<P, K>, T>;

/// Data behind a [`RawPvLock`] that is held with interrupts off.
#[cfg(not(loom))]
pub type IrqMutex<T, P, I, K = KickAtUnlock> = lock_api::Mutex<RawIrqLock<RawPvLock<P, K>, I>, T>;
