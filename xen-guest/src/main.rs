//! The image: the boot half and the programme, joined.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

use xen_guest::heap::Heap;

#[global_allocator]
static HEAP: Heap = Heap;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    xen_guest::crash::panic(info)
}

xen_guest::kernel!(xen_guest::programme::run);
