//! Drives a Xen host from its dom0: creates the domains, traces, releases the start line, collects.
//!
//! Owns the order of events in a run. The same code runs on a real Xen host and in the lab's dom0. How
//! a domain is created, a node is read or a trace is written is behind [`XenHost`], so that the order
//! is tested without Xen. Whatever happens, every domain this module created is destroyed before it
//! returns, and what was collected until then stays.

mod event;
mod postmortem;
mod toolstack;
mod xentrace;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use experiment::record::DomainReport;
use experiment::record::framing::Decoder;
use serde::{Deserialize, Serialize};

pub use event::{Event, start_missed};
pub(crate) use toolstack::{TOOLS, other_xentrace, tool};
pub use toolstack::{Toolstack, is_dom0_without_xenfs, is_xen_host};

use crate::interrupt;
use crate::linux;
use crate::plan::{Plan, PlannedDomain};
use crate::symbols::Symbols;

/// How many lines of a console a message shows.
const TAIL: usize = 12;

/// How many of one with a crash report, which is never longer.
const LONG_TAIL: usize = 60;

/// What the lines of a guest's crash report begin with.
const CRASH_REPORT: &str = "guest crash: ";

/// The state of a domain whose start line had passed when it was told of it.
const LATE: &str = "late";
/// How often a policy is run at most, because of such domains.
pub const ATTEMPTS: u32 = 3;
/// How many times as far away the line of the next attempt is.
const FARTHER: u32 = 4;

/// How long the creation of the next domain waits for one to be ready, at most.
const BOOT_PATIENCE: Duration = Duration::from_secs(30);
/// Time a guest that has reported gets to shut down, so that its console is complete.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// What a run needs from a Xen host.
pub trait XenHost {
    /// A trace under way.
    type Trace;

    /// Creates the domain `name` from a configuration file and answers its number.
    fn create(&mut self, name: &str, config: &Path) -> Result<u32>;
    /// Destroys a domain; one that is gone already is no error.
    fn destroy(&mut self, domid: u32) -> Result<()>;
    /// Whether a domain runs, has shut down (and why), or is gone.
    fn life(&mut self, domid: u32) -> Result<Life>;
    /// Reads a node of xenstore; `None` if there is none.
    fn read(&mut self, path: &str) -> Result<Option<String>>;
    /// Writes a node of xenstore.
    fn write(&mut self, path: &str, value: &str) -> Result<()>;
    /// From now on [`wait`](Self::wait) ends when something changes below one of `paths`, or a domain shuts down.
    fn watch(&mut self, paths: &[String]) -> Result<()>;
    /// Sleeps until something watched changes, or `timeout` is over.
    fn wait(&mut self, timeout: Duration) -> Result<Change>;
    /// Everything the domain `name` has written to its console in this life.
    fn console(&mut self, name: &str) -> Result<String>;
    /// Starts recording into `file`; returns once the hypervisor records.
    fn start_trace(&mut self, mask: u32, file: &Path) -> Result<Self::Trace>;
    /// Stops recording; returns once the file is complete.
    fn stop_trace(&mut self, trace: Self::Trace) -> Result<()>;
    /// Xen's own log.
    fn log(&mut self) -> Result<String>;
    /// What `xenctx` prints of all vCPUs of a domain that is stopped; `None` where it is not installed.
    fn registers(&mut self, domid: u32) -> Result<Option<String>>;
    /// What it prints of `bytes` of a vCPU's memory at `address`.
    fn memory(&mut self, domid: u32, vcpu: u32, address: u64, bytes: u64)
    -> Result<Option<String>>;
    /// The versions of everything that could matter.
    fn versions(&mut self) -> Result<serde_json::Value>;
}

/// What [`XenHost::wait`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A node below a watched path may have changed.
    Node,
    /// A domain may have shut down too; also after a timeout.
    Domain,
}

/// Whether a domain lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It is there and has not shut down.
    Running,
    /// It has shut down by itself, in good order.
    ShutDown,
    /// It has shut down with reason crash.
    Crashed,
    /// Xen knows no such domain.
    Gone,
}

/// How a domain's part in a run ended. In `NAME.json` of a policy's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DomainResult {
    /// The domain's name.
    pub name: String,
    /// The number Xen gave it.
    pub domid: u32,
    /// How it ended, as far as the host can tell.
    pub end: End,
    /// What is wrong, for a person; empty if nothing is.
    #[serde(default)]
    pub message: String,
    /// The guest's own report, if it got as far as that.
    pub report: Option<DomainReport>,
}

impl DomainResult {
    /// Its report, if its run came to its end. A run that the guest's watchdog broke off has no time, and
    /// its counters under the locks were never read.
    pub fn whole(&self) -> Option<&DomainReport> {
        self.report.as_ref().filter(|report| !broken_off(report))
    }

    /// Its report, if the guest's watchdog broke its run off.
    pub fn broken_off(&self) -> Option<&DomainReport> {
        self.report.as_ref().filter(|report| broken_off(report))
    }
}

fn broken_off(report: &DomainReport) -> bool {
    report.elapsed_ns == 0 && matches!(report.outcome, experiment::record::Outcome::Failure(_))
}

/// How a domain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// It reported and shut down.
    Done,
    /// It reported and then did not shut down in good order, or reported that it failed.
    Failed,
    /// It crashed without a report.
    Crashed,
    /// It was still running at the deadline and had not reported.
    Hung,
    /// It was gone, or shut down, without a report.
    NoReport,
}

/// Runs every policy of `plan` and collects into `out`, a folder a policy.
///
/// A domain that crashes or hangs is a [`DomainResult`] and an [`Event::Problem`], not an error:
/// what the others found is kept and the next policy runs. A policy whose start line a domain was
/// told of too late is run again, with a later one.
///
/// # Errors
///
/// If the toolstack fails, a file cannot be written, or a signal asked to end.
pub fn run<H: XenHost>(
    host: &mut H,
    plan: &Plan,
    out: &Path,
    tell: &mut dyn FnMut(Event),
) -> Result<()> {
    write_json(&out.join("versions.json"), &host.versions()?)?;
    for policy in &plan.policies {
        let folder = out.join(policy);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let mut plan = plan.clone();
        for attempts_left in (0..ATTEMPTS).rev() {
            tell(Event::PolicyStarted { policy: policy.clone() });
            let begun = attempt(host, &plan, policy, &folder, attempts_left > 0, tell)
                .with_context(|| format!("policy {policy}"))?;
            if begun {
                break;
            }
            plan.start_after *= FARTHER;
            let start_after = plan.start_after;
            tell(Event::StartMissed { policy: policy.clone(), start_after });
        }
        tell(Event::PolicyDone { policy: policy.clone() });
    }
    tell(Event::Finished);
    Ok(())
}

/// Runs a policy; answers whether it began, which it did in any case unless it `may_repeat`.
fn attempt<H: XenHost>(
    host: &mut H,
    plan: &Plan,
    policy: &str,
    folder: &Path,
    may_repeat: bool,
    tell: &mut dyn FnMut(Event),
) -> Result<bool> {
    let mut run = PolicyRun { host, plan, policy, folder, may_repeat, tell, domains: Vec::new() };
    let outcome = run.perform();
    let begun = !run.is_to_be_repeated();
    // Also after an error: nothing this run created may stay.
    let destroyed = run.destroy_all();
    outcome.and(destroyed).map(|()| begun)
}

struct PolicyRun<'a, H: XenHost> {
    host: &'a mut H,
    plan: &'a Plan,
    policy: &'a str,
    folder: &'a Path,
    /// Whether there is another attempt, should a domain miss the start line.
    may_repeat: bool,
    tell: &'a mut dyn FnMut(Event),
    domains: Vec<Running<'a>>,
}

struct Running<'a> {
    planned: &'a PlannedDomain,
    domid: u32,
    state: String,
    life: Life,
}

impl Running<'_> {
    fn node(&self, name: &str) -> String {
        format!("/local/domain/{}/data/pvlab/{name}", self.domid)
    }

    /// Whether it will not get any further.
    fn is_over(&self) -> bool {
        self.life != Life::Running || matches!(self.state.as_str(), "done" | "failed" | LATE)
    }
}

impl<H: XenHost> PolicyRun<'_, H> {
    fn perform(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.plan.deadline;
        self.create_all(deadline)?;
        self.wait_until(deadline, |domain| domain.state == "ready" || domain.is_over())?;

        if self.plan.trace {
            let trace =
                self.host.start_trace(self.plan.trace_mask(), &self.folder.join("trace.bin"))?;
            let finished = self.race(deadline);
            // Also after an error: a trace goes on until it is stopped.
            self.host.stop_trace(trace)?;
            finished?;
        } else {
            self.race(deadline)?;
        }
        if self.is_to_be_repeated() {
            return Ok(());
        }

        // The report is there; the last console lines may not be.
        let grace = deadline.min(Instant::now() + SHUTDOWN_GRACE);
        if self.domains.iter().all(Running::is_over) {
            self.wait_until(grace, |domain| domain.life != Life::Running)?;
        }
        // A deadline may have come between two looks: a domain that has crashed has not hung.
        self.look(Change::Domain)?;
        self.collect()
    }

    /// Everything that is measured: from the start line to the last domain's report.
    fn race(&mut self, deadline: Instant) -> Result<()> {
        let start = self.start_line(deadline)?;
        for domain in self.domains.iter().filter(|domain| !domain.is_over()) {
            self.host.write(&domain.node("go"), &start)?;
        }
        self.wait_until(deadline, |domain| domain.is_over())
    }

    /// One moment of Xen's own time for all domains, late enough that this host and its toolstack are at rest by
    /// then. Only a domain can read that time, so one of them is asked.
    fn start_line(&mut self, deadline: Instant) -> Result<String> {
        let mut racing = self.domains.iter().filter(|domain| !domain.is_over());
        let Some(first) = racing.next() else { return Ok(String::new()) };
        let domains = 1 + racing.count() as u32;
        let (go, clock) = (first.node("go"), first.node("clock"));
        let asked = Instant::now();
        self.host.write(&go, "clock")?;
        loop {
            if let Some(now) = self.host.read(&clock)? {
                let now: u64 =
                    now.parse().with_context(|| format!("{clock} is `{now}`, no time"))?;
                let left = deadline.saturating_duration_since(Instant::now());
                let after = self.plan.start_line_after(asked.elapsed(), domains, left);
                return Ok((now + after.as_nanos() as u64).to_string());
            }
            interrupt::check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.domains.iter().all(Running::is_over) {
                return Ok(String::new());
            }
            let change = self.host.wait(left)?;
            self.look(change)?;
        }
    }

    /// The nodes of these names, of every domain.
    fn nodes(&self, names: &[&str]) -> Vec<String> {
        self.domains.iter().flat_map(|domain| names.iter().map(|name| domain.node(name))).collect()
    }

    /// Creates the domains, each when the one before it is ready: a domain measures how fast it
    /// works while it comes up, and a toolstack that is at work would disturb it.
    fn create_all(&mut self, deadline: Instant) -> Result<()> {
        let linux_spin = linux::settle(self.plan.linux.as_ref(), self.policy)?;
        for planned in &self.plan.domains {
            interrupt::check()?;
            let config = self.folder.join(format!("{}.cfg", planned.name));
            fs::write(&config, self.plan.configuration(planned, self.policy, linux_spin)?)
                .with_context(|| format!("cannot write {}", config.display()))?;
            let domid = self.host.create(&planned.name, &config)?;
            self.domains.push(Running {
                planned,
                domid,
                state: String::new(),
                life: Life::Running,
            });
            (self.tell)(Event::DomainCreated { domain: planned.name.clone(), domid });
            self.host.watch(&self.nodes(&["state", "clock"]))?;
            let patience = deadline.min(Instant::now() + BOOT_PATIENCE);
            self.wait_until(patience, |domain| domain.state == "ready" || domain.is_over())?;
        }
        Ok(())
    }

    /// Whether a domain missed the start line, and there is another attempt.
    fn is_to_be_repeated(&self) -> bool {
        self.may_repeat && self.domains.iter().any(|domain| domain.state == LATE)
    }

    /// Sleeps until `enough` holds for all domains, the deadline has passed, or all is in vain.
    fn wait_until(&mut self, deadline: Instant, enough: impl Fn(&Running) -> bool) -> Result<()> {
        loop {
            interrupt::check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            let over = self.domains.iter().all(&enough) || self.is_to_be_repeated();
            if left.is_zero() || over {
                return Ok(());
            }
            let change = self.host.wait(left)?;
            self.look(change)?;
        }
    }

    fn look(&mut self, change: Change) -> Result<()> {
        for domain in &mut self.domains {
            // Before the state: a domain that is found dead has written its last state.
            if domain.life == Life::Running && change == Change::Domain {
                domain.life = self.host.life(domain.domid)?;
            }
            let state = self.host.read(&domain.node("state"))?.unwrap_or_default();
            if state != domain.state {
                domain.state = state.clone();
                (self.tell)(Event::DomainState { domain: domain.planned.name.clone(), state });
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<()> {
        for index in 0..self.domains.len() {
            let name = &self.domains[index].planned.name;
            let console = self.host.console(name)?;
            let log = self.folder.join(format!("console-{name}.log"));
            fs::write(&log, &console).with_context(|| format!("cannot write {}", log.display()))?;
            let mut result = self.result_of(index, &console);
            if result.end != End::Done {
                let more = self.explain(&mut result, &console)?;
                let message = format!("{}{more}", result.message);
                (self.tell)(Event::Problem { policy: self.policy.to_owned(), message });
            }
            write_json(&self.folder.join(format!("{}.json", result.name)), &result)?;
        }
        Ok(())
    }

    /// What can be told of a domain that did not end well, in lines below its message: the end of its
    /// console, and where Xen ended it without a word of its own, what Xen knows. Addresses get names.
    fn explain(&mut self, result: &mut DomainResult, console: &str) -> Result<String> {
        // A foreign image may be anything Xen boots: then there are no names.
        let image = fs::read(&self.plan.image).unwrap_or_default();
        let symbols = Symbols::read(&image).unwrap_or_default();
        let mut more = tail(&symbols.explain(console));
        let silent = !postmortem::OWN_WORDS.iter().any(|words| console.contains(words));
        if result.end == End::Crashed && silent {
            match postmortem::examine(self.host, result.domid, &symbols) {
                Ok(finding) => {
                    result.message = format!("{}: {}", result.message, finding.cause);
                    let lines = finding.backtrace.iter().map(|line| format!("\n    at {line}"));
                    let lines = lines.collect::<String>();
                    let file = self.folder.join(format!("crash-{}.txt", result.name));
                    fs::write(&file, format!("{}{lines}\n", result.message))
                        .with_context(|| format!("cannot write {}", file.display()))?;
                    more = format!("{lines}{more}");
                }
                // Not a reason to lose what was measured.
                Err(error) => {
                    let doubt = format!(" (Xen could not be asked why: {error:#})");
                    result.message.push_str(&doubt);
                }
            }
        }
        Ok(more)
    }

    fn result_of(&mut self, index: usize, console: &str) -> DomainResult {
        let domain = &self.domains[index];
        let name = domain.planned.name.clone();
        let domid = domain.domid;
        let (state, life) = (domain.state.clone(), domain.life);
        // Xenstore first; the console is the way that also works without one.
        let (report, doubt) =
            match self.report_in_xenstore(index).or_else(|_| report_on_console(console)) {
                Ok(report) => (Some(report), String::new()),
                Err(error) => (None, format!(" ({error:#})")),
            };
        // Where it could not begin, it has said why.
        let node = self.domains[index].node("error");
        let error = self.host.read(&node).ok().flatten();
        let seconds = self.plan.deadline.as_secs();
        let (end, message) = match (&report, life) {
            (None, _) if error.is_some() => {
                let why = error.unwrap_or_default();
                (End::Failed, format!("domain {name} could not begin: {why}"))
            }
            (Some(report), _) if report.outcome != experiment::record::Outcome::Success => {
                (End::Failed, format!("domain {name} reports {}", describe(report)))
            }
            (Some(_), Life::Crashed) => {
                (End::Failed, format!("domain {name} crashed after its report"))
            }
            (Some(_), _) => (End::Done, String::new()),
            (None, Life::Crashed) => (End::Crashed, format!("domain {name} crashed{doubt}")),
            (None, Life::Running) => {
                let state = if state.is_empty() {
                    "no state at all".to_owned()
                } else {
                    format!("state `{state}`")
                };
                let message =
                    format!("domain {name} hung: {state} at the deadline of {seconds} s{doubt}");
                (End::Hung, message)
            }
            (None, Life::ShutDown | Life::Gone) => {
                (End::NoReport, format!("domain {name} ended without a report{doubt}"))
            }
        };
        DomainResult { name, domid, end, message, report }
    }

    fn report_in_xenstore(&mut self, index: usize) -> Result<DomainReport> {
        let domain = &self.domains[index];
        let node = domain.node("result/count");
        let count = self.host.read(&node)?.with_context(|| format!("no {node} in xenstore"))?;
        let count: u32 =
            count.parse().with_context(|| format!("{node} is `{count}`, not a number"))?;
        let mut text = String::new();
        for piece in 0..count {
            let node = domain.node(&format!("result/{piece}"));
            text.push_str(
                &self.host.read(&node)?.with_context(|| format!("no {node} in xenstore"))?,
            );
        }
        parse_report(&text)
    }

    fn destroy_all(&mut self) -> Result<()> {
        let mut first_error = None;
        for domain in self.domains.drain(..) {
            if let Err(error) = self.host.destroy(domain.domid) {
                first_error.get_or_insert(
                    error.context(format!("domain {} may be left over", domain.planned.name)),
                );
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

fn report_on_console(console: &str) -> Result<DomainReport> {
    let mut decoder = Decoder::default();
    let mut last = None;
    for line in console.lines() {
        if let Some(text) = decoder.line(line)? {
            last = Some(text);
        }
    }
    match last {
        Some(text) => parse_report(&text),
        None => bail!("no report in xenstore and none on its console"),
    }
}

fn parse_report(text: &str) -> Result<DomainReport> {
    let unreadable = "its report is not one pvlab can read";
    let report: serde_json::Value = serde_json::from_str(text).context(unreadable)?;
    // First of all: what another schema's fields mean is not known.
    let (found, known) = (&report["schema"], experiment::record::SCHEMA);
    if *found != known {
        bail!(
            "its report has schema {found}, this pvlab reads {known}; use the image of the same version"
        );
    }
    serde_json::from_value(report).context(unreadable)
}

fn describe(report: &DomainReport) -> String {
    use experiment::record::Outcome::{Error, Failure, Skip, Success};
    match &report.outcome {
        Success => "success".to_owned(),
        Skip(reason) => format!("that it cannot run here: {reason}"),
        Error(reason) => format!("an error: {reason}"),
        Failure(reason) if broken_off(report) => format!(
            "NO PROGRESS: {reason}; its watchdog broke the run off, so exclusion was not checked"
        ),
        Failure(reason) => format!("a FAILED CHECK: {reason}"),
    }
}

/// The last lines of a console, as a block below a message: of a crash report all.
fn tail(console: &str) -> String {
    let lines: Vec<_> = console.lines().filter(|line| !line.contains("pvlab-result")).collect();
    let report = lines.iter().position(|line| line.contains(CRASH_REPORT)).unwrap_or(lines.len());
    let from = lines.len().saturating_sub(TAIL).min(report);
    let shown = &lines[from.max(lines.len().saturating_sub(LONG_TAIL))..];
    if shown.is_empty() {
        return "; its console is empty".to_owned();
    }
    format!("; its console ends:\n    {}", shown.join("\n    "))
}

fn write_json(file: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    text.push('\n');
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests;
