//! The slow path when waiters only spin: a pending waiter, then a queue.
//!
//! Owns the transitions of native mode and of test-and-set mode. Nobody sleeps here, nobody kicks.

use crate::Platform;
use crate::counters::{Counter, count};
use crate::queue::{self, Discipline, Waiter};
use crate::word::{FREE, Tail, Word};

/// Takes the lock: as the pending waiter if nobody else waits, otherwise through the queue.
///
/// ```text
/// uncontended   (0,0,0) -> (0,0,1)
/// second CPU    (0,0,1) -> (0,1,1) -> (0,1,0) -> (0,0,1)     spins on the word, uses no node
/// third, ...    exchange tail, spin on the own node, as head on the word
/// ```
pub(crate) fn acquire<P: Platform>(word: &Word) {
    let mut seen = word.load();
    loop {
        if seen.is_free() && word.try_acquire() {
            return;
        }
        if seen.pending() || seen.tail().is_some() {
            return queue::acquire::<P, Native>(word);
        }
        // Only if nothing changed: the step is never taken back.
        match word.try_set_pending(seen) {
            Ok(()) => break,
            Err(now) => seen = now,
        }
    }
    // The lock is ours next: a newcomer needs a word of 0, a head a clear pending byte.
    count::<P>(P::current_cpu(), Counter::LockPending);
    while word.load_acquire().locked() != FREE {
        P::relax();
    }
    word.clear_pending_set_locked();
}

/// Takes the lock in test-and-set mode: whoever comes first. One word, no order, no node.
pub(crate) fn acquire_test_and_set<P: Platform>(word: &Word) {
    while !(word.load().is_free() && word.try_acquire()) {
        P::relax();
    }
}

/// Waiters that spin.
struct Native;

impl Discipline for Native {
    fn wait_behind<P: Platform>(waiter: &Waiter) {
        while !waiter.node.is_handed() {
            P::relax();
        }
    }

    fn wait_as_head<P: Platform>(word: &Word, _waiter: &Waiter) {
        loop {
            let seen = word.load_acquire();
            if seen.locked() == FREE && !seen.pending() {
                break;
            }
            P::relax();
        }
        // With a queue nobody sets pending any more, and only its head takes the lock.
        word.set_locked();
    }

    fn handed_over<P: Platform>(_word: &Word, _waiter: &Waiter, _next: Tail) {}
}
