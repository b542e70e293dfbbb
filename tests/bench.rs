//! `pvlab bench` as people use it, without Xen: lists of commands, GNU parallel over them, folders
//! collected from anywhere. The experiment itself takes hours and has a command of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;

fn pvlab(arguments: &[&str]) -> Output {
    Command::cargo_bin("pvlab").unwrap().arg("bench").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder of one cell as a run leaves it.
fn folder(root: &Path, seed: u64, rate: f64, window_ms: u64) -> String {
    let name = format!("4-on-1_2-4_adaptive_s{seed}");
    let folder = root.join(&name);
    fs::create_dir_all(folder.join("cells")).unwrap();
    let setup = serde_json::json!({
        "schema": 1, "mode": "repeatable", "shift": 3, "slice_us": 100,
        "window": { "secs": 0, "nanos": window_ms * 1_000_000 },
        "start_after": { "secs": 1, "nanos": 0 }, "scheduler": null, "trace": true,
    });
    fs::write(folder.join("bench.json"), setup.to_string()).unwrap();
    let figures = pvlab::bench::figures::Figures { rate, ..Default::default() };
    let done = serde_json::json!({
        "cell": { "topology": "4-on-1", "section": "2/4", "lock": "adaptive", "seed": seed },
        "outcome": { "Ok": figures },
    });
    fs::write(folder.join(format!("cells/{name}.json")), done.to_string()).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn a_list_has_a_command_a_cell_and_each_a_folder_of_its_own() {
    let output = pvlab(&["--quick", "--list", "--out", "cells", "--window", "300"]);
    let listed = text(&output.stdout);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 2 * 4 * 10);
    assert!(lines.contains(
        &"pvlab bench --topology 4-on-2 --lock linux-50us --section 0.2/0.4 --seed 1 --window 300 --out \
          cells/4-on-2_0.2-0.4_linux-50us_s1"
    ));
}

#[test]
fn an_ablation_lists_adaptive_with_and_without_each_of_its_mechanisms() {
    let some = ["--topology", "4-on-1", "--section", "2/4", "--seed", "1", "--list"];
    let listed = text(&pvlab(&[&some[..], &["--ablation", "--lock", "linux"]].concat()).stdout);
    for lock in
        ["adaptive", "adaptive-no-budget", "adaptive-no-thief-bound", "kick-at-unlock", "linux"]
    {
        assert_eq!(listed.matches(&format!("--lock {lock} ")).count(), 1, "{lock}: {listed}");
    }
    assert!(!listed.contains("kick-twice"), "{listed}");
}

#[test]
fn folders_from_anywhere_make_one_report() {
    let root = tempfile::tempdir().unwrap();
    let folders: Vec<String> =
        (1..=3).map(|seed| folder(root.path(), seed, 1000.0 + seed as f64, 400)).collect();
    let out = root.path().join("report");
    let mut arguments = vec!["--collect"];
    arguments.extend(folders.iter().map(String::as_str));
    arguments.extend(["--out", out.to_str().unwrap()]);
    let output = pvlab(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("*1,002"), "{}", text(&output.stdout));
    assert!(fs::read_to_string(out.join("report.html")).unwrap().contains("adaptive"));
}

#[test]
fn folders_of_different_ways_to_run_are_not_mixed() {
    let root = tempfile::tempdir().unwrap();
    let one = folder(root.path(), 1, 1000.0, 400);
    let other = folder(root.path(), 2, 1000.0, 300);
    let output =
        pvlab(&["--collect", &one, &other, "--out", root.path().join("r").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("not mixed"), "{}", text(&output.stderr));
}

/// GNU parallel runs the commands of a list; here each ends at once, because its cell is there
/// already.
#[test]
fn gnu_parallel_runs_a_list() {
    if Command::new("parallel").arg("--version").output().is_err() {
        eprintln!("skipped: GNU parallel is not installed (Debian: parallel)");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    (1..=3).for_each(|seed| drop(folder(root.path(), seed, 1000.0, 400)));
    let out = root.path().to_str().unwrap();
    let cells = ["--topology", "4-on-1", "--lock", "adaptive", "--section", "2/4"];
    let list = pvlab(&[&cells[..], &["--list", "--out", out]].concat());
    let file = root.path().join("list");
    let program = Command::cargo_bin("pvlab").unwrap().get_program().to_str().unwrap().to_owned();
    fs::write(&file, text(&list.stdout).replace("pvlab bench", &format!("{program} bench")))
        .unwrap();
    let ran =
        Command::new("parallel").args(["-j", "2", "-a", file.to_str().unwrap()]).output().unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert_eq!(text(&ran.stdout).matches("*1,000").count(), 3, "{}", text(&ran.stdout));
}

#[test]
fn what_cannot_be_meant_is_refused_with_what_is_accepted() {
    for (arguments, words) in [
        (["--lock", "kick-thrice"], "linux-nopvspin"),
        (["--lock", "linux-soon"], "linux-50us"),
        (["--lock", "adaptive-budget-9us"], "adaptive-budget-10us"),
        (["--section", "2us"], "0.2/0.4"),
    ] {
        let output = pvlab(&arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(words), "{}", text(&output.stderr));
    }
}

/// It began, left a folder, and said that the same command would go on.
#[test]
fn a_topology_that_is_none_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for how in [&["--list"][..], &[]] {
        let asked = ["--topology", "4-on-3", "--out", out.to_str().unwrap()];
        let output = pvlab(&[&asked[..], how].concat());
        assert_eq!(output.status.code(), Some(2));
        let told = text(&output.stderr);
        let words = "there is no topology `4-on-3`; choose one of: ";
        assert!(told.contains(words) && told.contains("4-on-2"), "{told}");
        assert!(!out.exists());
    }
}

/// It said so once a lab was being made, behind the number of cells that are kept: none.
#[test]
fn domains_that_no_lab_holds_are_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let mine = folder.path().join("bench-far");
    fs::create_dir(&mine).unwrap();
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("xl-configs/bench-1-on-1");
    for file in ["scenario.toml", "guest1.cfg"] {
        let text = fs::read_to_string(built_in.join(file)).unwrap();
        fs::write(mine.join(file), text.replace("cpus = \"1\"", "cpus = \"7\"")).unwrap();
    }
    let (out, configs) = (folder.path().join("out"), folder.path().to_str().unwrap());
    let asked = ["--topology", "far", "--configs", configs, "--out", out.to_str().unwrap()];
    // A list may be run on another host.
    assert!(pvlab(&[&asked[..], &["--list"]].concat()).status.success());
    if pvlab::host::is_xen_host() {
        return;
    }
    let output = pvlab(&asked);
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("guest1.cfg:10: pCPU 7 is not there"), "{error}");
    assert!(!error.contains("are kept") && !out.exists(), "{error}");
}
