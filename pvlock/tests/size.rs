//! Sizes, read from object code: the lock, the nodes, the fast path at a call site, the counters.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Most bytes of code that a call site may run through when the lock is free.
const MOST_BYTES: usize = 24;

/// The call sites of `tests/size/call_sites.rs` as an object file, compiled for speed. They are a
/// package of their own, which knows the lock alone: an example of this one would build what the
/// tests need, too.
fn object_file(features: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("size-{features}"));
    std::fs::create_dir_all(&dir).expect("a folder for the object file");
    let lock = env!("CARGO_MANIFEST_DIR");
    let features: Vec<&str> = features.split_terminator(',').collect();
    let manifest = format!(
        "[package]\nname = \"call_sites\"\nedition = \"2024\"\n\n\
         [lib]\npath = '{lock}/tests/size/call_sites.rs'\n\n\
         [dependencies]\npvlock = {{ path = '{lock}', features = {features:?} }}\n\n[workspace]\n"
    );
    std::fs::write(dir.join("Cargo.toml"), manifest).expect("the package of the call sites");
    let path: PathBuf = dir.join("call_sites.o");
    let build = Command::new(env!("CARGO"))
        // What it needs is a part of what this test needs: nothing has to be downloaded.
        .args(["rustc", "--release", "--offline", "--", "-C", "codegen-units=1"])
        // As kernels are built.
        .args(["-C", "relocation-model=static"])
        .arg(format!("--emit=obj={}", path.display()))
        .current_dir(&dir)
        .env("CARGO_TARGET_DIR", dir.join("target"))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .expect("cargo can be started");
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    std::fs::read(&path).expect("the object file")
}

/// The code of a function.
fn code<'a>(file: &object::File<'a>, name: &str) -> &'a [u8] {
    let symbol = file.symbol_by_name(name).expect("the function");
    let section = file.section_by_index(symbol.section_index().expect("defined")).expect("section");
    let from = symbol.address() as usize;
    &section.data().expect("code")[from..from + symbol.size() as usize]
}

/// The most bytes on a way from the entry to a return that calls nothing: the fast path.
fn fast_path(code: &[u8], at: u64) -> Option<usize> {
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    decoder.set_position(at as usize).expect("inside the function");
    decoder.set_ip(at);
    let instruction = decoder.decode();
    let next = instruction.next_ip();
    let here = instruction.len();
    match instruction.flow_control() {
        FlowControl::Return => Some(0),
        FlowControl::Next => fast_path(code, next).map(|rest| here + rest),
        FlowControl::UnconditionalBranch => {
            fast_path(code, instruction.near_branch_target()).map(|rest| here + rest)
        }
        FlowControl::ConditionalBranch => [next, instruction.near_branch_target()]
            .into_iter()
            .filter_map(|way| fast_path(code, way))
            .max()
            .map(|rest| here + rest),
        // A call, or a jump to another function: the slow path.
        _ => None,
    }
}

#[test]
fn the_fast_paths_are_short() {
    let data = object_file("");
    let file = object::File::parse(&*data).expect("an object file");
    for name in ["pv_lock", "pv_unlock", "native_lock", "native_unlock", "boot_lock", "boot_unlock"]
    {
        let bytes = fast_path(code(&file, name), 0).expect("a fast path");
        println!("{name}: {bytes} bytes");
        assert!((3..=MOST_BYTES).contains(&bytes), "{name}: {bytes} bytes");
    }
}

#[test]
fn a_lock_has_4_bytes_and_the_nodes_of_a_cpu_128() {
    let data = object_file("");
    let file = object::File::parse(&*data).expect("an object file");
    let size = |name| file.symbol_by_name(name).expect("a static").size();
    assert_eq!((size("ONE_LOCK"), size("ONE_CPU")), (4, 128));
}

/// References to the platform's clock in the slow paths.
fn clock_readings(file: &object::File<'_>) -> usize {
    let is_clock = |target| match target {
        RelocationTarget::Symbol(index) => file
            .symbol_by_index(index)
            .and_then(|symbol| symbol.name())
            .is_ok_and(|name| name == "probe_now" || name.contains("3now17h")),
        _ => false,
    };
    file.sections()
        .filter(|section| section.name().is_ok_and(|name| name.contains("_slow")))
        .flat_map(|section| section.relocations().collect::<Vec<_>>())
        .filter(|(_, relocation)| is_clock(relocation.target()))
        .count()
}

/// With the counters off, no code reads the clock for them, and nothing is counted.
#[test]
fn counters_that_are_off_are_no_code() {
    let [off, on] = ["", "counters"].map(object_file);
    let off = object::File::parse(&*off).expect("an object file");
    let on = object::File::parse(&*on).expect("an object file");
    assert_eq!(clock_readings(&off), 0);
    assert!(clock_readings(&on) > 0);
    // Every count is a `lock add` or `lock inc`; the protocol itself has none.
    let counts = |file: &object::File<'_>| {
        file.sections()
            .filter(|section| section.name().is_ok_and(|name| name.starts_with(".text")))
            .map(|section| locked_adds(section.data().expect("code")))
            .sum::<usize>()
    };
    assert_eq!(counts(&off), 0);
    assert!(counts(&on) > 20);
}

fn locked_adds(code: &[u8]) -> usize {
    use iced_x86::Mnemonic::{Add, Inc, Xadd};
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE)
        .iter()
        .filter(|i| i.has_lock_prefix() && matches!(i.mnemonic(), Add | Inc | Xadd))
        .count()
}

/// With the checker off there is neither code nor storage of it, and each function is shorter.
#[test]
fn a_checker_that_is_off_is_no_code() {
    let [off, on] = ["", "checker"].map(object_file);
    let off = object::File::parse(&*off).expect("an object file");
    let on = object::File::parse(&*on).expect("an object file");
    for name in ["pv_lock", "pv_unlock", "native_lock", "native_unlock", "boot_lock", "boot_unlock"]
    {
        let length = |file| code(file, name).len();
        assert!(length(&off) < length(&on), "{name}");
    }
    let mentions = |file: &object::File<'_>| {
        let names = file.symbols().filter_map(|symbol| symbol.name().ok().map(str::to_owned));
        names.filter(|name| name.contains("checker") || name.contains("trouble")).count()
    };
    assert_eq!(mentions(&off), 0);
    assert!(mentions(&on) > 0);
    let size = |file: &object::File<'_>| file.symbol_by_name("ONE_CPU").expect("a static").size();
    assert_eq!(size(&off), 128);
    assert!(size(&on) > 128);
}
