//! The published crate's tests on our locks, on threads; and that waiters sleep and are kicked.

mod theirs;

use std::sync::mpsc;
use std::thread;

use xen_guest::glue;

use crate::platform::threads;

macro_rules! a_waiter_sleeps_and_is_kicked {
    ($name:ident, $Mutex:ident) => {
        /// Holds the lock until a waiter for it sleeps.
        #[test]
        fn $name() {
            static COUNT: crate::$Mutex<u32> = crate::$Mutex::new(0);
            let mut held = COUNT.lock();
            let (tell, told) = mpsc::channel();
            let waiter = thread::spawn(move || {
                let vcpu = threads::current() as usize;
                tell.send((vcpu, glue::wait_counts(vcpu))).unwrap();
                *COUNT.lock() += 1;
                glue::wait_counts(vcpu)
            });
            let (vcpu, before) = told.recv().unwrap();
            while glue::wait_counts(vcpu).polls == before.polls {
                thread::yield_now();
            }
            *held += 1;
            drop(held);
            let after = waiter.join().unwrap();
            assert_eq!(*COUNT.lock(), 2);
            assert!(after.kicked > before.kicked, "{before:?}, {after:?}");
            assert_eq!(after.timed_out, 0, "{after:?}");
        }
    };
}

a_waiter_sleeps_and_is_kicked!(a_waiter_for_a_spin_mutex_sleeps_and_is_kicked, SpinMutex);
a_waiter_sleeps_and_is_kicked!(a_waiter_for_a_ticket_mutex_sleeps_and_is_kicked, TicketMutex);
