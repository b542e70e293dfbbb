//! The command line, and nothing else.
//!
//! Exit codes: 0 all is well; 1 an experiment ran and a check failed; 2 the input or the surroundings
//! did not allow it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use experiment::{Lock, Policy, Setting};
use pvlab::bench::{self, compare::Condition};
use pvlab::host::{self, Event, Toolstack};
use pvlab::lab::commands::{self, Packages};
use pvlab::lab::{Boot, Hypervisor, Mode, Overlay, Repeatable};
use pvlab::plan::{self, Choices, Plan};
use pvlab::progress::Progress;
use pvlab::report::{self, Results, Verdict};
use pvlab::run::{self, Request};
use pvlab::scenario::Library;
use pvlab::{doctor, image, interrupt, output, storm};

/// Runs paravirtual spinlock experiments on real Xen and reports every kick the hypervisor saw.
#[derive(Parser)]
#[command(version, propagate_version = true)]
#[command(after_help = "Begin with `pvlab doctor`, then `pvlab run solo-pv`.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Show every detail: the emulated host's console too.
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Show no progress: results and errors only.
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Say whether this machine is a Xen host, what it lacks, and how to get that.
    #[command(after_help = "Example: pvlab doctor && pvlab run solo-pv")]
    Doctor {
        #[command(flatten)]
        packages: Packages,
    },
    /// Run a scenario with each policy and compare them in a table.
    #[command(
        after_help = "Example: pvlab run overcommit-2x --policy kick-at-unlock --policy spin --out here"
    )]
    Run(RunArguments),
    #[command(after_help = "Example: pvlab bench --quick --out quick")]
    /// Run every lock in every topology with every section, and say which lock a Xen guest should have.
    Bench(Box<bench::cli::Arguments>),
    /// List the scenarios.
    #[command(after_help = "Example: pvlab scenarios --configs my-configs")]
    Scenarios {
        /// A folder of scenarios to use instead of the built-in ones.
        #[arg(long, value_name = "DIR")]
        configs: Option<PathBuf>,
    },
    /// Make the table of an earlier run again from the files it left.
    #[command(
        after_help = "Example: pvlab report pvlab-out/solo-pv --json | jq .policies[0].policy"
    )]
    Report {
        /// The run's folder.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// Print results.json instead of the table.
        #[arg(long)]
        json: bool,
    },
    /// Show in which figures two runs differ; exit code 1 if they do.
    #[command(after_help = "Example: pvlab compare A B")]
    Compare {
        /// One run's folder.
        a: PathBuf,
        /// The other's.
        b: PathBuf,
        /// Of two experiments (`pvlab bench`): exit code 1 only where a figure has changed so, such as rate<-5% or
        /// p999_ns>10%; may be given several times.
        #[arg(long, value_name = "FIGURE<PERCENT%")]
        fail_if: Vec<Condition>,
    },
    /// Pause, pin, save, restore, trigger, hot-plug a domain in random order while it tortures its locks.
    #[command(after_help = "Example: pvlab storm --type pvh --seconds 1200 --policy adaptive")]
    Storm(storm::cli::Arguments),
    /// Write the guest image out, for `xl create` by hand.
    #[command(after_help = "Example: pvlab image -o xen-guest.elf")]
    Image {
        /// The file to write; `-` is standard output.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Manage the Xen host that pvlab makes on a machine that is none.
    #[command(subcommand)]
    Lab(LabCommand),
    /// Read xentrace files: who kicked whom, and what it cost (the `kicktrace` program).
    #[command(disable_help_flag = true)]
    Kicktrace {
        /// What `kicktrace` takes; `pvlab kicktrace --help` tells.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    #[command(
        after_help = "Example: pvlab completions bash > ~/.local/share/bash-completion/completions/pvlab"
    )]
    /// Print what a shell needs to complete this program's command line.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write a man page for this program and one for each command.
    #[command(after_help = "Example: pvlab man ~/.local/share/man/man1")]
    Man {
        /// The folder to write them into; it is made.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Carry out the cells of an experiment on this Xen host (what `bench` does inside the lab).
    #[command(hide = true)]
    BenchHost {
        #[arg(long, value_name = "FILE")]
        batch: PathBuf,
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Carry out a plan on this Xen host (what `run` does inside the lab).
    #[command(hide = true)]
    Host {
        #[arg(long, value_name = "FILE")]
        plan: PathBuf,
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

#[derive(Subcommand)]
enum LabCommand {
    /// Download what is missing and build the host.
    #[command(after_help = "Example: pvlab lab prepare --release trixie")]
    Prepare {
        #[command(flatten)]
        packages: Packages,
    },
    /// Open a shell in its dom0, or on the KVM host.
    #[command(after_help = "Example: pvlab lab shell --file my.cfg=/root/my.cfg")]
    Shell(Machine),
    /// Run a script in its dom0, or on the KVM host; what the script leaves in /out comes back. Without
    /// --repeatable, /out is the folder at home itself: what is in it is not lost with the host.
    #[command(
        after_help = "Example: pvlab lab boot --script look.sh --file my.cfg=/root/my.cfg --xen sched=credit"
    )]
    Boot {
        #[command(flatten)]
        machine: Machine,
        /// The script, for busybox's sh.
        #[arg(long, value_name = "FILE")]
        script: PathBuf,
        /// Wall time after which the host is ended by force.
        #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
        deadline: u64,
    },
    /// Remove everything the lab keeps on this machine.
    #[command(after_help = "Example: pvlab lab clean")]
    Clean,
}

#[derive(Args)]
struct Machine {
    /// Who runs the domains.
    #[arg(long, value_enum, default_value_t)]
    hypervisor: Hypervisor,
    /// pCPUs; dom0 has the first for itself.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pcpus: u32,
    #[command(flatten)]
    emulation: Emulation,
    #[command(flatten)]
    packages: Packages,
    /// Put a file of this machine into dom0: SRC, or SRC=/PATH/IN/DOM0 (without it /root/NAME); a program gets
    /// its libraries. May be given several times.
    #[arg(long = "file", value_name = "SRC[=DST]")]
    files: Vec<Overlay>,
    /// Memory of the host in MiB; dom0 has 512 of them.
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(640..=1_048_576))]
    memory: u32,
    /// Added to Xen's command line (with --hypervisor kvm, to Linux').
    #[arg(long = "xen", value_name = "OPTIONS", default_value = "")]
    xen_options: String,
    /// Where the console and what is in /out go.
    #[arg(long, value_name = "DIR", default_value = "pvlab-out/lab")]
    out: PathBuf,
}

#[derive(Args)]
struct Emulation {
    /// Deterministic emulation: the same run again gives the same figures. Slower.
    #[arg(long)]
    repeatable: bool,
    /// With --repeatable: an instruction lasts 2^SHIFT nanoseconds of virtual time.
    #[arg(long, requires = "repeatable", default_value_t = Repeatable::default().shift, value_parser = clap::value_parser!(u8).range(0..=10))]
    shift: u8,
    /// With --repeatable: the longest turn of a pCPU, in microseconds of virtual time.
    #[arg(long, value_name = "MICROSECONDS", requires = "repeatable", default_value_t = Repeatable::default().slice.as_micros() as u64, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    slice: u64,
}

impl Emulation {
    fn repeatable(&self) -> Option<Repeatable> {
        let slice = Duration::from_micros(self.slice);
        let settings = Repeatable { shift: self.shift, slice, ..Repeatable::default() };
        self.repeatable.then_some(settings)
    }
}

#[derive(Args)]
struct RunArguments {
    /// The scenario's name; `pvlab scenarios` lists them.
    scenario: String,
    /// A lock or policy to run; may be given several times. Without it: kick-twice and kick-at-unlock.
    #[arg(long = "policy", value_name = "POLICY", value_parser = lock)]
    policies: Vec<String>,
    #[command(flatten)]
    emulation: Emulation,
    #[command(flatten)]
    packages: Packages,
    /// Keep everything the run produced here. Without it: pvlab-out/SCENARIO.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print results.json on standard output instead of the table.
    #[arg(long)]
    json: bool,
    /// With --policy linux on a Xen host: the kernel of its domains, as in /boot.
    #[arg(long, value_name = "FILE", requires = "linux_tree")]
    linux_kernel: Option<PathBuf>,
    /// With --linux-kernel: the tree to build its modules in, as in /lib/modules/VERSION/build.
    #[arg(long, value_name = "DIR", requires = "linux_kernel")]
    linux_tree: Option<PathBuf>,
    /// Boot this guest image instead of the built-in one.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Change a parameter of every guest, such as acquisitions=100000; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = plan::setting)]
    settings: Vec<Setting>,
    /// Do not let the guests mark waits and kicks in the trace: kicks are then matched by inference.
    #[arg(long)]
    no_markers: bool,
    /// Do not record the hypervisor's trace, for runs too long to keep it.
    #[arg(long)]
    no_trace: bool,
    /// How long after they were asked for the time the domains start, together.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = plan::start_after().as_millis() as u64, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    start_after: u64,
    /// How long one policy may take, instead of the scenario's own deadline.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    deadline: Option<u64>,
    /// A folder of scenarios to use instead of the built-in ones.
    #[arg(long, value_name = "DIR")]
    configs: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Arguments { command, verbose, quiet } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(told) if told.use_stderr() => told.exit(),
        // `--help` and `--version` are results like others.
        Err(told) => return ended(output::done(told.print()).map(|()| ExitCode::SUCCESS)),
    };
    let progress = match (verbose, quiet) {
        (true, _) => Progress::verbose(),
        (_, true) => Progress::hidden(),
        _ => Progress::new(),
    };
    ended(perform(command, &progress))
}

fn ended(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        output::note(format_args!("pvlab: {error:#}"));
        ExitCode::from(2)
    })
}

fn perform(command: Command, progress: &Progress) -> Result<ExitCode> {
    match command {
        Command::Doctor { packages } => {
            let diagnosis = doctor::examine(packages.release.as_ref());
            output::print(&diagnosis)?;
            Ok(if diagnosis.is_good() { ExitCode::SUCCESS } else { ExitCode::from(2) })
        }
        Command::Run(arguments) => run_scenario(arguments, progress),
        Command::Bench(arguments) => bench::cli::perform(*arguments, progress),
        Command::BenchHost { batch, out } => bench::cli::carry_out(&batch, &out),
        Command::Scenarios { configs } => {
            let library = library(configs);
            for name in library.names()? {
                output::print(format_args!("{name:18} {}\n", library.load(&name)?.description))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Report { folder, json } => {
            let results = Results::read(&folder)?;
            results.write(&folder)?;
            show(&results, json)
        }
        Command::Compare { a, b, fail_if } => {
            if [&a, &b].iter().any(|path| is_experiment(path)) {
                return compare_experiments(&a, &b, &fail_if);
            }
            anyhow::ensure!(
                fail_if.is_empty(),
                "--fail-if is for experiments (pvlab bench), and these are runs"
            );
            compare(&a, &b)
        }
        Command::Storm(arguments) => storm::cli::perform(&arguments, progress),
        Command::Image { output } if output == Path::new("-") => {
            output::bytes(&image::load(None)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Image { output } => {
            fs::write(&output, image::load(None)?)
                .with_context(|| format!("cannot write {}", output.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Lab(command) => lab(command, progress),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "pvlab", &mut script);
            output::bytes(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { folder } => {
            fs::create_dir_all(&folder)
                .and_then(|()| clap_mangen::generate_to(Arguments::command(), &folder))
                .with_context(|| format!("cannot write into {}", folder.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Kicktrace { arguments } => {
            Ok(kicktrace::cli::main(std::iter::once("pvlab kicktrace".into()).chain(arguments)))
        }
        Command::Host { plan, out } => carry_out(&plan, &out),
    }
}

fn run_scenario(arguments: RunArguments, progress: &Progress) -> Result<ExitCode> {
    let mut scenario = library(arguments.configs).load(&arguments.scenario)?;
    if let Some(seconds) = arguments.deadline {
        scenario.deadline = Duration::from_secs(seconds);
    }
    let mut policies = arguments.policies;
    if policies.is_empty() {
        policies = Policy::COMPARED.map(|policy| policy.to_string()).into();
    }
    let out = arguments.out.unwrap_or_else(|| run::default_folder(&arguments.scenario));
    let request = Request {
        scenario,
        choices: Choices {
            policies,
            settings: arguments.settings,
            markers: !arguments.no_markers,
            trace: !arguments.no_trace,
            start_after: Duration::from_millis(arguments.start_after),
        },
        repeatable: arguments.emulation.repeatable(),
        release: arguments.packages.release,
        image: arguments.image,
        linux: arguments.linux_kernel.zip(arguments.linux_tree),
        out,
    };
    interrupt::install().context("cannot install signal handlers")?;
    let results = run::run(&request, progress)?;
    let code = show(&results, arguments.json)?;
    let page = request.out.join(report::PAGE);
    progress.note(format_args!(
        "everything this run produced is in {}; as a page: {}",
        request.out.display(),
        output::Link(&page)
    ));
    Ok(code)
}

fn show(results: &Results, json: bool) -> Result<ExitCode> {
    if json {
        output::print(results.json()?)?;
    } else {
        output::print(report::table(results, output::columns()))?;
    }
    Ok(match results.verdict() {
        Verdict::Good => ExitCode::SUCCESS,
        Verdict::Broken => ExitCode::from(1),
        Verdict::Incomplete => ExitCode::from(2),
    })
}

fn compare(a: &Path, b: &Path) -> Result<ExitCode> {
    let read =
        |folder: &Path| serde_json::to_value(Results::read(folder)?).context("cannot compare");
    let differences = report::differences(&read(a)?, &read(b)?);
    if differences.is_empty() {
        let (a, b) = (a.display(), b.display());
        output::print(format_args!("equal: every figure of {a} is the same in {b}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text =
        format!("{} figures differ ({} | {}):\n", differences.len(), a.display(), b.display());
    differences.iter().for_each(|difference| text += &format!("  {difference}\n"));
    output::print(text)?;
    Ok(ExitCode::from(1))
}

/// Whether `path` is an experiment's folder, or its results.
fn is_experiment(path: &Path) -> bool {
    path.is_file() || path.join(bench::folder::SETUP).is_file()
}

fn compare_experiments(a: &Path, b: &Path, fail_if: &[Condition]) -> Result<ExitCode> {
    let (old, new) = (bench::Report::read(a)?, bench::Report::read(b)?);
    let (text, met) = bench::compare::compare(&old, &new, fail_if);
    output::print(&text)?;
    Ok(if met == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn lab(command: LabCommand, progress: &Progress) -> Result<ExitCode> {
    interrupt::install().context("cannot install signal handlers")?;
    match command {
        LabCommand::Prepare { packages } => {
            output::print(commands::prepare(packages.release.as_ref(), progress)?)?;
        }
        LabCommand::Shell(machine) => {
            commands::shell(machine.packages.release.as_ref(), &machine.boot(), progress)?;
        }
        LabCommand::Boot { machine, script, deadline } => {
            let mut boot = Boot { deadline: Duration::from_secs(deadline), ..machine.boot() };
            // A measurement that is to repeat must not be disturbed.
            boot.live = !machine.emulation.repeatable;
            let ended = commands::boot(&script, machine.packages.release.as_ref(), boot, progress)?;
            // The script's own status, as far as an exit code can say it.
            return Ok(ExitCode::from(u8::try_from(ended.status).unwrap_or(u8::MAX)));
        }
        LabCommand::Clean => match commands::clean(progress)? {
            Some(folder) => progress.note(format_args!("removed {}", folder.display())),
            None => progress.note("there is no lab to remove"),
        },
    }
    Ok(ExitCode::SUCCESS)
}

impl Machine {
    fn boot(&self) -> Boot {
        let mut boot = Boot::script("", &self.out);
        boot.hypervisor = self.hypervisor;
        boot.pcpus = self.pcpus;
        boot.memory_mib = self.memory;
        boot.files = self.files.clone();
        boot.hypervisor_options = self.xen_options.clone();
        if let Some(settings) = self.emulation.repeatable() {
            boot.mode = Mode::Repeatable(settings);
        }
        boot
    }
}

/// Events go out as lines of JSON; whoever started this process reads them from the console.
fn carry_out(plan: &Path, out: &Path) -> Result<ExitCode> {
    interrupt::install().context("cannot install signal handlers")?;
    // Whoever started this one may be gone; the run's files stay.
    let mut tell = |event: Event| drop(output::print(format_args!("{}\n", event.line())));
    let ran = (|| {
        let text =
            fs::read_to_string(plan).with_context(|| format!("cannot read {}", plan.display()))?;
        let plan: Plan = serde_json::from_str(&text)
            .with_context(|| format!("{} is no plan", plan.display()))?;
        let mut toolstack = Toolstack::open()?;
        toolstack.check(&plan)?;
        host::run(&mut toolstack, &plan, out, &mut tell)
    })();
    if let Err(error) = &ran {
        tell(Event::Error { message: format!("{error:#}") });
    }
    ran.map(|()| ExitCode::SUCCESS)
}

/// The name of a lock, checked.
fn lock(text: &str) -> std::result::Result<String, String> {
    text.parse::<Lock>().map(|lock| lock.to_string())
}

fn library(configs: Option<PathBuf>) -> Library {
    configs.map_or(Library::Embedded, Library::Folder)
}
