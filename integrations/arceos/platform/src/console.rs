//! Text, out and in, by the domain's console ring.
//!
//! Owns that no task is stopped while it has the console: `xen-guest` guards the ring with a lock of
//! its own, and ArceOS calls this under different locks of its own, or none.

use axplat::console::ConsoleIf;
use x86_64::instructions::interrupts;
use xen_guest::daemons::console;

use crate::irq;

struct Console;

#[impl_plat_interface]
impl ConsoleIf for Console {
    fn write_bytes(bytes: &[u8]) {
        interrupts::without_interrupts(|| console::write(bytes));
    }

    fn read_bytes(bytes: &mut [u8]) -> usize {
        interrupts::without_interrupts(|| console::read(bytes))
    }

    fn irq_num() -> Option<usize> {
        Some(irq::CONSOLE_IRQ)
    }
}
