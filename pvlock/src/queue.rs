//! The queue that both slow paths share: join, wait behind, wait as the head, hand over.
//!
//! Owns the life of a node in a queue. How a waiter waits is the [`Discipline`]'s.

use core::marker::PhantomData;

use crate::Platform;
use crate::counters::{add, count};
use crate::counts::Counter;
use crate::node::{CpuNodes, Node};
use crate::sync::step;
use crate::word::{LEVELS, Snapshot, Steps, Tail, Word};

/// The waiter itself.
pub(crate) struct Waiter {
    pub(crate) cpu: usize,
    pub(crate) node: &'static Node,
    /// The name of `node`.
    pub(crate) tail: Tail,
    /// Who was the queue's last when this one came.
    pub(crate) predecessor: Option<Tail>,
}

/// Lets the owner keep the word's cache line for some turns.
///
/// A look at a word that is about to be released or taken pulls its line away, and the owner has to
/// get it back before it can go on. With two CPUs on one lock that halves the throughput.
#[inline]
pub(crate) fn rest<P: Platform>(turns: u32) {
    // The model checkers take a turn as leave to run others first, and would miss orders.
    let turns = if cfg!(any(loom, shuttle)) { 0 } else { turns };
    (0..turns).for_each(P::relax);
}

/// How a head took the lock.
pub(crate) enum Taken {
    /// It was alone in the queue, which is empty now.
    Alone,
    /// It still is in the queue, and somebody may stand behind it.
    InQueue,
}

/// How waiters wait, and what a new owner does for the next.
pub(crate) trait Discipline {
    /// The time, for the node of a waiter that joins the queue.
    fn joins_at<P: Platform>() -> u64 {
        0
    }

    /// Returns when the predecessor has made this waiter the head.
    fn wait_behind<P: Platform>(waiter: &Waiter);

    /// Returns when the head has the lock: the locked byte is 1, pending is clear.
    fn wait_as_head<P: Platform>(word: &Word, waiter: &Waiter) -> Taken;

    /// One look of the head: takes the lock if it is free for it.
    fn try_as_head(word: &Word, waiter: &Waiter) -> Option<Taken>;

    /// The caller owns the lock and has just made `next` the head.
    fn handed_over<P: Platform>(word: &Word, waiter: &Waiter, next: Tail);

    /// Releases the lock, which the caller owns.
    fn release<P: Platform>(word: &Word);
}

/// The node that `tail` names.
pub(crate) fn node<P: Platform>(tail: Tail) -> &'static Node {
    P::nodes(tail.cpu()).node(tail.level())
}

/// Takes the lock through the queue.
pub(crate) fn acquire<P: Platform, D: Discipline>(word: &Word) {
    let cpu = current_cpu::<P>();
    let nodes = P::nodes(cpu);
    let level = nodes.enter();
    count_level::<P>(cpu, level);
    if level < LEVELS {
        let tail = Tail::new(cpu, level);
        join::<P, D>(word, cpu, nodes, tail);
    } else {
        // A fifth level of nesting: no node left. Nobody waits for this one, so it may starve, but
        // it is as rare as a machine check inside an NMI inside an interrupt inside a soft one.
        acquire_unqueued::<P>(word);
    }
    nodes.leave(level);
}

/// The number of the calling CPU, of which there are nodes.
///
/// # Panics
///
/// When the platform says one that is not less than its `MAX_CPUS`.
pub(crate) fn current_cpu<P: Platform>() -> usize {
    let cpu = P::current_cpu();
    assert!(cpu < P::MAX_CPUS, "pvlock: cpu {cpu} is beyond Platform::MAX_CPUS = {}", P::MAX_CPUS);
    cpu
}

/// Takes the lock when nobody owns it or waits for it. No order: others may always be faster.
pub(crate) fn acquire_unqueued<P: Platform>(word: &Word) {
    let mut turn = 0_u32;
    while !word.try_acquire_seen_free() {
        P::relax(turn);
        turn = turn.saturating_add(1);
    }
}

fn join<P: Platform, D: Discipline>(word: &Word, cpu: usize, nodes: &CpuNodes, tail: Tail) {
    let own = node::<P>(tail);
    add::<P>(cpu, Counter::LockStealing, nodes.stretch.end().into());
    own.reset(D::joins_at::<P>());
    // The node's line may have been cold; the lock may be free by now.
    if word.try_acquire_seen_free() {
        return;
    }
    let predecessor = word.exchange_tail(tail);
    step!(cpu, "joins the queue behind {:?}", predecessor.map(Tail::cpu));
    let waiter = Waiter { cpu, node: own, tail, predecessor };
    if let Some(predecessor) = predecessor {
        node::<P>(predecessor).set_next(tail);
    }
    let unwinding = Unwinding::<P, D> { word, waiter: &waiter, nodes, _types: PhantomData };
    if predecessor.is_some() {
        D::wait_behind::<P>(&waiter);
    }
    let taken = D::wait_as_head::<P>(word, &waiter);
    core::mem::forget(unwinding);
    step!(cpu, "owner: took the lock as head");
    leave::<P, D>(word, &waiter, taken);
}

/// Leaves the queue as the owner: it is empty behind us, or the next waiter is the new head.
fn leave<P: Platform, D: Discipline>(word: &Word, waiter: &Waiter, taken: Taken) {
    let own = waiter.node;
    if let Taken::Alone = taken {
        return;
    }
    // The look at the own node first, because the word is the line that everybody pulls at.
    let seems_last = own.next().is_none() && word.load().tail() == Some(waiter.tail);
    if seems_last && word.try_clear_tail(waiter.tail) {
        return;
    }
    let mut turn = 0_u32;
    let next = loop {
        // Somebody exchanged the tail and is about to link its node.
        match own.next() {
            Some(next) => break next,
            None => P::relax(turn),
        }
        turn = turn.saturating_add(1);
    };
    node::<P>(next).hand_over();
    step!(waiter.cpu, "owner: hands the head over to cpu {}", next.cpu());
    D::handed_over::<P>(word, waiter, next);
}

/// A policy panics while its waiter stands in the queue. Others may stand behind it, so it goes
/// through the queue to the end, without asking the policy again, and releases the lock. Never
/// dropped otherwise.
struct Unwinding<'a, P: Platform, D: Discipline> {
    word: &'a Word,
    waiter: &'a Waiter,
    nodes: &'a CpuNodes,
    _types: PhantomData<(P, D)>,
}

impl<P: Platform, D: Discipline> Drop for Unwinding<'_, P, D> {
    fn drop(&mut self) {
        let &mut Self { word, waiter, nodes, .. } = self;
        let mut turn = 0_u32;
        let mut relax = || {
            P::relax(turn);
            turn = turn.saturating_add(1);
        };
        while waiter.predecessor.is_some() && !waiter.node.is_handed() {
            relax();
        }
        let taken = loop {
            match D::try_as_head(word, waiter) {
                Some(taken) => break taken,
                None => relax(),
            }
        };
        leave::<P, D>(word, waiter, taken);
        nodes.leave(waiter.tail.level());
        D::release::<P>(word);
    }
}

/// Takes a lock that nobody but the calling head may take, and that it has just seen free.
#[inline]
pub(crate) fn take_as_head(word: &Word, seen: Snapshot, waiter: &Waiter) -> Taken {
    // One step on the word for both, where the head is alone: two would wait for its line twice.
    if seen.tail() == Some(waiter.tail) && word.try_take_alone(seen) {
        return Taken::Alone;
    }
    word.set_locked();
    Taken::InQueue
}

fn count_level<P: Platform>(cpu: usize, level: usize) {
    count::<P>(cpu, Counter::LockSlowpath);
    match level {
        0 => {}
        1 => count::<P>(cpu, Counter::UseNode2),
        2 => count::<P>(cpu, Counter::UseNode3),
        3 => count::<P>(cpu, Counter::UseNode4),
        _ => count::<P>(cpu, Counter::NoNode),
    }
}
