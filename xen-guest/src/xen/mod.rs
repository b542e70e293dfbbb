//! Xen as its public headers describe it: layouts and numbers, hypercalls, and how an address of
//! this kernel becomes a frame that Xen takes.
//!
//! The ground floor: nothing here knows of a vCPU's state, of an event channel or of a lock.

pub mod abi;
pub mod frames;
pub mod hypercall;
