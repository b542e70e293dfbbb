//! Finds the source of the published application where Cargo keeps it, and lays it where `main.rs` includes
//! it. It leaves out the attributes of the crate, which only the root file may have.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The folder of its package among those of crates.io; the version as in Cargo.toml.
const APPLICATION: &str = "arceos-fairsched-0.4.6";

fn main() {
    let source = source().join("src/main.rs");
    let text = fs::read_to_string(&source).unwrap_or_else(|why| panic!("{source:?}: {why}"));
    let rest: Vec<&str> = text.lines().filter(|line| !line.starts_with("#![")).collect();
    let out = env::var_os("OUT_DIR").expect("cargo says where");
    fs::write(Path::new(&out).join("application.rs"), rest.join("\n")).expect("it can be written");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", source.display());
}

/// The folder of its package. Cargo fetches it, but names no package without a library; so it is found beside one
/// that Cargo names.
fn source() -> PathBuf {
    let cargo = env::var_os("CARGO").expect("cargo says which");
    let told = Command::new(cargo).args(["metadata", "--format-version=1", "--locked"]).output();
    let told = told.expect("cargo starts");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).expect("it writes JSON");
    let packages = told["packages"].as_array().expect("there are packages");
    let beside = packages.iter().find(|package| package["name"] == "axlog");
    let manifest = beside.and_then(|package| package["manifest_path"].as_str());
    let registry = Path::new(manifest.expect("Cargo.toml names it")).ancestors().nth(2);
    registry.expect("a file in a folder in a folder").join(APPLICATION)
}
