//! Waits beyond the bound.

use crate::*;
use pvlock::{Mode, Trouble};

/// The waits of a CPU that were found too long. The owner releases the lock after `enough` of them.
fn long_waits(longest_wait: u64, sleeps: bool, enough: usize) -> Vec<u64> {
    static LOCK: Lock = Lock::new();
    REPORTS.store(0, SeqCst);
    ASLEEP.store(0, SeqCst);
    CPU.set(0);
    LOCK.lock();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            CPU.set(1);
            LONGEST_WAIT.set(longest_wait);
            SLEEPS.set(sleeps);
            LOCK.lock();
            // SAFETY: taken just now.
            unsafe { LOCK.unlock() };
            let wait = |trouble: &Trouble| match *trouble {
                Trouble::LongWait { cpu: 1, lock, nanoseconds, here, .. } => {
                    assert_eq!((lock, here.file()), ((&raw const LOCK).addr(), file!()));
                    nanoseconds
                }
                ref other => panic!("{other}"),
            };
            FOUND.take().iter().map(wait).collect()
        });
        while REPORTS.load(SeqCst) < enough || (sleeps && ASLEEP.load(SeqCst) == 0) {
            std::thread::yield_now();
        }
        // SAFETY: taken above.
        unsafe { LOCK.unlock() };
        waiter.join().unwrap()
    })
}

#[test]
fn a_wait_beyond_the_bound_is_told_of_after_each_such_time() {
    for mode in MODES {
        let _machine = machine(mode);
        let waits = long_waits(5_000_000, false, 2);
        assert!(waits.iter().all(|wait| *wait > 5_000_000), "{waits:?}");
        assert!(waits[1] > waits[0] + 5_000_000, "{waits:?}");
    }
}

/// A sleeper does not look, and tells when it has got the lock.
#[test]
fn a_long_sleep_is_told_of_in_the_end() {
    let _machine = machine(Mode::Pv);
    // Between two looks at the clock there is a millisecond at least.
    let waits = long_waits(999_999, true, 0);
    assert!(waits.len() == 1 && waits[0] >= 1_000_000, "{waits:?}");
    assert_eq!(long_waits(1_000_000_000, true, 0), []);
    assert_eq!(long_waits(0, true, 0), [], "0 is no bound");
}
