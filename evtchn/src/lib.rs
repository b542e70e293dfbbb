//! Xen event channels, IPIs and `SCHEDOP_poll`, over a trait of two hypercalls.
//!
//! An event channel is one bit that Xen sets and a guest clears. Setting it can interrupt a vCPU
//! (an *upcall*), end a `SCHEDOP_poll`, or just wait there to be seen. This crate gives a guest
//! kernel all three, and on top of them the [`Kicker`]: sleep until another vCPU kicks me.
//!
//! ```
//! use evtchn::{Abi, bind_ipi, fake::FakeXen, send};
//!
//! let xen = FakeXen::new(2);
//! let vcpu = xen.vcpu(0);
//! let events = xen.two_level(); // in a guest: `unsafe { TwoLevel::new(shared_info) }`
//! events.mask_all();
//! let port = bind_ipi(&vcpu, 0)?;
//! send(&vcpu, port)?;
//! assert!(events.is_pending(port));
//! # Ok::<(), evtchn::Errno>(())
//! ```
//!
//! | to | take |
//! |---|---|
//! | carry out the hypercalls | an implementation of [`Hypercalls`] |
//! | make, connect and close ports | [`bind_ipi`], [`bind_virq`], [`alloc_unbound`], [`bind_interdomain`], [`bind_vcpu`], [`close`], [`status`], [`reset_keeping`] |
//! | raise and await events | [`send`], [`poll`] |
//! | mask, test and clear a port | the [`Abi`]: [`TwoLevel`], [`Fifo`], or whichever boot chose, [`ChosenAbi`] |
//! | handle an upcall | [`TwoLevel::dispatch`], [`FifoVcpu::dispatch`] |
//! | move a port to another vCPU | [`move_port`] |
//! | mask a vCPU's upcalls | [`VcpuInfo`] |
//! | sleep and wake | [`Kicker`] |
//! | test all that on a host | `fake::FakeXen` (feature `fake`) |
//!
//! # Design
//!
//! * Nothing is allocated, nothing is global, nothing is `std` (but the fake). What exists once a
//!   vCPU has a `const fn new`, so that it can stand in a `static` array.
//! * Every hypercall goes through [`Hypercalls`], typed, so that the same code runs on real Xen and
//!   on the fake one.
//! * All memory shared with Xen is accessed by atomics of its natural width; each states whom it
//!   pairs with. Xen's side uses locked operations, which are full barriers on x86.
//! * It knows nothing of locks.
//!
//! Facts about Xen come from its public headers (`xen/include/public`) and were checked against the
//! behaviour of Xen 4.17.

#![no_std]

#[cfg(any(feature = "fake", test))]
extern crate std;

mod abi;
mod channel;
mod chosen;
mod errno;
#[cfg(any(feature = "fake", test))]
pub mod fake;
mod fifo;
mod hypercalls;
mod kicker;
mod port;
mod two_level;
mod vcpu_info;

pub use abi::{Abi, Taken, move_port, take_own};
pub use channel::{
    Connection, Status, alloc_unbound, bind_interdomain, bind_ipi, bind_vcpu, bind_virq, close,
    poll, reset, reset_keeping, send, status, unmask,
};
pub use chosen::ChosenAbi;
pub use errno::Errno;
pub use fifo::{Fifo, FifoVcpu, Priority, set_priority};
pub use hypercalls::{EventChannelOp, Hypercalls, SchedOp};
pub use kicker::{Kicker, NmiGuard, WaitCounts, WaitOutcome};
pub use port::{DomId, Port, Virq};
pub use two_level::{PortSet, TwoLevel};
pub use vcpu_info::VcpuInfo;
