//! The image: the kernel of `xen-guest` and the programme, joined.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

use lab_guest::locks::heap::RoutedHeap;

#[global_allocator]
static HEAP: RoutedHeap = RoutedHeap;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    xen_guest::kernel::crash::panic(info)
}

xen_guest::kernel!(lab_guest::programme::run);
