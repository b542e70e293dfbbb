//! The patch as it was posted in 2015, with its defect: the control that the model suite, shuttle
//! and the simulator have to fail on.
//!
//! Owns the posted order of steps, and nothing that an ordinary build contains: it exists in model
//! builds and with the feature `posted-patch`.
//!
//! **S1.** The owner makes its successor the head, and after that looks whether it is Halted. The
//! successor, as the head, finds the lock still held and says Halted again, now for itself. An
//! owner that is preempted between its two steps comes back, finds Halted, and registers a head
//! that has registered itself: two entries for one lock. An unlock takes one out; the other kicks
//! the wrong CPU one day, while the right one sleeps.

use core::marker::PhantomData;

use crate::Platform;
use crate::counters::{count, timed_wait};
use crate::counts::Counter;
use crate::node::State;
use crate::policy::{Policy, Stage};
use crate::pv::{self, Pv, enter, forget, spin_as_head};
use crate::queue::{Discipline, Taken, Waiter};
use crate::sync::{full_fence_before_rmw, step};
use crate::word::{FREE, SLOW, Steps, Tail, Word};

/// Waiters as in the posted patch. Strictly FIFO.
pub(crate) struct Posted<K>(PhantomData<K>);

impl<K: Policy> Discipline for Posted<K> {
    fn wait_behind<P: Platform>(waiter: &Waiter) {
        Pv::<K>::wait_behind::<P>(waiter);
    }

    fn wait_as_head<P: Platform>(word: &Word, waiter: &Waiter) -> Taken {
        let mut registered = false;
        loop {
            if let Some(taken) = spin_as_head::<P, K>(word, waiter, Stage::Head) {
                return taken;
            }
            let state = waiter.node.state();
            match word.load_acquire().locked() {
                FREE => continue,
                SLOW => registered = true,
                // Its entry is used up, and it may not make another.
                _ if registered || state == State::Hashed => {
                    P::relax(0);
                    continue;
                }
                _ => {
                    // The defect: a head that says Halted invites its predecessor to register it.
                    waiter.node.set_state(State::Halted);
                    step!(waiter.cpu, "head: state = Halted");
                    step!(waiter.cpu, "head: enters itself");
                    enter(P::hash(), word, waiter.tail);
                    if word.exchange_slow() == FREE {
                        step!(waiter.cpu, "head: exchange to slow found it free");
                        word.slow_to_locked();
                        forget(P::hash(), word);
                        return Taken::InQueue;
                    }
                    registered = true;
                }
            }
            count::<P>(waiter.cpu, Counter::WaitHead);
            step!(waiter.cpu, "head: waits while slow");
            timed_wait::<P>(waiter.cpu, || word.load().locked() == SLOW);
            step!(waiter.cpu, "head: awake");
        }
    }

    fn try_as_head(word: &Word, waiter: &Waiter) -> Option<Taken> {
        Pv::<K>::try_as_head(word, waiter)
    }

    fn handed_over<P: Platform>(word: &Word, waiter: &Waiter, next: Tail) {
        let node = P::nodes(next.cpu()).node(next.level());
        full_fence_before_rmw("handed-over");
        let _ = waiter; // For the trace alone.
        if node.claim_halted(State::Hashed) {
            step!(waiter.cpu, "owner: Halted -> Hashed of cpu {}", next.cpu());
            word.set_slow();
            step!(waiter.cpu, "owner: locked = slow, enters cpu {}", next.cpu());
            enter(P::hash(), word, next);
        }
    }

    fn release<P: Platform>(word: &Word) {
        pv::release::<P, K>(word);
    }
}
