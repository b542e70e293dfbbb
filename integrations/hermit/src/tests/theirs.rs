//! The tests of `hermit-sync` 0.2.0 (`src/mutex/ticket.rs`, MIT OR Apache-2.0), which has them from `spin` (MIT), for
//! both mutexes. `spin` is Copyright (c) 2014 Mathijs van de Nes. Changed: the name of the mutex, and a counter that was

use std::boxed::Box;
use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;

/// What only the lock makes safe.
struct Counter(UnsafeCell<u32>);

// SAFETY: looked at under a lock, and when all threads have ended.
unsafe impl Sync for Counter {}

macro_rules! tests {
    ($tests:ident, $Mutex:ident) => {
        mod $tests {
            use super::*;
            use crate::$Mutex;

            #[test]
            fn smoke() {
                let m = $Mutex::<_>::new(());
                drop(m.lock());
                drop(m.lock());
            }

            #[test]
            fn lots_and_lots() {
                static M: $Mutex<()> = $Mutex::<_>::new(());
                static CNT: Counter = Counter(UnsafeCell::new(0));
                const J: u32 = 1000;
                const K: u32 = 3;

                fn inc() {
                    for _ in 0..J {
                        let _g = M.lock();
                        // SAFETY: the lock is held.
                        unsafe { *CNT.0.get() += 1 };
                    }
                }

                let (tx, rx) = channel();
                for _ in 0..K {
                    let tx2 = tx.clone();
                    thread::spawn(move || {
                        inc();
                        tx2.send(()).unwrap();
                    });
                    let tx2 = tx.clone();
                    thread::spawn(move || {
                        inc();
                        tx2.send(()).unwrap();
                    });
                }

                drop(tx);
                for _ in 0..2 * K {
                    rx.recv().unwrap();
                }
                // SAFETY: all have said that they are done.
                assert_eq!(unsafe { *CNT.0.get() }, J * K * 2);
            }

            #[test]
            fn try_lock() {
                let mutex = $Mutex::<_>::new(42);

                // First lock succeeds
                let a = mutex.try_lock();
                assert_eq!(a.as_ref().map(|r| **r), Some(42));

                // Additional lock failes
                let b = mutex.try_lock();
                assert!(b.is_none());

                // After dropping lock, it succeeds again
                ::core::mem::drop(a);
                let c = mutex.try_lock();
                assert_eq!(c.as_ref().map(|r| **r), Some(42));
            }

            #[test]
            fn test_into_inner() {
                let m = $Mutex::<_>::new(Box::new(10));
                assert_eq!(m.into_inner(), Box::new(10));
            }

            #[test]
            fn test_into_inner_drop() {
                struct Foo(Arc<AtomicUsize>);
                impl Drop for Foo {
                    fn drop(&mut self) {
                        self.0.fetch_add(1, Ordering::SeqCst);
                    }
                }
                let num_drops = Arc::new(AtomicUsize::new(0));
                let m = $Mutex::<_>::new(Foo(num_drops.clone()));
                assert_eq!(num_drops.load(Ordering::SeqCst), 0);
                {
                    let _inner = m.into_inner();
                    assert_eq!(num_drops.load(Ordering::SeqCst), 0);
                }
                assert_eq!(num_drops.load(Ordering::SeqCst), 1);
            }

            #[test]
            fn test_mutex_arc_nested() {
                // Tests nested mutexes and access
                // to underlying data.
                let arc = Arc::new($Mutex::<_>::new(1));
                let arc2 = Arc::new($Mutex::<_>::new(arc));
                let (tx, rx) = channel();
                let _t = thread::spawn(move || {
                    let lock = arc2.lock();
                    let lock2 = lock.lock();
                    assert_eq!(*lock2, 1);
                    tx.send(()).unwrap();
                });
                rx.recv().unwrap();
            }

            #[test]
            fn test_mutex_arc_access_in_unwind() {
                let arc = Arc::new($Mutex::<_>::new(1));
                let arc2 = arc.clone();
                let _ = thread::spawn(move || -> () {
                    struct Unwinder {
                        i: Arc<$Mutex<i32>>,
                    }
                    impl Drop for Unwinder {
                        fn drop(&mut self) {
                            *self.i.lock() += 1;
                        }
                    }
                    let _u = Unwinder { i: arc2 };
                    panic!();
                })
                .join();
                let lock = arc.lock();
                assert_eq!(*lock, 2);
            }

            #[test]
            fn test_mutex_unsized() {
                let mutex: &$Mutex<[i32]> = &$Mutex::<_>::new([1, 2, 3]);
                {
                    let b = &mut *mutex.lock();
                    b[0] = 4;
                    b[2] = 5;
                }
                let comp: &[i32] = &[4, 2, 5];
                assert_eq!(&*mutex.lock(), comp);
            }

            #[test]
            fn is_locked() {
                let mutex = $Mutex::<_>::new(());
                assert!(!mutex.is_locked());
                let lock = mutex.lock();
                assert!(mutex.is_locked());
                drop(lock);
                assert!(!mutex.is_locked());
            }
        }
    };
}

tests!(spin, SpinMutex);
tests!(ticket, TicketMutex);
