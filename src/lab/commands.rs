//! What `pvlab lab ...` does, one function a subcommand; and the option by which every command
//! names its lab.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::cache::Cache;
use super::{Boot, Ended, Error, Lab, Release};
use crate::progress::Progress;

/// Which packages a lab is made of.
#[derive(Args, Debug)]
pub struct Packages {
    /// Make the lab of this release of Debian instead of the machine's: bookworm has Xen 4.17, trixie 4.20.
    #[arg(long, value_name = "RELEASE")]
    pub release: Option<Release>,
}

/// `pvlab lab prepare`: makes the lab; answers what it is made of, in lines.
///
/// # Errors
///
/// As [`Lab::prepare`].
pub fn prepare(release: Option<&Release>, progress: &Progress) -> Result<String, Error> {
    let lab = Lab::prepare_release(release, progress)?;
    let mut text = format!("the lab in {} is ready:\n", lab.folder.display());
    let named = |name: &str| {
        name.starts_with("xen-hypervisor-")
            || name.starts_with("linux-image-")
            || name == "qemu-system-x86"
    };
    let (shown, others): (Vec<_>, Vec<_>) =
        lab.versions().iter().partition(|(name, _)| named(name));
    for (package, version) in shown {
        text += &format!("  {package} {version}\n");
    }
    text += &format!("  and {} more packages\n", others.len());
    Ok(text)
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

/// `pvlab lab clean`: removes the cache; answers its folder, `None` if there was none.
///
/// # Errors
///
/// If it cannot be found or removed.
pub fn clean(progress: &Progress) -> Result<Option<PathBuf>, Error> {
    let cache = Cache::locate()?;
    let folder = cache.folder().to_path_buf();
    if !cache.is_ours() {
        return Ok(None);
    }
    // Not while another process builds in it.
    let _lock = cache.lock(progress)?;
    cache.remove_contents()?;
    Ok(Some(folder))
}
