//! The lock behind `lock_api` 0.4, which most kernels still use. Feature `lock_api_04`.
//!
//! Owns the two impls and nothing else.

use crate::{Platform, Policy, RawPvLock};

/// [`Mutex`](crate::Mutex) for code written against `lock_api` 0.4.
///
/// ```
/// # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
/// # use platform::Threads;
/// static DATA: pvlock::v04::Mutex<u32, Threads> = pvlock::v04::Mutex::new(1);
/// *DATA.lock() += 1;
/// assert_eq!(*DATA.lock(), 2);
/// ```
pub type Mutex<T, P, K = crate::KickAtUnlock> = lock_api_04::Mutex<RawPvLock<P, K>, T>;

// SAFETY: as the impl for `lock_api` 0.5.
unsafe impl<P: Platform, K: Policy> lock_api_04::RawMutex for RawPvLock<P, K> {
    #[allow(clippy::declare_interior_mutable_const)] // As the trait has it.
    const INIT: Self = Self::new();

    type GuardMarker = lock_api_04::GuardNoSend;

    #[inline]
    fn lock(&self) {
        Self::lock(self);
    }

    #[inline]
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

// SAFETY: as the impl for `lock_api` 0.5.
unsafe impl<P: Platform, K: Policy> lock_api_04::RawMutexFair for RawPvLock<P, K> {
    #[inline]
    unsafe fn unlock_fair(&self) {
        // SAFETY: the caller owns the lock.
        unsafe { Self::unlock(self) }
    }
}
