//! The guest's command line (`extra=`): what it is asked to do.
//!
//! Owns the list of keys and the merging of settings. It never judges a value: the guest does, and
//! ends with a message that names the key and the accepted values.

use std::fmt;
use std::str::FromStr;

/// Every lock and policy the guest knows, in the names of the command line.
pub const POLICIES: [&str; 8] = [
    "kick-twice",
    "kick-at-unlock",
    "hybrid",
    "adaptive",
    "native",
    "test-and-set",
    "spin",
    "spin-ticket",
];

const KEYS: [&str; 18] = [
    "workload",
    "policy",
    "vcpus",
    "locks",
    "critical",
    "outside",
    "jitter",
    "spin",
    "acquisitions",
    "duration",
    "deadline",
    "seed",
    "trace",
    "start",
    "fault",
    "timer",
    "control",
    "events",
];

/// The guest's command line: `key=value` pairs in order.
///
/// ```
/// use pvlab::scenario::WorkloadLine;
///
/// let mut line: WorkloadLine = "workload=handoff acquisitions=100".parse().unwrap();
/// line.set("acquisitions", "5").unwrap();
/// line.set("policy", "kick-twice").unwrap();
/// assert_eq!(line.to_string(), "workload=handoff acquisitions=5 policy=kick-twice");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadLine {
    pairs: Vec<(String, String)>,
}

/// Why a command line cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {remedy}")]
pub struct WorkloadError {
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub remedy: String,
}

impl WorkloadLine {
    /// Reads `key=value` pairs with blanks between them.
    ///
    /// # Errors
    ///
    /// At the first word that is not `key=value` with a key the guest knows.
    pub fn parse(text: &str) -> Result<Self, WorkloadError> {
        let mut line = WorkloadLine::default();
        for word in text.split_ascii_whitespace() {
            let (key, value) = split(word)?;
            line.set(key, value)?;
        }
        Ok(line)
    }

    /// Sets `key`, in its old place if it has one.
    ///
    /// # Errors
    ///
    /// If the guest knows no such key, or the value is empty or has a blank or a quote in it.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), WorkloadError> {
        if !KEYS.contains(&key) {
            return Err(WorkloadError {
                what: format!("the guest knows no parameter `{key}`"),
                remedy: format!("choose one of: {}", KEYS.join(", ")),
            });
        }
        if value.is_empty()
            || value.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\'))
        {
            return Err(WorkloadError {
                what: format!("`{value}` cannot be the value of `{key}`"),
                remedy: format!("write `{key}=VALUE` without blanks and quotes"),
            });
        }
        match self.pairs.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value.to_owned(),
            None => self.pairs.push((key.to_owned(), value.to_owned())),
        }
        Ok(())
    }

    /// Takes `key` away.
    pub fn remove(&mut self, key: &str) {
        self.pairs.retain(|(known, _)| known != key);
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Sets each pair of `settings`. A limit (`acquisitions` or `duration`) replaces the other one.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set).
    pub fn apply(&mut self, settings: &[Setting]) -> Result<(), WorkloadError> {
        for setting in settings {
            match setting.key.as_str() {
                "acquisitions" => self.remove("duration"),
                "duration" => self.remove("acquisitions"),
                _ => {}
            }
            self.set(&setting.key, &setting.value)?;
        }
        Ok(())
    }
}

impl FromStr for WorkloadLine {
    type Err = WorkloadError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for WorkloadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (key, value)) in self.pairs.iter().enumerate() {
            let blank = if place == 0 { "" } else { " " };
            write!(f, "{blank}{key}={value}")?;
        }
        Ok(())
    }
}

/// One `--set key=value`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Setting {
    /// A key the guest knows.
    pub key: String,
    /// Its value, judged by the guest.
    pub value: String,
}

impl FromStr for Setting {
    type Err = WorkloadError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) = split(text)?;
        WorkloadLine::default().set(key, value)?;
        Ok(Setting { key: key.to_owned(), value: value.to_owned() })
    }
}

fn split(word: &str) -> Result<(&str, &str), WorkloadError> {
    word.split_once('=').ok_or_else(|| WorkloadError {
        what: format!("`{word}` is not key=value"),
        remedy: "write, for example, acquisitions=1000".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_replaces_the_other() {
        let mut line = WorkloadLine::parse("duration=2s policy=spin").unwrap();
        line.apply(&["acquisitions=10".parse().unwrap()]).unwrap();
        assert_eq!(line.to_string(), "policy=spin acquisitions=10");
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused_with_a_remedy() {
        for (text, word) in [
            ("critical", "key=value"),
            ("critcal=1us", "critical"),
            ("seed=", "VALUE"),
            ("seed=\"1", "quotes"),
        ] {
            let error = WorkloadLine::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
