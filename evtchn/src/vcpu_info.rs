//! One vCPU's flags in memory shared with Xen: is an upcall due, are upcalls masked.
//!
//! This file owns all access to `vcpu_info`'s event fields. It must never touch its clock fields
//! (those are the guest's clock's) nor any port's bits.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use xen_sys as sys;

// Xen public/xen.h. On ARM the byte behind the pending flag is padding, and what follows the selector is shorter.
const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<sys::vcpu_info>() == if cfg!(target_arch = "x86_64") { 64 } else { 48 });
    assert!(offset_of!(sys::vcpu_info, evtchn_upcall_pending) == 0);
    #[cfg(target_arch = "x86_64")]
    assert!(offset_of!(sys::vcpu_info, evtchn_upcall_mask) == 1);
    assert!(offset_of!(sys::vcpu_info, evtchn_pending_sel) == 8);
    assert!(size_of::<sys::xen_ulong_t>() == 8);
};

/// The event fields of one vCPU's `vcpu_info`, in `shared_info` or where
/// `VCPUOP_register_vcpu_info` put it.
///
/// ```
/// use evtchn::fake::FakeXen;
///
/// let xen = FakeXen::new(1);
/// let flags = xen.vcpu_info(0);
/// assert!(!flags.upcall_pending());
/// let before = flags.mask_upcalls();
/// // ... no event interrupts this vCPU here, under PV ...
/// if !before {
///     assert!(!flags.unmask_upcalls(), "an upcall became due meanwhile: enter Xen to get it");
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct VcpuInfo(NonNull<sys::vcpu_info>);

// SAFETY: every access through the pointer is atomic, and the memory outlives the value by the
// contract of `new`.
unsafe impl Send for VcpuInfo {}
// SAFETY: as above.
unsafe impl Sync for VcpuInfo {}

impl VcpuInfo {
    /// The event fields at `info`.
    ///
    /// # Safety
    ///
    /// 1. `info` stays valid for reads and writes as long as the value or a copy of it exists.
    /// 2. The guest touches its event fields through this type, or otherwise atomically, only.
    #[must_use]
    pub const unsafe fn new(info: NonNull<sys::vcpu_info>) -> Self {
        Self(info)
    }

    fn pending_flag(&self) -> &AtomicU8 {
        // SAFETY: in bounds of the structure that `new` was promised.
        let field = unsafe { &raw mut (*self.0.as_ptr()).evtchn_upcall_pending };
        // SAFETY: valid and only accessed atomically, by the contract of `new`.
        unsafe { AtomicU8::from_ptr(field) }
    }

    fn mask_flag(&self) -> &AtomicU8 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: in bounds of the structure that `new` was promised.
        let field = unsafe { &raw mut (*self.0.as_ptr()).evtchn_upcall_mask };
        #[cfg(not(target_arch = "x86_64"))]
        // SAFETY: as above.
        let field = unsafe { &raw mut (*self.0.as_ptr()).pad0 };
        // SAFETY: valid and only accessed atomically, by the contract of `new`.
        unsafe { AtomicU8::from_ptr(field) }
    }

    /// The 2-level ABI's first level: bit `w` = look at word `w` of the pending bits.
    pub(crate) fn selector(&self) -> &AtomicU64 {
        // SAFETY: in bounds of the structure that `new` was promised.
        let field = unsafe { &raw mut (*self.0.as_ptr()).evtchn_pending_sel };
        // SAFETY: valid and only accessed atomically, by the contract of `new`; 8 bytes, aligned.
        unsafe { AtomicU64::from_ptr(field) }
    }

    /// Whether an upcall is due on this vCPU.
    #[must_use]
    #[doc(alias = "evtchn_upcall_pending")]
    pub fn upcall_pending(&self) -> bool {
        // Acquire: pairs with Xen's atomic set, so that bits set before the flag are seen.
        self.pending_flag().load(Ordering::Acquire) != 0
    }

    /// Takes the flag down, before looking for work: an event that comes later raises it again.
    pub(crate) fn take_upcall_pending(&self) -> bool {
        // SeqCst: a full barrier. The later read of the pending bits must not move before the
        // flag is down, or an event between the two would leave neither flag nor sight of its bit.
        self.pending_flag().swap(0, Ordering::SeqCst) != 0
    }

    /// Says that an upcall is due, as Xen would; whether one was already.
    #[cfg(any(feature = "fake", test))]
    pub(crate) fn set_upcall_pending(&self) -> bool {
        // SeqCst: stands for Xen's own locked operation.
        self.pending_flag().swap(1, Ordering::SeqCst) != 0
    }

    /// Whether upcalls are masked on this vCPU. Means nothing under HVM, PVH and on ARM, where upcalls are
    /// interrupts: Xen does not look at the flag.
    #[must_use]
    #[doc(alias = "evtchn_upcall_mask")]
    pub fn upcalls_masked(&self) -> bool {
        // Relaxed: Xen reads and writes the flag only on the pCPU this vCPU runs on.
        self.mask_flag().load(Ordering::Relaxed) != 0
    }

    /// Masks upcalls: the PV form of "interrupts off". Says whether they were masked before. On ARM, and wherever
    /// upcalls are interrupts, turn those off instead.
    ///
    /// For the calling vCPU's own flags only.
    #[must_use = "restore what was before"]
    pub fn mask_upcalls(&self) -> bool {
        let before = self.upcalls_masked();
        // Release/compiler order: accesses of the protected section stay behind it. The flag is
        // read on this pCPU only, so no hardware barrier is needed.
        self.mask_flag().store(1, Ordering::Relaxed);
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        before
    }

    /// Unmasks upcalls: the PV form of "interrupts on". `true` means that an upcall became due
    /// meanwhile: Xen delivers it on the way out of the next hypercall, so make one.
    ///
    /// For the calling vCPU's own flags only.
    #[must_use = "if an upcall is due, enter Xen to get it"]
    pub fn unmask_upcalls(&self) -> bool {
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        // SeqCst: the flag must be down before the other one is read. An event that comes after
        // the read finds the mask down and interrupts.
        self.mask_flag().swap(0, Ordering::SeqCst);
        self.upcall_pending()
    }
}
