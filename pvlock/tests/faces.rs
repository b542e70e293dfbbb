//! The faces of both `lock_api`s say what the lock is, and take it only if it is free.

#[allow(dead_code)]
#[path = "common/threads.rs"]
mod machine;

use machine::Threads;

/// Interrupts of a process: none.
struct NoInterrupts;

// SAFETY: nothing interrupts a process.
unsafe impl pvlock::Interrupts for NoInterrupts {
    type Saved = ();
    fn save() {}
    fn disable() {}
    fn restore((): ()) {}
}

macro_rules! faces {
    ($name:ident, $($face:ident)::+) => {
        mod $name {
            use super::{NoInterrupts, Threads};
            use $($face)::+::{IrqMutex, Mutex, RwLock};

            #[test]
            fn a_mutex_is_taken_once() {
                let lock = Mutex::<u32, Threads>::new(1);
                assert!(!lock.is_locked());
                let guard = lock.try_lock().expect("free");
                assert!(lock.is_locked() && lock.try_lock().is_none());
                drop(guard);
                let guard = lock.lock();
                assert!(lock.is_locked());
                drop(guard);
                assert!(!lock.is_locked());
            }

            #[test]
            fn an_irq_mutex_is_taken_once() {
                let lock = IrqMutex::<u32, Threads, NoInterrupts>::new(1);
                assert!(!lock.is_locked());
                let guard = lock.try_lock().expect("free");
                assert!(lock.is_locked() && lock.try_lock().is_none());
                drop(guard);
                assert!(!lock.is_locked());
            }

            #[test]
            fn a_rwlock_has_readers_or_a_writer() {
                let lock = RwLock::<u32, Threads>::new(1);
                assert!(!lock.is_locked() && !lock.is_locked_exclusive());
                let reader = lock.try_read().expect("free");
                assert!(lock.is_locked() && !lock.is_locked_exclusive());
                assert!(lock.try_write().is_none() && lock.try_read().is_some());
                drop(reader);
                let writer = lock.try_write().expect("free");
                assert!(lock.is_locked() && lock.is_locked_exclusive());
                assert!(lock.try_read().is_none() && lock.try_write().is_none());
                drop(writer);
                for write in [false, true] {
                    let (reader, writer) =
                        if write { (None, Some(lock.write())) } else { (Some(lock.read()), None) };
                    assert_eq!((lock.is_locked(), lock.is_locked_exclusive()), (true, write));
                    drop((reader, writer));
                }
                assert!(!lock.is_locked());
            }
        }
    };
}

faces!(lock_api_04, pvlock);
#[cfg(feature = "lock_api_05")]
faces!(lock_api_05, pvlock::v05);

/// The face of lock_api 0.4 alone has recursive readers.
#[test]
fn a_recursive_reader_is_kept_out_by_a_writer_only() {
    let lock = pvlock::RwLock::<u32, Threads>::new(1);
    let reader = lock.read();
    assert!(lock.try_read_recursive().is_some());
    drop(reader);
    let writer = lock.write();
    assert!(lock.try_read_recursive().is_none());
    drop(writer);
}
