//! Rows for other tools: runs, waits, kicks and acquisitions as tables with typed columns.
//!
//! Owns the columns (docs/kicktrace.md repeats them) and the CSV files. Parquet is written in
//! `parquet.rs`, which is there with the feature `parquet`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::analysis::{AcquisitionStory, Interval, Observe, VcpuId, WaitStory};
use crate::summary::{Certainty, Summary};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number. Times are nanoseconds after the trace's first record, lengths of time nanoseconds.
    Number,
    /// A number, or nothing.
    Maybe,
    /// A word.
    Word,
}

/// A value of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// For [`Kind::Number`] and [`Kind::Maybe`].
    Number(i64),
    /// For [`Kind::Maybe`].
    Nothing,
    /// For [`Kind::Word`].
    Word(&'static str),
}

/// A table: its name and its columns.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Name of its file, without the ending.
    pub name: &'static str,
    /// Names and kinds of its columns.
    pub columns: &'static [(&'static str, Kind)],
}

use Kind::{Maybe, Number, Word};

/// Every interval a vCPU spent in one runstate.
pub const RUNS: Table = Table {
    name: "runs",
    columns: &[
        ("domain", Number),
        ("vcpu", Number),
        ("state", Word),
        ("pcpu", Number),
        ("from_ns", Number),
        ("to_ns", Number),
    ],
};

/// Every poll that blocked and ended.
pub const WAITS: Table = Table {
    name: "waits",
    columns: &[
        ("domain", Number),
        ("vcpu", Number),
        ("lock", Maybe),
        ("blocked_ns", Number),
        ("woken_ns", Number),
        ("running_ns", Number),
        ("pcpu", Number),
        ("kicked_by_vcpu", Maybe),
        ("kicked_at_ns", Maybe),
        ("kicker_stolen_ns", Number),
    ],
};

/// Every waking kick.
pub const KICKS: Table = Table {
    name: "kicks",
    columns: &[
        ("domain", Number),
        ("vcpu", Number),
        ("pcpu", Number),
        ("at_ns", Number),
        ("target_vcpu", Number),
        ("lock", Maybe),
        ("woken_ns", Number),
        ("running_ns", Number),
    ],
};

/// Every acquisition that blocked, as the guests marked them: all of it exact.
pub const ACQUISITIONS: Table = Table {
    name: "acquisitions",
    columns: &[
        ("domain", Number),
        ("vcpu", Number),
        ("lock", Number),
        ("blocked_ns", Number),
        ("running_ns", Number),
        ("marked_ns", Number),
        ("slept_ns", Number),
        ("longest_ns", Number),
        ("waits", Number),
        ("waking_kicks", Number),
        ("first_kicked_by_vcpu", Maybe),
        ("last_kicked_by_vcpu", Maybe),
    ],
};

/// The domains, and how far to trust the rows of the other tables that are theirs.
pub const DOMAINS: Table = Table {
    name: "domains",
    columns: &[
        ("domain", Number),
        ("life", Number),
        ("ended_ns", Maybe),
        ("vcpus", Number),
        ("waits_certainty", Word),
        ("kicks_certainty", Word),
        ("coverage_ppm", Number),
        ("lost_records", Number),
        ("trace_ns", Number),
        ("tsc_hz", Number),
    ],
};

/// All tables.
pub const TABLES: [Table; 5] = [RUNS, WAITS, KICKS, ACQUISITIONS, DOMAINS];

impl Table {
    /// Its file in the folder `dir`.
    #[must_use]
    pub fn path(&self, dir: &Path, ending: &str) -> PathBuf {
        dir.join(format!("{}.{ending}", self.name))
    }
}

/// Takes the rows of one table.
pub trait Rows {
    /// Adds a row: a cell for each column.
    ///
    /// # Errors
    /// Whatever the file returns.
    fn row(&mut self, cells: &[Cell]) -> io::Result<()>;

    /// Writes what is left.
    ///
    /// # Errors
    /// Whatever the file returns.
    fn finish(&mut self) -> io::Result<()>;
}

/// A table as `DIR/NAME.csv`.
pub struct Csv(BufWriter<File>);

impl Csv {
    /// Creates the file and writes its header.
    ///
    /// # Errors
    /// Whatever the file returns.
    pub fn create(dir: &Path, table: &Table) -> io::Result<Self> {
        let mut out = BufWriter::new(File::create(table.path(dir, "csv"))?);
        let names: Vec<_> = table.columns.iter().map(|(name, _)| *name).collect();
        writeln!(out, "{}", names.join(","))?;
        Ok(Self(out))
    }
}

impl Rows for Csv {
    fn row(&mut self, cells: &[Cell]) -> io::Result<()> {
        for (at, cell) in cells.iter().enumerate() {
            if at > 0 {
                self.0.write_all(b",")?;
            }
            match cell {
                Cell::Number(number) => write!(self.0, "{number}")?,
                Cell::Nothing => {}
                Cell::Word(word) => self.0.write_all(word.as_bytes())?,
            }
        }
        self.0.write_all(b"\n")
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes all tables while a trace is analysed; an [`Observe`]r.
pub struct Export {
    runs: Box<dyn Rows>,
    waits: Box<dyn Rows>,
    kicks: Box<dyn Rows>,
    acquisitions: Box<dyn Rows>,
    domains: Box<dyn Rows>,
    hz: f64,
    start: u64,
    failed: Option<io::Error>,
}

impl Export {
    /// Tables made by `create`, of a trace whose TSC runs at `hz`.
    ///
    /// # Errors
    /// Whatever `create` returns.
    pub fn new(hz: f64, create: impl Fn(&Table) -> io::Result<Box<dyn Rows>>) -> io::Result<Self> {
        Ok(Self {
            runs: create(&RUNS)?,
            waits: create(&WAITS)?,
            kicks: create(&KICKS)?,
            acquisitions: create(&ACQUISITIONS)?,
            domains: create(&DOMAINS)?,
            hz,
            start: 0,
            failed: None,
        })
    }

    /// Writes what is known at the end and completes the files.
    ///
    /// # Errors
    /// The first thing that went wrong, earlier ones included.
    pub fn finish(mut self, summary: &Summary) -> io::Result<()> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        for domain in &summary.domains {
            let word = |certainty: Certainty| Cell::Word(certainty.name());
            self.domains.row(&[
                Cell::Number(domain.id.into()),
                Cell::Number(domain.life.into()),
                domain.ended.map_or(Cell::Nothing, |ended| {
                    length(ended.saturating_sub(self.start), self.hz)
                }),
                Cell::Number(domain.vcpus.len() as i64),
                word(domain.latencies.wait.certainty),
                word(domain.counts.waking_kicks.certainty),
                Cell::Number((domain.coverage_percent * 1e4) as i64),
                Cell::Number(summary.reading.lost_records() as i64),
                length(summary.ticks, self.hz),
                Cell::Number(self.hz as i64),
            ])?;
        }
        for rows in [
            &mut self.runs,
            &mut self.waits,
            &mut self.kicks,
            &mut self.acquisitions,
            &mut self.domains,
        ] {
            rows.finish()?;
        }
        Ok(())
    }

    fn at(&self, tsc: u64) -> Cell {
        length(tsc.saturating_sub(self.start), self.hz)
    }

    fn note(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            self.failed.get_or_insert(error);
        }
    }
}

fn length(ticks: u64, hz: f64) -> Cell {
    Cell::Number((ticks as f64 * 1e9 / hz) as i64)
}

fn vcpu(of: Option<VcpuId>) -> Cell {
    of.map_or(Cell::Nothing, |of| Cell::Number(of.vcpu.into()))
}

impl Observe for Export {
    fn start(&mut self, tsc: u64) {
        self.start = tsc;
    }

    fn interval(&mut self, of: &Interval) {
        let cells = [
            Cell::Number(of.vcpu.domain.into()),
            Cell::Number(of.vcpu.vcpu.into()),
            Cell::Word(of.state.name()),
            Cell::Number(of.cpu.into()),
            self.at(of.from),
            self.at(of.to),
        ];
        let done = self.runs.row(&cells);
        self.note(done);
    }

    fn wait(&mut self, of: &WaitStory) {
        let lock = of.lock.map_or(Cell::Nothing, |lock| Cell::Number(lock.into()));
        let domain = Cell::Number(of.vcpu.domain.into());
        let who = Cell::Number(of.vcpu.vcpu.into());
        let cells = [
            domain,
            who,
            lock,
            self.at(of.blocked),
            self.at(of.woken),
            self.at(of.running),
            Cell::Number(of.cpu.into()),
            vcpu(of.kick.map(|kick| kick.by)),
            of.kick.map_or(Cell::Nothing, |kick| self.at(kick.tsc)),
            length(of.kicker_stolen, self.hz),
        ];
        let done = self.waits.row(&cells);
        self.note(done);
        let Some(kick) = of.kick else { return };
        let cells = [
            domain,
            Cell::Number(kick.by.vcpu.into()),
            Cell::Number(kick.cpu.into()),
            self.at(kick.tsc),
            who,
            lock,
            self.at(of.woken),
            self.at(of.running),
        ];
        let done = self.kicks.row(&cells);
        self.note(done);
    }

    fn acquisition(&mut self, of: &AcquisitionStory) {
        let cells = [
            Cell::Number(of.vcpu.domain.into()),
            Cell::Number(of.vcpu.vcpu.into()),
            Cell::Number(of.lock.into()),
            self.at(of.blocked),
            self.at(of.running),
            self.at(of.marked),
            length(of.slept, self.hz),
            length(of.longest, self.hz),
            Cell::Number(of.waits.into()),
            Cell::Number(of.waking_kicks.into()),
            vcpu(of.first_kicked_by),
            vcpu(of.last_kicked_by),
        ];
        let done = self.acquisitions.row(&cells);
        self.note(done);
    }
}
