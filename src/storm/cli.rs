//! The command line of `pvlab storm`.
//!
//! Owns its options and what goes to standard output.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use experiment::record::DomainReport;
use experiment::{DomainType, EventAbi, Params, Policy};

use super::{Account, Session, kinds, prepare};
use crate::image;
use crate::interrupt::{self, Interrupted};
use crate::lab::commands::Packages;
use crate::lab::{Boot, Lab};
use crate::output;
use crate::progress::Progress;
use crate::report::{duration, grouped};

/// The fault that took most operations to show came at this one.
const ENOUGH: usize = 337;

/// The longest operation, on a machine that has much else to do.
const LONGEST: Duration = Duration::from_secs(120);

/// `pvlab storm`
#[derive(Args)]
pub struct Arguments {
    /// Seed of the order and of the workload; the same again for the same seed. Without it: a new one.
    #[arg(long)]
    seed: Option<u64>,
    /// How long, in seconds.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// How often every kind of operation comes at least, even if that takes longer.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// How the domain boots.
    #[arg(long = "type", value_name = "TYPE", default_value_t, value_parser = PossibleValuesParser::new(DomainType::NAMES).try_map(|name| name.parse::<DomainType>()))]
    kind: DomainType,
    /// The lock under test.
    #[arg(long, default_value_t = Params::default().policy, value_parser = PossibleValuesParser::new(Policy::NAMES).try_map(|name| name.parse::<Policy>()))]
    policy: Policy,
    /// The event channel ABI. Without it the guest chooses.
    #[arg(long, value_name = "ABI", value_parser = PossibleValuesParser::new(EventAbi::NAMES).try_map(|name| name.parse::<EventAbi>()))]
    events: Option<EventAbi>,
    /// Go on with the storm in --out, where it was cut short; everything else is as it was asked for then.
    #[arg(long, conflicts_with_all = ["seed", "seconds", "rounds", "kind", "policy", "events"])]
    resume: bool,
    #[command(flatten)]
    packages: Packages,
    /// Where the consoles go, and how far it came.
    #[arg(long, value_name = "DIR", default_value = "pvlab-out/storm")]
    out: PathBuf,
}

/// Exit code 1 where the domain did not survive, or a lock did not.
///
/// # Errors
///
/// If the input or the surroundings do not allow it, or a signal ended it.
pub fn perform(arguments: &Arguments, progress: &Progress) -> Result<ExitCode> {
    let out = &arguments.out;
    let (session, parts, mut account) = match arguments.resume {
        true => Session::resume(out)?,
        false => {
            Session::examine(out)?;
            (arguments.session(), 0, Account::default())
        }
    };
    interrupt::install().context("cannot install signal handlers")?;
    let storm = session.storm(parts + 1, &account);
    let mut boot = Boot::script("", out);
    // Room for the operations that come in any case, and for booting.
    let obliged = LONGEST.saturating_mul(u32::try_from(storm.least).unwrap_or(u32::MAX));
    boot.deadline = (storm.limit.unwrap_or_default().max(obliged)) + Duration::from_secs(600);
    boot.live = true;
    prepare(&mut boot, std::slice::from_ref(&storm), image::load(None)?);
    let lab = Lab::prepare_release(arguments.packages.release.as_ref(), progress)?;
    lab.check(&boot)?;
    if !arguments.resume {
        session.begin(out)?;
    }
    output::print(format_args!("seed {}\n", session.seed))?;
    let step = progress.step("waiting for the domain");
    let ran = lab.run(&boot, &mut |line| {
        progress.detail(line);
        if let Some((_, what)) = line.split_once("@storm ") {
            step.update(what);
        }
    });
    if let Err(error) = ran {
        let error = anyhow::Error::from(error);
        return Err(match interrupt::check() {
            Err(Interrupted) => error.context(format!(
                "the storm was cut short; `pvlab storm --resume --out {}` goes on with it",
                out.display()
            )),
            Ok(()) => error,
        });
    }
    step.done("the storm is over");
    let (report, last) = match storm.verdict(out) {
        Ok(found) => found,
        Err(error) => {
            output::print(format_args!("{error:#}\n"))?;
            return Ok(ExitCode::from(1));
        }
    };
    let before = account.acquisitions();
    account.add(&last);
    output::print(summary(&session, &account, before, &report))?;
    Ok(if session.lacks(&account).is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

impl Arguments {
    fn session(&self) -> Session {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH);
        Session {
            seed: self.seed.unwrap_or_else(|| clock.map_or(1, |time| time.as_secs())),
            seconds: self.seconds,
            rounds: self.rounds,
            kind: self.kind,
            policy: self.policy,
            events: self.events,
        }
    }
}

/// What a person reads in the end. `before` are the acquisitions of the parts that were cut short.
fn summary(session: &Session, account: &Account, before: u64, report: &DomainReport) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["operation", "times", "acquisitions survived", "fewest"]);
    for kind in kinds(session.kind) {
        let survived = account.of(kind);
        let figures = [survived.times, survived.acquisitions, survived.fewest].map(grouped);
        table.add_row([&[kind.to_owned()], figures.as_slice()].concat());
    }
    for index in 1..4 {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let operations = account.operations();
    let total = before.saturating_add(report.acquisitions);
    let Session { kind, policy, .. } = session;
    let mut text = format!(
        "{table}\nacquisitions survived: from the operation until the domain was next asked; fewest: of one time\n\
         {} domain, {policy}, {} event channels: {} operations in {} s, {} acquisitions\n",
        kind.to_string().to_uppercase(),
        report.events,
        grouped(operations as u64),
        account.seconds(),
        grouped(total),
    );
    let last = grouped(report.acquisitions);
    text += &match before {
        0 => "counter exact, no wake-up lost\n".to_owned(),
        before => format!(
            "counter exact, no wake-up lost, in the last part's {last}; the parts before made {} and never \
             reported: no operation failed there\n",
            grouped(before)
        ),
    };
    text += &format!("longest wait for a lock: {}\n", duration(report.latency.max()));
    for (name, n) in report.counters.iter().filter(|(_, n)| **n > 0) {
        text += &format!("{name:24} {n}\n");
    }
    let lacks = session.lacks(account);
    if !lacks.is_empty() {
        text += &format!("Too few: {}. Go on with --resume.\n", lacks.join(", "));
    }
    if operations < ENOUGH {
        text += &format!(
            "{operations} operations prove nothing: a fault has shown itself at the {ENOUGH}th only. Give it more \
             --seconds, or other --seed.\n"
        );
    }
    text
}
