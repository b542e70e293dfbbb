//! The slow path when waiters sleep in the hypervisor, and the unlock that wakes them.
//!
//! Owns the order of all steps between a sleeper and whoever must wake it. The races, R1 to R12, are
//! listed with what closes each in the book's chapter on the lock.

use core::marker::PhantomData;

use crate::counters::{Counter, add, count, timed_kick, timed_wait};
use crate::node::{Node, State};
use crate::policy::{Handover, Policy, Spin, Stage};
use crate::queue::{self, Discipline, Taken, Waiter};
use crate::sync::{acquire_fence, full_fence, full_fence_before_rmw, step};
use crate::word::{FREE, LEVELS, LOCKED, SLOW, Snapshot, Tail, Word};
use crate::{HashTable, Platform};

/// Takes the lock: past the queue if the policy allows, otherwise through it. `seen` is what the fast path
/// found.
///
/// # Panics
///
/// When the hash table has room for less than four entries for each CPU, before anything is done.
pub(crate) fn acquire<P: Platform, K: Policy>(word: &Word, seen: Snapshot) {
    assert!(
        cfg!(loom) || P::hash().capacity() >= LEVELS * P::MAX_CPUS,
        "pvlock: Platform::hash() has {} entries, {} CPUs need {LEVELS} each",
        P::hash().capacity(),
        P::MAX_CPUS
    );
    if !take_before_the_queue::<P, K>(word, seen) {
        queue::acquire::<P, Pv<K>>(word);
    }
}

/// Looks at the lock as a newcomer, and takes it if it becomes free: whether it did.
///
/// Whatever the policy, a look at a lock that nobody queues for: a short critical section is soon over,
/// the queue would cost more, and nobody is overtaken. A policy that steals looks at a queue too.
pub(crate) fn take_before_the_queue<P: Platform, K: Policy>(
    word: &Word,
    mut seen: Snapshot,
) -> bool {
    for look in 0..=K::STEALS.max(1) {
        if look > 0 {
            K::rest::<P>();
            seen = word.load();
        }
        if seen.pending() || (K::STEALS == 0 && seen.tail().is_some()) {
            // A head spins: it is awake and comes first. Or the order of the queue is the order.
            break;
        }
        if seen.locked() == FREE && take_past_the_queue::<K>(word) {
            if seen.tail().is_some() {
                count::<P>(P::current_cpu(), Counter::LockStealing);
                step!(P::current_cpu(), "newcomer: steals");
            }
            return true;
        }
    }
    false
}

/// Takes a free lock as a newcomer: past a queue only if the policy steals.
pub(crate) fn take_past_the_queue<K: Policy>(word: &Word) -> bool {
    if K::STEALS > 0 { word.try_steal() } else { word.try_acquire().is_ok() }
}

/// Releases a lock whose locked byte was not 1 when unlock looked.
///
/// # Panics
///
/// When the lock was free.
#[cold]
#[inline(never)]
pub(crate) fn release_slow<P: Platform>(word: &Word, seen: u8) {
    assert!(seen == SLOW, "pvlock: unlock of a lock that is not held (locked byte {seen})");
    // R3: the failed compare-exchange ordered nothing. Acquire, with `exchange_slow`: who saw the
    // slow byte sees the entry.
    acquire_fence("unlock-fence");
    let cpu = P::current_cpu();
    // R5: the entry goes first, the lock's memory may go with the release.
    let (sleeper, hops) = P::hash().remove(key(word));
    step!(cpu, "unlock: slow; takes the entry out");
    word.release();
    step!(cpu, "unlock: locked = 0, kicks cpu {sleeper}");
    if hops > 0 {
        add::<P>(cpu, Counter::HashHops, hops as u64);
    }
    // R6, R7: the kick is latched, and a spare one is harmless.
    timed_kick::<P>(cpu, sleeper, Counter::KickUnlock);
}

/// What the hash table knows a lock by.
fn key(word: &Word) -> usize {
    core::ptr::from_ref(word).addr()
}

/// Waiters that sleep when the policy is tired of spinning.
pub(crate) struct Pv<K>(PhantomData<K>);

impl<K: Policy> Discipline for Pv<K> {
    fn wait_behind<P: Platform>(waiter: &Waiter) {
        let node = waiter.node;
        loop {
            let mut spin = Spin::new(Stage::Behind, waiter.cpu, waiter.predecessor);
            while K::keep_spinning::<P>(&mut spin) {
                if node.is_handed() {
                    return;
                }
                P::relax();
                spin.advance();
            }
            // R1: state before handed, here; handed before state, in `handed_over`. With a full
            // barrier in both, one of the two sees the other.
            node.set_state(State::Halted);
            step!(waiter.cpu, "queue: state = Halted");
            full_fence("wait-behind");
            if !node.is_handed() {
                step!(waiter.cpu, "queue: waits while Halted");
                count::<P>(waiter.cpu, Counter::WaitNode);
                wait::<P, K>(waiter.cpu, || node.state() == State::Halted);
            }
            // Awake. If the predecessor has registered us meanwhile, that stands.
            node.unhalt();
            step!(waiter.cpu, "queue: awake, Halted -> Running");
            if node.is_handed() {
                return;
            }
            count::<P>(waiter.cpu, Counter::SpuriousWakeup);
        }
    }

    fn wait_as_head<P: Platform>(word: &Word, waiter: &Waiter) -> Taken {
        let mut waits = 0;
        let mut thefts = 0;
        // Whether an entry was made for us in this acquisition, by us or by our predecessor.
        let mut registered = false;
        if let Some(taken) = wait_patiently::<P, K>(word, waiter) {
            return taken;
        }
        loop {
            if let Some(taken) = spin_as_head::<P, K>(word, waiter) {
                return taken;
            }
            let state = waiter.node.state();
            let locked = word.load_acquire().locked();
            if locked == FREE {
                // Released after the last look: the next one takes it.
                continue;
            } else if locked == SLOW {
                // The entry is in the table: whoever unlocks finds it, and us.
                registered = true;
            } else if state == State::Registering {
                // Our predecessor owns the lock and is making our entry at this moment.
                P::relax();
                continue;
            } else if K::AS_POSTED && (registered || state == State::Hashed) {
                P::relax();
                continue;
            } else {
                // An entry once made is gone only when an unlock took it, so a lock that is held
                // and not slow was stolen since.
                if registered || state == State::Hashed {
                    thefts += 1;
                    if !K::REARM {
                        P::relax();
                        continue;
                    }
                    count::<P>(waiter.cpu, Counter::Rearm);
                    step!(waiter.cpu, "head: lost to a thief, registers again");
                }
                if register::<P, K>(word, waiter) {
                    return Taken::InQueue;
                }
                registered = true;
            }
            waits += 1;
            count::<P>(waiter.cpu, Counter::WaitHead);
            if waits > 1 {
                count::<P>(waiter.cpu, Counter::WaitAgain);
            }
            // Asleep, we let others steal, unless they did too often. Not a step earlier: a thief that
            // wins between the spin and the sleep would leave no trace to count it by.
            if K::STEALS > 0 {
                if thefts < K::MAX_THEFTS {
                    word.clear_pending();
                } else {
                    step!(waiter.cpu, "head: forbids thefts");
                }
            }
            step!(waiter.cpu, "head: waits while slow");
            wait::<P, K>(waiter.cpu, || word.load().locked() == SLOW);
            step!(waiter.cpu, "head: awake");
            if word.load().locked() == SLOW {
                count::<P>(waiter.cpu, Counter::SpuriousWakeup);
            }
        }
    }

    fn handed_over<P: Platform>(word: &Word, waiter: &Waiter, next: Tail) {
        let node = P::nodes(next.cpu()).node(next.level());
        // R1 and R2: our store to `handed` comes before our look at the state, even if the
        // compare-exchange fails, which by itself would order nothing.
        full_fence_before_rmw("handed-over");
        match K::HANDOVER {
            Handover::Kick => {
                if node.claim_halted(State::Running) {
                    step!(waiter.cpu, "owner: Halted -> Running, kicks cpu {}", next.cpu());
                    timed_kick::<P>(waiter.cpu, next.cpu(), Counter::KickWake);
                }
            }
            Handover::Register if K::AS_POSTED => {
                register_next_as_posted::<P>(word, waiter.cpu, node, next);
            }
            Handover::Register => {
                if node.claim_halted(State::Registering) {
                    step!(waiter.cpu, "owner: Halted -> Registering of cpu {}", next.cpu());
                    // R3: the entry before the slow byte; the slow byte before `Hashed`, so that a
                    // head that sees `Hashed` and a byte of 1 knows that the entry is used up.
                    enter::<P>(P::hash(), waiter.cpu, word, next.cpu());
                    word.set_slow();
                    node.set_hashed();
                    step!(waiter.cpu, "owner: entered cpu {}, locked = slow", next.cpu());
                }
            }
        }
    }
}

/// Waits in the hypervisor, and lets the policy learn from it.
fn wait<P: Platform, K: Policy>(cpu: usize, still_blocked: impl Fn() -> bool) {
    if K::TIMES_WAITS {
        let begin = P::now();
        timed_wait::<P>(cpu, still_blocked);
        K::waited(P::nodes(cpu), P::now().saturating_sub(begin));
    } else {
        timed_wait::<P>(cpu, still_blocked);
    }
}

/// Looks at the word now and then as a new head, and takes the lock if it is free. Forbids no thefts: a
/// thief that wins meanwhile is not counted, which the number of looks makes up for.
fn wait_patiently<P: Platform, K: Policy>(word: &Word, waiter: &Waiter) -> Option<Taken> {
    for _ in 0..K::PATIENCE {
        let seen = word.load_acquire();
        if let Some(taken) = take::<K>(word, seen, waiter) {
            return Some(taken);
        }
        step!(waiter.cpu, "head: is patient");
        K::rest::<P>();
    }
    None
}

/// Spins on the word as the head, and takes the lock if it is released. Forbids thefts from here on.
fn spin_as_head<P: Platform, K: Policy>(word: &Word, waiter: &Waiter) -> Option<Taken> {
    if K::STEALS > 0 {
        word.set_pending();
    }
    let mut spin = Spin::new(Stage::Head, waiter.cpu, waiter.predecessor);
    loop {
        // At least one look: the caller may come from a kick.
        let seen = word.load_acquire();
        if let Some(taken) = take::<K>(word, seen, waiter) {
            return Some(taken);
        }
        if !K::keep_spinning::<P>(&mut spin) {
            return None;
        }
        P::relax();
        spin.advance();
    }
}

/// Takes the lock as the head, if it was `seen` free.
fn take<K: Policy>(word: &Word, seen: Snapshot, waiter: &Waiter) -> Option<Taken> {
    if seen.locked() != FREE {
        return None;
    }
    if K::STEALS == 0 {
        // FIFO: while there is a queue, nobody but its head takes the lock.
        return Some(queue::take_seen_free(word, seen, waiter));
    }
    if seen.tail() == Some(waiter.tail) && word.try_take_alone(seen) {
        return Some(Taken::Alone);
    }
    word.try_take_as_head().then_some(Taken::InQueue)
}

/// Registers the head itself; true if the lock turned out to be free and is taken.
fn register<P: Platform, K: Policy>(word: &Word, waiter: &Waiter) -> bool {
    if K::AS_POSTED {
        // The defect: a head that says Halted invites its predecessor to register it again.
        waiter.node.set_state(State::Halted);
        step!(waiter.cpu, "head: state = Halted");
    }
    // R3: the entry before the slow byte.
    step!(waiter.cpu, "head: enters itself");
    enter::<P>(P::hash(), waiter.cpu, word, waiter.cpu);
    match word.exchange_slow() {
        // R4: released since we looked. Nobody saw the entry: only an unlock looks for one, and
        // the lock is ours.
        FREE => {
            step!(waiter.cpu, "head: exchange to slow found it free");
            word.slow_to_locked();
            if K::STEALS > 0 {
                word.clear_pending();
            }
            P::hash().remove(key(word));
            true
        }
        was => {
            debug_assert!(K::AS_POSTED || was == LOCKED, "registered twice");
            if !K::AS_POSTED {
                // Never Halted: that word belongs to the queue behind the head (S1).
                waiter.node.set_state(State::Hashed);
            }
            false
        }
    }
}

fn enter<P: Platform>(table: &HashTable, counting: usize, word: &Word, sleeper: usize) {
    let hops = table.insert(key(word), sleeper);
    if hops > 0 {
        add::<P>(counting, Counter::HashHops, hops as u64);
    }
}

/// `handed_over` as the patch was posted: `Hashed` at once, the slow byte before the entry.
fn register_next_as_posted<P: Platform>(word: &Word, cpu: usize, node: &Node, next: Tail) {
    if node.claim_halted(State::Hashed) {
        step!(cpu, "owner: Halted -> Hashed of cpu {}", next.cpu());
        word.set_slow();
        step!(cpu, "owner: locked = slow, enters cpu {}", next.cpu());
        enter::<P>(P::hash(), cpu, word, next.cpu());
    }
}
