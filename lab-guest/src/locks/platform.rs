//! The kernel that the locks under test are on: that of `xen-guest` which leaves marks in the trace, with
//! an experiment that is told of polls that expired.
//!
//! Owns whom an expired poll is passed on to. It changes nothing of a wait.

use evtchn::WaitOutcome;
use spin::Once;
use xen_guest::glue::{Kernel, XenPlatform};
use xen_guest::markers::Marked;
use xen_guest::vcpu::identity::current_by_gs_base;

/// The platform of the locks under test.
pub type TestedPlatform = XenPlatform<Told>;

/// The kernel as `xen-guest` makes it, with marks and an experiment that is told.
#[derive(Debug)]
pub struct Told;

// SAFETY: it answers nothing otherwise than `xen-guest` does, and takes no lock when it is told.
unsafe impl Kernel for Told {
    #[inline]
    fn current_vcpu() -> u32 {
        // SAFETY: this kernel is made by `kernel!`, which chooses the GS base.
        unsafe { current_by_gs_base() }
    }

    #[inline]
    fn around_wait(vcpu: u32, wait: impl FnOnce() -> WaitOutcome) -> WaitOutcome {
        Marked::around_wait(vcpu, wait)
    }

    #[inline]
    fn before_kick(target: u32) {
        Marked::before_kick(target);
    }

    #[cold]
    fn poll_expired(_: u32) {
        look();
    }
}

static ON_EXPIRY: Once<fn()> = Once::new();

/// Says what is to happen when a waiter's bounded poll expires: a kick may have been lost. The
/// first call counts.
pub fn on_poll_expiry(look: fn()) {
    ON_EXPIRY.call_once(|| look);
}

/// Does what is to happen then, if anything.
pub fn look() {
    if let Some(look) = ON_EXPIRY.get() {
        look();
    }
}
