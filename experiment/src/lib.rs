//! The words of an experiment, each written down once.
//!
//! What a person may ask of the guest, and what the guest answers: the names of locks and workloads,
//! the keys of the command line, their units, defaults and bounds, the messages where one does not
//! fit, and the record that comes back. `pvlab` checks with it before a domain is made, the guest
//! reads its command line with it, and the simulator takes the names of its locks from it. It does
//! no I/O, runs nothing, and decides no verdict.
//!
//! ```
//! use experiment::{Params, Policy};
//!
//! let params = Params::parse("policy=adaptive critical=20us", 4).unwrap();
//! assert_eq!((params.policy, params.vcpus), (Policy::Adaptive, 4));
//!
//! let error = Params::parse("policy=best", 4).unwrap_err();
//! assert!(error.to_string().starts_with("policy=best: accepted values are kick-twice, "));
//! ```
//!
//! From the ground up, each floor knows only those below it:
//!
//! | module | what is in it |
//! |---|---|
//! | [`time`] | nanoseconds with a unit |
//! | [`names`] | what can be chosen by name: locks, workloads, faults, ... |
//! | [`lock`] | the locks that can stand beside each other: the guest's, and Linux' |
//! | [`keys`] | **the table**: each key, its default and its bounds |
//! | [`params`] | a whole command line, read and checked |
//! | [`line`](mod@line) | a command line in the making: what `pvlab` sets in it |
//! | [`record`] | what comes back, and how it travels |
//!
//! A new lock, workload or other choice is one line in [`names`]; a new key is one line in [`keys`].
#![no_std]

extern crate alloc;

mod accepts;
pub mod keys;
pub mod line;
pub mod lock;
pub mod names;
pub mod params;
pub mod record;
mod text;
pub mod time;

pub use accepts::Accepts;
pub use keys::{Key, MAX_VCPUS, Params};
pub use line::{Line, Setting};
pub use lock::{Budget, Linux, Lock};
pub use names::{Control, DomainType, EventAbi, Events, Fault, Policy, Start, Trace, Workload};
pub use params::{LONGEST_LINE, Limit, ParamError};
pub use time::{Amount, Time};
