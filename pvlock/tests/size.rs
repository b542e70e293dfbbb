//! Sizes, read from object code: the lock, the nodes, the fast path at a call site, the counters.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Most bytes of code that a call site may run through when the lock is free and its mode is a
/// constant.
const MOST_BYTES: usize = 24;
/// Where the mode is chosen at boot: with the question for it, and a jump.
const MOST_BYTES_AT_BOOT: usize = 36;
/// The unlock of a policy that steals, with its second try: for a lock that is queued for.
const MOST_BYTES_QUEUED: usize = 30;
/// An unlock that is right in every mode is a locked instruction, and longer.
const BYTES_OF_A_STORE: usize = 3;

/// The call sites of `tests/size/call_sites.rs` as an object file, compiled for speed. They are a
/// package of their own, which knows the lock alone: an example of this one would build what the
/// tests need, too.
fn object_file(features: &str) -> Vec<u8> {
    // Tests share the package, and run at once.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
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

/// The section of a function, which holds nothing else.
fn section<'f, 'a>(file: &'f object::File<'a>, name: &str) -> object::Section<'a, 'f> {
    let symbol = file.symbol_by_name(name).expect("the function");
    let section = file.section_by_index(symbol.section_index().expect("defined")).expect("section");
    assert_eq!((symbol.address(), symbol.size()), (0, section.size()), "{name} is alone in it");
    section
}

/// The code of a function.
fn code<'a>(file: &object::File<'a>, name: &str) -> &'a [u8] {
    section(file, name).data().expect("code")
}

/// The most bytes on a way from `at` to a return that calls nothing: the fast path. A branch that
/// the linker is to fill in goes to another function, which is the slow path.
fn fast_path(section: &object::Section<'_, '_>, at: u64) -> Option<usize> {
    let code = section.data().expect("code");
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    decoder.set_position(at as usize).expect("inside the function");
    decoder.set_ip(at);
    let instruction = decoder.decode();
    let next = instruction.next_ip();
    let leaves = section.relocations().any(|(place, _)| (at..next).contains(&place));
    let jump = || (!leaves).then(|| fast_path(section, instruction.near_branch_target())).flatten();
    let rest = match instruction.flow_control() {
        FlowControl::Return => return Some(0),
        FlowControl::Next => fast_path(section, next),
        FlowControl::UnconditionalBranch => jump(),
        FlowControl::ConditionalBranch => fast_path(section, next).max(jump()),
        // A call.
        _ => None,
    };
    rest.map(|rest| instruction.len() + rest)
}

#[test]
fn the_fast_paths_are_short() {
    let data = object_file("");
    let file = object::File::parse(&*data).expect("an object file");
    for name in ["pv_lock", "pv_unlock", "native_lock", "native_unlock", "boot_lock", "boot_unlock"]
        .into_iter()
        .chain(["adaptive_lock", "adaptive_unlock"])
    {
        let bytes = fast_path(&section(&file, name), 0).expect("a fast path");
        println!("{name}: {bytes} bytes");
        let most = match name {
            "boot_lock" | "boot_unlock" => MOST_BYTES_AT_BOOT,
            "adaptive_unlock" => MOST_BYTES_QUEUED,
            "native_unlock" => BYTES_OF_A_STORE,
            _ => MOST_BYTES,
        };
        assert!((3..=most).contains(&bytes), "{name}: {bytes} bytes");
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
    assert_eq!(clock_readings(&off), 1, "whether a head is late, where newcomers steal");
    assert!(clock_readings(&on) > 1);
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
