//! `kicktrace dump`: one line a record.

use std::io::{self, BufWriter, Write};

use clap::Args as ClapArgs;

use super::Failure;
use super::input::{Input, Window, parse_vcpu};
use crate::analysis::VcpuId;
use crate::error::{Error, ErrorKind};
use crate::event;
use crate::output::record::{WhoRuns, name, subjects, text};
use crate::reader::{Record, read};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    window: Window,
    /// Only records of this vCPU, d1v0: those that name it, and those of the pCPU it is on (may be
    /// repeated)
    #[arg(long = "vcpu", value_name = "dNvN", value_parser = parse_vcpu)]
    vcpus: Vec<VcpuId>,
    /// Only records of this pCPU (may be repeated)
    #[arg(long = "pcpu", value_name = "PCPU")]
    pcpus: Vec<u32>,
    /// Only events whose name or number begins so: wake, switch, 0x00021 (may be repeated)
    #[arg(long = "event", value_name = "PREFIX")]
    events: Vec<String>,
    /// Print TSC values instead of seconds
    #[arg(long)]
    ticks: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let clock = if args.ticks { None } else { args.input.clock()? };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut who = WhoRuns::default();
    let mut first = None;
    let domains = &args.input.reading.domains;
    let mut line = |record: &Record<'_>| -> Result<(), Error> {
        let before = who.on(record.cpu);
        who.record(record);
        let start = *first.get_or_insert(record.tsc);
        if !args.window.holds(record.tsc, start, clock) {
            return Ok(());
        }
        let concerned = [before, who.on(record.cpu)].into_iter().chain(subjects(record)).flatten();
        let wanted = |id: VcpuId| {
            (domains.is_empty() || domains.contains(&id.domain))
                && (args.vcpus.is_empty() || args.vcpus.contains(&id))
        };
        let everyone = domains.is_empty() && args.vcpus.is_empty();
        if !everyone && !concerned.into_iter().any(wanted)
            || !args.pcpus.is_empty() && !args.pcpus.contains(&record.cpu)
            || !args.events.is_empty() && !named(record.event, &args.events)
        {
            return Ok(());
        }
        let ticks = record.tsc.saturating_sub(start);
        let print = |out: &mut dyn Write| -> io::Result<()> {
            match clock {
                Some(hz) => write!(out, "{:>14.9}", ticks as f64 / hz)?,
                None if args.ticks => write!(out, "{:>18}", record.tsc)?,
                None => write!(out, "{ticks:>14}")?,
            }
            let on = who.on(record.cpu).or(before);
            let on = on.map_or_else(
                || "?".into(),
                |id| match u32::from(id.domain) {
                    event::DOMID_IDLE => "idle".into(),
                    _ => id.to_string(),
                },
            );
            writeln!(out, " p{:<3} {on:<7} {}", record.cpu, text(record))
        };
        print(&mut out).map_err(|error| ErrorKind::Output(error).into())
    };
    let options = args.input.reading.options();
    let done = read(args.input.open()?, &options.read, &mut line);
    out.flush()?;
    done.map_err(|source| args.input.failure(source))?;
    Ok(())
}

fn named(event: u32, prefixes: &[String]) -> bool {
    let (name, number) = (name(event), format!("{event:#010x}"));
    prefixes.iter().any(|prefix| name.starts_with(prefix) || number.starts_with(prefix))
}
