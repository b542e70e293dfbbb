//! Shared libraries: which files a program needs to run, found as the dynamic linker would.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use goblin::elf::Elf;

use super::Error;

/// Where Debian and Ubuntu keep libraries, below a root folder.
pub(super) const LIBRARY_FOLDERS: [&str; 4] =
    ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "lib64"];

/// The libraries that `programs` need, by soname, with the file that serves each: the first found
/// below `roots`, in order. Names in `present` are taken as there already.
///
/// # Errors
///
/// A program that is no ELF file, or a library that is nowhere.
pub(super) fn libraries(
    programs: &[PathBuf],
    roots: &[&Path],
    present: &dyn Fn(&str) -> bool,
) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut found = BTreeMap::new();
    let mut queue: VecDeque<PathBuf> = programs.iter().cloned().collect();
    while let Some(file) = queue.pop_front() {
        for name in needed(&file)? {
            if present(&name) || found.contains_key(&name) {
                continue;
            }
            let path = find(&name, roots).ok_or_else(|| Error::Missing {
                what: format!("library {name}, which {} needs,", file.display()),
                packages: roots
                    .iter()
                    .map(|root| root.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", "),
            })?;
            queue.push_back(path.clone());
            found.insert(name, path);
        }
    }
    Ok(found)
}

/// The file of a library below the first root that has it.
pub(super) fn find(soname: &str, roots: &[&Path]) -> Option<PathBuf> {
    let places =
        roots.iter().flat_map(|root| LIBRARY_FOLDERS.map(|folder| root.join(folder).join(soname)));
    places.into_iter().find(|path| path.is_file())
}

/// Whether the file in `bytes` is a program that the dynamic linker starts.
pub(super) fn wants_libraries(bytes: &[u8]) -> bool {
    Elf::parse(bytes).is_ok_and(|elf| elf.interpreter.is_some())
}

/// `DT_NEEDED` entries, and the dynamic linker itself under its file name.
fn needed(file: &Path) -> Result<Vec<String>, Error> {
    let bytes = fs::read(file).map_err(Error::file("read", file))?;
    let elf = Elf::parse(&bytes).map_err(|error| Error::Damaged {
        path: file.into(),
        what: format!("not an ELF file: {error}"),
    })?;
    let linker = elf.interpreter.and_then(|path| path.rsplit('/').next());
    Ok(elf.libraries.iter().copied().chain(linker).map(str::to_owned).collect())
}

/// The part of a program that is loaded: without sections, which hold symbols and debug information
/// at the end of the file. A debug build shrinks to a tenth; it runs the same.
///
/// # Errors
///
/// If it is no 64-bit ELF program.
pub(super) fn loaded_part(mut program: Vec<u8>) -> Result<Vec<u8>, String> {
    let elf = Elf::parse(&program).map_err(|error| format!("not an ELF file: {error}"))?;
    if !elf.is_64 || !elf.little_endian {
        return Err("not an x86-64 program".into());
    }
    let end = elf.program_headers.iter().map(|segment| segment.file_range().end).max().unwrap_or(0);
    if end < 64 || end > program.len() {
        return Err("cut off".into());
    }
    program.truncate(end);
    // ELF-64 header: e_shoff at 0x28 (8 bytes); e_shentsize, e_shnum, e_shstrndx at 0x3a, 0x3c, 0x3e.
    program[0x28..0x30].fill(0);
    program[0x3c..0x40].fill(0);
    Ok(program)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn finds_what_this_very_test_needs() {
        let me = std::env::current_exe().unwrap();
        let found = libraries(std::slice::from_ref(&me), &[Path::new("/")], &|_| false).unwrap();
        assert!(
            found.contains_key("libc.so.6") && found.contains_key("ld-linux-x86-64.so.2"),
            "{found:?}"
        );
        let rest = libraries(&[me], &[Path::new("/")], &|name| found.contains_key(name)).unwrap();
        assert!(rest.is_empty());
    }

    #[test]
    fn a_library_that_is_nowhere_is_named_with_who_needs_it() {
        let me = std::env::current_exe().unwrap();
        let empty = tempfile::tempdir().unwrap();
        let error = libraries(std::slice::from_ref(&me), &[empty.path()], &|_| false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("library lib") && error.contains(me.to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_program_runs_without_its_sections() {
        let me = std::env::current_exe().unwrap();
        let whole = fs::read(me).unwrap();
        let part = loaded_part(whole.clone()).unwrap();
        assert!(part.len() < whole.len());
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy");
        fs::write(&copy, part).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        let listed = Command::new(copy).arg("--list").output().unwrap();
        assert!(
            String::from_utf8_lossy(&listed.stdout).contains("a_program_runs_without_its_sections")
        );
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(loaded_part(b"#!/bin/sh".to_vec()).is_err());
        let me = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(loaded_part(me[..5000].to_vec()).is_err());
    }
}
