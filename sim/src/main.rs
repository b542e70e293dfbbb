//! The command line of the simulator, and nothing else.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use pvlock_sim::{Config, Policy, Report, simulate, table};
use serde_json::json;

/// Runs the real lock on simulated vCPUs in virtual time, and prints what each policy came to.
///
/// DIST is a time such as 2us, or uniform:1us..3us, or exp:2us (with this mean), or never, or measured:FILE:NAME: the
/// latency NAME (such as kick_to_wake) of a FILE that `kicktrace summary --json` wrote.
///
/// Exit codes: 0 all held; 1 something did not hold, and the command that shows it again was
/// printed; 2 there is no such simulation.
#[derive(Parser)]
#[command(name = "pvlock-sim", version)]
struct Arguments {
    /// Policies to run, side by side [default: all but as-posted]
    #[arg(long = "policy", value_enum, value_name = "POLICY")]
    policies: Vec<Policy>,
    /// Run so many seeds, from --seed on, and print no table but what fails
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: Config,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = arguments.config.check() {
        eprintln!("pvlock-sim: {error}");
        return ExitCode::from(2);
    }
    // A panic in a vCPU is a failure of the simulation, which tells it with all that belongs to it.
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(|| run(&arguments));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map_or("no reason given", String::as_str);
        eprintln!("pvlock-sim: {text}");
        ExitCode::from(2)
    })
}

fn run(arguments: &Arguments) -> ExitCode {
    let policies =
        if arguments.policies.is_empty() { &Policy::SOUND[..] } else { &arguments.policies };
    let first = arguments.config.seed;
    let begin = Instant::now();
    let mut reports: Vec<Report> = Vec::new();
    let mut acquisitions = 0;
    for seed in first..first.saturating_add(arguments.seeds.unwrap_or(1)) {
        for policy in policies {
            match simulate(&Config { seed, ..arguments.config.clone() }, *policy) {
                Ok(report) => {
                    acquisitions += report.acquisitions;
                    reports.push(report);
                }
                Err(failure) => {
                    eprintln!("{failure}");
                    return ExitCode::from(1);
                }
            }
        }
        if arguments.seeds.is_some() && !arguments.json {
            reports.clear();
        }
    }
    let shown = match arguments.seeds {
        _ if arguments.json => {
            format!("{:#}", json!({ "schema": 1, "runs": reports }))
        }
        Some(seeds) => format!("{seeds} seeds, {} policies each: all held", policies.len()),
        None => table(&reports),
    };
    // Whoever closed the pipe does not want to know.
    let _ = writeln!(std::io::stdout(), "{shown}");
    let seconds = begin.elapsed().as_secs_f64();
    eprintln!(
        "{acquisitions} acquisitions simulated in {seconds:.2} s, {:.0} a second",
        acquisitions as f64 / seconds
    );
    ExitCode::SUCCESS
}
