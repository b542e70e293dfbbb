//! Where the domain's memory is, and what Xen has to say to the kernel.
//!
//! Owns the lists that ArceOS asks for. It allocates nothing; addresses are guest-physical ones.

use axplat::mem::{MemIf, PAGE_SIZE_4K, PhysAddr, RawRange, VirtAddr, pa, va};
use heapless::{String, Vec};
use pvh::start_info::MemmapType;
use pvh::start_info::reader::StartInfoReader;
use spin::Once;
use xen_guest::daemons::rings::Rings;

use crate::config::devices::MMIO_RANGES;
use crate::config::plat::{KERNEL_ASPACE_BASE, KERNEL_ASPACE_SIZE};

/// More than Xen's toolstack makes.
const MAX_RANGES: usize = 16;

/// Longer command lines are cut.
const MAX_CMDLINE: usize = 1024;

static RAM: Once<Vec<RawRange, MAX_RANGES>> = Once::new();
static RESERVED: Once<Vec<RawRange, 3>> = Once::new();
static CMDLINE: Once<String<MAX_CMDLINE>> = Once::new();

/// What the domain's configuration says in `extra=`; empty where that is no UTF-8.
pub fn cmdline() -> &'static str {
    CMDLINE.get().map_or("", |line| line.as_str())
}

/// Reads Xen's lists, whose memory ArceOS gives away afterwards.
pub(crate) fn init(start_info: usize, rings: &Rings) {
    let start_info = u32::try_from(start_info).expect("start_info lies below 4 GiB");
    // SAFETY: what Xen passed to the entry code; the first 4 GiB are mapped one to one.
    let info = unsafe { StartInfoReader::from_paddr_identity(start_info) }
        .expect("Xen passed a start_info with its magic number");
    RAM.call_once(|| {
        let ram = info.memmap().iter().filter(|range| range.ty() == MemmapType::Ram);
        ram.filter_map(|range| mapped(range.addr as usize, range.size as usize)).collect()
    });
    RESERVED.call_once(|| {
        // The first MiB, as on every PC; and the rings, which are mapped and are no RAM.
        let console = rings.console.map(|(ring, _)| core::ptr::from_ref(ring).addr());
        let xenstore = rings.xenstore.map(|(ring, _)| core::ptr::from_ref(ring).addr());
        let pages = [console, xenstore].into_iter().flatten();
        core::iter::once((0, 1 << 20)).chain(pages.map(|page| (page, PAGE_SIZE_4K))).collect()
    });
    CMDLINE.call_once(|| {
        let line = info.cmdline().and_then(|line| line.to_str().ok()).unwrap_or("");
        line.chars().take(MAX_CMDLINE / 4).collect()
    });
}

/// The part of a range that the boot page tables map.
fn mapped(start: usize, size: usize) -> Option<RawRange> {
    let end = (start + size).min(KERNEL_ASPACE_SIZE);
    (start < end).then(|| (start, end - start))
}

struct Mem;

#[impl_plat_interface]
impl MemIf for Mem {
    fn phys_ram_ranges() -> &'static [RawRange] {
        RAM.get().map_or(&[], |ranges| ranges.as_slice())
    }

    fn reserved_phys_ram_ranges() -> &'static [RawRange] {
        RESERVED.get().map_or(&[], |ranges| ranges.as_slice())
    }

    fn mmio_ranges() -> &'static [RawRange] {
        &MMIO_RANGES
    }

    fn phys_to_virt(paddr: PhysAddr) -> VirtAddr {
        va!(paddr.as_usize())
    }

    fn virt_to_phys(vaddr: VirtAddr) -> PhysAddr {
        pa!(vaddr.as_usize())
    }

    fn kernel_aspace() -> (VirtAddr, usize) {
        (va!(KERNEL_ASPACE_BASE), KERNEL_ASPACE_SIZE)
    }
}
