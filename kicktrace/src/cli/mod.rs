//! The command line: `kicktrace COMMAND ...`, and the same under another tool's name.
//!
//! Owns arguments, exit codes and where output goes. Exit code 0: done; 1: a check asked for did
//! not hold; 2: bad input or arguments.

mod capture;
mod check;
mod diff;
mod dump;
mod export;
mod generate;
mod host;
mod input;
mod locks;
mod report;
mod sink;
mod summary;
mod timeline;
mod top;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::Summary;
use crate::error::Error;
use crate::reader::{Reading, Truncation};
use crate::summary::{Finding, Verdict};

/// Reads xentrace files and reconstructs who kicked whom.
#[derive(Debug, Parser)]
#[command(name = "kicktrace", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Kicks, polls, waits and runstates of every domain
    Summary(summary::Args),
    /// pCPUs, wakes, preemptions, concurrency, hypercalls and exits
    Host(host::Args),
    /// The last second of a trace that is being taken, in the terminal
    Top(top::Args),
    /// Every run, wait, kick and acquisition as rows: Parquet or CSV
    Export(export::Args),
    /// Lock by lock, or acquisition by acquisition, as the guests marked them
    Locks(locks::Args),
    /// Who ran where and who kicked whom: a chart, a Perfetto trace or JSON
    Timeline(timeline::Args),
    /// What changed from one trace to another, with confidence intervals
    Diff(diff::Args),
    /// Whether a trace is complete enough to count kicks, and what to capture instead
    Check(check::Args),
    /// The xentrace command, mask and buffer size for a host
    Capture(capture::Args),
    /// Every record as a line of text, with filters
    Dump(dump::Args),
    /// Write a synthetic trace to standard output
    Generate(generate::Args),
}

impl Command {
    /// The part of the trace a command is asked for.
    fn window(&self) -> Option<&input::Window> {
        match self {
            Self::Summary(args) => Some(&args.window),
            Self::Host(args) => Some(&args.window),
            Self::Locks(args) => Some(&args.window),
            Self::Timeline(args) => Some(&args.window),
            Self::Dump(args) => Some(&args.window),
            Self::Top(_)
            | Self::Export(_)
            | Self::Diff(_)
            | Self::Check(_)
            | Self::Capture(_)
            | Self::Generate(_) => None,
        }
    }

    /// The traces it reads.
    fn traces(&self) -> Vec<PathBuf> {
        match self {
            Self::Summary(args) => vec![args.input.file.clone()],
            Self::Host(args) => vec![args.input.file.clone()],
            Self::Top(args) => vec![args.file.clone()],
            Self::Export(args) => vec![args.input.file.clone()],
            Self::Locks(args) => vec![args.input.file.clone()],
            Self::Timeline(args) => vec![args.input.file.clone()],
            Self::Diff(args) => vec![args.before.clone(), args.after.clone()],
            Self::Check(args) => vec![args.input.file.clone()],
            Self::Dump(args) => vec![args.input.file.clone()],
            Self::Capture(_) | Self::Generate(_) => Vec::new(),
        }
    }

    /// The options of a command that reads a trace.
    fn reading(&mut self) -> Option<&mut input::Reading> {
        match self {
            Self::Summary(args) => Some(&mut args.input.reading),
            Self::Host(args) => Some(&mut args.input.reading),
            Self::Top(args) => Some(&mut args.reading),
            Self::Export(args) => Some(&mut args.input.reading),
            Self::Locks(args) => Some(&mut args.input.reading),
            Self::Timeline(args) => Some(&mut args.input.reading),
            Self::Diff(args) => Some(&mut args.reading),
            Self::Check(args) => Some(&mut args.input.reading),
            Self::Dump(args) => Some(&mut args.input.reading),
            Self::Capture(_) | Self::Generate(_) => None,
        }
    }
}

/// What ends a command without a result.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{name}: {source}")]
    Trace { name: String, source: Error },
    #[error("{name}: {source}")]
    Open { name: String, source: std::io::Error },
    /// The figures are out; the exit code alone must say that they are not all.
    #[error(
        "{name}: the trace is cut at byte {}, {} bytes before its last window ends; the figures count \
         what is before it (stop xentrace with INT, and see that the disk has room)",
        cut.offset, cut.missing
    )]
    Cut { name: String, cut: Truncation },
    /// The figures are out, but the ones people come for are missing.
    #[error(
        "{name}: no {what} from byte 0 to {bytes}: this trace shows no kicks and waits; \
         capture again with {mask:#010x} in the mask (see kicktrace capture and kicktrace check)"
    )]
    Classes { name: String, bytes: u64, what: &'static str, mask: u32 },
    #[error("{0}")]
    Usage(String),
    /// A condition the user asked for does not hold.
    #[error("{0}")]
    Check(String),
    #[error("writing failed: {0}")]
    Output(#[from] std::io::Error),
    #[error("writing JSON failed: {0}")]
    Json(#[from] serde_json::Error),
}

impl Failure {
    /// What figures need is not in the trace.
    fn missing(input: &input::Input, reading: &Reading, missing: &Finding) -> Self {
        let (name, bytes) = (input.name(), reading.bytes);
        match missing.mask {
            Some(mask) => Self::Classes { name, bytes, what: missing.topic, mask },
            None => Self::Usage(format!("{name}: {}; {}", missing.what, missing.remedy)),
        }
    }

    fn is_broken_pipe(&self) -> bool {
        match self {
            Self::Trace { source, .. } => source.is_broken_pipe(),
            Self::Output(source) => source.kind() == std::io::ErrorKind::BrokenPipe,
            Self::Json(source) => source.io_error_kind() == Some(std::io::ErrorKind::BrokenPipe),
            Self::Open { .. }
            | Self::Cut { .. }
            | Self::Classes { .. }
            | Self::Usage(_)
            | Self::Check(_) => false,
        }
    }
}

/// Writes a message to standard error. If that fails nobody is left who could read it, and the exit
/// code stays what it is.
fn say(message: impl Display) {
    let _ = writeln!(io::stderr(), "kicktrace: {message}");
}

/// Refuses a correction of a pCPU that the whole trace has no record of.
fn corrected(input: &input::Input, whole: &Reading) -> Result<(), Failure> {
    match input.reading.absent_pcpu(whole) {
        Some(cpu) => Err(Failure::Usage(format!(
            "{}: no record of pCPU {cpu}, whose TSC was to be corrected (--tsc-offset)",
            input.name()
        ))),
        None => Ok(()),
    }
}

/// What a command ends with that showed every record of its trace: success, or that the trace is
/// cut.
fn all_read(input: &input::Input, reading: &Reading) -> Result<(), Failure> {
    match reading.truncated {
        Some(cut) => Err(Failure::Cut { name: input.name(), cut }),
        None => Ok(()),
    }
}

/// What a command ends with that showed figures of its trace: success, or that the trace is cut, or
/// that what figures need is not in it. The doubts, which figures alone do not show, go to standard
/// error.
fn judged(input: &input::Input, summary: &Summary) -> Result<(), Failure> {
    for finding in summary.found(Verdict::Doubtful) {
        let Finding { what, remedy, .. } = finding;
        say(format_args!("{}: doubtful: {what}; {remedy}", input.name()));
    }
    finished(input, summary)
}

/// As [`judged`], for an output that shows the doubts itself.
fn finished(input: &input::Input, summary: &Summary) -> Result<(), Failure> {
    // That of a window has the pCPUs of the window.
    if summary.window.is_none() {
        corrected(input, &summary.reading)?;
    }
    all_read(input, &summary.reading)?;
    let missing = summary.found(Verdict::Missing).next();
    missing.map_or(Ok(()), |missing| Err(Failure::missing(input, &summary.reading, missing)))
}

/// The command line. A negative number is a value, to be refused with the option it stands behind,
/// and no option of its own.
fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let command = Cli::command().mut_subcommands(|command| {
        command.mut_args(|arg| {
            let takes = !arg.is_positional() && arg.get_action().takes_values();
            arg.allow_negative_numbers(takes)
        })
    });
    Cli::from_arg_matches(&command.try_get_matches_from(args)?)
}

/// Runs one command; `args` starts with the program's name, as [`std::env::args_os`] does. Results
/// go to standard output, messages to standard error.
///
/// # Example
/// ```no_run
/// # use std::process::ExitCode;
/// // The first argument names the tool, the second was `kicktrace`.
/// fn main() -> ExitCode {
///     kicktrace::cli::main(std::env::args_os().skip(1))
/// }
/// ```
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut cli = match parse(args) {
        Ok(cli) => cli,
        Err(error) => {
            let code = error.exit_code() as u8;
            // `kicktrace --help | head` is no failure; a full disk is.
            let closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
            return match error.print().and_then(|()| io::stdout().flush()) {
                Err(failed) if code == 0 && !closed(&failed) => {
                    say(Failure::Output(failed));
                    ExitCode::from(2)
                }
                // Nobody is left who could read it.
                _ => ExitCode::from(code),
            };
        }
    };
    let checked = cli.command.window().map_or(Ok(()), input::Window::check);
    let traces = cli.command.traces();
    let resolve = |reading: &mut input::Reading| reading.resolve(&traces);
    let mut resolved = || cli.command.reading().map_or(Ok(()), resolve);
    let refused = || sink::refuse_stdout(&traces);
    if let Err(failure) = checked.and_then(|()| refused()).and_then(|()| resolved()) {
        say(failure);
        return ExitCode::from(2);
    }
    let done = match cli.command {
        Command::Summary(args) => summary::run(&args),
        Command::Host(args) => host::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Locks(args) => locks::run(&args),
        Command::Timeline(args) => timeline::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Capture(args) => capture::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Generate(args) => generate::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // `kicktrace dump | head` is no failure.
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            let code = if matches!(failure, Failure::Check(_)) { 1 } else { 2 };
            say(failure);
            ExitCode::from(code)
        }
    }
}
