//! Lengths of time, drawn at random, and the random numbers behind them.
//!
//! Owns how a distribution is written, read and sampled, and how one seed becomes many streams.
//! Never reads a clock or the machine's randomness: the same seed gives the same lengths everywhere.

use core::fmt;
use core::str::FromStr;

use experiment::Time;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Random numbers: xoshiro256++, whose output is fixed by its definition.
#[derive(Clone, Debug)]
pub(crate) struct Random(Xoshiro256PlusPlus);

impl Random {
    /// Streams of one seed, 2^128 numbers apart, so that they never overlap.
    pub(crate) fn streams(seed: u64) -> impl Iterator<Item = Self> {
        let mut next = Xoshiro256PlusPlus::seed_from_u64(seed);
        std::iter::repeat_with(move || {
            let stream = next.clone();
            next.jump();
            Self(stream)
        })
    }

    /// A number below `n`; 0 where `n` is 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// True once in `n` times; never where `n` is 0.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        n != 0 && self.below(n) == 0
    }

    /// A number above 0 and at most 1, a multiple of 2^-53.
    fn unit(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

/// A distribution of lengths of time.
///
/// Written as `2us`, `uniform:1us..3us`, `exp:2us` (exponential, with this mean) or `never`; units
/// are `ns`, `us`, `ms` and `s`.
///
/// ```
/// use pvlock_sim::Dist;
///
/// assert_eq!("uniform:1us..3us".parse(), Ok(Dist::Uniform(1_000, 3_000)));
/// assert_eq!(Dist::Exponential(2_000_000).to_string(), "exp:2ms");
/// assert!("2 weeks".parse::<Dist>().unwrap_err().contains("uniform:1us..3us"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dist {
    /// Always this many nanoseconds.
    Fixed(u64),
    /// Between the two, both included, in nanoseconds.
    Uniform(u64, u64),
    /// Exponential with this mean, in nanoseconds.
    Exponential(u64),
    /// Longer than any run.
    Never,
}

/// Beyond the end of every run, with room to add to it.
pub(crate) const NEVER: u64 = Time::LONGEST.ns();

impl Dist {
    pub(crate) fn sample(self, random: &mut Random) -> u64 {
        match self {
            Self::Fixed(ns) => ns,
            Self::Uniform(from, to) => from + random.below(to - from + 1),
            // libm: the C library's logarithm may differ in the last bit from one machine to another.
            Self::Exponential(mean) => (-libm::log(random.unit()) * mean as f64) as u64,
            Self::Never => NEVER,
        }
    }
}

impl fmt::Display for Dist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Fixed(ns) => write!(f, "{}", Time(ns)),
            Self::Uniform(from, to) => write!(f, "uniform:{}..{}", Time(from), Time(to)),
            Self::Exponential(mean) => write!(f, "exp:{}", Time(mean)),
            Self::Never => f.write_str("never"),
        }
    }
}

impl FromStr for Dist {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("`{text}` is none of: 2us, uniform:1us..3us, exp:2us, never");
        let time = |text: &str| text.parse::<Time>().map(|time| time.0).map_err(|_| error());
        match text.split_once(':') {
            Some(("uniform", range)) => {
                let (from, to) = range.split_once("..").ok_or_else(error)?;
                let (from, to) = (time(from)?, time(to)?);
                if from <= to { Ok(Self::Uniform(from, to)) } else { Err(error()) }
            }
            Some(("exp", mean)) => time(mean).map(Self::Exponential),
            None if text == "never" => Ok(Self::Never),
            None => time(text).map(Self::Fixed),
            Some(_) => Err(error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in
            ["0ns", "7ns", "2us", "1500us", "3ms", "1s", "uniform:0ns..3us", "exp:5ms", "never"]
        {
            assert_eq!(text.parse::<Dist>().unwrap().to_string(), text);
        }
        for text in ["", "us", "5", "5 us", "uniform:3us..1us", "uniform:3us", "gauss:3us", "-1us"]
        {
            assert!(text.parse::<Dist>().is_err(), "{text}");
        }
        assert!("99999999999999999999s".parse::<Time>().is_err());
        assert!("9999999999999s".parse::<Time>().is_err());
    }

    #[test]
    fn samples_have_the_mean_they_say() {
        let mut random = Random::streams(1).next().unwrap();
        let mut mean =
            |dist: Dist| (0..100_000).map(|_| dist.sample(&mut random)).sum::<u64>() / 100_000;
        assert_eq!(mean(Dist::Fixed(7)), 7);
        assert!((1_990..=2_010).contains(&mean(Dist::Uniform(1_000, 3_000))));
        assert!((1_970..=2_030).contains(&mean(Dist::Exponential(2_000))));
    }

    /// If these change, a printed command no longer replays an old failure.
    #[test]
    fn the_numbers_of_a_seed_are_pinned() {
        let mut streams = Random::streams(1).skip(1);
        let mut random = streams.next().unwrap();
        let pinned: Vec<u64> = (0..4).map(|_| random.below(1_000_000)).collect();
        assert_eq!(pinned, [855_431, 538_420, 781_654, 890_344]);
        let exponential: Vec<u64> =
            (0..4).map(|_| Dist::Exponential(1_000_000).sample(&mut random)).collect();
        assert_eq!(exponential, [122_076, 222_414, 487_064, 4_006_911]);
    }
}
