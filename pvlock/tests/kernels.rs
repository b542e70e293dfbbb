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
