//! Lengths of time, drawn at random, and the random numbers behind them.
//!
//! Owns how a distribution is written, read and sampled, and how one seed becomes many streams.
//! Never reads a clock or the machine's randomness: the same seed gives the same lengths everywhere.

use core::fmt;
use core::str::FromStr;
use std::collections::BTreeMap;

use experiment::Time;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde_json::Value;

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
/// Written as `2us`, `uniform:1us..3us`, `exp:2us` (exponential, with this mean), `never`, or
/// `measured:FILE:NAME`, as a trace has it (see [`Measured`]); units are `ns`, `us`, `ms` and `s`.
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
    /// As it was measured.
    Measured(&'static Measured),
    /// Longer than any run.
    Never,
}

/// A distribution that a trace has: `FILE` is what `kicktrace summary --json` prints, and `NAME` one of the latencies
/// there, such as `kick_to_wake`. All domains of the trace count together; inside a class of the histogram every value is as
/// likely as the others.
#[derive(Debug, PartialEq, Eq)]
pub struct Measured {
    /// `FILE:NAME`.
    source: String,
    /// Nanoseconds, lowest and highest of a class, and how many values are in it or in one before it.
    classes: Vec<(u64, u64, u64)>,
}

impl Measured {
    fn read(source: &str) -> Result<Self, String> {
        let (file, name) = source
            .rsplit_once(':')
            .filter(|(file, _)| !file.contains(char::is_whitespace))
            .ok_or_else(|| {
                format!("measured:{source}: write measured:FILE:NAME, without spaces")
            })?;
        let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
        Self::parse(&text, name)
            .map(|classes| Self { source: source.to_owned(), classes })
            .map_err(|why| format!("{file}: {why}"))
    }

    fn parse(summary: &str, name: &str) -> Result<Vec<(u64, u64, u64)>, String> {
        let summary: Value = serde_json::from_str(summary).map_err(|error| {
            format!("this is not what `kicktrace summary --json` prints: {error}")
        })?;
        let hz = summary["clock"]["hz"].as_f64().filter(|hz| *hz > 0.0);
        let hz = hz.ok_or("it does not say how fast the clock is; give kicktrace --cpu-hz")?;
        let mut merged: BTreeMap<u64, u64> = BTreeMap::new();
        for domain in summary["domains"].as_array().into_iter().flatten() {
            let latencies = domain["latencies"].as_object();
            let Some(found) = latencies.and_then(|latencies| latencies.get(name)) else {
                let known = latencies.into_iter().flat_map(|l| l.keys().map(String::as_str));
                let known: Vec<&str> = known.collect();
                return Err(format!("no latency is called {name}; there are {}", known.join(", ")));
            };
            for class in found["histogram"].as_array().into_iter().flatten() {
                let (Some(ticks), Some(count)) = (class[0].as_f64(), class[1].as_u64()) else {
                    return Err(format!("the histogram of {name} is damaged"));
                };
                *merged.entry((ticks * 1e9 / hz).round() as u64).or_default() += count;
            }
        }
        let (mut classes, mut below, mut all) = (Vec::new(), None, 0);
        for (highest, count) in merged.into_iter().filter(|(_, count)| *count > 0) {
            all += count;
            classes.push((below.map_or(highest, |below: u64| below + 1), highest, all));
            below = Some(highest);
        }
        if classes.is_empty() {
            return Err(format!("it has no value of {name}"));
        }
        Ok(classes)
    }

    fn sample(&self, random: &mut Random) -> u64 {
        let all = self.classes.last().map_or(0, |class| class.2);
        let nth = random.below(all);
        let class = self.classes.partition_point(|class| class.2 <= nth);
        let (lowest, highest, _) = self.classes[class];
        lowest + random.below(highest - lowest + 1)
    }

    /// The mean, in nanoseconds.
    fn mean(&self) -> f64 {
        let (mut sum, mut before) = (0.0, 0);
        for (lowest, highest, all) in &self.classes {
            sum += (lowest + highest) as f64 / 2.0 * (all - before) as f64;
            before = *all;
        }
        sum / before as f64
    }
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
            Self::Measured(measured) => measured.sample(random),
            Self::Never => NEVER,
        }
    }

    /// The mean in nanoseconds; infinite for [`Dist::Never`].
    pub fn mean(self) -> f64 {
        match self {
            Self::Fixed(ns) | Self::Exponential(ns) => ns as f64,
            Self::Uniform(from, to) => (from as f64 + to as f64) / 2.0,
            Self::Measured(measured) => measured.mean(),
            Self::Never => f64::INFINITY,
        }
    }
}

impl fmt::Display for Dist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Fixed(ns) => write!(f, "{}", Time(ns)),
            Self::Uniform(from, to) => write!(f, "uniform:{}..{}", Time(from), Time(to)),
            Self::Exponential(mean) => write!(f, "exp:{}", Time(mean)),
            Self::Measured(measured) => write!(f, "measured:{}", measured.source),
            Self::Never => f.write_str("never"),
        }
    }
}

impl FromStr for Dist {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            format!(
                "`{text}` is none of: 2us, uniform:1us..3us, exp:2us, measured:FILE:NAME, never"
            )
        };
        let time = |text: &str| text.parse::<Time>().map(|time| time.0).map_err(|_| error());
        match text.split_once(':') {
            Some(("uniform", range)) => {
                let (from, to) = range.split_once("..").ok_or_else(error)?;
                let (from, to) = (time(from)?, time(to)?);
                if from <= to { Ok(Self::Uniform(from, to)) } else { Err(error()) }
            }
            Some(("exp", mean)) => time(mean).map(Self::Exponential),
            // A command line names a few of them, and they live as long as the program.
            Some(("measured", source)) => {
                Measured::read(source).map(|read| Self::Measured(Box::leak(Box::new(read))))
            }
            None if text == "never" => Ok(Self::Never),
            None => time(text).map(Self::Fixed),
            Some(_) => Err(error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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

    /// Two domains, a clock of 2 GHz: 100 values of at most 1 us, 300 above it and up to 3 us.
    #[test]
    fn a_measured_distribution_is_the_histogram_of_all_domains_in_ns() {
        let domain = |classes: Value| json!({ "latencies": { "wait": { "histogram": classes } } });
        let mut summary = json!({
            "clock": { "hz": 2e9 },
            "domains": [domain(json!([[2000, 60]])), domain(json!([[2000, 40], [6000, 300]]))],
        });
        let classes = Measured::parse(&summary.to_string(), "wait").unwrap();
        assert_eq!(classes, [(1000, 1000, 100), (1001, 3000, 400)]);
        let measured = Measured { source: "x:wait".to_owned(), classes };
        let dist = Dist::Measured(Box::leak(Box::new(measured)));
        assert!((dist.mean() - (1000.0 * 0.25 + 2000.5 * 0.75)).abs() < 1e-9);
        let mut random = Random::streams(1).next().unwrap();
        let samples: Vec<u64> = (0..100_000).map(|_| dist.sample(&mut random)).collect();
        assert!(samples.iter().all(|ns| (1000..=3000).contains(ns)));
        let short = samples.iter().filter(|ns| **ns == 1000).count();
        assert!((24_000..26_000).contains(&short), "{short}");

        let error =
            |summary: &Value, name: &str| Measured::parse(&summary.to_string(), name).unwrap_err();
        assert!(error(&summary, "weight").contains("there are wait"));
        summary["domains"] = json!([domain(json!([]))]);
        assert!(error(&summary, "wait").contains("no value"));
        summary["clock"] = Value::Null;
        assert!(error(&summary, "wait").contains("--cpu-hz"));
        assert!(Measured::parse("{", "wait").unwrap_err().contains("kicktrace summary --json"));
        for source in ["measured:", "measured:x", "measured:a b:wait", "measured:/none:wait"] {
            assert!(source.parse::<Dist>().is_err(), "{source}");
        }
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
