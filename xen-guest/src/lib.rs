//! A guest kernel that proves `pvlock` and `evtchn` on Xen, and the pieces to build your own.
#![no_std]

extern crate alloc;
#[cfg(test)]
#[macro_use]
extern crate std;

pub mod abi;
pub mod clock;
pub mod console;
pub mod errno;
pub mod hypercall;
pub mod locks;
pub mod machine;
pub mod markers;
pub mod params;
pub mod percpu;
pub mod rng;
pub mod shared_info;
pub mod smp;
pub mod watchdog;
pub mod work;
pub mod workload;
pub mod xenstore;
