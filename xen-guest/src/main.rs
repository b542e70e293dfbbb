//! The image: the boot half and the programme, joined.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

use xen_guest::heap::Heap;
use xen_guest::machine::{Machine, ShutdownReason};

#[global_allocator]
static HEAP: Heap = Heap;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    xen_guest::crash::panic(info)
}

xen_guest::kernel!(main);

fn main(machine: &'static Machine) -> ! {
    log::info!("{} vCPUs, command line: {}", machine.vcpus(), machine.cmdline());
    for vcpu in 1..machine.vcpus() {
        machine.start_vcpu(vcpu, |vcpu| log::info!("vCPU {vcpu} is here")).unwrap();
    }
    machine.sleep_until(machine.now() + 100_000_000);
    machine.shutdown(ShutdownReason::Poweroff)
}
