//! The command line of `pvlab bench`.
//!
//! Owns its options and what goes to standard output. Running and reporting are its neighbours'
//! business.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use experiment::{Linux, Lock, Policy};

use super::boot::Request;
use super::dom0::{self, Batch};
use super::folder::{SCHEMA, SHIFT, SLICE_US, START_AFTER_MS, Setup, WINDOW_MS};
use super::matrix::{Cell, Matrix, SCENARIO, Section, Selection, ablation};
use super::page;
use super::report::Report;
use super::run;
use crate::host;
use crate::interrupt;
use crate::lab::Repeatable;
use crate::output;
use crate::progress::Progress;
use crate::report::Mode;
use crate::scenario::Library;

/// `pvlab bench`
#[derive(Args)]
pub struct Arguments {
    /// A topology; may be given several times. Without it: all.
    #[arg(long = "topology", value_name = "NAME")]
    topologies: Vec<String>,
    /// A lock; may be given several times. Without it: all of the guest's, linux, linux-nopvspin,
    /// linux-50us.
    #[arg(long = "lock", value_name = "LOCK")]
    locks: Vec<Lock>,
    /// What each mechanism of adaptive is worth: adaptive, all its variants, and kick-at-unlock;
    /// besides them the locks that --lock names.
    #[arg(long)]
    ablation: bool,
    /// Work inside and outside the lock in microseconds, such as 2/4; may be given several times.
    /// Without it: 0.2/0.4, 2/4, 20/40, 500/100.
    #[arg(long = "section", value_name = "IN/OUT")]
    sections: Vec<Section>,
    /// A seed; may be given several times. Without it: 1, 2, 3.
    #[arg(long = "seed", value_name = "N")]
    seeds: Vec<u64>,
    /// One seed, one- and two-pCPU topologies.
    #[arg(long)]
    quick: bool,
    /// Emulate in parallel, each pCPU on a core of this machine: noisy, with real concurrency.
    /// Without it, on a machine that is no Xen host, instructions are counted, and the same command
    /// gives the same figures.
    #[arg(long)]
    parallel: bool,
    /// In repeatable mode: an instruction lasts 2^SHIFT nanoseconds of virtual time.
    #[arg(long, default_value_t = SHIFT, value_parser = clap::value_parser!(u8).range(0..=10))]
    shift: u8,
    /// In repeatable mode: the longest turn of a pCPU, in microseconds of virtual time.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = SLICE_US, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    slice: u64,
    /// In repeatable mode: how many hosts are emulated at once; the figures are the same. Without
    /// it: one for each core of this machine.
    #[arg(long, value_name = "N", conflicts_with = "parallel", value_parser = clap::value_parser!(u8).range(1..))]
    jobs: Option<u8>,
    /// Xen's scheduler in the lab, such as credit. Without it: Xen's own choice.
    #[arg(long, value_name = "NAME", value_parser = ["credit", "credit2"])]
    scheduler: Option<String>,
    /// How long each cell is measured.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = WINDOW_MS, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    window: u64,
    /// How long after the last order to the domains the window begins.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = START_AFTER_MS, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    start_after: u64,
    /// Do not count kicks in the hypervisor's trace.
    #[arg(long)]
    no_trace: bool,
    /// In repeatable mode: with a NOP for each PAUSE, in the guests and around Linux' spin loops.
    /// The emulator ends a pCPU's turn at a PAUSE, so that spinning is nearly free with it;
    /// without, a spinner slows the holder.
    #[arg(long, conflicts_with = "parallel")]
    no_pause: bool,
    /// Run cells again that failed before.
    #[arg(long)]
    again: bool,
    /// What the others are compared with. Without it: linux; with --ablation: adaptive.
    #[arg(long, value_name = "LOCK")]
    baseline: Option<Lock>,
    /// Print a command a cell instead of running them: for GNU parallel, Slurm, or by hand.
    #[arg(long)]
    list: bool,
    /// Make one report, in --out, of the folders given here, wherever they were run.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    collect: Vec<PathBuf>,
    /// Where cells and report go. With --list: the folder in which each cell gets one of its own.
    #[arg(long, value_name = "DIR", default_value = "pvlab-out/bench")]
    out: PathBuf,
    /// Boot this guest image instead of the built-in one.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// On a Xen host, for the locks of Linux: the kernel of its domains, as in /boot.
    #[arg(long, value_name = "FILE", requires = "linux_tree")]
    linux_kernel: Option<PathBuf>,
    /// With --linux-kernel: the tree to build its modules in, as in /lib/modules/VERSION/build.
    #[arg(long, value_name = "DIR", requires = "linux_kernel")]
    linux_tree: Option<PathBuf>,
    /// A folder of scenarios to use instead of the built-in ones; a topology NAME is its scenario
    /// bench-NAME.
    #[arg(long, value_name = "DIR")]
    configs: Option<PathBuf>,
}

/// Runs, lists or collects. Exit code 1 where a cell has failed.
///
/// # Errors
///
/// If the input or the surroundings do not allow it.
pub fn perform(mut arguments: Arguments, progress: &Progress) -> Result<ExitCode> {
    if arguments.ablation {
        arguments.locks.extend(ablation());
    }
    let usual = if arguments.ablation { Policy::Adaptive.into() } else { Linux::Stock.into() };
    let baseline = arguments.baseline.unwrap_or(usual);
    if !arguments.collect.is_empty() {
        let folders: Vec<&Path> = arguments.collect.iter().map(PathBuf::as_path).collect();
        return show(&Report::collect(&folders, baseline)?, &arguments.out);
    }
    let matrix = Matrix::new(&Selection {
        topologies: arguments.topologies.clone(),
        locks: arguments.locks.clone(),
        sections: arguments.sections.clone(),
        seeds: arguments.seeds.clone(),
        quick: arguments.quick,
    });
    let library = arguments.configs.clone().map_or(Library::Embedded, Library::Folder);
    check(&matrix, &library)?;
    let on_host = host::is_xen_host();
    let repeatable = (!on_host && !arguments.parallel).then(|| Repeatable {
        shift: arguments.shift,
        slice: Duration::from_micros(arguments.slice),
        ..Repeatable::default()
    });
    let mode = match (on_host, repeatable.is_some()) {
        (true, _) => Mode::Host,
        (false, true) => Mode::Repeatable,
        (false, false) => Mode::Parallel,
    };
    let setup = Setup {
        schema: SCHEMA,
        mode,
        shift: repeatable.map(|settings| settings.shift),
        slice_us: repeatable.map(|_| arguments.slice),
        window: Duration::from_millis(arguments.window),
        start_after: Duration::from_millis(arguments.start_after),
        scheduler: arguments.scheduler.clone(),
        trace: !arguments.no_trace,
        pause: !arguments.no_pause,
    };
    if arguments.list {
        for cell in &matrix.cells {
            output::print(format_args!("{}\n", command(cell, &setup, &arguments)))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if on_host
        && (arguments.parallel
            || arguments.scheduler.is_some()
            || arguments.jobs.is_some()
            || arguments.no_pause)
    {
        bail!(
            "--parallel, --jobs, --scheduler and --no-pause are the lab's, and this machine is a Xen host; leave them out"
        );
    }
    if !on_host {
        check_the_lab_holds(&matrix, &library)?;
    }
    // Instructions are counted: only then do hosts not disturb each other.
    let jobs = match (repeatable, arguments.jobs) {
        (None, _) => 1,
        (Some(_), Some(jobs)) => usize::from(jobs),
        (Some(_), None) => thread::available_parallelism().map_or(1, NonZero::get),
    };
    let request = Request {
        matrix,
        setup,
        repeatable,
        jobs,
        library,
        image: arguments.image,
        linux: arguments.linux_kernel.zip(arguments.linux_tree),
        again: arguments.again,
        out: arguments.out,
    };
    interrupt::install().context("cannot install signal handlers")?;
    let ran = run::run(&request, progress);
    // Whatever ended it: what is done is told.
    let report = Report::collect(&[&request.out], baseline)?;
    if let Err(error) = ran {
        page::write(&report, &request.out)?;
        let there = report.cells.len();
        return Err(error.context(format!(
            "{there} cells are kept in {}; the same command goes on with the rest",
            request.out.display()
        )));
    }
    show(&report, &request.out)
}

/// Whether each topology is a scenario, before anything starts.
fn check(matrix: &Matrix, library: &Library) -> Result<()> {
    let names = library.names()?;
    let known: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix(SCENARIO)).collect();
    for Cell { topology, .. } in &matrix.cells {
        if !known.contains(&topology.as_str()) {
            let place = library.place();
            bail!("there is no topology `{topology}`{place}; choose one of: {}", known.join(", "));
        }
    }
    Ok(())
}

/// Whether each topology has domains for which a lab has the pCPUs, before anything starts.
fn check_the_lab_holds(matrix: &Matrix, library: &Library) -> Result<()> {
    let topologies: BTreeSet<&str> = matrix.cells.iter().map(|cell| &*cell.topology).collect();
    for topology in topologies {
        library.load(&format!("{SCENARIO}{topology}"))?.fits_the_lab()?;
    }
    Ok(())
}

fn show(report: &Report, out: &Path) -> Result<ExitCode> {
    page::write(report, out)?;
    let page = out.join("report.html");
    output::print(format_args!("{}report: {}\n", report.tables(), page.display()))?;
    let failed = report.cells.iter().any(|done| done.outcome.is_err());
    Ok(if failed { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// The command of one cell, in a folder of its own.
fn command(cell: &Cell, setup: &Setup, arguments: &Arguments) -> String {
    let mut text = setup.command(cell);
    for (name, path) in [
        ("image", &arguments.image),
        ("linux-kernel", &arguments.linux_kernel),
        ("linux-tree", &arguments.linux_tree),
        ("configs", &arguments.configs),
    ] {
        if let Some(path) = path {
            text.push_str(&format!(" --{name} {}", path.display()));
        }
    }
    text.push_str(&format!(" --out {}", arguments.out.join(cell.to_string()).display()));
    text
}

/// `pvlab bench-host`: what `bench` does inside the lab. What is told goes to standard output, line
/// by line.
///
/// # Errors
///
/// As [`dom0::carry_out`].
pub fn carry_out(batch: &Path, out: &Path) -> Result<ExitCode> {
    interrupt::install().context("cannot install signal handlers")?;
    let text =
        fs::read_to_string(batch).with_context(|| format!("cannot read {}", batch.display()))?;
    let batch: Batch =
        serde_json::from_str(&text).with_context(|| format!("{} is no batch", batch.display()))?;
    let mut told = Ok(());
    dom0::carry_out(&batch, out, &mut |line| {
        if told.is_ok() {
            told = output::print(format_args!("{line}\n"));
        }
    })?;
    told?;
    Ok(ExitCode::SUCCESS)
}
