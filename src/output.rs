//! Standard output, on which the results go.
//!
//! Owns what happens when it is closed or full. Everything this program prints goes through here: the
//! macros of the standard library panic where nobody reads any more.

use std::env;
use std::fmt::{self, Display};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};

/// Writes `text` as it is.
///
/// A reader that has gone away (`pvlab scenarios | head -1`) is no error: what it wanted, it has.
///
/// # Errors
///
/// If it cannot be written, as on a full disk.
pub fn print(text: impl Display) -> Result<()> {
    done(write!(io::stdout().lock(), "{text}"))
}

/// Writes `bytes` as they are.
///
/// # Errors
///
/// As [`print()`].
pub fn bytes(bytes: &[u8]) -> Result<()> {
    done(io::stdout().lock().write_all(bytes))
}

/// Writes `text` and a line end to standard error. A closed standard error is nobody's problem.
pub fn note(text: impl Display) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// The width of the terminal on standard output, in characters; `None` if it is none.
pub fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col.into())
}

/// A file, which a terminal on standard error offers to open.
pub struct Link<'a>(pub &'a Path);

impl Display for Link<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.display();
        let clever = io::stderr().is_terminal() && env::var_os("TERM").is_none_or(|t| t != "dumb");
        let Some(path) = std::path::absolute(self.0).ok().filter(|_| clever) else {
            return write!(f, "{shown}");
        };
        // OSC 8. In an address, bytes beyond plain letters are written in hexadecimal.
        f.write_str("\x1b]8;;file://")?;
        for byte in path.as_os_str().as_encoded_bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => {
                    write!(f, "{}", *byte as char)?;
                }
                byte => write!(f, "%{byte:02X}")?,
            }
        }
        write!(f, "\x1b\\{shown}\x1b]8;;\x1b\\")
    }
}

/// What became of something `written` to standard output by others.
///
/// # Errors
///
/// As [`print()`].
pub fn done(written: io::Result<()>) -> Result<()> {
    match written.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output; free some space there"),
    }
}
