//! How many TSC ticks a second has, learned from the trace itself.
//!
//! Owns the calibration. The file does not hold the frequency, but the scheduler writes how many
//! nanoseconds a vCPU ran (SWITCH_INFPREV), and the TSC tells when it came (SWITCH_INFNEXT) and
//! when it left. The time stamps are not taken at the same instruction as the nanoseconds, so a run
//! is worth the more the longer it is; and each pCPU's nanoseconds come from its own system time,
//! so one pCPU may disagree with the others.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::Read;

use crate::analysis::Options;
use crate::error::Error;
use crate::event;
use crate::reader::{self, Record, Visit};
use crate::summary::{Clock, ClockSource};

/// How many of the longest runs of each pCPU are kept.
const KEEP: usize = 64;
/// Runs shorter than this many ns say little.
const SHORTEST_NS: u32 = 1_000;
/// The nanoseconds are cut to 32 bits, which no run of fewer ticks fills: no TSC is slower than 250
/// MHz.
const SURELY_WHOLE: u64 = 1 << 30;
/// Ticks a nanosecond that a TSC may have when nothing but runs that filled 32 bits tell.
const PLAUSIBLE: std::ops::RangeInclusive<f64> = 0.8..=6.0;
/// Ticks a nanosecond beyond which nothing is a TSC.
const POSSIBLE: std::ops::RangeInclusive<f64> = 0.01..=20.0;
/// Runs of a frequency that is known agree to this part, or they were not measured.
const AGREES: f64 = 0.02;
/// pCPUs whose frequencies differ by more than this part disagree.
const DISAGREES: f64 = 1e-3;
/// Runs of less than this share of the measured time say nothing of their pCPU.
const LITTLE: f64 = 0.02;
/// A disagreement over this share of the measured time makes the frequency itself doubtful.
const MINORITY: f64 = 0.25;

/// Nanoseconds by which the time stamp and the nanoseconds of an end of a run may be apart, though
/// all runs agree: Xen reads them one after the other.
const ENDS_NS: f64 = 100.0;

/// Nanoseconds by which an end of a run may be off that something comes between the two.
const HELD_UP_NS: f64 = 10_000.0;

/// Two to the number of bits of the nanoseconds.
const WRAP: f64 = 4_294_967_296.0;

/// A run: TSC ticks, and nanoseconds modulo 2^32. Ordered by its length.
type Run = (u64, u32);

#[derive(Debug, Default)]
struct OfPcpu {
    /// Who came, and when.
    came: Option<(u32, u32, u64)>,
    /// The longest runs, the shortest of them on top.
    runs: BinaryHeap<Reverse<Run>>,
}

#[derive(Debug, Default)]
pub(super) struct Calibration {
    pcpus: Vec<OfPcpu>,
    count: u64,
}

/// A run as it counts: ticks a nanosecond, and nanoseconds in full.
#[derive(Clone, Copy, Debug)]
struct Ratio {
    cpu: u32,
    ratio: f64,
    ns: f64,
}

impl Calibration {
    #[inline]
    pub(super) fn came(&mut self, cpu: u32, tsc: u64, words: &[u32]) {
        let &[domain, unit, ..] = words else { return };
        let cpu = cpu as usize;
        if self.pcpus.len() <= cpu {
            self.pcpus.resize_with(cpu + 1, OfPcpu::default);
        }
        self.pcpus[cpu].came = Some((domain, unit, tsc));
    }

    #[inline]
    pub(super) fn left(&mut self, cpu: u32, tsc: u64, words: &[u32]) {
        let &[domain, unit, ns, ..] = words else { return };
        let Some(of) = self.pcpus.get_mut(cpu as usize) else { return };
        let Some(came) = of.came.take() else { return };
        let ticks = tsc.saturating_sub(came.2);
        if (came.0, came.1) != (domain, unit)
            || ticks == 0
            || ticks < SURELY_WHOLE && ns < SHORTEST_NS
        {
            return;
        }
        self.count += 1;
        if of.runs.len() < KEEP {
            of.runs.push(Reverse((ticks, ns)));
        } else if of.runs.peek().is_some_and(|&Reverse((shortest, _))| ticks > shortest) {
            of.runs.pop();
            of.runs.push(Reverse((ticks, ns)));
        }
    }

    /// A gap on `cpu`: the run it cuts says nothing.
    pub(super) fn forget(&mut self, cpu: u32) {
        if let Some(of) = self.pcpus.get_mut(cpu as usize) {
            of.came = None;
        }
    }

    /// The clock: `given` if the caller knows the frequency, else measured on the longest runs.
    pub(super) fn clock(&self, given: Option<f64>) -> Clock {
        if given.is_some() {
            return Clock::known(given);
        }
        let Some(mut ratios) = self.ratios() else { return Clock::known(None) };
        ratios.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
        let Some(hz) = quantile(&ratios, 0.5) else { return Clock::known(None) };
        let spread = |of: f64| quantile(&ratios, of).map_or(0.0, |at| (at - hz).abs());
        // Half of what the runs weigh lies between the quartiles. Where one run weighs nearly as
        // much, one of them is the middle itself.
        let apart = spread(0.25).max(spread(0.75));
        let mut error = (apart / hz).max(end_error(&ratios, hz));
        let (disagreeing, apart) = disagreeing(&ratios, hz);
        error = error.max(apart).max(outweighed(&ratios, hz));
        let time = |ratios: &mut dyn Iterator<Item = &Ratio>| ratios.map(|of| of.ns).sum::<f64>();
        let minority =
            time(&mut ratios.iter().filter(|of| disagreeing.iter().any(|&(cpu, _)| cpu == of.cpu)));
        if minority > MINORITY * time(&mut ratios.iter()) {
            error = disagreeing.iter().map(|&(_, ppm)| ppm.abs() / 1e6).fold(error, f64::max);
        }
        Clock {
            hz: Some(hz * 1e9),
            source: ClockSource::Calibrated,
            error_ppm: Some(error * 1e6),
            error_open: false,
            runs: self.count,
            disagreeing,
        }
    }

    /// Whether a pCPU's own runs tell its frequency.
    pub(super) fn knows(&self, cpu: u32) -> bool {
        self.pcpus.get(cpu as usize).is_some_and(|of| !of.runs.is_empty())
    }

    /// All runs that were kept, their nanoseconds in full; `None` if that cannot be known.
    fn ratios(&self) -> Option<Vec<Ratio>> {
        let all = || {
            let pcpus = self.pcpus.iter().enumerate();
            pcpus.flat_map(|(cpu, of)| of.runs.iter().map(move |&Reverse(run)| (cpu as u32, run)))
        };
        let whole = all().filter(|&(_, (ticks, _))| ticks < SURELY_WHOLE);
        let mut whole: Vec<_> = whole
            .map(|(cpu, (ticks, ns))| Ratio {
                cpu,
                ratio: ticks as f64 / f64::from(ns),
                ns: ns.into(),
            })
            .collect();
        // Nanoseconds that no TSC fits are none.
        whole.retain(|of| POSSIBLE.contains(&of.ratio));
        whole.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
        let rough = match quantile(&whole, 0.5) {
            Some(rough) => rough,
            None => only_plausible(&all().map(|(_, run)| run).collect::<Vec<_>>())?,
        };
        let long = all().filter(|&(_, (ticks, _))| ticks >= SURELY_WHOLE);
        let long = long.filter_map(|(cpu, run)| {
            let ns = unwrapped(run, rough);
            let ratio = run.0 as f64 / ns;
            ((ratio / rough - 1.0).abs() < AGREES).then_some(Ratio { cpu, ratio, ns })
        });
        whole.extend(long);
        (!whole.is_empty()).then_some(whole)
    }
}

/// The nanoseconds of a run in full, when its TSC has `rough` ticks a nanosecond or so.
fn unwrapped((ticks, ns): Run, rough: f64) -> f64 {
    let times = ((ticks as f64 / rough - f64::from(ns)) / WRAP).round().max(0.0);
    f64::from(ns) + times * WRAP
}

/// The one frequency a TSC may have by which all runs agree; none if there are several.
fn only_plausible(runs: &[Run]) -> Option<f64> {
    let &(ticks, ns) = runs.iter().max()?;
    let most = (ticks as f64 / *PLAUSIBLE.start() / WRAP) as u64;
    let mut found = None;
    // More than a few wraps leave frequencies that are too near each other.
    for times in 0..=most.min(64) {
        let rough = ticks as f64 / (f64::from(ns) + times as f64 * WRAP);
        let agrees = |&run: &Run| (run.0 as f64 / unwrapped(run, rough) / rough - 1.0).abs() < 1e-4;
        if PLAUSIBLE.contains(&rough) && runs.iter().all(agrees) {
            if found.is_some() {
                return None;
            }
            found = Some(rough);
        }
    }
    found.filter(|_| most <= 64)
}

/// The ratio below which the share `q` of what sorted runs weigh lies. The error of a run's ratio
/// falls with its length, so its weight is the square of that.
fn quantile(sorted: &[Ratio], q: f64) -> Option<f64> {
    let weight = |of: &Ratio| of.ns * of.ns;
    let all: f64 = sorted.iter().map(weight).sum();
    let mut below = 0.0;
    let found = sorted.iter().find(|of| {
        below += weight(of);
        below >= all * q
    });
    found.or(sorted.last()).map(|of| of.ratio)
}

/// The part by which the ratio of the longest run may be off: its ends are as uncertain as those of
/// the other runs, whose distance from the common ratio shows that, and by [`ENDS_NS`] at least.
fn end_error(runs: &[Ratio], ratio: f64) -> f64 {
    let mut off: Vec<_> = runs.iter().map(|of| (of.ratio - ratio).abs() * of.ns).collect();
    off.sort_by(f64::total_cmp);
    let longest = runs.iter().map(|of| of.ns).fold(1.0, f64::max);
    let seen = off.get(off.len() / 2).map_or(0.0, |ticks| ticks / ratio);
    seen.max(ENDS_NS) / longest
}

/// Where one run weighs more than all others together, the quartiles are its own: the part by which
/// the others tell another frequency, beyond what their ends leave open.
fn outweighed(sorted: &[Ratio], hz: f64) -> f64 {
    let Some(at) = (0..sorted.len()).max_by(|&a, &b| sorted[a].ns.total_cmp(&sorted[b].ns)) else {
        return 0.0;
    };
    let mut others = sorted.to_vec();
    let longest = others.remove(at);
    let weight: f64 = others.iter().map(|of| of.ns * of.ns).sum();
    let Some(middle) = quantile(&others, 0.5) else { return 0.0 };
    let by = (middle / hz - 1.0).abs();
    let open = HELD_UP_NS / others.iter().map(|of| of.ns).fold(1.0, f64::max);
    if weight < longest.ns * longest.ns && by > open { by } else { 0.0 }
}

/// pCPUs whose own runs tell another frequency, and by how many parts per million; and the largest
/// part by which one differs that is not told so.
fn disagreeing(sorted: &[Ratio], hz: f64) -> (Vec<(u32, f64)>, f64) {
    let mut pcpus: Vec<_> = sorted.iter().map(|of| of.cpu).collect();
    pcpus.sort_unstable();
    pcpus.dedup();
    let time = |runs: &[Ratio]| runs.iter().map(|of| of.ns).sum::<f64>();
    let all = time(sorted);
    let (mut told, mut apart) = (Vec::new(), 0.0_f64);
    for cpu in pcpus {
        let own: Vec<_> = sorted.iter().filter(|of| of.cpu == cpu).copied().collect();
        if time(&own) < LITTLE * all {
            continue;
        }
        let [low, middle, high] = [0.25, 0.5, 0.75].map(|q| quantile(&own, q).unwrap_or(hz));
        let by = middle / hz - 1.0;
        // Beyond what its own runs leave open.
        let open = (2.0 * (high - low) / hz).max(4.0 * end_error(&own, middle));
        if by.abs() > DISAGREES.max(open) {
            told.push((cpu, by * 1e6));
        } else if by.abs() > open {
            apart = apart.max(by.abs());
        }
    }
    (told, apart)
}

/// Reads a trace for its frequency alone.
///
/// # Errors
/// As [`summarise`](crate::summarise).
pub fn calibrate<R: Read>(input: R, options: &Options) -> Result<Clock, Error> {
    let mut calibration = Calibration::default();
    if options.cpu_hz.is_none() {
        reader::read(input, &options.read, &mut calibration)?;
    }
    Ok(calibration.clock(options.cpu_hz))
}

impl Visit for Calibration {
    fn record(&mut self, record: &Record<'_>) -> Result<(), Error> {
        match record.event {
            event::SWITCH_INFNEXT => self.came(record.cpu, record.tsc, record.words),
            event::SWITCH_INFPREV => self.left(record.cpu, record.tsc, record.words),
            event::LOST_RECORDS => self.forget(record.cpu),
            _ => {}
        }
        Ok(())
    }

    fn is_local(_: u32, _: Option<u32>) -> bool {
        true
    }

    fn is_always_local(_: u32) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{Calibration, OfPcpu, Reverse};

    fn of(pcpus: &[&[(u64, u64)]]) -> crate::Clock {
        let pcpus = pcpus.iter().map(|runs| OfPcpu {
            came: None,
            runs: runs.iter().map(|&(ticks, ns)| Reverse((ticks, ns as u32))).collect(),
        });
        Calibration { pcpus: pcpus.collect(), count: 1 }.clock(None)
    }

    #[test]
    fn long_runs_outweigh_many_short_ones() {
        // Twelve runs of exactly 1 GHz beside many whose ends are off by 400 ns.
        let mut runs = vec![(10_000_000, 10_000_000); 12];
        runs.extend((0..50).map(|n| (1_000 + 20 * n, 1_200)));
        let clock = of(&[&runs]);
        assert_eq!(clock.hz, Some(1e9));
        assert!(clock.error_ppm.unwrap() < 100.0, "{clock:?}");
    }

    #[test]
    fn nanoseconds_that_wrapped_are_unwrapped() {
        const WRAP: u64 = 1 << 32;
        // Beside a run that did not wrap any number of wraps is found.
        for seconds in [5, 9, 40, 3_000] {
            for hz in [1_000_000_000, 2_800_000_000u64] {
                let long = (seconds * hz, seconds * 1_000_000_000 % WRAP);
                let clock = of(&[&[(hz / 10, 100_000_000), long]]);
                assert!((clock.hz.unwrap() / hz as f64 - 1.0).abs() < 1e-6, "{seconds}: {clock:?}");
            }
        }
        // Alone, if only one frequency is plausible.
        let clock = of(&[&[(4_999_999_950, 705_032_654), (4_999_999_990, 705_032_694)]]);
        assert!((clock.hz.unwrap() / 1e9 - 1.0).abs() < 1e-6, "{clock:?}");
        // Where several are, none is told.
        assert_eq!(of(&[&[(60_000_000_000, 60_000_000_000 % WRAP)]]).hz, None);
    }

    #[test]
    fn no_error_is_zero() {
        // All alike, and yet each end may be off by 100 ns: 10 ppm of 10 ms, a tenth of 1 us.
        for (ticks, ppm) in [(10_000_000, 10.0), (1_000, 100_000.0)] {
            for runs in [1, 50] {
                let error = of(&[&vec![(ticks, ticks); runs]]).error_ppm.unwrap();
                assert!((error - ppm).abs() < 1e-6, "{runs} runs of {ticks}: {error}");
            }
        }
        // One of eight pCPUs is off by 300 ppm: too little to be named, and no less an error.
        let sound = vec![(10_000_000, 10_000_000); 20];
        let off = vec![(10_000_000, 10_003_000); 20];
        let mut pcpus = vec![&sound[..]; 7];
        pcpus.push(&off);
        let clock = of(&pcpus);
        assert!(clock.disagreeing.is_empty(), "{clock:?}");
        assert!((clock.error_ppm.unwrap() - 300.0).abs() < 1.0, "{clock:?}");
    }

    #[test]
    fn one_long_run_does_not_vouch_for_itself() {
        // It is off by 500 ppm: the system time of its pCPU was set anew after it.
        let long = (3_001_500_000, 3_000_000_000);
        let mut runs = vec![(100_000_000, 100_000_000); 20];
        runs.push(long);
        let error = of(&[&runs]).error_ppm.unwrap();
        assert!((error - 500.0).abs() < 1.0, "{error}");
        // Where it weighs nearly as much as they, it is one of the quartiles.
        let sound = (300_000_000, 300_000_000);
        let error = of(&[&[sound, sound, (400_400_000, 400_000_000)]]).error_ppm.unwrap();
        assert!(error > 990.0, "{error}");
        // Short ones whose ends are off say nothing against it.
        let mut runs: Vec<_> = (0..50).map(|n| (10_000 + 4 * n, 10_000)).collect();
        runs.push((3_000_000_000, 3_000_000_000));
        let error = of(&[&runs]).error_ppm.unwrap();
        assert!(error < 1.0, "{error}");
    }

    #[test]
    fn a_pcpu_that_disagrees_is_told_and_the_error_is_honest() {
        let sound: Vec<_> = (1..20).map(|n| (n * 1_000_000, n * 1_000_000)).collect();
        let off: Vec<_> = (1..20).map(|n| (n * 1_000_000, n * 800_000)).collect();
        let clock = of(&[&sound, &sound, &off, &sound, &sound]);
        assert_eq!(clock.hz, Some(1e9));
        assert!(clock.error_ppm.unwrap() < 6.0 && clock.disagreeing.len() == 1, "{clock:?}");
        assert_eq!(clock.disagreeing[0].0, 2);
        // One of two: nobody can say which is right.
        let clock = of(&[&sound, &off]);
        assert!(clock.error_ppm.unwrap() > 190_000.0, "{clock:?}");
    }
}
