//! `kicktrace generate`: a synthetic trace, for trying things out and for benchmarks.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

use super::{Failure, sink};
use crate::synth::{Guest, Kicks, Plan, generate};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PolicyArg {
    KickTwice,
    KickAtUnlock,
}

impl From<Kicks> for PolicyArg {
    fn from(kicks: Kicks) -> Self {
        match kicks {
            Kicks::Twice => PolicyArg::KickTwice,
            Kicks::AtUnlock => PolicyArg::KickAtUnlock,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Size of the trace in MB
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    mb: u64,
    /// pCPUs of the host
    #[arg(long, default_value_t = Plan::default().pcpus, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pcpus: u32,
    /// Domains
    #[arg(long, default_value_t = Plan::default().domains, value_parser = clap::value_parser!(u16).range(1..=512))]
    domains: u16,
    /// vCPUs of each domain
    #[arg(long, default_value_t = Plan::default().vcpus, value_parser = clap::value_parser!(u16).range(1..=128))]
    vcpus: u16,
    /// Type of the guests
    #[arg(long, value_enum, default_value_t = Plan::default().guest)]
    guest: Guest,
    /// When their lock kicks
    #[arg(long, value_enum, default_value_t = Plan::default().kicks.into())]
    policy: PolicyArg,
    /// Let the guests mark waits, kicks and acquisitions
    #[arg(long)]
    markers: bool,
    /// Everything random depends on it alone
    #[arg(long, default_value_t = Plan::default().seed)]
    seed: u64,
    /// Where to write it; `-` for standard output, which must not be a terminal
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let plan = Plan {
        seed: args.seed,
        pcpus: args.pcpus,
        domains: args.domains,
        vcpus: args.vcpus,
        guest: args.guest,
        kicks: match args.policy {
            PolicyArg::KickTwice => Kicks::Twice,
            PolicyArg::KickAtUnlock => Kicks::AtUnlock,
        },
        markers: args.markers,
        duration_ns: u64::MAX,
        max_bytes: args.mb * 1_000_000,
        ..Plan::default()
    };
    let mut out = sink::create(&args.output, sink::Kind::Binary, &[])?;
    generate(&plan, &mut out)?;
    out.flush()?;
    Ok(())
}
