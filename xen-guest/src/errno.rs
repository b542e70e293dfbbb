//! Error numbers and ports, as event channels know them.

use core::num::NonZeroU32;

/// An error number a hypercall returned, positive (`22` is `EINVAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// An event channel port of this domain; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU32);

impl Port {
    /// The port of that number; `None` for 0, which is no port.
    pub const fn new(port: u32) -> Option<Port> {
        match NonZeroU32::new(port) {
            Some(port) => Some(Port(port)),
            None => None,
        }
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}
