//! The kernels outside the workspace, built as their readers would build them.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

#[path = "../../build/inherited.rs"]
mod inherited;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the kernel in the folder `name` with the settings of that folder, of which it is a part that they
/// suffice.
pub(crate) fn build(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut cargo = Command::new(env!("CARGO"));
    // What it needs is a part of what this workspace needs: nothing has to be downloaded.
    cargo.args(["build", "--release", "--locked", "--offline", "--target-dir"]).arg(&target);
    for name in inherited::inherited() {
        cargo.env_remove(name);
    }
    let built = cargo.current_dir(&folder).output().expect("cargo starts");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{said}");
    assert!(!said.contains("warning"), "{said}");
    fs::read(target.join(TARGET).join("release").join(name)).expect("cargo made it")
}
