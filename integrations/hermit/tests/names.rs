//! What a kernel writes with `hermit-sync`: the same code against the published crate and against this one.
//!
//! A process may not turn interrupts off, so interrupt mutexes are made and looked at here, and not locked.

/// Every public name of `hermit-sync` 0.2.0 in one place, as a kernel uses it.
macro_rules! what_a_kernel_writes {
    ($crate_:ident) => {
        #[allow(unused_imports)] // That they are there is the test.
        use hermit_sync::{
            CallOnce, CallOnceError, ExclusiveCell, InterruptLazy, InterruptMutex,
            InterruptMutexGuard, InterruptOnceCell, InterruptOneShotMutex,
            InterruptOneShotMutexGuard, InterruptSpinMutex, InterruptSpinMutexGuard,
            InterruptTicketMutex, InterruptTicketMutexGuard, Lazy, OnceCell, OneShotMutex,
            OneShotMutexGuard, OneShotRwLock, OneShotRwLockReadGuard,
            OneShotRwLockUpgradableReadGuard, OneShotRwLockWriteGuard, RawInterruptMutex,
            RawInterruptOneShotMutex, RawInterruptSpinMutex, RawInterruptTicketMutex,
            RawOneShotMutex, RawOneShotRwLock, RawRwSpinLock, RawSpinMutex, RawTicketMutex,
            RwSpinLock, RwSpinLockReadGuard, RwSpinLockUpgradableReadGuard, RwSpinLockWriteGuard,
            SpinMutex, SpinMutexGuard, TicketMutex, TicketMutexGuard, without_interrupts,
        };
        use $crate_ as hermit_sync;

        static IRQ_TICKET: InterruptTicketMutex<Vec<u32>> = InterruptTicketMutex::new(Vec::new());
        static IRQ_SPIN: InterruptSpinMutex<u32> = InterruptSpinMutex::new(1);
        static IRQ_CELL: InterruptOnceCell<u32> = InterruptOnceCell::new();
        static IRQ_LAZY: InterruptLazy<u32> = InterruptLazy::new(|| 1);

        #[test]
        fn mutexes() {
            static SPIN: SpinMutex<u32> = SpinMutex::new(1);
            static TICKET: TicketMutex<u32> = TicketMutex::new(2);
            let spin: SpinMutexGuard<'_, u32> = SPIN.lock();
            let mut ticket: TicketMutexGuard<'_, u32> = TICKET.try_lock().expect("free");
            *ticket += *spin;
            assert!(SPIN.try_lock().is_none() && TICKET.is_locked());
            drop((spin, ticket));
            let mut ticket = TICKET.lock();
            TicketMutexGuard::bump(&mut ticket); // A ticket lock is fair.
            TicketMutexGuard::unlock_fair(ticket);
            // SAFETY: the guard is forgotten, and its reference is used no more.
            unsafe {
                core::mem::forget(SPIN.lock());
                SPIN.force_unlock();
            }
            assert_eq!(*TICKET.lock() + TicketMutex::new(4).into_inner(), 7);
            assert!(!IRQ_TICKET.is_locked() && !IRQ_SPIN.is_locked());
        }

        #[test]
        fn cells() {
            static CELL: OnceCell<u32> = OnceCell::new();
            static LAZY: Lazy<Vec<u32>> = Lazy::new(|| vec![1, 2]);
            static ONCE: ExclusiveCell<u32> = ExclusiveCell::new(5);
            assert_eq!(*CELL.get_or_init(|| 3), 3);
            assert_eq!(CELL.set(4), Err(4));
            assert_eq!(LAZY.len() + Lazy::force(&LAZY).len(), 4);
            assert_eq!((ONCE.take().copied(), ONCE.take()), (Some(5), None));
            assert!(IRQ_CELL.get().is_none());
            let _: &InterruptLazy<u32> = &IRQ_LAZY;
        }

        #[test]
        fn rwlock() {
            static ROUTES: RwSpinLock<Vec<u32>> = RwSpinLock::new(Vec::new());
            let reader: RwSpinLockUpgradableReadGuard<'_, _> = ROUTES.upgradable_read();
            RwSpinLockUpgradableReadGuard::upgrade(reader).push(1);
            assert_eq!(ROUTES.read().len(), 1);
            assert!(ROUTES.try_write().is_some());
        }

        #[test]
        #[should_panic]
        fn one_shot() {
            static SHOT: OneShotMutex<u32> = OneShotMutex::new(1);
            let _held = SHOT.lock();
            drop(SHOT.lock());
        }
    };
}

mod published {
    what_a_kernel_writes!(original);
}

mod ours {
    what_a_kernel_writes!(hermit_sync);
}

/// The one difference: see the crate's documentation.
#[test]
fn only_the_guards_of_the_published_mutexes_can_be_sent() {
    fn send(_: impl Send) {}
    static SPIN: original::SpinMutex<u8> = original::SpinMutex::new(1);
    static TICKET: original::TicketMutex<u8> = original::TicketMutex::new(1);
    send((SPIN.lock(), TICKET.lock()));
    // That ours cannot is a `compile_fail` example in src/lib.rs. The locks themselves can be sent and shared.
    fn shared<T: Send + Sync>() {}
    shared::<hermit_sync::SpinMutex<u8>>();
    shared::<hermit_sync::InterruptTicketMutex<u8>>();
}
