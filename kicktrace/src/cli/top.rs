//! `xentrace ... | kicktrace top`: the last second, in a terminal.
//!
//! Owns the terminal while it runs: raw keys, the second screen, and that both are given back
//! whatever ends it. One thread reads the trace; this one draws, and looks at keys, signals and the
//! terminal's size.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use clap::Args as ClapArgs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::input::{Input, Reading};
use super::{Failure, all_read, corrected, finished};
use crate::analysis::{Host, Phases, Whole, complete};
use crate::output::top::{Second, screen};
use crate::reader::read;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The trace; `-`, standard input, by default
    #[arg(default_value = "-")]
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) reading: Reading,
}

/// How long keys and signals may wait, and how often the screen is drawn again.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What the reading thread found last.
#[derive(Default)]
struct Latest {
    second: Option<Second>,
    /// When it came.
    at: Option<Instant>,
    /// How the reading ended.
    end: Option<Result<Whole, Failure>>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let input = Input { file: args.file.clone(), reading: args.reading.clone() };
    let mut out = io::stdout();
    if !out.is_terminal() {
        return Err(Failure::Usage(
            "top draws on a terminal, and standard output is none: use kicktrace summary --every 1s".into(),
        ));
    }
    if input.is_stdin() && io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "top reads a trace from a pipe: xentrace -D -e 0x08229000 -S 1024 /dev/stdout | kicktrace top"
                .into(),
        ));
    }
    // Opened here, where the message of a wrong name still stands on the ordinary screen.
    let opened = input.open()?;
    let latest = Arc::new(Mutex::new(Latest::default()));
    let found = Arc::clone(&latest);
    let reader = input.clone();
    // Not joined: it may wait for a pipe for ever.
    std::thread::spawn(move || {
        let lock = || found.lock().unwrap_or_else(PoisonError::into_inner);
        let options = reader.reading.options();
        let mut phases = Phases::seconds(&options, Host::default(), |summary, host: &mut Host| {
            let host = host.figures(&summary);
            let mut latest = lock();
            latest.second = Some(Second { summary, host });
            latest.at = Some(Instant::now());
        });
        let done = read(opened, &options.read, &mut phases);
        let done = done.map_err(|source| reader.failure(source));
        // The last second is told by it, which needs the lock too.
        let end = done.map(|reading| phases.finish(reading).1);
        lock().end = Some(end);
    });
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let terminal = Terminal::take()?;
    let mut drawn = String::new();
    let end = loop {
        // Relaxed: it is set by a handler in this very process and carries nothing else.
        if stop.load(Ordering::Relaxed) || terminal.quits()? {
            break None;
        }
        let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = latest.end.take() {
            break Some(end);
        }
        let age = latest.at.map(|at| at.elapsed());
        let (columns, rows) = size();
        let lines = screen(latest.second.as_ref(), age, columns, rows);
        drop(latest);
        draw(&mut out, &lines, rows, &mut drawn)?;
    };
    drop(terminal);
    let Some(end) = end else { return Ok(()) };
    // The last second stays on the ordinary screen.
    let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
    let (columns, _) = size();
    for line in screen(latest.second.as_ref(), None, columns, usize::MAX) {
        writeln!(out, "{line}")?;
    }
    let whole = end?;
    corrected(&input, &whole.reading)?;
    match &mut latest.second {
        Some(Second { summary, .. }) => {
            // What the whole trace has not, no second had.
            complete(summary, whole);
            finished(&input, summary)
        }
        None => all_read(&input, &whole.reading),
    }
}

fn size() -> (usize, usize) {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            (usize::from(size.ws_col), usize::from(size.ws_row))
        }
        _ => (80, 24),
    }
}

/// Writes the lines over what is there, unless it is the same.
fn draw(out: &mut impl Write, lines: &[String], rows: usize, drawn: &mut String) -> io::Result<()> {
    let mut text = String::from("\x1b[H");
    for (row, line) in lines.iter().take(rows).enumerate() {
        text += line;
        // To the end of the line: nothing of what stood there.
        text += "\x1b[K";
        if row + 1 < rows {
            text += "\r\n";
        }
    }
    text += "\x1b[J";
    if text != *drawn {
        out.write_all(text.as_bytes())?;
        out.flush()?;
        *drawn = text;
    }
    Ok(())
}

/// The terminal, in our hands: it is given back when this is dropped.
struct Terminal {
    keys: File,
    before: Termios,
}

impl Terminal {
    fn take() -> Result<Self, Failure> {
        // Standard input is the trace.
        let open = |source| Failure::Open { name: "/dev/tty".into(), source };
        let keys = File::open("/dev/tty").map_err(open)?;
        let before = tcgetattr(&keys).map_err(|error| open(error.into()))?;
        let mut raw = before.clone();
        // Ctrl-C stays a signal, which reaches xentrace too: it flushes and turns tracing off.
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        // Ctrl-Z would leave a stopped program with its screen.
        raw.special_codes[SpecialCodeIndex::VSUSP] = 0;
        tcsetattr(&keys, OptionalActions::Now, &raw).map_err(|error| open(error.into()))?;
        let terminal = Self { keys, before };
        let mut out = io::stdout();
        out.write_all(b"\x1b[?1049h\x1b[?25l\x1b[2J")?;
        out.flush()?;
        Ok(terminal)
    }

    /// Waits for a tick, or for a key: whether it is one that ends the program.
    fn quits(&self) -> Result<bool, Failure> {
        let mut ready = [PollFd::new(&self.keys, PollFlags::IN)];
        match poll(&mut ready, Some(&TICK)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let mut key = [0; 16];
        let got = rustix::io::read(&self.keys, &mut key).map_err(io::Error::from)?;
        // A terminal that is gone reads as empty.
        Ok(got == 0 || key[..got].iter().any(|key| matches!(key, b'q' | b'Q' | 3)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // If this fails nobody is left to read it.
        let _ = tcsetattr(&self.keys, OptionalActions::Now, &self.before);
        let mut out = io::stdout();
        let _ = out.write_all(b"\x1b[?25h\x1b[?1049l");
        let _ = out.flush();
    }
}
