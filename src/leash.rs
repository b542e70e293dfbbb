//! Child processes that cannot outlive this one.
//!
//! Owns the start and the end of every program that runs beside this one. A child leads a process group
//! of its own, so that its helpers go with it and a terminal's Ctrl-C reaches this process alone, which
//! then ends the group in order; and the kernel ends it if this process dies without a word.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};

use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};

/// A running program. Dropping it kills it, with its group, and waits for its end.
pub(crate) struct Leashed {
    child: Child,
    /// Whether the program leads a group of its own.
    leads: bool,
}

impl Leashed {
    /// Starts `command` in a process group of its own.
    ///
    /// The calling thread must live as long as the program: the kernel ties the two together.
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        Self::spawn_ended_by(command, Signal::KILL)
    }

    /// Starts `command` as [`spawn`](Self::spawn) does; if this process dies, the kernel sends it `signal`.
    pub(crate) fn spawn_ended_by(command: &mut Command, signal: Signal) -> io::Result<Self> {
        command.process_group(0);
        signal_with_parent(command, signal);
        Ok(Leashed { child: command.spawn()?, leads: true })
    }

    /// Starts `command` in this process's own group, for a program that reads from the terminal:
    /// another group would be stopped for it.
    ///
    /// The calling thread must live as long as the program, as above.
    pub(crate) fn spawn_on_terminal(command: &mut Command) -> io::Result<Self> {
        signal_with_parent(command, Signal::KILL);
        Ok(Leashed { child: command.spawn()?, leads: false })
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // Not waited for yet, so the number is still this child's, and its group's.
            match i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                // It may have ended a moment ago, here and below.
                Some(group) if self.leads => drop(kill_process_group(group, Signal::KILL).ok()),
                _ => drop(self.child.kill()),
            }
            drop(self.child.wait());
        }
    }
}

/// Has the kernel send `signal` to the program when the thread that starts it ends.
fn signal_with_parent(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    let hook = move || {
        set_parent_process_death_signal(Some(signal))?;
        // The parent may have died before the line above.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes two system calls and touches no lock, no heap
    // and no other state of this process (an Errno converts to an io::Error without allocating).
    unsafe { command.pre_exec(hook) };
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::path::Path;
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    use super::*;

    fn gone(pid: &str) -> bool {
        let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
        // A zombie waits for its new parent to look at it; it runs no more.
        stat.map_or(true, |stat| {
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
        })
    }

    #[test]
    fn a_dropped_program_takes_its_helpers_along() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped());
        let mut leashed = Leashed::spawn(&mut shell).unwrap();
        let mut helper = String::new();
        let out = leashed.child().stdout.take().unwrap();
        BufReader::new(out).read_line(&mut helper).unwrap();
        assert!(!gone(helper.trim()));
        drop(leashed);
        let begun = Instant::now();
        while !gone(helper.trim()) {
            assert!(begun.elapsed() < Duration::from_secs(60), "helper {helper} still runs");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_program_that_is_missing_is_an_error() {
        assert!(Leashed::spawn(&mut Command::new("/no/such/program")).is_err());
    }
}
