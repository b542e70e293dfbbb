//! What values a key takes, and how a text becomes one of them.
//!
//! Owns the bounds' wording. Knows no key.

use alloc::string::{String, ToString};
use core::fmt;

use crate::text::List;
use crate::time::{Amount, Time};

/// What values a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// An integer from the first to the second.
    Integer(u64, u64),
    /// A time from the first to the second.
    Time(Time, Time),
    /// A time up to this one, or turns.
    Amount(Time),
}

impl fmt::Display for Accepts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Accepts::OneOf(words) => write!(f, "accepted values are {}", List(words)),
            Accepts::Integer(min, max) => {
                write!(f, "accepted values are integers from {min} to {max}")
            }
            Accepts::Time(min, max) => write!(
                f,
                "accepted values are an integer with unit ns, us, ms or s, from {min} to {max}"
            ),
            Accepts::Amount(max) => write!(
                f,
                "accepted values are an integer with unit ns, us, ms or s, from 0ns to {max}, or with unit turns, up \
                 to {}",
                Amount::MOST_TURNS
            ),
        }
    }
}

/// The type of a key's value.
pub(crate) trait Value: Sized {
    /// Reads a text that `accepts` covers.
    fn read(text: &str, accepts: &Accepts) -> Option<Self>;

    /// The text that is read back; nothing where there is no value.
    fn text(&self) -> Option<String>;
}

impl Value for u64 {
    fn read(text: &str, accepts: &Accepts) -> Option<u64> {
        let Accepts::Integer(min, max) = accepts else { return None };
        // `str::parse` would take a sign.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok())?.filter(|n| (min..=max).contains(&n))
    }

    fn text(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for u32 {
    fn read(text: &str, accepts: &Accepts) -> Option<u32> {
        u64::read(text, accepts)?.try_into().ok()
    }

    fn text(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for Time {
    fn read(text: &str, accepts: &Accepts) -> Option<Time> {
        let Accepts::Time(min, max) = accepts else { return None };
        text.parse().ok().filter(|time| (min..=max).contains(&time))
    }

    fn text(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for Amount {
    fn read(text: &str, accepts: &Accepts) -> Option<Amount> {
        let Accepts::Amount(max) = accepts else { return None };
        text.parse().ok().filter(|amount| !matches!(amount, Amount::Time(time) if time > max))
    }

    fn text(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// A key that may have no value at all.
impl<T: Value> Value for Option<T> {
    fn read(text: &str, accepts: &Accepts) -> Option<Option<T>> {
        T::read(text, accepts).map(Some)
    }

    fn text(&self) -> Option<String> {
        self.as_ref().and_then(T::text)
    }
}
