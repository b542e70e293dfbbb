//! The page Xen shares with the domain.
//!
//! This file owns where that page is mapped. What its event bits mean is the business of `evtchn`.

use core::ptr::NonNull;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::{Acquire, Release};

use evtchn::TwoLevel;
use xen_sys as sys;

static SHARED_INFO: AtomicPtr<sys::shared_info> = AtomicPtr::new(core::ptr::null_mut());

/// Says where the page is mapped.
///
/// # Safety
///
/// It is the domain's shared page, mapped there for ever.
pub(crate) unsafe fn install(page: NonNull<sys::shared_info>) {
    // Release: pairs with the load in `events`.
    SHARED_INFO.store(page.as_ptr(), Release);
}

/// The domain's event channel bits.
///
/// # Panics
///
/// Before the page is mapped, which is one of the first steps of booting.
#[inline]
pub fn events() -> TwoLevel {
    let page = NonNull::new(SHARED_INFO.load(Acquire)).expect("the shared page is not mapped yet");
    // SAFETY: mapped for ever, as `install` was promised, and touched by `evtchn` alone.
    unsafe { TwoLevel::new(page) }
}
