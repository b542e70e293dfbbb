//! The locks under test: their types behind one trait, the kernel they are on, and the allocator that
//! one of them may be the lock of.

mod families;
pub mod heap;
pub mod platform;
pub mod variants;

pub use families::{Family, Pv, Spin, TestedLock, Ticket};
