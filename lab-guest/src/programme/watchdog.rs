//! Notices a vCPU that makes no progress.
//!
//! Owns each vCPU's progress count and the judgement "stuck". It does not run by itself and ends
//! nothing: vCPUs that have finished, and waiters whose bounded poll expired, ask it; the programme
//! does what has to be done. Looking at the counts costs the owner of a count nothing until then.

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use spin::Mutex;

/// The progress of all vCPUs, and when it was last seen to change.
#[derive(Debug)]
pub struct Watchdog {
    deadline_ns: u64,
    progress: Box<[CachePadded<AtomicU64>]>,
    /// Which vCPUs are down for now, and cannot move.
    away: Box<[AtomicBool]>,
    seen: Mutex<Box<[Seen]>>,
}

/// Progress of a vCPU that is done.
const DONE: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    progress: u64,
    at_ns: u64,
}

/// A vCPU that is not done and has not moved for the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Its number.
    pub vcpu: u32,
    /// Its acquisitions so far.
    pub acquisitions: u64,
    /// How long nothing has happened, in nanoseconds.
    pub for_ns: u64,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stuck { vcpu, acquisitions, for_ns } = self;
        let ms = for_ns / 1_000_000;
        write!(
            f,
            "vCPU {vcpu} is stuck: no progress for {ms} ms, after {acquisitions} acquisitions"
        )
    }
}

impl Watchdog {
    /// A watchdog over vCPUs 0 to `vcpus - 1`; none of them has moved at `now_ns`.
    pub fn new(vcpus: u32, deadline_ns: u64, now_ns: u64) -> Self {
        Watchdog {
            deadline_ns,
            progress: (0..vcpus).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
            away: (0..vcpus).map(|_| AtomicBool::new(false)).collect(),
            seen: Mutex::new((0..vcpus).map(|_| Seen { progress: 0, at_ns: now_ns }).collect()),
        }
    }

    /// Where `vcpu` counts its acquisitions; in a cache line of its own, written by that vCPU
    /// alone.
    ///
    /// # Panics
    ///
    /// If there is no such vCPU.
    pub fn progress(&self, vcpu: u32) -> &AtomicU64 {
        &self.progress[vcpu as usize]
    }

    /// Says that `vcpu` is done and will not move any more.
    pub fn done(&self, vcpu: u32) {
        // Release: pairs with the Acquire in `all_done`; what the vCPU did is visible there.
        self.progress(vcpu).store(DONE, Ordering::Release);
    }

    /// Whether `vcpu` has said that it is done.
    pub fn is_done(&self, vcpu: u32) -> bool {
        // Acquire: see `done`.
        self.progress(vcpu).load(Ordering::Acquire) == DONE
    }

    /// Says that `vcpu` was taken down, or is back: it cannot be stuck meanwhile.
    pub fn set_away(&self, vcpu: u32, away: bool) {
        // Relaxed: a hint to whoever looks.
        self.away[vcpu as usize].store(away, Ordering::Relaxed);
    }

    /// Whether `vcpu` is down for now.
    pub fn is_away(&self, vcpu: u32) -> bool {
        // Relaxed: as above.
        self.away[vcpu as usize].load(Ordering::Relaxed)
    }

    /// Whether every vCPU is done.
    pub fn all_done(&self) -> bool {
        // Acquire: see `done`.
        self.progress.iter().all(|progress| progress.load(Ordering::Acquire) == DONE)
    }

    /// Acquisitions of each vCPU as far as known; `None` for those that are done.
    pub fn snapshot(&self) -> impl Iterator<Item = Option<u64>> + '_ {
        // Relaxed: a number to look at.
        self.progress.iter().map(|progress| progress.load(Ordering::Relaxed)).map(unfinished)
    }

    /// Starts all deadlines anew: the start line was crossed at `now_ns`.
    pub fn restart(&self, now_ns: u64) {
        for (seen, progress) in self.seen.lock().iter_mut().zip(&self.progress) {
            // Relaxed: as in `snapshot`.
            *seen = Seen { progress: progress.load(Ordering::Relaxed), at_ns: now_ns };
        }
    }

    /// Looks at every vCPU. Any vCPU may call it, at any time; while one looks, others see nothing.
    ///
    /// `now_ns` may come from any vCPU's clock: they differ by far less than a deadline.
    pub fn check(&self, now_ns: u64) -> Option<Stuck> {
        let mut seen = self.seen.try_lock()?;
        let mut stuck: Option<Stuck> = None;
        for (vcpu, (seen, progress)) in seen.iter_mut().zip(&self.progress).enumerate() {
            // Relaxed: as in `snapshot`.
            let Some(acquisitions) = unfinished(progress.load(Ordering::Relaxed)) else { continue };
            if acquisitions != seen.progress || self.is_away(vcpu as u32) {
                *seen = Seen { progress: acquisitions, at_ns: now_ns };
                continue;
            }
            let for_ns = now_ns.saturating_sub(seen.at_ns);
            if for_ns >= self.deadline_ns && stuck.is_none_or(|other| for_ns > other.for_ns) {
                stuck = Some(Stuck { vcpu: vcpu as u32, acquisitions, for_ns });
            }
        }
        stuck
    }
}

fn unfinished(progress: u64) -> Option<u64> {
    (progress != DONE).then_some(progress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const DEADLINE: u64 = 1_000_000_000;

    fn set(watchdog: &Watchdog, vcpu: u32, n: u64) {
        watchdog.progress(vcpu).store(n, Ordering::Relaxed);
    }

    #[test]
    fn the_vcpu_that_stands_still_longest_is_named() {
        let watchdog = Watchdog::new(3, DEADLINE, 0);
        (0..3).for_each(|vcpu| set(&watchdog, vcpu, 10));
        assert_eq!(watchdog.check(500_000_000), None);
        set(&watchdog, 0, 11);
        set(&watchdog, 2, 12);
        assert_eq!(watchdog.check(900_000_000), None);
        set(&watchdog, 0, 12);
        let stuck = watchdog.check(1_900_000_000).unwrap();
        assert_eq!(stuck, Stuck { vcpu: 1, acquisitions: 10, for_ns: 1_400_000_000 });
        assert_eq!(
            stuck.to_string(),
            "vCPU 1 is stuck: no progress for 1400 ms, after 10 acquisitions"
        );
    }

    #[test]
    fn a_vcpu_that_is_done_is_never_stuck() {
        let watchdog = Watchdog::new(2, DEADLINE, 0);
        watchdog.done(0);
        assert!(!watchdog.all_done());
        assert_eq!(watchdog.check(10 * DEADLINE).map(|stuck| stuck.vcpu), Some(1));
        watchdog.done(1);
        assert!(watchdog.all_done());
        assert_eq!(watchdog.check(20 * DEADLINE), None);
        assert!(watchdog.snapshot().all(|progress| progress.is_none()));
    }

    #[test]
    fn a_vcpu_that_is_down_is_not_stuck_and_has_its_time_when_it_is_back() {
        let watchdog = Watchdog::new(2, DEADLINE, 0);
        watchdog.done(0);
        watchdog.set_away(1, true);
        assert_eq!(watchdog.check(10 * DEADLINE), None);
        watchdog.set_away(1, false);
        assert_eq!(watchdog.check(10 * DEADLINE + DEADLINE / 2), None);
        assert!(watchdog.check(11 * DEADLINE).is_some());
    }

    #[test]
    fn waiting_at_the_start_line_does_not_count() {
        let watchdog = Watchdog::new(1, DEADLINE, 0);
        watchdog.restart(5 * DEADLINE);
        assert_eq!(watchdog.check(5 * DEADLINE + DEADLINE / 2), None);
        assert!(watchdog.check(6 * DEADLINE).is_some());
    }

    #[test]
    fn a_clock_of_another_vcpu_that_is_behind_does_no_harm() {
        let watchdog = Watchdog::new(1, DEADLINE, DEADLINE);
        assert_eq!(watchdog.check(0), None);
    }

    #[test]
    fn while_one_vcpu_looks_others_see_nothing() {
        let watchdog = Watchdog::new(1, DEADLINE, 0);
        let looking = watchdog.seen.lock();
        assert_eq!(watchdog.check(2 * DEADLINE), None);
        drop(looking);
        assert!(watchdog.check(2 * DEADLINE).is_some());
    }
}
