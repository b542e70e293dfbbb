//! Two traces side by side: what changed, and whether chance explains it.
//!
//! Owns the statistics. Every figure comes with its 95 % interval: a mean's from its standard
//! deviation, a rate's from its count, a quantile's from the ranks around it. A change is the ratio
//! of two figures; its interval goes from the lowest to the highest ratio the two intervals allow,
//! so it is wide rather than narrow. Latencies are compared as a whole too, by the rank test of
//! Mann and Whitney: whether one of them tends to be longer, whatever their distribution.

use serde::Serialize;

use crate::summary::{Acquisitions, Certainty, Distribution, Latencies, Summary};

/// Standard deviations of a normal distribution on each side that hold 95 % of it.
const Z: f64 = 1.96;

/// A figure and the interval it lies in with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Lower end; `None` where nothing shows how far chance moves the figure: it is a share of the
    /// whole trace, or has too few values.
    pub low: Option<f64>,
    /// Upper end, likewise.
    pub high: Option<f64>,
}

impl Estimate {
    /// Half the width of the interval.
    #[must_use]
    pub fn error(&self) -> Option<f64> {
        Some((self.high? - self.low?) / 2.0)
    }
}

/// One figure of two traces.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Its name.
    pub name: &'static str,
    /// Its unit; empty for a plain number.
    pub unit: &'static str,
    /// In the first trace.
    pub before: Estimate,
    /// In the second.
    pub after: Estimate,
    /// Change from first to second, in percent of the first: infinite (null in JSON) for what rose
    /// from nothing. An end of the interval is `None` where it is open.
    pub percent: Estimate,
    /// How far to trust the figures themselves.
    pub certainty: Certainty,
    /// For a latency: the rank test of all its values.
    pub rank: Option<RankTest>,
}

/// The rank test of Mann and Whitney on all values of a latency in two traces.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RankTest {
    /// Values in the first trace.
    pub before: u64,
    /// Values in the second.
    pub after: u64,
    /// How likely a value of the second trace is longer than one of the first, equal ones counted
    /// half: 0.5 is no difference.
    pub longer: f64,
    /// How likely a difference at least so large is by chance alone (two-sided, normal
    /// approximation; values are taken as independent).
    pub p_value: f64,
}

impl Change {
    /// Whether the intervals rule out that nothing changed; without intervals nothing does.
    #[must_use]
    pub fn is_significant(&self) -> bool {
        self.percent.low.is_some_and(|low| low > 0.0)
            || self.percent.high.is_some_and(|high| high < 0.0)
    }
}

/// All guests of one trace, dom0 left out.
struct Side {
    guests: usize,
    seconds: Option<f64>,
    evtchn_ops: u64,
    waits: u64,
    vcpu_ticks: f64,
    times_certainty: Certainty,
    counts_certainty: Certainty,
    stolen: u64,
    in_poll: u64,
    acquisitions: Option<Together>,
    latencies: [(Pooled, Certainty, &'static [&'static str; 2]); 3],
    ns: Option<f64>,
    /// By how much of its value a time may be wrong, because the frequency is not known better.
    clock_error: f64,
}

struct Together {
    certainty: Certainty,
    blocked: u64,
    waits: u64,
    kicks: u64,
    by_waits: [u64; 3],
    /// Pooled variance of the kicks of one acquisition, times its degrees of freedom.
    spread: f64,
    slept_twice: u64,
    slept_twice_kicks: f64,
}

/// Histogram classes of several distributions, sorted.
#[derive(Default)]
struct Pooled(Vec<(u64, u64)>);

/// Compares the guests (all domains but dom0) of two traces. A figure that one of them lacks is
/// left out, and there is none if one of them has no guest.
#[must_use]
pub fn compare(before: &Summary, after: &Summary) -> Vec<Change> {
    let (mut before_side, mut after_side) = (Side::new(before), Side::new(after));
    if before_side.ns.is_some() != after_side.ns.is_some() {
        // Ticks are no nanoseconds: only what needs no unit can be compared.
        before_side.forget_times();
        after_side.forget_times();
    }
    let pairs = before_side.figures().into_iter();
    let after = after_side.figures();
    pairs
        .filter_map(|(name, unit, a, certainty)| {
            let &(.., b, other) = after.iter().find(|(other, ..)| *other == name)?;
            let ratio = |b: f64, a: f64| (b / a - 1.0) * 100.0;
            // Nothing over nothing is no change.
            let value = if b.value == a.value { 0.0 } else { ratio(b.value, a.value) };
            let bound = |b: Option<f64>, a: Option<f64>| {
                b.zip(a).map(|(b, a)| ratio(b, a)).filter(|bound| bound.is_finite())
            };
            let percent = Estimate { value, low: bound(b.low, a.high), high: bound(b.high, a.low) };
            let certainty = certainty.max(other);
            let rank = before_side.rank_test(&after_side, name);
            Some(Change { name, unit, before: a, after: b, percent, certainty, rank })
        })
        .collect()
}

impl Side {
    fn new(summary: &Summary) -> Self {
        let guests = || summary.domains.iter().filter(|domain| domain.id != 0);
        let marked: Vec<_> = guests().filter_map(|domain| domain.marked.as_ref()).collect();
        let inferred: Vec<_> = guests().map(|domain| &domain.inferred).collect();
        let sum = |of: fn(&crate::summary::Domain) -> u64| guests().map(of).sum::<u64>();
        let latency = |of: &dyn Fn(&Latencies) -> &Distribution, names| {
            let all = || guests().map(|domain| of(&domain.latencies));
            let certainty = all().map(|of| of.certainty).max().unwrap_or(Certainty::Exact);
            (Pooled::of(all()), certainty, names)
        };
        Self {
            guests: guests().count(),
            seconds: summary.seconds,
            ns: summary.clock.hz.map(|hz| 1e9 / hz),
            clock_error: summary.clock.error_ppm.unwrap_or(0.0) / 1e6,
            evtchn_ops: sum(|domain| domain.counts.evtchn_ops.value),
            waits: sum(|domain| domain.counts.waits.value),
            vcpu_ticks: guests().map(|domain| domain.ticks as f64).sum(),
            times_certainty: guests()
                .map(|domain| domain.times_certainty.blocked_in_poll)
                .fold(Certainty::Exact, Certainty::and),
            counts_certainty: guests()
                .map(|domain| domain.counts.evtchn_ops.certainty.and(domain.counts.waits.certainty))
                .fold(Certainty::Exact, Certainty::and),
            stolen: sum(|domain| domain.times.stolen),
            in_poll: sum(|domain| domain.times.blocked_in_poll),
            acquisitions: Together::of(if marked.is_empty() { &inferred } else { &marked }),
            latencies: [
                latency(&|of| &of.kick_to_run, &["kick_to_run_p50", "kick_to_run_p99"]),
                latency(&|of| &of.wake_to_run, &["wake_to_run_p50", "wake_to_run_p99"]),
                latency(&|of| &of.wait, &["block_to_run_p50", "block_to_run_p99"]),
            ],
        }
    }

    /// Leaves out every figure that has a unit of time.
    fn forget_times(&mut self) {
        self.seconds = None;
        self.latencies.iter_mut().for_each(|(pooled, ..)| *pooled = Pooled::default());
    }

    /// Name, unit, figure, certainty.
    fn figures(&self) -> Vec<(&'static str, &'static str, Estimate, Certainty)> {
        let mut figures = Vec::new();
        if self.guests == 0 {
            return figures;
        }
        if let Some(of) = &self.acquisitions {
            let n = of.blocked as f64;
            let mean = of.kicks as f64 / n;
            let kicks = around(mean, mean_error(of.spread / (n - 1.0), n));
            figures.push(("waking_kicks_per_acquisition", "", kicks, of.certainty));
            let waits = around(of.waits as f64 / n, mean_error(of.waits_variance(), n));
            figures.push(("waits_per_acquisition", "", waits, of.certainty));
            let twice = proportion(of.slept_twice as f64, n);
            figures.push(("slept_twice_percent", "%", scaled(twice, 100.0), of.certainty));
            if of.slept_twice > 0 {
                let count = of.slept_twice as f64;
                let mean = of.slept_twice_kicks / count;
                let error = mean_error(of.spread / (n - 1.0), count);
                let name = "waking_kicks_per_slept_twice";
                figures.push((name, "", around(mean, error), of.certainty));
            }
        }
        if let Some(seconds) = self.seconds.filter(|&seconds| seconds > 0.0) {
            for (name, count) in
                [("evtchn_ops_per_second", self.evtchn_ops), ("waits_per_second", self.waits)]
            {
                let count = count as f64;
                // Nothing seen still leaves three open (95 %).
                let rate = around(count, Some((Z * count.sqrt()).max(3.0)));
                let rate = widened(scaled(rate, 1.0 / seconds), self.clock_error);
                figures.push((name, "/s", rate, self.counts_certainty));
            }
        }
        if self.vcpu_ticks > 0.0 {
            for (name, ticks) in
                [("stolen_percent", self.stolen), ("blocked_in_poll_percent", self.in_poll)]
            {
                // A share of the whole time, and one trace does not show how another would differ.
                let share = ticks as f64 * 100.0 / self.vcpu_ticks;
                figures.push((name, "%", around(share, None), self.times_certainty));
            }
        }
        let (unit, ns) = match self.ns {
            Some(ns) => ("us", ns / 1e3),
            None => ("ticks", 1.0),
        };
        for (pooled, certainty, names) in &self.latencies {
            for (name, q) in names.iter().zip([0.5, 0.99]) {
                if let Some(estimate) = pooled.quantile(q) {
                    let estimate = widened(scaled(estimate, ns), self.clock_error);
                    figures.push((name, unit, estimate, *certainty));
                }
            }
        }
        figures
    }

    /// The rank test of the latency whose median has this name.
    fn rank_test(&self, after: &Self, name: &str) -> Option<RankTest> {
        let at = self.latencies.iter().position(|(.., names)| names[0] == name)?;
        let scale = |side: &Self| side.ns.unwrap_or(1.0);
        let (before, other) = (&self.latencies[at].0, &after.latencies[at].0);
        before.rank_test(scale(self), other, scale(after))
    }
}

impl Together {
    fn of(all: &[&Acquisitions]) -> Option<Self> {
        let mut sum = Self {
            certainty: Certainty::Exact,
            blocked: 0,
            waits: 0,
            kicks: 0,
            by_waits: [0; 3],
            spread: 0.0,
            slept_twice: 0,
            slept_twice_kicks: 0.0,
        };
        for of in all {
            sum.certainty = sum.certainty.max(of.certainty);
            sum.blocked += of.blocked;
            sum.waits += of.waits;
            sum.kicks += of.waking_kicks;
            sum.by_waits.iter_mut().zip(of.by_waits).for_each(|(sum, of)| *sum += of);
            let sd = of.waking_kicks_sd.unwrap_or(0.0);
            sum.spread += sd * sd * of.blocked.saturating_sub(1) as f64;
            sum.slept_twice += of.slept_twice;
            sum.slept_twice_kicks +=
                of.waking_kicks_per_slept_twice.unwrap_or(0.0) * of.slept_twice as f64;
        }
        (sum.blocked > 0).then_some(sum)
    }
}

impl Together {
    /// Variance of the waits of one acquisition; those with three or more are taken at their mean.
    fn waits_variance(&self) -> f64 {
        let [one, two, more] = self.by_waits.map(|count| count as f64);
        let n = self.blocked as f64;
        let rest = self.waits as f64 - one - 2.0 * two;
        let squares = one + 4.0 * two + if more > 0.0 { rest * rest / more } else { 0.0 };
        let mean = self.waits as f64 / n;
        ((squares / n - mean * mean) * n / (n - 1.0).max(1.0)).max(0.0)
    }
}

impl Pooled {
    fn of<'a>(all: impl Iterator<Item = &'a Distribution>) -> Self {
        let mut classes: Vec<_> = all.flat_map(|of| of.histogram.iter().copied()).collect();
        classes.sort_unstable();
        Self(classes)
    }

    /// The `q` quantile, and the values at the ranks between which it lies with 95 % confidence
    /// (binomial, normal approximation).
    fn quantile(&self, q: f64) -> Option<Estimate> {
        let count = self.0.iter().map(|&(_, n)| n).sum::<u64>() as f64;
        if count < 1.0 {
            return None;
        }
        let spread = Z * (count * q * (1.0 - q)).sqrt();
        let at = |rank: f64| {
            let rank = rank.clamp(1.0, count);
            let mut seen = 0.0;
            let class = self.0.iter().find(|&&(_, n)| {
                seen += n as f64;
                seen >= rank
            });
            class.or(self.0.last()).map_or(0.0, |&(value, _)| value as f64)
        };
        let rank = (count * q).ceil();
        // Where the ranks run off an end, the values leave that end open.
        // Within a class nobody knows where a value lies.
        let low = (rank - spread >= 1.0).then(|| at(rank - spread) * (1.0 - CLASS));
        let high = (rank + spread <= count).then(|| at(rank + spread));
        Some(Estimate { value: at(rank), low, high })
    }
}

impl Pooled {
    /// Mann and Whitney's U from the classes of two histograms; values of one class are ties. Each
    /// side's values are multiplied by its scale, so that traces of hosts with different clocks
    /// compare.
    fn rank_test(&self, scale: f64, other: &Self, other_scale: f64) -> Option<RankTest> {
        let count = |of: &Self| of.0.iter().map(|&(_, n)| n).sum::<u64>();
        let (before, after) = (count(self), count(other));
        if before == 0 || after == 0 {
            return None;
        }
        // Value, how many in the first, how many in the second.
        let mine = self.0.iter().map(|&(value, n)| (value as f64 * scale, n as f64, 0.0));
        let others = other.0.iter().map(|&(value, n)| (value as f64 * other_scale, 0.0, n as f64));
        let mut values: Vec<(f64, f64, f64)> = mine.chain(others).collect();
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (n1, n2) = (before as f64, after as f64);
        let (mut u, mut below, mut ties) = (0.0, 0.0, 0.0);
        for class in values.chunk_by(|a, b| a.0 == b.0) {
            let of_first: f64 = class.iter().map(|of| of.1).sum();
            let of_second: f64 = class.iter().map(|of| of.2).sum();
            // Each value of the second is longer than all of the first below, and ties with these.
            u += of_second * (below + of_first / 2.0);
            below += of_first;
            let tied = of_first + of_second;
            ties += tied * tied * tied - tied;
        }
        let n = n1 + n2;
        let variance = n1 * n2 / 12.0 * (n + 1.0 - ties / (n * (n - 1.0)));
        let distance = (u - n1 * n2 / 2.0).abs();
        // Corrected for continuity.
        let z = if variance > 0.0 { (distance - 0.5).max(0.0) / variance.sqrt() } else { 0.0 };
        Some(RankTest { before, after, longer: u / (n1 * n2), p_value: two_sided(z) })
    }
}

/// How likely a standard normal value is at least `z` away from 0 (Abramowitz and Stegun 7.1.26,
/// off by 1.5e-7 at most).
fn two_sided(z: f64) -> f64 {
    let x = z / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let coefficients =
        [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    let polynomial = coefficients.iter().fold(0.0, |sum, c| (sum + c) * t);
    (polynomial * (-x * x).exp()).clamp(0.0, 1.0)
}

/// Half of the interval of a mean of `count` values with this variance. Fewer than [`FEW`] have
/// none; values that are all alike leave open that three in `count` are not (the rule of three).
fn mean_error(variance: f64, count: f64) -> Option<f64> {
    (count >= FEW && variance.is_finite()).then(|| (Z * (variance / count).sqrt()).max(3.0 / count))
}

/// Width of a class of the histograms, as a part of its values, which are shown as its upper end.
const CLASS: f64 = 0.01;

/// Values from which a variance means something.
const FEW: f64 = 8.0;

fn around(value: f64, error: Option<f64>) -> Estimate {
    let low = error.map(|error| (value - error).max(0.0));
    Estimate { value, low, high: error.map(|error| value + error) }
}

fn scaled(of: Estimate, by: f64) -> Estimate {
    let scale = |end: Option<f64>| end.map(|end| end * by);
    Estimate { value: of.value * by, low: scale(of.low), high: scale(of.high) }
}

/// As it is if its unit may be wrong by this part.
fn widened(of: Estimate, error: f64) -> Estimate {
    let Estimate { value, low, high } = of;
    let low = low.map(|end| end * (1.0 - error).max(0.0));
    Estimate { value, low, high: high.map(|end| end * (1.0 + error)) }
}

/// Wilson's interval of a proportion.
fn proportion(part: f64, whole: f64) -> Estimate {
    let p = part / whole;
    let z2 = Z * Z;
    let middle = (p + z2 / (2.0 * whole)) / (1.0 + z2 / whole);
    let half = Z / (1.0 + z2 / whole) * (p * (1.0 - p) / whole + z2 / (4.0 * whole * whole)).sqrt();
    Estimate { value: p, low: Some((middle - half).max(0.0)), high: Some(middle + half) }
}

#[cfg(test)]
mod tests {
    use super::{Pooled, proportion, two_sided};

    #[test]
    fn rank_test_by_hand() {
        let of = |values: &[u64]| Pooled(values.iter().map(|&value| (value, 1)).collect());
        // All of the second are longer: U = 5 * 5.
        let test = of(&[1, 2, 3, 4, 5]).rank_test(1.0, &of(&[6, 7, 8, 9, 10]), 1.0).unwrap();
        assert_eq!((test.before, test.after, test.longer), (5, 5, 1.0));
        // z = (25 - 12.5 - 0.5) / sqrt(25 * 11 / 12) = 2.5067, two-sided 0.0122.
        assert!((test.p_value - 0.0122).abs() < 1e-4, "{}", test.p_value);
        // The same values in other units are the same.
        let test = of(&[10, 20, 30]).rank_test(1.0, &of(&[5, 10, 15]), 2.0).unwrap();
        assert!(test.longer == 0.5 && test.p_value > 0.999_999, "{test:?}");
        // Nothing but ties has no variance.
        let test = of(&[7, 7]).rank_test(1.0, &of(&[7, 7, 7]), 1.0).unwrap();
        assert!(test.longer == 0.5 && test.p_value > 0.999_999, "{test:?}");
        assert!(of(&[]).rank_test(1.0, &of(&[1]), 1.0).is_none());
    }

    #[test]
    fn two_sided_normal() {
        for (z, p) in [(0.0, 1.0), (1.0, 0.317_311), (1.96, 0.049_996), (3.0, 0.002_700)] {
            assert!((two_sided(z) - p).abs() < 1e-6, "{z}: {}", two_sided(z));
        }
    }

    #[test]
    fn quantiles_lie_in_their_interval() {
        let pooled = Pooled((1..=1000).map(|value| (value, 1)).collect());
        let median = pooled.quantile(0.5).expect("it holds values");
        assert_eq!(median.value, 500.0);
        // 1.96 * sqrt(1000 / 4) = 31, and the width of a class.
        let (low, high) = (median.low.unwrap(), median.high.unwrap());
        assert!((463.0..466.5).contains(&low) && (530.0..533.0).contains(&high));
        assert!(Pooled::default().quantile(0.5).is_none());
    }

    #[test]
    fn wilson_of_nothing_in_ten() {
        let none = proportion(0.0, 10.0);
        assert_eq!((none.value, none.low), (0.0, Some(0.0)));
        assert!((none.high.unwrap() - 0.2775).abs() < 1e-3, "{none:?}");
    }

    #[test]
    fn what_has_no_variance_has_no_interval() {
        assert_eq!(super::mean_error(0.0, 2.0), None);
        assert_eq!(super::mean_error(f64::NAN, 100.0), None);
        // All alike, and still not certain.
        assert_eq!(super::mean_error(0.0, 100.0), Some(0.03));
        // Four values say nothing of what half of all exceed, nor ten of the longest in a hundred.
        let few = Pooled((1..=4).map(|value| (value, 1)).collect());
        assert_eq!(few.quantile(0.5).unwrap().error(), None);
        // All alike, and within a class of the histogram.
        let alike = Pooled(vec![(2_607, 50)]).quantile(0.5).unwrap();
        assert!((alike.error().unwrap() - 13.0).abs() < 0.1, "{alike:?}");
        let ten = Pooled((1..=10).map(|value| (value, 1)).collect());
        assert_eq!(ten.quantile(0.99).unwrap().high, None);
    }
}
