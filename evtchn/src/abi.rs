//! The per-port bits Xen shares with the guest, whichever ABI lays them out.
//!
//! This file owns the seam between code that masks, tests and clears a port and the two layouts
//! that hold those bits. It must never assume one of them.

use crate::{Errno, Hypercalls, Port};

/// How a domain and Xen share the pending and mask bit of every port.
///
/// [`TwoLevel`](crate::TwoLevel) is the one every Xen offers.
///
/// **Ports start unmasked.** Under both ABIs the shared words are zero at boot and Xen does not
/// mask a port when it binds it, so a guest masks everything before its first bind
/// ([`TwoLevel::mask_all`](crate::TwoLevel::mask_all)).
pub trait Abi {
    /// How many ports the ABI has room for; the largest usable port is one less.
    fn ports(&self) -> u32;

    /// Stops upcalls for `port`. Events still latch, and still end a poll of this port.
    fn mask(&self, port: Port);

    /// Whether `port` is masked.
    fn is_masked(&self, port: Port) -> bool;

    /// Whether an event of `port` is latched.
    ///
    /// Orders nothing by itself when it answers `false`. When it answers `true`, what the sender
    /// wrote before its send is visible.
    fn is_pending(&self, port: Port) -> bool;

    /// Drops `port`'s latched event, and says whether there was one.
    ///
    /// What the sender of that event wrote before its send is visible afterwards; an event that
    /// comes later latches anew.
    fn clear(&self, port: Port) -> bool;

    /// Allows upcalls for `port` again, and raises the one that is due. One hypercall at most, and
    /// none if no event is latched.
    ///
    /// # Errors
    ///
    /// `EINVAL`: an event was latched, but the port is closed.
    fn unmask(&self, xen: &impl Hypercalls, port: Port) -> Result<(), Errno>;
}
