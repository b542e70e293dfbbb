//! The pages that a domain shares with the two daemons, as the toolstack made them.
//!
//! This file owns where they are found and that they are put to use, with the ports beside them.
//! What is said through them is the business of [`console`] and
//! [`xenstore`].
//!
//! # Alone
//!
//! A PVH kernel that maps the first 4 GiB one to one:
//!
//! ```no_run
//! use xen_guest::daemons::{console, rings::Rings};
//!
//! // SAFETY: this kernel maps all memory one to one.
//! let rings = unsafe { Rings::of_pvh(|frame| frame as usize * 4096) };
//! let xenstore = rings.install();
//! console::write(b"hello\n");
//! ```

use evtchn::Port;

use super::console::{self, Sink};
use super::xenstore;
use crate::events::toolstack;
use crate::xen::abi::{ConsoleRing, hvm_param};
use crate::xen::hypercall;

/// Each ring, where there is one, and the port that tells either side of new bytes.
#[derive(Clone, Copy, Debug)]
pub struct Rings {
    /// The console's.
    pub console: Option<(&'static ConsoleRing, Port)>,
    /// Xenstore's.
    pub xenstore: Option<(&'static xenstore::Ring, Port)>,
}

impl Rings {
    /// Those of a PVH domain, which asks Xen for them. `address_of` says where the kernel has
    /// mapped a guest frame.
    ///
    /// # Safety
    ///
    /// `address_of` is right for every frame that Xen names, which stays mapped there for ever.
    pub unsafe fn of_pvh(address_of: impl Fn(u64) -> usize) -> Rings {
        let ring = |frame: u32, port: u32| {
            let frame = hypercall::hvm_param(frame).ok().filter(|frame| *frame != 0)?;
            let port = hypercall::hvm_param(port).ok()?;
            Some((address_of(frame), Port::new(u32::try_from(port).ok()?)?))
        };
        let console = ring(hvm_param::CONSOLE_PFN, hvm_param::CONSOLE_EVTCHN);
        let xenstore = ring(hvm_param::STORE_PFN, hvm_param::STORE_EVTCHN);
        Rings {
            console: console.map(|(address, port)| {
                // SAFETY: the toolstack made the page and never takes it away; its fields are
                // atomics.
                (unsafe { &*(address as *const ConsoleRing) }, port)
            }),
            xenstore: xenstore.map(|(address, port)| {
                // SAFETY: as above.
                (unsafe { &*(address as *const xenstore::Ring) }, port)
            }),
        }
    }

    /// Makes the rings the ones that are used: text goes to the console's from now on. Returns
    /// xenstore's, for a [`Client`](xenstore::Client) with a [`StorePort`](xenstore::StorePort).
    pub fn install(self) -> Option<&'static xenstore::Ring> {
        self.reconnect();
        console::init(self.console.map_or(Sink::None, |(ring, _)| Sink::Ring(ring)));
        self.xenstore.map(|(ring, _)| ring)
    }

    /// Uses the ports from now on: the pages are where they were, the ports are new after a
    /// restore.
    pub fn reconnect(self) {
        toolstack::set_console(self.console.map(|(_, port)| port));
        toolstack::set_xenstore(self.xenstore.map(|(_, port)| port));
    }
}
