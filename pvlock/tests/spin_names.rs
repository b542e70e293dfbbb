//! The names that users of `spin` know: the same code on both crates, one alias apart.
//!
//! Not here, because `lock_api` has other names for them or none: `Mutex::as_mut_ptr` (`data_ptr`),
//! `try_lock_weak`, `RwLock::upgradeable_read`, `reader_count`, `writer_count`, `try_write_weak`,
//! `force_read_decrement` (`force_unlock_read`), `force_write_unlock` (`force_unlock_write`); and
//! `Once` and `Lazy`, which `examples/once.rs` takes from another crate.

#[allow(dead_code)]
#[path = "common/threads.rs"]
mod machine;

macro_rules! what_users_of_spin_write {
    () => {
        #[test]
        fn mutex() {
            static COUNT: Mutex<u32> = Mutex::new(1);
            *COUNT.lock() += 1;
            assert!(!COUNT.is_locked());
            let guard: MutexGuard<'_, u32> = COUNT.try_lock().expect("free");
            assert!(COUNT.try_lock().is_none());
            drop(guard);

            let leaked: &mut u32 = MutexGuard::leak(COUNT.lock());
            *leaked += 1;
            assert!(COUNT.is_locked());
            // SAFETY: the guard is gone, and the reference is used no more.
            unsafe { COUNT.force_unlock() };
            assert_eq!(*COUNT.lock(), 3);

            let mut own = Mutex::new(5);
            *own.get_mut() += 1;
            assert_eq!(own.into_inner(), 6);
            assert_eq!(*Mutex::from(7).lock(), 7);
            assert!(format!("{:?}", Mutex::<u8>::default()).contains('0'));
        }

        #[test]
        fn rwlock() {
            static NAMES: RwLock<Vec<&str>> = RwLock::new(Vec::new());
            NAMES.write().push("one");
            {
                let (first, second) = (NAMES.read(), NAMES.try_read().expect("readers share"));
                assert_eq!((first.len(), second.len()), (1, 1));
                assert!(NAMES.try_write().is_none());
            }
            NAMES.try_write().expect("free").push("two");
            let mut own = RwLock::new(5);
            *own.get_mut() += 1;
            assert_eq!(own.into_inner(), 6);
        }
    };
}

mod with_spin {
    use spin::{Mutex, MutexGuard, RwLock};
    what_users_of_spin_write!();
}

mod with_pvlock {
    use crate::machine::Threads;
    type Mutex<T> = pvlock::Mutex<T, Threads>;
    type MutexGuard<'a, T> = pvlock::MutexGuard<'a, T, Threads>;
    type RwLock<T> = pvlock::RwLock<T, Threads>;
    what_users_of_spin_write!();
}
