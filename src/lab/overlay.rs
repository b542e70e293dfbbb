//! Files that a run adds to dom0's image.

use std::env;
use std::fs;
use std::path::PathBuf;

use super::Error;
use super::elf;

/// A file placed in dom0 before it starts.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// Absolute path in dom0. It must not be one of dom0's own files.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What it holds.
    pub content: Content,
}

/// What an [`Overlay`] holds.
#[derive(Debug, Clone)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A copy of this file.
    File(PathBuf),
    /// This program, with the libraries it needs that dom0 has not got.
    Program(PathBuf),
}

impl Overlay {
    /// A file of `bytes`.
    pub fn bytes(path: impl Into<String>, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        Overlay { path: path.into(), mode, content: Content::Bytes(bytes.into()) }
    }

    /// The running program itself.
    ///
    /// # Errors
    ///
    /// If its file cannot be found.
    pub fn this_program(path: impl Into<String>) -> Result<Self, Error> {
        let program = env::current_exe()
            .map_err(Error::file("find this program's file", "/proc/self/exe"))?;
        Ok(Overlay { path: path.into(), mode: 0o755, content: Content::Program(program) })
    }
}

/// What goes into the image for a program: its loaded part.
pub(super) fn program(path: &PathBuf) -> Result<Vec<u8>, Error> {
    let bytes = fs::read(path).map_err(Error::file("read", path))?;
    elf::loaded_part(bytes).map_err(|what| {
        Error::Setting(format!("{}: {what}: only x86-64 programs run in dom0", path.display()))
    })
}
