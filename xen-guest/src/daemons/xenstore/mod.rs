//! A client of xenstore, the small tree of values through which dom0 and a domain agree on things.
//!
//! Owns the wire protocol (Xen `public/io/xs_wire.h`) and the two byte rings in the page shared
//! with xenstored. The client never makes a hypercall: ringing the event channel and waiting for it
//! are the [`Link`]'s ([`StorePort`] on Xen), so that it talks to a fake xenstored in tests.

mod client;
mod link;
mod ring;

pub use client::{Client, Error, Link, WatchEvent};
pub use link::StorePort;
pub use ring::Ring;
