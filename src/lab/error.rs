//! What can go wrong while making or running a host. Every message ends with what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An error of the lab. All of them are failures of input or environment, never of an experiment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {what} {}: {cause}{}", path.display(), remedy(cause))]
    File {
        /// What was being done.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer; part of the message already.
        cause: io::Error,
    },
    /// No home for the cache.
    #[error("no cache folder: set PVLAB_CACHE to a folder with 1 GB of free space")]
    NoCache,
    /// Too little room.
    #[error(
        "{}: {free_mib} MiB free, the lab needs {needed_mib} MiB: free some space, or set PVLAB_CACHE to a folder on a larger disk",
        path.display()
    )]
    DiskFull {
        /// The cache folder.
        path: PathBuf,
        /// Space there.
        free_mib: u64,
        /// Space wanted.
        needed_mib: u64,
    },
    /// Not an x86-64 machine.
    #[error(
        "the lab runs Debian's amd64 packages; this machine is {0}: run pvlab on an x86-64 machine, or on a Xen host"
    )]
    Architecture(&'static str),
    /// A program of the distribution is missing.
    #[error(
        "`{program}` is not on this machine: the lab takes its packages from Debian or Ubuntu with apt; run pvlab on such a machine (a container will do), or on a Xen host"
    )]
    NoApt {
        /// The program.
        program: &'static str,
    },
    /// apt failed.
    #[error("{what} failed; apt says:\n{}\n{remedy}", indent(words))]
    Apt {
        /// What apt was asked to do.
        what: String,
        /// The errors apt printed.
        words: String,
        /// What to do.
        remedy: &'static str,
    },
    /// There is no mirror to take another release from.
    #[error(
        "--release {release}: the machine's package sources have no release of Debian to find a mirror by; leave it out, or run on Debian"
    )]
    NoRelease {
        /// The release.
        release: String,
    },
    /// A file that a package should hold is not there.
    #[error(
        "no {what} among the unpacked packages ({packages}): this release of the distribution is not known to the lab; Debian 12 and 13 are"
    )]
    Missing {
        /// The file or kind of file.
        what: String,
        /// The packages it was looked for in.
        packages: String,
    },
    /// A file is not what it should be.
    #[error("{}: {what}: remove the cache with `pvlab lab clean` and try again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The emulator did not start or ended with an error.
    #[error(
        "the emulator ended with {status} during {during}; it says:\n{}\nif that does not help: remove the cache with `pvlab lab clean` and try again",
        indent(words)
    )]
    Emulator {
        /// Exit status or signal.
        status: String,
        /// What it printed on standard error.
        words: String,
        /// What it ran for.
        during: String,
    },
    /// The emulator gives one pCPU the time of another.
    #[error(
        "the emulator ({version}) does not share virtual time fairly between pCPUs in repeatable mode ({detail}); counts would repeat exactly and be wrong: use QEMU 8.1 or later (`pvlab lab clean`, then have a release or backports that offers it), or leave out --repeatable"
    )]
    Unfair {
        /// Its version.
        version: String,
        /// What was measured.
        detail: String,
    },
    /// The emulator's threads are not the ones that lockstep knows.
    #[error(
        "the emulator ({version}) has no thread of the name that lockstep looks for, so repeatable runs would not repeat on a busy machine: leave out --repeatable, or use another version (QEMU 10.0 is known to work)"
    )]
    NotHeld {
        /// Its version.
        version: String,
    },
    /// The host took too long.
    #[error("the host did not finish within {} s and was ended; its last lines:\n{}\nthe whole console is in {}; a longer deadline may help", limit.as_secs(), indent(last), console.display())]
    Deadline {
        /// The limit.
        limit: Duration,
        /// The end of the console.
        last: String,
        /// The console.
        console: PathBuf,
    },
    /// The host went down before its script had ended.
    #[error("the host went down before its work was done; its last lines:\n{}\nthe whole console is in {}", indent(last), console.display())]
    HostDied {
        /// The end of the console.
        last: String,
        /// The console.
        console: PathBuf,
    },
    /// The emulator lets no Linux boot as PVH.
    #[error(
        "a Linux domain of type pvh does not boot in this lab: QEMU {qemu} takes its reads of CR2 for reads of CR0, which Xen answers with 0; choose a scenario of type pv, or a Xen host"
    )]
    PvhLinux {
        /// Version of the emulator.
        qemu: String,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// A signal came.
    #[error(transparent)]
    Interrupted(#[from] crate::interrupt::Interrupted),
}

impl Error {
    /// Turns an I/O error into one that names the file.
    pub(super) fn file(
        what: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |cause| Error::File { what, path, cause }
    }
}

fn indent(text: &str) -> String {
    let text = text.trim_end();
    if text.is_empty() {
        return "  (nothing)".into();
    }
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": free some space, or set PVLAB_CACHE to a folder on a larger disk"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ": choose a folder you may write to (PVLAB_CACHE for the cache, --out for results)"
        }
        io::ErrorKind::NotADirectory => {
            ": choose a folder (PVLAB_CACHE for the cache, --out for results)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_names_the_file_and_the_remedy() {
        let error = Error::file("write", "/cache/dom0.cpio")(io::ErrorKind::StorageFull.into());
        let text = error.to_string();
        assert!(text.starts_with("cannot write /cache/dom0.cpio: "), "{text}");
        assert!(text.contains("PVLAB_CACHE"), "{text}");
    }
}
