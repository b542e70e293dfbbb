//! What the toolstack's wishes come to for each vCPU, and a count of what happened to the domain.
//!
//! Owns the words that vCPU 0 writes and the other vCPUs look at between two acquisitions. Who
//! writes them, and why, is the business of [`control`](super::control).

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use xen_guest::kernel::machine::ShutdownReason;
use xen_guest::kernel::smp;

/// Go down, until told otherwise.
pub(super) const DOWN: u32 = 1;
/// End the workload.
pub(super) const STOP: u32 = 2;

/// What one vCPU is told. It looks between two acquisitions.
#[derive(Debug, Default)]
pub(super) struct Orders(AtomicU32);

impl Orders {
    /// Whether to go on; goes down first if that is the order.
    #[inline]
    pub(super) fn obey(&self) -> bool {
        // Acquire: pairs with the changes below.
        self.0.load(Acquire) == 0 || self.obey_now()
    }

    #[cold]
    fn obey_now(&self) -> bool {
        loop {
            let orders = self.0.load(Acquire);
            if orders & DOWN == 0 {
                return orders & STOP == 0;
            }
            smp::go_down();
        }
    }

    pub(super) fn give(&self, order: u32) {
        self.0.fetch_or(order, Release);
    }

    pub(super) fn take_back(&self, order: u32) {
        self.0.fetch_and(!order, Release);
    }
}

/// What happened to the domain, and what its handlers did.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Asked for by the toolstack: restart instead of powering off.
    pub(super) reboot: AtomicBool,
    pub(super) restores: AtomicU64,
    pub(super) cancelled_suspends: AtomicU64,
    pub(super) vcpus_down: AtomicU64,
    /// NMIs that got the lock they tried.
    pub(super) nmi_acquisitions: AtomicU64,
    /// NMIs that found it held.
    pub(super) nmi_refusals: AtomicU64,
}

impl Events {
    /// The reason with which a run that succeeded ends the domain.
    pub(super) fn ending(&self) -> ShutdownReason {
        // Relaxed, here and below: written by this vCPU, or by one that is done.
        if self.reboot.load(Relaxed) { ShutdownReason::Reboot } else { ShutdownReason::Poweroff }
    }

    /// Names and numbers, for the report.
    pub(super) fn named(&self) -> [(&'static str, u64); 5] {
        [
            ("restores", &self.restores),
            ("cancelled_suspends", &self.cancelled_suspends),
            ("vcpus_taken_down", &self.vcpus_down),
            ("nmi_acquisitions", &self.nmi_acquisitions),
            ("nmi_refusals", &self.nmi_refusals),
        ]
        .map(|(name, count)| (name, count.load(Relaxed)))
    }
}
