//! Ctrl-C, told to whoever waits.
//!
//! Owns the handlers of SIGINT, SIGTERM and SIGHUP: the first signal sets a flag, so that domains are
//! destroyed, QEMU is ended and what was collected is kept; the second ends the process at once.
//! Whoever waits for something must look at [`requested`] at least a few times a second.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// The error of work that was cut short by a signal.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Installs the handlers. Later calls do nothing.
///
/// # Errors
///
/// If the operating system refuses a handler.
pub fn install() -> io::Result<()> {
    if FLAG.get().is_some() {
        return Ok(());
    }
    let flag = FLAG.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the second signal must find the flag set by the first, not by itself.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(flag))?;
        signal_hook::flag::register(signal, Arc::clone(flag))?;
    }
    Ok(())
}

/// Whether a signal has asked this process to end.
pub fn requested() -> bool {
    // Relaxed: the flag carries no data, it only has to be seen soon.
    FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// [`requested`] as an error to return with `?`.
///
/// # Errors
///
/// [`Interrupted`] once a signal has come.
pub fn check() -> Result<(), Interrupted> {
    if requested() { Err(Interrupted) } else { Ok(()) }
}
