//! A deterministic simulator of paravirtual spinlocks: the real lock, thousands of vCPUs, virtual time.
//!
//! Each simulated vCPU is a coroutine with a stack of its own, in which `pvlock`'s own code runs, on
//! `evtchn`'s own kicker. Whenever that code asks the platform for something, or spins, time
//! passes, and the simulator may take the vCPU off its pCPU. There is one OS thread, no clock but the
//! simulated one, and one seed: the same [`Config`] gives the same [`Report`], to the last
//! digit, and a [`Failure`] names the command that shows it again.
//!
//! ```
//! use pvlock_sim::{Config, Policy, simulate};
//!
//! let config = Config { vcpus: 8, pcpus: 2, acquisitions: 20, ..Config::default() };
//! let report = simulate(&config, Policy::KickAtUnlock)?;
//! assert_eq!(report.acquisitions, 8 * 20);
//! # Ok::<(), pvlock_sim::Failure>(())
//! ```
//!
//! Inside: `config` says what to simulate, `dist` draws lengths of time, `arena` holds the locks at
//! fixed addresses, `tally` counts, `guest` is what the lock finds around itself, `host` decides who runs, `run`
//! puts them together, `report` shows what came of it.

mod arena;
mod config;
mod dist;
mod guest;
mod host;
mod report;
mod run;
mod tally;

pub use config::{Config, Fault, MAX_VCPUS, Policy, WakeOrder};
pub use dist::{Dist, Measured};
pub use experiment::Time;
pub use report::{Blocked, Failure, Report, Wait, table};
pub use run::{simulate, simulate_with};
