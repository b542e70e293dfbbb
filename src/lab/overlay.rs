//! Files that a run adds to dom0's image.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

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

/// Folders on which dom0 mounts something before a script runs.
const MOUNTED: [&str; 8] =
    ["/dev/", "/lab/", "/out/", "/proc/", "/run/", "/sys/", "/var/lock/", "/var/run/"];

/// A file of this machine for dom0: `SRC` or `SRC=DST`, where DST is an absolute path; without it, `/root` and the
/// name of the file.
impl FromStr for Overlay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (source, path) = match text.rsplit_once("=/") {
            Some((source, path)) => (source, format!("/{path}")),
            None => {
                let name = Path::new(text).file_name().and_then(|name| name.to_str());
                (text, format!("/root/{}", name.ok_or("write SRC or SRC=/PATH/IN/DOM0")?))
            }
        };
        let source = PathBuf::from(source);
        let read =
            |error| format!("{}: {error}; give --file a file that can be read", source.display());
        let about = fs::metadata(&source).map_err(read)?;
        if !about.is_file() {
            return Err(format!("{} is not a file; pack a folder first (tar)", source.display()));
        }
        let plain = |part: &str| !matches!(part, "" | "." | "..");
        if !path.split('/').skip(1).all(plain) {
            return Err(format!("{path}: write the whole path of the file in dom0, without .."));
        }
        if let Some(folder) = MOUNTED.iter().find(|folder| path.starts_with(**folder)) {
            return Err(format!(
                "{path} could not be seen: dom0 mounts {folder}; write another place"
            ));
        }
        let mode = about.permissions().mode() & 0o7777;
        let bytes = fs::read(&source).map_err(read)?;
        let content = if elf::wants_libraries(&bytes) {
            Content::Program(source)
        } else {
            Content::Bytes(bytes)
        };
        Ok(Overlay { path, mode, content })
    }
}

/// What goes into the image for a program: its loaded part.
pub(super) fn program(path: &PathBuf) -> Result<Vec<u8>, Error> {
    let bytes = fs::read(path).map_err(Error::file("read", path))?;
    elf::loaded_part(bytes).map_err(|what| {
        Error::Setting(format!("{}: {what}: only x86-64 programs run in dom0", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_where_a_file_would_not_be_found_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "text").unwrap();
        let at = |place: &str| format!("{}{place}", file.display()).parse::<Overlay>();
        assert_eq!(at("").unwrap().path, "/root/a");
        assert_eq!(at("=/bin/a").unwrap().path, "/bin/a");
        for (place, word) in [
            ("=/root/", "whole path"),
            ("=/root/../a", "without .."),
            ("=//a", "whole path"),
            ("=/run/a", "mounts /run/"),
            ("=/out/a", "mounts /out/"),
        ] {
            let error = at(place).unwrap_err();
            assert!(error.contains(word), "{place}: {error}");
        }
    }
}
