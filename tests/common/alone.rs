//! One host at a time: two would share this machine's cores and slow each other down.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits until no other test of this program has a host running.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static HOST: Mutex<()> = Mutex::new(());
    // A test that failed has left no host behind.
    HOST.lock().unwrap_or_else(PoisonError::into_inner)
}
