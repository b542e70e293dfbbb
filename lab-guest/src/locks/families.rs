//! The locks under test, behind one trait.
//!
//! Owns the list of lock types an experiment can name, and their common face. It adds nothing to a
//! lock: what is measured is the lock as its own crate offers it.
//!
//! | policy | type | behind it |
//! |---|---|---|
//! | `kick-twice`, `kick-at-unlock`, `adaptive` | `pvlock::Mutex` | the PV queue lock |
//! | `native` | `pvlock::Mutex` | the same lock in its native mode |
//! | `test-and-set` | `pvlock::Mutex` | the same lock in its test-and-set mode |
//! | `adaptive-...` | `pvlock::Mutex` | `adaptive` with another number, or without a mechanism: [`variants`](super::variants) |
//! | `spin` | [`spin::mutex::SpinMutex`] | test-and-test-and-set with PAUSE |
//! | `spin-ticket` | [`spin::mutex::TicketMutex`] | tickets: strict order, everyone spins |

use core::fmt::{self, Write};
use core::marker::PhantomData;

use pvlock::debug::Dump;
use pvlock::{Platform, Policy};
use spin::mutex::{SpinMutex, TicketMutex};

/// A lock around a value.
///
/// ```
/// use spin::mutex::SpinMutex;
/// use lab_guest::locks::TestedLock;
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

    /// Its state and that of its waiters, one line each, as far as the lock can tell. Takes no lock
    /// and allocates nothing: for a person who looks for a hang.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    fn describe(&self, out: &mut dyn Write) -> fmt::Result;
}

/// One kind of lock, around values of any type.
pub trait Family: 'static {
    /// The lock around a `T`.
    type Lock<T: Send + 'static>: TestedLock<T> + Send + Sync + 'static;
}

/// The family of [`SpinMutex`].
#[derive(Debug)]
pub struct Spin;

impl Family for Spin {
    type Lock<T: Send + 'static> = SpinMutex<T>;
}

/// The family of [`TicketMutex`].
#[derive(Debug)]
pub struct Ticket;

impl Family for Ticket {
    type Lock<T: Send + 'static> = TicketMutex<T>;
}

/// The family of [`pvlock::Mutex`] with one platform and policy.
#[derive(Debug)]
pub struct Pv<P, K>(PhantomData<fn() -> (P, K)>);

impl<P: Platform, K: Policy> Family for Pv<P, K> {
    type Lock<T: Send + 'static> = pvlock::Mutex<T, P, K>;
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

    fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        describe_plain(out, self, self.is_locked())
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

    fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        describe_plain(out, self, self.is_locked())
    }
}

fn describe_plain<L>(out: &mut dyn Write, lock: &L, locked: bool) -> fmt::Result {
    writeln!(out, "lock {lock:p}: {}", if locked { "locked" } else { "free" })
}

/// Whatever its policy.
impl<P: Platform, K: Policy, T: Send> TestedLock<T> for pvlock::Mutex<T, P, K> {
    fn new(value: T) -> Self {
        lock_api::Mutex::new(value)
    }

    #[inline]
    fn with<R>(&self, section: impl FnOnce(&mut T) -> R) -> R {
        section(&mut self.lock())
    }

    #[inline]
    fn try_with<R>(&self, section: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.try_lock().map(|mut value| section(&mut value))
    }

    fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        // SAFETY: the raw lock is only looked at; it is neither locked nor unlocked through this.
        let raw = unsafe { self.raw() };
        write!(out, "{}", Dump::new(raw))
    }
}
