//! Tables on a terminal of 60 and of 80 columns: no line is longer. The terminal is that of
//! `script`, which every Debian has.

use std::process::{Command, Stdio};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
const PROGRAM: &str = env!("CARGO_BIN_EXE_kicktrace");

/// What a command prints on a terminal with so many columns.
fn on_terminal(columns: usize, command: &str) -> String {
    let command = format!("stty cols {columns} rows 24; {PROGRAM} {command} 2>/dev/null");
    let mut script = Command::new("script");
    let script = script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::null());
    let out = script.output().expect("script (of the package bsdutils) starts");
    String::from_utf8(out.stdout).expect("it is UTF-8").replace('\r', "")
}

#[test]
fn every_table_fits_60_and_80_columns() {
    let (once, twice) = ("kick-at-unlock-pv.xentrace.bin", "kick-twice-pv.xentrace.bin");
    let commands = [
        ("summary", format!("{DATA}/{once}")),
        ("summary --every 50ms", format!("{DATA}/{once}")),
        ("summary --every 50ms --cpu-hz 3GHz", format!("{DATA}/{once}")),
        ("host", format!("{DATA}/{once}")),
        ("locks", format!("{DATA}/{once}")),
        ("locks --each", format!("{DATA}/{once}")),
        ("check", format!("{DATA}/{once}")),
        ("check", format!("{DATA}/mini-pv.xentrace.bin")),
        ("check", format!("{DATA}/cases/13_subset_pcpu.bin")),
        ("timeline", format!("{DATA}/{once}")),
        ("timeline --to 2", format!("{DATA}/{twice}")),
        ("diff", format!("{DATA}/{twice} {DATA}/{once}")),
    ];
    for columns in [60, 80] {
        for (command, files) in &commands {
            let text = on_terminal(columns, &format!("{command} {files}"));
            assert!(text.lines().count() > 1, "{command} prints a table: {text}");
            let long = text.lines().find(|line| line.chars().count() > columns);
            assert_eq!(long, None, "{command} in {columns} columns");
        }
    }
}

#[test]
fn a_narrow_list_of_acquisitions_says_what_it_leaves_out() {
    let each = format!("locks --each {DATA}/kick-at-unlock-pv.xentrace.bin");
    for (columns, gone, last) in [
        (60, &["until marked", "longest", "kicks", "kicked by"][..], "slept"),
        (80, &["until marked", "longest", "kicks"], "kicked by"),
        (200, &[], "kicked by"),
    ] {
        let text = on_terminal(columns, &each);
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
    let diff =
        format!("diff {DATA}/kick-twice-pv.xentrace.bin {DATA}/kick-at-unlock-pv.xentrace.bin");
    let (narrow, wide) = (on_terminal(60, &diff), on_terminal(200, &diff));
    let figures = |text: &str| {
        let cells = text.split_whitespace().map(String::from).collect::<Vec<_>>();
        cells.iter().filter(|cell| cell.starts_with(['~', '+', '-'])).cloned().collect::<Vec<_>>()
    };
    assert!(figures(&wide).len() > 30, "{wide}");
    assert_eq!(figures(&narrow), figures(&wide));
}
