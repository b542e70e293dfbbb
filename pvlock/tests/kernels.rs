//! How kernels turn interrupts off, as `pvlock::Interrupts`: the code of the book, compiled and
//! run.
//!
//! The joints of the crates `x86_64` and `kernel_guard` (ArceOS) are compiled against the crates
//! themselves. A process may not turn interrupts off, so they run against look-alikes of the same
//! shape, as do the joints of kernels whose crates do not build here.

#[allow(dead_code)]
#[path = "common/threads.rs"]
mod machine;

use machine::Threads;
use pvlock::{Interrupts, IrqMutex};
use std::cell::Cell;

thread_local!(static ENABLED: Cell<bool> = const { Cell::new(true) });

/// The joint of `interrupts`, a module with the functions of `x86_64::instructions::interrupts`.
macro_rules! flags {
    () => {
        // --- in the book ---
        pub(super) struct Flags;

        // SAFETY: with interrupts off no handler runs on this CPU, and nothing migrates.
        unsafe impl pvlock::Interrupts for Flags {
            type Saved = bool;
            fn save() -> bool {
                interrupts::are_enabled()
            }
            fn disable() {
                interrupts::disable();
            }
            fn restore(were_enabled: bool) {
                if were_enabled {
                    interrupts::enable();
                }
            }
        }
    };
}

/// `x86_64::instructions::interrupts`, and every kernel built on it: bare metal, PVH guests.
#[cfg(target_arch = "x86_64")]
mod real_flags {
    use x86_64::instructions::interrupts;
    flags!();
}

/// The same, for a process.
mod flags {
    mod interrupts {
        use super::super::ENABLED;
        pub(super) fn are_enabled() -> bool {
            ENABLED.get()
        }
        pub(super) fn disable() {
            ENABLED.set(false);
        }
        pub(super) fn enable() {
            ENABLED.set(true);
        }
    }
    flags!();
}

/// `vcpu_info.evtchn_upcall_mask` of a PV guest, where `cli` and `sti` mask nothing.
mod upcall_mask {
    use super::ENABLED;
    use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
    static MASK: AtomicU8 = AtomicU8::new(0);
    fn set_mask() {
        MASK.store(1, SeqCst);
        ENABLED.set(false);
    }
    fn deliver_what_is_pending() {
        ENABLED.set(true);
    }

    // --- in the book ---
    pub(super) struct UpcallMask;

    // SAFETY: with the mask set Xen delivers no upcall to this vCPU, and nothing migrates.
    unsafe impl pvlock::Interrupts for UpcallMask {
        type Saved = u8;
        fn save() -> u8 {
            MASK.load(SeqCst)
        }
        fn disable() {
            set_mask();
        }
        fn restore(mask: u8) {
            MASK.store(mask, SeqCst);
            if mask == 0 {
                deliver_what_is_pending();
            }
        }
    }
}

/// `kernel_guard::BaseGuard` of ArceOS and its relatives: one function that saves and disables.
mod base_guard {
    use super::ENABLED;
    use kernel_guard::BaseGuard;
    /// As `kernel_guard::IrqSave`, which does nothing in a process.
    pub(super) struct IrqSave;
    impl BaseGuard for IrqSave {
        type State = bool;
        fn acquire() -> bool {
            ENABLED.replace(false)
        }
        fn release(state: bool) {
            ENABLED.set(state);
        }
    }

    // --- in the book ---
    pub(super) struct Guarded<G>(core::marker::PhantomData<G>);

    // SAFETY: as `G`: from acquire to release no handler runs on this CPU, and nothing migrates.
    unsafe impl<G: BaseGuard + 'static> pvlock::Interrupts for Guarded<G> {
        type Saved = G::State;
        fn save() -> G::State {
            G::acquire()
        }
        fn disable() {} // `acquire` did.
        fn restore(state: G::State) {
            G::release(state);
        }
    }
}

/// Kernels whose interrupt state is a guard that is dropped (Asterinas' `DisabledLocalIrqGuard`,
/// Theseus' `HeldInterrupts`).
mod dropped_guard {
    use super::ENABLED;
    pub(super) struct HeldInterrupts(bool);
    pub(super) fn hold_interrupts() -> HeldInterrupts {
        HeldInterrupts(ENABLED.replace(false))
    }
    impl Drop for HeldInterrupts {
        fn drop(&mut self) {
            ENABLED.set(self.0);
        }
    }

    // --- in the book ---
    use pvlock::{Adaptive, Mutex, MutexGuard};

    /// The lock's guard first: it is dropped first.
    pub(super) struct Guard<'a, T> {
        pub(super) data: MutexGuard<'a, T, super::Threads>,
        _held: HeldInterrupts,
    }

    pub(super) fn lock<T>(mutex: &Mutex<T, super::Threads, Adaptive>) -> Guard<'_, T> {
        let _held = hold_interrupts();
        Guard { data: mutex.lock(), _held }
    }
}

/// A kernel whose lock is its own, and whose guard behaviour is a parameter (`SpinLock<T, G>` of
/// Asterinas' `ostd`): it casts between locks that differ in `G`, so the lock inside must not know
/// of it.
mod lock_inside_the_kernel {
    use super::{ENABLED, Threads};
    use core::cell::UnsafeCell;
    use core::marker::PhantomData;
    use pvlock::{Adaptive, RawPvLock};

    pub(super) trait Guardian {
        type Guard;
        fn guard() -> Self::Guard;
    }
    pub(super) struct PreemptDisabled;
    pub(super) struct LocalIrqDisabled;
    impl Guardian for PreemptDisabled {
        type Guard = ();
        fn guard() {}
    }
    pub(super) struct IrqGuard(bool);
    impl Guardian for LocalIrqDisabled {
        type Guard = IrqGuard;
        fn guard() -> IrqGuard {
            IrqGuard(ENABLED.replace(false))
        }
    }
    impl Drop for IrqGuard {
        fn drop(&mut self) {
            ENABLED.set(self.0);
        }
    }

    #[repr(transparent)]
    pub(super) struct SpinLock<T, G = PreemptDisabled> {
        guard: PhantomData<G>,
        inner: Inner<T>,
    }
    struct Inner<T> {
        lock: RawPvLock<Threads, Adaptive>, // was: AtomicBool
        value: UnsafeCell<T>,
    }
    // SAFETY: one at a time is let in.
    unsafe impl<T: Send, G> Sync for SpinLock<T, G> {}

    // --- in the book ---
    impl<T, G> SpinLock<T, G> {
        fn acquire_lock(&self) {
            self.inner.lock.lock();
        }
        fn try_acquire_lock(&self) -> bool {
            self.inner.lock.try_lock()
        }
        /// Called by the drop of a guard alone.
        fn release_lock(&self) {
            // SAFETY: the guard that is dropped owns the lock.
            unsafe { self.inner.lock.unlock() };
        }
    }
    // --- until here ---

    impl<T> SpinLock<T> {
        pub(super) const fn new(value: T) -> Self {
            let inner = Inner { lock: RawPvLock::new(), value: UnsafeCell::new(value) };
            Self { guard: PhantomData, inner }
        }
        pub(super) fn disable_irq(&self) -> &SpinLock<T, LocalIrqDisabled> {
            // SAFETY: transparent, and the parameter is in no field.
            unsafe { &*core::ptr::from_ref(self).cast() }
        }
    }
    impl<T, G: Guardian> SpinLock<T, G> {
        pub(super) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
            let _guard = G::guard();
            self.acquire_lock();
            // SAFETY: the lock is held.
            let result = f(unsafe { &mut *self.inner.value.get() });
            self.release_lock();
            result
        }
        pub(super) fn is_free(&self) -> bool {
            let free = self.try_acquire_lock();
            if free {
                self.release_lock();
            }
            free
        }
    }
}

/// A kernel whose lock types take a backend: a trait of a state, and of functions on a pointer to
/// it (Linux' `kernel::sync::lock::Backend`, by its public documentation). The state is pinned, and
/// zeroed memory until `init`.
mod backend {
    use super::Threads;
    use pvlock::{KickAtUnlock, RawPvLock};

    /// # Safety
    ///
    /// One at a time is between `lock` and `unlock`.
    pub(super) unsafe trait Backend {
        type State;
        type GuardState;
        unsafe fn init(state: *mut Self::State);
        unsafe fn lock(state: *mut Self::State) -> Self::GuardState;
        unsafe fn try_lock(state: *mut Self::State) -> Option<Self::GuardState>;
        unsafe fn unlock(state: *mut Self::State, guard: &Self::GuardState);
    }

    // --- in the book ---
    pub(super) struct PvLockBackend;

    // SAFETY: the state is a lock.
    unsafe impl Backend for PvLockBackend {
        type State = RawPvLock<Threads, KickAtUnlock>;
        type GuardState = ();
        unsafe fn init(state: *mut Self::State) {
            // SAFETY: the caller's: nobody uses it yet.
            unsafe { state.write(RawPvLock::new()) };
        }
        unsafe fn lock(state: *mut Self::State) {
            // SAFETY: the caller's: initialised, and it stays where it is.
            unsafe { &*state }.lock();
        }
        unsafe fn try_lock(state: *mut Self::State) -> Option<()> {
            // SAFETY: as above.
            unsafe { &*state }.try_lock().then_some(())
        }
        unsafe fn unlock(state: *mut Self::State, _: &()) {
            // SAFETY: as above.
            let lock = unsafe { &*state };
            // SAFETY: the caller has it.
            unsafe { lock.unlock() };
        }
    }
}

#[test]
fn a_lock_inside_a_kernel_fits() {
    use lock_inside_the_kernel::SpinLock;
    static DATA: SpinLock<u32> = SpinLock::new(0);
    ENABLED.set(true);
    std::thread::scope(|cpus| {
        for _ in 0..4 {
            cpus.spawn(|| (0..500).for_each(|_| DATA.with(|data| *data += 1)));
        }
    });
    let seen = DATA.disable_irq().with(|data| (*data, ENABLED.get(), DATA.is_free()));
    assert_eq!(seen, (2000, false, false));
    assert!(ENABLED.get() && DATA.is_free());
}

#[test]
fn a_backend_of_lock_types_fits() {
    use backend::{Backend, PvLockBackend};
    use core::mem::MaybeUninit;
    let mut state = Box::new(MaybeUninit::<<PvLockBackend as Backend>::State>::zeroed());
    let state = state.as_mut_ptr();
    // SAFETY: in a box until the end of this function.
    unsafe { PvLockBackend::init(state) };
    // SAFETY: initialised, here and below.
    unsafe { PvLockBackend::lock(state) };
    // SAFETY: as above.
    assert!(unsafe { PvLockBackend::try_lock(state) }.is_none());
    // SAFETY: held.
    unsafe { PvLockBackend::unlock(state, &()) };
    // SAFETY: as above.
    assert!(unsafe { PvLockBackend::try_lock(state) }.is_some());
    // SAFETY: held.
    unsafe { PvLockBackend::unlock(state, &()) };
}

/// The crates' own types make locks.
#[test]
fn the_real_guards_fit() {
    #[cfg(target_arch = "x86_64")]
    static FLAGS: IrqMutex<u32, Threads, real_flags::Flags> = IrqMutex::new(1);
    #[cfg(target_arch = "x86_64")]
    assert!(!FLAGS.is_locked(), "and to lock it, a process is not allowed");
    static GUARDED: IrqMutex<u32, Threads, base_guard::Guarded<kernel_guard::NoPreemptIrqSave>> =
        IrqMutex::new(1);
    *GUARDED.lock() += 1;
    assert_eq!(GUARDED.try_lock().as_deref(), Some(&2));
}

fn interrupts_are_off_while_locked<I: Interrupts>() {
    let outer = IrqMutex::<u32, Threads, I>::new(1);
    let inner = IrqMutex::<u32, Threads, I>::new(2);
    ENABLED.set(true);
    let held = outer.lock();
    assert!(!ENABLED.get());
    assert_eq!(*held + *inner.lock(), 3);
    assert!(!ENABLED.get(), "the inner guard puts back what it found");
    assert!(outer.try_lock().is_none() && !ENABLED.get());
    drop(held);
    assert!(ENABLED.get());
}

#[test]
fn every_way_to_turn_interrupts_off_fits() {
    interrupts_are_off_while_locked::<flags::Flags>();
    interrupts_are_off_while_locked::<upcall_mask::UpcallMask>();
    interrupts_are_off_while_locked::<base_guard::Guarded<base_guard::IrqSave>>();
}

#[test]
fn a_guard_that_is_dropped_fits() {
    static DATA: pvlock::Mutex<u32, Threads> = pvlock::Mutex::new(0);
    ENABLED.set(true);
    let mut guard = dropped_guard::lock(&DATA);
    *guard.data += 1;
    assert!(!ENABLED.get() && DATA.is_locked());
    drop(guard);
    assert!(ENABLED.get() && !DATA.is_locked());
}
