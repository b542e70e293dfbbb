//! The pieces of a guest kernel on Xen, PV and PVH, to build your own with: from the first
//! instruction to a paravirtual spinlock.
//!
//! Folders are floors. Each stands on those below it, and imports nothing from above:
//!
//! | floor | what lives there |
//! |---|---|
//! | [`mod@kernel`] | a kernel made of all below: boot, memory, vCPUs, crash reports, suspend |
//! | [`markers`] | what a lock writes into the hypervisor's trace |
//! | [`glue`] | the join: `pvlock` on `evtchn` on Xen |
//! | [`daemons`] | the console, and a client of xenstore |
//! | [`events`] | event channels: the shared page, both ABIs, upcalls, a timer, sleep |
//! | [`vcpu`] | what is each vCPU's own: its number, its clock, its runstate, its start |
//! | [`xen`] | Xen's headers: layouts, hypercalls, frames |
//!
//! # What do you take?
//!
//! - *You have nothing:* [`kernel!`]. It asks for `main`, a panic handler and a global allocator.
//! - *A kernel that boots, with per-CPU areas of its own:* [`xen`], [`vcpu`], [`events`],
//!   [`daemons`], [`glue`], each as you need it. They ask which vCPU they run on
//!   ([`vcpu::identity::identify_by`]) and what is below.
//! - *A kernel with event channels and a clock, too:* [`glue`]. It asks for your answers:
//!   [`glue::Kernel`].
//! - *A kernel that wants nothing but the lock:* `pvlock` and `evtchn`, and a copy of [`glue`];
//!   `example-kernel/` has the shortest.
//!
//! Each module says how it is used alone. `examples/own_kernel.rs` is a whole platform layer for a
//! PVH kernel of the second kind. In short:
//!
//! ```no_run
//! use evtchn::{Errno, Port};
//! use xen_guest::daemons::rings::Rings;
//! use xen_guest::events::{shared_info, timer, upcall};
//! use xen_guest::{glue, vcpu, xen};
//!
//! # fn my_cpu_number() -> u32 { 0 }
//! # fn on_event(_: Port) {}
//! const VECTOR: u8 = 0xf3;
//!
//! /// Once, on vCPU 0.
//! fn init_domain() -> Result<(), Errno> {
//!     // SAFETY: each CPU's own area says its number, and nothing moves between CPUs with a lock.
//!     unsafe { vcpu::identity::identify_by(my_cpu_number) };
//!     assert!(xen::hypercall::enable_pvh(), "this is no Xen");
//!     shared_info::map_pvh()?;
//!     // SAFETY: memory is mapped one to one.
//!     unsafe { Rings::of_pvh(|frame| frame as usize * 4096) }.install();
//!     upcall::set_upcall_handler(on_event);
//!     upcall::announce_pvh(VECTOR)
//! }
//!
//! /// On every vCPU, 0 too, after that.
//! fn init_vcpu(number: u32) -> Result<(), Errno> {
//!     vcpu::area::register(number)?; // clock, event flags, runstate
//!     upcall::connect_pvh(number, VECTOR)?;
//!     timer::bind()?;
//!     glue::bind(number).map(drop) // the port on which it is kicked out of a wait for a lock
//! }
//! ```
#![no_std]

extern crate alloc;
#[cfg(test)]
#[macro_use]
extern crate std;

pub mod daemons;
pub mod events;
pub mod glue;
pub mod kernel;
pub mod markers;
pub mod vcpu;
pub mod xen;
