//! What can be chosen by name.
//!
//! Owns every name, in both directions: a new lock, workload or fault is one line here. What a choice
//! leads to is decided where it is matched, so the compiler finds each place that a new line needs.

use alloc::borrow::Cow;
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use pvlock::Policy as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::accepts::{Accepts, Value};
use crate::text::{List, Shown};

/// Makes an enum whose variants have names. With it come `ALL` and `NAMES` (in the order written
/// here), `name()`, `Display`, `FromStr`, the same name in JSON, and that a key can have it as its value.
macro_rules! names {
    ($(
        $(#[$about:meta])*
        $Enum:ident { $( $(#[$doc:meta])* $Variant:ident = $name:expr, )+ }
    )+) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $Enum { $( $(#[$doc])* $Variant, )+ }

        impl $Enum {
            /// All there are.
            pub const ALL: &'static [Self] = &[$( Self::$Variant ),+];
            /// Their names, in the same order.
            pub const NAMES: &'static [&'static str] = &[$( $name ),+];

            /// The name by which people choose it, and by which results tell of it.
            pub const fn name(self) -> &'static str {
                Self::NAMES[self as usize]
            }
        }

        impl fmt::Display for $Enum {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $Enum {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                let found = Self::ALL.iter().find(|one| one.name() == text);
                found.copied().ok_or_else(|| UnknownName::new(text, Self::NAMES))
            }
        }

        impl Value for $Enum {
            fn read(text: &str, _: &Accepts) -> Option<Self> {
                text.parse().ok()
            }

            fn text(&self) -> Option<String> {
                Some(self.to_string())
            }
        }

        impl Serialize for $Enum {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.name())
            }
        }

        impl<'de> Deserialize<'de> for $Enum {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <Cow<'de, str>>::deserialize(from)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )+};
}

names! {
    /// The lock under test. Those that sleep are policies of `pvlock`, and called what it calls them; behind them
    /// stand [variants](Self::VARIANTS) of one.
    ///
    /// ```
    /// use experiment::Policy;
    ///
    /// assert_eq!("spin-ticket".parse(), Ok(Policy::SpinTicket));
    /// assert_eq!(Policy::SpinTicket.name(), "spin-ticket");
    /// let error = "kick-thrice".parse::<Policy>().unwrap_err().to_string();
    /// assert!(error.starts_with("kick-thrice: accepted values are kick-twice, "));
    /// ```
    Policy {
        /// The PV queue lock that kicks a sleeper when it becomes head, and again at unlock.
        KickTwice = pvlock::KickTwice::NAME,
        /// The PV queue lock that kicks a sleeper once, at unlock.
        KickAtUnlock = pvlock::KickAtUnlock::NAME,
        /// As before, and running newcomers pass the queue, for a time that is bounded.
        Adaptive = pvlock::Adaptive::NAME,
        /// The queue lock without its PV side: waiters spin, unlock is a store.
        Native = "native",
        /// One word, whoever comes first.
        TestAndSet = "test-and-set",
        /// `spin::mutex::SpinMutex`: test-and-test-and-set.
        Spin = "spin",
        /// `spin::mutex::TicketMutex`: strict order, everyone spins.
        SpinTicket = "spin-ticket",
        /// [`Adaptive`](Self::Adaptive) whose newcomers look once and queue.
        AdaptiveNoBudget = "adaptive-no-budget",
        /// With a shorter spin budget.
        AdaptiveBudget10us = "adaptive-budget-10us",
        /// With a longer spin budget.
        AdaptiveBudget200us = "adaptive-budget-200us",
        /// With eight shorter stretches of theft in the horizon.
        AdaptiveStretches8 = "adaptive-stretches-8",
        /// With two longer stretches of theft in the horizon.
        AdaptiveStretches2 = "adaptive-stretches-2",
        /// With a shorter horizon.
        AdaptiveHorizon2ms = "adaptive-horizon-2ms",
        /// With a shorter horizon.
        AdaptiveHorizon4ms = "adaptive-horizon-4ms",
        /// With a longer horizon.
        AdaptiveHorizon12ms = "adaptive-horizon-12ms",
        /// Nobody is ever late, and no stretch ever ends: thefts are not bounded.
        AdaptiveNoHorizon = "adaptive-no-horizon",
        /// An unlock that wakes a late head does not reserve the lock for it.
        AdaptiveNoReservation = "adaptive-no-reservation",
        /// A vCPU that has stolen for long does not queue.
        AdaptiveNoThiefBound = "adaptive-no-thief-bound",
    }

    /// What the lock is used for.
    Workload {
        /// All vCPUs take turns on one lock.
        Handoff = "handoff",
        /// The vCPUs share several locks, one of them picked at random each time.
        Spread = "spread",
        /// Everything a lock may meet, at random, to find faults in it.
        Torture = "torture",
        /// The lock is the lock of an allocator, and every vCPU allocates and frees.
        Alloc = "alloc",
        /// No lock at all: every vCPU computes. A neighbour for those who are measured.
        Hog = "hog",
        /// Nothing at all: every vCPU sleeps. A neighbour that is there and wants no time.
        Sleeper = "sleeper",
    }

    /// A fault made on purpose, to see that it is noticed: half way, by the last vCPU that takes part.
    Fault {
        /// None: an ordinary run.
        Off = "off",
        /// It never releases its lock: the watchdog must name it.
        Hang = "hang",
        /// One acquisition goes past the lock's counter, as if exclusion had failed: the check must see it.
        Lose = "lose",
        /// It panics inside the critical section.
        Panic = "panic",
        /// It reads through a null pointer there.
        Null = "null",
        /// It uses up its stack there.
        Overflow = "overflow",
    }

    /// Whether the guest marks waits, kicks and acquisitions in the hypervisor's trace.
    Trace {
        /// It does not.
        Off = "off",
        /// It does.
        Markers = "markers",
    }

    /// When the vCPUs cross the start line.
    Start {
        /// When all have come to it.
        Now = "now",
        /// When the host says go, too.
        Wait = "wait",
    }

    /// Who answers the toolstack while the workload runs.
    Control {
        /// Nobody.
        Off = "off",
        /// vCPU 0 does what the toolstack asks of the domain, and takes no part.
        Watch = "watch",
    }

    /// How Xen and a domain share the bits of event channels.
    EventAbi {
        /// Bitmaps in the shared page, which every Xen offers.
        TwoLevel = "2-level",
        /// One word a port and sixteen queues a vCPU.
        Fifo = "fifo",
    }

    /// Which [`EventAbi`] the guest shall use.
    Events {
        /// FIFO where Xen offers it, else 2-level.
        Auto = "auto",
        /// This one, which every Xen offers.
        TwoLevel = EventAbi::TwoLevel.name(),
        /// This one, or an error.
        Fifo = EventAbi::Fifo.name(),
    }

    /// How a domain is booted.
    DomainType {
        /// 64-bit paravirtual: no hardware virtualisation at all.
        Pv = "pv",
        /// Hardware-virtualised, booted by the PVH protocol.
        Pvh = "pvh",
    }
}

/// How many locks stand before the variants.
const LOCKS: usize = Policy::SpinTicket as usize + 1;

impl Policy {
    /// The locks, each another way to lock: what an experiment compares unless a person says
    /// otherwise.
    pub const LOCKS: &'static [Policy] = Self::ALL.split_at(LOCKS).0;

    /// [`Adaptive`](Self::Adaptive) with another budget, stretch or horizon, or without one of its
    /// mechanisms: what is each of them worth? For no other use.
    pub const VARIANTS: &'static [Policy] = Self::ALL.split_at(LOCKS).1;

    /// What a comparison is of, unless a person says otherwise: the lock before the patch, and after it.
    pub const COMPARED: [Policy; 2] = [Policy::KickTwice, Policy::KickAtUnlock];
}

impl Workload {
    /// Whether it is of one lock whatever the vCPUs.
    pub const fn has_one_lock(self) -> bool {
        matches!(self, Workload::Handoff | Workload::Alloc) || self.has_no_lock()
    }

    /// Whether no lock is taken in it, and no acquisition ends it.
    pub const fn has_no_lock(self) -> bool {
        matches!(self, Workload::Hog | Workload::Sleeper)
    }
}

/// A record that does not say it was made by a domain of the first kind there was.
impl Default for DomainType {
    fn default() -> Self {
        DomainType::Pv
    }
}

/// As above: records from before there was a second ABI do not name it.
impl Default for EventAbi {
    fn default() -> Self {
        EventAbi::TwoLevel
    }
}

/// A name that is none of those there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownName {
    given: String,
    accepted: &'static [&'static str],
}

impl UnknownName {
    fn new(given: &str, accepted: &'static [&'static str]) -> Self {
        Self { given: given.to_string(), accepted }
    }
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: accepted values are {}", Shown(&self.given), List(self.accepted))
    }
}

impl core::error::Error for UnknownName {}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! check {
        ($($Enum:ident),+) => {$(
            for one in $Enum::ALL {
                assert_eq!(one.name().parse(), Ok(*one));
                let json = serde_json::to_string(one).unwrap();
                assert_eq!(json, alloc::format!("\"{one}\""));
                assert_eq!(serde_json::from_str::<$Enum>(&json).unwrap(), *one);
            }
            let error = "?".parse::<$Enum>().unwrap_err().to_string();
            assert!($Enum::NAMES.iter().all(|name| error.contains(name)), "{error}");
            assert!(serde_json::from_str::<$Enum>("\"?\"").is_err());
        )+};
    }

    #[test]
    fn every_name_is_read_as_the_variant_that_prints_it() {
        check!(Policy, Workload, Fault, Trace, Start, Control, EventAbi, Events, DomainType);
    }
}
