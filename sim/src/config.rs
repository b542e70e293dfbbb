//! What to simulate.
//!
//! Owns the parameters, their defaults and their spelling on the command line, in both directions:
//! a configuration prints the command that repeats it.

use core::fmt;
use core::str::FromStr;

use clap::builder::PossibleValue;
use clap::{Args, CommandFactory, FromArgMatches, Parser, ValueEnum};
use experiment::{Policy as Word, Time};

use crate::arena;
use crate::dist::Dist;

/// The most vCPUs that a lock word can name.
pub const MAX_VCPUS: usize = 16_383;

/// Handlers that may be under way on a vCPU at once.
pub(crate) const LEVELS: usize = 2;

/// As many locks as there is room for, with those that handlers take.
const MAX_LOCKS: usize = arena::SIZE / 64 / (1 + LEVELS);

/// The name of [`Policy::AsPosted`].
pub(crate) const AS_POSTED: &str = "as-posted";

/// One simulation: a machine, a guest, what it does, and a seed.
///
/// ```
/// use pvlock_sim::{Config, Policy, simulate};
///
/// let config = Config { vcpus: 8, pcpus: 2, acquisitions: 20, ..Config::default() };
/// let report = simulate(&config, Policy::KickAtUnlock)?;
/// assert_eq!(report.acquisitions, 8 * 20);
/// assert_eq!(simulate(&config, Policy::KickAtUnlock)?, report);
/// # Ok::<(), pvlock_sim::Failure>(())
/// ```
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Simulation")]
pub struct Config {
    /// Where all randomness comes from
    #[arg(long, default_value_t = experiment::Params::default().seed, value_name = "N")]
    pub seed: u64,
    /// vCPUs of the guest, 16,383 at most
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub vcpus: usize,
    /// pCPUs they share
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub pcpus: usize,
    /// Locks; every acquisition picks one, each as likely as the others
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub locks: usize,
    /// Acquisitions of each vCPU
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub acquisitions: u64,
    /// Begin no acquisition after so much time, whatever --acquisitions says (0ns = do not look)
    #[arg(long, default_value_t = Time(0), value_name = "TIME")]
    pub duration: Time,
    /// Work while a lock is held
    #[arg(long, default_value_t = Dist::Exponential(20_000), value_name = "DIST")]
    pub critical: Dist,
    /// Work between two acquisitions
    #[arg(long, default_value_t = Dist::Exponential(50_000), value_name = "DIST")]
    pub outside: Dist,
    /// Time off the pCPU between two acquisitions
    #[arg(long, default_value_t = Dist::Fixed(0), value_name = "DIST")]
    pub idle: Dist,
    /// Time slice of a vCPU, when others are waiting for a pCPU
    #[arg(long, default_value_t = Dist::Uniform(1_000_000, 10_000_000), value_name = "DIST")]
    pub slice: Dist,
    /// From a kick to the moment its vCPU can run
    #[arg(long, default_value_t = Dist::Uniform(5_000, 25_000), value_name = "DIST")]
    pub wake: Dist,
    /// Where a vCPU that woke up stands
    #[arg(long, value_enum, default_value_t = WakeOrder::Preempt, value_name = "ORDER")]
    pub wake_order: WakeOrder,
    /// How long a vCPU runs before one that woke up may preempt it
    #[arg(long, default_value_t = Time(1_000_000), value_name = "TIME")]
    pub ratelimit: Time,
    /// Running time between two moments in which something else takes the pCPU away
    #[arg(long, default_value_t = Dist::Never, value_name = "DIST")]
    pub preempt_every: Dist,
    /// Takes the pCPU away at one step of the lock in so many (0 = never)
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub preempt_one_in: u64,
    /// How long something else keeps the pCPU
    #[arg(long, default_value_t = Dist::Exponential(1_000_000), value_name = "DIST")]
    pub preempt_for: Dist,
    /// Time between two upcalls of a vCPU, whose handler takes a lock of its own kind; a handler may
    /// be interrupted once more. They end every other sleep at most
    #[arg(long, default_value_t = Dist::Never, value_name = "DIST")]
    pub interrupt_every: Dist,
    /// What a waiter spins before it sleeps, in policies that count turns
    #[arg(long, default_value_t = Time(10_000), value_name = "TIME")]
    pub spin: Time,
    /// One turn of a spin loop
    #[arg(long, default_value_t = Time(100), value_name = "TIME")]
    pub turn: Time,
    /// One step of the slow path, from a call of the platform to the next
    #[arg(long, default_value_t = Time(5), value_name = "TIME")]
    pub step: Time,
    /// A hypercall
    #[arg(long, default_value_t = Time(500), value_name = "TIME")]
    pub hypercall: Time,
    /// Time without one acquisition that counts as a failure
    #[arg(long, default_value_t = Time(10_000_000_000), value_name = "TIME")]
    pub watchdog: Time,
    /// A defect of the platform, to see that it is found: lose-kick=N (one kick in N gets lost),
    /// no-latch (a kick that meets no sleeper is forgotten) or nested-clears (the wait of an
    /// interrupt handler takes the kick of the wait it interrupted)
    #[arg(long, default_value_t = Fault::None, value_name = "FAULT")]
    pub fault: Fault,
}

/// The configuration alone, as a command.
#[derive(Parser)]
struct Alone {
    #[command(flatten)]
    config: Config,
}

impl Default for Config {
    fn default() -> Self {
        Alone::parse_from(["pvlock-sim"]).config
    }
}

/// Each field's option, spelled as clap spells it, and its value.
macro_rules! options {
    ($($field:ident),+) => {
        [$((stringify!($field).replace('_', "-"), $field as &dyn fmt::Display)),+]
    };
}

impl Config {
    /// The command that runs this configuration with `policy` again. Parameters with their default
    /// values are left out.
    pub fn command(&self, policy: Policy) -> String {
        // A debug build looks at more (two entries for one lock), so it may see a defect earlier.
        let release = if cfg!(debug_assertions) { "" } else { "--release " };
        format!("cargo run {release}-p pvlock-sim -- --policy {policy} {self}")
    }

    /// Options and values that differ from the defaults.
    fn options(&self) -> Vec<(String, String)> {
        let Self {
            seed,
            vcpus,
            pcpus,
            locks,
            acquisitions,
            duration,
            critical,
            outside,
            idle,
            slice,
            wake,
            wake_order,
            ratelimit,
            preempt_every,
            preempt_one_in,
            preempt_for,
            interrupt_every,
            spin,
            turn,
            step,
            hypercall,
            watchdog,
            fault,
        } = self;
        let all = options![
            seed,
            vcpus,
            pcpus,
            locks,
            acquisitions,
            duration,
            critical,
            outside,
            idle,
            slice,
            wake,
            wake_order,
            ratelimit,
            preempt_every,
            preempt_one_in,
            preempt_for,
            interrupt_every,
            spin,
            turn,
            step,
            hypercall,
            watchdog,
            fault
        ];
        let command = Alone::command();
        let default = |option: &str| {
            let mut arguments = command.get_arguments();
            let argument = arguments.find(|a| a.get_long() == Some(option)).expect("an option");
            argument.get_default_values()[0].to_string_lossy().into_owned()
        };
        let values = all.into_iter().map(|(option, value)| (option, value.to_string()));
        values.filter(|(option, value)| option == "seed" || *value != default(option)).collect()
    }

    /// The configuration and the policy of a printed command.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn from_command(command: &str) -> Result<(Self, Policy), String> {
        #[derive(Parser)]
        struct One {
            #[arg(long, value_enum)]
            policy: Policy,
            #[command(flatten)]
            config: Config,
        }
        let (_, options) = command.split_once(" -- ").ok_or("a command has a ` -- `")?;
        let words = std::iter::once("pvlock-sim").chain(options.split_whitespace());
        let matches = One::command().try_get_matches_from(words).map_err(|e| e.to_string())?;
        let one = One::from_arg_matches(&matches).map_err(|e| e.to_string())?;
        Ok((one.config, one.policy))
    }

    /// Whether there is such a machine.
    ///
    /// # Errors
    ///
    /// Which parameter cannot be, and what can.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: usize, most: usize| match value {
            0 => Err(format!("--{name} 0: at least 1 is needed")),
            n if n > most => Err(format!("--{name} {n}: at most {most} are possible")),
            _ => Ok(()),
        };
        within("vcpus", self.vcpus, MAX_VCPUS)?;
        within("pcpus", self.pcpus, MAX_VCPUS)?;
        within("locks", self.locks, MAX_LOCKS)?;
        if self.turn.0 == 0 {
            return Err("--turn 0ns: a spin loop would never end".into());
        }
        for (name, dist) in [
            ("critical", self.critical),
            ("outside", self.outside),
            ("idle", self.idle),
            ("wake", self.wake),
            ("preempt-for", self.preempt_for),
        ] {
            if dist == Dist::Never {
                return Err(format!("--{name} never: the run would not end"));
            }
        }
        if matches!(
            self.interrupt_every,
            Dist::Fixed(0) | Dist::Exponential(0) | Dist::Uniform(_, 0)
        ) {
            return Err("--interrupt-every 0ns: nothing else would ever run".into());
        }
        if matches!(self.slice, Dist::Fixed(0) | Dist::Exponential(0) | Dist::Uniform(_, 0)) {
            return Err(format!("--slice {}: nobody would ever run", self.slice));
        }
        Ok(())
    }
}

impl fmt::Display for Config {
    /// The options that differ from the defaults, and the seed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = self.options().into_iter();
        let words = options.map(|(option, value)| format!("--{option} {value}"));
        f.write_str(&words.collect::<Vec<_>>().join(" "))
    }
}

/// Which lock to be: a policy of the PV lock, or a mode in which nobody sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The lock before the patch
    KickTwice,
    /// The patch, with its double entry mended
    KickAtUnlock,
    /// A running vCPU passes those that sleep, for a bounded time
    Adaptive,
    /// A queue of spinners
    Native,
    /// Whoever comes first
    TestAndSet,
    /// The patch as posted in 2015, which enters a lock twice
    AsPosted,
}

impl Policy {
    /// All that are expected to work.
    pub const SOUND: [Self; 5] =
        [Self::KickTwice, Self::KickAtUnlock, Self::Adaptive, Self::Native, Self::TestAndSet];

    /// The name, as in every experiment, and what a person is told beside it.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::KickTwice => (Word::KickTwice.name(), "The lock before the patch"),
            Self::KickAtUnlock => {
                (Word::KickAtUnlock.name(), "The patch, with its double entry mended")
            }
            Self::Adaptive => (
                Word::Adaptive.name(),
                "A running vCPU passes those that sleep, for a bounded time",
            ),
            Self::Native => (Word::Native.name(), "A queue of spinners"),
            Self::TestAndSet => (Word::TestAndSet.name(), "Whoever comes first"),
            Self::AsPosted => (AS_POSTED, "The patch as posted in 2015, which enters a lock twice"),
        }
    }
}

impl ValueEnum for Policy {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::KickTwice,
            Self::KickAtUnlock,
            Self::Adaptive,
            Self::Native,
            Self::TestAndSet,
            Self::AsPosted,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = self.words();
        Some(PossibleValue::new(name).help(help))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words().0)
    }
}

/// Where a vCPU that woke up stands among those that could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WakeOrder {
    /// Preempts whoever has run longest, if it ran for --ratelimit
    Preempt,
    /// First in the run queue
    Front,
    /// Last in the run queue
    Back,
}

impl fmt::Display for WakeOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().expect("none is skipped").get_name())
    }
}

/// A defect of the simulated platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None.
    None,
    /// One kick in so many is lost, at random.
    LoseKick(u64),
    /// A kick that meets no sleeper is forgotten.
    NoLatch,
    /// The wait of an interrupt handler takes the kick of the wait it interrupted.
    NestedClears,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::LoseKick(n) => write!(f, "lose-kick={n}"),
            Self::NoLatch => f.write_str("no-latch"),
            Self::NestedClears => f.write_str("nested-clears"),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lose = |n: &str| n.parse().ok().filter(|n| *n > 0).map(Self::LoseKick);
        match text {
            "none" => Some(Self::None),
            "no-latch" => Some(Self::NoLatch),
            "nested-clears" => Some(Self::NestedClears),
            _ => text.strip_prefix("lose-kick=").and_then(lose),
        }
        .ok_or_else(|| {
            format!("`{text}` is none of: none, lose-kick=N with N > 0, no-latch, nested-clears")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_is_the_configuration() {
        let default = Config::default();
        let command = default.command(Policy::Adaptive);
        assert!(command.ends_with("-p pvlock-sim -- --policy adaptive --seed 1"), "{command}");
        let config = Config {
            seed: 77,
            vcpus: 2_000,
            critical: Dist::Uniform(1, 2_000),
            wake_order: WakeOrder::Back,
            duration: Time(3_000_000),
            fault: Fault::LoseKick(100),
            ..default
        };
        let command = config.command(Policy::AsPosted);
        assert_eq!(Config::from_command(&command), Ok((config, Policy::AsPosted)), "{command}");
    }

    #[test]
    fn what_cannot_be_simulated_is_named() {
        let default = Config::default;
        for (config, name) in [
            (Config { vcpus: 0, ..default() }, "--vcpus 0"),
            (Config { vcpus: 16_384, ..default() }, "--vcpus 16384"),
            (Config { pcpus: 0, ..default() }, "--pcpus 0"),
            (Config { locks: usize::MAX, ..default() }, "--locks"),
            (Config { turn: Time(0), ..default() }, "--turn"),
            (Config { critical: Dist::Never, ..default() }, "--critical never"),
            (Config { slice: Dist::Fixed(0), ..default() }, "--slice 0ns"),
            (Config { interrupt_every: Dist::Fixed(0), ..default() }, "--interrupt-every 0ns"),
        ] {
            assert!(config.check().unwrap_err().starts_with(name));
        }
        assert_eq!(default().check(), Ok(()));
        assert!("lose-kick=0".parse::<Fault>().is_err());
    }
}
