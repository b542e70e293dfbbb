//! Runs the model suite (`tests/loom`) as part of `cargo test`: it needs a build of its own.
//!
//! Bounded by the suite's own bounds (see there). The same by hand:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p pvlock --test loom -- --nocapture`
#![cfg(not(loom))]

use std::path::Path;
use std::process::Command;

/// What the checker must have said about the posted patch, and about the whole suite.
const S1: &str = "posted: found: pvlock: two entries for one lock";
const PASSED: &str = "test result: ok.";

#[test]
fn the_model_suite_passes_and_finds_the_posted_defect() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("loom");
    let output = Command::new(env!("CARGO"))
        .args(["test", "--release", "--locked", "--package", "pvlock", "--test", "loom", "--"])
        .args(["--nocapture", "--test-threads=1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("PVLOCK_WEAKEN")
        .output()
        .expect("cargo can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(
        output.status.success(),
        "the model suite failed:\n{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains(PASSED) && text.contains(S1), "the suite did not run as it should");
}
