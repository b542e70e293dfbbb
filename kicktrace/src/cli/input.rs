//! The options every command that reads a trace has, and opening it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Failure, say};
use crate::analysis::{Bounds, Fixed, VcpuId};
use crate::error::Error;
use crate::reader::{self, Drift, ReadOptions};
use crate::{Options, Summary};

#[derive(Clone, Debug, Args)]
pub(super) struct Input {
    /// The trace; `-` for standard input
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) reading: Reading,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Reading {
    /// TSC frequency in Hz (2.8e9, 2.8G, 2800M), instead of measuring it on the trace
    #[arg(long, value_name = "HZ", value_parser = parse_hz)]
    cpu_hz: Option<f64>,
    /// Take the TSC frequency from the output of `xl dmesg` in this file; `-` for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "cpu_hz")]
    xl_dmesg: Option<PathBuf>,
    /// Only this domain (may be repeated)
    #[arg(long = "dom", value_name = "ID")]
    pub(super) domains: Vec<u16>,
    /// Correct a pCPU's TSC by so many ticks, PCPU=TICKS (may be repeated)
    #[arg(long = "tsc-offset", value_name = "PCPU=TICKS", value_parser = parse_offset)]
    tsc_offsets: Vec<(u32, i64)>,
    #[arg(skip)]
    tsc_drifts: Vec<Drift>,
    #[arg(skip)]
    tsc_open: u64,
    /// Hold back at most so many MiB of records to put them in order
    #[arg(long, value_name = "MIB", default_value_t = 256,
          value_parser = clap::value_parser!(u64).range(1..=65536))]
    buffer: u64,
    /// Fail on a cut file instead of reading it up to the cut
    #[arg(long)]
    strict: bool,
}

impl Reading {
    /// Whose TSC was to be corrected, among those that are not in the trace.
    pub(super) fn absent_pcpu(&self, reading: &reader::Reading) -> Option<u32> {
        let has = |cpu: u32| reading.pcpus.iter().any(|pcpu| pcpu.cpu == cpu);
        self.tsc_offsets.iter().map(|&(cpu, _)| cpu).find(|&cpu| !has(cpu))
    }

    /// The option that gives the frequency, if one does.
    pub(super) fn frequency_option(&self) -> Option<&'static str> {
        match (&self.xl_dmesg, self.cpu_hz) {
            (Some(_), _) => Some("--xl-dmesg"),
            (None, Some(_)) => Some("--cpu-hz"),
            (None, None) => None,
        }
    }

    /// Refuses what contradicts itself, and reads the frequency from the file it stands in, if it
    /// was given so.
    pub(super) fn resolve(&mut self, traces: &[PathBuf]) -> Result<(), Failure> {
        for (at, (cpu, _)) in self.tsc_offsets.iter().enumerate() {
            if self.tsc_offsets[..at].iter().any(|(other, _)| other == cpu) {
                return Err(Failure::Usage(format!(
                    "--tsc-offset: pCPU {cpu} is named twice: give the sum"
                )));
            }
        }
        let Some(path) = &self.xl_dmesg else { return Ok(()) };
        let name = path.display().to_string();
        if is_dash(path) && traces.iter().any(|trace| is_dash(trace)) {
            let text = "--xl-dmesg - and a trace from standard input: save one of them to a file";
            return Err(Failure::Usage(text.into()));
        }
        let mut log = Vec::new();
        let read = match is_dash(path) {
            true => io::stdin().read_to_end(&mut log),
            false => File::open(path).and_then(|mut file| file.read_to_end(&mut log)),
        };
        read.map_err(|source| Failure::Open { name: name.clone(), source })?;
        let hz = hz_in_log(&String::from_utf8_lossy(&log));
        self.cpu_hz = Some(hz.ok_or_else(|| {
            Failure::Usage(format!(
                "{name}: no line \"Detected ... MHz processor\": it is in the output of `xl dmesg` \
                 until the ring wraps; without it the frequency is measured on the trace"
            ))
        })?);
        Ok(())
    }

    pub(super) fn options(&self) -> Options {
        Options {
            read: ReadOptions {
                buffer_limit: (self.buffer << 20) as usize,
                strict: self.strict,
                tsc_offsets: self.tsc_offsets.clone(),
                tsc_drifts: self.tsc_drifts.clone(),
                tsc_open: self.tsc_open,
            },
            cpu_hz: self.cpu_hz,
            domains: self.domains.clone(),
        }
    }
}

impl Input {
    /// Opens the trace, or standard input for `-`.
    pub(super) fn open(&self) -> Result<Box<dyn Read + Send>, Failure> {
        if self.is_stdin() {
            return Ok(Box::new(io::stdin()));
        }
        let open = File::open(&self.file).and_then(|file| Ok((file.metadata()?.is_dir(), file)));
        match open {
            Ok((false, file)) => Ok(Box::new(file)),
            Ok((true, _)) => Err(self.is_folder()),
            Err(source) => Err(Failure::Open { name: self.name(), source }),
        }
    }

    fn is_folder(&self) -> Failure {
        Failure::Usage(format!("{}: a directory: name the file that xentrace wrote", self.name()))
    }

    /// The trace's name as messages show it. A name may be any bytes.
    pub(super) fn name(&self) -> String {
        self.file.display().to_string()
    }

    /// The trace's name without the folders it is in.
    pub(super) fn title(&self) -> String {
        let name = self.file.file_name().filter(|_| !self.is_stdin());
        name.map_or_else(|| "standard input".into(), |name| name.to_string_lossy().into_owned())
    }

    /// Every file that is read: no output may be written over one.
    pub(super) fn files(&self) -> Vec<&Path> {
        let log = self.reading.xl_dmesg.as_deref();
        std::iter::once(self.file.as_path()).chain(log).collect()
    }

    pub(super) fn is_stdin(&self) -> bool {
        is_dash(&self.file)
    }

    /// Whether the trace can be read twice.
    pub(super) fn is_rereadable(&self) -> bool {
        std::fs::metadata(&self.file).is_ok_and(|meta| meta.is_file()) && !self.is_stdin()
    }

    pub(super) fn failure(&self, source: Error) -> Failure {
        Failure::Trace { name: self.name(), source }
    }

    pub(super) fn summarise(&self) -> Result<Summary, Failure> {
        crate::summarise(self.open()?, &self.reading.options())
            .map_err(|source| self.failure(source))
    }

    /// TSC ticks a second for a command that prints times as it reads: given, or measured on the
    /// trace beforehand. `None` on a pipe, which cannot be read twice.
    pub(super) fn clock(&self) -> Result<Option<f64>, Failure> {
        if self.reading.cpu_hz.is_some() || self.is_stdin() {
            return Ok(self.reading.cpu_hz);
        }
        // What is not there, or a folder, is no pipe. (A pipe can be opened only once.)
        match std::fs::metadata(&self.file) {
            Ok(meta) if meta.is_dir() => return Err(self.is_folder()),
            Ok(meta) if !meta.is_file() => return Ok(None),
            Ok(_) => {}
            Err(source) => return Err(Failure::Open { name: self.name(), source }),
        }
        let clock = crate::calibrate(self.open()?, &self.reading.options())
            .map_err(|source| self.failure(source))?;
        Ok(clock.hz)
    }

    /// Adds the corrections the trace itself calls for, reading it as often as that takes.
    pub(super) fn fix_skew(&mut self) -> Result<Fixed, Failure> {
        if !self.is_rereadable() {
            let text = "--fix-skew reads the trace more than once, which a pipe does not allow; save it to a file";
            return Err(Failure::Usage(text.into()));
        }
        let mut options = self.reading.options();
        let fixed = crate::fix_skew(|| self.open(), |source| self.failure(source), &mut options)?;
        self.reading.tsc_offsets = options.read.tsc_offsets;
        self.reading.tsc_drifts = options.read.tsc_drifts;
        self.reading.tsc_open = options.read.tsc_open;
        Ok(fixed)
    }

    /// The correction of a pCPU in use: ticks, and more for each tick.
    pub(super) fn correction(&self, cpu: u32) -> (i64, f64) {
        let offset = self.reading.tsc_offsets.iter().find(|&&(of, _)| of == cpu);
        let drift = self.reading.tsc_drifts.iter().find(|drift| drift.cpu == cpu);
        (offset.map_or(0, |&(_, ticks)| ticks), drift.map_or(0.0, |drift| drift.per_tick))
    }
}

/// A part of the trace.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Window {
    /// Begin so many seconds after the first record
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(super) from: Option<f64>,
    /// End so many seconds after the first record; what is there at this very moment is left out
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(super) to: Option<f64>,
}

impl Window {
    /// Refuses a window that ends before it begins.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match (self.from, self.to) {
            (Some(from), Some(to)) if to <= from => Err(Failure::Usage(format!(
                "--from {from} --to {to}: the window ends before it begins"
            ))),
            (_, Some(0.0)) => {
                Err(Failure::Usage("--to 0: the window ends where the trace begins".into()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a window that begins behind the end of the trace, `ticks` after its first record.
    pub(super) fn reached(&self, ticks: u64, hz: Option<f64>, file: &str) -> Result<(), Failure> {
        let length = ticks as f64 / hz.unwrap_or(1.0);
        let unit = if hz.is_some() { "s" } else { "ticks" };
        match self.from {
            Some(from) if from > length => Err(Failure::Usage(format!(
                "{file}: the trace ends before --from {from}, {length} {unit} after its first record"
            ))),
            _ => Ok(()),
        }
    }

    /// Where it begins and ends, in ticks after the first record: what is at its end is no part of
    /// it.
    pub(super) fn ticks(&self, hz: f64) -> (u64, Option<u64>) {
        (self.from.map_or(0, |from| ticks(from, hz)), self.to.map(|to| ticks(to, hz)))
    }

    pub(super) fn is_given(&self) -> bool {
        self.from.is_some() || self.to.is_some()
    }

    /// Refuses a window that holds no tick, and says so if it is in ticks, for a command that takes
    /// it so.
    pub(super) fn unit(&self, hz: Option<f64>, input: &Input) -> Result<(), Failure> {
        if let (from, Some(to)) = self.ticks(hz.unwrap_or(1.0))
            && to <= from
        {
            return Err(Failure::Usage(TOO_SHORT.into()));
        }
        if self.is_given() && hz.is_none() {
            say(format_args!(
                "{}: the TSC frequency is not known: --from and --to count ticks (--cpu-hz or --xl-dmesg \
                 make them seconds)",
                input.name()
            ));
        }
        Ok(())
    }
}

/// The nearest number of ticks.
pub(super) fn ticks(seconds: f64, hz: f64) -> u64 {
    (seconds * hz).round() as u64
}

/// Whether a name stands for standard input or output.
pub(super) fn is_dash(name: &Path) -> bool {
    name.as_os_str() == "-"
}

/// No TSC goes further, neither in seconds nor in ticks.
const LATEST: f64 = u64::MAX as f64;

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=LATEST).contains(&seconds) => Ok(seconds),
        _ => Err("seconds after the first record, such as 1.5".into()),
    }
}

fn parse_hz(text: &str) -> Result<f64, String> {
    let text = text.strip_suffix("Hz").unwrap_or(text);
    let (number, factor) = match text.strip_suffix(['G', 'g']) {
        Some(number) => (number, 1e9),
        None => match text.strip_suffix(['M', 'm']) {
            Some(number) => (number, 1e6),
            None => (text, 1.0),
        },
    };
    match number.trim().parse::<f64>() {
        Ok(hz) if (1e6..1e12).contains(&(hz * factor)) => Ok(hz * factor),
        _ => Err("a frequency from 1M to 1000G, such as 2.8G or 2800000000".into()),
    }
}

/// Xen writes "Detected 2793.437 MHz processor." when it boots.
fn hz_in_log(log: &str) -> Option<f64> {
    let found = log.lines().rev().find_map(|line| {
        let (_, after) = line.split_once("Detected ")?;
        after.split_once(" MHz processor")?.0.trim().parse::<f64>().ok()
    });
    found.map(|mhz| mhz * 1e6).filter(|hz| (1e6..1e12).contains(hz))
}

fn parse_offset(text: &str) -> Result<(u32, i64), String> {
    text.split_once('=')
        .and_then(|(cpu, ticks)| Some((cpu.parse().ok()?, ticks.parse().ok()?)))
        .ok_or_else(|| "PCPU=TICKS, such as 3=-1200".into())
}

/// Parses `d1v0`.
pub(super) fn parse_vcpu(text: &str) -> Result<VcpuId, String> {
    text.strip_prefix('d')
        .and_then(|rest| rest.split_once('v'))
        .and_then(|(domain, vcpu)| {
            Some(VcpuId { domain: domain.parse().ok()?, vcpu: vcpu.parse().ok()? })
        })
        .ok_or_else(|| "a vCPU as d1v0: domain 1, vCPU 0".into())
}

/// A window that begins behind the end of the trace.
pub(super) fn beyond(input: &Input, window: Window, bounds: Bounds) -> Failure {
    if bounds.to.is_some_and(|to| to <= bounds.from) {
        return Failure::Usage(TOO_SHORT.into());
    }
    let (name, from) = (input.name(), window.from.unwrap_or(0.0));
    Failure::Usage(format!("{name}: the trace ends before --from {from}"))
}

const TOO_SHORT: &str = "--from and --to: the window is shorter than a tick of the TSC";

#[cfg(test)]
mod tests {
    use super::hz_in_log;

    #[test]
    fn frequency_of_xens_log() {
        let log = "(XEN) Xen version 4.17\n(XEN) Detected 2793.437 MHz processor.\n(XEN) EFI\n";
        assert_eq!(hz_in_log(log), Some(2_793_437_000.0));
        assert_eq!(hz_in_log("(XEN) Xen version 4.17"), None);
        assert_eq!(hz_in_log("Detected many MHz processor."), None);
    }
}
