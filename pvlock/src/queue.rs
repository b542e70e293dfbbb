//! The queue that both slow paths share: join, wait behind, wait as head, hand over.
//!
//! Owns the life of a node in a queue. How a waiter waits is the [`Discipline`]'s.

use crate::Platform;
use crate::counters::{Counter, count};
use crate::node::Node;
use crate::sync::step;
use crate::word::{LEVELS, Snapshot, Tail, Word};

/// The waiter itself.
pub(crate) struct Waiter {
    pub(crate) cpu: usize,
    pub(crate) node: &'static Node,
    /// The name of `node`.
    pub(crate) tail: Tail,
    /// Who was the queue's last when this one came.
    pub(crate) predecessor: Option<Tail>,
}

/// Leaves the word's cache line to who needs it now, for some turns.
///
/// Whoever looks at a word that is just being released or taken pulls its line away, and the owner has to
/// get it back before it can go on. With two CPUs on one lock that halves the throughput.
#[inline]
pub(crate) fn stand_back<P: Platform>(turns: u32) {
    // The model checkers take a turn as leave to run others first, and would miss orders.
    let turns = if cfg!(any(loom, shuttle)) { 0 } else { turns };
    for _ in 0..turns {
        P::relax();
    }
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
    /// Returns when the predecessor has handed the head of the queue over.
    fn wait_behind<P: Platform>(waiter: &Waiter);

    /// Returns when the lock is taken: the locked byte is 1, pending is clear, and the lock is the caller's.
    fn wait_as_head<P: Platform>(word: &Word, waiter: &Waiter) -> Taken;

    /// The caller owns the lock and has just made `next` the head.
    fn handed_over<P: Platform>(word: &Word, waiter: &Waiter, next: Tail);
}

fn node<P: Platform>(tail: Tail) -> &'static Node {
    P::nodes(tail.cpu()).node(tail.level())
}

/// Takes the lock through the queue.
pub(crate) fn acquire<P: Platform, D: Discipline>(word: &Word) {
    let cpu = P::current_cpu();
    assert!(cpu < P::MAX_CPUS, "pvlock: cpu {cpu} is beyond Platform::MAX_CPUS = {}", P::MAX_CPUS);
    let nodes = P::nodes(cpu);
    let level = nodes.enter();
    count_level::<P>(cpu, level);
    if level < LEVELS {
        let tail = Tail::new(cpu, level);
        queue_up::<P, D>(word, cpu, nodes.node(level), tail);
    } else {
        // A fifth level of nesting: no node left. Nobody waits for this one, so it may starve, but
        // it is as rare as a machine check inside an NMI inside an interrupt inside a soft one.
        while !(word.load().is_free() && word.try_acquire().is_ok()) {
            P::relax();
        }
    }
    nodes.leave();
}

fn queue_up<P: Platform, D: Discipline>(word: &Word, cpu: usize, own: &'static Node, tail: Tail) {
    own.reset();
    // The node's line may have been cold; the lock may be free by now.
    if word.load().is_free() && word.try_acquire().is_ok() {
        return;
    }
    let predecessor = word.exchange_tail(tail);
    step!(cpu, "joins the queue behind {:?}", predecessor.map(Tail::cpu));
    let waiter = Waiter { cpu, node: own, tail, predecessor };
    if let Some(predecessor) = predecessor {
        node::<P>(predecessor).set_next(tail);
        D::wait_behind::<P>(&waiter);
    }
    let taken = D::wait_as_head::<P>(word, &waiter);
    step!(cpu, "owner: took the lock as head");
    // The lock is ours. Leave the queue: it is empty behind us, or the next is the new head. The look
    // at the own node first, because the word is the line that everybody pulls at.
    if let Taken::Alone = taken {
        return;
    }
    if own.next().is_none() && word.load().tail() == Some(tail) && word.try_clear_tail(tail) {
        return;
    }
    let next = loop {
        // Somebody exchanged the tail and is about to link its node.
        match own.next() {
            Some(next) => break next,
            None => P::relax(),
        }
    };
    node::<P>(next).hand_over();
    step!(cpu, "owner: hands the head over to cpu {}", next.cpu());
    D::handed_over::<P>(word, &waiter, next);
}

/// Takes a lock that nobody but the calling head may take, and that it has just seen free.
#[inline]
pub(crate) fn take_seen_free(word: &Word, seen: Snapshot, waiter: &Waiter) -> Taken {
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
