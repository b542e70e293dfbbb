//! The commands as a user runs them: output, exit codes, messages.

#[path = "common/filter.rs"]
mod filter;

use std::io::{BufRead, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use filter::without;

const TWICE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/kick-twice-pv.xentrace.bin");
const MINI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mini-pv.xentrace.bin");
const UNLOCK: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/kick-at-unlock-pv.xentrace.bin");

fn kicktrace(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kicktrace")).args(args).output().expect("it starts")
}

fn good(args: &[&str]) -> String {
    let out = kicktrace(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("output is text")
}

fn bad(args: &[&str], code: i32) -> String {
    let out = kicktrace(args);
    assert_eq!(out.status.code(), Some(code), "{args:?}");
    String::from_utf8(out.stderr).expect("messages are text")
}

fn temporary(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_TARGET_TMPDIR"))
}

#[test]
fn summary_as_table_json_and_csv() {
    let table = good(&["summary", TWICE]);
    assert!(table.contains("guest's marks"), "{table}");
    let json: serde_json::Value =
        serde_json::from_str(&good(&["summary", "--json", TWICE])).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["domains"][1]["marked"]["certainty"], "exact");
    assert_eq!(json["domains"][1]["inferred"]["certainty"], "inferred");
    assert_eq!(json["domains"][1]["counts"]["waking_kicks"]["certainty"], "exact");
    let csv = good(&["summary", "--csv", TWICE]);
    let columns = csv.lines().next().unwrap().split(',').count();
    assert_eq!(csv.lines().count(), 1 + 9, "one line a vCPU");
    assert!(csv.lines().all(|line| line.split(',').count() == columns));
}

#[test]
fn the_table_fits_the_terminal() {
    let trace = std::fs::File::open(TWICE).unwrap();
    let mut summary = kicktrace::summarise(trace, &kicktrace::Options::default()).unwrap();
    let whole = summary.to_string();
    assert!(whole.contains("v3") && whole.contains("p99.9") && whole.contains("longest (us)"));
    let narrow = format!("{summary:120}");
    assert!(narrow.lines().all(|line| line.chars().count() <= 120), "{narrow}");
    assert!(narrow.contains("v3") && narrow.contains("p99.9") && narrow.contains("max (us)"));
    // Narrow terminals get a narrower table of the locks.
    for columns in [60, 80] {
        let narrow = format!("{summary:columns$}");
        let long = narrow.lines().find(|line| line.chars().count() > columns);
        assert_eq!(long, None, "{columns} columns");
        assert!(narrow.contains("0x0016f080") && narrow.contains("p99 (us)"), "{narrow}");
    }
    summary.domains.iter_mut().for_each(|domain| domain.locks.clear());
    let narrow = format!("{summary:80}");
    assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
    assert!(narrow.contains("(and 1 vCPUs more") && !narrow.contains("p99.9"));
}

/// Numbers wider than their columns move what is behind them, and touch nothing.
#[test]
fn wide_numbers_do_not_touch() {
    let trace = std::fs::File::open(TWICE).unwrap();
    let mut summary = kicktrace::summarise(trace, &kicktrace::Options::default()).unwrap();
    let cells = |summary: &kicktrace::Summary| -> Vec<Vec<String>> {
        let text = format!("{summary:200}");
        let lines = text.lines().filter(|line| {
            ["  0x0016f080", "  block to run"].iter().any(|begin| line.starts_with(begin))
        });
        lines.map(|line| line.split_whitespace().map(String::from).collect()).collect()
    };
    let before = cells(&summary);
    assert!(before.len() >= 4, "{before:?}");
    for domain in &mut summary.domains {
        for of in domain.locks.iter_mut().map(|of| &mut of.wait).chain([&mut domain.latencies.wait])
        {
            (of.p50, of.p90, of.p99, of.p999, of.max) =
                (1 << 50, 1 << 51, 1 << 52, 1 << 53, 1 << 54);
        }
        domain.locks.iter_mut().for_each(|of| of.waits = 123_456_789_012);
    }
    let after = cells(&summary);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.len(), after.len(), "{after:?}");
    }
}

/// What has no room in a page is counted there.
#[test]
fn a_report_says_how_much_it_leaves_out() {
    let (trace, page) = (temporary("many.bin"), temporary("many.html"));
    good(&["generate", "--vcpus", "20", "--domains", "1", "--markers", "-o", &trace]);
    good(&["summary", "--html", &page, &trace]);
    assert!(std::fs::read_to_string(&page).unwrap().contains("4 more vCPUs"));
    // The names of hypercalls are whole, and who has no room on a pCPU is counted.
    let host = good(&["host", TWICE]);
    assert!(host.contains("hypercall update_va_mapping ") && host.contains("math_state_restore "));
    let pcpu = host.lines().find(|line| line.starts_with("p1 ")).unwrap();
    assert!(pcpu.ends_with("+6"), "{pcpu}");
}

#[test]
fn what_cannot_be_meant_is_refused_before_reading() {
    let folder = bad(&["summary", env!("CARGO_TARGET_TMPDIR")], 2);
    assert!(folder.contains("directory"), "{folder}");
    for command in ["summary", "timeline", "dump"] {
        let window = bad(&[command, "--from", "2", "--to", "1", TWICE], 2);
        assert!(window.contains("ends before it begins"), "{window}");
        assert!(bad(&[command, "--from", "nan", TWICE], 2).contains("seconds after"));
    }
    for command in ["summary", "locks", "timeline"] {
        let nobody = bad(&[command, "--dom", "77", TWICE], 2);
        assert!(nobody.contains("domain 77") || command == "locks", "{nobody}");
    }
    for (option, id) in [("--dom", "77"), ("--vcpu", "d1v9"), ("--pcpu", "9")] {
        let nobody = bad(&["dump", option, id, TWICE], 2);
        assert!(nobody.contains(id) && nobody.contains("no record of"), "{nobody}");
    }
}

#[test]
fn an_option_that_names_what_is_not_there_acts_on_nothing_and_is_refused() {
    for command in ["summary", "host", "timeline", "dump"] {
        let nobody = bad(&[command, "--tsc-offset", "9=5", TWICE], 2);
        assert!(nobody.contains("pCPU 9") && nobody.contains(TWICE), "{command}: {nobody}");
    }
    let twice = bad(&["summary", "--tsc-offset", "0=1", "--tsc-offset", "0=2", TWICE], 2);
    assert!(twice.contains("pCPU 0 is named twice"), "{twice}");
    let nowhere = bad(&["locks", "--each", "--lock", "0x1", TWICE], 2);
    assert!(nowhere.contains("0x00000001") && nowhere.contains(TWICE), "{nowhere}");
    let both = bad(&["diff", "-", "-"], 2);
    assert!(both.contains("standard input holds one trace"), "{both}");
    assert!(bad(&["timeline", "--from", "1e300", TWICE], 2).contains("seconds after"));
}

/// An option that is accepted acts. One that cannot act beside another is refused, by its name.
#[test]
fn an_option_that_cannot_act_is_refused() {
    for (args, named) in [
        (&["summary", "--html", "-", "--json", TWICE][..], "--json"),
        (&["summary", "--html", "-", "--csv", TWICE], "--csv"),
        (&["timeline", "--json", "--width", "50", TWICE], "--width"),
        (&["timeline", "--perfetto", "-", "--width", "50", TWICE], "--width"),
        (&["dump", "--ticks", "--cpu-hz", "2.6G", TWICE], "--cpu-hz"),
        (&["dump", "--event", "", TWICE], "--event"),
        (&["diff", "--dom", "0", TWICE, UNLOCK], "--dom 0"),
        (&["diff", "--dom", "77", TWICE, UNLOCK], "domain 77"),
        (&["diff", "--tsc-offset", "9=5", TWICE, UNLOCK], "--tsc-offset"),
        (&["check", "--tsc-offset", "9=5", TWICE], "--tsc-offset"),
        (&["generate", "--mb", "0"], "--mb"),
        (&["generate", "--mb", "18446744073709551615"], "--mb"),
        (&["capture", "--pcpus", "4", "--seconds", "0"], "--seconds"),
        (&["capture", "--pcpus", "4", "--out", ""], "--out"),
        (&["locks", "--each", "--lock", "+16f080", TWICE], "--lock"),
        (&["export", TWICE], "--csv"),
        (&["summary", ""], "FILE"),
        (&["summary", "--xl-dmesg", "-", "-"], "--xl-dmesg -"),
    ] {
        let message = bad(args, 2);
        assert!(message.contains(named), "{args:?}: {message}");
    }
    // A negative number is a bad value of its option.
    for (args, told) in [
        (["summary", "--from", "-1", TWICE], "seconds after"),
        (["summary", "--every", "-1", TWICE], "a length of time"),
        (["dump", "--pcpu", "-1", TWICE], "'-1' for '--pcpu"),
    ] {
        let message = bad(&args, 2);
        assert!(message.contains(told), "{args:?}: {message}");
    }
    for gate in ["waits_per_second>nan", "waits_per_second>inf", "waits_per_second>=5", ">5"] {
        assert!(bad(&["diff", "--fail-if", gate, TWICE, UNLOCK], 2).contains("such as"), "{gate}");
    }
    good(&["diff", "--fail-if", "waits_per_second > 5 %", TWICE, UNLOCK]);
}

#[test]
fn the_whole_address_of_a_lock_names_it_too() {
    let half = good(&["locks", "--each", "--lock", "0x16f080", TWICE]);
    assert_eq!(half, good(&["locks", "--each", "--lock", "0XFFFFFFFF0016F080", TWICE]));
}

/// With a report the terminal shows the phases as it does without.
#[test]
fn phases_are_printed_beside_a_report_of_them() {
    let page = temporary("phases-beside.html");
    for kind in [None, Some("--json"), Some("--csv")] {
        let every = ["summary", "--every", "100ms", TWICE];
        let alone = good(&[&every[..], kind.as_slice()].concat());
        let beside = good(&[&every[..], kind.as_slice(), &["--html", &page]].concat());
        assert!(alone == beside, "{kind:?}");
    }
    assert!(std::fs::read_to_string(&page).unwrap().contains("Phase by phase"));
}

/// The figures of phases are as doubtful as those of the whole, and that is said.
#[test]
fn doubts_are_written_beside_phases() {
    let cut = temporary("phases-cut.bin");
    std::fs::write(&cut, &std::fs::read(TWICE).unwrap()[..300_000]).unwrap();
    for kind in [None, Some("--json"), Some("--csv")] {
        let message = bad(&[&["summary", "--every", "100ms", &cut], kind.as_slice()].concat(), 2);
        assert!(
            message.contains("doubtful in") && message.contains("the trace is cut"),
            "{message}"
        );
    }
    let out = kicktrace(&["summary", "--every", "100ms", "--json", &cut]);
    let phases: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let last = phases["phases"].as_array().unwrap().last().unwrap();
    assert!(last["doubts"].as_array().unwrap().iter().any(|of| of["topic"] == "cut"), "{last}");
}

/// Each part of a trace holds its first moment and not its last.
#[test]
fn windows_of_records_meet_without_a_gap_and_without_overlap() {
    // At the very time of a record.
    let all = good(&["dump", "--cpu-hz", "1G", TWICE]);
    let lines: Vec<_> = all.lines().collect();
    let middle = lines[lines.len() / 2].split_whitespace().next().unwrap();
    let part = |window: &[&str]| good(&[&["dump", "--cpu-hz", "1G"], window, &[TWICE]].concat());
    assert_eq!(part(&["--to", middle]) + &part(&["--from", middle]), all);
    // TSC values are printed of the same window.
    let seconds = part(&["--from", middle]).lines().count();
    assert_eq!(part(&["--from", middle, "--ticks"]).lines().count(), seconds);
    // Without a frequency a window is in ticks, which is said.
    let mut program = Command::new(env!("CARGO_BIN_EXE_kicktrace"));
    let stdin = std::fs::File::open(TWICE).unwrap();
    let out = program.args(["dump", "--from", "5", "-"]).stdin(stdin).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("count ticks"));
}

/// Names of files are bytes.
#[test]
#[cfg(target_os = "linux")]
fn a_file_name_may_hold_any_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let name = |ending: &[u8]| {
        let folder = [env!("CARGO_TARGET_TMPDIR").as_bytes(), b"/odd \xff name"].concat();
        std::ffi::OsStr::from_bytes(&[&folder[..], ending].concat()).to_owned()
    };
    let (trace, page) = (name(b".bin"), name(b".html"));
    std::fs::copy(TWICE, &trace).unwrap();
    let run = |args: &[&std::ffi::OsStr]| {
        Command::new(env!("CARGO_BIN_EXE_kicktrace")).args(args).output().expect("it starts")
    };
    let out = run(&["summary".as_ref(), "--html".as_ref(), &page, &trace]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(std::fs::read_to_string(&page).unwrap().contains("odd \u{fffd} name.bin"));
    assert!(run(&["diff".as_ref(), &trace, TWICE.as_ref()]).status.success());
    let capture = good(&["capture", "--pcpus", "4", "--out", "/tmp/it's one.bin"]);
    assert!(capture.contains(r"'/tmp/it'\''s one.bin'"), "{capture}");
}

/// Nobody reads the message, but the exit code stays what it is.
#[test]
#[cfg(target_os = "linux")]
fn a_message_without_room_changes_no_exit_code() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    for (args, code) in [
        (&["summary", "/nonexistent"][..], 2),
        (&["diff", TWICE, UNLOCK, "--fail-if", "waits_per_second<-1"], 1),
        (&["summary", "--fix-skew", TWICE], 0),
        (&["summary", "--from", "nan", TWICE], 2),
    ] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_kicktrace"));
        let status = program.args(args).stdout(Stdio::null()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(code), "{args:?}");
    }
    let mut program = Command::new(env!("CARGO_BIN_EXE_kicktrace"));
    let status = program.arg("--help").stdout(full()).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(2), "help that found no room");
}

/// The log that the frequency is read from is an input as the trace is, and may come from a pipe.
#[test]
fn the_log_of_xen_is_an_input_too() {
    let log = temporary("own.log");
    std::fs::write(&log, "(XEN) Detected 2600.000 MHz processor.\n").unwrap();
    for command in [["summary", "--html"], ["timeline", "--perfetto"]] {
        let message = bad(&[&command[..], &[&log, "--xl-dmesg", &log, TWICE]].concat(), 2);
        assert!(message.contains("destroy it"), "{message}");
    }
    let mut program = Command::new(env!("CARGO_BIN_EXE_kicktrace"));
    let stdin = std::fs::File::open(&log).unwrap();
    let out = program.args(["summary", "--xl-dmesg", "-", TWICE]).stdin(stdin).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("2.600000 GHz (given)"));
}

/// `kicktrace dump FILE >> FILE` would read what it writes.
#[test]
#[cfg(target_os = "linux")]
fn nothing_is_written_behind_the_trace_that_is_read() {
    let file = temporary("own-appended.bin");
    std::fs::copy(TWICE, &file).unwrap();
    for input in [&file[..], "-"] {
        let out = std::fs::File::options().append(true).open(&file).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_kicktrace"));
        program.args(["dump", input]).stdin(std::fs::File::open(&file).unwrap()).stdout(out);
        let out = program.output().unwrap();
        assert_eq!(out.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&out.stderr).contains("the trace that is read"));
    }
    assert!(std::fs::read(&file).unwrap() == std::fs::read(TWICE).unwrap());
}

/// What is wrong with a trace hides no gate, and a figure that was 0 can fail one.
#[test]
fn gates_are_judged_whatever_else_is_wrong() {
    let cut = temporary("gate-cut.bin");
    std::fs::write(&cut, &std::fs::read(UNLOCK).unwrap()[..300_000]).unwrap();
    let message = bad(&["diff", "--fail-if", "waits_per_second<-1", TWICE, &cut], 2);
    assert!(
        message.contains("is cut at byte") && message.contains("waits_per_second<-1 ("),
        "{message}"
    );
    // No guest of this trace waits.
    let quiet = temporary("gate-quiet.bin");
    std::fs::write(&quiet, include_bytes!("data/cases/33_busy_no_wake.bin")).unwrap();
    let diff = good(&["diff", &quiet, TWICE]);
    let waits =
        diff.lines().find(|line| line.starts_with("waits_per_second")).expect("it is there");
    assert!(waits.contains("from nothing"), "{waits}");
    let message = bad(&["diff", "--fail-if", "waits_per_second>5", &quiet, TWICE], 1);
    assert!(message.contains("waits_per_second>5 ("), "{message}");
}

/// What needs the frequency looks at the file first.
#[test]
fn what_cannot_be_opened_is_not_taken_for_a_pipe() {
    let (folder, csv) = (env!("CARGO_TARGET_TMPDIR"), temporary("never"));
    let wants = [
        vec!["export", "--csv", csv.as_str()],
        vec!["summary", "--every", "1ms"],
        vec!["host", "--from", "1"],
        vec!["locks", "--each"],
        vec!["dump"],
    ];
    for args in wants {
        for (file, told) in [("/nonexistent", "No such file"), (folder, "a directory")] {
            let message = bad(&[&args[..], &[file]].concat(), 2);
            assert!(message.contains(file) && message.contains(told), "{args:?}: {message}");
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_told_with_the_file_that_found_no_room() {
    for args in [
        ["summary", "--html", "/dev/full", TWICE],
        ["timeline", "--perfetto", "/dev/full", TWICE],
        ["generate", "-o", "/dev/full", "--markers"],
    ] {
        let message = bad(&args, 2);
        assert!(message.contains("/dev/full: No space left"), "{message}");
    }
}

/// Whatever name an output has, and whatever links lead to it, the trace that is read stays as it
/// is.
#[test]
fn no_output_overwrites_its_input() {
    let trace = std::fs::read(TWICE).unwrap();
    let (file, soft, hard) = (temporary("own.bin"), temporary("own.soft"), temporary("own.hard"));
    std::fs::write(&file, &trace).unwrap();
    for link in [&soft, &hard] {
        let _ = std::fs::remove_file(link);
    }
    std::os::unix::fs::symlink(&file, &soft).unwrap();
    std::fs::hard_link(&file, &hard).unwrap();
    for (input, output) in [(&file, &file), (&file, &soft), (&file, &hard), (&soft, &file)] {
        for command in [["summary", "--html"], ["timeline", "--perfetto"]] {
            let message = bad(&[&command[..], &[output, input]].concat(), 2);
            assert!(message.contains("destroy it"), "{message}");
        }
    }
    // Read from standard input, it is the same file.
    for command in [&["summary", "--html"][..], &["timeline", "--cpu-hz", "2.6G", "--perfetto"]] {
        let stdin = std::fs::File::open(&file).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_kicktrace"));
        let out = program.args(command).args([&file, "-"]).stdin(stdin).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{command:?}");
    }
    // Nor does one of the files of a folder, whose names nobody gave.
    let dir = temporary("own.tables");
    std::fs::create_dir_all(&dir).unwrap();
    for table in ["runs", "waits", "kicks", "acquisitions", "domains"] {
        let inside = format!("{dir}/{table}.csv");
        let _ = std::fs::remove_file(&inside);
        std::os::unix::fs::symlink(&file, &inside).unwrap();
        for input in [&inside, &file, &hard] {
            let message = bad(&["export", "--csv", &dir, input], 2);
            assert!(message.contains("destroy it"), "{message}");
        }
        std::fs::remove_file(&inside).unwrap();
    }
    assert!(std::fs::read(&file).unwrap() == trace, "the trace is as it was");
}

#[test]
fn a_dash_is_standard_output_for_every_file_that_is_written() {
    let page = good(&["summary", "--html", "-", TWICE]);
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    let out = kicktrace(&["timeline", "--perfetto", "-", TWICE]);
    assert!(out.status.success());
    check_perfetto(&out.stdout);
    let file = temporary("generated.bin");
    good(&["generate", "--mb", "1", "-o", &file]);
    let out = kicktrace(&["generate", "--mb", "1", "-o", "-"]);
    assert!(out.status.success() && out.stdout == std::fs::read(&file).unwrap());
    // Several tables are no one output.
    for kind in ["--csv", "--parquet"] {
        let message = bad(&["export", kind, "-", TWICE], 2);
        assert!(message.contains("folder") || message.contains("without Parquet"), "{message}");
    }
    assert!(!std::path::Path::new("-").exists());
}

/// The sums of a window and those of the rest are those of the whole.
#[test]
fn a_window_of_locks_is_a_part_of_them() {
    let waits = |window: &[&str]| -> u64 {
        let json = good(&[&["locks", "--json"], window, &[TWICE]].concat());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let all = json["domains"].as_array().unwrap().iter();
        let locks = all.flat_map(|domain| domain["locks"].as_array().unwrap());
        locks.map(|lock| lock["waits"].as_u64().unwrap()).sum()
    };
    let (whole, first, rest) = (waits(&[]), waits(&["--to", "1.6"]), waits(&["--from", "1.6"]));
    assert!(first > 0 && rest > 0, "{first} {rest}");
    assert_eq!(first + rest, whole);
}

#[test]
fn a_window_behind_the_end_is_an_error_everywhere() {
    for command in ["summary", "host", "timeline", "dump", "locks"] {
        let message = bad(&[command, "--from", "99", TWICE], 2);
        assert!(message.contains("the trace ends before --from"), "{command}: {message}");
        let message = bad(&[command, "--to", "0", TWICE], 2);
        assert!(message.contains("where the trace begins"), "{command}: {message}");
    }
    for command in ["summary", "host", "timeline", "dump", "locks"] {
        let message = bad(&[command, "--to", "1e-12", TWICE], 2);
        assert!(message.contains("shorter than a tick"), "{command}: {message}");
        // In the unit it was given in.
        assert!(bad(&[command, "--from", "99.5", TWICE], 2).contains("ends before --from 99.5"));
    }
    assert!(bad(&["locks", "--each", "--from", "99", TWICE], 2).contains("ends before --from"));
}

/// Ticks are never told as nanoseconds.
#[test]
fn what_needs_a_frequency_is_refused_or_left_out_without_one() {
    let stdin = || std::fs::File::open(MINI).unwrap();
    let perfetto = temporary("no-clock.pftrace");
    let mut program = Command::new(env!("CARGO_BIN_EXE_kicktrace"));
    let mut cat = Command::new("cat").stdin(stdin()).stdout(Stdio::piped()).spawn().unwrap();
    let pipe = cat.stdout.take().unwrap();
    let out =
        program.args(["timeline", "--perfetto", &perfetto, "-"]).stdin(pipe).output().unwrap();
    // It holds the reading end, too: `cat` would wait for it for ever.
    drop(program);
    let _ = cat.wait();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("--cpu-hz"));
    // A trace without the records that tell nanoseconds beside one that has them.
    let unknown = temporary("no-clock.bin");
    let case = include_bytes!("data/cases/47_unpause_wake.bin");
    std::fs::write(&unknown, case).unwrap();
    for pair in [[&unknown[..], TWICE], [TWICE, &unknown]] {
        let out = kicktrace(&["diff", "--json", pair[0], pair[1]]);
        let changes: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout).unwrap();
        assert!(!changes.is_empty());
        let timed =
            changes.iter().find(|of| ["us", "ticks", "/s"].contains(&of["unit"].as_str().unwrap()));
        assert_eq!(timed, None);
        let message = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(message.contains("no-clock.bin: frequency unknown"), "{message}");
    }
    // One trace tells nothing of how its shares would differ in another.
    let same = good(&["diff", TWICE, UNLOCK]);
    let stolen = same.lines().find(|line| line.starts_with("stolen_percent")).unwrap();
    assert!(stolen.contains("+-?") && stolen.contains("nothing shows how much"), "{stolen}");
}

#[test]
fn locks_as_table_json_and_csv_one_by_one_and_each() {
    let table = good(&["locks", TWICE]);
    assert!(table.contains("d1: every figure is exact") && table.contains("0x0016f080"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&good(&["locks", "--json", TWICE])).unwrap();
    let lock = &json["domains"][0]["locks"][0];
    assert_eq!(lock["acquisitions"]["certainty"], "exact");
    let blocked = lock["acquisitions"]["blocked"].as_u64().unwrap();
    assert!(blocked > 200 && lock["wait"]["histogram"].as_array().unwrap().len() > 10);
    assert_eq!(good(&["locks", "--csv", TWICE]).lines().count(), 1 + 2);
    let args = ["locks", "--each", "--dom", "1", "--lock", "0x16f080"];
    let each = good(&[&args[..], &["--csv", TWICE]].concat());
    assert_eq!(each.lines().count() as u64, 1 + blocked, "a line an acquisition");
    let columns = each.lines().next().unwrap().split(',').count();
    assert!(each.lines().all(|line| line.split(',').count() == columns));
    let lines = good(&[&args[..], &["--json", TWICE]].concat());
    let twice = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|of| of["waits"] == 2 && of["waking_kicks"] == 2)
        .count() as u64;
    assert_eq!(lock["acquisitions"]["table"][2][2], twice);
    let message = bad(&["locks", MINI], 2);
    assert!(message.contains("no guest marks") && message.contains("878440 bytes"), "{message}");
}

#[test]
fn a_cut_file_is_summed_up_to_the_cut_and_told_with_exit_code_2() {
    let trace = std::fs::read(TWICE).unwrap();
    let file = temporary("cut.xentrace.bin");
    std::fs::write(&file, &trace[..trace.len() - 7]).unwrap();
    let out = kicktrace(&["summary", &file]);
    assert_eq!(out.status.code(), Some(2));
    let table = String::from_utf8(out.stdout).unwrap();
    assert!(table.contains("waking kicks"), "what there is, is shown: {table}");
    let message = String::from_utf8(out.stderr).unwrap();
    let place = format!("{file}: the trace is cut at byte {}, 7 bytes before", trace.len() - 7);
    assert!(message.contains(&place), "{message}");
}

#[test]
fn a_pipe_gives_what_a_file_gives() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kicktrace"))
        .args(["summary", "--json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let trace = std::fs::read(TWICE).unwrap();
    child.stdin.take().unwrap().write_all(&trace).expect("it reads to the end");
    let out = child.wait_with_output().expect("it ends");
    let json = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
    assert_eq!(json(good(&["summary", "--json", TWICE]).as_bytes()), json(&out.stdout));
}

#[test]
fn dump_filters() {
    let all = good(&["dump", TWICE]);
    assert_eq!(all.lines().count(), 23_820);
    let wakes =
        good(&["dump", TWICE, "--event", "wake", "--vcpu", "d1v2", "--from", "0.5", "--to", "1.9"]);
    assert!(wakes.lines().count() > 50);
    for line in wakes.lines() {
        let time: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
        assert!((0.5..=1.9).contains(&time) && line.contains(" wake "), "{line}");
        assert!(line.contains("d1v2"), "{line}");
    }
    let lines = good(&["dump", TWICE, "--pcpu", "1"]).lines().count();
    assert!((1_000..23_000).contains(&lines));
    // By number, as it is printed where there is no name.
    let switches = good(&["dump", TWICE, "--event", "0x0002800a"]);
    assert!(
        switches.contains(" switch ") && switches.lines().all(|line| line.contains(" switch "))
    );
    for misspelt in ["wakee", "0xxyz", "0x00028000a"] {
        let told = bad(&["dump", TWICE, "--event", misspelt], 2);
        assert!(
            told.contains("no event's name begins like this; there are adjdom, block"),
            "{told}"
        );
    }
}

#[test]
fn timeline_as_chart_json_and_perfetto() {
    let chart = good(&["timeline", TWICE, "--from", "1.7", "--to", "1.71"]);
    assert!(chart.contains("p1 ") && chart.contains("kicked by"), "{chart}");
    let lines = good(&["timeline", TWICE, "--json", "--from", "1.7", "--to", "1.71"]);
    let kinds: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(kinds.iter().any(|of| of["kind"] == "wait" && of["kick"]["by"]["domain"] == 1));
    let path = temporary("timeline.pftrace");
    good(&["timeline", TWICE, "--perfetto", &path]);
    check_perfetto(&std::fs::read(&path).unwrap());
}

/// Walks the packets: every one well formed, as many slices end as begin, each flow starts and
/// ends.
fn check_perfetto(mut trace: &[u8]) {
    let (mut begins, mut ends, mut flows, mut ended) = (0, 0, Vec::new(), Vec::new());
    while !trace.is_empty() {
        let (field, packet) = field(&mut trace);
        assert_eq!(field, 1, "a Trace is a list of packets");
        let mut packet = packet.expect("a packet is a message");
        while !packet.is_empty() {
            let (number, event) = self::field(&mut packet);
            let (11, Some(mut event)) = (number, event) else { continue };
            while !event.is_empty() {
                let before = event;
                let (number, _) = self::field(&mut event);
                let value = before[1];
                match number {
                    9 if value == 1 => begins += 1,
                    9 if value == 2 => ends += 1,
                    47 => flows.push(before[2..10].to_vec()),
                    48 => ended.push(before[2..10].to_vec()),
                    _ => {}
                }
            }
        }
    }
    assert!(begins > 1000 && begins == ends, "{begins} begin, {ends} end");
    assert!(flows.len() > 300 && flows == ended);
}

/// One protobuf field: its number, and its bytes if it is a message.
fn field<'a>(from: &mut &'a [u8]) -> (u64, Option<&'a [u8]>) {
    let varint = |from: &mut &[u8]| {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let byte = from[0];
            *from = &from[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    let tag = varint(from);
    match tag & 7 {
        0 => {
            varint(from);
            (tag >> 3, None)
        }
        1 => {
            *from = &from[8..];
            (tag >> 3, None)
        }
        2 => {
            let length = varint(from) as usize;
            let (bytes, rest) = from.split_at(length);
            *from = rest;
            (tag >> 3, Some(bytes))
        }
        other => panic!("wire type {other}"),
    }
}

#[test]
fn html_is_one_whole_file() {
    let path = temporary("report.html");
    good(&["summary", TWICE, "--html", &path]);
    let page = std::fs::read_to_string(&path).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    for outside in ["http://", "https://", "<script", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    for there in ["prefers-color-scheme", "Who ran where", "The longest waits", "class=\"kick\""] {
        assert!(page.contains(there), "{there}");
    }
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert!(!page.contains("NaN") && !page.contains("inf\""));
}

#[test]
fn diff_shows_the_patch_and_gates_on_it() {
    let table = good(&["diff", TWICE, UNLOCK, "--fail-if", "waking_kicks_per_acquisition>5"]);
    assert!(table.contains("waking_kicks_per_slept_twice"), "{table}");
    let message = bad(&["diff", UNLOCK, TWICE, "--fail-if", "waking_kicks_per_acquisition>5"], 1);
    assert!(message.contains("waking_kicks_per_acquisition>5"), "{message}");
    let message = bad(&["diff", TWICE, UNLOCK, "--fail-if", "nonsense>5"], 2);
    assert!(message.contains("there are: waking_kicks_per_acquisition"), "{message}");
    let same = good(&["diff", TWICE, TWICE, "--json"]);
    let changes: Vec<serde_json::Value> = serde_json::from_str(&same).unwrap();
    assert!(changes.iter().all(|of| of["percent"]["value"] == 0.0));
    let ranked = changes.iter().filter(|of| !of["rank"].is_null());
    assert_eq!(ranked.filter(|of| of["rank"]["longer"] == 0.5).count(), 3, "no latency changed");
    assert!(table.contains("rank test: p < 0.001"), "{table}");
}

#[test]
fn check_says_what_is_missing() {
    assert!(good(&["check", TWICE]).lines().all(|line| line.starts_with("good")));
    // Only wakes: everything else is missing.
    let path = temporary("wakes.bin");
    let words = [0x2001_f003u32, 0, 20, 0xa002_8004, 7, 0, 1, 0];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    std::fs::write(&path, bytes).unwrap();
    let out = kicktrace(&["check", &path]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("missing  runstate changes") && text.contains("0x00201000"), "{text}");
}

#[test]
fn capture_prints_the_masks_of_xen() {
    let mask = |args: &[&str]| {
        let text = good(&[&["capture", "--pcpus", "8"], args].concat());
        text.lines().next().unwrap().split("-e ").nth(1).unwrap()[..10].to_owned()
    };
    assert_eq!(mask(&[]), "0x00229000");
    assert_eq!(mask(&["--markers"]), "0x08229000");
    assert_eq!(mask(&["--guests", "pvh"]), "0x000ab000");
    assert_eq!(mask(&["--guests", "both"]), "0x002ab000");
}

#[test]
fn bad_input_ends_with_2_and_says_where() {
    assert!(bad(&["summary", "/nonexistent"], 2).contains("/nonexistent"));
    let path = temporary("bad.bin");
    let message_of = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        // Every command that reads a trace says the same.
        let message = bad(&["summary", &path], 2);
        for command in ["locks", "check", "dump", "timeline"] {
            assert_eq!(bad(&[command, &path], 2), message, "{command}");
        }
        assert_eq!(bad(&["diff", &path, TWICE], 2), message);
        assert!(!message.contains("panicked"), "{message}");
        message
    };
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
    let real = std::fs::read(TWICE).unwrap();
    for (what, bytes, told) in [
        (
            "another file type",
            b"\x7fELF\x02\x01\x01\0\0\0\0\0".to_vec(),
            ["byte 0", "not an xentrace file"],
        ),
        (
            "a compressed trace",
            vec![0xfd, b'7', b'z', b'X', b'Z', 0, 0, 4],
            ["byte 0", "xz -dc FILE | kicktrace"],
        ),
        ("text", b"mask 0x00229000\n".to_vec(), ["byte 0", "text"]),
        ("nothing", vec![], ["empty", "xentrace"]),
        (
            "garbage behind a window",
            [&words(&[0x2001_f003, 0, 0]), &b"tail"[..]].concat(),
            ["byte 12", "head -c 12"],
        ),
        ("a pCPU that cannot be", words(&[0x2001_f003, 1 << 30, 0]), ["byte 0", "head -c 0"]),
        ("a size that is no number of words", words(&[0x2001_f003, 0, 7]), ["byte 0", "7 bytes"]),
        (
            "a record larger than its window",
            words(&[0x2001_f003, 0, 8, 0xf002_8004, 1]),
            ["byte 12", "byte 20"],
        ),
        (
            "a record too short for its event",
            words(&[0x2001_f003, 0, 12, 0x8002_8004, 1, 0]),
            ["byte 12", "4.17"],
        ),
        (
            "vCPU 2^32 - 1",
            words(&[0x2001_f003, 0, 20, 0xa002_8004, 1, 0, 1, u32::MAX]),
            ["byte 12", "d1v4294967295"],
        ),
        (
            "domain 2^32 - 1",
            words(&[0x2001_f003, 0, 20, 0xa002_8004, 1, 0, u32::MAX, 1]),
            ["byte 12", "d4294967295v1"],
        ),
        (
            "damage far inside",
            [&real[..200_000], &b"four"[..], &real[200_000..]].concat(),
            ["byte ", "damaged"],
        ),
    ] {
        if what.contains("2^32") || what.contains("too short") || what.contains("far inside") {
            // Only those who look at the payload see it.
            std::fs::write(&path, bytes).unwrap();
            let message = bad(&["summary", &path], 2);
            assert!(told.iter().all(|told| message.contains(told)), "{what}: {message}");
            continue;
        }
        let message = message_of(&bytes);
        assert!(told.iter().all(|told| message.contains(told)), "{what}: {message}");
    }
    std::fs::write(&path, &real[..100_001]).unwrap();
    for command in ["summary", "locks", "dump", "timeline"] {
        assert!(bad(&[command, "--strict", &path], 2).contains("byte 100001"), "{command}");
        assert!(bad(&[command, &path], 2).contains("byte 100001"), "{command}");
    }
    bad(&["summary", TWICE, "--cpu-hz", "fast"], 2);
    bad(&["frobnicate"], 2);
}

#[test]
fn a_trace_without_a_needed_class_says_which_mask_brings_it() {
    let real = std::fs::read(TWICE).unwrap();
    let path = temporary("classes.bin");
    for (group, what) in
        [(0x0002_1000, "runstate"), (0x0002_8000, "wake or block"), (0x0020_1000, "hypercall")]
    {
        let trace = without(&real, group);
        std::fs::write(&path, &trace).unwrap();
        let out = kicktrace(&["summary", &path]);
        assert_eq!(out.status.code(), Some(2), "{what}");
        assert!(!out.stdout.is_empty(), "what there is, is shown");
        let message = String::from_utf8(out.stderr).unwrap();
        let range = format!("no {what}");
        assert!(message.contains(&range), "{message}");
        assert!(message.contains(&format!("to {}", trace.len())), "{message}");
        assert!(message.contains(&format!("{group:#010x}")), "{message}");
        bad(&["check", &path], 1);
    }
}

#[test]
fn frequency_from_the_log_of_xen() {
    let log = temporary("dmesg.txt");
    std::fs::write(&log, "(XEN) Detected 2500.000 MHz processor.\n").unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&good(&["summary", "--json", "--xl-dmesg", &log, TWICE])).unwrap();
    assert_eq!((&json["clock"]["hz"], &json["clock"]["source"]), (&2.5e9.into(), &"given".into()));
    std::fs::write(&log, "nothing of use\n").unwrap();
    assert!(bad(&["summary", "--xl-dmesg", &log, TWICE], 2).contains("xl dmesg"));
    assert!(bad(&["summary", "--xl-dmesg", "/nonexistent", TWICE], 2).contains("/nonexistent"));
}

/// The lines below are read while the writer holds its end of the pipe open. A program that waits
/// for the end would block for ever: it is killed after a minute, and the lines are missing.
#[test]
fn a_live_pipe_is_told_while_it_is_written() {
    let trace = std::fs::read(TWICE).unwrap();
    // Whole windows, most of them.
    let mut middle = 0;
    while middle < trace.len() / 10 * 8 {
        let size = u32::from_le_bytes(trace[middle + 8..middle + 12].try_into().unwrap());
        middle += 12 + size as usize;
    }
    for args in [
        &["dump", "-"][..],
        &["dump", "--event", "wake", "-"],
        &["timeline", "--json", "-"],
        &["locks", "--each", "--cpu-hz", "2.6G", "-"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kicktrace"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut to = child.stdin.take().unwrap();
        let from = child.stdout.take().unwrap();
        let (ended, end) = std::sync::mpsc::channel();
        let watchdog = std::thread::spawn(move || {
            if end.recv_timeout(Duration::from_secs(60)).is_err() {
                child.kill().expect("it is our child");
            }
            child.wait().expect("it is our child")
        });
        // A program that waits for its lines to be read reads no further.
        let (begin, rest) = (trace[..middle].to_vec(), trace[middle..].to_vec());
        let (go_on, seen) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            to.write_all(&begin).expect("it reads along");
            seen.recv().expect("lines are seen, or the test has failed");
            to.write_all(&rest).expect("it reads on");
        });
        let mut lines = std::io::BufReader::new(from).lines();
        for _ in 0..5 {
            let line = lines.next().expect("more lines").expect("text");
            assert!(!line.is_empty());
        }
        go_on.send(()).expect("the writer waits");
        assert!(lines.count() > 5, "{args:?}");
        writer.join().expect("all is written");
        ended.send(()).expect("the watchdog waits");
        assert!(watchdog.join().unwrap().success(), "{args:?}");
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kicktrace"))
        .args(["dump", TWICE])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("it ends");
    assert_eq!((out.status.code(), out.stderr.len()), (Some(0), 0));
}

#[test]
fn the_guest_is_not_blamed_for_what_the_mask_left_out() {
    let trace = std::fs::read(TWICE).unwrap();
    let check = |group: u32, name: &str| {
        let file = temporary(name);
        std::fs::write(&file, without(&trace, group)).unwrap();
        String::from_utf8(kicktrace(&["check", &file]).stdout).unwrap()
    };
    // Without calls no wait can be seen: that says nothing of the guest.
    let told = check(0x0020_1000, "no-calls.bin");
    assert!(told.contains("what is missing says why"), "{told}");
    assert!(!told.contains("more contention"), "{told}");
    // Without changes of runstates nobody knows who wrote a mark.
    let told = check(0x0002_1000, "no-changes.bin");
    assert!(told.contains("runstate changes: not captured"), "{told}");
    assert!(!told.contains("malformed"), "{told}");
}
