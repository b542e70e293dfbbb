//! The library that keeps the emulator's main loop from disturbing repeatable runs.
//!
//! Owns its bytes, which the build script made from the package `pvlab-lockstep`, and the check that it
//! has found its thread. Why it is needed stands in its own sources.

use std::fs;
use std::path::Path;

use super::{Error, Mode};

#[cfg(not(no_guest_image))]
static LIBRARY: Option<&[u8]> = Some(include_bytes!(env!("PVLAB_LOCKSTEP")));
// The packaged crate has no sources to build it from.
#[cfg(no_guest_image)]
static LIBRARY: Option<&[u8]> = None;

/// Its name in a run's folder, as the dynamic linker takes it: with a slash, it is no search.
pub(super) const FILE: &str = "./lockstep.so";

/// How the library's line on standard error begins.
const HELD: &str = "lockstep: ";

/// Puts the library into the folder the emulator is started in, if `mode` needs it.
pub(super) fn lay_out(folder: &Path, mode: Mode) -> Result<(), Error> {
    if mode == Mode::Parallel {
        return Ok(());
    }
    let Some(library) = LIBRARY else {
        return Err(Error::Setting(
            "this pvlab was built without the sources of pvlab-lockstep, which repeatable runs need: build it from its repository, or leave out --repeatable".into(),
        ));
    };
    let file = folder.join(FILE);
    fs::write(&file, library).map_err(Error::file("write", &file))
}

/// Whether the library says, in what the emulator wrote to standard error, that it works.
pub(super) fn held(stderr: &str) -> bool {
    stderr.lines().any(|line| line.starts_with(HELD))
}
