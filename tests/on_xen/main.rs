//! What is tested on a booted host: real Xen, and for one test KVM.
//!
//! One program, so that as many hosts run side by side as this machine has cores (`.ci/run` asks
//! for one more); a host of the lab keeps little more than one of them busy. Tests begin in the
//! order of their names: the longest first. The tests need Xen and make it themselves: the first
//! run downloads about 220 MB into pvlab's cache. One boot serves many checks, and is one test: a
//! second test that waited for the same boot would keep a host from running.
//!
//! None of them may depend on how busy this machine is: a host that comes up in 8 s took 150 s
//! beside ten busy programs. What is asserted of times, of who slept and how often, or of a lock's
//! speed is asserted of a repeatable boot, where instructions are counted.

use std::panic;
use std::time::Duration;

/// Makes all of these checks of one boot, functions that panic, and fails with the names of those
/// that failed.
macro_rules! check_all {
    [$($check:ident),+ $(,)?] => {
        crate::check_each(&[$((stringify!($check), $check)),+])
    };
}
pub(crate) use check_all;

fn check_each(checks: &[(&str, fn())]) {
    let failed = checks.iter().filter(|(_, check)| panic::catch_unwind(check).is_err());
    let failed: Vec<&str> = failed.map(|(name, _)| *name).collect();
    assert!(failed.is_empty(), "failed, as told above: {failed:?}");
}

// Where there are no sources of a guest, there are none of the kernels outside the workspace.
#[cfg(not(no_guest_image))]
mod arceos;
#[cfg(not(no_guest_image))]
mod domain_life;
#[cfg(not(no_guest_image))]
mod domain_storm;
#[cfg(not(no_guest_image))]
mod domains;
mod experiment;
#[cfg(not(no_guest_image))]
mod guest;
#[cfg(not(no_guest_image))]
mod kernel;
#[cfg(not(no_guest_image))]
mod kvm;
mod lab_boot;
mod lab_interrupt;
#[cfg(not(no_guest_image))]
mod real_host;
mod release;
#[cfg(not(no_guest_image))]
mod small_kernels;

/// Real time for whatever a test waits for: it is only spent where something hangs.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The same for `--deadline`.
const PATIENCE_SECONDS: &str = "3600";
