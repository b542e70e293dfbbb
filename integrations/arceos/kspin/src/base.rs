//! The lock and its guard, for any of `kernel_guard`'s guards.
//!
//! Owns the order of the two: the guard is acquired before the lock and released after it.

use core::any::TypeId;
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use kernel_guard::{BaseGuard, NoOp, NoPreempt};
use pvlock::{Adaptive, RawPvLock};
use xen_guest::glue::XenPlatform;
use xen_guest::markers::{self, Marked};

type Raw = RawPvLock<XenPlatform<Marked>, Adaptive>;

/// A lock around a value; `G` is what it holds off meanwhile, such as interrupts.
///
/// Without the feature `smp` it is the guard alone.
pub struct BaseSpinLock<G: BaseGuard, T: ?Sized> {
    guard: PhantomData<G>,
    #[cfg_attr(not(feature = "smp"), allow(dead_code))]
    raw: Raw,
    data: UnsafeCell<T>,
}

/// Access to the value, and the lock's owner: dropped, it releases the lock.
pub struct BaseSpinLockGuard<'a, G: BaseGuard, T: ?Sized + 'a> {
    lock: &'a BaseSpinLock<G, T>,
    state: G::State,
    /// As `kspin`'s own: a guard stays with its task.
    value: PhantomData<*mut T>,
}

// SAFETY: the lock hands out one `&mut T` at a time, on whatever CPU.
unsafe impl<G: BaseGuard, T: ?Sized + Send> Sync for BaseSpinLock<G, T> {}
// SAFETY: it owns its value, and the rest is an atomic.
unsafe impl<G: BaseGuard, T: ?Sized + Send> Send for BaseSpinLock<G, T> {}

impl<G: BaseGuard, T> BaseSpinLock<G, T> {
    /// A free lock around `data`.
    #[inline(always)]
    pub const fn new(data: T) -> Self {
        Self { guard: PhantomData, raw: Raw::new(), data: UnsafeCell::new(data) }
    }

    /// The value.
    #[inline(always)]
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<G: BaseGuard, T: ?Sized> BaseSpinLock<G, T> {
    /// Takes the lock.
    #[inline(always)]
    pub fn lock(&self) -> BaseSpinLockGuard<'_, G, T> {
        let state = G::acquire();
        if !self.try_lock_raw() {
            self.wait();
        }
        BaseSpinLockGuard { lock: self, state, value: PhantomData }
    }

    /// Takes the lock if it is free.
    #[inline(always)]
    pub fn try_lock(&self) -> Option<BaseSpinLockGuard<'_, G, T>> {
        let state = G::acquire();
        if self.try_lock_raw() {
            Some(BaseSpinLockGuard { lock: self, state, value: PhantomData })
        } else {
            G::release(state);
            None
        }
    }

    #[inline(always)]
    fn try_lock_raw(&self) -> bool {
        !cfg!(feature = "smp") || self.raw.try_lock()
    }

    /// Waits for the lock, and takes it. A waiter is in a queue with its CPU's number and must not move
    /// to another: `SpinRaw` is taken in tasks that ArceOS moves, too.
    #[cold]
    fn wait(&self) {
        NoPreempt::acquire();
        markers::acquire(&self.raw, || self.raw.lock());
        NoPreempt::release(());
    }

    /// Releases the lock, in whose last steps, the kick, the task must not move to another CPU either.
    ///
    /// # Safety
    ///
    /// The caller owns the lock.
    #[inline(always)]
    unsafe fn unlock_raw(&self) {
        // Known at compile time: one of the two is all that is left.
        let may_move = typeid::of::<G>() == TypeId::of::<NoOp>();
        if may_move {
            NoPreempt::acquire();
        }
        // SAFETY: the caller's promise.
        unsafe { self.raw.unlock() };
        if may_move {
            NoPreempt::release(());
        }
    }

    /// Whether somebody owns the lock. A snapshot.
    #[inline(always)]
    pub fn is_locked(&self) -> bool {
        cfg!(feature = "smp") && self.raw.is_locked()
    }

    /// Releases the lock without a guard.
    ///
    /// # Safety
    ///
    /// The calling context owns the lock, and its guard was forgotten. What the guard held off stays
    /// so.
    #[inline(always)]
    pub unsafe fn force_unlock(&self) {
        if cfg!(feature = "smp") {
            // SAFETY: the caller's promise.
            unsafe { self.unlock_raw() };
        }
    }

    /// The value, of a lock that nobody else knows.
    #[inline(always)]
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

impl<G: BaseGuard, T: Default> Default for BaseSpinLock<G, T> {
    #[inline(always)]
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<G: BaseGuard, T: ?Sized + fmt::Debug> fmt::Debug for BaseSpinLock<G, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(guard) => {
                f.write_str("SpinLock { data: ")?;
                (*guard).fmt(f)?;
                f.write_str("}")
            }
            None => f.write_str("SpinLock { <locked> }"),
        }
    }
}

impl<G: BaseGuard, T: ?Sized> Deref for BaseSpinLockGuard<'_, G, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the guard owns the lock.
        unsafe { &*self.lock.data.get() }
    }
}

impl<G: BaseGuard, T: ?Sized> DerefMut for BaseSpinLockGuard<'_, G, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<G: BaseGuard, T: ?Sized + fmt::Debug> fmt::Debug for BaseSpinLockGuard<'_, G, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<G: BaseGuard, T: ?Sized> Drop for BaseSpinLockGuard<'_, G, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the guard owns the lock.
        unsafe { self.lock.force_unlock() };
        G::release(self.state);
    }
}
