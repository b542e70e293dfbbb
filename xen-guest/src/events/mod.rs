//! Event channels on Xen: the crate `evtchn` over our hypercalls, the memory that Xen writes their
//! bits to, and what is built of a port: upcalls, a timer, sleep.

mod choice;
pub mod lapic;
pub mod shared_info;
pub mod sleep;
pub mod timer;
pub mod toolstack;
pub mod upcall;
mod xen;

pub(crate) use choice::restore;
pub use choice::{
    EventAbi, Wanted, abi, choose, choose_with, events, grow, handle_no_more, handle_on, prefer,
};
pub use xen::Xen;
