//! docs/kicktrace.md and the program: every field of every JSON output stands in the chapter on
//! JSON, every field the chapter names is in an output, and the outputs the book prints are the
//! program's.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

const BOOK: &str = include_str!("../../docs/kicktrace.md");
const TWICE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/kick-twice-pv.xentrace.bin");
const UNLOCK: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/kick-at-unlock-pv.xentrace.bin");
/// One with records of a session long ago: a silence.
const STALE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cases/08_stale_start.bin");

fn print(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_kicktrace")).args(args).output().expect("it starts");
    String::from_utf8(out.stdout).expect("text")
}

fn keys(of: &Value, all: &mut BTreeSet<String>) {
    match of {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            all.insert(key.clone());
            keys(value, all);
        }),
        Value::Array(values) => values.iter().for_each(|value| keys(value, all)),
        _ => {}
    }
}

/// The words in backticks of the chapter on JSON.
fn named() -> BTreeSet<String> {
    let chapter =
        BOOK.split("\n## ").find(|chapter| chapter.starts_with("JSON\n")).expect("it is there");
    let code = chapter.split('`').skip(1).step_by(2);
    let words = code.flat_map(|code| code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    words.filter(|word| !word.is_empty()).map(String::from).collect()
}

#[test]
fn every_field_of_json_stands_in_the_book_and_no_other() {
    let cut = format!("{}/book-cut.bin", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(&cut, &std::fs::read(TWICE).unwrap()[..300_000]).unwrap();
    let mut all = BTreeSet::new();
    for args in [
        &["summary", "--json", TWICE][..],
        &["summary", "--json", "--to", "1", TWICE],
        &["summary", "--json", STALE],
        &["summary", "--json", &cut],
        &["summary", "--every", "500ms", "--json", &cut],
        &["host", "--json", TWICE],
        &["locks", "--json", TWICE],
        &["locks", "--each", "--json", TWICE],
        &["timeline", "--json", TWICE],
        &["check", "--json", TWICE],
        &["diff", "--json", TWICE, UNLOCK],
    ] {
        let mut found = BTreeSet::new();
        for value in serde_json::Deserializer::from_str(&print(args)).into_iter() {
            keys(&value.expect("JSON"), &mut found);
        }
        let missing: Vec<_> = found.difference(&named()).cloned().collect();
        assert!(!found.is_empty() && missing.is_empty(), "{args:?}: not in the book: {missing:?}");
        all.extend(found);
    }
    // Values, commands and options that the chapter names beside fields.
    let others = "exact inferred upper lower bound given calibrated none good note doubtful missing pv hvm \
                  unknown interval woken preempted yielded unpaused highest pcpu ppm _s _ns xentrace e each \
                  acquisition summary check every json host locks timeline diff pvlab";
    let gone: Vec<_> = named().into_iter().filter(|word| !all.contains(word)).collect();
    let gone: Vec<_> =
        gone.iter().filter(|word| !others.split_whitespace().any(|other| other == *word)).collect();
    assert!(gone.is_empty(), "in no output: {gone:?}");
}

/// The words and the numbers of a line.
fn parts(line: &str) -> (String, Vec<f64>) {
    let digit = |c: char| c.is_ascii_digit() || c == '.';
    let numbers = line.split(|c| !digit(c)).filter_map(|number| number.parse().ok()).collect();
    let words = line.split(digit).flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
    (words, numbers)
}

/// But for the last digits, which a better measure of the frequency moves.
#[test]
fn the_outputs_that_the_book_prints_are_the_program_s() {
    let mut samples = BOOK.split("```text\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    for args in [&["summary", TWICE][..], &["diff", TWICE, UNLOCK]] {
        let output = print(args);
        let sample = samples.next().expect("a sample for each");
        let is_there = |line: &&str| {
            let (words, numbers) = parts(line);
            output.lines().map(parts).any(|(others, found)| {
                let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 0.02 + 0.05 * b.abs();
                others == words
                    && found.len() == numbers.len()
                    && numbers.iter().zip(&found).all(near)
            })
        };
        let strange = sample.lines().find(|line| !is_there(line));
        assert_eq!(strange, None, "{args:?}:\n{output}");
    }
    assert_eq!(samples.next(), None, "every sample is looked at");
}
