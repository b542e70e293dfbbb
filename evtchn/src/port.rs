//! Names of things: ports, domains, virtual interrupts.
//!
//! This file owns the newtypes around Xen's integers. It must never call Xen.

use core::fmt;
use core::num::NonZeroU32;

use xen_sys as sys;

/// A domain's own number for one end of an event channel.
///
/// Having one proves that the number is between 1 and 131,071: Xen never gives out port 0, and
/// 131,072 is the limit of the larger of its two ABIs (`EVTCHN_FIFO_NR_CHANNELS` in Xen
/// public/event_channel.h). It does *not* prove that the port is bound.
///
/// ```
/// use evtchn::Port;
///
/// assert_eq!(Port::new(5).map(Port::get), Some(5));
/// assert_eq!(Port::new(0), None);
/// assert_eq!(size_of::<Option<Port>>(), 4);
/// ```
#[doc(alias = "evtchn_port_t")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU32);

impl Port {
    /// The largest number a port can have, in any ABI.
    pub const MAX: Self = Self(NonZeroU32::new(sys::EVTCHN_FIFO_NR_CHANNELS - 1).unwrap());

    /// The port of this number; `None` for 0 and for numbers beyond [`Port::MAX`].
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(nonzero) if number <= Self::MAX.get() => Some(Self(nonzero)),
            _ => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({})", self.0)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A domain's number, as Xen and the toolstack count them.
#[doc(alias = "domid_t")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DomId(pub u16);

impl DomId {
    /// The calling domain, whatever its number is (Xen public/xen.h).
    #[doc(alias = "DOMID_SELF")]
    pub const SELF: Self = Self(0x7ff0);
}

/// A virtual interrupt: an event whose sender is Xen itself (Xen public/xen.h, `VIRQ_*`).
///
/// Per-vCPU interrupts can be bound once on every vCPU, global ones once in the domain, on vCPU 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Virq(pub u32);

impl Virq {
    /// Per vCPU: a timer set by `set_timer_op` or `VCPUOP_set_singleshot_timer` has fired.
    #[doc(alias = "VIRQ_TIMER")]
    pub const TIMER: Self = Self(sys::VIRQ_TIMER);
    /// Per vCPU: the toolstack asks for a dump (`xl trigger DOMAIN debug-keys`, `xl debug-keys q`).
    #[doc(alias = "VIRQ_DEBUG")]
    pub const DEBUG: Self = Self(sys::VIRQ_DEBUG);
    /// Per vCPU: the performance monitor's interrupt.
    #[doc(alias = "VIRQ_XENPMU")]
    pub const XENPMU: Self = Self(sys::VIRQ_XENPMU);

    /// Whether every vCPU can bind its own.
    #[must_use]
    pub const fn is_per_vcpu(self) -> bool {
        matches!(self.0, sys::VIRQ_TIMER | sys::VIRQ_DEBUG | sys::VIRQ_XENOPROF | sys::VIRQ_XENPMU)
    }
}
