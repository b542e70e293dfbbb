//! What joins the lock with crates of other people and needs no Xen: the tests of each folder outside the
//! workspace, run as its reader would run them.
//!
//! The first run downloads from crates.io what they are tried with.

use std::path::Path;
use std::process::Command;

#[path = "../build/inherited.rs"]
mod inherited;

/// Runs `cargo test` in `integrations/FOLDER`, with the settings of that folder.
fn test(folder: &str) {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    let mut cargo = Command::new(env!("CARGO"));
    for name in inherited::inherited() {
        cargo.env_remove(name);
    }
    cargo.args(["test", "--locked", "--target-dir"]).arg(target);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integrations").join(folder);
    let output = cargo.current_dir(folder).output().expect("cargo starts");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(!err.contains("warning"), "{err}");
}

#[test]
fn hermits_own_tests_pass_on_our_locks() {
    test("hermit");
}

#[test]
fn allocators_queues_and_cells_work_under_our_lock() {
    test("under-a-lock");
}
