//! Tables on a terminal of 60 and of 80 columns: no line is longer. The terminal is that of
//! `script`, which every Debian has.

use std::process::{Command, Stdio};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
const ONCE: &str = "kick-at-unlock-pv.xentrace.bin";
const TWICE: &str = "kick-twice-pv.xentrace.bin";
const PROGRAM: &str = env!("CARGO_BIN_EXE_kicktrace");

/// What a command prints of these files on a terminal with so many columns.
fn on_terminal(columns: usize, command: &str, files: &[&str]) -> String {
    let files: Vec<_> = files.iter().map(|file| format!("{DATA}/{file}")).collect();
    let command = format!("{PROGRAM} {command} {} 2>/dev/null", files.join(" "));
    let command = format!("stty cols {columns} rows 24; {command}");
    let mut script = Command::new("script");
    let script = script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::null());
    let out = script.output().expect("script (of the package bsdutils) starts");
    String::from_utf8(out.stdout).expect("it is UTF-8").replace('\r', "")
}

#[test]
fn every_table_fits_60_and_80_columns() {
    let commands: [(&str, &[&str]); 12] = [
        ("summary", &[ONCE]),
        ("summary --every 50ms", &[ONCE]),
        ("summary --every 50ms --cpu-hz 3GHz", &[ONCE]),
        ("host", &[ONCE]),
        ("locks", &[ONCE]),
        ("locks --each", &[ONCE]),
        ("check", &[ONCE]),
        ("check", &["mini-pv.xentrace.bin"]),
        ("check", &["cases/13_subset_pcpu.bin"]),
        ("timeline", &[ONCE]),
        ("timeline --to 2", &[TWICE]),
        ("diff", &[TWICE, ONCE]),
    ];
    for columns in [60, 80] {
        for (command, files) in commands {
            let text = on_terminal(columns, command, files);
            assert!(text.lines().count() > 1, "{command} prints a table: {text}");
            let long = text.lines().find(|line| line.chars().count() > columns);
            assert_eq!(long, None, "{command} in {columns} columns");
        }
    }
}

#[test]
fn a_narrow_list_of_acquisitions_says_what_it_leaves_out() {
    for (columns, gone, last) in [
        (60, &["until marked", "longest", "kicks", "kicked by"][..], "slept"),
        (80, &["until marked", "longest", "kicks"], "kicked by"),
        (200, &[], "kicked by"),
    ] {
        let text = on_terminal(columns, "locks --each", &[ONCE]);
        let at = text.find("      blocked at").expect("the columns' names");
        let (told, table) = text.split_at(at);
        let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
        let wanted = match gone {
            [] => "times in us".to_owned(),
            gone => format!("times in us; no room for {} (--json, --csv)", gone.join(", ")),
        };
        assert_eq!(told, wanted, "{columns}");
        let heads = table.lines().next().expect("a line");
        assert!(heads.ends_with(last), "{columns}: {heads}");
        assert!(gone.iter().all(|name| !heads.contains(name)), "{columns}: {heads}");
        assert!(table.lines().count() > 10, "{columns}: {text}");
    }
}

#[test]
fn a_narrow_comparison_takes_three_lines_a_figure() {
    let [narrow, wide] = [60, 200].map(|columns| on_terminal(columns, "diff", &[TWICE, ONCE]));
    let figures = |text: &str| {
        let cells = text.split_whitespace().map(String::from).collect::<Vec<_>>();
        cells.iter().filter(|cell| cell.starts_with(['~', '+', '-'])).cloned().collect::<Vec<_>>()
    };
    assert!(figures(&wide).len() > 30, "{wide}");
    assert_eq!(figures(&narrow), figures(&wide));
}
