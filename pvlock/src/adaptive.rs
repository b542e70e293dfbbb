//! The default policy: newcomers may take the lock past a sleeping head, for a time that is
//! bounded.
//!
//! Owns four numbers, the budget, the horizon, what a CPU adds to it and the stretches in it, and
//! what they are worth.
//! Like every policy it decides only; see [`policy`](crate::policy). What a horizon means is in
//! [`pv`](crate::pv).

use crate::Platform;
use crate::policy::{self, Policy, Spin, Stage};

/// [`AdaptiveWithin`] a spin budget of 50 microseconds and a horizon of half a millisecond for each
/// CPU, but of 6 milliseconds at least, with four stretches in it: the default of
/// [`Mutex`](crate::Mutex).
pub type Adaptive = AdaptiveWithin<50_000, 6_000_000, 500_000>;

/// Lets a running CPU have the lock while the head of the queue sleeps or wakes up, and nobody wait
/// for long. The first three numbers are in nanoseconds.
///
/// - **Budget.** A newcomer looks at the lock for as long, and takes it as soon as it is free; then
///   it queues, and sleeps at once. A head that was kicked does the same, as an equal of newcomers.
///   A longer budget is faster, and makes the longest wait longer.
/// - **Horizon.** A waiter that has been in the queue for longer comes first: an unlock that wakes
///   it reserves the lock for it. A longer horizon is faster, and the longest wait grows with it.
/// - **Per CPU.** The horizon of a waiter is `PER_CPU` times the number of CPUs that there are
///   ([`Platform::online_cpus`]), where that is more than `HORIZON`. A queue of many needs it: when
///   its turns, one after the other, last longer than the horizon, everybody is late on becoming
///   the head, and the lock is a strict queue, at the price of one. 0 makes the horizon the same
///   for every number of CPUs.
/// - **Stretches.** A CPU that has stolen for `HORIZON / STRETCHES`, by one theft after another,
///   queues and sleeps, so that the head that it kicked gets the pCPU
///   ([more](Policy::stretch) among many CPUs). vCPUs that share a pCPU take turns of that length.
///   With four, four of them have their turns within the horizon, and nobody is late, which would
///   break into a turn. Fewer and longer ones are faster, and make usual waits longer.
///
/// From joining the queue to owning the lock a waiter with *n* others ahead of it needs at most
/// [`horizon`](Policy::horizon) + `BUDGET` + a wake-up + (*n* + 1) × (a critical section + a
/// wake-up), in time in which its vCPU, and those ahead, get a pCPU when they can run. In
/// [`Mode::Native`](crate::Mode::Native) nobody sleeps or steals, and the numbers mean nothing.
///
/// ```
/// # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
/// # use platform::Threads;
/// use pvlock::{Adaptive, AdaptiveWithin, Mutex, Policy};
///
/// /// For a guest that would rather have waits of one millisecond than the last few percent.
/// type Prompt = AdaptiveWithin<50_000, 500_000>;
///
/// static TICKS: Mutex<u64, Threads, Prompt> = Mutex::new(0);
/// *TICKS.lock() += 1;
///
/// // With 16 CPUs:
/// assert_eq!(Prompt::horizon(16), Some(500_000));
/// assert_eq!(Adaptive::horizon(16), Some(8_000_000));
/// ```
pub struct AdaptiveWithin<
    const BUDGET: u64,
    const HORIZON: u64,
    const PER_CPU: u64 = 0,
    const STRETCHES: u64 = { policy::STRETCHES },
>;

impl<const BUDGET: u64, const HORIZON: u64, const PER_CPU: u64, const STRETCHES: u64>
    AdaptiveWithin<BUDGET, HORIZON, PER_CPU, STRETCHES>
{
    /// Its spin budget, in nanoseconds.
    pub const BUDGET: u64 = BUDGET;
}

impl<const BUDGET: u64, const HORIZON: u64, const PER_CPU: u64, const STRETCHES: u64> Policy
    for AdaptiveWithin<BUDGET, HORIZON, PER_CPU, STRETCHES>
{
    const NAME: &'static str = "adaptive";
    const HORIZON: Option<u64> = Some(HORIZON);
    const HORIZON_PER_CPU: u64 = PER_CPU;
    const STRETCHES: u64 = STRETCHES;

    fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
        // Behind the head nobody can have the lock, and a new head has spent its budget as a
        // newcomer.
        if matches!(spin.stage(), Stage::Behind | Stage::Head) {
            return false;
        }
        let now = P::now();
        if spin.turn() == 0 {
            spin.memo = now.saturating_add(BUDGET);
        }
        // The turns are for a clock that stands still.
        now < spin.memo && spin.turn() < P::spin_turns()
    }
}
