//! The page Xen shares with the domain.
//!
//! This file owns where that page is mapped. What its event bits mean is the business of `evtchn`.
//!
//! Alone: a PVH kernel calls [`map_pvh`]. Any other maps the page, [`install`]s its address, and
//! [masks](evtchn::TwoLevel::mask_all) all ports, which start unmasked. Everything in `evtchn` that
//! takes an ABI takes [`events`](super::events).

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, fence};

use evtchn::{Errno, TwoLevel};
use xen_sys as sys;

use crate::xen::abi::{PAGE_SIZE, WallClock};
use crate::xen::{frames, hypercall};

/// A page of the image that the shared page is mapped over.
#[repr(C, align(4096))]
struct Placeholder(UnsafeCell<[u8; PAGE_SIZE]>);

// SAFETY: never used as what it is declared; what gets mapped over it is all atomics.
unsafe impl Sync for Placeholder {}

static PLACEHOLDER: Placeholder = Placeholder(UnsafeCell::new([0; PAGE_SIZE]));

/// Address of a page of the image that nothing else uses, for boot code to map the shared page
/// over.
pub fn placeholder() -> NonNull<sys::shared_info> {
    NonNull::from(&PLACEHOLDER).cast()
}

/// Maps the shared page over the [`placeholder`], which makes it the one in use, and masks all
/// ports: for a PVH domain, on vCPU 0, before anything that has to do with ports; again after a
/// restore.
///
/// # Errors
///
/// What Xen says. Then the page is one that Xen does not look at.
pub fn map_pvh() -> Result<(), Errno> {
    let page = placeholder();
    let mapped = hypercall::map_shared_info(frames::frame_of(page.addr().get()));
    // SAFETY: mapped there; where that failed it is at least memory that nobody else uses.
    unsafe { install(page) };
    two_level().mask_all();
    mapped
}

static SHARED_INFO: AtomicPtr<sys::shared_info> = AtomicPtr::new(core::ptr::null_mut());

/// Says where the page is mapped: the last step of boot code's mapping it.
///
/// # Safety
///
/// It is the domain's shared page, mapped there for ever.
pub unsafe fn install(page: NonNull<sys::shared_info>) {
    // Release: pairs with the load in `page`.
    SHARED_INFO.store(page.as_ptr(), Release);
}

fn page() -> NonNull<sys::shared_info> {
    // Acquire: pairs with the release in `install`.
    NonNull::new(SHARED_INFO.load(Acquire)).expect("the shared page is not mapped yet")
}

/// The wall clock when system time was 0, in nanoseconds since 1970: add the
/// [clock](crate::vcpu::clock) to it. Xen changes it when the host's clock is set. Xen
/// public/xen.h, "wc_version".
///
/// # Panics
///
/// Before the page is mapped.
#[doc(alias = "wc_sec")]
pub fn epoch_offset_ns() -> u64 {
    let at = page().addr().get() + offset_of!(sys::shared_info, wc_version);
    // SAFETY: inside the page, which is mapped for ever, as `install` was promised; Xen alone
    // writes it, and the layout agrees.
    let wall: &WallClock = unsafe { &*(at as *const WallClock) };
    epoch_offset(wall)
}

/// What `wall` says, tried again while Xen writes.
fn epoch_offset(wall: &WallClock) -> u64 {
    loop {
        // Acquire: pairs with Xen's barrier after it made the version odd or even.
        let version = wall.version.load(Acquire);
        let seconds =
            u64::from(wall.sec_hi.load(Relaxed)) << 32 | u64::from(wall.sec.load(Relaxed));
        let ns = seconds.wrapping_mul(1_000_000_000) + u64::from(wall.nsec.load(Relaxed));
        // The fields above are read before the version is read again.
        fence(Acquire);
        if version & 1 == 0 && wall.version.load(Relaxed) == version {
            return ns;
        }
        core::hint::spin_loop();
    }
}

/// A PV domain's own view of its memory, for the toolstack, which saves it.
pub(crate) struct Memory {
    /// Pages the domain has.
    pub(crate) pages: u64,
    /// Machine address of the page table root.
    pub(crate) page_table: u64,
    /// Address, in those page tables, of the list that names the machine frame of each page.
    pub(crate) frames: u64,
}

/// Tells the toolstack of the domain's memory. Xen public/arch-x86/xen.h, "arch_shared_info".
pub(crate) fn describe_memory(memory: Memory) {
    // SAFETY: in bounds of the page.
    let fields = unsafe { &raw mut (*page().as_ptr()).arch };
    // SAFETY: Xen ignores these fields, the toolstack reads them while the domain is stopped, and
    // no reference to them exists.
    let mut arch = unsafe { fields.read_volatile() };
    arch.max_pfn = memory.pages;
    arch.p2m_vaddr = memory.frames;
    // A value here says that the others are valid.
    arch.p2m_cr3 = memory.page_table;
    // SAFETY: as above.
    unsafe { fields.write_volatile(arch) };
}

/// Holds back the upcalls of the vCPUs whose flags are in the shared page, as after a restore, so
/// that they are held back still when the flags move to where the vCPU registers them.
pub(crate) fn hold_upcalls_back() {
    for vcpu in 0..sys::XEN_LEGACY_MAX_VCPUS as usize {
        // SAFETY: in bounds of the page.
        let info = unsafe { &raw mut (*page().as_ptr()).vcpu_info[vcpu] };
        let info = NonNull::new(info).expect("a part of a mapped page has an address");
        // SAFETY: mapped for ever; the event fields are accessed by `evtchn` alone.
        let flags = unsafe { evtchn::VcpuInfo::new(info) };
        let _ = flags.mask_upcalls();
    }
}

/// The bits of the 2-level ABI, whether the domain uses it or not; see [`events`](super::events).
#[inline]
pub fn two_level() -> TwoLevel {
    // SAFETY: mapped for ever, as `install` was promised, and its bits are touched by `evtchn`
    // alone.
    unsafe { TwoLevel::new(page()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_has_64_bits_of_seconds() {
        let wall = WallClock::default();
        wall.sec.store(7, Relaxed);
        wall.sec_hi.store(1, Relaxed);
        wall.nsec.store(5, Relaxed);
        assert_eq!(epoch_offset(&wall), ((1 << 32) + 7) * 1_000_000_000 + 5);
    }
}
