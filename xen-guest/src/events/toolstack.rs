//! The two ports that the toolstack made before the domain began: those beside the rings of console
//! and xenstore.
//!
//! This file owns their numbers, which change when the domain is restored. They are the ports that
//! a change of the event channel ABI must keep. What is said by them is the business of
//! [`daemons`](crate::daemons).

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use evtchn::Port;

/// A port, or 0.
struct Kept(AtomicU32);

static CONSOLE: Kept = Kept(AtomicU32::new(0));
static XENSTORE: Kept = Kept(AtomicU32::new(0));

impl Kept {
    fn set(&self, port: Option<Port>) {
        // Relaxed, here and below: a number; the ring beside it has its own ordering.
        self.0.store(port.map_or(0, Port::get), Relaxed);
    }

    fn get(&self) -> Option<Port> {
        Port::new(self.0.load(Relaxed))
    }
}

/// Says which port the console daemon listens on.
pub fn set_console(port: Option<Port>) {
    CONSOLE.set(port);
}

/// The port the console daemon listens on.
pub fn console() -> Option<Port> {
    CONSOLE.get()
}

/// Says which port xenstored listens on.
pub fn set_xenstore(port: Option<Port>) {
    XENSTORE.set(port);
}

/// The port xenstored listens on.
pub fn xenstore() -> Option<Port> {
    XENSTORE.get()
}

/// All of them.
pub(super) fn kept() -> [Option<Port>; 2] {
    [console(), xenstore()]
}
