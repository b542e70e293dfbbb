//! The command line without Xen: everything that is refused before a host is needed.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use assert_cmd::cargo::CommandCargoExt;
use experiment::Params;
use experiment::record::DomainReport;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::json;

fn pvlab() -> Command {
    Command::cargo_bin("pvlab").unwrap()
}

/// A folder of scenarios with one scenario `mine` of one domain.
fn configs(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("mine");
    fs::create_dir(&scenario).unwrap();
    let about = "description = \"one domain\"\npcpus = 2\ndeadline_seconds = 60\n";
    fs::write(scenario.join("scenario.toml"), about).unwrap();
    fs::write(scenario.join("a.cfg"), config).unwrap();
    folder
}

const GOOD: &str = "name = \"a\"\nkernel = \"xen-guest.elf\"\nmemory = 32\nvcpus = 2\nextra = \"workload=handoff\"\n";

fn run_in(folder: &Path) -> Command {
    let mut command = pvlab();
    command.args(["run", "mine", "--configs"]).arg(folder).arg("--out").arg(folder.join("out"));
    command
}

#[test]
fn scenarios_are_listed_with_what_they_are_for() {
    let all = contains("solo-pv")
        .and(contains("overcommit-1x"))
        .and(contains("overcommit-2x"))
        .and(contains("overcommit-4x"));
    pvlab().arg("scenarios").assert().success().stdout(all);
}

#[test]
fn an_unknown_scenario_lists_those_that_exist() {
    let list = contains("no scenario `overcommit-3x`")
        .and(contains("overcommit-2x"))
        .and(contains("solo-pv"));
    pvlab().args(["run", "overcommit-3x"]).assert().code(2).stderr(list).stdout("");
}

#[test]
fn a_broken_configuration_names_file_line_and_remedy() {
    let folder = configs(&GOOD.replace("vcpus = 2", "vcpus = two"));
    let error = contains("a.cfg:4: ").and(contains("quotes"));
    run_in(folder.path()).assert().code(2).stderr(error);
}

#[test]
fn an_unknown_policy_lists_those_that_exist() {
    let list = contains("kick-thrice").and(contains("kick-at-unlock")).and(contains("spin-ticket"));
    pvlab().args(["run", "solo-pv", "--policy", "kick-thrice"]).assert().code(2).stderr(list);
}

#[test]
fn an_unknown_parameter_is_refused_before_anything_starts() {
    let error = contains("critcal").and(contains("critical"));
    pvlab().args(["run", "solo-pv", "--set", "critcal=1us"]).assert().code(2).stderr(error);
}

/// It listed `policy`, `start` and `trace` too, which it then refused.
#[test]
fn a_setting_that_is_none_is_told_how_one_is_written_and_which_keys_there_are() {
    for (text, why) in [("=1", "no parameter ``"), ("spin", "no `=` in it"), ("a\"=1", "`a\\\"`")] {
        let told =
            contains(why).and(contains("write KEY=VALUE, with a KEY of workload, vcpus, locks"));
        pvlab().args(["run", "solo-pv", "--set", text]).assert().code(2).stderr(told);
    }
}

#[test]
fn a_foreign_folder_is_not_written_to() {
    let folder = configs(GOOD);
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("thesis.tex"), "years of work").unwrap();
    run_in(folder.path()).assert().code(2).stderr(contains("not empty"));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn an_image_that_is_none_is_refused() {
    let folder = configs(GOOD);
    let image = folder.path().join("mine/a.cfg");
    run_in(folder.path())
        .arg("--image")
        .arg(&image)
        .assert()
        .code(2)
        .stderr(contains("is not an ELF file"));
    let missing = folder.path().join("nowhere.elf");
    run_in(folder.path())
        .arg("--image")
        .arg(&missing)
        .assert()
        .code(2)
        .stderr(contains("nowhere.elf"));
}

#[test]
fn without_apt_no_host_can_be_made_and_the_message_says_what_to_do() {
    let folder = configs(GOOD);
    let cache = tempfile::tempdir().unwrap();
    let mut command = run_in(folder.path());
    // An empty cache and a PATH on which there is no apt: every package is missing.
    command.env("PVLAB_CACHE", cache.path()).env("PATH", cache.path());
    command.assert().code(2).stderr(contains("apt").and(contains("Xen host")));
}

#[test]
fn the_image_is_written_out_as_it_is_embedded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("xen-guest.elf");
    pvlab().args(["image", "-o"]).arg(&file).assert().success();
    assert_eq!(fs::read(&file).unwrap(), pvlab::image::load(None).unwrap());
    let nowhere = folder.path().join("no/such/folder.elf");
    pvlab().args(["image", "-o"]).arg(nowhere).assert().code(2).stderr(contains("cannot write"));
}

#[test]
fn what_is_no_lab_is_not_cleaned_away() {
    let cache = tempfile::tempdir().unwrap();
    let clean = || {
        let mut pvlab = pvlab();
        pvlab.args(["lab", "clean"]).env("PVLAB_CACHE", cache.path());
        pvlab.assert().code(0)
    };
    for name in ["run", "apt", "linux-1-0", "thesis"] {
        fs::create_dir(cache.path().join(name)).unwrap();
    }
    clean().stderr(contains("no lab"));
    assert!(cache.path().join("run").exists());
    // Now there is one.
    fs::write(cache.path().join("lock"), "").unwrap();
    clean().stderr(contains("removed"));
    assert!(cache.path().join("thesis").exists());
    assert!(!["run", "apt", "linux-1-0"].iter().any(|name| cache.path().join(name).exists()));
}

#[test]
fn a_folder_without_a_run_has_no_report() {
    let folder = tempfile::tempdir().unwrap();
    pvlab()
        .arg("report")
        .arg(folder.path())
        .assert()
        .code(2)
        .stderr(contains("not a run's folder"));
}

#[test]
fn a_plan_is_carried_out_on_a_xen_host_only() {
    if pvlab::host::is_xen_host() {
        return;
    }
    let folder = configs(GOOD);
    let plan = folder.path().join("plan.json");
    fs::write(&plan, "{}").unwrap();
    let mut host = pvlab();
    host.arg("host").arg("--plan").arg(&plan).arg("--out").arg(folder.path());
    host.assert()
        .code(2)
        .stderr(contains("is no plan"))
        .stdout(contains("@pvlab {\"event\":\"error\""));
}

#[test]
fn the_trace_reader_is_part_of_the_tool() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("not-a-trace");
    fs::write(&file, "this is text, not a trace").unwrap();
    pvlab()
        .args(["kicktrace", "summary"])
        .arg(&file)
        .assert()
        .code(2)
        .stderr(contains("not-a-trace"));
}

/// A folder as a run of one policy on one domain `a` leaves it, without a trace. `report` changes the domain's
/// report before it is written.
fn run_folder(
    policy: &str,
    report: impl FnOnce(&mut serde_json::Value),
) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let plan = json!({
        "scenario": "mine", "policies": [policy], "image": "/pvlab/xen-guest.elf", "settings": [],
        "domains": [{ "name": "a", "file": "a.cfg", "config": GOOD }],
        "markers": false, "trace": false, "deadline": { "secs": 60, "nanos": 0 },
    });
    let write = |name: &str, value: &serde_json::Value| {
        fs::write(folder.path().join(name), value.to_string()).unwrap();
    };
    write("run.json", &json!({ "mode": "parallel", "plan": plan }));
    fs::create_dir(folder.path().join(policy)).unwrap();
    let sound = serde_json::to_value(DomainReport {
        schema: experiment::record::SCHEMA,
        elapsed_ns: 1_000_000,
        counter: 40,
        acquisitions: 40,
        parameters: (&Params::parse(&format!("workload=handoff policy={policy}"), 2).unwrap())
            .into(),
        ..DomainReport::default()
    })
    .unwrap();
    let mut domain =
        json!({ "name": "a", "domid": 1, "end": "done", "message": "", "report": sound });
    report(&mut domain["report"]);
    let file = format!("{policy}/a.json");
    write(&file, &domain);
    let file = folder.path().join(file);
    (folder, file)
}

fn report_of(folder: &Path) -> assert_cmd::assert::Assert {
    pvlab().arg("report").arg(folder).assert()
}

#[test]
fn what_pvlab_sets_itself_cannot_be_set_otherwise() {
    for setting in ["policy=spin", "start=now", "trace=off"] {
        let error = contains("pvlab's own to set").and(contains(setting));
        pvlab().args(["run", "solo-pv", "--set", setting]).assert().code(2).stderr(error);
    }
    for line in ["cmdline = \"policy=spin\"", "root = \"policy=spin\"", "ramdisk = \"x\""] {
        let folder = configs(&format!("{GOOD}{line}\n"));
        let error = contains("a.cfg:6: ").and(contains("would change what pvlab starts"));
        run_in(folder.path()).assert().code(2).stderr(error);
    }
    let folder = configs(GOOD);
    let about = folder.path().join("mine/scenario.toml");
    let text = fs::read_to_string(&about).unwrap() + "policy = \"spin\"\n";
    fs::write(&about, text).unwrap();
    run_in(folder.path()).assert().code(2).stderr(contains("unknown field `policy`"));
}

#[test]
fn one_policy_twice_is_refused_since_its_column_and_folder_bear_its_name() {
    let twice = ["run", "solo-pv", "--policy", "spin", "--policy", "spin"];
    pvlab().args(twice).assert().code(2).stderr(contains("--policy spin is given twice"));
}

#[test]
fn a_command_line_that_would_be_cut_is_refused() {
    let folder = configs(&GOOD.replace("handoff", &format!("handoff seed={}", "0".repeat(989))));
    let error = contains("a.cfg:5: ").and(contains("bytes"));
    run_in(folder.path()).assert().code(2).stderr(error);
}

#[test]
fn a_run_that_cannot_start_leaves_an_earlier_one_as_it_was() {
    let (earlier, file) = run_folder("spin", |_| ());
    fs::write(earlier.path().join("spin/trace.bin"), "the trace").unwrap();
    let before = fs::read(&file).unwrap();
    let names = || -> Vec<_> {
        let all = fs::read_dir(earlier.path()).unwrap().flatten();
        let mut names: Vec<_> = all.map(|entry| entry.file_name()).collect();
        names.sort();
        names
    };
    let listed = names();
    let configs = configs(GOOD);
    let cases: [(&[&str], &str); 4] = [
        // No lab can be made.
        (&["solo-pv"], "/proc/nope"),
        (&["solo-pv", "--set", "policy=spin"], "policy"),
        (&["solo-pv", "--policy", "spin", "--policy", "spin"], "twice"),
        (&["solo-pv", "--image", "/proc/nope"], "/proc/nope"),
    ];
    for (arguments, error) in cases {
        let mut command = pvlab();
        command.arg("run").args(arguments).arg("--out").arg(earlier.path());
        command.env("PVLAB_CACHE", "/proc/nope").current_dir(configs.path());
        command.assert().code(2).stderr(contains(error));
        assert_eq!(names(), listed, "{arguments:?}");
    }
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!(fs::read(earlier.path().join("spin/trace.bin")).unwrap(), b"the trace");
}

#[test]
fn a_stuck_vcpu_is_not_broken_exclusion() {
    let (folder, _) = run_folder("kick-at-unlock", |report| {
        report["outcome"] = json!({ "kind": "failure", "reason": "vCPU 1 is stuck: no progress" });
        report["counter"] = json!(0);
        report["elapsed_ns"] = json!(0);
    });
    let told = contains("1 STUCK")
        .and(contains("WRONG").not())
        .and(contains("MUTUAL EXCLUSION").not())
        .and(contains(">= 40"));
    report_of(folder.path()).code(1).stdout(told);
}

#[test]
fn broken_exclusion_is_told_as_such() {
    let (folder, _) = run_folder("spin", |report| report["counter"] = json!(39));
    let told = contains("WRONG").and(contains("MUTUAL EXCLUSION BROKEN")).and(contains("39"));
    report_of(folder.path()).code(1).stdout(told);
}

#[test]
fn a_domain_that_ran_another_lock_than_its_column_says_is_an_error() {
    let (folder, _) = run_folder("native", |report| report["parameters"]["policy"] = json!("spin"));
    let told = contains(r#"policy: asked for "native", ran "spin""#).and(contains("0 of 1"));
    report_of(folder.path()).code(2).stdout(told);
}

#[test]
fn results_that_are_missing_or_damaged_are_counted_as_missing() {
    let (folder, file) = run_folder("spin", |_| ());
    for damage in [None, Some("{ \"name\": "), Some("{}")] {
        match damage {
            None => fs::remove_file(&file).unwrap(),
            Some(text) => fs::write(&file, text).unwrap(),
        }
        report_of(folder.path()).code(2).stdout(contains("0 of 1").and(contains("PROBLEM")));
    }
    // What is there and cannot be.
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 3] = [
        (|report| *report = json!(null), "left no report"),
        (|report| report["acquisitions"] = json!(0), "nothing was tested"),
        (
            |report| {
                report["vcpus"] = json!([{
                    "id": 0, "acquisitions": 39, "blocked_acquisitions": 0, "waits": 0,
                    "longest_wait_ns": 0, "stolen_ns": 0,
                }]);
            },
            "39 by its vCPUs",
        ),
    ];
    for (change, words) in cases {
        let (folder, _) = run_folder("spin", change);
        let told = report_of(folder.path()).stdout(contains("0 of 1").and(contains(words)));
        assert_ne!(told.get_output().status.code(), Some(0), "{words}");
    }
    // Sums of absurd numbers do not wrap.
    let (folder, _) = run_folder("spin", |report| {
        for key in ["acquisitions", "counter"] {
            report[key] = json!(u64::MAX);
        }
        report["latency"] = json!({ "max": u64::MAX, "buckets": [[5, u64::MAX], [7, u64::MAX]] });
        let vcpu = json!({
            "id": 0, "acquisitions": u64::MAX, "blocked_acquisitions": u64::MAX, "waits": 0,
            "longest_wait_ns": 0, "stolen_ns": u64::MAX,
        });
        report["vcpus"] = json!([vcpu, vcpu]);
    });
    report_of(folder.path()).code(0);
}

#[test]
fn what_a_later_pvlab_wrote_is_refused() {
    let (folder, file) = run_folder("spin", |report| report["schema"] = json!(99));
    report_of(folder.path()).code(2).stderr(contains("schema 99").and(contains("a.json")));
    fs::write(&file, "{}").unwrap();
    let record = folder.path().join("run.json");
    fs::write(&record, r#"{ "schema": 99, "mode": "dream" }"#).unwrap();
    report_of(folder.path()).code(2).stderr(contains("schema 99").and(contains("run.json")));
}

/// Every command that prints something and needs no Xen.
fn printing_commands(folder: &Path) -> Vec<Vec<std::ffi::OsString>> {
    let folder = folder.as_os_str();
    let words = |words: &[&str]| words.iter().map(Into::into).collect::<Vec<_>>();
    let with = |command: &[&str], times: usize| {
        let mut words = words(command);
        words.extend(std::iter::repeat_n(folder.to_owned(), times));
        words
    };
    vec![
        words(&["--help"]),
        words(&["run", "--help"]),
        words(&["--version"]),
        words(&["scenarios"]),
        words(&["doctor"]),
        words(&["bench", "--list"]),
        words(&["completions", "bash"]),
        words(&["image", "-o", "-"]),
        with(&["report"], 1),
        with(&["report", "--json"], 1),
        with(&["compare"], 2),
    ]
}

#[test]
fn a_closed_or_full_standard_output_is_no_panic() {
    let (folder, _) = run_folder("spin", |_| ());
    for arguments in printing_commands(folder.path()) {
        let ended = |stdout: std::process::Stdio| {
            let mut command = std::process::Command::cargo_bin("pvlab").unwrap();
            let output = command.args(&arguments).stdout(stdout).output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!told.contains("panicked"), "{arguments:?}: {told}");
            (output.status.code(), told)
        };
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(ended(writer.into()), (Some(0), String::new()), "{arguments:?}");
        let full = fs::File::create("/dev/full").unwrap();
        let (code, told) = ended(full.into());
        assert_eq!(code, Some(2), "{arguments:?}");
        assert!(told.contains("standard output"), "{told}");
    }
}

#[test]
fn the_doctor_says_what_is_there_what_is_missing_and_how_to_get_it() {
    if pvlab::host::is_xen_host() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let doctor = |path: &str| {
        let mut command = pvlab();
        command.arg("doctor").env("PVLAB_CACHE", cache.path()).env("PATH", path);
        command.assert()
    };
    // A folder without apt: no lab can be made.
    let words = contains("no Xen host").and(contains("MISSING")).and(contains("container"));
    doctor("/proc").code(2).stdout(words);
    let apt = tempfile::tempdir().unwrap();
    for name in ["apt-get", "apt-cache", "apt-config"] {
        fs::write(apt.path().join(name), "").unwrap();
    }
    let words = contains("pvlab can run here").and(contains("pvlab lab prepare"));
    doctor(apt.path().to_str().unwrap()).code(0).stdout(words);
    let words = contains("trixie").and(contains("4.20"));
    pvlab().args(["doctor", "--release", "trixie"]).assert().stdout(words);
    let error = contains("bookworm or trixie");
    pvlab().args(["doctor", "--release", "../up"]).assert().code(2).stderr(error);
}

/// Names of all commands, as `pvlab help` shows them.
fn commands() -> Vec<String> {
    let help = pvlab().arg("help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = list.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(' '));
    let names = names.map(|(name, _)| name.to_owned()).filter(|name| !name.is_empty());
    names.filter(|name| name != "help").collect()
}

#[test]
fn every_command_has_an_example_a_man_page_and_completions() {
    let names = commands();
    assert!(names.len() >= 10, "{names:?}");
    let folder = tempfile::tempdir().unwrap();
    pvlab().arg("man").arg(folder.path()).assert().success();
    for name in &names {
        let page = folder.path().join(format!("pvlab-{name}.1"));
        assert!(fs::read_to_string(&page).unwrap().contains(".SH NAME"), "{name}");
        // The two that hold commands of their own: kicktrace's are its, lab's are seen to below.
        if !["kicktrace", "lab"].contains(&name.as_str()) {
            pvlab().args([name, "--help"]).assert().success().stdout(contains("Example: pvlab "));
        }
    }
    for name in ["prepare", "shell", "boot", "clean"] {
        pvlab().args(["lab", name, "--help"]).assert().success().stdout(contains("Example: "));
        assert!(folder.path().join(format!("pvlab-lab-{name}.1")).is_file(), "{name}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = contains("overcommit").not().and(contains("doctor"));
        pvlab().args(["completions", shell]).assert().success().stdout(script);
    }
}

/// What pvlab writes on a terminal that is so wide.
fn on_a_terminal(columns: usize, arguments: &str, no_color: bool) -> String {
    let command = std::process::Command::cargo_bin("pvlab").unwrap();
    let line = format!("stty cols {columns}; {} {arguments}", command.get_program().display());
    let mut script = std::process::Command::new("script");
    script.args(["-qc", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
    if no_color {
        script.env("NO_COLOR", "1");
    }
    let output = script.stdin(std::process::Stdio::null()).output().expect("util-linux' script");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn colours_honour_no_color() {
    // Without colours neither an error nor a help text has an escape sequence.
    for arguments in ["run", "help run"] {
        assert!(on_a_terminal(80, arguments, false).contains("\x1b["), "{arguments}");
        assert!(!on_a_terminal(80, arguments, true).contains('\x1b'), "{arguments}");
    }
}

#[test]
fn tables_fit_a_narrow_terminal_and_lose_nothing() {
    let (folder, _) = run_folder("kick-at-unlock", |_| ());
    let arguments = format!("report {}", folder.path().display());
    let cells = |table: &str| -> String {
        let rows = table.lines().filter(|line| line.starts_with('│'));
        let first = rows.filter_map(|row| row[3..].split('┆').next());
        first.flat_map(str::split_whitespace).collect()
    };
    let wide = on_a_terminal(200, &arguments, true);
    for columns in [40, 60, 80] {
        let narrow = on_a_terminal(columns, &arguments, true);
        for line in narrow.lines().filter(|line| line.starts_with(['┌', '│', '╞', '└'])) {
            assert!(line.trim_end().chars().count() <= columns, "{columns}: {line}");
        }
        assert_eq!(cells(&narrow), cells(&wide), "{columns}: {narrow}");
    }
}

#[test]
fn quiet_is_silent_and_verbose_is_not_both() {
    let (folder, _) = run_folder("spin", |_| ());
    pvlab().args(["--quiet", "report"]).arg(folder.path()).assert().success().stderr("");
    pvlab().args(["-q", "-v", "scenarios"]).assert().code(2).stderr(contains("cannot be used"));
}

#[test]
fn the_image_goes_to_standard_output_if_asked() {
    let output = pvlab().args(["image", "-o", "-"]).output().unwrap();
    assert_eq!(output.stdout, pvlab::image::load(None).unwrap());
}

#[test]
fn files_for_dom0_are_found_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere");
    let cases = [
        (nowhere.to_str().unwrap().to_owned(), "can be read"),
        (folder.path().to_str().unwrap().to_owned(), "is not a file"),
    ];
    for (file, error) in cases {
        let arguments = ["lab", "boot", "--script", "/dev/null", "--file", &file];
        pvlab().args(arguments).assert().code(2).stderr(contains(error));
    }
}
