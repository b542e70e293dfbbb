//! A histogram of times in nanoseconds: log-linear, fixed size, no floating point.
//!
//! Owns the bucket boundaries and the quantiles. Never allocates while recording.

use alloc::boxed::Box;
use alloc::vec::Vec;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Sub-buckets to a power of two: a bucket's width is at most 1/16 of its lower bound.
const SUB_BITS: u32 = 4;
const SUB: usize = 1 << SUB_BITS;
const BUCKETS: usize = (64 - SUB_BITS as usize + 1) * SUB;

/// Counts of values by size, with quantiles exact to 1/16 (6.25 %).
///
/// It takes 7.8 KiB, whatever it has recorded. In JSON it is the list of its non-empty buckets,
/// `[lower bound, count]`, plus the exact largest value.
///
/// ```
/// let mut h = experiment::record::Histogram::default();
/// (1..=1000).for_each(|ns| h.record(ns));
/// assert_eq!(h.count(), 1000);
/// assert_eq!(h.max(), 1000);
/// assert!((480..=500).contains(&h.quantile(0.5)));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<Counts>,
    max: u64,
}

/// In cache lines of its own: each vCPU records into its histogram without disturbing another.
#[derive(Clone, PartialEq, Eq)]
#[repr(align(64))]
struct Counts([u64; BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: Box::new(Counts([0; BUCKETS])), max: 0 }
    }
}

impl core::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Histogram").field("count", &self.count()).field("max", &self.max).finish()
    }
}

impl Histogram {
    /// Counts one value.
    #[inline]
    pub fn record(&mut self, value: u64) {
        self.counts.0[bucket_of(value)] += 1;
        self.max = self.max.max(value);
    }

    /// Adds everything `other` has counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.0.iter_mut().zip(other.counts.0.iter()) {
            *mine = mine.saturating_add(*theirs);
        }
        self.max = self.max.max(other.max);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.counts.0.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// The largest value counted, exact; 0 if there is none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The lower bound of the bucket in which the value of rank `q * count` lies; 0 if there is none.
    ///
    /// # Panics
    ///
    /// If `q` is not within 0 and 1.
    pub fn quantile(&self, q: f64) -> u64 {
        assert!((0.0..=1.0).contains(&q), "a quantile is between 0 and 1, not {q}");
        let count = self.count();
        if q == 1.0 || count == 0 {
            return self.max;
        }
        let rank = (q * count as f64) as u64;
        let mut seen = 0;
        for (bucket, n) in self.counts.0.iter().enumerate() {
            seen = n.saturating_add(seen);
            if seen > rank {
                return lower_bound(bucket);
            }
        }
        self.max
    }

    /// The non-empty buckets in order: lower bound in nanoseconds, count.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.counts.0.iter().enumerate().filter(|(_, n)| **n > 0).map(|(b, n)| (lower_bound(b), *n))
    }
}

/// Values below 16 have a bucket each; above, the leading bit and the four after it choose.
#[inline]
fn bucket_of(value: u64) -> usize {
    if value < SUB as u64 {
        return value as usize;
    }
    let shift = value.ilog2() - SUB_BITS;
    ((shift as usize) << SUB_BITS) + (value >> shift) as usize
}

fn lower_bound(bucket: usize) -> u64 {
    if bucket < 2 * SUB {
        return bucket as u64;
    }
    let shift = (bucket >> SUB_BITS) - 1;
    ((bucket - (shift << SUB_BITS)) as u64) << shift
}

/// The form in JSON.
#[derive(Serialize, Deserialize)]
struct Wire {
    max: u64,
    buckets: Vec<(u64, u64)>,
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire { max: self.max, buckets: self.buckets().collect() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        let mut histogram = Histogram { max: wire.max, ..Histogram::default() };
        for (low, n) in wire.buckets {
            let count = &mut histogram.counts.0[bucket_of(low)];
            *count = count.saturating_add(n);
        }
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_starts_at_its_lower_bound_and_ends_before_the_next() {
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(lower_bound(bucket)), bucket);
            if bucket > 0 {
                assert_eq!(bucket_of(lower_bound(bucket) - 1), bucket - 1);
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn an_empty_histogram_has_quantile_zero() {
        assert_eq!(Histogram::default().quantile(0.99), 0);
    }

    #[test]
    fn json_keeps_every_count() {
        let mut h = Histogram::default();
        [0, 1, 15, 16, 17, 1_000_003, u64::MAX].into_iter().for_each(|v| h.record(v));
        let back: Histogram = serde_json::from_str(&serde_json::to_string(&h).unwrap()).unwrap();
        assert_eq!(back, h);
    }
}
