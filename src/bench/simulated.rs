//! Runs of the simulator as cells of an experiment, so that they get the same report.
//!
//! Owns how `pvlock-sim --json` is read. A simulated machine is a topology by its size, such as `512-on-64`, and what
//! the simulator does not know stays unknown. It simulates nothing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use experiment::{Lock, Policy};
use serde::Deserialize;

use super::figures::Figures;
use super::folder::{Done, SCHEMA, Setup};
use super::matrix::{Cell, Section, named};
use crate::report::Mode;

/// Version of the simulator's document that is read here.
const RUNS: u32 = 1;

#[derive(Deserialize)]
struct Document {
    schema: u32,
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    policy: String,
    command: String,
    cell: Simulated,
    acquisitions: u64,
    per_second: f64,
    jain: f64,
    wait_ns: Wait,
    blocked: Blocked,
}

#[derive(Deserialize)]
struct Simulated {
    vcpus: usize,
    pcpus: usize,
    locks: usize,
    critical_ns: f64,
    outside_ns: f64,
    seed: u64,
}

#[derive(Deserialize)]
struct Wait {
    p50: u64,
    p99: u64,
    p999: u64,
    max: u64,
    histogram: Vec<(u64, u64)>,
}

#[derive(Deserialize)]
struct Blocked {
    waking_kicks: u64,
    waking_kicks_each: Option<f64>,
}

/// How simulated cells are run: nothing that a host could choose.
fn setup() -> Setup {
    Setup {
        schema: SCHEMA,
        mode: Mode::Simulated,
        shift: None,
        slice_us: None,
        window: Duration::ZERO,
        start_after: Duration::ZERO,
        scheduler: None,
        trace: false,
        pause: true,
    }
}

/// The cells in the file at `path`, and the commands that made them.
///
/// # Errors
///
/// If it is not what `pvlock-sim --json` of this version prints.
pub(super) fn read(path: &Path) -> Result<(Setup, Vec<Done>, Vec<String>)> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let document: Document = serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is neither an experiment's folder nor what `pvlock-sim --json` prints",
            path.display()
        )
    })?;
    if document.schema != RUNS {
        bail!("{} has schema {}, this pvlab reads {RUNS}", path.display(), document.schema);
    }
    let commands = document.runs.iter().map(|run| run.command.clone()).collect();
    let cells = document.runs.into_iter().map(done).collect::<Result<_>>();
    Ok((setup(), cells.with_context(|| path.display().to_string())?, commands))
}

fn done(run: Run) -> Result<Done> {
    let policy: Policy = run.policy.parse().map_err(|error| {
        anyhow::anyhow!("`{}` is no lock of this experiment: {error}", run.policy)
    })?;
    let Simulated { vcpus, pcpus, locks, critical_ns, outside_ns, seed } = run.cell;
    let cell = Cell {
        topology: named(vcpus, pcpus, locks),
        section: Section::of_ns(critical_ns, outside_ns),
        lock: Lock::Guest(policy),
        seed,
    };
    let figures = Figures {
        rate: run.per_second,
        p50_ns: run.wait_ns.p50,
        p99_ns: run.wait_ns.p99,
        p999_ns: run.wait_ns.p999,
        longest_ns: run.wait_ns.max,
        jain: run.jain,
        waking_kicks: Some(run.blocked.waking_kicks as f64 / run.acquisitions.max(1) as f64),
        kicks_per_blocked: run.blocked.waking_kicks_each,
        latency: run.wait_ns.histogram,
        ..Figures::default()
    };
    Ok(Done { cell, outcome: Ok(figures) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::report::Report;
    use super::*;

    #[test]
    fn runs_of_the_simulator_are_cells_and_what_it_does_not_know_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sim.json");
        let run = |policy: &str, rate: f64| {
            json!({
                "policy": policy, "command": "cargo run -p pvlock-sim -- ...", "acquisitions": 100,
                "per_second": rate, "jain": 0.99,
                "cell": { "vcpus": 512, "pcpus": 64, "locks": 1, "critical_ns": 2000.0,
                          "outside_ns": 4000.0, "seed": 3 },
                "wait_ns": { "p50": 1, "p99": 2, "p999": 3, "max": 4, "histogram": [[1, 100]] },
                "blocked": { "waking_kicks": 50, "waking_kicks_each": 1.25 },
            })
        };
        let runs = [run("kick-twice", 1000.0), run("kick-at-unlock", 1100.0)];
        fs::write(&file, json!({ "schema": 1, "runs": runs }).to_string()).unwrap();
        let report = Report::collect(&[&file], "kick-twice".parse().unwrap()).unwrap();
        let row = report.row("512-on-64", report.sections()[0], "kick-at-unlock".parse().unwrap());
        let row = row.unwrap();
        assert!((row.against_baseline.unwrap() - 1.1).abs() < 1e-9);
        assert_eq!(row.figures["waking_kicks"].median, 0.5);
        assert!(!row.figures.contains_key("spun"), "the simulator does not tell it");
        assert_eq!(super::super::matrix::load("512-on-64"), Some(8.0));

        fs::write(&file, json!({ "schema": 2, "runs": [] }).to_string()).unwrap();
        let error = format!("{:#}", read(&file).unwrap_err());
        assert!(error.contains("schema 2"), "{error}");
        let unknown = json!({ "schema": 1, "runs": [run("as-posted", 1.0)] });
        fs::write(&file, unknown.to_string()).unwrap();
        let error = format!("{:#}", read(&file).unwrap_err());
        assert!(error.contains("as-posted") && error.contains("sim.json"), "{error}");
        fs::write(&file, "{}").unwrap();
        let error = format!("{:#}", read(&file).unwrap_err());
        assert!(error.contains("pvlock-sim --json"), "{error}");
    }
}
