//! A whole command line: read, completed and checked.
//!
//! Owns what may not stand together, how long a line may be, and the message for everything that is
//! refused. It never guesses: a typing error must not become a result.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::keys::{Given, Key, Params, UnknownKey};
use crate::names::{Control, Workload};
use crate::text::{List, Shown};
use crate::time::{Amount, Time};

/// The longest command line there is, in bytes.
///
/// Xen hands a PV domain 1,023 bytes at most (`MAX_GUEST_CMDLINE` in its public/xen.h, with the
/// terminating 0) and cuts the rest off without a word. One byte less, so that the guest can tell a
/// line that has come whole from one that was cut.
pub const LONGEST_LINE: usize = 1022;

/// When a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// After so many acquisitions of each vCPU.
    Acquisitions(u64),
    /// After so long by each vCPU's own clock.
    Duration(Time),
}

impl Params {
    /// Reads a command line for a domain of `domain_vcpus` vCPUs.
    ///
    /// # Errors
    ///
    /// The first word that cannot be used, with what would be accepted in its place.
    pub fn parse(line: &str, domain_vcpus: u32) -> Result<Params, ParamError> {
        if line.len() > LONGEST_LINE {
            return Err(ParamError::TooLong { bytes: line.len() });
        }
        let mut given = Given::default();
        for word in line.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let key = name.parse()?;
            check(key, value)?;
            if given.is_set_by(key, value) {
                return Err(ParamError::Twice(key));
            }
        }
        let mut params = given.or_default(domain_vcpus);
        params.rules(domain_vcpus)?;
        if params.workload == Workload::Alloc {
            // Each block takes the lock twice.
            params.acquisitions = params.acquisitions.map(|n| n.next_multiple_of(2));
        }
        Ok(params)
    }

    /// What may not stand together.
    fn rules(&self, domain_vcpus: u32) -> Result<(), ParamError> {
        let domain = domain_vcpus.max(1);
        if self.vcpus > domain {
            return Err(ParamError::TooManyVcpus { asked: self.vcpus, domain });
        }
        let conflict =
            |key, with: String, accepted: String| Err(ParamError::Conflict { key, with, accepted });
        if self.workload.has_one_lock() && self.locks != 1 {
            let with = format!("{}={}, which has one lock", Key::workload, self.workload);
            let (spread, torture) = (Workload::Spread, Workload::Torture);
            return conflict(Key::locks, with, format!("{}={spread} or {torture}", Key::workload));
        }
        if self.acquisitions.is_some() && self.duration.is_some() {
            return conflict(Key::duration, Key::acquisitions.to_string(), "one of the two".into());
        }
        if self.workload.has_no_lock() && self.duration.is_none() {
            let with = Key::acquisitions.to_string();
            return conflict(Key::workload, with, Key::duration.to_string());
        }
        let (handoff, torture) = (Workload::Handoff, Workload::Torture);
        let only: [(Key, Time, &[Workload]); 2] =
            [(Key::timer, self.timer, &[handoff, torture]), (Key::wakeup, self.wakeup, &[torture])];
        for (key, length, workloads) in only {
            if length != Time::ZERO && !workloads.contains(&self.workload) {
                let with = format!("{}={}", Key::workload, self.workload);
                let names: Vec<&str> = workloads.iter().map(|workload| workload.name()).collect();
                let accepted =
                    format!("{}, or {}={}", Time::ZERO, Key::workload, names.join(" or "));
                return conflict(key, with, accepted);
            }
        }
        if self.control == Control::Watch && self.vcpus < 2 {
            let accepted = format!("{} from 2 on", Key::vcpus);
            return conflict(Key::control, "one vCPU".into(), accepted);
        }
        Ok(())
    }

    /// When the run is over: `acquisitions` or `duration`.
    pub fn limit(&self) -> Limit {
        match (self.duration, self.acquisitions) {
            (Some(time), _) => Limit::Duration(time),
            (None, n) => Limit::Acquisitions(n.unwrap_or(0)),
        }
    }

    /// Whether all work is given in turns, and none as a time.
    pub fn work_is_in_turns(&self) -> bool {
        [self.critical, self.outside].iter().all(|work| matches!(work, Amount::Turns(_)))
    }

    /// Whether upcalls interrupt the vCPUs at their work.
    pub fn interruptible(&self) -> bool {
        self.control == Control::Watch || self.timer != Time::ZERO
    }
}

/// The empty command line, of a domain with one vCPU.
impl Default for Params {
    fn default() -> Self {
        Given::default().or_default(1)
    }
}

/// Whether `key` takes `value`.
pub(crate) fn check(key: Key, value: &str) -> Result<(), ParamError> {
    if key.takes(value) { Ok(()) } else { Err(ParamError::Value { key, value: value.to_string() }) }
}

/// A command line that cannot be used. Its message is one line that names the key and what it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParamError {
    /// There is no such key.
    Unknown(UnknownKey),
    /// A key has a value it does not take.
    Value {
        /// The key.
        key: Key,
        /// What was given.
        value: String,
    },
    /// A key stands there more than once.
    Twice(Key),
    /// Two parameters cannot be together.
    Conflict {
        /// The key.
        key: Key,
        /// What it collides with.
        with: String,
        /// What is accepted.
        accepted: String,
    },
    /// The domain has fewer vCPUs than `vcpus` asks for.
    TooManyVcpus {
        /// `vcpus`.
        asked: u32,
        /// vCPUs of the domain.
        domain: u32,
    },
    /// The line is longer than [`LONGEST_LINE`].
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

impl ParamError {
    /// What is wrong, without what would be right.
    pub fn what(&self) -> String {
        match self {
            ParamError::Unknown(error) => format!("`{}`: no such parameter", error.given()),
            ParamError::Value { key, value } => format!("`{key}={}`", Shown(value)),
            ParamError::Twice(key) => format!("`{key}` stands there more than once"),
            ParamError::Conflict { key, with, .. } => format!("`{key}` does not go with {with}"),
            ParamError::TooManyVcpus { asked, domain } => {
                format!("`{}={asked}` in a domain of {domain}", Key::vcpus)
            }
            ParamError::TooLong { bytes } => format!("the guest's command line has {bytes} bytes"),
        }
    }

    /// What would be accepted instead.
    pub fn remedy(&self) -> String {
        match self {
            ParamError::Unknown(_) => format!("accepted are {}", List(Key::NAMES)),
            ParamError::Value { key, .. } | ParamError::Twice(key) => key.accepts().to_string(),
            ParamError::Conflict { accepted, .. } => format!("accepted: {accepted}"),
            ParamError::TooManyVcpus { domain, .. } => format!(
                "accepted values are integers from 1 to {domain}, the vCPUs of this domain \
                 (vcpus= in its configuration)"
            ),
            ParamError::TooLong { .. } => {
                format!("accepted are {LONGEST_LINE}: of a longer one Xen hands on a part")
            }
        }
    }
}

impl fmt::Display for ParamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remedy = self.remedy();
        match self {
            ParamError::Unknown(error) => error.fmt(f),
            ParamError::Value { key, value } => write!(f, "{key}={}: {remedy}", Shown(value)),
            ParamError::Twice(key) => write!(f, "{key}: given more than once; {remedy}"),
            ParamError::Conflict { key, with, .. } => {
                write!(f, "{key}: not together with {with}; {remedy}")
            }
            ParamError::TooManyVcpus { asked, .. } => {
                write!(f, "{}={asked}: {remedy}", Key::vcpus)
            }
            ParamError::TooLong { bytes } => {
                write!(f, "the command line has {bytes} bytes; {remedy}")
            }
        }
    }
}

impl core::error::Error for ParamError {}

impl From<UnknownKey> for ParamError {
    fn from(error: UnknownKey) -> Self {
        ParamError::Unknown(error)
    }
}

#[cfg(test)]
mod tests;
