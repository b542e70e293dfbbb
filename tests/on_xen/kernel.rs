//! The kernels outside the workspace, built as their readers would build them.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use pvlab::lab::{Boot, Lab, Mode, Overlay};
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
    run(cargo(&folder, &target, crates).args(["build", "--release", "--package", name]));
    fs::read(target.join(TARGET).join("release").join(name)).expect("cargo made it")
}

/// Cargo in `folder`, with the settings of that folder alone; its command is still to be named.
pub(crate) fn cargo(folder: &Path, target: &Path, crates: Crates) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    for name in inherited::inherited() {
        cargo.env_remove(name);
    }
    cargo.current_dir(folder).env("CARGO_TARGET_DIR", target);
    cargo.arg("--locked");
    if crates == Crates::Ours {
        cargo.arg("--offline");
    }
    cargo
}

/// Runs it: it has to succeed, and to warn of nothing.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("warning"), "{said}");
}

/// Boots a host whose script finds these kernels, by their names, and the `config` of their domains
/// in `/guest`: what it brought home.
pub(crate) fn boot_all<const N: usize>(
    kernels: [(&str, Vec<u8>); N],
    config: &'static [u8],
    script: &str,
    mode: Mode,
) -> TempDir {
    let named = |(name, kernel)| Overlay::bytes(format!("/guest/{name}"), 0o644, kernel);
    let mut files: Vec<Overlay> = kernels.into_iter().map(named).collect();
    files.push(Overlay::bytes("/guest/domain.cfg", 0o644, config));
    boot_with(files, script, mode)
}

/// As [`boot_all`], with whatever files.
pub(crate) fn boot_with(files: Vec<Overlay>, script: &str, mode: Mode) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    let mut boot = Boot::script(script, out.path());
    boot.deadline = crate::PATIENCE;
    boot.files = files;
    boot.mode = mode;
    let lab = Lab::prepare(&Progress::hidden()).expect("the lab can be made");
    lab.run(&boot, &mut |_| {}).expect("the host ran to its end");
    out
}
