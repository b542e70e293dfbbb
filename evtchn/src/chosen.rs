//! Either of the two layouts, chosen at boot.
//!
//! Owns the choice as a value. It adds nothing to what the two do.

use crate::{Abi, Errno, Fifo, Hypercalls, Port, TwoLevel};

/// The ABI a guest chose at boot: FIFO where Xen offers it, 2-level otherwise.
///
/// ```
/// use evtchn::{Abi, ChosenAbi, fake::FakeXen, reset_keeping};
///
/// fn boot<'a>(xen: &'a FakeXen, memory: &'a evtchn::Fifo, page: u64) -> ChosenAbi<'a> {
///     let vcpu = xen.vcpu(0);
///     let (queues, frame) = xen.fifo_queues();
///     let fifo = queues.init(&vcpu, 0, frame, 0).and_then(|()| memory.expand(&vcpu, page));
///     match fifo {
///         Ok(()) => ChosenAbi::Fifo(memory),
///         Err(_) => {
///             // In case only half of it worked. Name the console's and xenstore's ports here.
///             let _ = reset_keeping(&vcpu, [None]);
///             xen.two_level().mask_all();
///             ChosenAbi::TwoLevel(xen.two_level())
///         }
///     }
/// }
///
/// let xen = FakeXen::new(1);
/// let (memory, page) = xen.fifo_memory(1);
/// assert_eq!(boot(&xen, &memory, page).ports(), 1024);
///
/// let xen = FakeXen::new(1);
/// xen.withhold_fifo();
/// let (memory, page) = xen.fifo_memory(1);
/// assert_eq!(boot(&xen, &memory, page).ports(), 4096);
/// ```
#[derive(Clone, Copy, Debug)]
pub enum ChosenAbi<'a> {
    /// The 2-level ABI.
    TwoLevel(TwoLevel),
    /// The FIFO ABI.
    Fifo(&'a Fifo),
}

macro_rules! either {
    ($self:ident, $abi:ident => $call:expr) => {
        match $self {
            ChosenAbi::TwoLevel($abi) => $call,
            ChosenAbi::Fifo($abi) => $call,
        }
    };
}

impl Abi for ChosenAbi<'_> {
    fn ports(&self) -> u32 {
        either!(self, abi => abi.ports())
    }

    fn mask(&self, port: Port) {
        either!(self, abi => abi.mask(port));
    }

    fn is_masked(&self, port: Port) -> bool {
        either!(self, abi => abi.is_masked(port))
    }

    fn is_pending(&self, port: Port) -> bool {
        either!(self, abi => abi.is_pending(port))
    }

    fn clear(&self, port: Port) -> bool {
        either!(self, abi => abi.clear(port))
    }

    fn unmask(&self, xen: &impl Hypercalls, port: Port) -> Result<(), Errno> {
        either!(self, abi => abi.unmask(xen, port))
    }
}
