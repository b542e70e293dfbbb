//! The policy that measures: spin budgets in time, learned on each CPU from the waits it had.
//!
//! Owns what is learned and how. Like every policy it decides only; see [`policy`](crate::policy).

use crate::Platform;
use crate::counters::count;
use crate::counts::Counter;
use crate::node::CpuNodes;
use crate::policy::{Policy, Spin, Stage, wait_early};

/// Spins for about as long as a sleep and a wake-up would cost, and lets no head starve.
///
/// - **Budget in time.** A waiter spins for as long as the cheapest waits it had lately took, between
///   2 and 500 microseconds; 20 at first. A spin that long costs at most twice what the better choice,
///   made in hindsight, would have. A `PAUSE` takes ten times longer on one processor than on
///   another, and a hypervisor may trap it, so turns measure nothing.
/// - **Owner-aware.** A head whose predecessor, the owner, was taken off its pCPU sleeps at once.
///   Only the head does: waiters behind it that followed a preempted *predecessor* to sleep have
///   been seen to fall asleep in a chain, each wake-up on the critical path.
/// - **Patience.** A new head looks four times, a microsecond apart, before it sets the pending byte and
///   spins. Meanwhile the owner may take the lock again, while its cache line stays where it is: as in a
///   cohort lock, a line's way is paid for once in several acquisitions.
/// - **Re-arm.** A head that was kicked and lost the lock to a thief registers again and sleeps.
/// - **Bounded theft.** A newcomer may take the lock while the head sleeps: otherwise the lock lies free
///   for a wake-up. A head that woke in vain twice keeps the pending byte set until it owns the
///   lock, so that it waits for its patience, two wake-ups and one critical section at most beyond its turn.
pub struct Adaptive;

/// The budget of a CPU that has learned nothing, in nanoseconds.
const FIRST_BUDGET: u64 = 20_000;
/// Below this a wait was no sleep.
const LEAST_BUDGET: u64 = 2_000;
/// Beyond this a wait says how long the lock was held, not what a wake-up costs.
const MOST_BUDGET: u64 = 500_000;
/// Between two looks at a lock that others take again and again, in nanoseconds: some times what the
/// lock's cache line takes from core to core.
const REST: u64 = 1_000;
/// A clock that stands still must not make a rest endless.
const MOST_TURNS_OF_REST: u32 = 256;
/// Turns between two looks at the clock and at the owner.
const LOOK_EVERY: u32 = 16;

impl Policy for Adaptive {
    const NAME: &'static str = "adaptive";
    const STEALS: u32 = 4;
    const MAX_THEFTS: u32 = 2;
    const PATIENCE: u32 = 4;
    const TIMES_WAITS: bool = true;

    fn rest<P: Platform>() {
        let end = P::now() + REST;
        for turn in 0..MOST_TURNS_OF_REST {
            P::relax(turn);
            if P::now() >= end {
                break;
            }
        }
    }

    fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
        if spin.memo == 0 {
            spin.memo = P::now() + budget(spin.nodes::<P>());
        }
        if wait_early::<P>(spin) {
            return false;
        }
        if spin.turn() % LOOK_EVERY != 0 {
            return true;
        }
        if spin.stage() == Stage::Head
            && spin.predecessor().is_some_and(|owner| P::vcpu_is_preempted(owner))
        {
            count::<P>(spin.cpu(), Counter::OwnerPreempted);
            return false;
        }
        P::now() < spin.memo
    }

    fn waited(nodes: &CpuNodes, nanoseconds: u64) {
        nodes.set_learned(learn(budget(nodes), nanoseconds) as u32);
    }
}

fn budget(nodes: &CpuNodes) -> u64 {
    match nodes.learned() {
        0 => FIRST_BUDGET,
        learned => learned.into(),
    }
}

/// The next budget: falls at once to a cheaper wait, rises slowly towards dearer ones.
///
/// The cheapest waits are those whose kick was already under way, so that they cost a sleep and a
/// wake-up and nothing else.
fn learn(budget: u64, waited: u64) -> u64 {
    let waited = waited.clamp(LEAST_BUDGET, MOST_BUDGET);
    if waited < budget { waited } else { budget + (waited - budget) / 64 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_budget_follows_the_cheapest_waits() {
        let mut budget = FIRST_BUDGET;
        for wait in [300_000, 9_000, 400_000, 8_000] {
            budget = learn(budget, wait);
        }
        assert_eq!(budget, 8_000);
        for _ in 0..1_000 {
            budget = learn(budget, 60_000);
        }
        assert!((50_000..=60_000).contains(&budget), "{budget}");
    }

    #[test]
    fn the_budget_stays_within_its_bounds() {
        assert_eq!(learn(FIRST_BUDGET, 0), LEAST_BUDGET);
        let mut budget = FIRST_BUDGET;
        (0..100_000).for_each(|_| budget = learn(budget, u64::MAX));
        assert!(budget <= MOST_BUDGET);
    }
}
