//! The page Xen shares with the domain.
//!
//! This file owns where that page is mapped. What its bits mean is the business of `evtchn`.

use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::abi::SharedInfo;

static SHARED_INFO: AtomicPtr<SharedInfo> = AtomicPtr::new(core::ptr::null_mut());

/// Says where the page is mapped.
///
/// # Safety
///
/// It is the domain's shared page, mapped there for ever.
pub(crate) unsafe fn install(page: *mut SharedInfo) {
    // Release: pairs with the load in `get`.
    SHARED_INFO.store(page, Release);
}

/// The page; `None` before it is mapped.
pub fn get() -> Option<&'static SharedInfo> {
    // SAFETY: null, or what `install` was promised; all its fields are atomics.
    unsafe { SHARED_INFO.load(Acquire).as_ref() }
}

/// Masks all ports: they start unmasked, and none has a handler yet.
pub(crate) fn mask_all(page: &SharedInfo) {
    for word in &page.evtchn_mask {
        // Relaxed: one vCPU runs, and Xen reads the mask when an event arrives.
        word.store(u64::MAX, Relaxed);
    }
}

/// Clears the port's pending bit and says whether it was set.
pub fn take_pending(port: u32) -> bool {
    let Some(page) = get() else { return false };
    let Some(word) = page.evtchn_pending.get(port as usize / 64) else { return false };
    let bit = 1 << (port % 64);
    // Acquire: what the sender wrote before the event is seen after it. Release: what we did
    // before clearing is not moved after it, where a new event would not be told apart.
    word.fetch_and(!bit, AcqRel) & bit != 0
}
