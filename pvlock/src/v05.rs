//! The locks behind `lock_api` 0.5, under the names they have in the crate's root for 0.4. Feature
//! `lock_api_05`; it needs Rust 1.95, as `lock_api` 0.5 does.
//!
//! Owns the impls and the aliases. [`v04`](crate::v04) is the same for `lock_api` 0.4.
//!
//! ```
//! # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
//! # use platform::Threads;
//! static DATA: pvlock::v05::Mutex<u32, Threads> = pvlock::v05::Mutex::new(1);
//! *DATA.lock() += 1;
//! assert_eq!(*DATA.lock(), 2);
//! ```

use core::marker::PhantomData;

use lock_api_05::{GuardNoSend, RawMutex, RawMutexFair, RawRwLock, RawRwLockDowngrade};

use crate::irq::Off;
use crate::{Adaptive, Interrupts, Platform, Policy, RawIrqLock, RawPvLock, RawPvRwLock};

/// Data behind a [`RawPvLock`].
pub type Mutex<T, P, K = Adaptive> = lock_api_05::Mutex<RawPvLock<P, K>, T>;

/// The guard of a [`Mutex`].
pub type MutexGuard<'a, T, P, K = Adaptive> = lock_api_05::MutexGuard<'a, RawPvLock<P, K>, T>;

/// The guard of a part of what a [`Mutex`] holds.
pub type MappedMutexGuard<'a, T, P, K = Adaptive> =
    lock_api_05::MappedMutexGuard<'a, RawPvLock<P, K>, T>;

/// Data behind a [`RawPvLock`] that is held with interrupts off.
pub type IrqMutex<T, P, I, K = Adaptive> = lock_api_05::Mutex<RawIrqLock<RawPvLock<P, K>, I>, T>;

/// The guard of an [`IrqMutex`].
pub type IrqMutexGuard<'a, T, P, I, K = Adaptive> =
    lock_api_05::MutexGuard<'a, RawIrqLock<RawPvLock<P, K>, I>, T>;

/// Data behind a [`RawPvRwLock`]: many readers or one writer, whose order is that of the policy.
pub type RwLock<T, P, K = Adaptive> = lock_api_05::RwLock<RawPvRwLock<P, K>, T>;

/// What a reader of a [`RwLock`] has.
pub type RwLockReadGuard<'a, T, P, K = Adaptive> =
    lock_api_05::RwLockReadGuard<'a, RawPvRwLock<P, K>, T>;

/// What a writer of a [`RwLock`] has.
pub type RwLockWriteGuard<'a, T, P, K = Adaptive> =
    lock_api_05::RwLockWriteGuard<'a, RawPvRwLock<P, K>, T>;

// SAFETY: as the impl for `lock_api` 0.4.
unsafe impl<P: Platform, K: Policy> RawMutex for RawPvLock<P, K> {
    const INIT: Self = Self::new();

    type Guard = GuardNoSend;

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn lock(&self) -> Self::Guard {
        Self::lock(self);
        GuardNoSend::new()
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn try_lock(&self) -> Option<Self::Guard> {
        Self::try_lock(self).then_some(GuardNoSend::new())
    }

    #[inline]
    unsafe fn unlock(&self, _guard: Self::Guard) {
        // SAFETY: the guard state proves that this context owns the lock.
        unsafe { Self::unlock(self) }
    }

    #[inline]
    fn is_locked(&self) -> bool {
        Self::is_locked(self)
    }
}

/// The state of a guard that keeps interrupts off. Not `Send`: interrupts belong to a CPU.
pub struct IrqGuard<G> {
    inner: G,
    _not_send: PhantomData<*mut ()>,
}

// SAFETY: as the impl for `lock_api` 0.4.
unsafe impl<R: RawMutex, I: Interrupts> RawMutex for RawIrqLock<R, I> {
    const INIT: Self = Self::over(R::INIT);

    type Guard = IrqGuard<R::Guard>;

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn lock(&self) -> Self::Guard {
        let off = Off::new();
        let inner = self.inner().lock();
        // SAFETY: taken just now.
        unsafe { self.keep(off) };
        IrqGuard { inner, _not_send: PhantomData }
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn try_lock(&self) -> Option<Self::Guard> {
        let off = Off::new();
        let inner = self.inner().try_lock()?;
        // SAFETY: taken just now.
        unsafe { self.keep(off) };
        Some(IrqGuard { inner, _not_send: PhantomData })
    }

    #[inline]
    unsafe fn unlock(&self, guard: Self::Guard) {
        // SAFETY: the guard proves that this context owns the lock.
        let _off = unsafe { self.off() };
        // SAFETY: the guard holds the inner lock's state of the same acquisition.
        unsafe { self.inner().unlock(guard.inner) }
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.inner().is_locked()
    }
}

// SAFETY: as the impl for `lock_api` 0.4.
unsafe impl<P: Platform, K: Policy> RawRwLock for RawPvRwLock<P, K> {
    const INIT: Self = Self::new();

    type SharedGuard = GuardNoSend;
    type ExclusiveGuard = GuardNoSend;

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn lock_shared(&self) -> GuardNoSend {
        Self::lock_shared(self);
        GuardNoSend::new()
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn try_lock_shared(&self) -> Option<GuardNoSend> {
        Self::try_lock_shared(self).then_some(GuardNoSend::new())
    }

    #[inline]
    unsafe fn unlock_shared(&self, _guard: GuardNoSend) {
        // SAFETY: the guard state proves that this context reads.
        unsafe { Self::unlock_shared(self) }
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn lock_exclusive(&self) -> GuardNoSend {
        Self::lock_exclusive(self);
        GuardNoSend::new()
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn try_lock_exclusive(&self) -> Option<GuardNoSend> {
        Self::try_lock_exclusive(self).then_some(GuardNoSend::new())
    }

    #[inline]
    unsafe fn unlock_exclusive(&self, _guard: GuardNoSend) {
        // SAFETY: the guard state proves that this context writes.
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
    unsafe fn downgrade(&self, guard: GuardNoSend) -> GuardNoSend {
        // SAFETY: the guard state proves that this context writes.
        unsafe { Self::downgrade(self) };
        guard
    }
}

// SAFETY: as the impl for `lock_api` 0.4.
unsafe impl<P: Platform, K: Policy> RawMutexFair for RawPvLock<P, K> {
    #[inline]
    unsafe fn unlock_fair(&self, _guard: Self::Guard) {
        // SAFETY: the guard state proves that this context owns the lock.
        unsafe { Self::unlock_fair(self) }
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    unsafe fn bump(&self, _guard: &mut Self::Guard) {
        // SAFETY: the guard state proves that this context owns the lock.
        unsafe { Self::bump(self) }
    }
}

// SAFETY: as the impl for `lock_api` 0.4.
unsafe impl<R: RawMutexFair, I: Interrupts> RawMutexFair for RawIrqLock<R, I> {
    #[inline]
    unsafe fn unlock_fair(&self, guard: Self::Guard) {
        // SAFETY: the guard proves that this context owns the lock.
        let _off = unsafe { self.off() };
        // SAFETY: the guard holds the inner lock's state of the same acquisition.
        unsafe { self.inner().unlock_fair(guard.inner) }
    }

    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    unsafe fn bump(&self, guard: &mut Self::Guard) {
        // SAFETY: the context owns the lock, and after a bump too, as `RawMutexFair` demands.
        let _put_back = unsafe { self.lend() };
        // SAFETY: the guard holds the inner lock's state of the same acquisition.
        unsafe { self.inner().bump(&mut guard.inner) }
    }
}
