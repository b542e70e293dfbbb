//! The slow path when waiters only spin: a pending waiter, then a queue.
//!
//! Owns the transitions of native mode. Nobody sleeps here, nobody kicks. A newcomer may have the
//! locked byte for a moment though somebody waits ([`Steps::try_acquire_byte`]), so every waiter
//! takes the lock by a compare-exchange (R15 of the book).

use crate::Platform;
use crate::counters::count;
use crate::counts::Counter;
use crate::queue::{self, Discipline, Taken, Waiter};
use crate::word::{FREE, Snapshot, Steps, Tail, Word};

/// Looks at a lock that is being handed to the pending waiter. That one needs a few instructions,
/// unless it was preempted in the middle of them.
const HANDOVER_LOOKS: u32 = if cfg!(loom) { 1 } else { 8 };
/// Turns between two of these looks, and before the one at a lock that only has an owner: about as
/// long as the word's line takes from one core to another and back.
const TURNS_OF_REST: u32 = 8;

/// Takes the lock: as the pending waiter if nobody else waits, otherwise through the queue.
///
/// ```text
/// uncontended   (0,0,0) -> (0,0,1)
/// second CPU    (0,0,1) -> (0,1,1) -> (0,1,0) -> (0,0,1)     spins on the word, uses no node
/// third, ...    exchange tail, spin on the own node, as head on the word
/// ```
///
/// `seen` is what the fast path found.
pub(crate) fn acquire<P: Platform>(word: &Word, mut seen: Snapshot) {
    // A short critical section is soon over, and nobody waits who could be overtaken. Meanwhile the
    // owner can release the lock and take it again, while the word's line is with it.
    if !seen.is_waited_for() {
        queue::rest::<P>(TURNS_OF_REST);
        if word.try_acquire_byte_seen_free() {
            return;
        }
        seen = word.load();
    }
    // The queue would cost more than the hand-over does, and the pending byte is free after it.
    for _ in 0..HANDOVER_LOOKS {
        if !seen.is_pending_only() {
            break;
        }
        queue::rest::<P>(TURNS_OF_REST);
        seen = word.load();
    }
    if seen.is_waited_for() {
        return queue::acquire::<P, Native>(word);
    }
    // One step that succeeds whatever the owner does meanwhile: the owner is just now pulling at
    // the word's line to release it, and a second attempt would have to wait for the line again.
    let before = word.exchange_pending();
    if before.pending() {
        return queue::acquire::<P, Native>(word);
    }
    if before.tail().is_some() {
        // A queue has come up, and it comes first. Its head waits for a clear pending byte. If it
        // was hindered in leaving as the last, it now waits for a successor: we are that.
        word.clear_pending();
        return queue::acquire::<P, Native>(word);
    }
    // The lock is ours next: a newcomer gives it back, a head waits for a clear pending byte.
    count::<P>(P::current_cpu(), Counter::LockPending);
    let mut turn = 0_u32;
    while !word.try_take_pending() {
        P::relax(turn);
        turn = turn.saturating_add(1);
    }
}

/// Waiters that spin.
struct Native;

impl Discipline for Native {
    fn wait_behind<P: Platform>(waiter: &Waiter) {
        let mut turn = 0_u32;
        while !waiter.node.is_handed() {
            P::relax(turn);
            turn = turn.saturating_add(1);
        }
    }

    fn wait_as_head<P: Platform>(word: &Word, waiter: &Waiter) -> Taken {
        let mut turn = 0_u32;
        loop {
            if let Some(taken) = Self::try_as_head(word, waiter) {
                return taken;
            }
            P::relax(turn);
            turn = turn.saturating_add(1);
        }
    }

    fn try_as_head(word: &Word, waiter: &Waiter) -> Option<Taken> {
        let seen = word.load();
        // Nobody else keeps the lock then: who sets pending, or takes the byte, sees the queue and
        // backs out. Until it has, these steps fail.
        if seen.locked() != FREE || seen.pending() {
            None
        } else if seen.tail() == Some(waiter.tail) && word.try_take_alone(seen) {
            Some(Taken::Alone)
        } else {
            word.try_steal().then_some(Taken::InQueue)
        }
    }

    fn handed_over<P: Platform>(_word: &Word, _waiter: &Waiter, _next: Tail) {}

    fn release<P: Platform>(word: &Word) {
        word.release();
    }
}
