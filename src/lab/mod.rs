//! Makes a Xen host, or a KVM host, out of a plain Linux machine: without root and with nothing
//! installed.
//!
//! Owns everything between "this is a Debian or Ubuntu machine" and "a program runs in dom0 under a
//! real Xen" (or on Linux with KVM): the packages ([`Lab::prepare`]), the dom0 image made of them, the emulator and its
//! processes ([`Lab::run`]). It knows nothing of scenarios, policies or domains, and it never
//! writes outside its cache and the folder a run is given.
//!
//! ```no_run
//! use pvlab::lab::{Boot, Lab};
//! use pvlab::progress::Progress;
//!
//! let lab = Lab::prepare(&Progress::new())?;
//! let boot = Boot::script("xl info", "out");
//! let ended = lab.run(&boot, &mut |line| println!("{line}"))?;
//! assert_eq!(ended.status, 0);
//! # Ok::<(), pvlab::lab::Error>(())
//! ```

mod apt;
mod build;
mod cache;
pub mod commands;
mod cpio;
mod deb;
mod elf;
mod error;
mod fairness;
mod initramfs;
mod kernel;
mod linux;
mod lockstep;
mod machine;
mod modules;
mod overlay;
mod process;
mod qemu;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub(crate) use self::cpio::Archive;
pub use self::error::Error;
pub(crate) use self::kernel::uncompressed as uncompressed_linux;
pub use self::overlay::{Content, Overlay};

use self::cache::Cache;
use crate::progress::Progress;

/// A Xen host that can be started: Xen, a dom0 kernel, a dom0 image and an emulator, ready on disk.
///
/// Having one proves that all of them are complete; building one is atomic.
#[derive(Debug)]
pub struct Lab {
    cache: Cache,
    /// The finished folder in the cache.
    folder: PathBuf,
    parts: build::Parts,
}

/// A release of Debian by its name (`bookworm`: Xen 4.17, `trixie`: Xen 4.20).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release(String);

impl Release {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Release {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        // It becomes part of folder names and of a package source.
        if (2..=20).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase()) {
            Ok(Release(name.to_owned()))
        } else {
            Err("write the name of a release of Debian, such as bookworm or trixie".to_owned())
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of this machine's release, as /etc/os-release says it.
pub fn machine_release() -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(name.trim_matches('"').to_owned())
}

/// MiB free for the cache.
///
/// # Errors
///
/// If that is too little for a lab, or there is no place for a cache.
pub fn room() -> Result<u64, Error> {
    build::room(Cache::locate()?.folder())
}

/// `release` if it is not the machine's own, which needs no name.
fn foreign(release: Option<&Release>) -> Option<&Release> {
    release.filter(|release| machine_release().as_deref() != Some(release.as_str()))
}

/// How the emulator runs the host's pCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Each pCPU on a thread of its own: fast, and no two runs are alike.
    Parallel,
    /// Virtual time counts instructions and pCPUs take turns: two runs of the same boot are alike
    /// to the last byte.
    Repeatable(Repeatable),
}

/// The settings of [`Mode::Repeatable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeatable {
    /// An instruction lasts 2^`shift` nanoseconds of virtual time. All pCPUs together share this
    /// budget: 3 means 125 million instructions a second. At most 10.
    pub shift: u8,
    /// The longest turn of a pCPU, in virtual time. From 1 us; finer is slower (three pCPUs with
    /// 10 us ran 4 times as long as with 100 us).
    pub slice: Duration,
    /// The seed of the emulator's random numbers.
    pub seed: u64,
}

impl Default for Repeatable {
    fn default() -> Self {
        Repeatable {
            shift: 3,
            slice: Duration::from_micros(100),
            seed: experiment::Params::default().seed,
        }
    }
}

/// Who runs the domains of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Hypervisor {
    /// Xen; the script runs in dom0.
    #[default]
    Xen,
    /// The same Linux without Xen, and with KVM; the script starts machines by qemu-system-x86_64.
    Kvm,
}

/// One start of the host: what it is made of and what it does.
#[derive(Debug, Clone)]
pub struct Boot {
    /// Who runs the domains.
    pub hypervisor: Hypervisor,
    /// pCPUs of the machine. dom0 has pCPU 0 for itself; domains belong on 1 and up.
    pub pcpus: u32,
    /// Memory of the machine in MiB.
    pub memory_mib: u32,
    /// Memory of dom0 in MiB, out of `memory_mib`. Means nothing with [`Hypervisor::Kvm`].
    pub dom0_mib: u32,
    /// How pCPUs run.
    pub mode: Mode,
    /// Added to the hypervisor's command line (Xen's, or Linux' with [`Hypervisor::Kvm`]), for experiments
    /// with the hypervisor itself.
    pub hypervisor_options: String,
    /// Files placed in dom0 before it starts.
    pub files: Vec<Overlay>,
    /// Run by `sh` in dom0 once the toolstack is up. What it leaves in `/out` comes back.
    pub script: String,
    /// Whether `/out` is the folder [`out`](Self::out) itself, so that nothing is lost with the host. Without it
    /// `/out` comes home when the script has ended, and nothing disturbs a measurement.
    pub live: bool,
    /// Where files come back to, with the console and the emulator's command. Made if missing.
    pub out: PathBuf,
    /// Wall time after which the host is ended by force.
    pub deadline: Duration,
}

impl Boot {
    /// A host that runs `script` in dom0 on three pCPUs in parallel, and brings `/out` back to `out`.
    pub fn script(script: impl Into<String>, out: impl Into<PathBuf>) -> Self {
        Boot {
            hypervisor: Hypervisor::Xen,
            pcpus: 3,
            memory_mib: 2048,
            dom0_mib: 512,
            mode: Mode::Parallel,
            hypervisor_options: String::new(),
            files: Vec::new(),
            script: script.into(),
            live: false,
            out: out.into(),
            deadline: Duration::from_secs(600),
        }
    }

    /// A host in whose dom0 this very program carries out `plan` (`pvlab host --plan ... --out /out`).
    ///
    /// # Errors
    ///
    /// If the running program's own file cannot be read.
    pub fn plan(plan: Vec<u8>, out: impl Into<PathBuf>) -> Result<Self, Error> {
        let mut boot =
            Boot::script("exec /pvlab/pvlab host --plan /pvlab/plan.json --out /out\n", out);
        boot.files.push(Overlay::this_program("/pvlab/pvlab")?);
        boot.files.push(Overlay::bytes("/pvlab/plan.json", 0o644, plan));
        Ok(boot)
    }
}

/// How a host ended that came up and went down by itself.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Exit status of the script in dom0.
    pub status: i32,
    /// The serial console from the first line of the firmware on, as a file in [`Boot::out`].
    pub console: PathBuf,
    /// Wall time from the emulator's start to its end.
    pub elapsed: Duration,
}

impl Lab {
    /// Finds the lab in the cache, or makes it: downloads packages, unpacks them, builds the dom0
    /// image. The cache is `$PVLAB_CACHE`, else `$XDG_CACHE_HOME/pvlab`, else `~/.cache/pvlab`.
    ///
    /// Two processes may call this at once; one builds, the other waits.
    ///
    /// # Errors
    ///
    /// No apt, no network, a package that cannot be had, a full disk: each with its remedy.
    pub fn prepare(progress: &Progress) -> Result<Self, Error> {
        Self::prepare_release(None, progress)
    }

    /// [`prepare`](Self::prepare) with the packages of another release than the machine's, from the mirror
    /// the machine uses. Each release has a lab of its own in the cache.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare).
    pub fn prepare_release(release: Option<&Release>, progress: &Progress) -> Result<Self, Error> {
        let release = foreign(release);
        let cache = Cache::locate()?;
        let folder = cache.lab_folder(build::RECIPE, release);
        let parts = match build::Parts::load(&folder)? {
            Some(parts) => parts,
            None => {
                let _lock = cache.lock(progress)?;
                // Another process may have built it while this one waited.
                match build::Parts::load(&folder)? {
                    Some(parts) => parts,
                    None => build::build(&cache, release, &folder, progress)?,
                }
            }
        };
        Ok(Lab { cache, folder, parts })
    }

    /// The folder of the lab that [`prepare_release`](Self::prepare_release) would find or make, and whether it is
    /// there.
    ///
    /// # Errors
    ///
    /// If there is no place for a cache, or the lab is damaged.
    pub fn find(
        release: Option<&Release>,
    ) -> Result<(PathBuf, Option<BTreeMap<String, String>>), Error> {
        let folder = Cache::locate()?.lab_folder(build::RECIPE, foreign(release));
        let parts = build::Parts::load(&folder)?;
        Ok((folder, parts.map(|parts| parts.packages)))
    }

    /// Whether a host could be started as `boot` asks. It starts none.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`], and [`Error::Unfair`] for [`Mode::Repeatable`] on an emulator whose pCPUs do not
    /// share time.
    pub fn check(&self, boot: &Boot) -> Result<(), Error> {
        machine::check(self, boot)
    }

    /// Starts a host, hands every line of its console to `on_line`, and waits until it has powered
    /// off. Whatever happens, no process is left behind and the console so far is kept.
    ///
    /// # Errors
    ///
    /// [`Error::Deadline`], [`Error::Interrupted`], [`Error::HostDied`] if the host went down before
    /// the script had ended, [`Error::Unfair`] for [`Mode::Repeatable`] on an emulator whose pCPUs
    /// do not share time, and whatever keeps the emulator from starting.
    pub fn run(&self, boot: &Boot, on_line: &mut dyn FnMut(&str)) -> Result<Ended, Error> {
        machine::run(self, boot, on_line)
    }

    /// The version of every package the host is made of, by package name.
    pub fn versions(&self) -> &BTreeMap<String, String> {
        &self.parts.packages
    }

    /// A file or folder of the finished lab.
    fn part(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folder the packages were unpacked in.
    fn root(&self) -> PathBuf {
        self.part(build::ROOT)
    }

    /// Where the lab keeps its files.
    pub fn cache_folder(&self) -> &Path {
        self.cache.folder()
    }
}
