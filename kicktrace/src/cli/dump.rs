//! `kicktrace dump`: one line a record.

use std::io::{self, BufWriter, Write};

use clap::Args as ClapArgs;

use super::input::{Input, Window, parse_vcpu};
use super::{Failure, all_read, corrected};
use crate::analysis::VcpuId;
use crate::error::{Error, ErrorKind};
use crate::event;
use crate::output::record::{WhoRuns, name, subjects, text};
use crate::reader::{Record, Visit, read};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) input: Input,
    #[command(flatten)]
    pub(super) window: Window,
    /// Only records of this vCPU, d1v0: those that name it, and those of the pCPU it is on (may be
    /// repeated)
    #[arg(long = "vcpu", value_name = "dNvN", value_parser = parse_vcpu)]
    vcpus: Vec<VcpuId>,
    /// Only records of this pCPU (may be repeated)
    #[arg(long = "pcpu", value_name = "PCPU")]
    pcpus: Vec<u32>,
    /// Only events whose name or number begins like this: wake, switch, 0x00021 (may be repeated)
    #[arg(long = "event", value_name = "PREFIX", value_parser = parse_event)]
    events: Vec<String>,
    /// Print TSC values instead of seconds
    #[arg(long)]
    ticks: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // TSC values need no frequency, but for the seconds of a window.
    let needless = args.ticks && !args.window.is_given();
    if let Some(option) = args.input.reading.frequency_option().filter(|_| needless) {
        return Err(Failure::Usage(format!(
            "--ticks prints TSC values, for which {option} does nothing: leave one of them out"
        )));
    }
    let clock = if needless { None } else { args.input.clock()? };
    args.window.unit(clock, &args.input)?;
    let mut lines = Lines {
        args,
        clock,
        window: args.window.ticks(clock.unwrap_or(1.0)),
        out: BufWriter::new(io::stdout().lock()),
        who: WhoRuns::default(),
        first: None,
        wanted: Wanted::of(args),
    };
    let done = read(args.input.open()?, &args.input.reading.options().read, &mut lines);
    lines.out.flush()?;
    let reading = done.map_err(|source| args.input.failure(source))?;
    lines.unseen()?;
    args.window.reached(reading.ticks(), lines.clock, &args.input.name())?;
    corrected(&args.input, &reading)?;
    all_read(&args.input, &reading)
}

/// Prints the records that are asked for, one a line.
struct Lines<'a, W> {
    args: &'a Args,
    clock: Option<f64>,
    /// Where it begins and ends, in ticks after the first record.
    window: (u64, Option<u64>),
    out: W,
    who: WhoRuns,
    first: Option<u64>,
    wanted: Wanted,
}

/// What was asked for and has not been seen yet.
struct Wanted {
    domains: Vec<u16>,
    vcpus: Vec<VcpuId>,
    pcpus: Vec<u32>,
}

impl Wanted {
    fn of(args: &Args) -> Self {
        let domains = args.input.reading.domains.clone();
        Self { domains, vcpus: args.vcpus.clone(), pcpus: args.pcpus.clone() }
    }

    fn is_empty(&self) -> bool {
        self.domains.is_empty() && self.vcpus.is_empty() && self.pcpus.is_empty()
    }

    fn seen(&mut self, record: &Record<'_>, on: Option<VcpuId>) {
        self.pcpus.retain(|&cpu| cpu != record.cpu);
        for id in subjects(record).into_iter().chain([on]).flatten() {
            self.domains.retain(|&domain| domain != id.domain);
            self.vcpus.retain(|&vcpu| vcpu != id);
        }
    }
}

impl<W: Write> Visit for Lines<'_, W> {
    fn record(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let before = self.who.on(record.cpu);
        self.who.record(record);
        let start = *self.first.get_or_insert(record.tsc);
        let on = self.who.on(record.cpu);
        if !self.wanted.is_empty() {
            self.wanted.seen(record, on);
        }
        let ticks = record.tsc.saturating_sub(start);
        let (from, to) = self.window;
        let inside = ticks >= from && to.is_none_or(|to| ticks < to);
        if !inside || !self.args.wants(record, [before, on]) {
            return Ok(());
        }
        self.line(record, ticks, on.or(before)).map_err(|error| ErrorKind::Output(error).into())
    }

    /// Of a live trace each record is shown as soon as its place is known.
    fn caught_up(&mut self) -> Result<(), Error> {
        self.out.flush().map_err(|error| ErrorKind::Output(error).into())
    }
}

impl<W: Write> Lines<'_, W> {
    /// An error if something was asked for that no record of the trace names.
    fn unseen(&self) -> Result<(), Failure> {
        let Wanted { domains, vcpus, pcpus } = &self.wanted;
        let domains = domains.iter().map(|id| format!("domain {id}"));
        let vcpus = vcpus.iter().map(|id| format!("vCPU {id}"));
        let pcpus = pcpus.iter().map(|id| format!("pCPU {id}"));
        let absent: Vec<_> = domains.chain(vcpus).chain(pcpus).collect();
        if absent.is_empty() {
            return Ok(());
        }
        let (file, absent) = (self.args.input.name(), absent.join(", "));
        Err(Failure::Usage(format!("{file}: no record of {absent}, which was asked for")))
    }

    fn line(&mut self, record: &Record<'_>, ticks: u64, on: Option<VcpuId>) -> io::Result<()> {
        match self.clock {
            _ if self.args.ticks => write!(self.out, "{:>18}", record.tsc)?,
            Some(hz) => write!(self.out, "{:>14.9}", ticks as f64 / hz)?,
            None => write!(self.out, "{ticks:>14}")?,
        }
        let on = on.map_or_else(
            || "?".into(),
            |id| match u32::from(id.domain) {
                event::DOMID_IDLE => "idle".into(),
                _ => id.to_string(),
            },
        );
        writeln!(self.out, " p{:<3} {on:<7} {}", record.cpu, text(record))
    }
}

impl Args {
    /// Whether the record is asked for; `on` ran on its pCPU before and after it.
    fn wants(&self, record: &Record<'_>, on: [Option<VcpuId>; 2]) -> bool {
        let domains = &self.input.reading.domains;
        let wanted = |id: VcpuId| {
            (domains.is_empty() || domains.contains(&id.domain))
                && (self.vcpus.is_empty() || self.vcpus.contains(&id))
        };
        let everyone = domains.is_empty() && self.vcpus.is_empty();
        let mut concerned = on.into_iter().chain(subjects(record)).flatten();
        (everyone || concerned.any(wanted))
            && (self.pcpus.is_empty() || self.pcpus.contains(&record.cpu))
            && (self.events.is_empty() || named(record.event, &self.events))
    }
}

fn named(event: u32, prefixes: &[String]) -> bool {
    let (name, number) = (name(event), format!("{event:#010x}"));
    prefixes.iter().any(|prefix| name.starts_with(prefix) || number.starts_with(prefix))
}

/// Takes the beginning of a name, or of a number as it is printed.
fn parse_event(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let is_number = text
        .strip_prefix("0x")
        .is_some_and(|digits| digits.len() <= 8 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
    if is_number || !text.is_empty() && event::names().any(|name| name.starts_with(&text)) {
        return Ok(text);
    }
    let mut names: Vec<_> = event::names().collect();
    names.sort_unstable();
    names.dedup();
    Err(format!(
        "no event's name begins like this; there are {}, and numbers such as 0x0002800a",
        names.join(", ")
    ))
}
