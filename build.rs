//! Builds what `pvlab` carries inside, and tells it where that is.
//!
//! - The guest image: the package `lab-guest`, compiled with the ordinary host toolchain and flags of
//!   its own into a freestanding ELF. `XEN_GUEST_IMAGE` is its path, for `include_bytes!`;
//!   `XEN_GUEST_SELFTEST` is that of a second image, which the tests boot.
//! - The library of the package `pvlab-lockstep`, which the lab preloads into its emulator:
//!   `PVLAB_LOCKSTEP`.
//!
//! Each goes to a target directory under `OUT_DIR`, so that no build disturbs another. Where the sources
//! are not there (a published `pvlab`), or the machine cannot build them, `cfg(no_guest_image)` is
//! set instead: `pvlab` asks for `--image FILE`, and has no repeatable mode. Clippy gets empty
//! files: what it compiles never runs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

#[path = "build/inherited.rs"]
mod inherited;

use inherited::inherited;

/// What is built again when one of these changes, and not otherwise.
const SOURCES: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "evtchn/Cargo.toml",
    "evtchn/src",
    "experiment/Cargo.toml",
    "experiment/src",
    "lab-guest/Cargo.toml",
    "lab-guest/src",
    "lockstep/Cargo.toml",
    "lockstep/src",
    "pvlock/Cargo.toml",
    "pvlock/src",
    "xen-guest/Cargo.toml",
    "xen-guest/link.ld",
    "xen-guest/src",
];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(no_guest_image)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/inherited.rs");
    // Embedded in pvlab by a macro that does not tell cargo of it.
    println!("cargo::rerun-if-changed=xl-configs");
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    if let Err(why) = possible(&root) {
        println!("cargo::rustc-cfg=no_guest_image");
        println!("cargo::warning=no guest image is built: {why}");
        return;
    }
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    let files = if is_clippy() {
        let empty = out.join("empty");
        fs::write(&empty, "")
            .unwrap_or_else(|error| fail(&format!("{}: {error}", empty.display())));
        [(); 3].map(|()| empty.clone())
    } else {
        let image = ["--package", "lab-guest", "--bins", "--features", "image"];
        let guest = build(&root, &out.join("guest"), &image, &image_flags(&root));
        let lockstep = build(&root, &out.join("lockstep"), &["--package", "pvlab-lockstep"], &[]);
        [
            guest.join("lab-guest"),
            guest.join("lab-guest-selftest"),
            lockstep.join("libpvlab_lockstep.so"),
        ]
    };
    let names = ["XEN_GUEST_IMAGE", "XEN_GUEST_SELFTEST", "PVLAB_LOCKSTEP"];
    for (name, file) in names.iter().zip(files) {
        println!("cargo::rustc-env={name}={}", file.display());
    }
}

/// Whether clippy is the compiler of the workspace: cargo keeps the results of its build apart.
fn is_clippy() -> bool {
    let wrapper = env::var_os("RUSTC_WORKSPACE_WRAPPER").unwrap_or_default();
    Path::new(&wrapper).file_stem().is_some_and(|name| name == "clippy-driver")
}

/// Whether there is something to build, and a toolchain that can.
fn possible(root: &Path) -> Result<(), String> {
    if !root.join("lab-guest/Cargo.toml").exists() {
        return Err("the sources of lab-guest are not here; use pvlab's --image".into());
    }
    let host = variable("HOST");
    if !host.starts_with("x86_64-unknown-linux") {
        return Err(format!("it needs an x86_64 Linux toolchain, and this is {host}"));
    }
    Ok(())
}

/// Runs cargo for `what`, compiled with `flags`; returns where the results are.
fn build(root: &Path, target_dir: &Path, what: &[&str], flags: &[String]) -> PathBuf {
    let host = variable("HOST");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(root)
        .args(["build", "--release"])
        .args(what)
        // Named even though it is the host's: flags then leave build scripts and macros alone.
        .args(["--target", &host])
        .arg("--target-dir")
        .arg(target_dir)
        // The cargo that runs us has just brought the lock file up to date.
        .arg("--locked");
    if is_offline() {
        cargo.arg("--offline");
    }
    for name in inherited() {
        cargo.env_remove(name);
    }
    // This form has no quoting: flags are separated by a byte that no path contains.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    match cargo.status() {
        Ok(status) if status.success() => target_dir.join(host).join("release"),
        Ok(status) => fail(&format!("building {} failed ({status}); see above", what[1])),
        Err(error) => fail(&format!("cargo did not start for {}: {error}", what[1])),
    }
}

/// Compiler flags of the image.
fn image_flags(root: &Path) -> Vec<String> {
    [
        // A fixed address, no dynamic linker.
        "-Crelocation-model=static",
        // Xen pushes event frames right at the stack pointer.
        "-Cno-redzone=yes",
        // Loops keep off the wide registers, as in a kernel: the first use after a switch traps.
        "-Cno-vectorize-loops",
        "-Cno-vectorize-slp",
        // Backtraces of a crash follow frame pointers.
        "-Cforce-frame-pointers=yes",
        "-Cpanic=abort",
        "-Clink-arg=-nostartfiles",
        "-Clink-arg=-nostdlib",
        "-Clink-arg=-static",
        "-Clink-arg=-no-pie",
        "-Clink-arg=-Wl,-z,max-page-size=4096",
        "-Clink-arg=-Wl,--build-id=none",
    ]
    .into_iter()
    .map(String::from)
    .chain([format!("-Clink-arg=-T{}", root.join("xen-guest/link.ld").display())])
    .collect()
}

/// Whether the cargo that runs us may not use the network. It tells its build scripts nothing of
/// `--offline`, so look at how it was called.
fn is_offline() -> bool {
    if env::var("CARGO_NET_OFFLINE").is_ok_and(|value| value == "true") {
        return true;
    }
    let caller = std::os::unix::process::parent_id();
    let line = std::fs::read(format!("/proc/{caller}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"--offline" || word == b"--frozen")
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
