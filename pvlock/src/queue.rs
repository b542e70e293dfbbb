//! The queue that both slow paths share: join, wait behind, wait as head, hand over.
//!
//! Owns the life of a node in a queue. How a waiter waits is the [`Discipline`]'s.

use crate::Platform;
use crate::counters::{Counter, count};
use crate::node::Node;
use crate::sync::step;
use crate::word::{LEVELS, Tail, Word};

/// The waiter itself.
pub(crate) struct Waiter {
    pub(crate) cpu: usize,
    pub(crate) node: &'static Node,
    /// Who was the queue's last when this one came.
    pub(crate) predecessor: Option<Tail>,
}

/// How waiters wait, and what a new owner does for the next.
pub(crate) trait Discipline {
    /// Returns when the predecessor has handed the head of the queue over.
    fn wait_behind<P: Platform>(waiter: &Waiter);

    /// Returns when the lock is taken: the locked byte is 1, pending is clear, and the lock is the caller's.
    fn wait_as_head<P: Platform>(word: &Word, waiter: &Waiter);

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
        while !(word.load().is_free() && word.try_acquire()) {
            P::relax();
        }
    }
    nodes.leave();
}

fn queue_up<P: Platform, D: Discipline>(word: &Word, cpu: usize, own: &'static Node, tail: Tail) {
    own.reset();
    // The node's line may have been cold; the lock may be free by now.
    if word.load().is_free() && word.try_acquire() {
        return;
    }
    let predecessor = word.exchange_tail(tail);
    step!(cpu, "joins the queue behind {:?}", predecessor.map(Tail::cpu));
    let waiter = Waiter { cpu, node: own, predecessor };
    if let Some(predecessor) = predecessor {
        node::<P>(predecessor).set_next(tail);
        D::wait_behind::<P>(&waiter);
    }
    D::wait_as_head::<P>(word, &waiter);

    step!(cpu, "owner: took the lock as head");
    // The lock is ours. Leave the queue: it is empty behind us, or the next is the new head.
    if word.load().tail() == Some(tail) && word.try_clear_tail(tail) {
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
