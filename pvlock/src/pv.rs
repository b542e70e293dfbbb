//! The slow path when waiters sleep in the hypervisor, and the unlock that wakes them.
//!
//! Owns the order of all steps between a sleeper and whoever has to wake it.
//!
//! # Words
//!
//! - The **owner** has the lock. A **newcomer** wants it and is not in the queue yet. A **waiter** is in
//!   the queue; the first of them is the **head**.
//! - To **steal** is to take a free lock as a newcomer while there is a queue.
//! - A waiter **spins** (looks again and again), **rests** (does not look for some turns, so that the
//!   owner keeps the word's cache line), or **waits** (sleeps in the hypervisor until it is kicked).
//! - To **register** a head is to make its entry in the hash table and to set locked = slow: the unlock
//!   then takes the entry out, and kicks.
//! - To **hand over** is to make the next waiter the head. It does not give it the lock.
//!
//! # Races
//!
//! Each is named where the code closes it.
//!
//! - **R1** A waiter halts while its predecessor hands over. Both write first (the waiter its state, the
//!   predecessor `handed`), then have a full barrier, then read what the other wrote: one of the two
//!   sees the other.
//! - **R2** The predecessor's read is a compare-exchange that fails, and that orders nothing. So its full
//!   barrier is a fence before it.
//! - **R3** An unlock sees slow and finds no entry. The entry is made before slow is set, and the unlock
//!   fences between the two looks.
//! - **R4** The lock is released after the head's last look. Its exchange to slow returns 0: it has the
//!   lock.
//! - **R5** The lock's memory is gone after its release. The entry is taken out before; afterwards only
//!   the CPU's number is used. Nodes live for ever.
//! - **R6** A kick comes before the sleeper sleeps. The platform latches it.
//! - **R7** A kick comes to a CPU that waits for another lock by now. It ends that wait early; every wait
//!   is in a loop.
//! - **R8** The owner and the head both register the head. Halted belongs to a waiter behind the head;
//!   one of Halted -> Running (waiter) and Halted -> Registering (owner) fails.
//! - **R9** A plain unlock overwrites slow. The PV unlock is a compare-exchange, never a store.
//! - **R10** The owner registers its successor while that one is awake and sees a lock that is held and
//!   not slow, as after a theft. While the state is Registering it looks again. Hashed is stored after
//!   slow: who sees Hashed and then a byte of 1 knows that the entry has been used.
//! - **R11** An interrupt comes while a node is being claimed. See `CpuNodes::enter`.
//! - **R12** Another owner comes and goes between a head's look and its step. The step acquires by
//!   itself.
//! - **R13** A reservation for the head is erased by the head, which lets others steal when it goes to
//!   sleep. It clears pending only in the same step that finds the byte slow.
//!
//! S1, the defect of the patch as it was posted, is kept in `posted`.

use core::marker::PhantomData;

use crate::counters::{add, count, timed_kick, timed_wait};
use crate::counts::Counter;
use crate::node::State;
use crate::policy::{Handover, Policy, Spin, Stage};
use crate::queue::{self, Discipline, Taken, Waiter};
use crate::sync::{acquire_fence, full_fence, full_fence_before_rmw, step};
use crate::word::{FREE, LEVELS, LOCKED, SLOW, Snapshot, Steps, Tail, Word};
use crate::{HashTable, Platform};

/// Takes the lock, as a newcomer if that may be, otherwise through the queue. `seen` is what the
/// fast path found.
///
/// # Panics
///
/// When the hash table has room for less than four entries for each CPU, before anything is done.
pub(crate) fn acquire<P: Platform, K: Policy, D: Discipline>(word: &Word, seen: Snapshot) {
    assert!(
        cfg!(loom) || P::hash().capacity() >= LEVELS * P::MAX_CPUS,
        "pvlock: Platform::hash() has {} entries, {} CPUs need {LEVELS} each",
        P::hash().capacity(),
        P::MAX_CPUS
    );
    if !try_as_newcomer::<P, K>(word, seen) {
        queue::acquire::<P, D>(word);
    }
}

/// Looks at the lock as a newcomer, and takes it if it becomes free: whether it did.
///
/// Whatever the policy, it looks once more at a lock that nobody queues for: a short critical section
/// is soon over, the queue would cost more, and nobody is overtaken. A policy that steals looks at a
/// lock with a queue too.
pub(crate) fn try_as_newcomer<P: Platform, K: Policy>(word: &Word, mut seen: Snapshot) -> bool {
    for look in 0..=K::STEALS.max(1) {
        if look > 0 {
            K::rest::<P>();
            seen = word.load();
        }
        if seen.pending() || (K::STEALS == 0 && seen.tail().is_some()) {
            // A head spins, or has a reservation: it comes first. Or the order of the queue is the
            // order.
            break;
        }
        if seen.locked() == FREE && try_take::<K>(word) {
            if seen.tail().is_some() {
                count::<P>(P::current_cpu(), Counter::LockStealing);
                step!(P::current_cpu(), "newcomer: steals");
            }
            return true;
        }
    }
    false
}

/// Takes a free lock as a newcomer, while there is a queue only if the policy steals.
pub(crate) fn try_take<K: Policy>(word: &Word) -> bool {
    if K::STEALS > 0 { word.try_steal() } else { word.try_acquire().is_ok() }
}

/// Releases the lock.
///
/// # Panics
///
/// When it was free.
pub(crate) fn release<P: Platform>(word: &Word) {
    // R9: a sleeping head may have registered; never a blind store.
    if let Err(seen) = word.try_release() {
        release_slow::<P>(word, seen, Word::release);
    }
}

/// Releases the lock and reserves it for the head: no newcomer steals it. Where there is no queue, the
/// next waiter finds pending set, and clears it when it takes the lock.
///
/// # Panics
///
/// When it was free.
pub(crate) fn release_reserved<P: Platform>(word: &Word) {
    if let Err(seen) = word.try_release_reserved() {
        release_slow::<P>(word, seen, Word::release_reserved);
    }
}

/// Releases a lock whose locked byte was not 1 when unlock looked.
///
/// # Panics
///
/// When the lock was free.
#[cold]
#[inline(never)]
fn release_slow<P: Platform>(word: &Word, seen: u8, release: impl FnOnce(&Word)) {
    assert!(seen == SLOW, "pvlock: unlock of a lock that is not held (locked byte {seen})");
    // R3: the failed compare-exchange ordered nothing. Acquire, with `exchange_slow`: who saw the
    // slow byte sees the entry.
    acquire_fence("unlock-fence");
    let cpu = P::current_cpu();
    let nodes = P::nodes(cpu);
    nodes.begin_kick();
    // R5: the entry goes first, the lock's memory may go with the release.
    let (sleeper, hops) = P::hash().remove(key(word));
    step!(cpu, "unlock: slow; takes the entry out");
    release(word);
    step!(cpu, "unlock: locked = 0, kicks cpu {sleeper}");
    if hops > 0 {
        add::<P>(cpu, Counter::HashHops, hops as u64);
    }
    // R6, R7: the kick is latched, and a spare one is harmless.
    timed_kick::<P>(cpu, sleeper, Counter::KickUnlock);
    nodes.end_kick();
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
                P::relax(spin.turn());
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
            // Awake. If the predecessor has registered us meanwhile, that stands (R8).
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
                // R10: our predecessor owns the lock and is making our entry at this moment.
                P::relax(0);
                continue;
            } else {
                // R10: an entry once made is gone only when an unlock took it, so a lock that is
                // held and not slow was stolen since.
                if registered || state == State::Hashed {
                    thefts += 1;
                    if !K::REARM {
                        P::relax(0);
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
            // Asleep, we let others steal, unless they did too often. Not a step earlier: a theft
            // between the spin and the sleep would leave no trace to count it by. R13: nor when the
            // byte is not slow any more, because pending may be a reservation then.
            if K::STEALS > 0 {
                if thefts < K::MAX_THEFTS {
                    word.clear_pending_if_slow();
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

    fn try_as_head(word: &Word, waiter: &Waiter) -> Option<Taken> {
        let seen = word.load_acquire();
        if seen.locked() != FREE {
            return None;
        }
        if K::STEALS == 0 {
            // FIFO: while there is a queue, nobody but its head takes the lock.
            return Some(queue::take_as_head(word, seen, waiter));
        }
        if seen.tail() == Some(waiter.tail) && word.try_take_alone(seen) {
            return Some(Taken::Alone);
        }
        word.try_take_as_head().then_some(Taken::InQueue)
    }

    fn handed_over<P: Platform>(word: &Word, waiter: &Waiter, next: Tail) {
        let node = P::nodes(next.cpu()).node(next.level());
        let table = P::hash();
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
            Handover::Register => {
                if node.claim_halted(State::Registering) {
                    step!(waiter.cpu, "owner: Halted -> Registering of cpu {}", next.cpu());
                    // R3: the entry before the slow byte. R10: the slow byte before `Hashed`.
                    let hops = enter(table, word, next.cpu());
                    word.set_slow();
                    node.set_hashed();
                    step!(waiter.cpu, "owner: entered cpu {}, locked = slow", next.cpu());
                    count_hops::<P>(waiter.cpu, hops);
                }
            }
        }
    }

    fn release<P: Platform>(word: &Word) {
        release::<P>(word);
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

/// Looks at the word now and then as a new head, and takes the lock if it is free. Forbids no thefts
/// and counts none, which the number of looks makes up for.
fn wait_patiently<P: Platform, K: Policy>(word: &Word, waiter: &Waiter) -> Option<Taken> {
    for _ in 0..K::PATIENCE {
        if let Some(taken) = Pv::<K>::try_as_head(word, waiter) {
            return Some(taken);
        }
        step!(waiter.cpu, "head: is patient");
        K::rest::<P>();
    }
    None
}

/// Spins on the word as the head, and takes the lock if it is released. Forbids thefts from here on.
pub(crate) fn spin_as_head<P: Platform, K: Policy>(word: &Word, waiter: &Waiter) -> Option<Taken> {
    if K::STEALS > 0 {
        word.set_pending();
    }
    let mut spin = Spin::new(Stage::Head, waiter.cpu, waiter.predecessor);
    loop {
        // At least one look: the caller may come from a kick.
        if let Some(taken) = Pv::<K>::try_as_head(word, waiter) {
            return Some(taken);
        }
        if !K::keep_spinning::<P>(&mut spin) {
            return None;
        }
        P::relax(spin.turn());
        spin.advance();
    }
}

/// Registers the head itself; true if the lock turned out to be free and is taken.
fn register<P: Platform, K: Policy>(word: &Word, waiter: &Waiter) -> bool {
    let table = P::hash();
    // R3: the entry before the slow byte.
    step!(waiter.cpu, "head: enters itself");
    let hops = enter(table, word, waiter.cpu);
    let was = word.exchange_slow();
    if was == FREE {
        // R4: released since we looked. Nobody saw the entry: only an unlock looks for one, and the
        // lock is ours.
        step!(waiter.cpu, "head: exchange to slow found it free");
        word.slow_to_locked();
        if K::STEALS > 0 {
            word.clear_pending();
        }
        table.remove(key(word));
    } else {
        debug_assert!(was == LOCKED, "registered twice");
        // Never Halted: that belongs to the waiters behind the head (R8).
        waiter.node.set_state(State::Hashed);
    }
    count_hops::<P>(waiter.cpu, hops);
    was == FREE
}

/// Makes the entry of a sleeping head. Returns the lines of the table looked at beyond the first.
pub(crate) fn enter(table: &HashTable, word: &Word, sleeper: usize) -> usize {
    table.insert(key(word), sleeper)
}

fn count_hops<P: Platform>(cpu: usize, hops: usize) {
    if hops > 0 {
        add::<P>(cpu, Counter::HashHops, hops as u64);
    }
}

/// Drops the entry of a lock that turned out to be free (R4). For `posted`.
#[cfg(any(loom, shuttle, feature = "posted-patch"))]
pub(crate) fn forget(table: &HashTable, word: &Word) {
    table.remove(key(word));
}
