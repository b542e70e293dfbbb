//! The experiment: one run of one workload on `pvlock`, on the kernel that `xen-guest` makes.
//!
//! A guest that is nothing but the experiment:
//!
//! ```no_run
//! use xen_guest::kernel::machine::Machine;
//!
//! fn main(machine: &'static Machine) -> ! {
//!     lab_guest::programme::run(machine)
//! }
//! # let _ = main;
//! ```
//!
//! It uses `xen-guest` through its public face only. The kernel on KVM takes its workload, its
//! check and its report, so that both hypervisors have the same experiment. Its floors, of which
//! each stands on those below it:
//!
//! | module | what lives there |
//! |---|---|
//! | [`programme`] | one run, from the command line to the report |
//! | [`workload`] | what the vCPUs do with the locks: work of a known length, at random |
//! | [`locks`] | the locks under test, and their marks in the hypervisor's trace |
#![no_std]

extern crate alloc;
#[cfg(test)]
#[macro_use]
extern crate std;

pub mod locks;
pub mod programme;
pub mod workload;
