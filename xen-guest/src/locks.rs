//! The locks under test, behind one trait.
//!
//! Owns the list of lock types an experiment can name, and their common face. It adds nothing to a
//! lock: what is measured is the lock as its own crate offers it.
//!
//! | policy | type | behind it |
//! |---|---|---|
//! | `kick-twice`, `kick-at-unlock` | `pvlock::Mutex` | the PV queue lock |
//! | `native` | `pvlock::Mutex` | the same lock in its native mode |
//! | `test-and-set` | `pvlock::Mutex` | the same lock in its test-and-set mode |
//! | `spin` | [`spin::mutex::SpinMutex`] | test-and-test-and-set with PAUSE |
//! | `spin-ticket` | [`spin::mutex::TicketMutex`] | tickets: strict order, everyone spins |

use spin::mutex::{SpinMutex, TicketMutex};

/// A lock around a value.
///
/// ```
/// use spin::mutex::SpinMutex;
/// use xen_guest::locks::TestedLock;
///
/// let lock: SpinMutex<u64> = TestedLock::new(0);
/// TestedLock::with(&lock, |n| *n += 1);
/// assert_eq!(TestedLock::try_with(&lock, |n| *n), Some(1));
/// ```
pub trait TestedLock<T>: Sync {
    /// A free lock around `value`.
    fn new(value: T) -> Self;

    /// Waits for the lock, runs `section` while holding it, and releases it.
    fn with<R>(&self, section: impl FnOnce(&mut T) -> R) -> R;

    /// Runs `section` if the lock is free now.
    fn try_with<R>(&self, section: impl FnOnce(&mut T) -> R) -> Option<R>;
}

impl<T: Send> TestedLock<T> for SpinMutex<T> {
    fn new(value: T) -> Self {
        SpinMutex::new(value)
    }

    #[inline]
    fn with<R>(&self, section: impl FnOnce(&mut T) -> R) -> R {
        section(&mut self.lock())
    }

    #[inline]
    fn try_with<R>(&self, section: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.try_lock().map(|mut value| section(&mut value))
    }
}

impl<T: Send> TestedLock<T> for TicketMutex<T> {
    fn new(value: T) -> Self {
        TicketMutex::new(value)
    }

    #[inline]
    fn with<R>(&self, section: impl FnOnce(&mut T) -> R) -> R {
        section(&mut self.lock())
    }

    #[inline]
    fn try_with<R>(&self, section: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.try_lock().map(|mut value| section(&mut value))
    }
}

/// `pvlock::Mutex`, whatever its policy.
impl<R, T: Send> TestedLock<T> for lock_api::Mutex<R, T>
where
    R: lock_api::RawMutex + Send + Sync,
{
    fn new(value: T) -> Self {
        lock_api::Mutex::new(value)
    }

    #[inline]
    fn with<O>(&self, section: impl FnOnce(&mut T) -> O) -> O {
        section(&mut self.lock())
    }

    #[inline]
    fn try_with<O>(&self, section: impl FnOnce(&mut T) -> O) -> Option<O> {
        self.try_lock().map(|mut value| section(&mut value))
    }
}
