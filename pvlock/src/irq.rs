//! A lock whose guard keeps interrupts off.
//!
//! Owns the order of the two: interrupts off, lock, ..., unlock, interrupts as they were. Works
//! over any `lock_api` raw mutex and any way to turn interrupts off.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

/// How this kernel turns interrupts off on the calling CPU, and back.
///
/// On bare metal and in a PVH guest `rflags`, `cli` and `sti`; in a PV guest of Xen the upcall mask
/// in `vcpu_info`, because there `cli` and `sti` mask nothing.
///
/// # Safety
///
/// Between `disable` and `restore` nothing else runs on this CPU that takes a lock held this way,
/// the calling context stays on it, and no function unwinds.
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

/// How a kernel that preempts tasks keeps one from being preempted, on the calling CPU. The lock
/// needs it off inside `lock` and `unlock` ([`Platform`](crate::Platform), clause 3), and everybody
/// needs it off while a spinlock is held.
///
/// For locks that interrupt handlers do not take; where they do, [`Interrupts`] that are off keep
/// tasks from being preempted as well.
///
/// ```
/// # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
/// # use platform::Threads;
/// use std::cell::Cell;
/// use pvlock::{IrqMutex, Preemption, PreemptionOff};
///
/// thread_local!(static COUNT: Cell<u32> = const { Cell::new(0) });
///
/// struct Count;
///
/// // SAFETY: the scheduler of this machine preempts nobody while the count is not 0.
/// unsafe impl Preemption for Count {
///     fn disable() { COUNT.set(COUNT.get() + 1) }
///     fn enable() { COUNT.set(COUNT.get() - 1) }
/// }
///
/// static RUNNING: IrqMutex<u32, Threads, PreemptionOff<Count>> = IrqMutex::new(0);
///
/// let running = RUNNING.lock();
/// assert_eq!(COUNT.get(), 1);
/// drop(running);
/// assert_eq!(COUNT.get(), 0);
/// ```
///
/// # Safety
///
/// Between a `disable` and its `enable` the calling task stays on this CPU, and no other task runs
/// there. They nest, and neither unwinds.
pub unsafe trait Preemption: 'static {
    /// One reason more not to preempt.
    fn disable();

    /// One reason less. Preempts, if that is due.
    fn enable();
}

/// [`Preemption`] in the place of [`Interrupts`]: `IrqMutex<T, P, PreemptionOff<X>>`.
pub struct PreemptionOff<X>(core::marker::PhantomData<X>);

// SAFETY: as `Preemption` promises, for locks that no interrupt handler takes.
unsafe impl<X: Preemption> Interrupts for PreemptionOff<X> {
    type Saved = ();

    #[inline]
    fn save() {}

    #[inline]
    fn disable() {
        X::disable();
    }

    #[inline]
    fn restore((): ()) {
        X::enable();
    }
}

/// A raw mutex that is only held with interrupts off.
///
/// Guards are to be dropped in the reverse order of their making: each puts back what it found.
/// Dropped the other way round, interrupts come back with the first of them, while the other lock
/// is held, and are off after the second; memory is safe nevertheless. If the inner lock panics,
/// they are as they were before. What is found is kept in the lock, which is larger by that: eight
/// bytes in all, where a flag is saved.
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
pub struct RawIrqLock<R, I: Interrupts> {
    inner: R,
    /// What the owner puts back.
    saved: UnsafeCell<MaybeUninit<I::Saved>>,
}

// SAFETY: `saved` belongs to the owner of `inner`.
unsafe impl<R: Sync, I: Interrupts> Sync for RawIrqLock<R, I> {}

/// Interrupts are off as long as this exists: if a lock fails or panics, they come back.
pub(crate) struct Off<I: Interrupts>(I::Saved);

impl<I: Interrupts> Off<I> {
    #[inline]
    pub(crate) fn new() -> Self {
        let saved = I::save();
        I::disable();
        Self(saved)
    }

    /// They stay off: the caller puts them back.
    #[inline]
    fn keep(self) -> I::Saved {
        let saved = self.0;
        core::mem::forget(self);
        saved
    }
}

impl<I: Interrupts> Drop for Off<I> {
    #[inline]
    fn drop(&mut self) {
        I::restore(self.0);
    }
}

impl<R, I: Interrupts> RawIrqLock<R, I> {
    /// `inner`, held with interrupts off.
    pub(crate) const fn over(inner: R) -> Self {
        Self { inner, saved: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    #[inline]
    pub(crate) fn inner(&self) -> &R {
        &self.inner
    }

    /// Keeps what was saved before the inner lock was taken, until [`off`](Self::off).
    ///
    /// # Safety
    ///
    /// The calling context owns the inner lock.
    #[inline]
    pub(crate) unsafe fn keep(&self, off: Off<I>) {
        // SAFETY: the lock is ours, and the cell with it.
        unsafe { *self.saved.get() = MaybeUninit::new(off.keep()) };
    }

    /// Takes out what is kept, and puts it back when the result is dropped. In between others may
    /// own the lock and keep their state in it.
    ///
    /// # Safety
    ///
    /// The calling context owns the lock now, and when the result is dropped.
    #[inline]
    pub(crate) unsafe fn lend(&self) -> impl Drop {
        struct PutBack<'a, S: Copy>(&'a UnsafeCell<MaybeUninit<S>>, MaybeUninit<S>);

        impl<S: Copy> Drop for PutBack<'_, S> {
            fn drop(&mut self) {
                // SAFETY: the lock is ours, and the cell with it.
                unsafe { *self.0.get() = self.1 };
            }
        }

        // SAFETY: the lock is ours, and the cell with it.
        PutBack(&self.saved, unsafe { *self.saved.get() })
    }

    /// What puts interrupts back when it is dropped, which is after the inner lock was released.
    ///
    /// # Safety
    ///
    /// The calling context owns the lock, and calls this once.
    #[inline]
    pub(crate) unsafe fn off(&self) -> Off<I> {
        // SAFETY: the lock is ours, and the cell with it.
        let saved = unsafe { *self.saved.get() };
        // SAFETY: written when the lock was taken.
        Off(unsafe { saved.assume_init() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::{Cell, RefCell};
    use lock_api::{GuardNoSend, RawMutex};

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
        type GuardMarker = GuardNoSend;

        fn lock(&self) {
            HELD.set(HELD.get() + 1);
            event("lock");
        }

        fn try_lock(&self) -> bool {
            event("no lock");
            false
        }

        unsafe fn unlock(&self) {
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

    #[test]
    fn guards_dropped_the_other_way_round_put_back_what_each_found() {
        let first = lock_api::Mutex::<RawIrqLock<Spy, Flag>, ()>::new(());
        let second = lock_api::Mutex::<RawIrqLock<Spy, Flag>, ()>::new(());
        let (one, two) = (first.lock(), second.lock());
        drop(one);
        assert!(ENABLED.get(), "the first was taken with interrupts on");
        drop(two);
        assert!(!ENABLED.replace(true), "the second with interrupts off");
    }

    #[test]
    fn preemption_is_off_as_often_as_it_was_turned_off() {
        thread_local!(static COUNT: Cell<u32> = const { Cell::new(0) });

        struct Count;

        // SAFETY: there are no tasks in this test.
        unsafe impl Preemption for Count {
            fn disable() {
                COUNT.set(COUNT.get() + 1);
            }

            fn enable() {
                COUNT.set(COUNT.get() - 1);
            }
        }

        type Lock = lock_api::Mutex<RawIrqLock<Spy, PreemptionOff<Count>>, ()>;
        let (one, two) = (Lock::new(()), Lock::new(()));
        let (first, second) = (one.lock(), two.lock());
        assert_eq!(COUNT.get(), 2);
        drop(first);
        assert_eq!(COUNT.get(), 1, "the order does not matter");
        drop(second);
        assert_eq!(COUNT.get(), 0);
    }

    /// A raw lock with a defect.
    struct Faulty;

    // SAFETY: nobody ever has it.
    unsafe impl RawMutex for Faulty {
        #[allow(clippy::declare_interior_mutable_const)]
        const INIT: Self = Self;
        type GuardMarker = GuardNoSend;

        fn lock(&self) {
            panic!("a defect of a lock")
        }

        fn try_lock(&self) -> bool {
            panic!("a defect of a lock")
        }

        unsafe fn unlock(&self) {
            panic!("a defect of a lock")
        }
    }

    #[test]
    fn interrupts_come_back_when_the_lock_panics() {
        type Lock = RawIrqLock<Faulty, Flag>;
        static LOCK: Lock = Lock::over(Faulty);
        let taken_already = || {
            // SAFETY: nobody else has it.
            unsafe { LOCK.keep(Off::new()) };
            // SAFETY: taken just now, for all this type knows.
            unsafe { LOCK.unlock() };
        };
        for act in [|| RawMutex::lock(&LOCK), || assert!(!RawMutex::try_lock(&LOCK)), taken_already]
        {
            assert!(ENABLED.get());
            std::panic::catch_unwind(act).expect_err("a defect of a lock");
            assert!(ENABLED.get(), "as they were");
        }
    }
}
