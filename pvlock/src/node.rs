//! Queue nodes: four to a CPU, one for each level of nesting; and what a CPU notes for itself.
//!
//! Owns what a waiter publishes about itself, the claim of a level, and the count of thefts. Never
//! touches the lock word.

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
#[repr(C, align(16))]
pub(crate) struct Node {
    /// The successor's [`Tail`]; 0 = none yet.
    next: AtomicU32,
    /// 1 = the predecessor has handed the head of the queue over.
    handed: AtomicU8,
    /// A [`State`].
    state: AtomicU8,
    /// When the waiter joined the queue, in nanoseconds of its CPU's clock. It may be that of an
    /// earlier use when another CPU reads it: it decides fairness, and nothing else.
    since: AtomicU64,
}

impl Node {
    const_fn! {
        fn new() -> Self {
            Self {
                next: AtomicU32::new(0),
                handed: AtomicU8::new(0),
                state: AtomicU8::new(State::Running as u8),
                since: AtomicU64::new(0),
            }
        }
    }

    /// Makes a claimed node fresh, for a waiter that comes at `now`. Relaxed: `Word::exchange_tail`
    /// publishes it.
    pub(crate) fn reset(&self, now: u64) {
        self.since.store(now, core::sync::atomic::Ordering::Relaxed);
        self.next.store(0, Relaxed);
        self.handed.store(0, Relaxed);
        self.state.store(State::Running as u8, Relaxed);
    }

    /// When its waiter came.
    pub(crate) fn since(&self) -> u64 {
        self.since.load(core::sync::atomic::Ordering::Relaxed)
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

/// A stretch of thefts: the locks that a CPU has taken past a queue since it was last in one, on
/// whatever level of nesting. Only for its own CPU.
///
/// An interrupt that steals or queues in the middle of a step makes a number wrong: a stretch is a
/// little longer or shorter then, and nothing else.
#[repr(C)]
pub(crate) struct Stretch {
    /// How many may be made before the clock is to be looked at.
    left: AtomicU32,
    /// How many there will have been by then.
    by_then: core::sync::atomic::AtomicU32,
    /// When it began, in nanoseconds of the CPU's clock.
    since: AtomicU64,
}

impl Stretch {
    const_fn! {
        fn new() -> Self {
            Self {
                left: AtomicU32::new(0),
                by_then: core::sync::atomic::AtomicU32::new(0),
                since: AtomicU64::new(0),
            }
        }
    }

    /// Counts one more theft, unless the clock has to be looked at before it: whether it did.
    #[inline(always)]
    pub(crate) fn count(&self) -> bool {
        // As signed numbers: the step down is the comparison, too.
        let left = (self.left.load(Relaxed) as i32).wrapping_sub(1);
        if left < 0 {
            return false;
        }
        self.left.store(left as u32, Relaxed);
        true
    }

    /// The theft that was just counted came to nothing. Inline: a call would have every theft save
    /// registers for it.
    #[inline(always)]
    pub(crate) fn take_back(&self) {
        self.left.store(self.left.load(Relaxed).saturating_add(1), Relaxed);
    }

    /// How many thefts there were so far. A snapshot when read by another CPU.
    pub(crate) fn thefts(&self) -> u32 {
        self.thefts_with(self.left.load(Relaxed))
    }

    /// The same, where so many are `left`.
    fn thefts_with(&self, left: u32) -> u32 {
        self.by_then.load(core::sync::atomic::Ordering::Relaxed).saturating_sub(left)
    }

    /// Looks at the clock, which says `now`: whether the stretch may go on, because it has not
    /// lasted for longer than `longest`. The first look begins it.
    ///
    /// If it may, the next look is due when as many thefts have been made as there is time for, by
    /// the pace so far; but after no more than have been made already, and after `most` at the
    /// latest, because the pace may change.
    pub(crate) fn look(&self, now: u64, longest: u64, most: u32) -> bool {
        let thefts = self.thefts();
        if thefts == 0 {
            self.since.store(now, core::sync::atomic::Ordering::Relaxed);
        }
        // A clock that went back, as after a restore, ends the stretch sooner or later.
        let lasted = now.abs_diff(self.since.load(core::sync::atomic::Ordering::Relaxed));
        let Some(rest) = longest.checked_sub(lasted) else { return false };
        let in_time = u64::from(thefts).saturating_mul(rest) / lasted.max(1);
        let more = in_time.min(thefts.min(most).into()).max(1) as u32;
        let by_then = thefts.saturating_add(more);
        self.by_then.store(by_then, core::sync::atomic::Ordering::Relaxed);
        self.left.store(more, Relaxed);
        true
    }

    /// The CPU joins a queue: how many thefts it made.
    pub(crate) fn end(&self) -> u32 {
        let thefts = self.thefts_with(self.left.swap(0, Relaxed));
        self.by_then.store(0, core::sync::atomic::Ordering::Relaxed);
        thefts
    }
}

/// The queue nodes of one CPU, 64 bytes, and 64 for what it notes for itself. Others write to the
/// first half, so they are two cache lines.
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
    /// Levels in use. Only for its own CPU.
    depth: AtomicU32,
    /// Kicks under way.
    kicks: AtomicU32,
    pub(crate) stretch: Stretch,
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
                depth: AtomicU32::new(0),
                kicks: AtomicU32::new(0),
                stretch: Stretch::new(),
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
        self.depth.load(Relaxed) as usize
    }

    /// Forgets the thefts and the times of the last run, which the next one must not depend on.
    #[cfg(shuttle)]
    #[doc(hidden)]
    pub fn forget(&self) {
        self.nodes.iter().for_each(|node| node.reset(0));
        self.stretch.end();
    }

    /// Whether the next [`enter`](Self::enter) claims a node: on a fifth level there is none.
    #[inline]
    pub(crate) fn has_free_node(&self) -> bool {
        self.depth() < LEVELS
    }

    /// Claims the next level and returns it; [`LEVELS`] or more has no node.
    ///
    /// Only the CPU itself calls this. A context that interrupts it between the load and the store
    /// leaves the depth as it found it, so plain accesses do.
    pub(crate) fn enter(&self) -> usize {
        let level = self.depth.load(Relaxed);
        self.depth.store(level + 1, Relaxed);
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
        let depth = self.depth.load(Relaxed);
        debug_assert!(
            depth as usize == level + 1,
            "pvlock: a CPU leaves level {level} of {depth}: a task was preempted inside `lock`, \
             and another one of its CPU came in or out. Switch preemption off first (`Preemption`)"
        );
        self.depth.store(depth.wrapping_sub(1), Relaxed);
    }

    /// This CPU is about to decide to kick one. Relaxed: the release of the lock comes after it,
    /// and whoever is kicked acquires that before it can be gone.
    pub(crate) fn begin_kick(&self) {
        // Plain accesses, as in `enter`: an interrupt leaves the number as it found it.
        self.kicks.store(self.kicks.load(Relaxed) + 1, Relaxed);
    }

    /// It has kicked. Release, with `kick_is_under_way`.
    pub(crate) fn end_kick(&self) {
        let kicks = self.kicks.load(Relaxed);
        self.kicks.store(kicks - 1, ord!("end-kick", Release));
    }

    /// Whether this CPU is between the decision to kick and the kick. Acquire, with `end_kick`: who
    /// sees no kick sees what it did.
    pub(crate) fn kick_is_under_way(&self) -> bool {
        self.kicks.load(ord!("kicks", Acquire)) != 0
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
    fn a_node_has_16_bytes_and_a_cpu_128() {
        assert_eq!(size_of::<Node>(), 16);
        assert_eq!(core::mem::offset_of!(CpuNodes, depth), 64, "its own cache line");
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
        node.reset(7);
        assert_eq!((node.next(), node.is_handed(), node.since()), (None, false, 7));
        assert_eq!(node.state(), State::Running);
        assert!(!cpu.node(0).is_handed());
    }

    /// The looks of a CPU that makes a theft each `pace` nanoseconds: after how many thefts each
    /// was, and after how many the stretch was over.
    fn looks(pace: u64, longest: u64, most: u32) -> (Vec<u32>, u32) {
        const BEGIN: u64 = 1 << 40;
        let stretch = Stretch::new();
        let mut looks = Vec::new();
        for theft in 0..10_000 {
            let due = !stretch.count();
            if due {
                looks.push(theft);
                if !stretch.look(BEGIN + u64::from(theft) * pace, longest, most) {
                    assert_eq!(stretch.end(), theft, "each was counted");
                    return (looks, theft);
                }
                assert!(stretch.count(), "a look allows one at least");
            }
        }
        panic!("it goes on and on: {looks:?}")
    }

    #[test]
    fn the_clock_is_looked_at_seldom_and_in_time() {
        let (at, end) = looks(10, 1_000, 64);
        assert_eq!(at, [0, 1, 2, 4, 8, 16, 32, 64, 100, 101], "doubling, then the rest");
        assert_eq!(end, 101, "the first that comes after 1,000 ns");
        let (at, end) = looks(10, 10_000, 64);
        assert_eq!(
            at[7..],
            [
                64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1_000,
                1_001
            ]
        );
        assert_eq!(end, 1_001);
        assert_eq!(looks(700, 1_000, 64), (vec![0, 1, 2], 2));
        assert_eq!(looks(2_000, 1_000, 64), (vec![0, 1], 1));
        assert_eq!(looks(10, 30, 1), (vec![0, 1, 2, 3, 4], 4), "at every one");
    }

    #[test]
    fn a_stretch_begins_anew_after_a_queue_and_ends_when_the_clock_goes_back() {
        let stretch = Stretch::new();
        assert!(!stretch.count() && stretch.look(5, 100, 64) && stretch.count());
        assert!(!stretch.look(106, 100, 64));
        assert_eq!(stretch.end(), 1);
        assert!(!stretch.count(), "the first theft of a stretch looks at the clock");
        assert!(stretch.look(500, 100, 64));
        assert_eq!(stretch.end(), 0);
        assert!(!stretch.count(), "whatever the last stretch had left");
        assert!(stretch.look(1_000, 100, 64) && stretch.count() && !stretch.count());
        assert!(!stretch.look(0, 100, 64));
        assert!(stretch.look(950, 100, 64));
    }

    #[test]
    fn a_fifth_level_has_no_node() {
        let cpu = CpuNodes::new();
        for _ in 0..LEVELS {
            assert!(cpu.has_free_node());
            cpu.enter();
        }
        assert!(!cpu.has_free_node());
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
