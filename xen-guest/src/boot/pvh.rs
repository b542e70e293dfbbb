//! Booting as a PVH domain: 32-bit entry with paging off, everything of the CPU our own.
//!
//! This file owns the page tables (identity, first 4 GiB), the hypercall page's installation and the
//! parameters a PVH domain asks Xen for instead of being handed them. Addresses equal guest-physical
//! ones. The CPU's descriptor tables are in `hvm.rs`.

use core::arch::x86_64::__cpuid;
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Release;
use core::sync::atomic::compiler_fence;

use evtchn::{Errno, Port};
use pvh::start_info::reader::StartInfoReader;
use x86_64::registers::control::Cr3;
use x86_64::registers::model_specific::{GsBase, Msr};
use x86_64::structures::paging::{PageTable, PageTableFlags};
use x86_64::{PhysAddr, VirtAddr};
use xen_sys as sys;

use super::{Found, Main, Rings};
use crate::abi::{ConsoleRing, PAGE_SIZE, hvm_param};
use crate::console::{self, Sink};
use crate::hypercall::Resumed;
use crate::machine::DomainType;
use crate::percpu::PerCpu;
use crate::{hvm, hypercall, shared_info, smp};

/// What the entry code loads into cr3: the root, the second level, and four directories of 2 MiB
/// pages that cover 4 GiB: the image, RAM, Xen's special pages and the local APIC. The entry code links
/// them, because only the linker knows their addresses.
#[repr(C, align(4096))]
pub struct Tables(UnsafeCell<[[u64; 512]; 6]>);

// SAFETY: written by the entry code and by `protect`, both while one vCPU runs; read by CPUs.
unsafe impl Sync for Tables {}

/// The page tables of the domain.
pub static TABLES: Tables = Tables(UnsafeCell::new(identity()));

const LARGE_PAGE: usize = 2 << 20;

const fn identity() -> [[u64; 512]; 6] {
    /// Present, writable, 2 MiB.
    const BITS: u64 = 1 | 1 << 1 | 1 << 7;
    let mut tables = [[0; 512]; 6];
    let mut page = 0;
    while page < 4 * 512 {
        tables[2 + page / 512][page % 512] = (page * LARGE_PAGE) as u64 | BITS;
        page += 1;
    }
    tables
}

/// Last-level tables of the first [`FINE`] large pages, where the image lies.
#[repr(C, align(4096))]
struct Fine(UnsafeCell<[PageTable; FINE]>);

/// How many large pages have protections page by page.
const FINE: usize = 8;

// SAFETY: written by `protect` while one vCPU runs; read by CPUs.
unsafe impl Sync for Fine {}

static FINE_TABLES: Fine = Fine(UnsafeCell::new([const { PageTable::new() }; FINE]));

/// First Rust code of vCPU 0, in 64-bit mode, on its own stack.
///
/// # Safety
///
/// Called once, by the entry code, with the address of `hvm_start_info` that Xen passed.
#[allow(improper_ctypes_definitions, reason = "the entry code passes the function's address on")]
pub unsafe extern "C" fn start(info: u32, main: Main) -> ! {
    // Before this line nothing may touch per-vCPU data.
    GsBase::write(VirtAddr::new(PerCpu::prepare(0)));
    hvm::init_vcpu();
    install_hypercall_page();
    protect();

    let shared = map_shared_info();
    shared_info::two_level().mask_all();
    let vcpu_info = smp::register_vcpu_info(0);
    // SAFETY: Xen leaves the structure and what it points to where it is; the first 4 GiB are
    // mapped one to one.
    let info = unsafe { StartInfoReader::from_paddr_identity(info) };
    let initial =
        info.as_ref().is_some_and(|info| info.raw().flags.bits() & sys::SIF_INITDOMAIN != 0);
    // Whatever failed above is reported once there is a console to report it on.
    let xenstore = if initial {
        console::init(Sink::Xen);
        None
    } else {
        rings().install()
    };
    shared.expect("the shared page can be mapped");
    vcpu_info.expect("vcpu_info of vCPU 0 can be registered");
    hvm::init_upcalls(0).expect("an upcall vector can be set");
    hvm::announce_upcalls().expect("a PVH domain may choose how its events come");

    let info = info.expect("Xen passed a start_info with its magic number");
    let cmdline = info.cmdline().map_or(&[][..], |line| line.to_bytes());
    super::finish(Found { domain_type: DomainType::Pvh, cmdline, xenstore }, main)
}

/// The root table, for cr3 of another vCPU.
pub(crate) fn page_table_root() -> u64 {
    Cr3::read().0.start_address().as_u64()
}

/// Lets Xen fill the hypercall page with what this CPU wants: vmcall or vmmcall.
///
/// The leaves are found by signature, since another hypervisor's may come first. Xen
/// public/arch-x86/cpuid.h.
fn install_hypercall_page() {
    let is_xen = |base: u32| {
        let leaf = __cpuid(base);
        [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat() == *b"XenVMMXenVMM"
    };
    let base = (0x4000_0000..0x4001_0000).step_by(0x100).find(|base| is_xen(*base));
    let Some(base) = base else {
        // Without Xen there is no console to say so on.
        // SAFETY: stops this CPU: it faults, and again in the fault's handler.
        unsafe { core::arch::asm!("ud2", options(noreturn)) };
    };
    let mut register = Msr::new(__cpuid(base + 2).ebx);
    // SAFETY: Xen writes the page named, which is there for that.
    unsafe { register.write(hypercall::page() as u64) };
}

/// Puts the shared page where the placeholder was.
fn map_shared_info() -> Result<(), Errno> {
    let page = super::SHARED_PAGE.address();
    let result = hypercall::map_shared_info(page / PAGE_SIZE);
    let page = NonNull::new(page as *mut sys::shared_info).expect("a static has an address");
    // SAFETY: mapped there; where that failed the domain ends with a message.
    unsafe { shared_info::install(page) };
    result
}

/// The console's and xenstore's rings.
fn rings() -> Rings {
    let ring = |frame: u32, port: u32| {
        let frame = hypercall::hvm_param(frame).ok().filter(|frame| *frame != 0)?;
        let port = hypercall::hvm_param(port).ok()?;
        Some((frame as usize * PAGE_SIZE, Port::new(u32::try_from(port).ok()?)?))
    };
    let console = ring(hvm_param::CONSOLE_PFN, hvm_param::CONSOLE_EVTCHN).map(|(address, port)| {
        // SAFETY: the toolstack made the page, below 4 GiB, and never takes it away; its fields
        // are atomics.
        (unsafe { &*(address as *const ConsoleRing) }, port)
    });
    let xenstore = ring(hvm_param::STORE_PFN, hvm_param::STORE_EVTCHN).map(|(address, port)| {
        // SAFETY: as above.
        (unsafe { &*(address as *const crate::xenstore::Ring) }, port)
    });
    Rings { console, xenstore }
}

/// See [`super::suspend`]. The memory is as it was; only what Xen adds to it must be asked for again.
pub(super) fn suspend() -> Result<Resumed, Errno> {
    let resumed = hypercall::sched_suspend(0)?;
    if resumed == Resumed::Restored {
        map_shared_info()?;
        rings().reconnect();
        // Not saved with the domain, and the next suspend may be one that is cancelled.
        hvm::announce_upcalls()?;
    }
    Ok(resumed)
}

/// Takes away what no code needs: writing to code and constants, executing data, page 0 and the
/// guard pages.
fn protect() {
    assert!(super::image().end <= FINE * LARGE_PAGE, "the image outgrew its fine page tables");
    // SAFETY: one vCPU runs, and this is the only use.
    let fine = unsafe { &mut *FINE_TABLES.0.get() };
    for (page, entry) in fine.iter_mut().flat_map(PageTable::iter_mut).enumerate() {
        let address = page * PAGE_SIZE;
        if let Some(flags) = super::protection(address) {
            entry.set_addr(PhysAddr::new(address as u64), flags);
        }
    }
    // The tables above are in memory before the CPU is led to them.
    compiler_fence(Release);
    // SAFETY: one vCPU runs, and it uses no reference to the tables but this.
    let tables = unsafe { &mut *TABLES.0.get() };
    for (page, entry) in tables[2..].iter_mut().flatten().enumerate() {
        let protected = protected(*entry, fine.get(page));
        // SAFETY: an entry of the array. Volatile: written once, with what it is to be for good, since
        // the CPU may look at it after every store.
        unsafe { core::ptr::from_mut(entry).write_volatile(protected) };
    }
    x86_64::instructions::tlb::flush_all();
}

/// What the entry of a large page becomes: a table of its own where it has one, and otherwise data.
fn protected(large: u64, fine: Option<&PageTable>) -> u64 {
    let table_bits = (PageTableFlags::PRESENT | PageTableFlags::WRITABLE).bits();
    match fine {
        Some(table) => core::ptr::from_ref(table) as u64 | table_bits,
        None => large | PageTableFlags::NO_EXECUTE.bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Taking execution from all large pages first, and then giving the image's its tables, hung domains
    /// at boot: the CPU may look at an entry in between, and then it could run neither this code nor
    /// the handler of the fault.
    #[test]
    fn code_can_be_executed_after_every_step_of_protecting_it() {
        let no_execute = PageTableFlags::NO_EXECUTE.bits();
        let [_, _, directory, ..] = identity();
        let fine = PageTable::new();
        let image = protected(directory[0], Some(&fine));
        assert_eq!(image & no_execute, 0);
        assert_eq!(image & 1 << 7, 0, "no large page");
        let data = protected(directory[9], None);
        assert_eq!(data, directory[9] | no_execute);
    }
}
