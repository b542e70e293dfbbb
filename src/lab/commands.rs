//! What `pvlab lab ...` does, one function a subcommand.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::cache::Cache;
use super::{Boot, Ended, Error, Lab, Release};
use crate::progress::Progress;

/// `pvlab lab prepare`: makes the lab and says what it is made of, on standard output.
///
/// # Errors
///
/// As [`Lab::prepare`].
pub fn prepare(release: Option<&Release>, progress: &Progress) -> Result<(), Error> {
    let lab = Lab::prepare_release(release, progress)?;
    let mut out = io::stdout().lock();
    let mut line =
        |text: String| writeln!(out, "{text}").map_err(Error::file("write", "standard output"));
    line(format!("the lab in {} is ready:", lab.folder.display()))?;
    let named = |name: &str| {
        name.starts_with("xen-hypervisor-")
            || name.starts_with("linux-image-")
            || name == "qemu-system-x86"
    };
    for (package, version) in lab.versions().iter().filter(|(name, _)| named(name)) {
        line(format!("  {package} {version}"))?;
    }
    line(format!(
        "  and {} more packages",
        lab.versions().keys().filter(|name| !named(name)).count()
    ))
}

/// `pvlab lab shell`: a shell in dom0 on this terminal. Ctrl-A X ends it at once, `poweroff -f` in order.
///
/// # Errors
///
/// As [`Lab::prepare`] and [`Lab::run`].
pub fn shell(release: Option<&Release>, boot: &Boot, progress: &Progress) -> Result<(), Error> {
    let lab = Lab::prepare_release(release, progress)?;
    progress.note("starting dom0; Ctrl-A X ends it");
    super::machine::shell(&lab, boot)
}

/// `pvlab lab boot --script FILE`: runs a script in dom0 with its console on standard output.
///
/// # Errors
///
/// As [`Lab::prepare`] and [`Lab::run`].
pub fn boot(
    script: &Path,
    release: Option<&Release>,
    mut boot: Boot,
    progress: &Progress,
) -> Result<Ended, Error> {
    boot.script = fs::read_to_string(script).map_err(Error::file("read", script))?;
    let lab = Lab::prepare_release(release, progress)?;
    let mut out = io::stdout();
    // A closed standard output ends the printing, not the run.
    lab.run(&boot, &mut |line| drop(writeln!(out, "{line}")))
}

/// `pvlab lab clean`: removes the cache; returns its folder.
///
/// # Errors
///
/// If it cannot be found or removed.
pub fn clean(progress: &Progress) -> Result<PathBuf, Error> {
    let cache = Cache::locate()?;
    let folder = cache.folder().to_path_buf();
    if folder.exists() {
        // Not while another process builds in it.
        let _lock = cache.lock(progress)?;
        cache.remove_contents()?;
    }
    Ok(folder)
}
