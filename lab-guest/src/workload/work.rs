//! Work: time a vCPU spends *running*.
//!
//! Owns the work loop and its calibration. A critical section of 20 us is a number of turns of a
//! loop, not a wait for a clock: if Xen takes the vCPU off its pCPU in the middle, the section gets
//! longer by the time away, as a real one would. Never uses PAUSE, which ends the slice under an
//! emulator and can exit to the hypervisor under PVH.

/// How many turns of a loop this machine makes in a millisecond when nothing disturbs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    turns_per_ms: u64,
}

/// A measurement is long enough for the clock, and short enough (less than twice this) to fit
/// between two preemptions, and into one of the 100 us slices in which a deterministic emulator
/// lets its pCPUs take turns.
const SHORTEST_NS: u64 = 20_000;
const TRIES: usize = 50;
/// So a clock that stands still ends the search, too.
const MOST_TURNS: u64 = 1 << 26;

impl Speed {
    /// Measures a loop that only runs: `spin(turns)` is timed by `now` (nanoseconds) several times,
    /// and the fastest counts, because a disturbance can only make it slower.
    pub fn calibrate(now: impl Fn() -> u64, spin: impl Fn(u64)) -> Speed {
        let (turns, times) = measure(now, spin);
        Speed::measured(turns, times[0])
    }

    /// Measures a loop that makes way for others in every turn: the median counts. Under a
    /// deterministic emulator a PAUSE costs 30 ns while the other pCPUs idle and 5500 ns while they
    /// work, and waiters spin while others work.
    pub fn calibrate_among_others(now: impl Fn() -> u64, spin: impl Fn(u64)) -> Speed {
        let (turns, times) = measure(now, spin);
        Speed::measured(turns, times[TRIES / 2])
    }

    /// A speed of `turns` in `ns` nanoseconds; never zero.
    pub fn measured(turns: u64, ns: u64) -> Speed {
        let per_ms = u128::from(turns) * 1_000_000 / u128::from(ns.max(1));
        Speed { turns_per_ms: u64::try_from(per_ms).unwrap_or(u64::MAX).max(1) }
    }

    /// Turns that take `ns` nanoseconds, rounded to the nearest.
    pub fn turns(self, ns: u64) -> u64 {
        let turns = (u128::from(self.turns_per_ms) * u128::from(ns) + 500_000) / 1_000_000;
        u64::try_from(turns).unwrap_or(u64::MAX)
    }

    /// Turns in a millisecond.
    pub fn turns_per_ms(self) -> u64 {
        self.turns_per_ms
    }
}

/// How long so many turns take: nanoseconds of each try, sorted.
fn measure(now: impl Fn() -> u64, spin: impl Fn(u64)) -> (u64, [u64; TRIES]) {
    let time = |turns| {
        let begin = now();
        spin(turns);
        now().saturating_sub(begin).max(1)
    };
    let mut turns = 1_000;
    while turns < MOST_TURNS && time(turns) < SHORTEST_NS {
        turns *= 2;
    }
    let mut times = [(); TRIES].map(|()| time(turns));
    times.sort_unstable();
    (turns, times)
}

/// Works for `turns` turns: two instructions each, nothing else.
#[inline]
pub fn work(turns: u64) {
    if turns == 0 {
        return;
    }
    // SAFETY: it only counts a register down to zero; it reads and writes no memory and no stack.
    unsafe {
        core::arch::asm!(
            "2:",
            "dec {turns}",
            "jnz 2b",
            turns = inout(reg) turns => _,
            options(nomem, nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    #[test]
    fn the_fastest_of_the_tries_counts() {
        let clock = Cell::new(0u64);
        let calls = Cell::new(0);
        // Four turns a nanosecond, but every other try is preempted for 3 ms.
        let speed = Speed::calibrate(
            || clock.get(),
            |turns| {
                calls.set(calls.get() + 1);
                let preempted = if calls.get() % 2 == 0 { 3_000_000 } else { 0 };
                clock.set(clock.get() + turns / 4 + preempted);
            },
        );
        assert_eq!(speed.turns_per_ms(), 4_000_000);
        assert_eq!(speed.turns(20_000), 80_000);
    }

    #[test]
    fn among_others_the_median_counts() {
        let clock = Cell::new(0u64);
        let calls = Cell::new(0);
        // A turn takes 5 us, but every fourth try finds the neighbours idle.
        let speed = Speed::calibrate_among_others(
            || clock.get(),
            |turns| {
                calls.set(calls.get() + 1);
                let turn = if calls.get() % 4 == 0 { 30 } else { 5_000 };
                clock.set(clock.get() + turns * turn);
            },
        );
        assert_eq!(speed.turns_per_ms(), 200);
    }

    #[test]
    fn a_clock_that_stands_still_or_runs_backwards_ends_the_calibration() {
        let speed = Speed::calibrate(|| 7, |_| {});
        assert!(speed.turns_per_ms() >= 1);
        let clock = Cell::new(u64::MAX);
        Speed::calibrate(|| clock.replace(clock.get() - 1), |_| {});
    }

    #[test]
    fn real_work_takes_longer_the_more_there_is() {
        work(0);
        let start = std::time::Instant::now();
        let speed = Speed::calibrate(|| start.elapsed().as_nanos() as u64, work);
        // Between 1 MHz and 100 GHz, one turn a cycle or a bit slower: not optimised away.
        assert!((1_000..100_000_000).contains(&speed.turns_per_ms()), "{speed:?}");
    }

    proptest! {
        #[test]
        fn no_numbers_make_it_panic(turns: u64, ns: u64, wanted: u64) {
            let speed = Speed::measured(turns, ns);
            prop_assert!(speed.turns_per_ms() >= 1);
            prop_assert_eq!(speed.turns(0), 0);
            speed.turns(wanted);
        }
    }
}
