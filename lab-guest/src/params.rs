//! The kernel command line: what to run, as `key=value` words.
//!
//! Owns the keys, the values each accepts, the defaults, and the message for everything else. It
//! never acts on a parameter, and it never guesses: an unknown key or a value out of range is an
//! error that names the key and what it accepts, because a typing error must not become a result.

use alloc::string::{String, ToString};
use core::fmt;

use xen_guest::events::Wanted;

/// What the lock is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// All vCPUs take turns on one lock.
    Handoff,
    /// The vCPUs share several locks, one of them picked at random each time.
    Spread,
    /// Everything a lock may meet, at random, to find faults in it.
    Torture,
    /// The lock is the lock of an allocator, and every vCPU allocates and frees.
    Alloc,
}

/// The lock under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The PV queue lock that kicks a sleeper when it becomes head, and again at unlock.
    KickTwice,
    /// The PV queue lock that kicks a sleeper once, at unlock.
    KickAtUnlock,
    /// As before, and a newcomer may take a free lock past the queue while no head spins; a waiter
    /// sleeps early when its predecessor sleeps.
    Hybrid,
    /// Spin budgets in time and learned, sleep when the owner is preempted, thefts bounded.
    Adaptive,
    /// The queue lock without its PV side: waiters spin, unlock is a store.
    Native,
    /// One word, whoever comes first.
    TestAndSet,
    /// `spin::mutex::SpinMutex`: test-and-test-and-set.
    Spin,
    /// `spin::mutex::TicketMutex`: strict order, everyone spins.
    SpinTicket,
}

impl Workload {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        WORKLOADS[self as usize]
    }
}

/// The words for [`Wanted`].
fn events_name(wanted: Wanted) -> &'static str {
    EVENTS[wanted as usize]
}

impl Fault {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        FAULTS[self as usize]
    }
}

impl Policy {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        POLICIES[self as usize]
    }
}

// In the order of the enums' variants.
const WORKLOADS: &[&str] = &["handoff", "spread", "torture", "alloc"];
const ALL_WORKLOADS: [Workload; 4] =
    [Workload::Handoff, Workload::Spread, Workload::Torture, Workload::Alloc];
const FAULTS: &[&str] = &["off", "hang", "lose", "panic", "null", "overflow"];
const ALL_FAULTS: [Fault; 6] =
    [Fault::Off, Fault::Hang, Fault::Lose, Fault::Panic, Fault::Null, Fault::Overflow];
const EVENTS: &[&str] = &["auto", "2-level", "fifo"];
const ALL_EVENTS: [Wanted; 3] = [Wanted::Auto, Wanted::TwoLevel, Wanted::Fifo];
const POLICIES: &[&str] = &[
    "kick-twice",
    "kick-at-unlock",
    "hybrid",
    "adaptive",
    "native",
    "test-and-set",
    "spin",
    "spin-ticket",
];
const ALL_POLICIES: [Policy; 8] = [
    Policy::KickTwice,
    Policy::KickAtUnlock,
    Policy::Hybrid,
    Policy::Adaptive,
    Policy::Native,
    Policy::TestAndSet,
    Policy::Spin,
    Policy::SpinTicket,
];

/// A fault made on purpose, to see that it is noticed: half way, by the last vCPU that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None: an ordinary run.
    Off,
    /// It never releases its lock: the watchdog must name it.
    Hang,
    /// One acquisition goes past the lock's counter, as if exclusion had failed: the check must see it.
    Lose,
    /// It panics inside the critical section.
    Panic,
    /// It reads through a null pointer there.
    Null,
    /// It uses up its stack there.
    Overflow,
}

/// When a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// After so many acquisitions of each vCPU.
    Acquisitions(u64),
    /// After so many nanoseconds by each vCPU's own clock.
    Duration(u64),
}

/// All parameters of a run, checked, defaults filled in. Times in nanoseconds.
///
/// ```
/// use lab_guest::params::{Limit, Params};
///
/// let params = Params::parse("policy=kick-twice critical=20us acquisitions=1000", 4).unwrap();
/// assert_eq!((params.vcpus, params.critical_ns), (4, 20_000));
/// assert_eq!(params.limit, Limit::Acquisitions(1000));
///
/// let error = Params::parse("policy=kick-thrice", 4).unwrap_err();
/// assert!(error.to_string().starts_with("policy=kick-thrice: accepted values are kick-twice, "));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// `workload`.
    pub workload: Workload,
    /// `policy`.
    pub policy: Policy,
    /// `vcpus`: those that take part; by default all the domain has.
    pub vcpus: u32,
    /// `locks`: always 1 for [`Workload::Handoff`]; by default half the vCPUs.
    pub locks: u32,
    /// `critical`: work done while holding the lock.
    pub critical_ns: u64,
    /// `outside`: mean work between two acquisitions.
    pub outside_ns: u64,
    /// `jitter`: how far the work outside varies around its mean, in percent.
    pub jitter_percent: u32,
    /// `spin`: how long a waiter spins before it blocks.
    pub spin_ns: u64,
    /// `acquisitions` or `duration`.
    pub limit: Limit,
    /// `deadline`: a vCPU that makes no progress for this long is stuck.
    pub deadline_ns: u64,
    /// `seed` of the pseudo-random numbers.
    pub seed: u64,
    /// `trace=markers`: write markers into the hypervisor's trace.
    pub markers: bool,
    /// `start=wait`: wait until the host says go.
    pub wait_for_go: bool,
    /// `fault`: one made on purpose.
    pub fault: Fault,
    /// `timer`: how long after an acquisition the vCPU's timer interrupts it, at most; 0 = never.
    pub timer_ns: u64,
    /// `control=watch`: vCPU 0 does what the toolstack asks of the domain, and takes no part.
    pub watch_control: bool,
    /// `events`: the event channel ABI. By default the 2-level one: a kick costs more with the other, and
    /// this guest needs none of what it offers.
    pub events: Wanted,
}

const SECOND: u64 = 1_000_000_000;
const LONGEST_WORK: u64 = 10 * SECOND;
const HOUR: u64 = 3600 * SECOND;

/// What values a key takes.
enum Accepts {
    /// One of these words; its value is its place among them.
    OneOf(&'static [&'static str]),
    /// An integer within bounds.
    Integer(u64, u64),
    /// An integer with a unit, within bounds in nanoseconds.
    Time(u64, u64),
}

/// The keys; the discriminant is the place in [`KEYS`].
#[derive(Clone, Copy)]
enum Key {
    Workload,
    Policy,
    Vcpus,
    Locks,
    Critical,
    Outside,
    Jitter,
    Spin,
    Acquisitions,
    Duration,
    Deadline,
    Seed,
    Trace,
    Start,
    Fault,
    Timer,
    Control,
    Events,
}

const KEYS: [(&str, Accepts); 18] = [
    ("workload", Accepts::OneOf(WORKLOADS)),
    ("policy", Accepts::OneOf(POLICIES)),
    ("vcpus", Accepts::Integer(1, MAX_VCPUS)),
    ("locks", Accepts::Integer(1, 4096)),
    ("critical", Accepts::Time(0, LONGEST_WORK)),
    ("outside", Accepts::Time(0, LONGEST_WORK)),
    ("jitter", Accepts::Integer(0, 100)),
    ("spin", Accepts::Time(0, SECOND)),
    ("acquisitions", Accepts::Integer(1, 1_000_000_000_000)),
    ("duration", Accepts::Time(1_000_000, HOUR)),
    ("deadline", Accepts::Time(SECOND / 10, HOUR)),
    ("seed", Accepts::Integer(0, u64::MAX)),
    ("trace", Accepts::OneOf(&["off", "markers"])),
    ("start", Accepts::OneOf(&["now", "wait"])),
    ("fault", Accepts::OneOf(FAULTS)),
    ("timer", Accepts::Time(0, SECOND)),
    ("control", Accepts::OneOf(&["off", "watch"])),
    ("events", Accepts::OneOf(EVENTS)),
];

/// The most vCPUs a run can have.
const MAX_VCPUS: u64 = 128;

impl Params {
    /// Reads a command line for a domain of `domain_vcpus` vCPUs.
    ///
    /// # Errors
    ///
    /// The first word that cannot be used, with what would be accepted in its place.
    pub fn parse(cmdline: &str, domain_vcpus: u32) -> Result<Params, ParamError> {
        let mut given = [None; KEYS.len()];
        for word in cmdline.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let Some(key) = KEYS.iter().position(|(known, _)| *known == name) else {
                return Err(ParamError::Unknown(name.to_string()));
            };
            let Some(parsed) = KEYS[key].1.parse(value) else {
                return Err(ParamError::Value { key, value: value.to_string() });
            };
            if given[key].replace(parsed).is_some() {
                return Err(ParamError::Twice { key });
            }
        }
        let get = |key: Key| given[key as usize];
        let vcpus = get(Key::Vcpus).unwrap_or(u64::from(domain_vcpus).clamp(1, MAX_VCPUS)) as u32;
        if vcpus > domain_vcpus.max(1) {
            return Err(ParamError::TooManyVcpus { asked: vcpus, domain: domain_vcpus.max(1) });
        }
        let workload = ALL_WORKLOADS[get(Key::Workload).unwrap_or(0) as usize];
        let locks = match (workload, get(Key::Locks)) {
            (Workload::Handoff | Workload::Alloc, None | Some(1)) => 1,
            (Workload::Handoff | Workload::Alloc, Some(_)) => {
                let with = "workload=handoff or alloc, which have one lock";
                return Err(ParamError::Conflict("locks", with, "workload=spread or torture"));
            }
            (Workload::Spread | Workload::Torture, locks) => {
                locks.map_or((vcpus / 2).max(1), |locks| locks as u32)
            }
        };
        let limit = match (get(Key::Acquisitions), get(Key::Duration)) {
            (Some(_), Some(_)) => {
                return Err(ParamError::Conflict("duration", "acquisitions", "one of the two"));
            }
            (None, Some(ns)) => Limit::Duration(ns),
            // Each block takes the lock twice.
            (n, None) if workload == Workload::Alloc => {
                Limit::Acquisitions(n.unwrap_or(100_000).next_multiple_of(2))
            }
            (n, None) => Limit::Acquisitions(n.unwrap_or(100_000)),
        };
        let timer_ns = get(Key::Timer).unwrap_or(0);
        if timer_ns != 0 && workload != Workload::Torture {
            return Err(ParamError::Conflict(
                "timer",
                "this workload",
                "timer=0s, or workload=torture",
            ));
        }
        let watch_control = get(Key::Control) == Some(1);
        if watch_control && vcpus < 2 {
            return Err(ParamError::Conflict("control=watch", "one vCPU", "vcpus=2 and more"));
        }
        Ok(Params {
            workload,
            policy: ALL_POLICIES[get(Key::Policy).unwrap_or(Policy::KickAtUnlock as u64) as usize],
            vcpus,
            locks,
            critical_ns: get(Key::Critical).unwrap_or(2_000),
            outside_ns: get(Key::Outside).unwrap_or(4_000),
            jitter_percent: get(Key::Jitter).unwrap_or(50) as u32,
            spin_ns: get(Key::Spin).unwrap_or(50_000),
            limit,
            deadline_ns: get(Key::Deadline).unwrap_or(30 * SECOND),
            seed: get(Key::Seed).unwrap_or(1),
            markers: get(Key::Trace) == Some(1),
            wait_for_go: get(Key::Start) == Some(1),
            fault: ALL_FAULTS[get(Key::Fault).unwrap_or(0) as usize],
            timer_ns,
            watch_control,
            events: ALL_EVENTS[get(Key::Events).unwrap_or(Wanted::TwoLevel as u64) as usize],
        })
    }

    /// Whether upcalls interrupt the vCPUs at their work.
    pub fn interruptible(&self) -> bool {
        self.watch_control || self.timer_ns != 0
    }

    /// The form in which they stand in the results.
    pub fn record(&self) -> results::Parameters {
        let (acquisitions, duration_ns) = match self.limit {
            Limit::Acquisitions(n) => (n, 0),
            Limit::Duration(ns) => (0, ns),
        };
        results::Parameters {
            workload: self.workload.name().parse().expect("a name"),
            policy: self.policy.name().parse().expect("a name"),
            vcpus: self.vcpus,
            locks: self.locks,
            critical_ns: self.critical_ns,
            outside_ns: self.outside_ns,
            jitter_percent: self.jitter_percent,
            spin_ns: self.spin_ns,
            acquisitions,
            duration_ns,
            seed: self.seed,
            markers: self.markers,
        }
    }
}

/// A command line that says the same, every key spelled out.
impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "workload={} policy={} vcpus={} locks={} critical={}ns outside={}ns jitter={} spin={}ns",
            self.workload.name(),
            self.policy.name(),
            self.vcpus,
            self.locks,
            self.critical_ns,
            self.outside_ns,
            self.jitter_percent,
            self.spin_ns
        )?;
        match self.limit {
            Limit::Acquisitions(n) => write!(f, " acquisitions={n}")?,
            Limit::Duration(ns) => write!(f, " duration={ns}ns")?,
        }
        write!(f, " deadline={}ns seed={}", self.deadline_ns, self.seed)?;
        write!(f, " trace={}", if self.markers { "markers" } else { "off" })?;
        write!(f, " start={}", if self.wait_for_go { "wait" } else { "now" })?;
        write!(f, " fault={}", self.fault.name())?;
        write!(f, " timer={}ns", self.timer_ns)?;
        write!(f, " control={}", if self.watch_control { "watch" } else { "off" })?;
        write!(f, " events={}", events_name(self.events))
    }
}

impl Accepts {
    fn parse(&self, text: &str) -> Option<u64> {
        match *self {
            Accepts::OneOf(words) => {
                words.iter().position(|word| *word == text).map(|at| at as u64)
            }
            Accepts::Integer(min, max) => integer(text).filter(|n| (min..=max).contains(n)),
            Accepts::Time(min, max) => time(text).filter(|ns| (min..=max).contains(ns)),
        }
    }
}

impl fmt::Display for Accepts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Accepts::OneOf(words) => {
                f.write_str("accepted values are ")?;
                for (i, word) in words.iter().enumerate() {
                    write!(f, "{}{word}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Accepts::Integer(min, max) => {
                write!(f, "accepted values are integers from {min} to {max}")
            }
            Accepts::Time(min, max) => write!(
                f,
                "accepted values are an integer with unit ns, us, ms or s, from {} to {}",
                Time(*min),
                Time(*max)
            ),
        }
    }
}

/// A time in its largest whole unit.
struct Time(u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit =
            UNITS.iter().rev().find(|(_, ns)| self.0.is_multiple_of(*ns)).unwrap_or(&UNITS[0]);
        write!(f, "{}{}", self.0 / unit.1, unit.0)
    }
}

const UNITS: [(&str, u64); 4] = [("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", SECOND)];

fn integer(text: &str) -> Option<u64> {
    // `str::parse` would take a sign.
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn time(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, ns) = UNITS.iter().find(|(name, _)| *name == unit)?;
    integer(number)?.checked_mul(*ns)
}

/// A command line that cannot be used. Its message is one line that names the key and what it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParamError {
    /// There is no such key.
    Unknown(String),
    /// A key has a value it does not take.
    Value {
        /// Which of the keys.
        key: usize,
        /// What was given.
        value: String,
    },
    /// A key stands there more than once.
    Twice {
        /// Which of the keys.
        key: usize,
    },
    /// Two parameters cannot be together: the key, what it collides with, what is accepted.
    Conflict(&'static str, &'static str, &'static str),
    /// The domain has fewer vCPUs than `vcpus` asks for.
    TooManyVcpus {
        /// `vcpus`.
        asked: u32,
        /// vCPUs of the domain.
        domain: u32,
    },
}

impl fmt::Display for ParamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParamError::Unknown(name) => {
                write!(f, "{}: no such parameter; accepted are ", Shown(name))?;
                for (i, (known, _)) in KEYS.iter().enumerate() {
                    write!(f, "{}{known}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            ParamError::Value { key, value } => {
                write!(f, "{}={}: {}", KEYS[*key].0, Shown(value), KEYS[*key].1)
            }
            ParamError::Twice { key } => {
                write!(f, "{}: given more than once; {}", KEYS[*key].0, KEYS[*key].1)
            }
            ParamError::Conflict(key, with, accepted) => {
                write!(f, "{key}: not together with {with}; accepted: {accepted}")
            }
            ParamError::TooManyVcpus { asked, domain } => write!(
                f,
                "vcpus={asked}: accepted values are integers from 1 to {domain}, the vCPUs of this \
                 domain (vcpus= in its configuration)"
            ),
        }
    }
}

impl core::error::Error for ParamError {}

/// Foreign text on a console line: printable, and cut where it is long.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = self.0.floor_char_boundary(60);
        write!(f, "{}", self.0[..cut].escape_debug())?;
        if cut < self.0.len() { f.write_str("...") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
