//! A kernel made of the floors below: what [`kernel!`](crate::kernel!) boots. Entry points, memory,
//! descriptor tables, vCPUs with stacks, crash reports, suspend, a heap.
//!
//! A kernel that has these by itself takes nothing from here. [`machine::Machine`] is what all of
//! it comes to for the programme on top.

pub mod boot;
pub mod crash;
mod descriptors;
pub mod heap;
mod image;
pub mod machine;
#[cfg(feature = "image")]
mod mem;
mod pv;
#[doc(hidden)] // its tables are named by the entry code of `kernel!`
pub mod pvh;
pub mod smp;
pub mod stack;
pub mod suspend;
mod trap;
