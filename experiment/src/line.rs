//! A command line in the making.
//!
//! Owns how settings are merged into it. Each word of it has a key and a value that the guest knows;
//! whether they go together shows when the line is whole: [`Params::parse`](crate::Params::parse).

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::keys::Key;
use crate::params::{ParamError, check};

/// The guest's command line: `key=value` words in order.
///
/// ```
/// use experiment::{Key, Line};
///
/// let mut line: Line = "workload=handoff acquisitions=100".parse().unwrap();
/// line.set(Key::acquisitions, "5").unwrap();
/// line.set(Key::policy, "kick-twice").unwrap();
/// assert_eq!(line.to_string(), "workload=handoff acquisitions=5 policy=kick-twice");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    words: Vec<Setting>,
}

/// One `key=value`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The key.
    pub key: Key,
    /// Its value, as it was written.
    pub value: String,
}

impl Line {
    /// Sets `key`, in its old place if it has one.
    ///
    /// # Errors
    ///
    /// If `key` does not take `value`.
    pub fn set(&mut self, key: Key, value: &str) -> Result<(), ParamError> {
        check(key, value)?;
        let value = value.to_string();
        match self.words.iter_mut().find(|word| word.key == key) {
            Some(word) => word.value = value,
            None => self.words.push(Setting { key, value }),
        }
        Ok(())
    }

    /// Takes `key` away.
    pub fn remove(&mut self, key: Key) {
        self.words.retain(|word| word.key != key);
    }

    /// The value of `key`.
    pub fn get(&self, key: Key) -> Option<&str> {
        self.words.iter().find(|word| word.key == key).map(|word| word.value.as_str())
    }

    /// Sets each of `settings`. A limit (`acquisitions` or `duration`) replaces the other one.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set).
    pub fn apply(&mut self, settings: &[Setting]) -> Result<(), ParamError> {
        for Setting { key, value } in settings {
            match key {
                Key::acquisitions => self.remove(Key::duration),
                Key::duration => self.remove(Key::acquisitions),
                _ => {}
            }
            self.set(*key, value)?;
        }
        Ok(())
    }
}

impl FromStr for Line {
    type Err = ParamError;

    /// Reads words with blanks between them; of two with one key, the last counts.
    fn from_str(text: &str) -> Result<Self, ParamError> {
        let mut line = Line::default();
        for word in text.split_ascii_whitespace() {
            let Setting { key, value } = word.parse()?;
            line.set(key, &value)?;
        }
        Ok(line)
    }
}

impl FromStr for Setting {
    type Err = ParamError;

    fn from_str(word: &str) -> Result<Self, ParamError> {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let key = name.parse()?;
        check(key, value)?;
        Ok(Setting { key, value: value.to_string() })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, word) in self.words.iter().enumerate() {
            write!(f, "{}{word}", if place == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_replaces_the_other() {
        let mut line: Line = "duration=2s policy=spin".parse().unwrap();
        line.apply(&["acquisitions=10".parse().unwrap()]).unwrap();
        assert_eq!(line.to_string(), "policy=spin acquisitions=10");
        assert_eq!((line.get(Key::acquisitions), line.get(Key::duration)), (Some("10"), None));
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused_with_a_remedy() {
        for (text, word) in [
            ("critical", "integer with unit"),
            ("critcal=1us", "critical"),
            ("seed=", "integers from 0"),
            ("seed=\"1", "integers from 0"),
            ("policy=kick-thrice", "kick-twice"),
            ("critical=soon", "from 0ns to 10s"),
        ] {
            let error = text.parse::<Line>().unwrap_err();
            assert!(error.remedy().contains(word), "{error}");
            assert!(error.to_string().contains(&error.remedy()), "{error}");
            assert_eq!(text.parse::<Setting>().unwrap_err(), error);
        }
    }
}
