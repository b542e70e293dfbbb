//! The domain's console: `print!` for one vCPU. Xen public/io/console.h.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use evtchn::Port;

use crate::xen::{self, Xen};

/// The page shared with the console daemon.
#[repr(C)]
struct Ring {
    input: [AtomicU8; 1024],
    out: [AtomicU8; 2048],
    in_cons: AtomicU32,
    in_prod: AtomicU32,
    out_cons: AtomicU32,
    out_prod: AtomicU32,
}

static RING: AtomicUsize = AtomicUsize::new(0);
static PORT: AtomicU32 = AtomicU32::new(0);

/// Asks Xen where the console is: HVM_PARAM_CONSOLE_PFN and _EVTCHN.
pub fn init() -> Result<(), evtchn::Errno> {
    // Relaxed: used by this vCPU alone.
    RING.store(xen::hvm_param(17)? as usize * 4096, Ordering::Relaxed);
    PORT.store(xen::hvm_param(18)? as u32, Ordering::Relaxed);
    Ok(())
}

fn ring() -> Option<&'static Ring> {
    let address = RING.load(Ordering::Relaxed) as *const Ring;
    // SAFETY: null, or the page the toolstack made, mapped one to one; its fields are atomics.
    unsafe { address.as_ref() }
}

/// Waits until at most `most` bytes are unread.
fn wait_for_reader(ring: &Ring, most: u32) {
    // Acquire: pairs with the daemon's store; what it read may be written over.
    while ring.out_prod.load(Ordering::Relaxed) - ring.out_cons.load(Ordering::Acquire) > most {
        xen::yield_now();
    }
}

/// Waits until everything is read: the daemon reads nothing of a domain that is gone.
pub fn flush() {
    if let Some(ring) = ring() {
        wait_for_reader(ring, 0);
    }
}

pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let Some(ring) = ring() else { return Ok(()) };
        for byte in text.bytes() {
            wait_for_reader(ring, 2047);
            let at = ring.out_prod.load(Ordering::Relaxed);
            ring.out[at as usize % 2048].store(byte, Ordering::Relaxed);
            // Release: whoever sees the new index sees the byte.
            ring.out_prod.store(at + 1, Ordering::Release);
        }
        // Without a port nobody reads.
        let _ = Port::new(PORT.load(Ordering::Relaxed)).map(|port| evtchn::send(&Xen, port));
        Ok(())
    }
}
