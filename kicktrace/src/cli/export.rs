//! `kicktrace export`: every run, wait, kick and acquisition as rows, for DuckDB, Polars and their like.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::input::Input;
use super::{Failure, judged, sink};
use crate::analysis::Analyser;
use crate::output::export::{Csv, Export, Rows, TABLES, Table};
use crate::reader::read;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) input: Input,
    /// Write Parquet files into this folder, which is made if it is not there
    #[arg(long, value_name = "DIR", required_unless_present = "csv")]
    parquet: Option<PathBuf>,
    /// Write CSV files into this folder
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
        if sink::is_stdout(dir) {
            return Err(Failure::Usage(
                "the rows are of several tables, so they go into a folder and not to standard output (-): \
                 name one"
                    .into(),
            ));
        }
        for table in TABLES {
            sink::refuse_inputs(&table.path(dir, ending), &[&input.file])?;
        }
    }
    let Some(hz) = input.clock()? else {
        return Err(Failure::Usage(format!(
            "{}: rows are in nanoseconds, and the TSC frequency is not known beforehand: give --cpu-hz or \
             --xl-dmesg",
            input.file
        )));
    };
    // One of the two is there; both are read for in turn.
    for (dir, ending) in dirs {
        let Some(dir) = dir else { continue };
        let open = |source| Failure::Open { name: dir.display().to_string(), source };
        std::fs::create_dir_all(dir).map_err(open)?;
        let export = Export::new(hz, |table| create(dir, table, ending)).map_err(open)?;
        let options = input.reading.options();
        let mut analyser = Analyser::observed(&options, export);
        let reading = read(input.open()?, &options.read, &mut analyser)
            .map_err(|source| input.failure(source))?;
        let (summary, export) = analyser.finish(reading);
        export.finish(&summary).map_err(open)?;
        judged(input, &summary)?;
    }
    Ok(())
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
