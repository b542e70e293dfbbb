//! `kicktrace export`: every run, wait, kick and acquisition as rows, for DuckDB, Polars and their
//! like.

use std::io;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args as ClapArgs};

use super::input::{Input, is_dash};
use super::{Failure, judged, sink};
use crate::analysis::Analyser;
use crate::output::export::{Cell, Csv, Export, Rows, TABLES, Table};
use crate::reader::read;

#[derive(Debug, ClapArgs)]
#[command(group = ArgGroup::new("kind").args(["parquet", "csv"]).required(true).multiple(true))]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) input: Input,
    /// Write Parquet files into this folder, which is made if it is not there
    #[arg(long, value_name = "DIR")]
    parquet: Option<PathBuf>,
    /// Write CSV files into this folder, which is made if it is not there
    #[arg(long, value_name = "DIR")]
    csv: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let input = &args.input;
    if args.parquet.is_some() && cfg!(not(feature = "parquet")) {
        return Err(Failure::Usage(
            "this kicktrace was built without Parquet: build it with `cargo build --release -p kicktrace \
             --features parquet`, or take --csv DIR, whose files have the same columns"
                .into(),
        ));
    }
    let dirs = [(&args.parquet, "parquet"), (&args.csv, "csv")];
    for (dir, ending) in dirs {
        let Some(dir) = dir else { continue };
        if is_dash(dir) {
            return Err(Failure::Usage(
                "the rows are of several tables, so they go into a folder and not to standard output (-): \
                 name one"
                    .into(),
            ));
        }
        for table in TABLES {
            sink::refuse_inputs(&table.path(dir, ending), &input.files())?;
        }
    }
    let Some(hz) = input.clock()? else {
        return Err(Failure::Usage(format!(
            "{}: rows are in nanoseconds, and the TSC frequency is not known beforehand: give --cpu-hz or \
             --xl-dmesg",
            input.name()
        )));
    };
    for dir in dirs.iter().filter_map(|&(dir, _)| dir.as_ref()) {
        let open = |source| Failure::Open { name: dir.display().to_string(), source };
        std::fs::create_dir_all(dir).map_err(open)?;
    }
    let export = Export::new(hz, |table| {
        let mut files = Files::default();
        for (dir, ending) in dirs {
            let Some(dir) = dir else { continue };
            let name = table.path(dir, ending).display().to_string();
            let rows = create(dir, table, ending).map_err(|error| named(&name, &error))?;
            files.0.push((name, rows));
        }
        Ok(Box::new(files))
    })?;
    let options = input.reading.options();
    let mut analyser = Analyser::observed(&options, export);
    let reading = read(input.open()?, &options.read, &mut analyser)
        .map_err(|source| input.failure(source))?;
    let (summary, export) = analyser.finish(reading);
    export.finish(&summary)?;
    judged(input, &summary)
}

/// The files of one table, of each kind that was asked for. Their errors name them.
#[derive(Default)]
struct Files(Vec<(String, Box<dyn Rows>)>);

impl Files {
    fn each(&mut self, to: impl Fn(&mut dyn Rows) -> io::Result<()>) -> io::Result<()> {
        let mut all = self.0.iter_mut();
        all.try_for_each(|(name, rows)| to(rows.as_mut()).map_err(|error| named(name, &error)))
    }
}

impl Rows for Files {
    fn row(&mut self, cells: &[Cell]) -> io::Result<()> {
        self.each(|rows| rows.row(cells))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.each(|rows| rows.finish())
    }
}

fn named(name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

#[cfg(feature = "parquet")]
fn create(dir: &Path, table: &Table, ending: &str) -> io::Result<Box<dyn Rows>> {
    if ending == "parquet" {
        return Ok(Box::new(crate::output::parquet::Parquet::create(dir, table)?));
    }
    Ok(Box::new(Csv::create(dir, table)?))
}

#[cfg(not(feature = "parquet"))]
fn create(dir: &Path, table: &Table, _: &str) -> io::Result<Box<dyn Rows>> {
    Ok(Box::new(Csv::create(dir, table)?))
}
