//! The parts of the command line tool `pvlab`, which runs paravirtual spinlock experiments on real
//! Xen and reports every kick the hypervisor saw.
//!
//! Data flows one way through these modules:
//!
//! ```text
//! scenario --> [lab: make a Xen host, where this machine is none] --> host --> report
//! ```
//!
//! - [`scenario`]: what to run, read from `xl-configs/`
//! - [`lab`]: makes a Xen host out of a plain Linux machine
//! - [`interrupt`]: Ctrl-C, told to whoever waits
//! - [`progress`]: what a person sees meanwhile, on standard error
//!
//! This library is the program's inside, split off for its tests; its interface is not stable.

pub mod host;
pub mod interrupt;
pub mod lab;
pub mod plan;
pub mod progress;
pub mod scenario;
