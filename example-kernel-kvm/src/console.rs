//! The machine's first serial port (16550): `print!` for one vCPU, and one byte in.

use core::arch::asm;
use core::fmt;

const PORT: u16 = 0x3f8;
const LINE_STATUS: u16 = PORT + 5;
const READY_TO_SEND: u8 = 1 << 5;
const RECEIVED: u8 = 1 << 0;

fn read(port: u16) -> u8 {
    let value;
    // SAFETY: a register of the serial port.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

fn write(port: u16, value: u8) {
    // SAFETY: a register of the serial port, or of QEMU's exit device.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// How many vCPUs QEMU gave this machine, if this is QEMU: fw_cfg's signature (key 0) and number of CPUs
/// (key 5; QEMU docs/specs/fw_cfg.rst).
pub fn qemu_vcpus() -> Option<u32> {
    const SELECTOR: u16 = 0x510;
    const DATA: u16 = 0x511;
    let select = |key: u16| {
        // SAFETY: selects what the data port gives next; nothing else hears it.
        unsafe { asm!("out dx, ax", in("dx") SELECTOR, in("ax") key, options(nomem, nostack)) };
    };
    select(0);
    if core::array::from_fn(|_| read(DATA)) != *b"QEMU" {
        return None;
    }
    select(5);
    Some(u16::from_le_bytes(core::array::from_fn(|_| read(DATA))).into())
}

/// Waits for a byte of the person or program at the other end.
pub fn wait_for_byte() -> u8 {
    while read(LINE_STATUS) & RECEIVED == 0 {
        core::hint::spin_loop();
    }
    read(PORT)
}

/// Ends the machine: QEMU's `isa-debug-exit` at port 0xf4 makes `2 * code + 1` its exit status. Without that
/// device the machine stands still.
pub fn exit(code: u8) -> ! {
    write(0xf4, code);
    loop {
        // SAFETY: interrupts are off: for good.
        unsafe { asm!("hlt", options(nomem, nostack)) };
    }
}

pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while read(LINE_STATUS) & READY_TO_SEND == 0 {}
            write(PORT, byte);
        }
        Ok(())
    }
}
