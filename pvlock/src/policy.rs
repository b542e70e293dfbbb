//! Policies: when a waiter sleeps, and who wakes it.
//!
//! Owns the trait and the policies. Never touches the lock word or a node: a policy decides, the
//! slow path in [`pv`](crate::pv) acts, so that a policy cannot break mutual exclusion.

use crate::Platform;

/// What a new owner does about the next waiter when that one sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handover {
    /// Wake it at once, to spin as the head of the queue. It may well sleep again before the
    /// unlock.
    Kick,
    /// Let it sleep, and enter it in the hash table so that the unlock wakes it.
    Register,
}

/// Where a CPU spins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Before it joins the queue.
    Newcomer,
    /// In the queue, behind the head: for the predecessor to hand the head over.
    Behind,
    /// As a new head: for the owner to unlock.
    Head,
    /// As a head that has slept and was kicked, or that of a readers-writer lock.
    Woken,
}

/// One spin of a CPU, as its policy sees it.
pub struct Spin {
    stage: Stage,
    turn: u32,
    /// For the policy to remember something during this spin, such as a deadline; 0 at first.
    pub memo: u64,
}

impl Spin {
    pub(crate) fn new(stage: Stage) -> Self {
        Self { stage, turn: 0, memo: 0 }
    }

    pub(crate) fn advance(&mut self) {
        self.turn = self.turn.saturating_add(1);
    }

    /// Turns done in this spin: looks at what it waits for.
    pub fn turn(&self) -> u32 {
        self.turn
    }

    /// Where it spins.
    pub fn stage(&self) -> Stage {
        self.stage
    }
}

/// When a waiter sleeps, and who wakes it.
///
/// A policy is a type without values. The defaults are those of [`KickAtUnlock`].
///
/// A policy that panics breaks nothing: its CPU goes through the queue to the end without asking it
/// again, releases the lock, and the panic goes on out of `lock`. (Out of `MutexGuard::bump` it
/// goes with the lock held, as `lock_api` demands.)
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

    /// Whether newcomers *steal*, that is, take a free lock past the queue, and the least of the
    /// [`horizon`](Policy::horizon), in nanoseconds. With `None` nobody steals: the order of the
    /// queue is the order of acquisition.
    const HORIZON: Option<u64> = None;

    /// Nanoseconds of [`horizon`](Policy::horizon) for each CPU.
    const HORIZON_PER_CPU: u64 = 0;

    /// For how long newcomers may pass a waiter since it joined the queue, in nanoseconds, where
    /// there are `cpus` CPUs: [`HORIZON_PER_CPU`](Policy::HORIZON_PER_CPU) for each of them, and
    /// [`HORIZON`](Policy::HORIZON) at least.
    ///
    /// An unlock that wakes a head that has waited for longer *reserves* the lock for it.
    ///
    /// Asked each time anew, of [`Platform::online_cpus`]: where CPUs come or go, it changes for
    /// those who wait, too.
    #[inline]
    fn horizon(cpus: usize) -> Option<u64> {
        let least = Self::HORIZON?;
        Some(Self::HORIZON_PER_CPU.saturating_mul(cpus as u64).max(least))
    }

    /// How many [stretches](Policy::stretch) there are in a horizon. 0 does not compile.
    const STRETCHES: u64 = STRETCHES;

    /// For how long a CPU may steal, by one theft after another, in nanoseconds, where there are
    /// `cpus` CPUs: then it queues and sleeps, so that a head that was kicked gets the pCPU. The
    /// [`STRETCHES`](Policy::STRETCHES)th part of the least [`HORIZON`](Policy::HORIZON), or half
    /// as much of the [`horizon`](Policy::horizon) where that is longer.
    ///
    /// Among many CPUs it has to be longer. While a CPU steals, others come out of the queue one at
    /// a time, each by a wake-up; only those steal at the same time that came out in one stretch.
    #[inline]
    fn stretch(cpus: usize) -> u64 {
        const { assert!(Self::STRETCHES > 0, "a horizon has a stretch at least") };
        let part = |horizon: Option<u64>| horizon.map_or(0, |horizon| horizon / Self::STRETCHES);
        part(Self::HORIZON).max(part(Self::horizon(cpus)) / 2)
    }

    /// Asked before each turn of a spin: another turn, or to sleep? A newcomer then queues. Where
    /// nobody steals, newcomers are not asked: they look once more and queue.
    fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
        spin.turn() < P::spin_turns()
    }

    /// The order of steps of the patch as posted in 2015: see `posted`. For negative controls.
    #[cfg(any(loom, shuttle, feature = "posted-patch"))]
    #[doc(hidden)]
    const AS_POSTED: bool = false;

    /// A mechanism that is not there. For experiments.
    #[cfg(feature = "ablation")]
    #[doc(hidden)]
    const WITHOUT: Option<Mechanism> = None;
}

/// Four vCPUs that share a pCPU have their turns within the horizon.
pub(crate) const STRETCHES: u64 = 4;

/// What bounds thefts in time, where the policy has a horizon; see [`pv`](crate::pv).
#[cfg_attr(not(feature = "ablation"), allow(unreachable_pub))]
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// An unlock that wakes a late head reserves the lock for it.
    Reservation,
    /// A CPU that has stolen for long queues.
    ThiefBound,
}

/// Whether `K` has `mechanism`: always, but in experiments, which measure what it is worth.
#[cfg_attr(not(feature = "ablation"), allow(clippy::extra_unused_type_parameters))]
#[inline(always)]
pub(crate) fn has<K: Policy>(mechanism: Mechanism) -> bool {
    #[cfg(feature = "ablation")]
    return K::WITHOUT != Some(mechanism);
    #[cfg(not(feature = "ablation"))]
    {
        let _ = mechanism;
        true
    }
}

/// The lock before the patch: the new owner kicks the sleeping next vCPU to make it spin as head,
/// and when that one has gone to sleep again, the unlock kicks it a second time. Strictly FIFO, at
/// the price of [`KickAtUnlock`] and, where a waiter sleeps twice, of a second kick.
pub struct KickTwice;

impl Policy for KickTwice {
    const NAME: &'static str = "kick-twice";
    const HANDOVER: Handover = Handover::Kick;
}

/// The patch, with its double entry mended: one kick for an acquisition, at unlock. Strictly FIFO,
/// and that has its price: where short sections meet, a queue in strict order is a convoy, in which
/// every hand-over is a sleep and a wake-up. Four vCPUs on one pCPU, with sections of 2 us and 4 us
/// between them, made 5,184 acquisitions a second with it, Linux' own lock 55,894 and
/// [`Adaptive`](crate::Adaptive) more than that (the book, "The lock", has the table).
pub struct KickAtUnlock;

impl Policy for KickAtUnlock {
    const NAME: &'static str = "kick-at-unlock";
}
