//! What the numbers of `Adaptive` are worth on machines one has not: acquisitions a second and the
//! longest wait, as a table in Markdown.
//!
//! ```console
//! $ cargo run --release -p pvlock-sim --example horizon
//! $ cargo run --release -p pvlock-sim --example horizon -- 128 64 8      # vCPUs, pCPUs, locks
//! ```
//!
//! Owns the lists of variants and machines. The same command prints the same table.

use std::error::Error;

use pvlock::{Adaptive, AdaptiveWithin, KickAtUnlock, Policy};
use pvlock_sim::{Config, Failure, Report, Time, simulate_with};

const BUDGET: u64 = Adaptive::BUDGET;
const HORIZON: u64 = Adaptive::HORIZON.expect("its thefts are bounded");
const PER_CPU: u64 = Adaptive::HORIZON_PER_CPU;

/// A line of the table: its name, and what simulates it.
type Variant = (&'static str, fn(&Config) -> Result<Report, Failure>);

const VARIANTS: [Variant; 9] = [
    ("`kick-at-unlock`", simulate_with::<KickAtUnlock>),
    ("`adaptive`", simulate_with::<Adaptive>),
    ("horizon 0.5 ms", simulate_with::<AdaptiveWithin<BUDGET, 500_000>>),
    ("horizon 2 ms", simulate_with::<AdaptiveWithin<BUDGET, 2_000_000>>),
    ("horizon 8 ms", simulate_with::<AdaptiveWithin<BUDGET, 8_000_000>>),
    ("horizon 32 ms", simulate_with::<AdaptiveWithin<BUDGET, 32_000_000>>),
    ("no horizon", simulate_with::<AdaptiveWithin<BUDGET, { u64::MAX }>>),
    ("budget 10 us", simulate_with::<AdaptiveWithin<10_000, HORIZON, PER_CPU>>),
    ("budget 200 us", simulate_with::<AdaptiveWithin<200_000, HORIZON, PER_CPU>>),
];

/// vCPUs, pCPUs and locks.
type Machine = [usize; 3];

const MACHINES: [Machine; 5] =
    [[64, 64, 8], [128, 64, 8], [256, 64, 8], [512, 64, 8], [1024, 256, 32]];

fn main() -> Result<(), Box<dyn Error>> {
    let asked: Vec<usize> =
        std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let machines = match asked[..] {
        [] => MACHINES.to_vec(),
        [vcpus, pcpus, locks] => vec![[vcpus, pcpus, locks]],
        _ => return Err("three numbers: vCPUs, pCPUs and locks".into()),
    };
    print!("| thousand acquisitions a second · longest wait in ms |");
    machines.iter().for_each(|[vcpus, pcpus, locks]| {
        print!(" {vcpus} on {pcpus}, {locks} locks |");
    });
    println!("\n|---|{}", "---|".repeat(machines.len()));
    for (name, simulate) in VARIANTS {
        print!("| {name} |");
        for &[vcpus, pcpus, locks] in &machines {
            let config = Config {
                vcpus,
                pcpus,
                locks,
                critical: "2us".parse()?,
                outside: "uniform:15us..45us".parse()?,
                spin: "50us".parse()?,
                turn: "129ns".parse()?,
                hypercall: "5us".parse()?,
                // As the lab's trace of 4 vCPUs on 1 pCPU has them: half take 88 us.
                wake: "uniform:70us..106us".parse()?,
                acquisitions: u64::MAX,
                duration: Time::ms(100),
                ..Config::default()
            };
            let report = simulate(&config)?;
            let longest = report.wait_ns.max as f64 / 1e6;
            print!(" {:.0} · {longest:.1} |", report.per_second / 1e3);
        }
        println!();
    }
    Ok(())
}
