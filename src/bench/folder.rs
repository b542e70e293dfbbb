//! The folder of an experiment: how its cells were run, and each cell that is done.
//!
//! Owns the files and what may stand beside each other in them. A cell's file is there whole or not at all; cells
//! that were run in different ways are never in one folder. It runs nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::figures::Figures;
use super::matrix::Cell;
use crate::linux;
use crate::report::Mode;

/// How the cells of one folder were run; `bench.json`. Cells of another setup do not go beside them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// Version of this folder's files.
    pub schema: u32,
    /// Where the domains run.
    pub mode: Mode,
    /// In repeatable mode, how many nanoseconds of virtual time an instruction lasts, as a power of two.
    pub shift: Option<u8>,
    /// And the longest turn of a pCPU in microseconds.
    pub slice_us: Option<u64>,
    /// The window's length.
    pub window: Duration,
    /// How long after a domain was asked for the time the window begins.
    pub start_after: Duration,
    /// Xen's scheduler, as on its command line; the host's own where there is none.
    pub scheduler: Option<String>,
    /// Whether the hypervisor's trace is counted.
    pub trace: bool,
    /// Whether waiters PAUSE while they spin; without, each PAUSE is a NOP.
    #[serde(default = "linux::pauses")]
    pub pause: bool,
}

/// Without another choice: an instruction lasts 8 ns of virtual time,
pub(super) const SHIFT: u8 = 3;
/// a pCPU's turn 100 us at most,
pub(super) const SLICE_US: u64 = 100;
/// a window 400 ms,
pub(super) const WINDOW_MS: u64 = 400;
/// and it begins a second after the last order.
pub(super) const START_AFTER_MS: u64 = 1000;

/// Version of the files in an experiment's folder.
pub const SCHEMA: u32 = 1;

/// The file an experiment's folder is known by.
pub const SETUP: &str = "bench.json";
const CELLS: &str = "cells";
/// Beside it: what the cells ran on, as the last host told it.
const VERSIONS: &str = "versions.json";

/// A cell that has been run: `cells/CELL.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Which.
    pub cell: Cell,
    /// Its figures, or why it has none.
    pub outcome: Result<Figures, String>,
}

/// Makes the folder, or sees that its cells go with `setup`.
pub(super) fn open(out: &Path, setup: &Setup) -> Result<()> {
    let cells = out.join(CELLS);
    let file = out.join(SETUP);
    if let Ok(text) = fs::read_to_string(&file) {
        let there: Setup = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged; give --out another folder", file.display()))?;
        if there != *setup {
            bail!(
                "{} holds cells that were run in another way ({}; now: {}), and the two are not mixed; give --out another \
                 folder",
                out.display(),
                there.words(),
                setup.words()
            );
        }
        return Ok(());
    }
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!(
            "{} is not empty and holds no experiment; give --out a new or empty folder",
            out.display()
        );
    }
    fs::create_dir_all(&cells).with_context(|| format!("cannot create {}", cells.display()))?;
    write_whole(&file, &serde_json::to_string_pretty(setup)?)
}

impl Setup {
    /// A command line that runs `cell` in this way, with all that is not a default.
    pub fn command(&self, cell: &Cell) -> String {
        let Cell { topology, section, lock, seed } = cell;
        let mut text = format!(
            "pvlab bench --topology {topology} --lock {lock} --section {section} --seed {seed}"
        );
        let mut add = |words: String| {
            text.push(' ');
            text.push_str(&words);
        };
        if self.mode == Mode::Parallel {
            add("--parallel".to_owned());
        }
        let ms = |time: Duration| time.as_millis() as u64;
        for (name, value, default) in [
            ("shift", self.shift.map(u64::from), u64::from(SHIFT)),
            ("slice", self.slice_us, SLICE_US),
            ("window", Some(ms(self.window)), WINDOW_MS),
            ("start-after", Some(ms(self.start_after)), START_AFTER_MS),
        ] {
            if let Some(value) = value.filter(|value| *value != default) {
                add(format!("--{name} {value}"));
            }
        }
        if let Some(name) = &self.scheduler {
            add(format!("--scheduler {name}"));
        }
        if !self.trace {
            add("--no-trace".to_owned());
        }
        if !self.pause {
            add("--no-pause".to_owned());
        }
        text
    }

    /// For a person.
    pub fn words(&self) -> String {
        let mode = match (self.mode, self.shift, self.slice_us) {
            (Mode::Repeatable, Some(shift), Some(slice)) => {
                let pause = match self.pause {
                    true => "with PAUSE, which ends a pCPU's turn",
                    false => "without PAUSE: a NOP in its place",
                };
                format!(
                    "repeatable, {} ns an instruction, turns of {slice} us, {pause}",
                    1u32 << shift
                )
            }
            (Mode::Host, ..) => "this machine's Xen".to_owned(),
            (Mode::Simulated, ..) => return "simulated by pvlock-sim, in virtual time".to_owned(),
            _ => "parallel emulation".to_owned(),
        };
        let scheduler = self.scheduler.as_ref().map_or(String::new(), |name| format!(", {name}"));
        let trace = if self.trace { "" } else { ", without a trace" };
        format!(
            "{mode}{scheduler}, windows of {} ms that begin {} ms after the last order{trace}",
            self.window.as_millis(),
            self.start_after.as_millis()
        )
    }
}

fn file_of(out: &Path, cell: &Cell) -> PathBuf {
    out.join(CELLS).join(format!("{cell}.json"))
}

/// The cell as it was run before; one that is half written was never finished.
pub(super) fn kept(out: &Path, cell: &Cell) -> Option<Done> {
    let text = fs::read_to_string(file_of(out, cell)).ok()?;
    serde_json::from_str(&text).ok()
}

pub(super) fn keep(out: &Path, done: &Done) -> Result<()> {
    write_whole(&file_of(out, &done.cell), &serde_json::to_string(done)?)
}

/// Makes a cell one that is not there yet.
pub(super) fn forget(out: &Path, cell: &Cell) -> Result<()> {
    let file = file_of(out, cell);
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))
}

pub(super) fn keep_versions(out: &Path, versions: &serde_json::Value) -> Result<()> {
    write_whole(&out.join(VERSIONS), &serde_json::to_string_pretty(versions)?)
}

/// What the cells of a folder ran on; null where that is not known.
pub(super) fn versions(folder: &Path) -> serde_json::Value {
    let text = fs::read_to_string(folder.join(VERSIONS)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// All at once or not at all.
fn write_whole(file: &Path, text: &str) -> Result<()> {
    let cannot = || format!("cannot write {}", file.display());
    let parent = file.parent().with_context(cannot)?;
    let mut half = tempfile::NamedTempFile::new_in(parent).with_context(cannot)?;
    std::io::Write::write_all(&mut half, text.as_bytes()).with_context(cannot)?;
    half.persist(file).with_context(cannot)?;
    Ok(())
}

/// Every cell in an experiment's folder, with how they were run.
///
/// # Errors
///
/// If it is no such folder, or one of its files is damaged.
pub fn read(folder: &Path) -> Result<(Setup, Vec<Done>)> {
    let file = folder.join(SETUP);
    let text = fs::read_to_string(&file).with_context(|| {
        format!("{} is not an experiment's folder: it has no {SETUP}", folder.display())
    })?;
    let setup: Setup =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
    if setup.schema != SCHEMA {
        bail!("{} has schema {}, this pvlab reads {SCHEMA}", file.display(), setup.schema);
    }
    let cells = folder.join(CELLS);
    let mut files: Vec<PathBuf> = fs::read_dir(&cells)
        .with_context(|| format!("cannot read {}", cells.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|text| text == "json"))
        .collect();
    files.sort();
    let read = |path: &PathBuf| {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged; remove it and run it again", path.display()))
    };
    Ok((setup, files.iter().map(read).collect::<Result<_>>()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn setup() -> Setup {
        Setup {
            schema: SCHEMA,
            mode: Mode::Repeatable,
            shift: Some(3),
            slice_us: Some(100),
            window: Duration::from_millis(400),
            start_after: Duration::from_secs(1),
            scheduler: None,
            trace: true,
            pause: true,
        }
    }

    pub(crate) fn cell(seed: u64) -> Cell {
        let section = "2/4".parse().unwrap();
        Cell { topology: "4-on-1".to_owned(), section, lock: "linux-50us".parse().unwrap(), seed }
    }

    #[test]
    fn cells_that_are_done_are_there_again_and_half_written_ones_are_not() {
        let out = tempfile::tempdir().unwrap();
        open(out.path(), &setup()).unwrap();
        let done = Done { cell: cell(1), outcome: Ok(Figures::default()) };
        keep(out.path(), &done).unwrap();
        keep(out.path(), &Done { cell: cell(2), outcome: Err("crashed".to_owned()) }).unwrap();
        assert_eq!(kept(out.path(), &cell(1)), Some(done));
        assert_eq!(read(out.path()).unwrap().1.len(), 2);
        let file = file_of(out.path(), &cell(1));
        let whole = fs::read_to_string(&file).unwrap();
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(kept(out.path(), &cell(1)), None);
        assert!(read(out.path()).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn cells_of_another_mode_are_not_mixed_in() {
        let out = tempfile::tempdir().unwrap();
        open(out.path(), &setup()).unwrap();
        open(out.path(), &setup()).unwrap();
        let parallel = Setup { mode: Mode::Parallel, shift: None, slice_us: None, ..setup() };
        let error = open(out.path(), &parallel).unwrap_err().to_string();
        assert!(error.contains("repeatable") && error.contains("parallel"), "{error}");
        let silent = Setup { pause: false, ..setup() };
        let error = open(out.path(), &silent).unwrap_err().to_string();
        assert!(error.contains("with PAUSE") && error.contains("without PAUSE"), "{error}");
    }

    #[test]
    fn a_folder_from_before_there_was_a_choice_has_pauses() {
        let mut old = serde_json::to_value(setup()).unwrap();
        old.as_object_mut().unwrap().remove("pause");
        assert_eq!(serde_json::from_value::<Setup>(old).unwrap(), setup());
    }

    #[test]
    fn a_foreign_folder_is_left_alone() {
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("thesis.tex"), "x").unwrap();
        assert!(open(out.path(), &setup()).unwrap_err().to_string().contains("not empty"));
        assert!(read(out.path()).unwrap_err().to_string().contains("no bench.json"));
    }
}
