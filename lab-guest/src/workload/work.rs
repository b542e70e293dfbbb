//! Work: time a vCPU spends *running*.
//!
//! Owns the work loop and its calibration. A critical section of 20 us is a number of turns of a
//! loop, not a wait for a clock: if Xen takes the vCPU off its pCPU in the middle, the section gets
//! longer by the time away, as a real one would. Never uses PAUSE, which ends the slice under an
//! emulator and can exit to the hypervisor under PVH.

use experiment::Amount;

/// How many turns of a loop this machine makes in a millisecond when nothing disturbs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    turns_per_ms: u64,
}

/// A measurement is long enough for the clock, and short enough (less than twice this) to fit between two
/// preemptions, and into the turn of a pCPU under a deterministic emulator: a third of 100 us with three pCPUs.
const SHORTEST_NS: u64 = 8_000;
/// How many tries a calibration takes at least. Where time counts instructions, tries one after the other can be
/// disturbed by the same amount, and agree.
const LEAST_TRIES: usize = 200;
/// How many tries a calibration takes at most: 80 ms of a quiet vCPU.
const MOST_TRIES: usize = 5_000;
/// How many tries must agree for their time to count.
const WITNESSES: usize = 4;
/// How many of the fastest tries are remembered: all but `WITNESSES` of them may be accidents.
const REMEMBERED: usize = 32;
/// How well they must agree: 1 part in so many.
const CLOSE: u64 = 100;
/// So a clock that stands still ends the search, too.
const MOST_TURNS: u64 = 1 << 26;

/// No measurement was undisturbed, as far as one can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbed {
    /// The fastest try, in nanoseconds.
    pub fastest_ns: u64,
    /// The slowest of the fastest tries that are remembered, in nanoseconds.
    pub slowest_ns: u64,
}

impl core::fmt::Display for Disturbed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Disturbed { fastest_ns, slowest_ns } = self;
        write!(
            f,
            "the speed of this vCPU cannot be measured: of the fastest {REMEMBERED} of {MOST_TRIES} tries \
             ({fastest_ns} to {slowest_ns} ns) no {WITNESSES} agree within 1 %"
        )
    }
}

impl Speed {
    /// Measures a loop: `spin(turns)` is timed by `now` (nanoseconds) again and again, see [`fastest`].
    ///
    /// # Errors
    ///
    /// If no such number of tries agrees.
    pub fn calibrate(now: impl Fn() -> u64, spin: impl Fn(u64)) -> Result<Speed, Disturbed> {
        let time = |turns| {
            let begin = now();
            spin(turns);
            now().saturating_sub(begin)
        };
        let mut turns = 500;
        // One slow try of a few turns does not make them enough.
        let undisturbed = |turns| (0..WITNESSES).map(|_| time(turns)).min().unwrap_or(0);
        while turns < MOST_TURNS && undisturbed(turns) < SHORTEST_NS {
            turns *= 2;
        }
        // What reading the clock costs is no work.
        let clock = fastest(|| time(0))?;
        let all = fastest(|| time(turns))?;
        Ok(Speed::measured(turns, all.saturating_sub(clock)))
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

/// Turns of what a person asked for, as a time or in turns: turns need no measurement.
///
/// # Errors
///
/// If it is a time, and the speed could not be measured.
pub fn turns_of(speed: Result<Speed, Disturbed>, amount: Amount) -> Result<u64, Disturbed> {
    match amount {
        Amount::Time(time) => Ok(speed?.turns(time.ns())),
        Amount::Turns(turns) => Ok(turns),
    }
}

/// The fastest of the times that `measure` answers which `WITNESSES` tries share, within a percent.
///
/// A disturbance only makes a try slower, so the fastest counts, and after `LEAST_TRIES` it is looked for no longer than
/// until `WITNESSES` tries agree with it. A single fast one may be an accident, of the clock or of the emulator:
/// if nothing agrees with it in all tries, the next faster ones are looked at.
///
/// # Errors
///
/// If no tries among the fastest agree.
pub fn fastest(mut measure: impl FnMut() -> u64) -> Result<u64, Disturbed> {
    let close = |slow: u64, fast: u64| slow - fast <= fast.div_ceil(CLOSE);
    // Sorted; the first `known` are there.
    let mut times = [u64::MAX; REMEMBERED];
    let mut known = 0;
    for tries in 1..=MOST_TRIES {
        // So that no two tries begin at the same place of whatever comes again and again.
        work(tries as u64 * 37 % 251);
        let ns = measure();
        let place = times[..known].partition_point(|&faster| faster <= ns);
        if place < REMEMBERED {
            known = (known + 1).min(REMEMBERED);
            times[place..known].rotate_right(1);
            times[place] = ns;
        }
        if tries >= LEAST_TRIES && known >= WITNESSES && close(times[WITNESSES - 1], times[0]) {
            return Ok(times[0]);
        }
    }
    times
        .windows(WITNESSES)
        .find(|group| close(group[WITNESSES - 1], group[0]))
        .map(|group| group[0])
        .ok_or(Disturbed { fastest_ns: times[0], slowest_ns: times[REMEMBERED - 1] })
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
        )
        .unwrap();
        assert_eq!(speed.turns_per_ms(), 4_000_000);
        assert_eq!(speed.turns(20_000), 80_000);
    }

    /// `spin=50us` became 5 to 1,552 turns: whatever disturbs all tries alike was taken for the vCPU's speed.
    #[test]
    fn one_fast_try_among_disturbed_ones_is_no_calibration() {
        let mut calls = 0;
        let disturbed = fastest(|| {
            calls += 1;
            // Each try is disturbed by a tenth more than the one before, but for one.
            if calls == 30 { 20 } else { (1_000.0 * 1.1_f64.powi(calls)) as u64 }
        });
        assert_eq!(disturbed.map_err(|told| told.fastest_ns), Err(20));
    }

    /// A guest of KVM in an emulator: one try of 1,672 ns stood against thousands, and the run was refused.
    #[test]
    fn a_few_lucky_tries_do_not_hide_the_speed_that_many_agree_on() {
        let mut calls = 0;
        let found = fastest(|| {
            calls += 1;
            match calls % 1_000 {
                999 => 1_000 + calls,
                7 => 8_000 + calls % 10,
                noise => 10_000 + noise * 200,
            }
        });
        assert_eq!(found, Ok(8_007));
    }

    /// Two domains under a deterministic emulator: three tries of 43.1 us agreed, and undisturbed ones take 32.
    #[test]
    fn tries_that_are_disturbed_by_the_same_amount_do_not_agree_on_a_speed() {
        let mut calls = 0;
        let found = fastest(|| {
            calls += 1;
            if calls <= 50 { 11_100 + calls % 10 } else { 8_000 + calls % 10 }
        });
        assert_eq!(found, Ok(8_000));
    }

    #[test]
    fn a_clock_that_stands_still_or_runs_backwards_ends_the_calibration() {
        let speed = Speed::calibrate(|| 7, |_| {}).unwrap();
        assert!(speed.turns_per_ms() >= 1);
        let clock = Cell::new(u64::MAX);
        let _ = Speed::calibrate(|| clock.replace(clock.get() - 1), |_| {});
    }

    /// What was given in turns was refused as well, with the advice to give it in turns.
    #[test]
    fn turns_need_no_speed_and_times_do() {
        let disturbed = Disturbed { fastest_ns: 1, slowest_ns: 2 };
        let time = Amount::Time(experiment::Time::us(2));
        assert_eq!(turns_of(Err(disturbed), Amount::Turns(125)), Ok(125));
        assert_eq!(turns_of(Err(disturbed), time), Err(disturbed));
        assert_eq!(turns_of(Ok(Speed::measured(4_000, 1_000)), time), Ok(8_000));
    }

    #[test]
    fn real_work_takes_longer_the_more_there_is() {
        work(0);
        let start = std::time::Instant::now();
        let speed = Speed::calibrate(|| start.elapsed().as_nanos() as u64, work).unwrap();
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
