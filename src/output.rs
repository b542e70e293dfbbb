//! Standard output, on which the results go.
//!
//! Owns what happens when it is closed or full. Everything this program prints goes through here: the
//! macros of the standard library panic where nobody reads any more.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Result};

/// Writes `text` as it is.
///
/// A reader that has gone away (`pvlab scenarios | head -1`) is no error: what it wanted, it has.
///
/// # Errors
///
/// If it cannot be written, as on a full disk.
pub fn print(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    done(write!(out, "{text}").and_then(|()| out.flush()))
}

/// Writes `bytes` as they are.
///
/// # Errors
///
/// As [`print`].
pub fn bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    done(out.write_all(bytes).and_then(|()| out.flush()))
}

/// Writes `text` and a line end to standard error. A closed standard error is nobody's problem.
pub fn note(text: impl Display) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}

fn done(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output; free some space there"),
    }
}
