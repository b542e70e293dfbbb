//! Booting as a 64-bit PV domain, and the memory of one.
//!
//! This file owns `start_info`, the translation from our addresses to machine frames, and changes
//! of the page tables Xen built for us (they are read-only to us: each change is a hypercall).
//! Addresses equal pseudo-physical ones, because the image's VIRT_BASE is 0.

use core::ptr::NonNull;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::Relaxed;

use x86_64::structures::paging::PageTableFlags;
use xen_sys as sys;

use super::{Found, Main, Rings};
use crate::abi::{ConsoleRing, PAGE_SIZE};
use crate::console::{self, Sink};
use crate::hypercall::Resumed;
use crate::machine::DomainType;
use crate::percpu::PerCpu;
use crate::{hypercall, shared_info, smp, trap};
use evtchn::{Errno, Port};

/// The machine-to-pseudo-physical table, which Xen maps into every PV domain.
/// `MACH2PHYS_VIRT_START`, Xen public/arch-x86/xen-x86_64.h.
const MACHINE_TO_PHYS: *const u64 = 0xffff_8000_0000_0000 as *const u64;

/// The pseudo-physical-to-machine table of this domain, from `start_info`.
static PHYS_TO_MACHINE: AtomicPtr<u64> = AtomicPtr::new(core::ptr::null_mut());

/// Whether the domain translates addresses to machine frames: a PV domain does.
pub(crate) fn has_machine_frames() -> bool {
    // Relaxed: set by vCPU 0 before there was another.
    !PHYS_TO_MACHINE.load(Relaxed).is_null()
}

/// Machine frame of the page at `address`; in a PVH domain, where there are none, its guest frame.
pub fn machine_frame(address: usize) -> u64 {
    // Relaxed: set by vCPU 0 before there was another.
    let table = PHYS_TO_MACHINE.load(Relaxed);
    if table.is_null() {
        return (address / PAGE_SIZE) as u64;
    }
    // SAFETY: the table has an entry for every page of the domain, and all our addresses are in it.
    unsafe { table.wrapping_add(address / PAGE_SIZE).read() }
}

/// The page table root, as the machine frame a new vCPU's cr3 wants.
static PAGE_TABLE_ROOT: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// Where Xen put `start_info`.
static START_INFO: AtomicPtr<sys::start_info> = AtomicPtr::new(core::ptr::null_mut());

/// Machine frame of the page table root.
pub(crate) fn page_table_frame() -> u64 {
    machine_frame(PAGE_TABLE_ROOT.load(Relaxed) as usize)
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

/// First Rust code of vCPU 0, on its own stack.
///
/// # Safety
///
/// Called once, by the entry code, with the `start_info` Xen passed.
#[allow(improper_ctypes_definitions, reason = "the entry code passes the function's address on")]
pub unsafe extern "C" fn start(info: *mut sys::start_info, main: Main) -> ! {
    // SAFETY: GS has no other use. Before this line nothing may touch per-vCPU data.
    let gs = unsafe { set_gs_base(PerCpu::prepare(0)) };
    START_INFO.store(info, Relaxed);
    let now = start_info();
    PHYS_TO_MACHINE.store(now.mfn_list as *mut u64, Relaxed);
    PAGE_TABLE_ROOT.store(now.pt_base as *mut u8, Relaxed);

    let shared = map_shared_info();
    let page = super::SHARED_PAGE.address();
    let page = NonNull::new(page as *mut sys::shared_info).expect("a static has an address");
    // SAFETY: the line above mapped it there; where that failed the domain ends below.
    unsafe { shared_info::install(page) };
    shared_info::two_level().mask_all();
    let vcpu_info = smp::register_vcpu_info(0);

    // Whatever failed above is reported once there is a console to report it on.
    let xenstore = if now.flags & sys::SIF_INITDOMAIN != 0 {
        console::init(Sink::Xen);
        None
    } else {
        rings().install()
    };
    gs.expect("the GS base can be set");
    shared.expect("the shared page can be mapped");
    vcpu_info.expect("vcpu_info of vCPU 0 can be registered");
    shared_info::describe_memory(memory());
    trap::init_pv();
    protect();

    let domain_type = DomainType::Pv;
    super::finish(Found { domain_type, cmdline: cmdline(), xenstore }, main)
}

/// The command line, which Xen ends with a zero byte.
fn cmdline() -> &'static [u8] {
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
fn rings() -> Rings {
    let info = start_info();
    // SAFETY: this is no initial domain, so the union holds the domU member.
    let console = unsafe { info.console.domU };
    let console = Port::new(console.evtchn).map(|port| {
        let ring = page_of(console.mfn).cast::<ConsoleRing>();
        // SAFETY: the toolstack made the page and never takes it away; its fields are atomics.
        (unsafe { &*ring }, port)
    });
    let xenstore = Port::new(info.store_evtchn).map(|port| {
        let ring = page_of(info.store_mfn).cast::<crate::xenstore::Ring>();
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

/// Maps the shared page over the placeholder.
fn map_shared_info() -> Result<(), Errno> {
    let entry = start_info().shared_info | (super::DATA | PageTableFlags::USER_ACCESSIBLE).bits();
    // SAFETY: nothing uses the placeholder page as what it is declared.
    unsafe { map(super::SHARED_PAGE.address(), entry) }
}

/// Maps the placeholder again: the shared page is Xen's, and a page of Xen's cannot be saved.
fn unmap_shared_info() -> Result<(), Errno> {
    let page = super::SHARED_PAGE.address();
    let entry = machine_frame(page) << 12 | (super::DATA | PageTableFlags::USER_ACCESSIBLE).bits();
    // SAFETY: only the bits of event channels are looked at there, and no vCPU does meanwhile.
    unsafe { map(page, entry) }
}

/// Where the toolstack finds the domain's own view of its memory.
fn memory() -> shared_info::Memory {
    let info = start_info();
    shared_info::Memory {
        pages: info.nr_pages,
        page_table: page_table_frame() << 12,
        frames: info.mfn_list,
    }
}

/// See [`super::suspend`]. The toolstack writes machine frames for frame numbers: in page tables, in
/// the table of frames, and in `start_info`, where it wants our own numbers.
pub(super) fn suspend() -> Result<Resumed, Errno> {
    let info = START_INFO.load(Relaxed);
    let before = start_info();
    // SAFETY: this is no initial domain, so the union holds the domU member.
    let console = unsafe { before.console.domU }.mfn;
    let own = |frame| (page_of(frame) as usize / PAGE_SIZE) as u64;
    set_ring_frames(info, own(before.store_mfn), own(console));
    unmap_shared_info()?;
    let resumed = hypercall::sched_suspend(machine_frame(info as usize));
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
unsafe fn set_gs_base(base: u64) -> Result<(), Errno> {
    let arguments = [sys::SEGBASE_GS_KERNEL as usize, base as usize, 0, 0];
    // SAFETY: the caller's promise.
    unsafe { hypercall::call(sys::__HYPERVISOR_set_segment_base, arguments) }.map(drop)
}

/// Takes away what no code needs: writing to code and constants, executing data, page 0 and the
/// guard pages. Xen builds everything writable and executable.
fn protect() {
    // Page 0 is mapped because VIRT_BASE is 0.
    for address in core::iter::once(0).chain(super::image().step_by(PAGE_SIZE)) {
        if address == super::SHARED_PAGE.address() {
            continue; // mapped by hand, and not a page of ours
        }
        let entry = super::protection(address).map_or(0, |flags| {
            machine_frame(address) << 12 | (flags | PageTableFlags::USER_ACCESSIBLE).bits()
        });
        // SAFETY: code stays executable, data writable, constants readable; the rest is never used.
        unsafe { map(address, entry) }.expect("a page of the image can be protected");
    }
}
