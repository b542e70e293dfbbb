//! `kicktrace capture`: the xentrace command for a host.

use std::io::{self, Write};

use clap::{Args as ClapArgs, ValueEnum};

use super::Failure;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Guests {
    Pv,
    Pvh,
    Both,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// pCPUs of the host (`xl info`: nr_cpus)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4095))]
    pcpus: u32,
    /// Types of the guests to watch
    #[arg(long, value_enum, default_value_t = Guests::Pv)]
    guests: Guests,
    /// The guests mark waits, kicks and acquisitions (pvlab's do)
    #[arg(long)]
    markers: bool,
    /// Kicks expected in a second, in all guests together
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    kicks: u64,
    /// Seconds to trace
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Where xentrace writes; tmpfs loses fewest records
    #[arg(long, value_name = "FILE", default_value = "/dev/shm/kick.bin", value_parser = parse_out)]
    out: String,
}

/// A name as a shell takes it.
fn parse_out(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a file, such as /dev/shm/kick.bin".into());
    }
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    Ok(match text.chars().all(plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    })
}

/// Scheduler classes 1 and 8, and what a PV or a PVH guest needs besides.
const SCHED: u32 = 0x0002_9000;
const PV: u32 = 0x0020_1000;
const PVH: u32 = 0x0008_3000;
const MARKS: u32 = 0x0800_0000;

/// Bytes one contended hand-over leaves in the trace (kick, wake, poll, block and two switches); a
/// mark costs a hypercall record and its own.
const BYTES_PV: u64 = 241;
const BYTES_PVH: u64 = 420;
const BYTES_MARKS: u64 = 150;

const PAGE: u64 = 4096;

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mask = SCHED
        | if args.guests == Guests::Pvh { 0 } else { PV }
        | if args.guests == Guests::Pv { 0 } else { PVH }
        | if args.markers { MARKS } else { 0 };
    let cycle = if args.guests == Guests::Pv { BYTES_PV } else { BYTES_PVH }
        + if args.markers { BYTES_MARKS } else { 0 };
    let rate = args.kicks.saturating_mul(cycle);
    let pcpus = u64::from(args.pcpus);
    // Half a second of records in each ring: xentrace looks every 100 ms, and dom0 may be late.
    let wanted = (rate / pcpus / 2 / PAGE).next_power_of_two().max(256);
    let pages = wanted.min(most_pages(pcpus));
    let total = rate.saturating_mul(args.seconds);
    let mut out = io::stdout().lock();
    writeln!(out, "xentrace -D -S {pages} -T {} -e {mask:#010x} {}", args.seconds, args.out)?;
    writeln!(out)?;
    writeln!(out, "mask {mask:#010x}:")?;
    for (bits, what) in [
        (0x0002_1000, "runstate changes"),
        (0x0002_8000, "wakes, blocks, switches"),
        (0x0020_1000, "PV hypercalls (and traps and faults: they share the subclass)"),
        (0x0008_1000, "VM exits and entries"),
        (
            0x0008_2000,
            "hypercalls of PVH guests (the subclass also brings the scheduler's own records)",
        ),
        (MARKS, "the guests' marks"),
    ] {
        if mask & bits == bits {
            writeln!(out, "  {bits:#010x}  {what}")?;
        }
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    writeln!(
        out,
        "rings: {pages} pages a pCPU, {:.0} MiB in all; Xen keeps that memory until it reboots, and \
         -S works once per boot",
        mib(pages * PAGE * pcpus)
    )?;
    writeln!(
        out,
        "expected: {:.1} MiB a second, {:.0} MiB in {} s, at {} kicks a second",
        mib(rate),
        mib(total),
        args.seconds,
        args.kicks
    )?;
    if pages < wanted {
        writeln!(
            out,
            "warning: {wanted} pages would be better, but Xen cannot address more than {pages} a \
             pCPU on this host: watch for lost records (kicktrace check)"
        )?;
    }
    writeln!(
        out,
        "stop early with INT; give dom0 a pCPU of its own; then: kicktrace check {}",
        args.out
    )?;
    Ok(())
}

/// Xen keeps the rings' page numbers in a table with 16-bit offsets (xen/common/trace.c), whose
/// head is sized for 256 pCPUs.
fn most_pages(pcpus: u64) -> u64 {
    match pcpus {
        1 => 65_535 - 129,
        n => (65_535 - 129) / (n - 1),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn ring_limits_are_xens() {
        for (pcpus, pages) in
            [(8, 9343), (16, 4360), (32, 2109), (64, 1038), (128, 515), (256, 256)]
        {
            assert_eq!(super::most_pages(pcpus), pages);
        }
    }
}
