//! Distributions of times.
//!
//! Owns the classes in which times are counted while a trace is read: those of an HDR histogram
//! with two digits, found by one shift, because this happens four times a wait. Quantiles are left
//! to [`hdrhistogram`], to which the classes are handed over in the end.

use hdrhistogram::Histogram;

use crate::summary::{Certainty, Distribution};

/// Times above are counted as this: 2^48 ticks, a day.
const LONGEST: u64 = 1 << 48;

/// Each doubling has 2^7 classes, and the times below 2^8 one each: within 1 %.
const BITS: u32 = 7;

const CLASSES: usize = class(LONGEST) + 1;

/// The class of a time, from 0 on.
#[inline]
const fn class(ticks: u64) -> usize {
    let doubling = (ticks | ((2 << BITS) - 1)).ilog2() - BITS;
    ((doubling as usize) << BITS) + (ticks >> doubling) as usize
}

/// The shortest time of a class.
const fn shortest(class: usize) -> u64 {
    let doubling = (class >> BITS).saturating_sub(1);
    ((class - (doubling << BITS)) as u64) << doubling
}

/// A distribution. The last few times are kept one by one. So a host's many vCPUs that hardly wait
/// take little memory; and where many do, their counters, which lie all over the memory, are
/// fetched all at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Latency {
    /// Classes of the last times.
    few: Vec<u16>,
    /// Those that came before.
    many: Option<Box<Many>>,
}

/// How many times there are of each class.
#[derive(Clone, Debug)]
struct Many {
    /// Modulo [`WRAP`]: of counters of half the size half as much is fetched.
    counts: [u16; CLASSES],
    /// The class of each counter that wrapped, once for each time.
    wrapped: Vec<u16>,
}

/// Counters begin again here.
const WRAP: u32 = 1 << u16::BITS;

/// Times kept one by one at most.
const FEW: usize = 128;

impl Latency {
    #[inline]
    pub(super) fn record(&mut self, ticks: u64) {
        self.record_class(class(ticks.min(LONGEST)) as u16);
    }

    #[inline]
    fn record_class(&mut self, class: u16) {
        if self.few.len() >= FEW {
            self.count_few();
        }
        self.few.push(class);
    }

    #[cold]
    fn count_few(&mut self) {
        let many = self.many.get_or_insert_default();
        self.few.drain(..).for_each(|class| many.count(class, 1));
    }

    /// Each class that holds something, and how many times; a class may come more than once.
    fn classes(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let many = self.many.iter().flat_map(|many| many.classes());
        many.chain(self.few.iter().map(|&class| (usize::from(class), 1)))
    }

    pub(super) fn add(&mut self, other: &Self) {
        if let Some(other) = &other.many {
            let many = self.many.get_or_insert_default();
            (0..).zip(&other.counts).for_each(|(class, &times)| many.count(class, times));
            many.wrapped.extend(&other.wrapped);
        }
        other.few.iter().for_each(|&class| self.record_class(class));
    }

    /// As a histogram that knows quantiles; `None` if it is empty.
    pub(super) fn histogram(&self) -> Option<Histogram<u32>> {
        if self.len() == 0 {
            return None;
        }
        // Its bounds and digits are sound, so it cannot fail.
        let mut histogram = Histogram::new_with_bounds(1, LONGEST, 2).ok()?;
        for (class, count) in self.classes() {
            histogram.saturating_record_n(shortest(class), count);
        }
        Some(histogram)
    }

    /// Times recorded.
    pub(super) fn len(&self) -> u64 {
        self.classes().map(|(_, count)| u64::from(count)).sum()
    }

    /// As told.
    pub(super) fn told(&self, certainty: Certainty) -> Distribution {
        let Some(histogram) = self.histogram() else {
            return Distribution { certainty, ..Distribution::default() };
        };
        Distribution {
            certainty,
            count: histogram.len(),
            min: histogram.min(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
            mean: histogram.mean(),
            histogram: histogram
                .iter_recorded()
                .map(|class| (class.value_iterated_to(), u64::from(class.count_at_value())))
                .collect(),
        }
    }
}

impl Default for Many {
    fn default() -> Self {
        Self { counts: [0; CLASSES], wrapped: Vec::new() }
    }
}

impl Many {
    #[inline]
    fn count(&mut self, class: u16, times: u16) {
        let count = &mut self.counts[usize::from(class)];
        let (sum, wraps) = count.overflowing_add(times);
        *count = sum;
        if wraps {
            self.wrapped.push(class);
        }
    }

    fn classes(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let counts = self.counts.iter().map(|&count| u32::from(count)).enumerate();
        let counts = counts.filter(|&(_, count)| count > 0);
        counts.chain(self.wrapped.iter().map(|&class| (usize::from(class), WRAP)))
    }
}

#[cfg(test)]
mod tests {
    use super::{CLASSES, LONGEST, Latency, WRAP, class, shortest};

    #[test]
    fn classes_are_those_of_the_histogram() {
        let like = hdrhistogram::Histogram::<u32>::new_with_bounds(1, LONGEST, 2).expect("sound");
        for of in 0..CLASSES {
            let first = shortest(of);
            assert_eq!(class(first), of);
            assert_eq!(like.lowest_equivalent(first), first, "class {of}");
            let last = like.highest_equivalent(first).min(LONGEST);
            assert_eq!(class(last), of, "the last of class {of}");
            assert!((last - first) as f64 <= 0.01 * first as f64, "class {of} is wide");
        }
        assert_eq!(class(LONGEST), CLASSES - 1);
    }

    #[test]
    fn quantiles_as_if_recorded_there() {
        let (mut ours, mut theirs) = (Latency::default(), Latency::default());
        let mut like =
            hdrhistogram::Histogram::<u32>::new_with_bounds(1, LONGEST, 2).expect("sound");
        assert!(ours.histogram().is_none());
        for n in 0..10_000u64 {
            let ticks = n * n * n + n % 3;
            if n % 2 == 0 {
                ours.record(ticks)
            } else {
                theirs.record(ticks)
            }
            like.saturating_record(ticks);
        }
        ours.add(&theirs);
        assert_eq!((ours.len(), ours.histogram()), (10_000, Some(like)));
        ours.record(u64::MAX);
        assert_eq!(ours.histogram().map(|of| of.max() >= LONGEST), Some(true));
    }

    #[test]
    fn counters_that_wrap_lose_nothing() {
        let (mut ours, mut theirs) = (Latency::default(), Latency::default());
        // A class that wraps by itself, twice; one that wraps where two are added; one that stops
        // just before.
        for (ticks, our, their) in [(3, 2 * WRAP + 5, 0), (70, 40_000, 40_000), (900, WRAP - 1, 0)]
        {
            (0..our).for_each(|_| ours.record(ticks));
            (0..their).for_each(|_| theirs.record(ticks));
        }
        assert_eq!(ours.len(), u64::from(3 * WRAP + 4 + 40_000));
        ours.add(&theirs);
        assert_eq!(ours.len(), u64::from(3 * WRAP + 4 + 80_000));
        let histogram = ours.histogram().expect("it is not empty");
        for (ticks, times) in [(3, 2 * WRAP + 5), (70, 80_000), (900, WRAP - 1)] {
            assert_eq!(histogram.count_at(ticks), times, "{ticks}");
        }
        // What was added wraps again.
        let sum = ours.clone();
        ours.add(&sum);
        assert_eq!(ours.len(), 2 * sum.len());
    }
}
