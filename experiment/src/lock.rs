//! The locks that can stand beside each other: the guest's, and Linux'.
//!
//! Owns the names of Linux' variants, and the one type for a column of a table. Which lock a policy of the
//! guest is, is [`names`](crate::names)'s.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::names::Policy;
use crate::text::{List, Shown};

/// The name before every lock of Linux.
const NAME: &str = "linux";

/// Which spin lock of Linux.
///
/// ```
/// use experiment::{Budget, Linux};
///
/// assert_eq!("linux".parse(), Ok(Linux::Stock));
/// assert_eq!("linux-nopvspin".parse(), Ok(Linux::NoPv));
/// assert_eq!("linux-50us".parse(), Ok(Linux::Budget(Budget::Time { us: 50 })));
/// assert_eq!("linux-800turns".parse(), Ok(Linux::Budget(Budget::Turns(800))));
/// assert_eq!("linux-50us".parse::<Linux>().unwrap().to_string(), "linux-50us");
/// assert!("linux-soon".parse::<Linux>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Linux {
    /// The PV queue lock as it ships: a waiter spins 2^15 turns before it sleeps.
    Stock,
    /// `nopvspin` on its command line: the queue lock of bare metal.
    NoPv,
    /// The PV queue lock with another spin budget, put into the kernel's code.
    Budget(Budget),
}

/// How long a waiter of Linux spins before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Budget {
    /// Microseconds of an undisturbed vCPU; dom0 measures what a turn takes there.
    Time {
        /// How many.
        us: u32,
    },
    /// Turns of its loop.
    Turns(u32),
}

impl fmt::Display for Linux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Linux::Stock => f.write_str(NAME),
            Linux::NoPv => write!(f, "{NAME}-nopvspin"),
            Linux::Budget(Budget::Time { us }) => write!(f, "{NAME}-{us}us"),
            Linux::Budget(Budget::Turns(turns)) => write!(f, "{NAME}-{turns}turns"),
        }
    }
}

impl FromStr for Linux {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no lock of Linux; accepted: {NAME}, {NAME}-nopvspin, {NAME}-50us (a spin \
                 budget of 1us to 100000us), {NAME}-800turns (of 1turns to 1000000turns)"
            )
        };
        let number = |digits: &str, most: u32| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
            digits.parse().ok().filter(|n| plain && (1..=most).contains(n)).ok_or_else(wrong)
        };
        match text.strip_prefix(NAME) {
            Some("") => Ok(Linux::Stock),
            Some("-nopvspin") => Ok(Linux::NoPv),
            Some(rest) => match rest.strip_prefix('-') {
                Some(budget) if budget.ends_with("us") => Ok(Linux::Budget(Budget::Time {
                    us: number(&budget[..budget.len() - 2], 100_000)?,
                })),
                Some(budget) if budget.ends_with("turns") => Ok(Linux::Budget(Budget::Turns(
                    number(&budget[..budget.len() - 5], 1_000_000)?,
                ))),
                _ => Err(wrong()),
            },
            None => Err(wrong()),
        }
    }
}

impl Linux {
    /// The variant a policy's name means, if it is one of Linux'.
    pub fn of(policy: &str) -> Option<Linux> {
        policy.parse().ok()
    }
}

/// A lock whose figures can stand in a column.
///
/// ```
/// use experiment::{Linux, Lock, Policy};
///
/// assert_eq!("adaptive".parse(), Ok(Lock::Guest(Policy::Adaptive)));
/// assert_eq!("linux".parse(), Ok(Lock::Linux(Linux::Stock)));
/// let error = "kick-thrice".parse::<Lock>().unwrap_err();
/// assert!(error.contains("kick-twice") && error.contains("linux-nopvspin"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lock {
    /// One of the guest's own.
    Guest(Policy),
    /// Linux' spin lock.
    Linux(Linux),
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lock::Guest(policy) => policy.fmt(f),
            Lock::Linux(linux) => linux.fmt(f),
        }
    }
}

impl FromStr for Lock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(NAME) {
            return text.parse().map(Lock::Linux);
        }
        text.parse().map(Lock::Guest).map_err(|_| {
            let names = List(Policy::NAMES);
            format!(
                "{}: accepted values are {names}, {NAME}, {NAME}-nopvspin, {NAME}-50us, {NAME}-800turns",
                Shown(text)
            )
        })
    }
}

impl From<Policy> for Lock {
    fn from(policy: Policy) -> Self {
        Lock::Guest(policy)
    }
}

impl From<Linux> for Lock {
    fn from(linux: Linux) -> Self {
        Lock::Linux(linux)
    }
}

impl Serialize for Lock {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lock {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <Cow<'de, str>>::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_name_that_is_nearly_one_is_refused_and_says_what_is_accepted() {
        for name in
            ["linux-", "linux-0us", "linux-050us", "linux-1s", "linux50us", "linux-us", "lin"]
        {
            let error = name.parse::<Linux>().unwrap_err();
            assert!(error.contains("linux-nopvspin"), "{error}");
        }
    }

    #[test]
    fn every_lock_is_read_as_what_prints_it() {
        let linux = ["linux", "linux-nopvspin", "linux-50us", "linux-800turns"];
        for name in Policy::NAMES.iter().chain(&linux) {
            let lock: Lock = name.parse().unwrap();
            assert_eq!(lock.to_string(), *name);
            let json = serde_json::to_string(&lock).unwrap();
            assert_eq!(serde_json::from_str::<Lock>(&json).unwrap(), lock);
        }
    }
}
