//! The pieces of a guest kernel on Xen, PV and PVH, to build your own with.
//!
//! | you have | you take | it asks of you |
//! |---|---|---|
//! | nothing | [`kernel!`]: boot, per-vCPU areas, vCPUs, console, clock, crash reports | `main`, a panic handler, a global allocator |
//! | a PVH or PV kernel without hypercalls | [`hypercall`], and with them [`evtchn`] | the hypercall page filled: [`hypercall::page`] |
//! | a kernel with hypercalls, without event channels | [`shared_info`], [`events`] and [`evtchn`] | the shared page mapped: [`shared_info::install`] |
//! | all of that, and want the lock | [`glue`] | each vCPU's GS base: [`percpu::PerCpu::prepare`] |
//! | a kernel that wants none of ours but the lock | `pvlock`, `evtchn` | a copy of [`glue`]; `example-kernel/` has the shortest |
//!
//! Each of these modules says how it is used alone. What the project does with them is `lab-guest`.
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
pub mod machine;
#[cfg(feature = "image")]
mod mem;
pub mod percpu;
pub mod shared_info;
pub mod smp;
pub mod stack;
pub mod suspend;
pub mod timer;
pub mod trap;
pub mod upcall;
pub mod xenstore;
