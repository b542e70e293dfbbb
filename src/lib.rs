//! The parts of the command line tool `pvlab`, which runs paravirtual spinlock experiments on real
//! Xen and reports every kick the hypervisor saw.
//!
//! Data flows one way through these modules:
//!
//! ```text
//! scenario --> plan --> [lab: make a Xen host, where this machine is none] --> host --> report
//! ```
//!
//! - [`bench`](mod@bench): every lock in every topology: many cells, one report
//! - [`scenario`]: what to run, read from `xl-configs/`
//! - [`plan`]: a scenario made ready for a Xen host, the one document that crosses into dom0
//! - [`lab`]: makes a Xen host out of a plain Linux machine
//! - [`linux`]: Linux' own spin lock as one of the locks that run
//! - [`host`]: drives a Xen host from its dom0: `xl`, `xentrace`, xenstore
//! - [`report`]: results as a table and as JSON
//! - [`run`]: one run from request to results
//! - `speeds`: whether the domains of a run agree how fast their host is
//! - [`storm`]: all that a toolstack does to a domain, in random order, under full lock load
//! - [`doctor`]: what this machine is to pvlab, and what it lacks
//! - [`image`]: the guest image inside this program
//! - [`symbols`]: names for the addresses in that image
//! - [`interrupt`]: Ctrl-C, told to whoever waits
//! - `leash`: child processes that cannot outlive this one
//! - [`output`]: standard output, closed and full ones included
//! - [`progress`]: what a person sees meanwhile, on standard error
//!
//! This library is the program's inside, split off for its tests; its interface is not stable.

pub mod bench;
pub mod doctor;
pub mod host;
pub mod image;
pub mod interrupt;
pub mod lab;
mod leash;
pub mod linux;
pub mod output;
pub mod plan;
pub mod progress;
pub mod report;
pub mod run;
pub mod scenario;
mod speeds;
pub mod storm;
pub mod symbols;
