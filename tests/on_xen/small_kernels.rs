//! The small kernels with boot code of their own: `example-kernel`, which joins `pvlock` and
//! `evtchn` by itself, and the guest in C, which has both from the C library. Built as their
//! readers would build them, and booted on real Xen, one after another in one boot.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use kicktrace::summary::Domain;
use pvlab::lab::{Mode, Overlay};
use pvlab::plan::TRACE_MASK_PVH;

use crate::domains::{RUN, wanted};
use crate::kernel::{self, Crates, cargo};

/// The domains: a name, and what to do besides running it. Not pinned, as in `guest.rs`: the first
/// vCPU waits while the others go down.
const DOMAINS: [(&str, &str); 3] =
    [("example", "run example"), ("example-alone", "run example-alone"), ("c-guest", TRACED)];

/// Runs the guest in C under the hypervisor's trace.
const TRACED: &str = r#"
xentrace -D -S 1024 -e MASK /tmp/trace.bin > /dev/null 2> /out/xentrace.err &
trace=$!
until [ -s /tmp/trace.bin ]; do kill -0 $trace || exit 1; usleep 50000; done
run c-guest
kill $trace; wait $trace
cp /tmp/trace.bin /out
"#;

/// One domain's configuration: its kernel's own file, with what is said differently here behind it.
fn config(file: &str, name: &str, kernel: &str, vcpus: u32) -> Overlay {
    let text = format!(
        "{file}\nname = \"{name}\"\nkernel = \"/guest/{kernel}\"\nvcpus = {vcpus}\n\
         on_poweroff = \"destroy\"\n"
    );
    Overlay::bytes(format!("/guest/{name}.cfg"), 0o644, text)
}

/// Builds the guest in C, and the library that it is linked with.
fn c_guest() -> Vec<u8> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integrations/c");
    kernel::run(cargo(&folder, &target, Crates::Ours).args(["build", "--release"]));
    let library = target.join("x86_64-unknown-linux-gnu/release/libpvlock_c.a");
    let kernel = target.join("c-guest");
    kernel::run(Command::new(folder.join("guest/build.sh")).args([&library, &kernel]));
    fs::read(kernel).expect("build.sh made it")
}

/// What the boot brought home.
static OUT: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let example = include_str!("../../example-kernel/domain.cfg");
    let files = vec![
        Overlay::bytes("/guest/example-kernel", 0o644, kernel::build("example-kernel")),
        config(example, "example", "example-kernel", 4),
        config(example, "example-alone", "example-kernel", 1),
        Overlay::bytes("/guest/c-kernel", 0o644, c_guest()),
        config(include_str!("../../integrations/c/guest/domain.cfg"), "c-guest", "c-kernel", 4),
    ];
    // A minute for each.
    let mut script = format!("{RUN}limit=300\n");
    for (_, run) in DOMAINS.iter().filter(|(name, _)| wanted(name)) {
        script += &run.replace("MASK", &format!("{TRACE_MASK_PVH:#010x}"));
        script += "\n";
    }
    kernel::boot_with(files, &script, Mode::Parallel)
});

fn file(name: &str) -> PathBuf {
    OUT.path().join(name)
}

/// The console of a domain that ended well.
fn console(name: &str) -> String {
    let read = |what: &str| fs::read_to_string(file(&format!("{name}.{what}"))).unwrap_or_default();
    let console = read("log").replace('\r', "");
    assert_eq!(read("end").trim(), "poweroff", "{name}: {console}");
    console
}

/// Acquisitions, if the counter is exact, and what the verdict says behind them.
fn verdict<'a>(console: &'a str, kernel: &str) -> (u64, &'a str) {
    let begin = format!("{kernel}: counter ");
    let told = console.lines().find_map(|line| line.strip_prefix(&begin)).expect(console);
    let (counts, rest) = told.split_once("; ").expect(console);
    let (counter, taken) = counts.split_once(" of ").expect(console);
    assert_eq!(counter, taken, "{console}");
    (taken.parse().expect(console), rest)
}

#[test]
fn small_kernels_count_exactly_and_their_vcpus_sleep_and_are_kicked() {
    crate::check_all![
        a_kernel_with_boot_code_of_its_own_counts_exactly_and_its_vcpus_sleep_and_are_kicked,
        an_example_kernel_with_one_vcpu_says_why_it_never_sleeps,
        a_kernel_in_c_counts_exactly_and_the_trace_shows_its_sleeps_and_kicks,
    ];
}

fn a_kernel_with_boot_code_of_its_own_counts_exactly_and_its_vcpus_sleep_and_are_kicked() {
    if !wanted("example") {
        return;
    }
    let console = console("example");
    let (taken, slept) = verdict(&console, "example");
    assert!(taken >= 4 * 200, "{console}");
    assert_eq!(slept, "4 of 4 vCPUs slept and were kicked awake");
}

fn an_example_kernel_with_one_vcpu_says_why_it_never_sleeps() {
    if !wanted("example-alone") {
        return;
    }
    let console = console("example-alone");
    let (taken, why) = verdict(&console, "example");
    assert_eq!(taken, 200, "{console}");
    assert_eq!(why, "one vCPU never waits for a lock, so it never slept; give the domain more");
}

/// The sums of a line of the guest in C that begins so: polls and kicks.
fn polls_and_kicks(console: &str, begin: &str) -> (u64, u64) {
    let lines = console.lines().filter_map(|line| line.strip_prefix(begin));
    let counts = lines.map(|line| {
        let (_, counts) = line.split_once(": ").expect(line);
        let mut numbers =
            counts.split(", ").map(|count| count.split(' ').next().unwrap().parse::<u64>());
        let mut next = || numbers.next().and_then(Result::ok).expect(line);
        (next(), next())
    });
    counts.fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1))
}

fn a_kernel_in_c_counts_exactly_and_the_trace_shows_its_sleeps_and_kicks() {
    if !wanted("c-guest") {
        return;
    }
    let console = console("c-guest");
    let (taken, slept) = verdict(&console, "c-guest");
    assert!(taken >= 4 * 200, "{console}");
    assert_eq!(slept, "4 of 4 vCPUs slept and were kicked awake");

    // The hypervisor's own records of the same.
    let trace = BufReader::new(File::open(file("trace.bin")).expect("a trace"));
    let summary = kicktrace::summarise(trace, &kicktrace::Options::default()).expect("it is whole");
    assert_eq!(summary.reading.lost_records(), 0);
    let guests: Vec<&Domain> = summary.domains.iter().filter(|domain| domain.id != 0).collect();
    let [seen] = guests[..] else { panic!("one guest ran: {guests:?}") };
    let (polls, kicks) = polls_and_kicks(&console, "vCPU ");
    let (end_polls, end_kicks) = polls_and_kicks(&console, "the end");
    let told = (polls + end_polls, kicks + end_kicks);
    let counts = &seen.counts;
    println!("{console}\n{counts:?}");
    // Each poll is there: it slept, or it returned at once and looks like a yield.
    let slept = counts.polls_blocked.value + counts.polls_aborted.value;
    let at_once = counts.polls_immediate.value + counts.yields.value;
    assert!(slept <= told.0 && told.0 <= slept + at_once, "{told:?}, {counts:?}");
    // Each wait that a kick ended is one of those the guest counted, and there are some.
    let kicked = counts.waits_kicked.value;
    assert!(0 < kicked && kicked <= told.1, "{told:?}, {counts:?}");
}
