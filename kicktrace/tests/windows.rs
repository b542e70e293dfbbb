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

/// A part is shown by the clock of the whole trace, so its own short measure is no doubt.
#[test]
fn the_frequency_of_a_part_is_that_of_the_whole() {
    for args in [&["summary", "--to", "0.5"][..], &["summary", "--every", "500ms"]] {
        let out = kicktrace(&[args, &[TWICE]].concat());
        let text = [out.stdout, out.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        assert!(!text.contains("frequency 2."), "{args:?}: {text}");
    }
    let part = json(&["summary", "--json", "--to", "0.5", TWICE]);
    let whole = json(&["summary", "--json", TWICE]);
    let frequency = |of: &serde_json::Value| {
        let findings = of["findings"].as_array().unwrap().clone();
        findings.into_iter().filter(|of| of["topic"] == "frequency").collect::<Vec<_>>()
    };
    assert_eq!(frequency(&part), frequency(&whole));
}

/// A number that a second domain got stands for two domains in phases too.
#[test]
fn phases_keep_the_domains_of_one_number_apart() {
    let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cases/03_domid_reuse.bin");
    // Both are in this one phase.
    let table = good(&["summary", "--every", "1s", trace]);
    assert!(
        table.contains("\nd5\n") && table.contains("\nd5, domain 2 of this number\n"),
        "{table}"
    );
    let csv = good(&["summary", "--every", "1s", "--csv", trace]);
    let lives: Vec<_> = csv.lines().map(|line| line.split(',').nth(5).unwrap()).collect();
    assert_eq!(lives, ["life", "0", "1"]);
    let page = format!("{}/lives.html", env!("CARGO_TARGET_TMPDIR"));
    good(&["summary", "--every", "1s", "--html", &page, trace]);
    let page = std::fs::read_to_string(page).unwrap();
    // Of the summary, and of the phases.
    assert_eq!(page.matches("Domain 5, domain 2 of this number").count(), 2);
}

/// A narrow terminal shows the lost records, and says which figure has no room.
#[test]
fn a_narrow_table_of_phases_says_what_it_leaves_out() {
    let options = kicktrace::Options::default();
    let mut series = kicktrace::output::series::Series::default();
    let bounds = kicktrace::analysis::Bounds { every: Some(1 << 30), ..Default::default() };
    let sink = |phase, _: &mut ()| drop(series.push(phase));
    let mut phases = kicktrace::analysis::Phases::new(&options, (), bounds, sink);
    let trace = std::fs::File::open(TWICE).unwrap();
    let reading = kicktrace::reader::read(trace, &options.read, &mut phases).unwrap();
    phases.finish(reading);
    for columns in [60, 80, 200] {
        let mut text = Vec::new();
        series.table(&mut text, Some(columns)).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.lines().all(|line| line.len() <= columns), "{columns}: {text}");
        assert!(text.contains("lost"), "{text}");
        assert_eq!(text.contains("no room for wait p50"), columns == 60, "{text}");
    }
}
