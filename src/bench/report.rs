//! All cells together: `results.json` of an experiment, its tables, and its verdict against a baseline.
//!
//! Owns the document's shape and the summing up over seeds. It reads cells and never runs one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use experiment::Lock;
use serde::{Deserialize, Serialize};

use super::figures::Figures;
use super::folder::{self, Done, SCHEMA, Setup};
use super::matrix::{Cell, Section, TOPOLOGIES, load, pcpus};
use super::simulated;
use super::stats::{Spread, permutation};
use crate::report::duration;

/// `results.json` of an experiment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this document: 1. It grows when a field changes its meaning or goes away.
    pub schema: u32,
    /// How all cells were run.
    pub setup: Setup,
    /// Version of everything in the lab or on the host, where known.
    pub versions: serde_json::Value,
    /// What the others are compared with.
    pub baseline: Lock,
    /// One entry for a lock in a topology with a section, over all seeds.
    pub rows: Vec<Row>,
    /// Every cell, with its figures or why it has none.
    pub cells: Vec<Done>,
}

/// A lock in a topology with a section, over all seeds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The topology.
    pub topology: String,
    /// The section.
    pub section: Section,
    /// The lock.
    pub lock: Lock,
    /// How many seeds have figures.
    pub seeds: usize,
    /// Reasons of those that have none.
    pub failures: Vec<String>,
    /// Each figure over the seeds, by the names of [`FIGURES`].
    pub figures: BTreeMap<String, Spread>,
    /// Rate as a multiple of the baseline's, by their medians.
    pub against_baseline: Option<f64>,
    /// How likely a difference in rate as large is by chance: exact permutation test, two-sided.
    pub p: Option<f64>,
}

/// A figure's name, and how to get it.
type Named = (&'static str, fn(&Figures) -> Option<f64>);

/// The figures of a row, by name; times in nanoseconds, shares from 0 to 1.
pub const FIGURES: [Named; 16] = [
    ("rate", |f| Some(f.rate)),
    ("p50_ns", |f| Some(f.p50_ns as f64)),
    ("p99_ns", |f| Some(f.p99_ns as f64)),
    ("p999_ns", |f| Some(f.p999_ns as f64)),
    ("longest_ns", |f| Some(f.longest_ns as f64)),
    ("jain", |f| Some(f.jain)),
    ("hypercalls", |f| f.hypercalls),
    ("kicks", |f| f.kicks),
    ("waking_kicks", |f| f.waking_kicks),
    ("blocks", |f| f.blocks),
    ("kicks_per_blocked", |f| f.kicks_per_blocked),
    ("spun", |f| f.spun),
    ("blocked", |f| f.blocked),
    ("stolen", |f| f.stolen),
    ("neighbour", |f| f.neighbour),
    ("neighbour_loss", |f| f.neighbour_loss),
];

impl Report {
    /// The report of what is in `folders`, wherever they came from; a file is what `pvlock-sim --json` printed.
    ///
    /// # Errors
    ///
    /// If one is no experiment's folder, or they were run in different ways, or one cell is in two of them with
    /// different figures.
    pub fn collect(folders: &[&Path], baseline: Lock) -> Result<Report> {
        let mut setup: Option<Setup> = None;
        let mut cells: BTreeMap<Cell, Done> = BTreeMap::new();
        let mut versions = serde_json::Value::Null;
        let mut commands = Vec::new();
        for folder in folders {
            let (own, done, simulated) = if folder.is_file() {
                simulated::read(folder)?
            } else {
                let (own, done) = folder::read(folder)?;
                (own, done, Vec::new())
            };
            commands.extend(simulated);
            let first = setup.get_or_insert_with(|| own.clone());
            if *first != own {
                bail!(
                    "{} was run in another way than {} ({}; {}): the two are not mixed, report them apart",
                    folder.display(),
                    folders[0].display(),
                    own.words(),
                    first.words()
                );
            }
            for done in done {
                match cells.get(&done.cell) {
                    Some(there)
                        if there.outcome.is_ok() && done.outcome.is_ok() && *there != done =>
                    {
                        bail!(
                            "{} is in two folders with different figures: {} and one before it",
                            done.cell,
                            folder.display()
                        )
                    }
                    Some(there) if there.outcome.is_ok() => {}
                    _ => drop(cells.insert(done.cell.clone(), done)),
                }
            }
            let own = folder::versions(folder);
            if !own.is_null() {
                versions = own;
            }
        }
        if !commands.is_empty() {
            versions = serde_json::json!({ "commands": commands });
        }
        let setup = setup.context("name at least one folder")?;
        let cells: Vec<Done> = cells.into_values().collect();
        let rows = rows(&cells, baseline);
        Ok(Report { schema: SCHEMA, setup, versions, baseline, rows, cells })
    }

    /// Reads the document at `path`, or the one in the folder `path`.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is of another version.
    pub fn read(path: &Path) -> Result<Report> {
        let file = if path.is_dir() { path.join("results.json") } else { path.to_owned() };
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let report: Report = serde_json::from_str(&text)
            .with_context(|| format!("{} is no experiment's results", file.display()))?;
        if report.schema != SCHEMA {
            bail!("{} has schema {}, this pvlab reads {SCHEMA}", file.display(), report.schema);
        }
        Ok(report)
    }

    /// The command that runs the first cell by itself; empty if there is none.
    pub fn command(&self) -> String {
        match (&self.versions["commands"][0], self.cells.first()) {
            (serde_json::Value::String(simulator), _) => simulator.clone(),
            (_, Some(done)) => self.setup.command(&done.cell),
            _ => String::new(),
        }
    }

    /// Topologies in the order of the report.
    pub fn topologies(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.rows.iter().map(|row| row.topology.as_str()).collect();
        names.sort_by_key(|name| place(name));
        names.dedup();
        names
    }

    /// The sections, the shortest first.
    pub fn sections(&self) -> Vec<Section> {
        let mut sections: Vec<Section> = self.rows.iter().map(|row| row.section).collect();
        sections.sort();
        sections.dedup();
        sections
    }

    /// The locks: the guest's, then Linux'.
    pub fn locks(&self) -> Vec<Lock> {
        let mut locks: Vec<Lock> = self.rows.iter().map(|row| row.lock).collect();
        locks.sort();
        locks.dedup();
        locks
    }

    /// The row of a lock in a topology with a section.
    pub fn row(&self, topology: &str, section: Section, lock: Lock) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.topology == topology && row.section == section && row.lock == lock)
    }

    /// The lock with the highest median rate in a topology with a section.
    pub fn winner(&self, topology: &str, section: Section) -> Option<Lock> {
        let rows =
            self.rows.iter().filter(|row| row.topology == topology && row.section == section);
        let rated = rows.filter_map(|row| Some((row.figures.get("rate")?.median, row.lock)));
        rated.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, lock)| lock)
    }

    /// The tables for a terminal: one a topology, a line a lock, a column a section.
    pub fn tables(&self) -> String {
        let mut text = String::new();
        for topology in self.topologies() {
            let mut table = Table::new();
            table.load_style(presets::UTF8_FULL_CONDENSED);
            let mut head = vec![topology.to_owned()];
            head.extend(self.sections().iter().map(|section| format!("{section} us")));
            table.set_header(head);
            for lock in self.locks() {
                let mut line = vec![lock.to_string()];
                line.extend(
                    self.sections().iter().map(|&section| self.short(topology, section, lock)),
                );
                table.add_row(line);
            }
            for column in table.column_iter_mut().skip(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            text.push_str(&format!("{table}\n"));
        }
        text.push_str(&format!(
            "Acquisitions a second, median of the seeds · p99.9 / longest wait. * the most in its column. \
             {}.\n",
            self.setup.words()
        ));
        for done in &self.cells {
            if let Err(why) = &done.outcome {
                text.push_str(&format!("FAILED {}: {why}\n", done.cell));
            }
        }
        text
    }

    fn short(&self, topology: &str, section: Section, lock: Lock) -> String {
        let Some(row) = self.row(topology, section, lock) else { return "-".to_owned() };
        let Some(rate) = row.figures.get("rate") else { return "FAILED".to_owned() };
        let time = |name: &str| row.figures.get(name).map_or(0, |spread| spread.median as u64);
        let best = if self.winner(topology, section) == Some(lock) { "*" } else { "" };
        let (p999, longest) = (duration(time("p999_ns")), duration(time("longest_ns")));
        format!("{best}{} · {p999} / {longest}", crate::report::grouped(rate.median.round() as u64))
    }
}

/// The known ones in their own order, then others, small machines and small loads first.
fn place(topology: &str) -> (usize, Option<u32>, u64, String) {
    let base = topology.trim_end_matches("-pvh");
    let known = TOPOLOGIES.iter().position(|(name, _)| *name == base);
    let (pcpus, load) = match known {
        Some(_) => (None, 0),
        None => (pcpus(topology), load(topology).map_or(0, |load| (load * 1000.0) as u64)),
    };
    (known.unwrap_or(TOPOLOGIES.len()), pcpus, load, topology.to_owned())
}

fn rows(cells: &[Done], baseline: Lock) -> Vec<Row> {
    type Key = (String, Section, Lock);
    let mut groups: BTreeMap<Key, Vec<&Done>> = BTreeMap::new();
    for done in cells {
        let Cell { topology, section, lock, .. } = &done.cell;
        groups.entry((topology.clone(), *section, *lock)).or_default().push(done);
    }
    let rates = |key: &Key| -> Vec<f64> {
        let group = groups.get(key).into_iter().flatten();
        group.filter_map(|done| Some(done.outcome.as_ref().ok()?.rate)).collect()
    };
    groups
        .iter()
        .map(|(key, group)| {
            let good: Vec<&Figures> =
                group.iter().filter_map(|d| d.outcome.as_ref().ok()).collect();
            let spread = |of: fn(&Figures) -> Option<f64>| {
                Spread::of(&good.iter().filter_map(|figures| of(figures)).collect::<Vec<_>>())
            };
            let figures = FIGURES
                .iter()
                .filter_map(|(name, of)| Some(((*name).to_owned(), spread(*of)?)))
                .collect();
            let (own, base) = (rates(key), rates(&(key.0.clone(), key.1, baseline)));
            let medians = Spread::of(&own).zip(Spread::of(&base));
            Row {
                topology: key.0.clone(),
                section: key.1,
                lock: key.2,
                seeds: good.len(),
                failures: group.iter().filter_map(|d| d.outcome.as_ref().err().cloned()).collect(),
                figures,
                against_baseline: medians
                    .filter(|(_, base)| base.median > 0.0)
                    .map(|(own, base)| own.median / base.median),
                p: (key.2 != baseline).then(|| permutation(&own, &base)).flatten(),
            }
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn report(rates: &[(&str, f64)]) -> Report {
        let section = "2/4".parse().unwrap();
        let mut cells = Vec::new();
        for (lock, rate) in rates {
            for seed in 1..=3 {
                let lock = lock.parse().unwrap();
                let cell = Cell { topology: "4-on-1".to_owned(), section, lock, seed };
                let figures = Figures {
                    rate: rate + seed as f64,
                    longest_ns: 5_000_000,
                    p999_ns: 1_000,
                    latency: vec![(1_000, 99), (4_000_000, 1)],
                    kicks: Some(0.5),
                    ..Figures::default()
                };
                cells.push(Done { cell, outcome: Ok(figures) });
            }
        }
        let baseline = "linux".parse().unwrap();
        let setup = Setup {
            schema: SCHEMA,
            mode: crate::report::Mode::Repeatable,
            shift: Some(3),
            slice_us: Some(100),
            window: std::time::Duration::from_millis(400),
            start_after: std::time::Duration::from_secs(1),
            scheduler: None,
            trace: true,
            pause: true,
        };
        let versions = serde_json::Value::Null;
        Report { schema: SCHEMA, setup, versions, baseline, rows: rows(&cells, baseline), cells }
    }

    #[test]
    fn a_row_is_the_median_and_the_range_of_its_seeds_beside_the_baseline() {
        let report = report(&[("linux", 1000.0), ("adaptive", 2000.0)]);
        let section = report.sections()[0];
        let row = report.row("4-on-1", section, "adaptive".parse().unwrap()).unwrap();
        assert_eq!(row.figures["rate"], Spread { median: 2002.0, min: 2001.0, max: 2003.0 });
        assert!((row.against_baseline.unwrap() - 2002.0 / 1002.0).abs() < 1e-9);
        assert_eq!(row.p, Some(0.1));
        assert_eq!(report.winner("4-on-1", section), Some("adaptive".parse().unwrap()));
        assert!(report.tables().contains("*2,002"), "{}", report.tables());
    }

    #[test]
    fn a_failed_cell_is_shown_as_failed_with_its_reason() {
        let mut report = report(&[("linux", 1000.0)]);
        report
            .cells
            .iter_mut()
            .for_each(|done| done.outcome = Err("domain guest1 crashed".to_owned()));
        report.rows = rows(&report.cells, report.baseline);
        let tables = report.tables();
        assert!(tables.contains("FAILED") && tables.contains("guest1 crashed"), "{tables}");
    }

    #[test]
    fn a_document_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let report = report(&[("linux", 1000.0), ("adaptive", 2000.0)]);
        super::super::page::write(&report, folder.path()).unwrap();
        let back = Report::read(folder.path()).unwrap();
        assert_eq!(back.cells, report.cells);
        assert_eq!(back.locks(), report.locks());
    }
}
