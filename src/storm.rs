//! A storm: everything a toolstack can do to a domain, in random order, while its vCPUs are at the
//! locks.
//!
//! Owns the domain, the script that carries the operations out in dom0, and the verdict over what
//! the domain reports in the end. What the guest does about each is the guest's business.
//!
//! - `operations`: what is done, dealt so that every kind comes as often as any other
//! - `account`: what was survived, from what the script wrote down
//! - `session`: a storm in several parts
//! - [`cli`]: the command line

mod account;
pub mod cli;
mod operations;
mod session;

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use experiment::record::framing::Decoder;
use experiment::record::{DomainReport, Outcome};
use experiment::{DomainType, EventAbi, Events};

use crate::lab::{Boot, Overlay};

pub use account::{Account, Survived};
pub use operations::{Operation, kinds, operations};
pub use session::Session;

/// vCPUs of the domain: vCPU 0 looks after it, the others contend.
const VCPUS: u32 = 5;
/// pCPUs the domain runs on; dom0 has the one before for itself.
const PCPUS: std::ops::RangeInclusive<u32> = 1..=2;

/// One domain and what is done to it.
#[derive(Clone, Debug)]
pub struct Storm {
    /// The domain's name, and that of its files.
    pub name: String,
    /// How it boots.
    pub kind: DomainType,
    /// The lock under test.
    pub policy: String,
    /// The event channel ABI; `None` leaves the choice to the guest.
    pub events: Option<EventAbi>,
    /// Seed of the workload's random numbers.
    pub seed: u64,
    /// What is done, in order.
    pub operations: Vec<Operation>,
    /// When to stop, even if operations are left.
    pub limit: Option<Duration>,
    /// Operations to perform however long they take.
    pub least: usize,
}

/// Carries the operations out in dom0.
const SCRIPT: &str = include_str!("storm/storm.sh");

/// Puts the storms, one after another, into a boot with this guest image.
pub fn prepare(boot: &mut Boot, storms: &[Storm], image: Vec<u8>) {
    /// Longer than any list of operations takes.
    const UNLIMITED: u64 = 1_000_000;
    boot.pcpus = PCPUS.end() + 1;
    // An image of a saved domain is a file in dom0's memory.
    boot.dom0_mib = 640;
    boot.script.push_str(SCRIPT);
    boot.files.push(Overlay::bytes("/guest/xen-guest.elf", 0o644, image));
    for storm in storms {
        let name = &storm.name;
        let lines: String = storm.operations.iter().map(|op| format!("{op}\n")).collect();
        boot.files.push(Overlay::bytes(format!("/guest/{name}.operations"), 0o644, lines));
        boot.files.push(Overlay::bytes(format!("/guest/{name}.cfg"), 0o644, storm.config()));
        let seconds = storm.limit.map_or(UNLIMITED, |limit| limit.as_secs());
        // Writing to a String does not fail.
        let _ = writeln!(boot.script, "storm {name} {seconds} {}", storm.least);
    }
}

impl Storm {
    fn config(&self) -> String {
        let Storm { name, policy, seed, .. } = self;
        let kind = self.kind;
        let events = self.events.map_or(Events::Auto.name(), EventAbi::name);
        let (first, last) = (PCPUS.start(), PCPUS.end());
        format!(
            "name = \"{name}\"\ntype = \"{kind}\"\nkernel = \"/guest/xen-guest.elf\"\nmemory = 32\n\
             vcpus = {VCPUS}\ncpus = \"{first}-{last}\"\ntsc_mode = \"native\"\n\
             on_poweroff = \"destroy\"\non_crash = \"preserve\"\n\
             extra = \"workload=torture control=watch timer=2ms critical=50us outside=20us spin=20us \
             acquisitions=1000000000000 deadline=120s policy={policy} seed={seed} events={events}\"\n"
        )
    }

    /// What the domain reported in the end, and what it survived, from the folder that the boot
    /// left.
    ///
    /// # Errors
    ///
    /// If an operation failed, or the domain did not end well and exactly, or a kick was lost.
    pub fn verdict(&self, out: &Path) -> Result<(DomainReport, Account)> {
        let read = |what: &str| fs::read_to_string(out.join(format!("{}.{what}", self.name)));
        let console = read("log").unwrap_or_default();
        let told = || {
            let last: Vec<_> =
                console.lines().filter(|line| !line.starts_with("pvlab-result")).collect();
            last[last.len().saturating_sub(60)..].join("\n")
        };
        if let Ok(failed) = read("failed") {
            bail!("{}: {}\nthe domain's console:\n{}", self.name, failed.trim(), told());
        }
        let account = Account::read(out, &self.name)?;
        let reports = reports(&console)?;
        for report in &reports {
            self.check(report).with_context(told)?;
        }
        let last = reports.last().cloned();
        let last =
            last.ok_or_else(|| anyhow!("{}: no report; its console:\n{}", self.name, told()))?;
        if account.last_count() > last.acquisitions {
            let (told, reported) = (account.last_count(), last.acquisitions);
            bail!("{}: {told} acquisitions were told of, and {reported} reported", self.name);
        }
        Ok((last, account))
    }

    fn check(&self, report: &DomainReport) -> Result<()> {
        let name = &self.name;
        if report.outcome != Outcome::Success {
            bail!("{name}: {:?}", report.outcome);
        }
        if report.counter != report.acquisitions || report.acquisitions == 0 {
            let DomainReport { counter, acquisitions, .. } = report;
            bail!("{name}: {acquisitions} acquisitions raised the counter to {counter}");
        }
        if self.events.is_some_and(|events| events != report.events) {
            bail!("{name}: it used the {:?} event channels", report.events);
        }
        match report.counters.get("pv_poll_timeout") {
            Some(0) => Ok(()),
            lost => bail!("{name}: lost wake-ups (pv_poll_timeout): {lost:?}"),
        }
    }
}

/// All reports on a console.
fn reports(console: &str) -> Result<Vec<DomainReport>> {
    let mut decoder = Decoder::default();
    let mut reports = Vec::new();
    for line in console.lines() {
        if let Some(document) = decoder.line(line.trim_end()).context("the domain's console")? {
            reports.push(serde_json::from_str(&document).context("the domain's report")?);
        }
    }
    Ok(reports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storm() -> Storm {
        Storm {
            name: "d".into(),
            kind: DomainType::Pv,
            policy: "adaptive".into(),
            events: None,
            seed: 1,
            operations: vec![Operation::Wait(1)],
            limit: None,
            least: 0,
        }
    }

    #[test]
    fn a_failed_operation_a_missing_report_and_a_lost_kick_are_told() {
        let out = tempfile::tempdir().unwrap();
        let write = |what: &str, text: &str| fs::write(out.path().join(what), text).unwrap();
        let told = || format!("{:#}", storm().verdict(out.path()).unwrap_err());
        write("d.done", "0 wait 0.1\n1 count 3\n");
        write("d.log", "some words\n");
        assert!(told().contains("no report") && told().contains("some words"));
        let mut report = DomainReport { acquisitions: 3, counter: 3, ..DomainReport::default() };
        report.outcome = Outcome::Success;
        report.counters.insert("pv_poll_timeout".into(), 1);
        let console = |report: &DomainReport| {
            let mut log = String::new();
            let document = serde_json::to_string(report).unwrap();
            experiment::record::framing::console_lines(&document, |line| {
                let _ = writeln!(log, "{line}");
            });
            write("d.log", &log);
        };
        console(&report);
        assert!(told().contains("lost wake-ups"), "{}", told());
        report.counters.insert("pv_poll_timeout".into(), 0);
        console(&report);
        assert_eq!(storm().verdict(out.path()).unwrap().1.operations(), 1);
        write("d.done", "0 wait 0.1\n1 count 4\n");
        assert!(told().contains("4 acquisitions were told of, and 3 reported"), "{}", told());
        write("d.done", "0 wait 0.1\n1 count 3\n");
        let fifo = Storm { events: Some(EventAbi::Fifo), ..storm() }.verdict(out.path());
        assert!(format!("{:#}", fifo.unwrap_err()).contains("TwoLevel event channels"));
        report.counter = 2;
        console(&report);
        assert!(told().contains("raised the counter to 2"));
        write("d.failed", "operation 1 (pause) failed");
        assert!(told().contains("operation 1"));
    }
}
