//! What a 64-bit PV domain has of its own.
//!
//! This file owns `start_info`, and changes of the page tables Xen built for us (they are read-only
//! to us: each change is a hypercall). Addresses equal pseudo-physical ones, because the image's
//! VIRT_BASE is 0.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicPtr, AtomicU64};

use evtchn::{Errno, Port};
use x86_64::structures::paging::PageTableFlags;
use xen_sys as sys;

use super::image::{DATA, image, protection};
use crate::daemons::rings::Rings;
use crate::daemons::xenstore;
use crate::events::shared_info;
use crate::xen::abi::{ConsoleRing, PAGE_SIZE};
use crate::xen::frames;
use crate::xen::hypercall::{self, Resumed};

/// The machine-to-pseudo-physical table, which Xen maps into every PV domain.
/// `MACH2PHYS_VIRT_START`, Xen public/arch-x86/xen-x86_64.h.
const MACHINE_TO_PHYS: *const u64 = 0xffff_8000_0000_0000 as *const u64;

/// The page table root, as the machine frame a new vCPU's cr3 wants.
static PAGE_TABLE_ROOT: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// Where Xen put `start_info`.
static START_INFO: AtomicPtr<sys::start_info> = AtomicPtr::new(core::ptr::null_mut());

/// Machine frame of the page table root.
pub(super) fn page_table_frame() -> u64 {
    frames::frame_of(PAGE_TABLE_ROOT.load(Relaxed) as usize)
}

/// Replaces the page table entry of `address` on all vCPUs.
///
/// # Safety
///
/// Nothing relies on what the entry allowed before.
unsafe fn map(address: usize, entry: u64) -> Result<(), Errno> {
    // UVMF_INVLPG | UVMF_ALL (Xen public/xen.h): the address, on all vCPUs.
    const INVALIDATE_ALL: usize = 2 | 1 << 2;
    let arguments = [address, entry as usize, INVALIDATE_ALL, 0];
    // SAFETY: the caller's promise.
    unsafe { hypercall::call(sys::__HYPERVISOR_update_va_mapping, arguments) }.map(drop)
}

/// Notes where `start_info` is, and with it the domain's page tables and machine frames.
///
/// # Safety
///
/// It is what Xen passed.
pub(super) unsafe fn take_start_info(info: *mut sys::start_info) {
    // Relaxed, here and below: set by vCPU 0 before there was another.
    START_INFO.store(info, Relaxed);
    let now = start_info();
    // SAFETY: Xen's table has an entry for every page of the domain.
    unsafe { frames::set_machine_frames(now.mfn_list as *mut u64) };
    PAGE_TABLE_ROOT.store(now.pt_base as *mut u8, Relaxed);
}

/// Whether this is the initial domain, which has no rings.
pub(super) fn is_initial_domain() -> bool {
    start_info().flags & sys::SIF_INITDOMAIN != 0
}

/// The command line, which Xen ends with a zero byte.
pub(super) fn cmdline() -> &'static [u8] {
    // SAFETY: in bounds of the structure.
    let line = unsafe { &raw const (*START_INFO.load(Relaxed)).cmd_line };
    // SAFETY: mapped for ever, and nobody writes it; bytes are bytes, signed or not.
    let line: &[u8; 1024] = unsafe { &*line.cast() };
    line.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// What Xen and the toolstack told us, as it stands now: a restore changes it.
fn start_info() -> sys::start_info {
    // SAFETY: Xen maps start_info for as long as the domain lives, and changes it only while the
    // domain is suspended. Plain numbers.
    unsafe { START_INFO.load(Relaxed).read_volatile() }
}

/// The console's and xenstore's rings.
pub(super) fn rings() -> Rings {
    let info = start_info();
    // SAFETY: this is no initial domain, so the union holds the domU member.
    let console = unsafe { info.console.domU };
    let console = Port::new(console.evtchn).map(|port| {
        let ring = page_of(console.mfn).cast::<ConsoleRing>();
        // SAFETY: the toolstack made the page and never takes it away; its fields are atomics.
        (unsafe { &*ring }, port)
    });
    let xenstore = Port::new(info.store_evtchn).map(|port| {
        let ring = page_of(info.store_mfn).cast::<xenstore::Ring>();
        // SAFETY: as above.
        (unsafe { &*ring }, port)
    });
    Rings { console, xenstore }
}

/// Our address of a machine frame that belongs to us.
fn page_of(machine_frame: u64) -> *const u8 {
    // SAFETY: the table covers all machine frames; Xen maps it readable.
    let frame = unsafe { MACHINE_TO_PHYS.wrapping_add(machine_frame as usize).read() };
    (frame as usize * PAGE_SIZE) as *const u8
}

/// Where the shared page is mapped.
fn shared_page() -> usize {
    shared_info::placeholder().addr().get()
}

/// Maps the shared page over the placeholder.
pub(super) fn map_shared_info() -> Result<(), Errno> {
    let entry = start_info().shared_info | (DATA | PageTableFlags::USER_ACCESSIBLE).bits();
    // SAFETY: nothing uses the placeholder page as what it is declared.
    unsafe { map(shared_page(), entry) }
}

/// Maps the placeholder again: the shared page is Xen's, and a page of Xen's cannot be saved.
fn unmap_shared_info() -> Result<(), Errno> {
    let page = shared_page();
    let entry = frames::frame_of(page) << 12 | (DATA | PageTableFlags::USER_ACCESSIBLE).bits();
    // SAFETY: only the bits of event channels are looked at there, and no vCPU does meanwhile.
    unsafe { map(page, entry) }
}

/// Where the toolstack finds the domain's own view of its memory.
///
/// The list of machine frames is shown in an address space of its own, where it begins in the first
/// 2 MiB. `xl save` would find it where it lies in ours; but `xl dump-core` takes it for empty
/// unless it begins so close behind a multiple of 1 GiB (Xen 4.17 and 4.20, libxenguest).
pub(super) fn memory() -> shared_info::Memory {
    let info = start_info();
    let (pages, list) = (info.nr_pages, info.mfn_list as usize);
    let last = list + pages as usize * size_of::<u64>() - 1;
    let [level_4, level_3, level_2] = &LIST_SPACE;
    for (entry, part) in level_2.0.iter().zip(list / PART..=last / PART) {
        // Relaxed, all of these: no vCPU reads them, and the toolstack is told of them afterwards.
        entry.store(directory_entry(part * PART), Relaxed);
    }
    level_3.0[0].store(table_entry(level_2), Relaxed);
    level_4.0[0].store(table_entry(level_3), Relaxed);
    let page_table = frames::frame_of((&raw const *level_4).addr()) << 12;
    shared_info::Memory { pages, page_table, frames: (list % PART) as u64 }
}

/// A page that looks like a page table, to the toolstack alone: no vCPU uses it.
#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

/// The address space with nothing in it but the list of machine frames: the three upper levels. The
/// lowest is that of our own. Enough for 512 GiB of memory.
static LIST_SPACE: [Table; 3] = [const { Table([const { AtomicU64::new(0) }; 512]) }; 3];

/// What an entry of level 2 maps.
const PART: usize = 512 * PAGE_SIZE;

/// An entry for `table`.
fn table_entry(table: &'static Table) -> u64 {
    frames::frame_of((&raw const *table).addr()) << 12 | PageTableFlags::PRESENT.bits()
}

/// The entry of level 2 for `address` in the page tables that Xen built for us.
fn directory_entry(address: usize) -> u64 {
    let root = PAGE_TABLE_ROOT.load(Relaxed).cast_const();
    let entry = |table: *const u8, level: usize| {
        let index = address >> (12 + 9 * (level - 1)) & 511;
        // SAFETY: Xen maps its page tables among our pages, readable, for ever; an entry of these
        // levels changes at our request alone, of which there is none, and while we are saved.
        unsafe { table.cast::<u64>().wrapping_add(index).read_volatile() }
    };
    let below = |entry: u64| page_of((entry & 0x000f_ffff_ffff_f000) >> 12);
    entry(below(entry(below(entry(root, 4)), 3)), 2)
}

/// Stops the domain so that it can be saved; returns when it goes on, with the shared page and the
/// rings in use again. The toolstack writes machine frames for frame numbers: in page tables, in
/// the table of frames, and in `start_info`, where it wants our own numbers.
pub(super) fn suspend() -> Result<Resumed, Errno> {
    let info = START_INFO.load(Relaxed);
    let before = start_info();
    // SAFETY: this is no initial domain, so the union holds the domU member.
    let console = unsafe { before.console.domU }.mfn;
    let own = |frame| (page_of(frame) as usize / PAGE_SIZE) as u64;
    set_ring_frames(info, own(before.store_mfn), own(console));
    unmap_shared_info()?;
    let resumed = hypercall::sched_suspend(frames::frame_of(info as usize));
    if resumed != Ok(Resumed::Restored) {
        set_ring_frames(info, before.store_mfn, console);
    }
    map_shared_info()?;
    if resumed == Ok(Resumed::Restored) {
        shared_info::describe_memory(memory());
        rings().reconnect();
    }
    resumed
}

/// Writes the two frames of `start_info` that name ring pages.
fn set_ring_frames(info: *mut sys::start_info, store: u64, console: u64) {
    // SAFETY: in bounds of the structure.
    let store_field = unsafe { &raw mut (*info).store_mfn };
    // SAFETY: as above; the union holds the domU member.
    let console_field = unsafe { &raw mut (*info).console.domU.mfn };
    for (field, frame) in [(store_field, store), (console_field, console)] {
        // SAFETY: the structure is ours to write, and no reference to these fields exists.
        unsafe { field.write_volatile(frame) };
    }
}

/// Sets the GS base of this vCPU in kernel mode, which is the mode we always run in.
///
/// # Safety
///
/// All code that follows must expect it there.
pub(super) unsafe fn set_gs_base(base: u64) -> Result<(), Errno> {
    let arguments = [sys::SEGBASE_GS_KERNEL as usize, base as usize, 0, 0];
    // SAFETY: the caller's promise.
    unsafe { hypercall::call(sys::__HYPERVISOR_set_segment_base, arguments) }.map(drop)
}

/// Takes away what no code needs: writing to code and constants, executing data, page 0 and the
/// guard pages. Xen builds everything writable and executable.
pub(super) fn protect() {
    // Page 0 is mapped because VIRT_BASE is 0.
    for address in core::iter::once(0).chain(image().step_by(PAGE_SIZE)) {
        if address == shared_page() {
            continue; // mapped by hand, and not a page of ours
        }
        let entry = protection(address).map_or(0, |flags| {
            frames::frame_of(address) << 12 | (flags | PageTableFlags::USER_ACCESSIBLE).bits()
        });
        // SAFETY: code stays executable, data writable, constants readable; the rest is never used.
        unsafe { map(address, entry) }.expect("a page of the image can be protected");
    }
}
