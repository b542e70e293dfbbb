//! The kernels outside the workspace, built as their readers would build them.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use pvlab::lab::{Boot, Lab, Overlay};
use pvlab::progress::Progress;
use tempfile::TempDir;

#[path = "../../build/inherited.rs"]
mod inherited;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the crates of a kernel come from.
#[derive(PartialEq)]
pub(crate) enum Crates {
    /// They are a part of what this workspace needs: nothing has to be downloaded.
    Ours,
    /// From crates.io, if Cargo does not have them yet.
    Fetched,
}

/// Builds the kernel in the folder `name`, which has that name itself, with the settings of that folder, of
/// which it is a part that they suffice.
pub(crate) fn build(name: &str) -> Vec<u8> {
    build_in(name, name, Crates::Ours)
}

/// As [`build`], of the package `name` in `folder`.
pub(crate) fn build_in(folder: &str, name: &str, crates: Crates) -> Vec<u8> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--locked", "--package", name, "--target-dir"]).arg(&target);
    if crates == Crates::Ours {
        cargo.arg("--offline");
    }
    for name in inherited::inherited() {
        cargo.env_remove(name);
    }
    let built = cargo.current_dir(&folder).output().expect("cargo starts");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{said}");
    assert!(!said.contains("warning"), "{said}");
    fs::read(target.join(TARGET).join("release").join(name)).expect("cargo made it")
}

/// Boots a host whose script finds `kernel` and the `config` of its domain in `/guest`: what it brought home.
pub(crate) fn boot(kernel: Vec<u8>, config: &'static [u8], script: &str) -> TempDir {
    boot_all([("kernel", kernel)], config, script)
}

/// As [`boot`], with several kernels, by their names.
pub(crate) fn boot_all<const N: usize>(
    kernels: [(&str, Vec<u8>); N],
    config: &'static [u8],
    script: &str,
) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    let mut boot = Boot::script(script, out.path());
    for (name, kernel) in kernels {
        boot.files.push(Overlay::bytes(format!("/guest/{name}"), 0o644, kernel));
    }
    boot.files.push(Overlay::bytes("/guest/domain.cfg", 0o644, config));
    let lab = Lab::prepare(&Progress::hidden()).expect("the lab can be made");
    lab.run(&boot, &mut |_| {}).expect("the host ran to its end");
    out
}
