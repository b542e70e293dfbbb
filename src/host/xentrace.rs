//! The hypervisor's trace buffer, written to a file by `xentrace`.
//!
//! Owns the child process and the proof that it records. It never reads the records (kicktrace does).

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::leash::Leashed;

/// Pages of trace buffer for each pCPU: 4 MiB. xentrace empties them ten times a second; a
/// contended run writes about 3 MB a second and pCPU. Xen keeps the first size it is given.
const BUFFER_PAGES: u32 = 1024;

/// Time in which a trace must begin, or have ended after a signal, on a host that is crowded.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running xentrace. It ends in good order with this process: a trace that nobody stops goes on for ever.
pub struct Xentrace {
    child: Leashed,
}

impl Xentrace {
    pub(super) fn start(program: &Path, mask: u32, file: &Path) -> Result<Xentrace> {
        let errors = file.with_extension("err");
        let stderr =
            File::create(&errors).with_context(|| format!("cannot write {}", errors.display()))?;
        // No -T: a time limit is over before a slow domain is up. -D: drop what is in the buffers.
        let mut command = Command::new(program);
        command
            .args(["-D", "-S", &BUFFER_PAGES.to_string(), "-e", &format!("{mask:#010x}")])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let child = Leashed::spawn_ended_by(&mut command, Signal::INT)
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut trace = Xentrace { child };
        trace.wait_for(|| fs::metadata(file).is_ok_and(|about| about.len() > 0)).with_context(
            || {
                let said = fs::read_to_string(&errors).unwrap_or_default();
                format!("xentrace records nothing; it said: {}", said.trim())
            },
        )?;
        Ok(trace)
    }

    /// The buffers are emptied into the file before xentrace ends.
    pub(super) fn stop(mut self) -> Result<()> {
        interrupt(&mut self.child)?;
        let begun = Instant::now();
        while self.child.child().try_wait().context("cannot wait for xentrace")?.is_none() {
            if begun.elapsed() > PATIENCE {
                bail!("xentrace does not end; its file may lack the last records");
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The hypervisor's own scheduling of dom0 fills a record soon after tracing is on.
    fn wait_for(&mut self, begun: impl Fn() -> bool) -> Result<()> {
        let start = Instant::now();
        while !begun() {
            if let Some(status) =
                self.child.child().try_wait().context("cannot wait for xentrace")?
            {
                bail!("xentrace ended with {status}");
            }
            if start.elapsed() > PATIENCE {
                bail!("nothing after {} s", PATIENCE.as_secs());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Xentrace {
    fn drop(&mut self) {
        // After `stop` the child is reaped and both calls find nothing to do.
        if matches!(self.child.child().try_wait(), Ok(None)) && interrupt(&mut self.child).is_ok() {
            drop(self.child.wait());
        }
    }
}

/// Sends SIGINT, on which xentrace flushes; std can only kill.
fn interrupt(child: &mut Leashed) -> Result<()> {
    kill_process(Pid::from_child(child.child()), Signal::INT).context("cannot signal xentrace")
}
