//! Whether the header is up to date, and whether the library works in C: as users make it, by `cargo build
//! --release`, the C compiler that is there, and binutils.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use pvlock_c_check::{header, header_file, library_folder};

/// Runs it to its end, which has to be a good one: its output.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{out}\n{err}");
    out
}

/// The library, built.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("library");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--locked", "--target-dir"]).arg(&target);
    run(cargo.current_dir(library_folder()));
    target.join("x86_64-unknown-linux-gnu/release/libpvlock_c.a")
});

#[test]
fn the_header_is_up_to_date() {
    let kept = fs::read_to_string(header_file()).unwrap_or_default();
    assert!(kept == header(), "include/pvlock.h is stale: cargo run -p pvlock-c-check");
}

#[test]
fn the_header_is_c_and_cpp_without_warnings() {
    for (language, standard) in [("c", "c99"), ("c++", "c++11")] {
        let mut cc = Command::new("cc");
        cc.args(["-x", language, &format!("-std={standard}"), "-Wall", "-Wextra", "-Wpedantic"]);
        run(cc.args(["-Werror", "-fsyntax-only"]).arg(header_file()));
    }
}

/// On threads, which are the vCPUs of a small Xen in C.
#[test]
fn a_program_in_c_counts_exactly_and_its_threads_sleep_and_are_kicked() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("threads");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-I"]);
    cc.arg(library_folder().join("include")).arg("-o").arg(&program);
    run(cc.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/threads.c")).arg(&*LIBRARY));
    let told = run(&mut Command::new(&program));
    assert!(told.ends_with("threads: success\n"), "{told}");
}

/// A kernel in C may be compiled without vector registers, and not save them in its interrupt handlers.
#[test]
fn the_library_uses_no_vector_registers() {
    let mut functions = 0;
    let (mut function, mut wrong) = (String::new(), Vec::new());
    let mut objdump = Command::new("objdump");
    let text = run(objdump.args(["-d", "--no-show-raw-insn"]).arg(&*LIBRARY));
    // The first member is the library; what follows, the compiler's arithmetic, has no part in it.
    let ours = text.split("file format").nth(1).expect("an archive has a member");
    for line in ours.lines() {
        if let Some(name) = line.strip_suffix(">:") {
            name.split('<').nth(1).unwrap_or_default().clone_into(&mut function);
            functions += 1;
        } else if ["%xmm", "%ymm", "%zmm"].iter().any(|register| line.contains(register)) {
            wrong.push(format!("{function}: {line}"));
        }
    }
    assert!(functions > 15, "{functions} functions of the library");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the linker has to find elsewhere.
#[test]
fn the_library_asks_for_no_function_but_those_of_every_c_environment() {
    let symbols = run(Command::new("nm").arg("--undefined-only").arg(&*LIBRARY));
    let ours = symbols.split("\n\n").find(|part| !part.trim().is_empty()).expect("a member");
    let asked = ours.lines().filter_map(|line| line.trim().strip_prefix("U "));
    let known = ["memcpy", "memmove", "memset", "memcmp"];
    let unknown: Vec<&str> = asked.filter(|name| !known.contains(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
