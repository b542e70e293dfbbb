//! Pseudo-random numbers, a stream of its own for each vCPU.
//!
//! Owns how a seed becomes streams. The generator is xoshiro256++ of the `rand_xoshiro` crate,
//! whose output is fixed by its definition: the same seed gives the same run with every version.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// One stream of numbers.
///
/// ```
/// use lab_guest::workload::rng::Stream;
///
/// let mut rng = Stream::new(42, 0);
/// let n = rng.below(6);
/// assert!(n < 6);
/// assert_eq!(Stream::new(42, 0).below(6), n);
/// ```
#[derive(Clone, Debug)]
pub struct Stream(Xoshiro256PlusPlus);

impl Stream {
    /// Stream number `stream` of `seed`; streams are 2^128 numbers apart and never overlap.
    pub fn new(seed: u64, stream: u32) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        (0..stream).for_each(|_| rng.jump());
        Stream(rng)
    }

    /// A number below `n`; 0 where `n` is 0. The bias is under `n` in 2^64.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// A number of `range`, every one as likely as the other.
    #[inline]
    pub fn of(&mut self, range: Around) -> u64 {
        range.lowest + self.below(range.numbers)
    }
}

/// The numbers within some percent of a mean, on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around {
    lowest: u64,
    /// How many there are.
    numbers: u64,
}

impl Around {
    /// The numbers within `percent` of `mean`. It divides: not in a measured loop.
    pub fn new(mean: u64, percent: u32) -> Self {
        let reach = (u128::from(mean) * u128::from(percent.min(100)) / 100) as u64;
        Around { lowest: mean - reach, numbers: reach.saturating_mul(2).saturating_add(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn the_same_seed_gives_the_same_numbers_for_ever() {
        let mut rng = Stream::new(1, 1);
        let numbers: Vec<u64> = (0..4).map(|_| rng.below(1_000_000)).collect();
        assert_eq!(numbers, PINNED);
    }

    /// Seed 1, stream 1: if these change, published runs can no longer be repeated.
    const PINNED: [u64; 4] = [855_431, 538_420, 781_654, 890_344];

    #[test]
    fn streams_differ() {
        let mut a = Stream::new(7, 0);
        let mut b = Stream::new(7, 1);
        assert!((0..8).any(|_| a.below(u64::MAX) != b.below(u64::MAX)));
    }

    #[test]
    fn jitter_reaches_both_ends_and_centres_on_the_mean() {
        let mut rng = Stream::new(3, 0);
        let drawn: Vec<u64> = (0..10_000).map(|_| rng.of(Around::new(100, 50))).collect();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&50), Some(&150)));
        let mean = drawn.iter().sum::<u64>() / 10_000;
        assert!((98..=102).contains(&mean), "{mean}");
    }

    proptest! {
        #[test]
        fn jitter_stays_within_its_bounds(seed: u64, mean in 0u64..1 << 40, percent in 0u32..=100) {
            let reach = mean * u64::from(percent) / 100;
            let n = Stream::new(seed, 0).of(Around::new(mean, percent));
            prop_assert!((mean - reach..=mean + reach).contains(&n));
        }

        #[test]
        fn below_is_below(seed: u64, n in 1u64..) {
            prop_assert!(Stream::new(seed, 0).below(n) < n);
        }
    }
}
