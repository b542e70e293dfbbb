//! `--from`, `--to` and `--every` of `kicktrace summary`, as a user runs them.

use std::process::{Command, Output, Stdio};

const TWICE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/kick-twice-pv.xentrace.bin");

fn kicktrace(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kicktrace")).args(args).output().expect("it starts")
}

fn good(args: &[&str]) -> String {
    let out = kicktrace(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("output is text")
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&good(args)).expect("it is JSON")
}

fn waits(summary: &serde_json::Value) -> u64 {
    summary["domains"][1]["counts"]["waits"]["value"].as_u64().expect("a count")
}

#[test]
fn the_window_acts_on_the_summary() {
    let whole = json(&["summary", "--json", TWICE]);
    let part = json(&["summary", "--json", "--from", "1.5", "--to", "1.7", TWICE]);
    assert!(waits(&part) > 0 && waits(&part) < waits(&whole) / 2, "{}", waits(&part));
    assert!((part["seconds"].as_f64().unwrap() - 0.2).abs() < 1e-3, "{}", part["seconds"]);
    assert!(whole["window"].is_null());
    assert_eq!(part["reading"]["bytes"], whole["reading"]["bytes"]);
    let table = good(&["summary", "--from", "1.5", "--to", "1.7", TWICE]);
    assert!(table.contains("the part from 1.500000 s to 1.700000 s"), "{table}");
    let late = kicktrace(&["summary", "--from", "1000", TWICE]);
    assert_eq!(late.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&late.stderr).contains("ends before --from"));
}

#[test]
fn a_window_in_which_nothing_happens_lacks_nothing() {
    for command in ["summary", "host", "check"] {
        let window: &[&str] = if command == "check" { &[] } else { &["--to", "1e-9"] };
        let out = kicktrace(&[&[command], window, &[TWICE]].concat());
        let said = [out.stdout, out.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(out.status.success() && !said.contains("not captured"), "{command}: {said}");
    }
}

#[test]
fn phases_as_table_json_csv_and_charts() {
    let series = json(&["summary", "--json", "--every", "100ms", TWICE]);
    let phases = series["phases"].as_array().expect("phases");
    let sum: u64 = phases.iter().map(waits).sum();
    assert_eq!(sum, waits(&json(&["summary", "--json", TWICE])));
    let csv = good(&["summary", "--csv", "--every", "100ms", TWICE]);
    let columns = csv.lines().next().unwrap().split(',').count();
    assert!(csv.lines().all(|line| line.split(',').count() == columns));
    let domains: usize = phases.iter().map(|of| of["domains"].as_array().unwrap().len()).sum();
    assert_eq!(csv.lines().count(), 1 + domains);
    let table = good(&["summary", "--every", "100ms", TWICE]);
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    assert!(table.contains("wait p50 us") && table.contains("lost"));
    let path = format!("{}/phases.html", env!("CARGO_TARGET_TMPDIR"));
    good(&["summary", "--every", "100ms", "--html", &path, TWICE]);
    let page = std::fs::read_to_string(&path).unwrap();
    assert!(page.contains("Phase by phase") && !page.contains("NaN"));
    for wrong in ["0", "-1s", "soon", "nan"] {
        let out = kicktrace(&["summary", &format!("--every={wrong}"), TWICE]);
        assert_eq!(out.status.code(), Some(2), "{wrong}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("100ms"));
    }
}

#[test]
fn a_pipe_needs_a_frequency_for_its_windows() {
    let piped = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_kicktrace"))
            .args(args)
            .stdin(std::fs::File::open(TWICE).map(Stdio::from).unwrap())
            .output()
            .expect("it starts")
    };
    let out = piped(&["summary", "--from", "1", "-"]);
    assert_eq!(out.status.code(), Some(2));
    let message = String::from_utf8_lossy(&out.stderr);
    assert!(message.contains("--cpu-hz"), "{message}");
    let hz = json(&["summary", "--json", TWICE])["clock"]["hz"].as_f64().unwrap().to_string();
    let out = piped(&["summary", "--json", "--cpu-hz", &hz, "--from", "1.5", "--to", "1.7", "-"]);
    assert!(out.status.success());
    let piped: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let read = json(&["summary", "--json", "--from", "1.5", "--to", "1.7", TWICE]);
    assert_eq!(waits(&piped), waits(&read));
}
