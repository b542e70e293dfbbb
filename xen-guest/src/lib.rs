//! A guest kernel that proves `pvlock` and `evtchn` on Xen, and the pieces to build your own.
#![no_std]

extern crate alloc;
#[cfg(test)]
#[macro_use]
extern crate std;

pub mod abi;
pub mod boot;
pub mod clock;
pub mod console;
pub mod crash;
pub mod events;
pub mod glue;
pub mod heap;
mod hvm;
pub mod hypercall;
pub mod locks;
pub mod machine;
pub mod markers;
#[cfg(feature = "image")]
mod mem;
pub mod params;
pub mod percpu;
pub mod programme;
pub mod report;
pub mod rng;
pub mod shared_info;
pub mod smp;
pub mod stack;
pub mod suspend;
pub mod timer;
pub mod trap;
pub mod upcall;
pub mod watchdog;
pub mod work;
pub mod workload;
pub mod xenstore;
