//! The keys of the guest's command line: one table.
//!
//! Owns each key, the type of its value, its default and its bounds, and makes of them what a run
//! is asked for ([`Params`]). How a whole line is read, and what may not stand together, is
//! [`params`](crate::params)'s.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::accepts::Accepts::{self, Integer, OneOf};
use crate::accepts::Value;
use crate::names::{Control, Events, Fault, Policy, Start, Trace, Workload};
use crate::text::{List, Shown};
use crate::time::{Amount, Time};

/// The most vCPUs that can take part in a run.
pub const MAX_VCPUS: u32 = 128;

/// Makes [`Key`], [`Given`] and [`Params`] of the table below. A line of it:
///
/// ```text
/// /// What it means.
/// key: Type = default, what it accepts;
/// ```
///
/// A default may use the keys above it, and the two names in the head: what was `given` (a key
/// without a value is `None` there), and how many vCPUs the `domain` has.
macro_rules! keys {
    (
        |$given:ident, $domain:ident|
        $( $(#[doc = $doc:literal])+ $key:ident: $Type:ty = $default:expr, $accepts:expr; )+
    ) => {
        /// A key of the command line; each variant is spelled as the key is.
        #[allow(non_camel_case_types, reason = "so that each key is written down once")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Key { $( $(#[doc = $doc])+ $key, )+ }

        impl Key {
            /// All there are.
            pub const ALL: &'static [Key] = &[$( Key::$key ),+];
            /// Their names, in the same order.
            pub const NAMES: &'static [&'static str] = &[$( stringify!($key) ),+];

            /// What values it takes.
            pub const fn accepts(self) -> Accepts {
                match self { $( Key::$key => $accepts, )+ }
            }

            /// What it means, in Markdown.
            pub const fn about(self) -> &'static str {
                match self { $( Key::$key => concat!($($doc),+).trim_ascii(), )+ }
            }

            /// Whether `text` is one of its values.
            pub fn takes(self, text: &str) -> bool {
                match self {
                    $( Key::$key => <$Type as Value>::read(text, &self.accepts()).is_some(), )+
                }
            }
        }

        /// What a command line gives: no defaults, no rules.
        #[derive(Default)]
        pub(crate) struct Given { $( $key: Option<$Type>, )+ }

        impl Given {
            /// Takes the value of `key`, which [takes](Key::takes) it; whether it has one already.
            pub(crate) fn is_set_by(&mut self, key: Key, text: &str) -> bool {
                match key {
                    $( Key::$key => {
                        let value = <$Type as Value>::read(text, &key.accepts());
                        core::mem::replace(&mut self.$key, value).is_some()
                    } )+
                }
            }

            /// With the defaults for a domain of so many vCPUs.
            pub(crate) fn or_default(self, $domain: u32) -> Params {
                let $given = &self;
                $( let $key: $Type = $given.$key.unwrap_or_else(|| $default); )+
                Params { $( $key ),+ }
            }
        }

        /// What a run is asked for, checked, defaults filled in.
        ///
        /// ```
        /// use experiment::{Amount, Limit, Params, Time};
        ///
        /// let params = Params::parse("policy=kick-twice critical=20us acquisitions=1000", 4).unwrap();
        /// assert_eq!((params.vcpus, params.critical), (4, Amount::Time(Time::us(20))));
        /// assert_eq!(params.limit(), Limit::Acquisitions(1000));
        ///
        /// let error = Params::parse("policy=kick-thrice", 4).unwrap_err();
        /// assert!(error.to_string().starts_with("policy=kick-thrice: accepted values are kick-twice, "));
        /// ```
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Params { $( $(#[doc = $doc])+ pub $key: $Type, )+ }

        /// A command line that says the same, every key spelled out.
        impl fmt::Display for Params {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let words = [$( (Key::$key, self.$key.text()) ),+];
                let given = words.iter().filter_map(|(key, text)| Some((key, text.as_ref()?)));
                for (place, (key, text)) in given.enumerate() {
                    write!(f, "{}{key}={text}", if place == 0 { "" } else { " " })?;
                }
                Ok(())
            }
        }
    };
}

keys! {
    |given, domain|

    /// What the lock is used for.
    workload: Workload = Workload::Handoff, OneOf(Workload::NAMES);
    /// The lock under test.
    policy: Policy = Policy::KickAtUnlock, OneOf(Policy::NAMES);
    /// vCPUs that take part; by default all that the domain has.
    vcpus: u32 = domain.clamp(1, MAX_VCPUS), Integer(1, MAX_VCPUS as u64);
    /// How many locks they share; by default half as many as vCPUs. `handoff` and `alloc` have one.
    locks: u32 = if workload.has_one_lock() { 1 } else { (vcpus / 2).max(1) }, Integer(1, 4096);
    /// Work done while holding the lock.
    critical: Amount = Amount::Time(Time::us(2)), Accepts::Amount(Time::s(10));
    /// Mean work between two acquisitions.
    outside: Amount = Amount::Time(Time::us(4)), Accepts::Amount(Time::s(10));
    /// How far the work outside varies around its mean, in percent.
    jitter: u32 = 50, Integer(0, 100);
    /// How long a waiter spins before it blocks.
    spin: Amount = Amount::Time(Time::us(50)), Accepts::Amount(Time::s(1));
    /// Acquisitions of each vCPU.
    acquisitions: Option<u64> = given.duration.is_none().then_some(100_000), Integer(1, 1_000_000_000_000);
    /// How long the run lasts by each vCPU's own clock, instead of `acquisitions`.
    duration: Option<Time> = None, Accepts::Time(Time::ms(1), Time::s(3600));
    /// A vCPU that makes no progress for so long is stuck.
    deadline: Time = Time::s(30), Accepts::Time(Time::ms(100), Time::s(3600));
    /// Seed of the pseudo-random numbers.
    seed: u64 = 1, Integer(0, u64::MAX);
    /// Whether to write markers into the hypervisor's trace.
    trace: Trace = Trace::Off, OneOf(Trace::NAMES);
    /// Whether to wait at the start line until the host says go.
    start: Start = Start::Now, OneOf(Start::NAMES);
    /// A fault made on purpose by the last vCPU, half way.
    fault: Fault = Fault::Off, OneOf(Fault::NAMES);
    /// `torture` and `handoff` only: each vCPU's timer interrupts it so long after an acquisition,
    /// or after the handler before, at most, and the handler takes locks too; without a length,
    /// never.
    timer: Time = Time::ZERO, Accepts::Time(Time::ZERO, Time::s(1));
    /// `torture` only: how long a vCPU takes at most to wake up and go on. With it, each wait for
    /// one of the locks is held against the bound that its policy states; without a length, none
    /// is.
    wakeup: Time = Time::ZERO, Accepts::Time(Time::ZERO, Time::s(1));
    /// `watch`: vCPU 0 does what the toolstack asks of the domain, and takes no part.
    control: Control = Control::Off, OneOf(Control::NAMES);
    /// The event channel ABI; `auto` is FIFO where Xen offers it. A kick costs more with FIFO, and the
    /// guest needs none of what it offers.
    events: Events = Events::TwoLevel, OneOf(Events::NAMES);
}

impl Key {
    /// As it stands on the command line, before the `=`.
    pub const fn name(self) -> &'static str {
        Key::NAMES[self as usize]
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Key {
    type Err = UnknownKey;

    fn from_str(text: &str) -> Result<Key, UnknownKey> {
        let found = Key::ALL.iter().find(|key| key.name() == text);
        found.copied().ok_or_else(|| UnknownKey(text.into()))
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// A key that is none of those there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKey(String);

impl UnknownKey {
    /// What was given for a key.
    pub fn given(&self) -> impl fmt::Display {
        Shown(&self.0)
    }
}

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: no such parameter; accepted are {}", Shown(&self.0), List(Key::NAMES))
    }
}

impl core::error::Error for UnknownKey {}
