//! What happened on each CPU, counted.
//!
//! Owns how a count is made and read. With the feature `counters` off counting is no code.

#[cfg(feature = "counters")]
use core::sync::atomic::Ordering::Relaxed;

use crate::counts::Counter;
use crate::platform::Platform;

/// Adds `by` to a counter of `cpu`, which must be the calling CPU.
///
/// For platforms, which count what only they see ([`Counter::PollTimeout`]).
#[inline]
pub fn add<P: Platform>(cpu: usize, counter: Counter, by: u64) {
    // Relaxed read-modify-write: an interrupt on this CPU may count too. Statistics order nothing.
    #[cfg(feature = "counters")]
    P::nodes(cpu).counts.values[counter as usize].fetch_add(by, Relaxed);
    #[cfg(not(feature = "counters"))]
    let _ = (cpu, counter, by);
}

#[inline]
pub(crate) fn count<P: Platform>(cpu: usize, counter: Counter) {
    add::<P>(cpu, counter, 1);
}

/// The counts of one CPU, in the order of [`Counter::ALL`]; all 0 without the feature `counters`.
///
/// May be read while the lock is in use; counters of one snapshot are then not of one moment.
pub fn counters<P: Platform>(cpu: usize) -> [u64; Counter::COUNT] {
    #[cfg(feature = "counters")]
    {
        let nodes = P::nodes(cpu);
        let mut counts = nodes.counts.values.each_ref().map(|count| count.load(Relaxed));
        // Thefts are added when their stretch ends: to steal is to be quick.
        counts[Counter::LockStealing as usize] += u64::from(nodes.stretch.thefts());
        counts
    }
    #[cfg(not(feature = "counters"))]
    {
        let _ = cpu;
        [0; Counter::COUNT]
    }
}

/// Kicks `target` from `cpu`, and counts the time it took.
#[inline]
pub(crate) fn timed_kick<P: Platform>(cpu: usize, target: usize, why: Counter) {
    count::<P>(cpu, why);
    #[cfg(feature = "counters")]
    let begin = {
        let now = P::now();
        P::nodes(target).counts.kicked_at.store(now.max(1), Relaxed);
        now
    };
    P::kick(target);
    #[cfg(feature = "counters")]
    add::<P>(cpu, Counter::LatencyKick, P::now().saturating_sub(begin));
}

/// Waits on `cpu`, and counts the time since the kick that ended it.
#[inline]
pub(crate) fn timed_wait<P: Platform>(cpu: usize, still_blocked: impl Fn() -> bool) {
    #[cfg(feature = "counters")]
    P::nodes(cpu).counts.kicked_at.store(0, Relaxed);
    P::wait(still_blocked);
    #[cfg(feature = "counters")]
    {
        let kicked_at = P::nodes(cpu).counts.kicked_at.swap(0, Relaxed);
        if kicked_at != 0 {
            add::<P>(cpu, Counter::LatencyWake, P::now().saturating_sub(kicked_at));
        }
    }
    #[cfg(not(feature = "counters"))]
    let _ = cpu;
}
