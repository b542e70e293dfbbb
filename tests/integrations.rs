//! What stands outside the workspace and needs no Xen: crates of other people with our lock under
//! them, the library for C, and an example that was copied away. Each is built and tested as its
//! reader would do it.
//!
//! The first run downloads from crates.io what they are tried with.
#![cfg(not(no_guest_image))]

use std::fs;
use std::path::Path;
use std::process::Command;

#[path = "../build/inherited.rs"]
mod inherited;

/// Runs Cargo in `folder`, with the settings of that folder alone.
fn cargo(folder: &Path, target: &str, arguments: &[&str]) {
    let mut cargo = Command::new(env!("CARGO"));
    for name in inherited::inherited() {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join(target));
    cargo.current_dir(folder).args(arguments);
    let output = cargo.output().expect("cargo starts");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(!err.contains("warning"), "{err}");
}

/// Runs the tests in `integrations/FOLDER`.
fn test(folder: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("integrations").join(folder);
    cargo(&path, folder, &["test", "--workspace", "--locked"]);
}

#[test]
fn hermits_own_tests_pass_on_our_locks() {
    test("hermit");
}

#[test]
fn allocators_queues_and_cells_work_under_our_lock() {
    test("under-a-lock");
}

#[test]
fn the_library_for_c_works_in_c() {
    test("c");
}

/// As its README says: copied to another place, with the two paths set.
#[test]
fn the_example_kernel_builds_where_it_was_copied_to() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let elsewhere = tempfile::tempdir().unwrap();
    let folder = elsewhere.path().join("my-kernel");
    copy(&root.join("example-kernel"), &folder);
    let manifest = folder.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let moved = text.replace("path = \"../", &format!("path = \"{}/", root.display()));
    assert_eq!(moved.matches(root.to_str().unwrap()).count(), 2, "{moved}");
    fs::write(&manifest, moved).unwrap();
    cargo(&folder, "my-kernel", &["build", "--release", "--locked"]);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_name() == "target" {
            // Somebody has built there.
        } else if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}
