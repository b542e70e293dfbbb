//! Waits for the programs that the lab runs, with an eye on signals.

use std::process::ExitStatus;
use std::thread;
use std::time::Duration;

use super::Error;
use crate::interrupt;
use crate::leash::Leashed;

/// Waits for the program's end, calling `tick` several times a second.
///
/// # Errors
///
/// What `tick` returns, and the interruption of this process by a signal.
pub(super) fn follow(
    program: &mut Leashed,
    tick: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<ExitStatus, Error> {
    loop {
        interrupt::check()?;
        tick()?;
        let ended = program.child().try_wait().map_err(Error::file("wait for", "a program"))?;
        if let Some(status) = ended {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(50));
    }
}
