//! The slow path when waiters sleep in the hypervisor, and the unlock that wakes them.
//!
//! Owns the order of all steps between a sleeper and whoever has to wake it.
//!
//! # Words
//!
//! - The **owner** has the lock. A **newcomer** wants it and is not in the queue yet. A **waiter**
//!   is in the queue; the first of them is the **head**.
//! - To **steal** is to take a free lock as a newcomer while there is a queue.
//! - A waiter **spins** (looks again and again), **rests** (does not look for a while, so that the
//!   owner keeps the word's cache line), or **waits** (sleeps in the hypervisor until it is
//!   kicked).
//! - To **register** a head is to make its entry in the hash table and to set locked = slow: the
//!   unlock then takes the entry out, and kicks.
//! - To **hand over** is to make the next waiter the head. It does not give it the lock.
//! - A waiter is **late** when it joined the queue longer ago than the policy's horizon.
//! - To **reserve** a lock is to release it with pending set: only the head takes it.
//!
//! # Thefts, and their bounds
//!
//! Where the policy lets newcomers steal, they take a lock that is free and not reserved.
//!
//! 1. An unlock that takes the entry of a late head out reserves the lock. So does a fair unlock.
//!    The head alone ends a reservation, as it takes the lock.
//! 2. A head that has spun for its budget registers, whatever it saw: if the lock is free by then,
//!    the exchange takes it, and otherwise the unlock to come takes the entry out. To look again
//!    instead may be in vain for ever.
//! 3. A CPU that has stolen for longer than the policy's stretch, by one theft after another,
//!    queues and sleeps. A head that was kicked in time, and has no pCPU, can do nothing for
//!    itself; this gives it one. The thief asks its own clock and no node: who waits, how long and
//!    behind whom is hidden from it.
//!
//! So a late head that is awake loses to newcomers for one budget at most, and needs one wake-up
//! more. It forbids nothing while it spins, and if it loses its pCPU then, nobody waits for it.
//!
//! Times are read from nodes that may be in use again, by clocks that may differ or be set anew by
//! a restore. They decide who is late, and with that who is first; never who owns, sleeps or is
//! kicked.
//!
//! # Races
//!
//! Each is named where the code closes it.
//!
//! - **R1** A waiter halts while its predecessor hands over. Both write first (the waiter its
//!   state, the predecessor `handed`), then have a full barrier, then read what the other wrote:
//!   one of the two sees the other.
//! - **R2** The predecessor's read is a compare-exchange that fails, and that orders nothing. So
//!   its full barrier is a fence before it.
//! - **R3** An unlock sees slow and finds no entry. The entry is made before slow is set, and the
//!   unlock fences between the two looks.
//! - **R4** The lock is released after the head's last look. Its exchange to slow returns 0: it has
//!   the lock.
//! - **R5** The lock's memory is gone after its release. The entry is taken out, and its sleeper's
//!   node is looked at, before; afterwards only the CPU's number is used. Nodes live for ever.
//! - **R6** A kick comes before the sleeper sleeps. The platform latches it.
//! - **R7** A kick comes to a CPU that waits for another lock by now. It ends that wait early;
//!   every wait is in a loop.
//! - **R8** The owner and the head both register the head. Halted belongs to a waiter behind the
//!   head; one of Halted -> Running (waiter) and Halted -> Registering (owner) fails.
//! - **R9** A plain unlock overwrites slow. The PV unlock is a compare-exchange, never a store.
//! - **R10** The owner registers its successor while that one is awake and sees a lock that is held
//!   and not slow, as after a theft. While the state is Registering it looks again. Hashed is
//!   stored after slow: who sees Hashed and then a byte of 1 knows that the entry has been used.
//! - **R11** An interrupt comes while a node is being claimed. See `CpuNodes::enter`.
//! - **R12** Another owner comes and goes between a head's look and its step. The step acquires by
//!   itself.
//! - **R13** A reservation is erased, or comes too late. The owner sets pending in the step that
//!   releases the lock; and nobody but the head clears it, as the next owner.
//! - **R14** The owner that has reserved the lock loses its pCPU before it kicks, or the head has
//!   none: the lock lies free, as it does under a strict policy, until that CPU runs. The kick is
//!   owed and latched.
//!
//! S1, the defect of the patch as it was posted, is kept in `posted`.

use core::marker::PhantomData;

use crate::counters::{add, count, timed_kick, timed_wait};
use crate::counts::Counter;
use crate::node::State;
use crate::policy::{Handover, Mechanism, Policy, Spin, Stage, has};
use crate::queue::{self, Discipline, Taken, Waiter};
use crate::sync::{acquire_fence, full_fence, full_fence_before_rmw, step};
use crate::word::{FREE, LEVELS, LOCKED, SLOW, Snapshot, Steps, Tail, Word};
use crate::{HashTable, Platform};

/// Takes the lock, as a newcomer if that may be, otherwise through the queue. `seen` is what the
/// fast path found.
///
/// # Panics
///
/// When it has to queue and the hash table has room for less than four entries for each CPU, before
/// anything is done.
#[inline]
pub(crate) fn acquire<P: Platform, K: Policy, D: Discipline>(word: &Word, seen: Snapshot) {
    if !try_as_newcomer::<P, K>(word, seen) {
        acquire_queued::<P, D>(word);
    }
}

/// Takes the lock through the queue.
#[inline(never)]
fn acquire_queued<P: Platform, D: Discipline>(word: &Word) {
    check_table::<P>();
    queue::acquire::<P, D>(word);
}

/// # Panics
///
/// When the hash table has room for less than four entries for each CPU.
pub(crate) fn check_table<P: Platform>() {
    assert!(
        cfg!(loom) || P::hash().capacity() >= LEVELS * P::MAX_CPUS,
        "pvlock: Platform::hash() has {} entries, {} CPUs need {LEVELS} each",
        P::hash().capacity(),
        P::MAX_CPUS
    );
}

/// Looks at the lock as a newcomer, and takes it if it becomes free: whether it did.
///
/// Where nobody steals it looks once more, and takes a lock that nobody queues for: a short
/// critical section is soon over, the queue would cost more, and nobody is overtaken. Otherwise it
/// looks for as long as the policy says, past a queue too.
#[inline]
pub(crate) fn try_as_newcomer<P: Platform, K: Policy>(word: &Word, seen: Snapshot) -> bool {
    if K::HORIZON.is_none() {
        queue::rest::<P>(if seen.is_waited_for() { REST_BEFORE_QUEUE } else { STRICT_REST });
        return word.try_acquire_seen_free();
    }
    match try_past_queue::<P, K>(word, seen) {
        Look::Taken => true,
        Look::Queue => false,
        Look::Again => keep_trying::<P, K>(word),
    }
}

/// What a newcomer's look came to, where newcomers steal.
enum Look {
    /// It has the lock.
    Taken,
    /// Somebody else has it.
    Again,
    /// It has to queue.
    Queue,
}

/// The looks of a newcomer after the first, for as long as the policy says: whether it has the
/// lock.
#[inline(never)]
fn keep_trying<P: Platform, K: Policy>(word: &Word) -> bool {
    let mut spin = Spin::new(Stage::Newcomer);
    while K::keep_spinning::<P>(&mut spin) {
        rest::<P>(spin.turn());
        spin.advance();
        match try_past_queue::<P, K>(word, word.load()) {
            Look::Taken => return true,
            Look::Again => {}
            Look::Queue => break,
        }
    }
    false
}

/// Steals the lock at once, if it was `seen` free with a queue and nothing else has to be asked
/// before: whether it did. On a pCPU that is short of none but of time, most acquisitions are
/// thefts, and this is all they cost. Does not ask for the mode: a stretch of thefts begins in this
/// file alone, so in other modes there is none to count on.
#[inline(always)]
pub(crate) fn steals_at_once<P: Platform>(word: &Word, seen: Snapshot) -> bool {
    seen.is_free_for_newcomers() && {
        let cpu = P::current_cpu();
        P::nodes(cpu).stretch.count() && tries_theft::<P>(cpu, word)
    }
}

/// Steals the lock, if it still is free and not reserved: whether it did. The theft has been
/// counted.
#[inline(always)]
fn tries_theft<P: Platform>(cpu: usize, word: &Word) -> bool {
    let stolen = word.try_steal();
    if stolen {
        step!(cpu, "newcomer: steals");
    } else {
        P::nodes(cpu).stretch.take_back();
    }
    stolen
}

/// One look of a newcomer that may steal, at what it has `seen`.
#[inline(always)]
fn try_past_queue<P: Platform, K: Policy>(word: &Word, seen: Snapshot) -> Look {
    if seen.pending() {
        // The lock is reserved.
        return Look::Queue;
    }
    if seen.locked() != FREE {
        return Look::Again;
    }
    if seen.tail().is_none() {
        return if word.try_steal() { Look::Taken } else { Look::Again };
    }
    let cpu = P::current_cpu();
    if has_stolen_long::<P, K>(cpu) {
        step!(cpu, "newcomer: has stolen for long, queues");
        return Look::Queue;
    }
    if tries_theft::<P>(cpu, word) { Look::Taken } else { Look::Again }
}

/// Turns of a rest where nobody steals. See [`queue::rest`].
const STRICT_REST: u32 = 64;
/// The same where somebody queues already. The head may be about to take the lock, alone, and needs
/// the word's line for that. A newcomer that queued at once would pull at it, and be the queue that
/// the other finds in turn: two CPUs far from each other would hand the lock to and fro for ever.
const REST_BEFORE_QUEUE: u32 = 16;

/// Leaves the word's cache line to its owner between two looks, for a microsecond by the clock:
/// some times what the line takes from core to core, so that the owner can use the lock more than
/// once.
fn rest<P: Platform>(turn: u32) {
    /// In nanoseconds.
    const REST: u64 = 1_000;
    /// A clock that stands still must not make a rest endless. The model checkers take a turn as
    /// leave to run others: one is enough.
    const MOST_TURNS: u32 = if cfg!(any(loom, shuttle)) { 1 } else { 256 };
    let begin = P::now();
    for more in 0..MOST_TURNS {
        P::relax(turn.saturating_add(more));
        if P::now().wrapping_sub(begin) >= REST {
            break;
        }
    }
}

/// Counts a theft that is about to be tried, unless this CPU has stolen for longer than it may:
/// whether it has.
fn has_stolen_long<P: Platform, K: Policy>(cpu: usize) -> bool {
    let nodes = P::nodes(cpu);
    if nodes.stretch.count() {
        return false;
    }
    // A fifth level of nesting has no node, and no queue to go to.
    let is_bounded = has::<K>(Mechanism::ThiefBound) && nodes.has_free_node();
    let longest = if is_bounded { K::stretch(P::online_cpus()) } else { u64::MAX };
    let goes_on = nodes.stretch.look(P::now(), longest, MOST_BETWEEN_LOOKS);
    !(goes_on && nodes.stretch.count())
}

/// The most thefts between two looks at the clock. A model has few thefts, so each looks, and goes
/// the longer way: the steps on the word are the same.
const MOST_BETWEEN_LOOKS: u32 = if cfg!(loom) { 1 } else { 64 };

/// Whether a waiter since `since` has waited for longer than the horizon, at `now`.
pub(crate) fn is_late<P: Platform, K: Policy>(now: u64, since: u64) -> bool {
    K::horizon(P::online_cpus()).is_some_and(|horizon| is_older(now, since, horizon))
}

/// Whether what began at `since` has lasted for longer than `than`, at `now`. A clock that went
/// back by more than that says yes, so that no restore makes anybody wait until the old time has
/// come.
fn is_older(now: u64, since: u64, than: u64) -> bool {
    now.abs_diff(since) > than
}

/// Releases the lock. If it wakes a head that is late, for that one.
///
/// # Panics
///
/// When it was free.
#[inline]
pub(crate) fn release<P: Platform, K: Policy>(word: &Word) {
    // R9: a sleeping head may have registered; never a blind store.
    if let Err(seen) = word.try_release() {
        release_slow::<P, K>(word, seen, false);
    }
}

/// Releases the lock and reserves it for the head. The caller has seen a queue, and a queue does
/// not go while the lock has an owner.
///
/// # Panics
///
/// When it was free.
pub(crate) fn release_reserved<P: Platform, K: Policy>(word: &Word) {
    if let Err(seen) = word.try_release_reserved() {
        release_slow::<P, K>(word, seen, true);
    }
}

/// Releases a lock whose locked byte was not 1 when unlock looked, and reserves it if `reserve`
/// says so or the head is late.
///
/// # Panics
///
/// When the lock was free.
#[cold]
#[inline(never)]
fn release_slow<P: Platform, K: Policy>(word: &Word, seen: u8, reserve: bool) {
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
    let since = || queue::node::<P>(sleeper).since();
    let is_late = has::<K>(Mechanism::Reservation)
        && K::HORIZON.is_some()
        && is_late::<P, K>(P::now(), since());
    if reserve || is_late {
        // R13: one step for both bytes.
        word.release_reserved();
        step!(cpu, "unlock: reserves the lock, kicks cpu {}", sleeper.cpu());
    } else {
        word.release();
        step!(cpu, "unlock: locked = 0, kicks cpu {}", sleeper.cpu());
    }
    if hops > 0 {
        add::<P>(cpu, Counter::HashHops, hops as u64);
    }
    // R6, R7: the kick is latched, and a spare one is harmless.
    timed_kick::<P>(cpu, sleeper.cpu(), Counter::KickUnlock);
    nodes.end_kick();
}

/// What the hash table knows a lock by.
fn key(word: &Word) -> usize {
    core::ptr::from_ref(word).addr()
}

/// Waiters that sleep when the policy is tired of spinning.
pub(crate) struct Pv<K>(PhantomData<K>);

impl<K: Policy> Discipline for Pv<K> {
    fn joins_at<P: Platform>() -> u64 {
        if K::HORIZON.is_some() { P::now() } else { 0 }
    }

    fn wait_behind<P: Platform>(waiter: &Waiter) {
        let node = waiter.node;
        loop {
            let mut spin = Spin::new(Stage::Behind);
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
                timed_wait::<P>(waiter.cpu, || node.state() == State::Halted);
            }
            // Awake. If the predecessor has registered us meanwhile, that stands (R8).
            node.unhalt();
            step!(waiter.cpu, "queue: awake, Halted -> Running");
            if node.is_handed() {
                return;
            }
            woke_for_nothing::<P>(waiter.cpu);
        }
    }

    fn wait_as_head<P: Platform>(word: &Word, waiter: &Waiter) -> Taken {
        let mut waits = 0;
        // Whether an entry was made for us in this acquisition, by us or by our predecessor.
        let mut registered = false;
        // If our predecessor made it, it was a kick that brought us here.
        let mut stage = match waiter.node.state() {
            State::Hashed => Stage::Woken,
            _ => Stage::Head,
        };
        loop {
            if let Some(taken) = spin_as_head::<P, K>(word, waiter, stage) {
                return taken;
            }
            stage = Stage::Woken;
            let state = waiter.node.state();
            if word.load_acquire().locked() == SLOW {
                // The entry is in the table: whoever unlocks finds it, and us.
                registered = true;
            } else if state == State::Registering {
                // R10: our predecessor owns the lock and is making our entry at this moment.
                P::relax(0);
                continue;
            } else {
                if register::<P, K>(word, waiter) {
                    return Taken::InQueue;
                }
                // R10: an entry once made is gone only when an unlock took it, so a lock that is
                // held and not slow was stolen since.
                if registered || state == State::Hashed {
                    count::<P>(waiter.cpu, Counter::Rearm);
                    step!(waiter.cpu, "head: lost to a thief, has registered again");
                }
                registered = true;
            }
            waits += 1;
            count::<P>(waiter.cpu, Counter::WaitHead);
            if waits > 1 {
                count::<P>(waiter.cpu, Counter::WaitAgain);
            }
            step!(waiter.cpu, "head: waits while slow");
            timed_wait::<P>(waiter.cpu, || word.load().locked() == SLOW);
            step!(waiter.cpu, "head: awake");
            if word.load().locked() == SLOW {
                woke_for_nothing::<P>(waiter.cpu);
            }
        }
    }

    fn try_as_head(word: &Word, waiter: &Waiter) -> Option<Taken> {
        let seen = word.load_acquire();
        if seen.locked() != FREE {
            return None;
        }
        if K::HORIZON.is_none() {
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
                    let hops = enter(table, word, next);
                    word.set_slow();
                    node.set_hashed();
                    step!(waiter.cpu, "owner: entered cpu {}, locked = slow", next.cpu());
                    count_hops::<P>(waiter.cpu, hops);
                }
            }
        }
    }

    fn release<P: Platform>(word: &Word) {
        release::<P, K>(word);
    }
}

/// A wait ended, and what it waited for is still to come. A platform whose waits end at once, again
/// and again, makes a spin of it; this is its turn then.
fn woke_for_nothing<P: Platform>(cpu: usize) {
    count::<P>(cpu, Counter::SpuriousWakeup);
    // loom takes a turn as leave to run others first, and would miss orders.
    if !cfg!(loom) {
        P::relax(0);
    }
}

/// Spins on the word as the head, and takes the lock if it is released.
pub(crate) fn spin_as_head<P: Platform, K: Policy>(
    word: &Word,
    waiter: &Waiter,
    stage: Stage,
) -> Option<Taken> {
    let mut spin = Spin::new(stage);
    loop {
        // At least one look: the caller may come from a kick.
        if let Some(taken) = Pv::<K>::try_as_head(word, waiter) {
            return Some(taken);
        }
        if !K::keep_spinning::<P>(&mut spin) {
            return None;
        }
        match K::HORIZON {
            Some(_) => rest::<P>(spin.turn()),
            None => P::relax(spin.turn()),
        }
        spin.advance();
    }
}

/// Registers the head itself; true if the lock turned out to be free and is taken.
fn register<P: Platform, K: Policy>(word: &Word, waiter: &Waiter) -> bool {
    let table = P::hash();
    // R3: the entry before the slow byte.
    step!(waiter.cpu, "head: enters itself");
    let hops = enter(table, word, waiter.tail);
    let was = word.exchange_slow();
    if was == FREE {
        // R4: released since we looked. Nobody saw the entry: only an unlock looks for one, and the
        // lock is ours.
        step!(waiter.cpu, "head: exchange to slow found it free");
        word.slow_to_locked();
        if K::HORIZON.is_some() {
            // R13: it may have been reserved, and we own it.
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
pub(crate) fn enter(table: &HashTable, word: &Word, sleeper: Tail) -> usize {
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
