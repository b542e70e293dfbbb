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
    /// `rounds=`: acquisitions of each task.
    pub(crate) rounds: u64,
    /// `critical=`: turns of a loop in the critical section.
    pub(crate) critical: u64,
    /// `outside=`: turns between two of them.
    pub(crate) outside: u64,
    /// `nap=`: a task sleeps after so many rounds; 0 = never.
    pub(crate) nap: u64,
    /// `drill=0`: leave out the part that makes every vCPU sleep.
    pub(crate) drill: bool,
    /// `stall=1`: then hold a lock until every waiter's poll has timed out.
    pub(crate) stall: bool,
    /// `markers=1`: mark waits and kicks in the hypervisor's trace.
    pub(crate) markers: bool,
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
        let mut plan = Plan {
            tasks: 2 * vcpus,
            rounds: 50,
            critical: 5_000,
            outside: 2_500,
            nap: 8,
            drill: true,
            stall: false,
            markers: false,
            ask: false,
        };
        for word in words.split_whitespace() {
            let (key, number) = word
                .split_once('=')
                .and_then(|(key, value)| Some((key, value.parse::<u32>().ok()?)))
                .ok_or_else(|| format!("extra: `{word}` is not KEY=NUMBER"))?;
            match key {
                "tasks" => plan.tasks = number,
                "rounds" => plan.rounds = number.into(),
                "critical" => plan.critical = number.into(),
                "outside" => plan.outside = number.into(),
                "nap" => plan.nap = number.into(),
                "drill" => plan.drill = number != 0,
                "stall" => plan.stall = number != 0,
                "markers" => plan.markers = number != 0,
                "ask" => plan.ask = number != 0,
                _ => {
                    return Err(format!(
                        "extra: there is no key `{key}`; use tasks, rounds, critical, outside, nap, \
                         drill, stall, markers, ask"
                    ));
                }
            }
        }
        Ok(plan)
    }
}
