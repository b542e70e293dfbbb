//! Queue nodes: four to a CPU, one for each level of nesting.
//!
//! Owns what a waiter publishes about itself and the claim of a level. Never touches the lock word.

use core::sync::atomic::compiler_fence;
// No ordering and no safety rests on a time, so the model checkers need not know of it.
use core::sync::atomic::AtomicU64;

use crate::counts::Counts;
use crate::sync::{AtomicU8, AtomicU32, Ordering::Relaxed, const_fn, ord};
use crate::word::{LEVELS, Tail};

/// How a waiter waits, in its node.
///
/// | state | written by | meaning |
/// |-------|------------|---------|
/// | Running | the waiter; a kicking predecessor | spins, or is on its way out |
/// | Halted | the waiter, in the queue only | sleeps or is about to; whoever hands over must act |
/// | Registering | its predecessor | its hash entry is being made; do not make a second |
/// | Hashed | its predecessor; the waiter as head | the hash entry was made |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    Running,
    Halted,
    Registering,
    Hashed,
}

impl State {
    fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Running,
            1 => Self::Halted,
            2 => Self::Registering,
            _ => Self::Hashed,
        }
    }
}

/// One place in one queue.
///
/// A node names its successor by CPU and level, not by address: nodes live for ever, and any CPU
/// can look one up through [`Platform::nodes`](crate::Platform::nodes) without a raw pointer.
#[repr(C, align(32))]
pub(crate) struct Node {
    /// The successor's [`Tail`]; 0 = none yet.
    next: AtomicU32,
    /// 1 = the predecessor has handed the head of the queue over.
    handed: AtomicU8,
    /// A [`State`].
    state: AtomicU8,
    /// Levels in use on this CPU. Only in the node of level 0, only for its own CPU.
    depth: AtomicU32,
    /// Kicks under way on this CPU. Only in the node of level 0.
    kicks: AtomicU32,
    /// Locks taken past a queue by this level since it was last in one. Only for its own CPU.
    thefts: AtomicU32,
    /// When the waiter joined the queue, or the level began to steal, in nanoseconds of its CPU's
    /// clock. It may be that of an earlier use when another CPU reads it: it decides fairness, and
    /// nothing else.
    since: AtomicU64,
}

impl Node {
    const_fn! {
        fn new() -> Self {
            Self {
                next: AtomicU32::new(0),
                handed: AtomicU8::new(0),
                state: AtomicU8::new(State::Running as u8),
                depth: AtomicU32::new(0),
                kicks: AtomicU32::new(0),
                thefts: AtomicU32::new(0),
                since: AtomicU64::new(0),
            }
        }
    }

    /// Makes a claimed node fresh, for a waiter that comes at `now`. Relaxed: `Word::exchange_tail`
    /// publishes it.
    pub(crate) fn reset(&self, now: u64) {
        self.set_since(now);
        self.thefts.store(0, Relaxed);
        self.next.store(0, Relaxed);
        self.handed.store(0, Relaxed);
        self.state.store(State::Running as u8, Relaxed);
    }

    /// When its waiter came, or its level began to steal.
    pub(crate) fn since(&self) -> u64 {
        self.since.load(core::sync::atomic::Ordering::Relaxed)
    }

    /// Its level begins to steal at `now`.
    pub(crate) fn set_since(&self, now: u64) {
        self.since.store(now, core::sync::atomic::Ordering::Relaxed);
    }

    /// Counts one more theft by this level: how many there were before.
    #[inline]
    pub(crate) fn count_theft(&self) -> u32 {
        // Plain accesses: an interrupt that uses this level too makes a count wrong, which nobody
        // minds.
        let before = self.thefts.load(Relaxed);
        self.thefts.store(before.wrapping_add(1), Relaxed);
        before
    }

    /// Tells the predecessor who follows. Release, with `next`: it pairs the successor's reset of
    /// its node with the predecessor's `hand_over` to it.
    pub(crate) fn set_next(&self, next: Tail) {
        self.next.store(u32::from(next.bits()), ord!("link", Release));
    }

    /// Who follows, if it has said so. Acquire, with `set_next`.
    pub(crate) fn next(&self) -> Option<Tail> {
        Tail::from_bits(self.next.load(ord!("next", Acquire)) as u16)
    }

    /// Makes this node's waiter the head. Release: it is handed the critical sections before it,
    /// with `is_handed`.
    pub(crate) fn hand_over(&self) {
        self.handed.store(1, ord!("hand-over", Release));
    }

    /// Whether this waiter is the head. Acquire, with `hand_over`.
    pub(crate) fn is_handed(&self) -> bool {
        self.handed.load(ord!("handed", Acquire)) != 0
    }

    /// The state. Acquire: who sees `Hashed` sees the slow byte that was set before it.
    pub(crate) fn state(&self) -> State {
        State::from_bits(self.state.load(ord!("state-load", Acquire)))
    }

    /// Stores a state. Relaxed: the caller orders it.
    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state as u8, Relaxed);
    }

    /// The predecessor is done with the entry. Release, with `state`: the slow byte comes first.
    pub(crate) fn set_hashed(&self) {
        self.state.store(State::Hashed as u8, ord!("hashed", Release));
    }

    /// Halted -> Running by the waiter; leaves any other state. Acquire when it fails: who sees
    /// that the predecessor acted also sees `hand_over`, which came before, and halts no more.
    pub(crate) fn unhalt(&self) {
        let _ = self.state.compare_exchange(
            State::Halted as u8,
            State::Running as u8,
            Relaxed,
            ord!("unhalt", Acquire),
        );
    }

    /// Halted -> `to` by the predecessor: whether the waiter was halted. Relaxed: the caller put a
    /// full barrier before it (R1, R2), which is also the release that `unhalt` and `state`
    /// acquire.
    pub(crate) fn claim_halted(&self, to: State) -> bool {
        self.state.compare_exchange(State::Halted as u8, to as u8, Relaxed, Relaxed).is_ok()
    }
}

/// The queue nodes of one CPU: 128 bytes, two nodes to a cache line.
///
/// With the feature `counters`, this CPU's counts stand behind them; with `checker`, what it holds.
///
/// ```
/// # #[cfg(not(loom))] {
/// use pvlock::CpuNodes;
///
/// static NODES: [CpuNodes; 4] = [const { CpuNodes::new() }; 4];
/// # assert!(NODES.iter().all(|nodes| nodes.depth() == 0));
/// # }
/// ```
#[repr(C, align(128))]
pub struct CpuNodes {
    nodes: [Node; LEVELS],
    pub(crate) counts: Counts,
    #[cfg(feature = "checker")]
    pub(crate) held: crate::held::Held,
}

impl CpuNodes {
    const_fn! {
        /// Four free nodes.
        pub fn new() -> Self {
            Self {
                nodes: [Node::new(), Node::new(), Node::new(), Node::new()],
                counts: Counts::new(),
                #[cfg(feature = "checker")]
                held: crate::held::Held::new(),
            }
        }
    }

    pub(crate) fn node(&self, level: usize) -> &Node {
        &self.nodes[level]
    }

    /// Levels of nesting that wait on this CPU now. A snapshot when read by another CPU.
    #[inline]
    pub fn depth(&self) -> usize {
        self.nodes[0].depth.load(Relaxed) as usize
    }

    /// Forgets the thefts and the times of the last run, which the next one must not depend on.
    #[cfg(shuttle)]
    #[doc(hidden)]
    pub fn forget(&self) {
        self.nodes.iter().for_each(|node| node.reset(0));
    }

    /// The node that the next [`enter`](Self::enter) claims, if there is one.
    #[inline]
    pub(crate) fn free_node(&self) -> Option<&Node> {
        self.nodes.get(self.depth())
    }

    /// Claims the next level and returns it; [`LEVELS`] or more has no node.
    ///
    /// Only the CPU itself calls this. A context that interrupts it between the load and the store
    /// leaves the depth as it found it, so plain accesses do.
    pub(crate) fn enter(&self) -> usize {
        let level = self.nodes[0].depth.load(Relaxed);
        self.nodes[0].depth.store(level + 1, Relaxed);
        // The claim comes before any use of the node, for an interrupt on this same CPU.
        compiler_fence(core::sync::atomic::Ordering::SeqCst);
        level as usize
    }

    /// Gives `level` back.
    ///
    /// # Panics
    ///
    /// In debug builds, when it is not the innermost one.
    pub(crate) fn leave(&self, level: usize) {
        // Every use of the node comes before, for an interrupt on this same CPU.
        compiler_fence(core::sync::atomic::Ordering::SeqCst);
        let depth = self.nodes[0].depth.load(Relaxed);
        debug_assert!(
            depth as usize == level + 1,
            "pvlock: a CPU leaves level {level} of {depth}: a task was preempted inside `lock`, \
             and another one of its CPU came in or out. Switch preemption off first (`Preemption`)"
        );
        self.nodes[0].depth.store(depth.wrapping_sub(1), Relaxed);
    }

    /// This CPU is about to decide to kick one. Relaxed: the release of the lock comes after it,
    /// and whoever is kicked acquires that before it can be gone.
    pub(crate) fn begin_kick(&self) {
        // Plain accesses, as in `enter`: an interrupt leaves the number as it found it.
        self.nodes[0].kicks.store(self.nodes[0].kicks.load(Relaxed) + 1, Relaxed);
    }

    /// It has kicked. Release, with `kick_is_under_way`.
    pub(crate) fn end_kick(&self) {
        let kicks = self.nodes[0].kicks.load(Relaxed);
        self.nodes[0].kicks.store(kicks - 1, ord!("end-kick", Release));
    }

    /// Whether this CPU is between the decision to kick and the kick. Acquire, with `end_kick`: who
    /// sees no kick sees what it did.
    pub(crate) fn kick_is_under_way(&self) -> bool {
        self.nodes[0].kicks.load(ord!("kicks", Acquire)) != 0
    }
}

impl Default for CpuNodes {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Display for CpuNodes {
    /// The levels in use, one line each.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (level, node) in self.nodes.iter().enumerate().take(self.depth()) {
            let head = if node.is_handed() { ", handed the head" } else { "" };
            write!(f, "  level {level}: {:?}{head}", node.state())?;
            match node.next() {
                Some(next) => writeln!(f, ", next cpu {} level {}", next.cpu(), next.level())?,
                None => writeln!(f, ", last")?,
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_32_bytes_and_a_cpu_128() {
        assert_eq!(size_of::<Node>(), 32);
        if !cfg!(any(feature = "counters", feature = "checker")) {
            assert_eq!(size_of::<CpuNodes>(), 128);
        }
    }

    #[test]
    fn a_state_is_what_was_stored() {
        let cpu = CpuNodes::new();
        let node = cpu.node(0);
        for state in [State::Halted, State::Registering, State::Hashed, State::Running] {
            node.set_state(state);
            assert_eq!(node.state(), state);
        }
        node.set_hashed();
        assert_eq!(node.state(), State::Hashed);
    }

    #[test]
    fn waiter_and_predecessor_cannot_both_end_a_halt() {
        let cpu = CpuNodes::new();
        let node = cpu.node(0);
        assert!(!node.claim_halted(State::Registering), "it runs");
        node.set_state(State::Halted);
        assert!(node.claim_halted(State::Registering));
        node.unhalt();
        assert_eq!(node.state(), State::Registering, "that stands");
        node.set_state(State::Halted);
        node.unhalt();
        assert_eq!(node.state(), State::Running);
        assert!(!node.claim_halted(State::Registering));
    }

    #[test]
    fn a_reset_node_is_linked_to_nobody() {
        let cpu = CpuNodes::new();
        let node = cpu.node(1);
        assert_eq!((node.next(), node.is_handed()), (None, false));
        node.set_next(Tail::new(3, 2));
        node.hand_over();
        node.set_state(State::Halted);
        assert_eq!((node.next(), node.is_handed()), (Some(Tail::new(3, 2)), true));
        node.count_theft();
        node.reset(7);
        assert_eq!((node.next(), node.is_handed(), node.since()), (None, false, 7));
        assert_eq!(node.state(), State::Running);
        assert_eq!(node.count_theft(), 0, "a new stretch");
        assert!(!cpu.node(0).is_handed());
    }

    #[test]
    fn thefts_are_counted_from_the_first() {
        let cpu = CpuNodes::new();
        let node = cpu.node(0);
        assert_eq!([(); 3].map(|()| node.count_theft()), [0, 1, 2]);
    }

    #[test]
    fn the_free_node_is_the_next_to_be_claimed() {
        let cpu = CpuNodes::new();
        for level in 0..LEVELS {
            let free = cpu.free_node().expect("a node");
            assert!(core::ptr::eq(free, cpu.node(level)));
            cpu.enter();
        }
        assert!(cpu.free_node().is_none());
    }

    #[test]
    fn levels_nest() {
        let cpu = CpuNodes::new();
        assert_eq!((cpu.enter(), cpu.enter(), cpu.depth()), (0, 1, 2));
        cpu.leave(1);
        assert_eq!((cpu.enter(), cpu.depth()), (1, 2));
    }

    /// An interrupt kicks in the middle of a kick.
    #[test]
    fn a_kick_is_under_way_until_the_last_has_been_made() {
        let cpu = CpuNodes::new();
        assert!(!cpu.kick_is_under_way());
        cpu.begin_kick();
        cpu.begin_kick();
        cpu.end_kick();
        assert!(cpu.kick_is_under_way());
        cpu.end_kick();
        assert!(!cpu.kick_is_under_way());
    }

    /// Two tasks of one CPU, of which the first was preempted inside `lock` and goes on before the
    /// second is done.
    #[test]
    #[should_panic(expected = "leaves level 0 of 2")]
    #[cfg(debug_assertions)]
    fn a_level_left_out_of_order_is_noticed() {
        let cpu = CpuNodes::new();
        let (first, _second) = (cpu.enter(), cpu.enter());
        cpu.leave(first);
    }
}
