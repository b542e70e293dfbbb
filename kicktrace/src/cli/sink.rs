//! Files a command writes.
//!
//! Owns where output goes: `-` is standard output, bytes never go to a terminal, and no output is
//! written over an input.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Failure;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// For people and for programs.
    Text,
    /// For programs alone.
    Binary,
}

/// Whether this path is standard output.
pub(super) fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Opens `path` for writing, beside the files that are `read`.
pub(super) fn create(path: &Path, kind: Kind, read: &[&str]) -> Result<Box<dyn Write>, Failure> {
    if is_stdout(path) {
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

/// Refuses a path that is one of the files that are read, by whatever name or link.
pub(super) fn refuse_inputs(path: &Path, read: &[&str]) -> Result<(), Failure> {
    // Pipes and devices keep nothing that could be destroyed.
    let identity = |path: &Path| {
        let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        Some((meta.dev(), meta.ino()))
    };
    let Some(output) = identity(path) else { return Ok(()) };
    for input in read {
        let name = if *input == "-" { "/dev/stdin" } else { input };
        if identity(Path::new(name)) == Some(output) {
            return Err(Failure::Usage(format!(
                "{}: this is the trace that is read: writing it would destroy it; name another file",
                path.display()
            )));
        }
    }
    Ok(())
}
