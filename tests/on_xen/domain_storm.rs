//! A storm that a signal cuts short goes on as if nothing had been, and its sums are right.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ::experiment::DomainType;
use ::experiment::record::DomainReport;
use ::experiment::record::framing::Decoder;
use assert_cmd::cargo::CommandCargoExt;
use pvlab::storm::kinds;

/// `pvlab storm`, into `out`: every kind of operation once.
fn storm(out: &Path, more: &[&str]) -> Command {
    let mut pvlab = Command::cargo_bin("pvlab").unwrap();
    pvlab.args(["storm", "--quiet", "--out"]).arg(out).args(more);
    pvlab.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    pvlab
}

fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// How often each kind is in the lines of `done` that a count follows, and the last count.
fn survived(done: &str) -> (BTreeMap<String, u64>, u64) {
    let (mut times, mut pending, mut last) = (BTreeMap::new(), Vec::new(), 0);
    for line in done.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match words[1] {
            "count" => {
                last = words[2].parse().unwrap();
                for name in pending.drain(..) {
                    *times.entry(name).or_insert(0) += 1;
                }
            }
            name => pending.push(name.to_owned()),
        }
    }
    (times, last)
}

#[test]
fn a_storm_that_was_interrupted_goes_on_and_its_sums_are_right() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let asked =
        ["--type", "pv", "--policy", "adaptive", "--events", "2-level", "--seed", "1", "--seconds"];
    let mut first = storm(folder.path(), &[&asked[..], &["1", "--rounds", "1"]].concat());
    let child = first.spawn().unwrap();
    // Until some of it has been survived, and more is to come.
    let begun = Instant::now();
    while survived(&read("pv-1.done")).0.values().sum::<u64>() < 3 {
        assert!(begun.elapsed() < crate::PATIENCE, "{}", read("console-host.log"));
        thread::sleep(Duration::from_millis(50));
    }
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let first = child.wait_with_output().unwrap();
    assert_eq!(first.status.code(), Some(2), "{}", told(&first));
    assert!(told(&first).contains("--resume"), "{}", told(&first));
    let (times, before) = survived(&read("pv-1.done"));
    let done: u64 = times.values().sum();
    assert!((3..9).contains(&done), "{times:?}");

    let second = storm(folder.path(), &["--resume"]).output().unwrap();
    assert_eq!(second.status.code(), Some(0), "{}", told(&second));
    let said = told(&second);
    // Each kind once in both parts together, and its line in the table.
    let mut both = times;
    for (name, n) in survived(&read("pv-2.done")).0 {
        *both.entry(name).or_insert(0) += n;
    }
    let once: BTreeMap<_, _> =
        kinds(DomainType::Pv).into_iter().map(|kind| (kind.to_owned(), 1)).collect();
    assert_eq!(both, once);
    for kind in once.keys() {
        let row = said.lines().find(|line| line.contains(&format!("│ {kind} ")));
        let row = row.unwrap_or_else(|| panic!("{kind}: {said}"));
        let cells: Vec<_> = row.split(['│', '┆']).map(str::trim).collect();
        assert_eq!(cells[2], "1", "{row}");
        assert!(cells[3].replace(',', "").parse::<u64>().unwrap() >= 10, "{row}");
    }
    // The sum: what the first part told before it ended, and the second reported.
    let mut decoder = Decoder::default();
    let console = read("pv-2.log");
    let document = console.lines().find_map(|line| decoder.line(line.trim_end()).unwrap());
    let report: DomainReport = serde_json::from_str(&document.expect("a report")).unwrap();
    let line = said.lines().find(|line| line.contains("9 operations in "));
    let line = line.unwrap_or_else(|| panic!("{said}"));
    let total = line.rsplit(", ").next().unwrap().replace(',', "");
    assert_eq!(total, format!("{} acquisitions", before + report.acquisitions), "{said}");
    assert!(said.contains("9 operations prove nothing"), "{said}");

    let third = storm(folder.path(), &["--resume"]).output().unwrap();
    assert_eq!(third.status.code(), Some(2));
    assert!(told(&third).contains("has run to its end"), "{}", told(&third));
}
