//! Policies: when a waiter sleeps, and who wakes it.
//!
//! Owns the trait and the policies. Never touches the lock word or a node: a policy decides, the
//! slow path in [`pv`](crate::pv) acts, so that a policy cannot break mutual exclusion.

use crate::Platform;
use crate::counters::count;
use crate::counts::Counter;
use crate::node::{CpuNodes, State};
use crate::queue;
use crate::word::Tail;

/// What a new owner does about the next waiter when that one sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handover {
    /// Wake it at once, to spin as the head of the queue. It may well sleep again before the unlock.
    Kick,
    /// Let it sleep, and enter it in the hash table so that the unlock wakes it.
    Register,
}

/// Where in the queue a waiter spins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Behind the head: for the predecessor to hand the head over.
    Behind,
    /// As the head: for the owner to unlock.
    Head,
}

/// One spin of a waiter, as its policy sees it.
pub struct Spin {
    stage: Stage,
    cpu: usize,
    predecessor: Option<Tail>,
    turn: u32,
    /// For the policy to remember something during this spin, such as a deadline; 0 at first.
    pub memo: u64,
}

impl Spin {
    pub(crate) fn new(stage: Stage, cpu: usize, predecessor: Option<Tail>) -> Self {
        Self { stage, cpu, predecessor, turn: 0, memo: 0 }
    }

    pub(crate) fn advance(&mut self) {
        self.turn = self.turn.saturating_add(1);
    }

    /// Turns done in this spin.
    pub fn turn(&self) -> u32 {
        self.turn
    }

    /// Where in the queue.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The CPU that spins.
    pub fn cpu(&self) -> usize {
        self.cpu
    }

    /// The CPU ahead in the queue when this one came: for a head, the owner, unless it came
    /// to an empty queue (then `None`) or the lock was stolen or has moved on since.
    pub fn predecessor(&self) -> Option<usize> {
        self.predecessor.map(Tail::cpu)
    }

    /// Whether the predecessor sleeps, or is about to. A hint: its node may be in use for another
    /// lock by now.
    pub fn predecessor_sleeps<P: Platform>(&self) -> bool {
        self.predecessor
            .is_some_and(|tail| P::nodes(tail.cpu()).node(tail.level()).state() != State::Running)
    }

    /// The nodes of the spinning CPU, where a policy keeps what it has learned.
    pub fn nodes<P: Platform>(&self) -> &'static CpuNodes {
        P::nodes(self.cpu)
    }
}

/// When a waiter sleeps, and who wakes it.
///
/// A policy is a type without values. The defaults are those of [`KickAtUnlock`].
///
/// A policy that panics breaks nothing: its CPU goes through the queue to the end without asking it
/// again, releases the lock, and the panic goes on out of `lock`. (Out of `MutexGuard::bump` it goes
/// with the lock held, as `lock_api` demands.)
///
/// ```
/// use pvlock::{Platform, Policy, Spin};
///
/// /// As the patch, but a waiter spins for 20 microseconds, whatever a turn costs.
/// struct TwentyMicroseconds;
///
/// impl Policy for TwentyMicroseconds {
///     const NAME: &'static str = "twenty-microseconds";
///
///     fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
///         if spin.memo == 0 {
///             spin.memo = P::now() + 20_000;
///         }
///         P::now() < spin.memo
///     }
/// }
/// ```
pub trait Policy: 'static {
    /// The name on command lines and in results.
    const NAME: &'static str;

    /// What a new owner does about a sleeping successor.
    const HANDOVER: Handover = Handover::Register;

    /// Looks that a newcomer takes at the lock, to take it past the queue if it is free, before it
    /// joins the queue, each after a [rest](Policy::rest). While a head spins it does not look. With 0 the
    /// order of the queue is the order of acquisition.
    const STEALS: u32 = 0;

    /// Looks that a waiter takes at the lock when it has become the head, each followed by a rest, before it
    /// spins. During them newcomers may still take the lock past it, if the policy [steals](Policy::STEALS):
    /// the owner takes it again and again while the lock's cache line stays with it, as in a cohort
    /// lock. Once in an acquisition, so that they bound those thefts in time.
    const PATIENCE: u32 = 0;

    /// Whether a head that was kicked, and lost the lock to a thief, registers again. Without it
    /// such a head spins until it owns the lock.
    const REARM: bool = true;

    /// Wake-ups that a head finds in vain in one acquisition, because of a theft, before it forbids
    /// thefts until it owns the lock.
    const MAX_THEFTS: u32 = u32::MAX;

    /// Whether [`waited`](Policy::waited) is to be told about waits; it costs two readings of the clock.
    const TIMES_WAITS: bool = false;

    /// Leaves the lock's cache line to its owner between two looks of a newcomer, and of a
    /// [patient](Policy::PATIENCE) head. Some times as long as the line takes from core to core, so that
    /// the owner can use the lock more than once before it is pulled away.
    fn rest<P: Platform>() {
        queue::rest::<P>(64);
    }

    /// Asked before each turn of a spin: another turn, or to sleep?
    fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
        spin.turn() < P::spin_turns()
    }

    /// Told how long a wait took, in nanoseconds, to learn from it. Called with the nodes of the CPU
    /// that waited, if [`TIMES_WAITS`](Policy::TIMES_WAITS).
    fn waited(nodes: &CpuNodes, nanoseconds: u64) {
        let _ = (nodes, nanoseconds);
    }

    /// The order of steps of the patch as posted in 2015: see `posted`. For negative controls.
    #[cfg(any(loom, shuttle, feature = "posted-patch"))]
    #[doc(hidden)]
    const AS_POSTED: bool = false;
}

/// The lock before the patch: the new owner kicks the sleeping next vCPU to make it spin as head,
/// and when that one has gone to sleep again, the unlock kicks it a second time.
pub struct KickTwice;

impl Policy for KickTwice {
    const NAME: &'static str = "kick-twice";
    const HANDOVER: Handover = Handover::Kick;
}

/// The patch, with its double entry mended: one kick for an acquisition, at unlock. Strictly FIFO.
pub struct KickAtUnlock;

impl Policy for KickAtUnlock {
    const NAME: &'static str = "kick-at-unlock";
}

/// [`KickAtUnlock`] and what came after it elsewhere: a newcomer looks once whether it can take the
/// lock while no head spins, and a waiter whose predecessor sleeps goes to sleep too.
///
/// A head that lost the lock to a thief after it was kicked spins from then on; how often that can
/// happen is not bounded while it sleeps.
pub struct Hybrid;

impl Policy for Hybrid {
    const NAME: &'static str = "hybrid";
    const STEALS: u32 = 1;
    const REARM: bool = false;

    fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
        spin.turn() < P::spin_turns() && !wait_early::<P>(spin)
    }
}

/// Whether the spin should end now because the predecessor sleeps, looked at every 256 turns.
pub(crate) fn wait_early<P: Platform>(spin: &Spin) -> bool {
    let early =
        spin.stage() == Stage::Behind && spin.turn() % 256 == 255 && spin.predecessor_sleeps::<P>();
    if early {
        count::<P>(spin.cpu(), Counter::WaitEarly);
    }
    early
}
