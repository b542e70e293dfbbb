//! A lock whose guard keeps interrupts off.
//!
//! Owns the order of the two: interrupts off, lock, ..., unlock, interrupts as they were. Works over any
//! `lock_api` raw mutex and any way to turn interrupts off.

use core::marker::PhantomData;

use lock_api::{RawMutex, RawMutexFair};

/// How this kernel turns interrupts off on the calling CPU, and back.
///
/// On bare metal and in a PVH guest `rflags`, `cli` and `sti`; in a PV guest of Xen the upcall mask in
/// `vcpu_info`, because there `cli` and `sti` mask nothing.
///
/// # Safety
///
/// Between `disable` and `restore` no handler that may take a lock runs on this CPU, and the calling
/// context stays on it.
pub unsafe trait Interrupts: 'static {
    /// What is to be put back.
    type Saved: Copy;

    /// The state now.
    fn save() -> Self::Saved;

    /// Turns interrupts off.
    fn disable();

    /// Puts a saved state back, and takes delivery of what has come in meanwhile.
    fn restore(saved: Self::Saved);
}

/// A raw mutex that is only held with interrupts off.
///
/// Guards must be dropped in the reverse order of their making: each puts back what it found.
///
/// ```
/// # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
/// # use platform::Threads;
/// use std::cell::Cell;
/// use pvlock::{Interrupts, IrqMutex, KickAtUnlock};
///
/// thread_local!(static ENABLED: Cell<bool> = const { Cell::new(true) });
///
/// struct Flag;
///
/// // SAFETY: the interrupts of this machine are those that look at the flag.
/// unsafe impl Interrupts for Flag {
///     type Saved = bool;
///     fn save() -> bool { ENABLED.get() }
///     fn disable() { ENABLED.set(false) }
///     fn restore(saved: bool) { ENABLED.set(saved) }
/// }
///
/// static TICKS: IrqMutex<u64, Threads, Flag, KickAtUnlock> = IrqMutex::new(0);
///
/// let mut ticks = TICKS.lock();
/// assert!(!ENABLED.get());
/// *ticks += 1;
/// drop(ticks);
/// assert!(ENABLED.get());
/// ```
pub struct RawIrqLock<R, I> {
    inner: R,
    _interrupts: PhantomData<fn() -> I>,
}

/// What a guard puts back. Not `Send`: interrupts belong to a CPU.
pub struct IrqGuard<G, I: Interrupts> {
    inner: G,
    saved: I::Saved,
    _not_send: PhantomData<*mut ()>,
}

// SAFETY: the inner lock keeps the rules of `RawMutex`; this one adds that interrupts are off from
// before it is taken until after it is released.
unsafe impl<R: RawMutex, I: Interrupts> RawMutex for RawIrqLock<R, I> {
    const INIT: Self = Self { inner: R::INIT, _interrupts: PhantomData };

    type Guard = IrqGuard<R::Guard, I>;

    #[inline]
    fn lock(&self) -> Self::Guard {
        let saved = I::save();
        I::disable();
        IrqGuard { inner: self.inner.lock(), saved, _not_send: PhantomData }
    }

    #[inline]
    fn try_lock(&self) -> Option<Self::Guard> {
        let saved = I::save();
        I::disable();
        let inner = self.inner.try_lock();
        if inner.is_none() {
            I::restore(saved);
        }
        inner.map(|inner| IrqGuard { inner, saved, _not_send: PhantomData })
    }

    #[inline]
    unsafe fn unlock(&self, guard: Self::Guard) {
        // SAFETY: the guard holds the inner lock's state of the same acquisition.
        unsafe { self.inner.unlock(guard.inner) };
        I::restore(guard.saved);
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.inner.is_locked()
    }
}

// SAFETY: as the inner lock. Interrupts stay off through a bump.
unsafe impl<R: RawMutexFair, I: Interrupts> RawMutexFair for RawIrqLock<R, I> {
    #[inline]
    unsafe fn unlock_fair(&self, guard: Self::Guard) {
        // SAFETY: the guard holds the inner lock's state of the same acquisition.
        unsafe { self.inner.unlock_fair(guard.inner) };
        I::restore(guard.saved);
    }

    #[inline]
    unsafe fn bump(&self, guard: &mut Self::Guard) {
        // SAFETY: the guard holds the inner lock's state of the same acquisition.
        unsafe { self.inner.bump(&mut guard.inner) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::{Cell, RefCell};
    use lock_api::GuardNoSend;

    thread_local! {
        static EVENTS: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
        static ENABLED: Cell<bool> = const { Cell::new(true) };
        static HELD: Cell<u32> = const { Cell::new(0) };
    }

    fn event(name: &'static str) {
        EVENTS.with_borrow_mut(|events| events.push(name));
    }

    struct Flag;

    // SAFETY: there are no interrupts in this test.
    unsafe impl Interrupts for Flag {
        type Saved = bool;

        fn save() -> bool {
            ENABLED.get()
        }

        fn disable() {
            event("off");
            ENABLED.set(false);
        }

        fn restore(saved: bool) {
            event(if saved { "on" } else { "still off" });
            ENABLED.set(saved);
        }
    }

    struct Spy;

    // SAFETY: used by one thread, which never takes it twice.
    unsafe impl RawMutex for Spy {
        #[allow(clippy::declare_interior_mutable_const)]
        const INIT: Self = Self;
        type Guard = GuardNoSend;

        fn lock(&self) -> GuardNoSend {
            HELD.set(HELD.get() + 1);
            event("lock");
            GuardNoSend::new()
        }

        fn try_lock(&self) -> Option<GuardNoSend> {
            event("no lock");
            None
        }

        unsafe fn unlock(&self, _: GuardNoSend) {
            HELD.set(HELD.get() - 1);
            event("unlock");
        }

        fn is_locked(&self) -> bool {
            HELD.get() > 0
        }
    }

    #[test]
    fn interrupts_are_off_around_the_lock_and_come_back_as_they_were() {
        let outer = lock_api::Mutex::<RawIrqLock<Spy, Flag>, ()>::new(());
        let inner = lock_api::Mutex::<RawIrqLock<Spy, Flag>, ()>::new(());
        let held = outer.lock();
        assert!(outer.is_locked(), "says the inner lock");
        drop(inner.lock());
        assert!(inner.try_lock().is_none());
        drop(held);
        assert!(!outer.is_locked());
        let events = EVENTS.take();
        assert_eq!(
            events,
            [
                "off",
                "lock",
                "off",
                "lock",
                "unlock",
                "still off",
                "off",
                "no lock",
                "still off",
                "unlock",
                "on"
            ]
        );
        assert!(ENABLED.get());
    }
}
