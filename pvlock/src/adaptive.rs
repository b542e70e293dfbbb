//! The default policy: newcomers may take the lock past a sleeping head, for a time that is
//! bounded.
//!
//! Owns two numbers, the budget and the horizon, and what they are worth. Like every policy it
//! decides only; see [`policy`](crate::policy). What a horizon means is in [`pv`](crate::pv).

use crate::Platform;
use crate::policy::{Policy, Spin, Stage};

/// [`AdaptiveWithin`] a spin budget of 50 microseconds and a horizon of 2 milliseconds: the default
/// of [`Mutex`](crate::Mutex).
pub type Adaptive = AdaptiveWithin<50_000, 2_000_000>;

/// Lets a running CPU have the lock while the head of the queue sleeps or wakes up, and nobody wait
/// for long. `BUDGET` and `HORIZON` are in nanoseconds.
///
/// - **Budget.** A newcomer looks at the lock for as long, and takes it as soon as it is free; then
///   it queues, and sleeps at once. A head that was kicked does the same, as an equal of newcomers.
///   A longer budget is faster, and makes the longest wait longer.
/// - **Horizon.** A waiter that has been in the queue for longer comes first: it forbids thefts
///   when it is the head, and an unlock that wakes it reserves the lock for it. Nobody goes on
///   stealing for longer either. A longer horizon is faster, and the longest wait grows with it.
///
/// From joining the queue to owning the lock a waiter with *n* others ahead of it needs at most
/// `HORIZON` + (*n* + 1) × (a critical section + a wake-up), in time in which its vCPU, and those
/// ahead, get a pCPU when they can run. In [`Mode::Native`](crate::Mode::Native) nobody sleeps or
/// steals, and both numbers mean nothing.
///
/// ```
/// # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
/// # use platform::Threads;
/// use pvlock::{AdaptiveWithin, Mutex};
///
/// /// For a guest that would rather have waits of one millisecond than the last few percent.
/// type Prompt = AdaptiveWithin<50_000, 500_000>;
///
/// static TICKS: Mutex<u64, Threads, Prompt> = Mutex::new(0);
/// *TICKS.lock() += 1;
/// ```
pub struct AdaptiveWithin<const BUDGET: u64, const HORIZON: u64>;

impl<const BUDGET: u64, const HORIZON: u64> AdaptiveWithin<BUDGET, HORIZON> {
    /// Its spin budget, in nanoseconds.
    pub const BUDGET: u64 = BUDGET;
}

impl<const BUDGET: u64, const HORIZON: u64> Policy for AdaptiveWithin<BUDGET, HORIZON> {
    const NAME: &'static str = "adaptive";
    const HORIZON: Option<u64> = Some(HORIZON);

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
