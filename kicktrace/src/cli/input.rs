//! The options every command that reads a trace has, and opening it.

use std::fs::File;
use std::io::{self, Read};

use clap::Args;

use super::Failure;
use crate::reader::ReadOptions;
use crate::{Options, Summary};

#[derive(Debug, Args)]
pub(super) struct Input {
    /// The trace; `-` for standard input
    pub(super) file: String,
    #[command(flatten)]
    pub(super) reading: Reading,
}

#[derive(Debug, Args)]
pub(super) struct Reading {
    /// TSC frequency in Hz (2.8e9, 2.8G, 2800M), instead of measuring it on the trace
    #[arg(long, value_name = "HZ", value_parser = parse_hz)]
    pub(super) cpu_hz: Option<f64>,
    /// Only this domain (may be repeated)
    #[arg(long = "dom", value_name = "ID")]
    pub(super) domains: Vec<u16>,
    /// Correct a pCPU's TSC by so many ticks, PCPU=TICKS (may be repeated)
    #[arg(long = "tsc-offset", value_name = "PCPU=TICKS", value_parser = parse_offset)]
    tsc_offsets: Vec<(u32, i64)>,
    /// Hold back at most so many MiB of records to put them in order
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    buffer: usize,
    /// Fail on a cut file instead of reading it up to the cut
    #[arg(long)]
    strict: bool,
}

impl Reading {
    pub(super) fn options(&self) -> Options {
        Options {
            read: ReadOptions {
                buffer_limit: self.buffer << 20,
                strict: self.strict,
                tsc_offsets: self.tsc_offsets.clone(),
            },
            cpu_hz: self.cpu_hz,
            domains: self.domains.clone(),
        }
    }

    pub(super) fn summarise(&self, file: &str) -> Result<Summary, Failure> {
        crate::summarise(open(file)?, &self.options())
            .map_err(|source| Failure::Trace { name: file.to_owned(), source })
    }
}

/// Opens a trace, or standard input for `-`.
pub(super) fn open(name: &str) -> Result<Box<dyn Read + Send>, Failure> {
    if name == "-" {
        return Ok(Box::new(io::stdin()));
    }
    match File::open(name) {
        Ok(file) => Ok(Box::new(file)),
        Err(source) => Err(Failure::Open { name: name.to_owned(), source }),
    }
}

fn parse_hz(text: &str) -> Result<f64, String> {
    let (number, factor) = match text.strip_suffix(['G', 'g']) {
        Some(number) => (number, 1e9),
        None => match text.strip_suffix(['M', 'm']) {
            Some(number) => (number, 1e6),
            None => (text, 1.0),
        },
    };
    match number.parse::<f64>() {
        Ok(hz) if (1e6..1e12).contains(&(hz * factor)) => Ok(hz * factor),
        _ => Err("a frequency from 1M to 1000G, such as 2.8G or 2800000000".into()),
    }
}

fn parse_offset(text: &str) -> Result<(u32, i64), String> {
    text.split_once('=')
        .and_then(|(cpu, ticks)| Some((cpu.parse().ok()?, ticks.parse().ok()?)))
        .ok_or_else(|| "PCPU=TICKS, such as 3=-1200".into())
}
