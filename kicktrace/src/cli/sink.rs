//! What a command writes to.
//!
//! Owns where output goes and how wide that is: `-` is standard output, bytes never go to a
//! terminal, and no output is written over an input.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Failure;
use super::input::is_dash;

/// Columns of the terminal that standard output is, if it is one.
pub(super) fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|&columns| columns > 0)
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// For people and for programs.
    Text,
    /// For programs alone.
    Binary,
}

/// Opens `path` for writing, beside the files that are `read`.
pub(super) fn create(path: &Path, kind: Kind, read: &[&Path]) -> Result<Box<dyn Write>, Failure> {
    if is_dash(path) {
        if kind == Kind::Binary && io::stdout().is_terminal() {
            let text = "this is no text, and standard output is a terminal: name a file, or a pipe";
            return Err(Failure::Usage(text.into()));
        }
        return Ok(Box::new(BufWriter::new(io::stdout().lock())));
    }
    refuse_inputs(path, read)?;
    let name = path.display().to_string();
    match File::create(path) {
        Ok(file) => Ok(Box::new(BufWriter::new(Named { file, name }))),
        Err(source) => Err(Failure::Open { name, source }),
    }
}

/// A file whose errors name it.
struct Named {
    file: File,
    name: String,
}

impl Write for Named {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes);
        written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.name)))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Refuses to write to standard output if that is one of the files that are read: `kicktrace dump
/// FILE >> FILE` would read what it writes.
pub(super) fn refuse_stdout(read: &[PathBuf]) -> Result<(), Failure> {
    let output = identity(Path::new("/dev/stdout"));
    match read.iter().find(|input| output.is_some() && identity(source(input)) == output) {
        Some(input) => Err(Failure::Usage(format!(
            "{}: standard output is the trace that is read: name another file",
            input.display()
        ))),
        None => Ok(()),
    }
}

/// What tells one file from another, whatever its names. Pipes and devices keep nothing that could
/// be destroyed.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    Some((meta.dev(), meta.ino()))
}

/// Where an input comes from.
fn source(input: &Path) -> &Path {
    if is_dash(input) { Path::new("/dev/stdin") } else { input }
}

/// Refuses a path that is one of the files that are read, by whatever name or link.
pub(super) fn refuse_inputs(path: &Path, read: &[&Path]) -> Result<(), Failure> {
    let Some(output) = identity(path) else { return Ok(()) };
    for &input in read {
        if identity(source(input)) == Some(output) {
            return Err(Failure::Usage(format!(
                "{}: this file is read: writing it would destroy it; name another file",
                path.display()
            )));
        }
    }
    Ok(())
}
