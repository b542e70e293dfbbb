//! End to end: `pvlab run` on real Xen, checked on the table's own figures.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ::experiment::record::Outcome;
use ::experiment::{Budget, DomainType, EventAbi};
use assert_cmd::cargo::CommandCargoExt;
use kicktrace::summary::{Acquisitions, Domain};
use pvlab::host::{DomainResult, End};
use pvlab::lab::Lab;
use pvlab::linux::{Files, budget};
use pvlab::plan::{Choices, Plan, start_after};
use pvlab::progress::Progress;
use pvlab::report::{PolicyResult, Results};
use pvlab::scenario::Library;

use crate::lab_interrupt::{none_is_left, processes_with};

fn pvlab(arguments: &[&str], out: &Path) -> Command {
    let mut command = Command::cargo_bin("pvlab").unwrap();
    command.arg("run").args(arguments).arg("--out").arg(out);
    command
}

fn run(arguments: &[&str], out: &Path) -> Output {
    pvlab(arguments, out).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn policy<'a>(results: &'a Results, name: &str) -> &'a PolicyResult {
    results.policies.iter().find(|policy| policy.policy == name).unwrap()
}

/// A domain's own report beside what the hypervisor saw of it.
fn both(policy: &PolicyResult) -> Vec<(&DomainResult, &Domain)> {
    let seen = &policy.trace.as_ref().expect("a trace").domains;
    let of = |domain| {
        seen.iter().find(|seen| u32::from(seen.id) == domain).expect("the domain is in the trace")
    };
    policy.domains.iter().map(|domain| (domain, of(domain.domid))).collect()
}

fn marked(domain: &Domain) -> &Acquisitions {
    domain.marked.as_ref().expect("the guest marked its acquisitions")
}

/// What holds for every run that ended well, however busy the machine was and whoever came first.
fn check_run(results: &Results, acquisitions: u64, events: EventAbi) {
    for policy in &results.policies {
        assert_eq!(policy.counter_exact(), Some(true), "{}", policy.policy);
        let trace = policy.trace.as_ref().expect("a trace");
        assert_eq!(trace.reading.lost_records(), 0, "{}", policy.policy);
        for (domain, seen) in both(policy) {
            let report = domain.report.as_ref().unwrap();
            assert_eq!((domain.end, report.acquisitions), (End::Done, 4 * acquisitions));
            assert_eq!((report.domain_type, report.events), (DomainType::Pv, events));
            assert_eq!(report.counters["pv_poll_timeout"], 0);
            // The guest's counters against the hypervisor's trace.
            let kicks = report.counters["pv_kick_unlock"] + report.counters["pv_kick_wake"];
            assert_eq!(seen.counts.marked_kicks.value, kicks, "{} {}", policy.policy, domain.name);
            let blocked: u64 = report.vcpus.iter().map(|vcpu| vcpu.blocked_acquisitions).sum();
            assert!(blocked > 0, "nobody slept: the scenario shows nothing");
            assert!(seen.counts.polls_blocked.value >= marked(seen).blocked);
        }
    }
}

/// What the patch is for, in figures.
fn check_claim(results: &Results) {
    for (_, seen) in results.policies.iter().flat_map(both) {
        // Markers against inference: two ways to read one trace.
        let (exact, inferred) = (marked(seen), &seen.inferred);
        let close = |a: u64, b: u64| a.abs_diff(b) * 10 <= a.max(b);
        assert!(close(exact.waking_kicks, inferred.waking_kicks), "{exact:?}\n{inferred:?}");
        assert!(close(exact.blocked, inferred.blocked), "{exact:?}\n{inferred:?}");
    }
    for (_, seen) in both(policy(results, "kick-at-unlock")) {
        let acquired = marked(seen);
        assert!(
            acquired.waking_kicks <= acquired.blocked,
            "more than one kick an acquisition: {acquired:?}"
        );
    }
    let twice = both(policy(results, "kick-twice"));
    let slept: u64 = twice.iter().map(|(_, seen)| marked(seen).slept_twice).sum();
    assert!(
        slept >= 10,
        "only {slept} acquisitions slept twice: the scenario does not show the second kick"
    );
    for (_, seen) in twice.iter().filter(|(_, seen)| marked(seen).slept_twice > 0) {
        let kicks = marked(seen).waking_kicks_per_slept_twice.unwrap();
        assert!(kicks > 1.5, "{:?}", marked(seen));
    }
}

/// Linux' own lock with so small a spin budget that its waiters sleep.
const LINUX: &str = "linux-20turns";

/// Instructions are counted: on a busy machine Linux refuses to measure how fast it works. Four
/// vCPUs share a pCPU, so that owners lose it in a section that outlasts the budget. The handlers
/// of their timers take the lock too, as they do beside it in the guest.
#[test]
fn linux_is_a_lock_that_counts_exactly_and_bears_its_name() {
    if !can_build_a_module() {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let settings = ["critical=500us", "outside=100us", "acquisitions=20"];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let locks = ["--policy", "adaptive", "--policy", LINUX];
    let how = ["bench-4-on-1-timer", "--repeatable"].into_iter().chain(locks).chain(settings);
    let output = run(&how.collect::<Vec<_>>(), out.path());
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{table}\n{}", text(&output.stderr));
    assert!(table.lines().nth(1).unwrap().ends_with(&format!(" {LINUX} │")), "{table}");
    // It marks nothing: how many of its acquisitions slept, and by how many kicks, is not known.
    for unknown in ["acquisitions that blocked ", "waking kicks per blocked acquisition "] {
        let mut rows = table.lines().filter(|line| line.starts_with(&format!("│ {unknown}")));
        assert!(rows.clone().count() > 0 && rows.all(|row| row.ends_with(" - │")), "{table}");
    }
    let results = Results::read(out.path()).unwrap();
    for name in ["adaptive", LINUX] {
        let policy = policy(&results, name);
        assert_eq!(policy.counter_exact(), Some(true), "{name}");
        let counters = &policy.domains[0].report.as_ref().unwrap().counters;
        assert!(counters["interrupt_acquisitions"] > 0, "{name}: {counters:?}");
        let (p50, most) = (counters["interrupt_wait_p50_ns"], counters["interrupt_wait_max_ns"]);
        assert!(0 < p50 && p50 <= most, "{name}: {counters:?}");
    }
    let linux = policy(&results, LINUX);
    assert_eq!(linux.trace.as_ref().expect("a trace").reading.lost_records(), 0);
    for (domain, seen) in both(linux) {
        let report = domain.report.as_ref().unwrap();
        assert_eq!((domain.end, report.outcome.clone()), (End::Done, Outcome::Success));
        assert_eq!(report.parameters.policy.to_string(), LINUX);
        assert!(report.image.starts_with("Linux "), "{}", report.image);
        assert_eq!((report.acquisitions, report.counter), (80, 80));
        assert_eq!(report.calibration.spin_turns, 20);
        // Its vCPUs sleep, and it kicks them awake.
        let counts = &seen.counts;
        assert!(counts.polls_blocked.value > 0 && counts.waking_kicks.value > 0, "{counts:?}");
    }
}

/// A kernel whose code looks another way is refused where its budget is to be changed, and no
/// number is written into it.
#[test]
fn a_linux_kernel_with_another_spin_loop_gets_no_budget() {
    if !can_build_a_module() {
        return;
    }
    let files = Lab::prepare(&Progress::hidden()).unwrap().linux(&Progress::hidden()).unwrap();
    let places = files.places.as_ref().expect("Debian's kernel is known");
    let folder = tempfile::tempdir().unwrap();
    let plan = |policy: &str, files: &Files| {
        let scenario = Library::Embedded.load("solo-pv").unwrap();
        let (policies, settings) = (vec![policy.to_owned()], Vec::new());
        let start_after = start_after();
        let choices = Choices { policies, settings, markers: false, trace: false, start_after };
        let mut plan = Plan::new(&scenario, &choices, Path::new("/xen-guest.elf")).unwrap();
        plan.set_linux(files, folder.path()).map(|()| plan)
    };
    plan(LINUX, &files).expect("it takes a budget");
    for place in places {
        // Another instruction in front of the number.
        let mut kernel = files.kernel.clone();
        kernel[place.offset as usize - 1] = 0x90;
        let places = budget::find(&kernel).map_err(|error| format!("{error:#}"));
        let other = Files { kernel, places, ..files.clone() };
        let refused = plan(LINUX, &other).unwrap_err();
        assert!(refused.contains("is not where it is known to be"), "{refused}");
        assert!(refused.contains("leave out linux-Nus"), "{refused}");
        plan("linux", &other).expect("with the budget it ships with it runs");
        // And if it is another kernel than the one that was looked at.
        let file = folder.path().join("vmlinux");
        fs::write(&file, &other.kernel).unwrap();
        let written = budget::write(&file, &[*place], Some(Budget::Turns(800)), true);
        assert!(format!("{:#}", written.unwrap_err()).contains("is not the place"));
        assert!(fs::read(&file).unwrap() == other.kernel, "it was written into");
    }
}

/// The module for Linux needs make, which not every machine with a C linker has.
fn can_build_a_module() -> bool {
    let there = Command::new("make").arg("--version").output().is_ok();
    if !there {
        eprintln!("skipped: Linux as a lock; make is not installed (Debian: make)");
    }
    there
}

#[test]
fn a_run_counts_exactly_ends_with_a_table_and_leaves_everything_in_its_folder() {
    let out = tempfile::tempdir().unwrap();
    let output = run(&["overcommit-2x", "--deadline", crate::PATIENCE_SECONDS], out.path());
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{table}\n{}", text(&output.stderr));
    for row in [
        "kick-twice",
        "kick-at-unlock",
        "waking kicks per blocked acquisition",
        "lost records",
        "exact",
        "Domains: PV with 2-level event channels.",
    ] {
        assert!(table.contains(row), "{row} is not in\n{table}");
    }
    check_run(&Results::read(out.path()).unwrap(), 300, EventAbi::TwoLevel);
    for file in ["results.json", "report.html", "versions.json", "run.json", "console-host.log"] {
        assert!(out.path().join(file).is_file(), "{file} is missing");
    }
    for file in
        ["trace.bin", "guest1.cfg", "guest2.cfg", "console-guest1.log", "console-guest2.log"]
    {
        assert!(out.path().join("kick-twice").join(file).is_file(), "{file} is missing");
    }
    let versions = fs::read_to_string(out.path().join("versions.json")).unwrap();
    for word in ["xen_version", "dom0_kernel", "pvlab"] {
        assert!(versions.contains(word), "{word} is not in {versions}");
    }
}

/// Keeps every core of this machine busy until dropped, one millisecond of two: whoever else runs
/// is disturbed more often than by work without a pause, and has more of the core.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            let stop = Arc::clone(&stop);
            // Relaxed: nothing is handed over with it.
            thread::spawn(move || {
                const TURN: Duration = Duration::from_millis(1);
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    while begun.elapsed() < TURN {}
                    thread::sleep(TURN);
                }
            });
        }
        Busy(stop)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn kick_at_unlock_wakes_once_where_kick_twice_wakes_twice_and_a_busy_machine_changes_no_figure() {
    let folder = tempfile::tempdir().unwrap();
    // Names of one length: they end up in the memory of dom0.
    let [a, b] = ["a", "b"].map(|name| {
        // The emulator's threads then run at other times of each other.
        let _busy = (name == "b").then(Busy::start);
        let out = folder.path().join(name);
        // FIFO event channels here, 2-level ones above: the kicks are the same. Waiters sleep at
        // once: in this mode a PAUSE gives the pCPU away, so 20 us of them last until nobody
        // sleeps, and what the trace does not see cannot be inferred from it.
        let settings = ["--set", "acquisitions=60", "--set", "events=fifo", "--set", "spin=100ns"];
        let output = run(&[&["overcommit-2x", "--repeatable"], &settings[..]].concat(), &out);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}\n{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        out
    });
    let results = Results::read(&a).unwrap();
    check_run(&results, 60, EventAbi::Fifo);
    check_claim(&results);
    let compared =
        Command::cargo_bin("pvlab").unwrap().arg("compare").args([&a, &b]).output().unwrap();
    assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stdout));
    for policy in ["kick-twice", "kick-at-unlock"] {
        let trace = |out: &Path| fs::read(out.join(policy).join("trace.bin")).unwrap();
        assert!(trace(&a) == trace(&b), "the traces of {policy} differ");
    }
}

/// A folder of scenarios with one scenario `trouble`, of a small domain for each name and workload; PVH where
/// the name begins so.
fn trouble(domains: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("trouble");
    fs::create_dir(&scenario).unwrap();
    let patience = crate::PATIENCE_SECONDS;
    let about = format!("description = \"trouble\"\npcpus = 2\ndeadline_seconds = {patience}\n");
    fs::write(scenario.join("scenario.toml"), about).unwrap();
    for (name, extra) in domains {
        let kind = if name.starts_with("pvh") { "pvh" } else { "pv" };
        let config = format!(
            "name = \"{name}\"\ntype = \"{kind}\"\nkernel = \"xen-guest.elf\"\nmemory = 64\nvcpus = 2\ncpus = \"1-2\"\n\
             tsc_mode = \"native\"\nextra = \"outside=50us {extra}\"\n"
        );
        fs::write(scenario.join(format!("{name}.cfg")), config).unwrap();
    }
    folder
}

/// Two vCPUs, each on a pCPU of its own, take one lock again and again: whoever sleeps is passed
/// until it is late. So a lock whose thefts end keeps to the bound that it states, and one whose
/// thefts do not is told as failed. Instructions are counted, so that a wake-up lasts as long on a
/// busy machine.
#[test]
fn a_wait_keeps_to_the_bound_and_one_beyond_it_is_told() {
    let folder =
        trouble(&[("waits", "workload=torture critical=500us acquisitions=2000 wakeup=500us")]);
    let out = folder.path().join("out");
    let policies = ["--policy", "adaptive", "--policy", "adaptive-no-horizon"];
    let how =
        ["trouble", "--repeatable", "--no-trace", "--configs", folder.path().to_str().unwrap()];
    let output = run(&[&how[..], &policies].concat(), &out);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{}\n{told}", text(&output.stdout));
    let results = Results::read(&out).unwrap();
    let outcome =
        |name: &str| policy(&results, name).domains[0].report.as_ref().unwrap().outcome.clone();
    assert_eq!(outcome("adaptive"), Outcome::Success, "{told}");
    let Outcome::Failure(why) = outcome("adaptive-no-horizon") else { panic!("{told}") };
    // Two budgets and the horizon of the lock that it is a variant of, and a section and a wake-up
    // for each vCPU.
    assert!(why.starts_with("a wait lasted ") && why.contains(" says 8100000 ns at most"), "{why}");
}

fn run_trouble(folder: &Path, more: &[&str]) -> (Output, Results) {
    let out = folder.join("out");
    let how = ["trouble", "--policy", "kick-at-unlock", "--configs", folder.to_str().unwrap()];
    let output = run(&[&how[..], more].concat(), &out);
    (output, Results::read(&out).unwrap())
}

fn ends(results: &Results) -> Vec<(&str, End)> {
    results.policies[0].domains.iter().map(|domain| (domain.name.as_str(), domain.end)).collect()
}

#[test]
fn crashes_are_told_and_what_the_others_found_is_kept() {
    let folder = trouble(&[
        ("null", "critical=10us acquisitions=50 fault=null"),
        ("overflow", "critical=10us acquisitions=50 fault=overflow"),
        ("panic", "critical=10us acquisitions=50 fault=panic"),
        ("pvh-null", "critical=10us acquisitions=50 fault=null"),
        ("pvh-overflow", "critical=10us acquisitions=50 fault=overflow"),
        ("well", "critical=10us acquisitions=50"),
    ]);
    let (output, results) = run_trouble(folder.path(), &[]);
    let (told, table) = (text(&output.stderr), text(&output.stdout));
    assert_eq!(output.status.code(), Some(2), "{table}\n{told}");
    let expected = [
        ("null", End::Crashed),
        ("overflow", End::Crashed),
        ("panic", End::Crashed),
        ("pvh-null", End::Crashed),
        ("pvh-overflow", End::Crashed),
        ("well", End::Done),
    ];
    assert_eq!(ends(&results), expected, "{told}");
    // What was told of one domain: from its name to the next one's.
    let of = |name: &str| {
        let begin = told.find(&format!(": domain {name} ")).unwrap_or(told.len());
        let rest = &told[begin..];
        rest.find("\nkick-at-unlock: domain").map_or(rest, |end| &rest[..end]).to_owned()
    };
    for domain in ["null", "pvh-null"] {
        let told = of(domain);
        assert!(told.contains("(a null pointer)"), "{told}");
        // The function's own name, and its callers'.
        assert!(told.contains(" lab_guest::workload::read_through_null+0x"), "{told}");
        assert!(told.contains(" xen_guest::kernel::smp::run+0x"), "{told}");
    }
    // Here Xen ends the domain, and pvlab asks it why.
    let overflow = of("overflow");
    let recursion = "lab_guest::workload::use_up_the_stack";
    assert!(overflow.contains(": vCPU 1 overflowed its stack in lab_guest::"), "{overflow}");
    assert!(overflow.contains(&format!("    at {recursion}+0x")), "{overflow}");
    assert!(overflow.contains("    at xen_guest::kernel::smp::run+0x"), "{overflow}");
    assert!(table.contains("domain overflow crashed"), "{table}");
    assert!(table.contains("vCPU 1 overflowed its stack"), "{table}");
    assert!(folder.path().join("out/kick-at-unlock/crash-overflow.txt").is_file());
    // And here the guest says it.
    let overflow = of("pvh-overflow");
    assert!(overflow.contains("the stack overflowed into its guard page"), "{overflow}");
    assert!(overflow.contains(&format!(" times) {recursion}+0x")), "{overflow}");
    assert!(overflow.contains(" xen_guest::kernel::smp::run+0x"), "{overflow}");
    // The last ones are the guest's own.
    for words in ["domain panic crashed", "fault=panic: asked to panic"] {
        assert!(told.contains(words), "{words} is not in {told}");
    }
    assert!(folder.path().join("out/kick-at-unlock/console-panic.log").is_file());
    assert!(folder.path().join("out/kick-at-unlock/trace.bin").is_file());
}

/// How far it has come by then is the machine's business.
#[test]
fn a_domain_that_hangs_is_told_at_the_deadline() {
    let folder = trouble(&[("endless", "critical=9s acquisitions=100 deadline=1000s")]);
    let (output, results) = run_trouble(folder.path(), &["--deadline", "15"]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{}\n{told}", text(&output.stdout));
    assert_eq!(ends(&results), [("endless", End::Hung)], "{told}");
    assert!(told.contains("domain endless hung: "), "{told}");
    assert!(told.contains(" at the deadline of 15 s"), "{told}");
    assert!(folder.path().join("out/kick-at-unlock/console-endless.log").is_file());
}

#[test]
fn a_broken_lock_is_told_with_exit_code_1() {
    let folder = trouble(&[
        ("lose", "critical=10us acquisitions=50 fault=lose"),
        ("stuck", "critical=10us acquisitions=50 fault=hang deadline=5s"),
    ]);
    let (output, results) = run_trouble(folder.path(), &[]);
    let (told, table) = (text(&output.stderr), text(&output.stdout));
    assert_eq!(output.status.code(), Some(1), "{table}\n{told}");
    assert_eq!(ends(&results), [("lose", End::Failed), ("stuck", End::Failed)], "{told}");
    assert!(
        table.contains("MUTUAL EXCLUSION BROKEN: the counter under the lock is 99 after 100"),
        "{table}"
    );
    let stuck = results.policies[0].domains[1].report.as_ref().unwrap();
    assert!(
        format!("{:?}", stuck.outcome).contains("vCPU"),
        "the watchdog names the vCPU: {:?}",
        stuck.outcome
    );
}

#[test]
fn ctrl_c_leaves_no_process_and_keeps_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run-to-be-interrupted");
    let mut child = pvlab(&["overcommit-2x", "--set", "acquisitions=1000000"], &out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let console = out.join("console-host.log");
    let patience = Instant::now() + crate::PATIENCE;
    while !fs::read_to_string(&console).unwrap_or_default().contains("domain-created") {
        assert!(Instant::now() < patience, "no domain was created");
        assert!(child.try_wait().unwrap().is_none(), "pvlab ended by itself");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(
        !processes_with(&out).is_empty(),
        "the emulator runs, and its command names the folder"
    );
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(2));
    none_is_left(&out);
    assert!(out.join("run.json").is_file() && console.is_file());
}
