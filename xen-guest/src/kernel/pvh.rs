//! What a PVH domain has of its own: everything of the CPU.
//!
//! This file owns the page tables (identity, first 4 GiB). Addresses equal guest-physical ones. The
//! CPU's descriptor tables are in `descriptors.rs`.

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::Release;
use core::sync::atomic::compiler_fence;

use evtchn::Errno;
use x86_64::PhysAddr;
use x86_64::registers::control::Cr3;
use x86_64::structures::paging::{PageTable, PageTableFlags};

use super::descriptors::UPCALL_VECTOR;
use super::image::{image, protection};
use crate::daemons::rings::Rings;
use crate::events::{shared_info, upcall};
use crate::xen::abi::PAGE_SIZE;
use crate::xen::hypercall::{self, Resumed};

/// What the entry code loads into cr3: the root, the second level, and four directories of 2 MiB
/// pages that cover 4 GiB: the image, RAM, Xen's special pages and the local APIC. The entry code
/// links them, because only the linker knows their addresses.
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

/// The root table, for cr3 of another vCPU.
pub(super) fn page_table_root() -> u64 {
    Cr3::read().0.start_address().as_u64()
}

/// The console's and xenstore's rings.
pub(super) fn rings() -> Rings {
    // SAFETY: the first 4 GiB are mapped one to one, and the toolstack's pages lie there.
    unsafe { Rings::of_pvh(|frame| frame as usize * PAGE_SIZE) }
}

/// Stops the domain so that it can be saved; returns when it goes on, with the shared page and the
/// rings in use again. The memory is as it was; only what Xen adds to it must be asked for again.
pub(super) fn suspend() -> Result<Resumed, Errno> {
    let resumed = hypercall::sched_suspend(0)?;
    if resumed == Resumed::Restored {
        shared_info::map_pvh()?;
        rings().reconnect();
        // Not saved with the domain, and the next suspend may be one that is cancelled.
        upcall::announce_pvh(UPCALL_VECTOR)?;
    }
    Ok(resumed)
}

/// Takes away what no code needs: writing to code and constants, executing data, page 0 and the
/// guard pages.
pub(super) fn protect() {
    assert!(image().end <= FINE * LARGE_PAGE, "the image outgrew its fine page tables");
    // SAFETY: one vCPU runs, and this is the only use.
    let fine = unsafe { &mut *FINE_TABLES.0.get() };
    for (page, entry) in fine.iter_mut().flat_map(PageTable::iter_mut).enumerate() {
        let address = page * PAGE_SIZE;
        if let Some(flags) = protection(address) {
            entry.set_addr(PhysAddr::new(address as u64), flags);
        }
    }
    // The tables above are in memory before the CPU is led to them.
    compiler_fence(Release);
    // SAFETY: one vCPU runs, and it uses no reference to the tables but this.
    let tables = unsafe { &mut *TABLES.0.get() };
    for (page, entry) in tables[2..].iter_mut().flatten().enumerate() {
        let protected = protected(*entry, fine.get(page));
        // SAFETY: an entry of the array. Volatile: written once, with what it is to be for good,
        // since the CPU may look at it after every store.
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

    /// Taking execution from all large pages first, and then giving the image's its tables, hung
    /// domains at boot: the CPU may look at an entry in between, and then it could run neither this
    /// code nor the handler of the fault.
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
