//! How much is to be done.
//!
//! Owns the words that the domain's configuration may say.

use alloc::format;
use alloc::string::String;

/// What each task does, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// `tasks=`: how many; by default two a vCPU.
    pub(crate) tasks: u32,
    /// `rounds=`: acquisitions of each task. By default each makes 50, and goes on until every vCPU
    /// has slept and was kicked awake.
    pub(crate) rounds: Option<u64>,
    /// `critical=`: microseconds of work in the critical section.
    pub(crate) critical_us: u64,
    /// `outside=`: microseconds of work between two of them.
    pub(crate) outside_us: u64,
    /// `ask=1`: read a line from the console first.
    pub(crate) ask: bool,
}

impl Plan {
    /// The plan that `words` say, in a domain of `vcpus`.
    ///
    /// # Errors
    ///
    /// A word that is none of these, in a sentence.
    pub(crate) fn from_words(words: &str, vcpus: u32) -> Result<Plan, String> {
        let mut plan =
            Plan { tasks: 2 * vcpus, rounds: None, critical_us: 200, outside_us: 100, ask: false };
        for word in words.split_whitespace() {
            let (key, number) = word
                .split_once('=')
                .and_then(|(key, value)| Some((key, value.parse::<u32>().ok()?)))
                .ok_or_else(|| format!("extra: `{word}` is not KEY=NUMBER"))?;
            match key {
                "tasks" => plan.tasks = number,
                "rounds" => plan.rounds = Some(number.into()),
                "critical" => plan.critical_us = number.into(),
                "outside" => plan.outside_us = number.into(),
                "ask" => plan.ask = number != 0,
                _ => {
                    return Err(format!(
                        "extra: there is no key `{key}`; use tasks, rounds, critical, outside, ask"
                    ));
                }
            }
        }
        Ok(plan)
    }
}
