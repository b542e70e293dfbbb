//! The two files of a Linux domain, made from a kernel and its build tree.
//!
//! Owns the compiling of `linux-peer/` and the initramfs around it. It downloads nothing and installs
//! nothing; the compiler is the machine's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::budget::{self, Place};
use crate::lab::{Archive, uncompressed_linux};

/// The sources of the module, by name.
pub(crate) const SOURCES: [(&str, &str); 2] = [
    ("Makefile", include_str!("../../linux-peer/Makefile")),
    ("pvlab_linux.c", include_str!("../../linux-peer/pvlab_linux.c")),
];
pub(crate) const INIT: &str = include_str!("../../linux-peer/init");

/// What a Linux domain boots from, in memory.
#[derive(Clone, Debug)]
pub struct Files {
    /// The kernel, uncompressed, without sections.
    pub kernel: Vec<u8>,
    /// The initramfs.
    pub initrd: Vec<u8>,
    /// Where the spin budget stands in `kernel`, or why nobody knows.
    pub places: Result<Vec<Place>, String>,
    /// Whether these loops PAUSE, as they do in a kernel as it ships.
    pub pause: bool,
    /// The packages they come from, with their versions; none for a kernel that a person named.
    pub packages: BTreeMap<String, String>,
}

/// What [`build`] makes the files of.
#[derive(Clone, Debug)]
pub struct Ingredients<'a> {
    /// The kernel's file, as in /boot.
    pub kernel: &'a Path,
    /// The tree to build modules in, as in /lib/modules/VERSION/build.
    pub tree: &'a Path,
    /// A busybox that needs no library.
    pub busybox: &'a Path,
    /// A folder with libraries for the tree's own programs, which the machine may lack.
    pub libraries: Option<&'a Path>,
}

/// Compiles the module in `work`, a folder of its own, and makes both files.
///
/// # Errors
///
/// Without a C compiler or make, or where the module does not compile: with the compiler's own words.
pub fn build(from: &Ingredients, work: &Path) -> Result<Files> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let kernel = uncompressed_linux(read(from.kernel)?)
        .map_err(|what| anyhow::anyhow!("{} is no Linux kernel: {what}", from.kernel.display()))?;
    let places = budget::find(&kernel).map_err(|error| format!("{error:#}"));
    let mut archive = Archive::default();
    archive.bytes("/init", 0o755, INIT.as_bytes());
    archive.bytes("/pvlab_linux.ko", 0o644, read(&module(from, work)?)?);
    archive.file("/bin/busybox", 0o755, from.busybox);
    archive.directory("/proc");
    archive.directory("/dev");
    let mut initrd = Vec::new();
    archive.write(&mut initrd).context("cannot make the initramfs of the Linux domain")?;
    Ok(Files { kernel, initrd, places, pause: true, packages: BTreeMap::new() })
}

fn module(from: &Ingredients, work: &Path) -> Result<PathBuf> {
    fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
    for (name, text) in SOURCES {
        let file = work.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut make = Command::new("make");
    make.arg("-C").arg(from.tree).arg(format!("M={}", work.display()));
    // Not the compiler the kernel was built with, by its full name: the machine's own will do.
    make.args(["CC=gcc", "HOSTCC=gcc", "modules"]);
    // A make or a cargo above this one must not speak to it.
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CARGO_MAKEFLAGS"] {
        make.env_remove(name);
    }
    if let Some(libraries) = from.libraries {
        make.env("LD_LIBRARY_PATH", libraries);
    }
    let made = make.env("LC_ALL", "C").stdin(Stdio::null()).output().context(
        "cannot start make, which builds the module for Linux; install make and gcc (Debian: make gcc)",
    )?;
    let object = work.join("pvlab_linux.ko");
    if !made.status.success() || !object.is_file() {
        let said = String::from_utf8_lossy(&made.stderr);
        let last: Vec<&str> = said.lines().rev().take(15).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        bail!(
            "the module for Linux does not build in {} ({}): install gcc, make and libelf (Debian: gcc make libelf1), \
             or name another build tree; make says:\n  {}",
            from.tree.display(),
            made.status,
            last.join("\n  ")
        );
    }
    Ok(object)
}
