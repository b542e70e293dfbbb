//! Distributions of times.
//!
//! Owns the classes in which times are counted while a trace is read: those of an HDR histogram with
//! two digits, found by one shift, because this happens four times a wait. Quantiles are left to
//! [`hdrhistogram`], to which the classes are handed over in the end.

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

/// A distribution. The last few times are kept one by one. So a host's many vCPUs that hardly wait take
/// little memory; and where many do, their counters, which lie all over the memory, are fetched all at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Latency {
    /// Classes of the last times.
    few: Vec<u16>,
    /// How many times of each class came before.
    many: Option<Box<[u32; CLASSES]>>,
}

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
        let counts = self.many.get_or_insert_with(zeroes);
        for class in self.few.drain(..) {
            let count = &mut counts[usize::from(class)];
            *count = count.saturating_add(1);
        }
    }

    /// Each class that holds something, and how many times; a class may come more than once.
    fn classes(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let many = self.many.iter().flat_map(|counts| counts.iter().copied().enumerate());
        let many = many.filter(|&(_, count)| count > 0);
        many.chain(self.few.iter().map(|&class| (usize::from(class), 1)))
    }

    pub(super) fn add(&mut self, other: &Self) {
        if let Some(many) = &other.many {
            let counts = self.many.get_or_insert_with(zeroes);
            for (count, times) in counts.iter_mut().zip(many.iter()) {
                *count = count.saturating_add(*times);
            }
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

#[cold]
fn zeroes() -> Box<[u32; CLASSES]> {
    Box::new([0; CLASSES])
}

#[cfg(test)]
mod tests {
    use super::{CLASSES, LONGEST, Latency, class, shortest};

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
}
