//! The event channel beside the ring, as the client wants it.
//!
//! This file owns how xenstored is told and awaited. The port stays masked: it interrupts nobody.

use evtchn::{Abi, Errno};

use super::client::Link;
use crate::events::{Xen, events, toolstack};
use crate::vcpu::clock;

/// The port that the toolstack made for xenstore ([`toolstack::xenstore`]).
#[derive(Clone, Copy, Debug)]
pub struct StorePort;

/// The longest single wait.
const LONGEST_WAIT_NS: u64 = 5_000_000_000;

impl Link for StorePort {
    fn notify(&self) {
        let port = toolstack::xenstore().ok_or(Errno::EINVAL);
        if let Err(errno) = port.and_then(|port| evtchn::send(&Xen, port)) {
            log::warn!("xenstored cannot be notified: {errno:?}");
        }
    }

    fn wait(&self, deadline_ns: u64) {
        // Read anew each time: it is another one after a restore.
        let Some(port) = toolstack::xenstore() else { return };
        // Bounded, so that a lost announcement costs a moment, and because Xen takes a deadline of
        // 2^63 ns and more for one in the past. An error returns at once; the client comes back.
        let deadline_ns = deadline_ns.min(clock::now() + LONGEST_WAIT_NS);
        // 0 would mean "no limit".
        let _ = evtchn::poll(&Xen, port, deadline_ns.max(1));
        // Cleared before the client looks at the ring again, so that no announcement is lost.
        events().clear(port);
    }

    fn now(&self) -> u64 {
        clock::now()
    }
}
