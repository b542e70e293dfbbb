//! How the image lies in memory, and what each of its pages should allow.
//!
//! This file owns the judgement. Carrying it out is the business of each kind of domain
//! ([`pv`](super::pv), [`pvh`](super::pvh)).

use x86_64::structures::paging::PageTableFlags;

use super::stack;

// From link.ld: each kind of memory starts on a page of its own.
unsafe extern "C" {
    static __text_start: u8;
    static __rodata_start: u8;
    static __data_start: u8;
    static __image_end: u8;
}

/// The addresses of the image.
pub(super) fn image() -> core::ops::Range<usize> {
    &raw const __text_start as usize..&raw const __image_end as usize
}

pub(super) const DATA: PageTableFlags =
    PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE).union(PageTableFlags::NO_EXECUTE);

/// What the page at `address` should allow; `None`: nothing.
pub(super) fn protection(address: usize) -> Option<PageTableFlags> {
    let constants = &raw const __rodata_start as usize;
    let data = &raw const __data_start as usize;
    if address == 0 || stack::guards().contains(&address) && stack::is_guard(address) {
        None
    } else if (image().start..constants).contains(&address) {
        Some(PageTableFlags::PRESENT)
    } else if (constants..data).contains(&address) {
        Some(PageTableFlags::PRESENT | PageTableFlags::NO_EXECUTE)
    } else {
        Some(DATA)
    }
}
