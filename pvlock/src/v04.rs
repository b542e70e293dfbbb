//! The locks behind `lock_api` 0.4, which kernels and the crates they use are written for. The
//! crate's own face: its root has the names below.
//!
//! Owns the impls and the aliases. `v05` is the same for `lock_api` 0.5.

use lock_api::{
    GuardNoSend, RawMutex, RawMutexFair, RawRwLock, RawRwLockDowngrade, RawRwLockRecursive,
};

use crate::irq::Off;
use crate::{Adaptive, Interrupts, Platform, Policy, RawIrqLock, RawPvLock, RawPvRwLock};

/// Data behind a [`RawPvLock`].
///
/// The methods have the names of `spin::Mutex` (`new`, `lock`, `try_lock`, `is_locked`, `get_mut`,
/// `into_inner`, `force_unlock`, and `MutexGuard::leak`), so that a kernel moves from it by one
/// alias of its own:
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
/// let guard: pvlock::MutexGuard<u8, Threads, pvlock::KickTwice> = FIFO.lock();
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
pub type Mutex<T, P, K = Adaptive> = lock_api::Mutex<RawPvLock<P, K>, T>;

/// The guard of a [`Mutex`].
pub type MutexGuard<'a, T, P, K = Adaptive> = lock_api::MutexGuard<'a, RawPvLock<P, K>, T>;

/// The guard of a part of what a [`Mutex`] holds.
pub type MappedMutexGuard<'a, T, P, K = Adaptive> =
    lock_api::MappedMutexGuard<'a, RawPvLock<P, K>, T>;

/// Data behind a [`RawPvLock`] that is held with interrupts off.
pub type IrqMutex<T, P, I, K = Adaptive> = lock_api::Mutex<RawIrqLock<RawPvLock<P, K>, I>, T>;

/// The guard of an [`IrqMutex`].
pub type IrqMutexGuard<'a, T, P, I, K = Adaptive> =
    lock_api::MutexGuard<'a, RawIrqLock<RawPvLock<P, K>, I>, T>;

/// Data behind a [`RawPvRwLock`]: many readers or one writer, whose order is that of the policy.
///
/// The names are those of `spin::RwLock` (`read`, `write`, `try_read`, `try_write`, `is_locked`,
/// ...), and `read_recursive` for handlers that may interrupt a reader.
///
/// ```
/// # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
/// # use platform::Threads;
/// static ROUTES: pvlock::RwLock<Vec<u32>, Threads> = pvlock::RwLock::new(Vec::new());
/// ROUTES.write().push(1);
/// let (one, another) = (ROUTES.read(), ROUTES.read());
/// assert_eq!((one[0], another[0]), (1, 1));
/// assert!(ROUTES.try_write().is_none());
/// ```
pub type RwLock<T, P, K = Adaptive> = lock_api::RwLock<RawPvRwLock<P, K>, T>;

/// What a reader of a [`RwLock`] has.
pub type RwLockReadGuard<'a, T, P, K = Adaptive> =
    lock_api::RwLockReadGuard<'a, RawPvRwLock<P, K>, T>;

/// What a writer of a [`RwLock`] has.
pub type RwLockWriteGuard<'a, T, P, K = Adaptive> =
    lock_api::RwLockWriteGuard<'a, RawPvRwLock<P, K>, T>;

// SAFETY: the word is a lock: one owner at a time, acquire on every path that takes it, release on
// every path that frees it. Forgetting a guard leaves it locked; a locked one may be moved by
// who owns it alone, because only its waiters refer to its address, and then there are none.
// `lock` unwinds without the lock, `bump` with it, `unlock` only where the lock was not held.
unsafe impl<P: Platform, K: Policy> RawMutex for RawPvLock<P, K> {
    #[allow(clippy::declare_interior_mutable_const)] // As the trait has it.
    const INIT: Self = Self::new();

    type GuardMarker = GuardNoSend;

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn lock(&self) {
        Self::lock(self);
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn try_lock(&self) -> bool {
        Self::try_lock(self)
    }

    #[inline]
    unsafe fn unlock(&self) {
        // SAFETY: the caller owns the lock.
        unsafe { Self::unlock(self) }
    }

    #[inline]
    fn is_locked(&self) -> bool {
        Self::is_locked(self)
    }
}

// SAFETY: the inner lock keeps the rules of `RawMutex`; this one adds that interrupts are off from
// before it is taken until after it is released.
unsafe impl<R: RawMutex, I: Interrupts> RawMutex for RawIrqLock<R, I> {
    #[allow(clippy::declare_interior_mutable_const)] // As the trait has it.
    const INIT: Self = Self::over(R::INIT);

    type GuardMarker = GuardNoSend;

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn lock(&self) {
        let off = Off::new();
        self.inner().lock();
        // SAFETY: taken just now.
        unsafe { self.keep(off) };
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn try_lock(&self) -> bool {
        let off = Off::new();
        let taken = self.inner().try_lock();
        if taken {
            // SAFETY: taken just now.
            unsafe { self.keep(off) };
        }
        taken
    }

    #[inline]
    unsafe fn unlock(&self) {
        // SAFETY: the caller owns this lock.
        let _off = unsafe { self.off() };
        // SAFETY: and with it the inner one.
        unsafe { self.inner().unlock() }
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.inner().is_locked()
    }
}

// SAFETY: a writer is in alone, and readers only with readers; acquire on every way in, release on
// every way out.
unsafe impl<P: Platform, K: Policy> RawRwLock for RawPvRwLock<P, K> {
    #[allow(clippy::declare_interior_mutable_const)] // As the trait has it.
    const INIT: Self = Self::new();

    type GuardMarker = GuardNoSend;

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn lock_shared(&self) {
        Self::lock_shared(self);
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn try_lock_shared(&self) -> bool {
        Self::try_lock_shared(self)
    }

    #[inline]
    unsafe fn unlock_shared(&self) {
        // SAFETY: the caller holds the lock for reading.
        unsafe { Self::unlock_shared(self) }
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn lock_exclusive(&self) {
        Self::lock_exclusive(self);
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn try_lock_exclusive(&self) -> bool {
        Self::try_lock_exclusive(self)
    }

    #[inline]
    unsafe fn unlock_exclusive(&self) {
        // SAFETY: the caller holds the lock for writing.
        unsafe { Self::unlock_exclusive(self) }
    }

    #[inline]
    fn is_locked(&self) -> bool {
        Self::is_locked(self)
    }

    #[inline]
    fn is_locked_exclusive(&self) -> bool {
        Self::is_locked_exclusive(self)
    }
}

// SAFETY: no other writer comes in between.
unsafe impl<P: Platform, K: Policy> RawRwLockDowngrade for RawPvRwLock<P, K> {
    #[inline]
    unsafe fn downgrade(&self) {
        // SAFETY: the caller holds the lock for writing.
        unsafe { Self::downgrade(self) }
    }
}

// SAFETY: while there is a reader it waits for nobody.
unsafe impl<P: Platform, K: Policy> RawRwLockRecursive for RawPvRwLock<P, K> {
    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn lock_shared_recursive(&self) {
        Self::lock_shared_recursive(self);
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn try_lock_shared_recursive(&self) -> bool {
        Self::try_lock_shared_recursive(self)
    }
}

// SAFETY: a fair unlock lets the head of the queue go first. `bump` does nothing, or is a fair
// unlock and a lock; if the lock unwinds, it has the lock again.
unsafe impl<P: Platform, K: Policy> RawMutexFair for RawPvLock<P, K> {
    #[inline]
    unsafe fn unlock_fair(&self) {
        // SAFETY: the caller owns the lock.
        unsafe { Self::unlock_fair(self) }
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    unsafe fn bump(&self) {
        // SAFETY: the caller owns the lock.
        unsafe { Self::bump(self) }
    }
}

// SAFETY: as the inner lock. Interrupts stay off through a bump.
unsafe impl<R: RawMutexFair, I: Interrupts> RawMutexFair for RawIrqLock<R, I> {
    #[inline]
    unsafe fn unlock_fair(&self) {
        // SAFETY: the caller owns this lock.
        let _off = unsafe { self.off() };
        // SAFETY: and with it the inner one.
        unsafe { self.inner().unlock_fair() }
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    unsafe fn bump(&self) {
        // SAFETY: the caller owns the lock, and after a bump too, as `RawMutexFair` demands.
        let _put_back = unsafe { self.lend() };
        // SAFETY: as above.
        unsafe { self.inner().bump() }
    }
}
