//! What is each vCPU's own: its number, the memory it shares with Xen, its clock, the switch that
//! holds its upcalls back, its start and its end.
//!
//! All state is static and found by the vCPU's number. Which number that is, is the kernel's to say
//! ([`identity`]); nothing here touches a register of the CPU for it but [`gs_base`], which is
//! there for kernels that have no way of their own.

pub mod area;
pub mod clock;
pub mod gs_base;
pub mod identity;
pub mod mask;
pub mod per_vcpu;
pub mod start;

pub use area::Area;
pub use identity::current;
pub use per_vcpu::{MAX_VCPUS, PerVcpu};
