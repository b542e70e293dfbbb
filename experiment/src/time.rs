//! Lengths of time as a person writes them.
//!
//! Owns the units. Knows no clock.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use crate::text::Shown;

/// A length of time in nanoseconds; written as an integer with a unit, read back from it.
///
/// ```
/// use experiment::Time;
///
/// assert_eq!("20us".parse(), Ok(Time(20_000)));
/// assert_eq!(Time(20_000).to_string(), "20us");
/// assert!("20".parse::<Time>().unwrap_err().to_string().contains("500ns"));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

/// The units and how many nanoseconds each has, the smallest first.
const UNITS: [(&str, u64); 4] = [("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];

impl Time {
    /// No time.
    pub const ZERO: Time = Time(0);
    /// The longest that can be written: 146 years, so that a sum of four does not overflow.
    pub const LONGEST: Time = Time(u64::MAX / 4);

    /// So many microseconds.
    pub const fn us(n: u64) -> Time {
        Time(n * 1_000)
    }

    /// So many milliseconds.
    pub const fn ms(n: u64) -> Time {
        Time(n * 1_000_000)
    }

    /// So many seconds.
    pub const fn s(n: u64) -> Time {
        Time(n * 1_000_000_000)
    }

    /// In nanoseconds.
    pub const fn ns(self) -> u64 {
        self.0
    }
}

/// With the largest unit that leaves no fraction.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, ns): &&(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*ns);
        let (unit, ns) = UNITS.iter().rev().find(whole).unwrap_or(&UNITS[0]);
        write!(f, "{}{unit}", self.0 / ns)
    }
}

impl FromStr for Time {
    type Err = NotATime;

    fn from_str(text: &str) -> Result<Time, NotATime> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let read = || {
            let (_, ns) = UNITS.iter().find(|(name, _)| *name == unit)?;
            number.parse::<u64>().ok()?.checked_mul(*ns).map(Time)
        };
        let fits = |time: &Time| *time <= Time::LONGEST;
        read().filter(fits).ok_or_else(|| NotATime(text.to_string()))
    }
}

/// How much work, or how long to spin.
///
/// ```
/// use experiment::{Amount, Time};
///
/// assert_eq!("20us".parse(), Ok(Amount::Time(Time::us(20))));
/// assert_eq!("125turns".parse(), Ok(Amount::Turns(125)));
/// assert_eq!(Amount::Turns(125).to_string(), "125turns");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Amount {
    /// What takes so long on an undisturbed vCPU, which the guest measures before its run.
    Time(Time),
    /// So many turns of the loop: the same in every run, whatever the machine.
    Turns(u64),
}

/// The unit that is no time.
const TURNS: &str = "turns";

impl Amount {
    /// The most turns that can be written.
    pub const MOST_TURNS: u64 = 1_000_000_000_000;

    /// In nanoseconds; 0 where it is turns.
    pub const fn ns(self) -> u64 {
        match self {
            Amount::Time(time) => time.ns(),
            Amount::Turns(_) => 0,
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Time(time) => time.fmt(f),
            Amount::Turns(turns) => write!(f, "{turns}{TURNS}"),
        }
    }
}

impl FromStr for Amount {
    type Err = NotATime;

    fn from_str(text: &str) -> Result<Amount, NotATime> {
        let Some(digits) = text.strip_suffix(TURNS) else { return text.parse().map(Amount::Time) };
        // `str::parse` would take a sign.
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let turns = digits.parse().ok().filter(|turns| plain && *turns <= Amount::MOST_TURNS);
        turns.map(Amount::Turns).ok_or_else(|| NotATime(text.to_string()))
    }
}

/// A text that is no [`Time`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotATime(String);

impl fmt::Display for NotATime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a time such as 500ns, 2us, 10ms or 1s", Shown(&self.0))
    }
}

impl core::error::Error for NotATime {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["0ns", "7ns", "2us", "1500us", "3ms", "1s", "3600s"] {
            assert_eq!(text.parse::<Time>().unwrap().to_string(), text);
        }
        assert_eq!("1000ns".parse(), Ok(Time::us(1)));
        assert_eq!("0s".parse(), Ok(Time::ZERO));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "us", "5", "5 us", "-1us", "+1us", "1.5us", "1m", "99999999999999999999ns"]
        {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
        // More than 64 bits, and more than the longest.
        for text in ["9999999999999s", "18446744073s"] {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
    }
}
