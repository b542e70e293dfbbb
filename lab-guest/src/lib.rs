//! The experiment: one run of one workload on `pvlock`, on the kernel that `xen-guest` makes.
//!
//! It uses `xen-guest` through its public face only, and nothing of the project but `pvlab`'s image is made
//! of it: what a kernel takes is all in `xen-guest`.
#![no_std]

extern crate alloc;
#[cfg(test)]
#[macro_use]
extern crate std;

pub mod heap;
pub mod hooks;
pub mod locks;
pub mod markers;
pub mod programme;
pub mod report;
pub mod rng;
pub mod watchdog;
pub mod work;
pub mod workload;
