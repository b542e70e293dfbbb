//! What came out of a run: one record, made from the files a run left.
//!
//! Owns the reading of a run's folder, results.json and the verdict. It measures nothing and changes
//! nothing but results.json: `pvlab report DIR` makes the same record again from the same files.

mod compare;
mod figures;
mod page;
mod table;

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use experiment::record::Outcome;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use compare::differences;
pub(crate) use figures::{duration, grouped};
pub use page::page;
pub use table::table;

use crate::host::{DomainResult, End};
use crate::plan::Plan;
use crate::speeds::Speeds;

/// Version of results.json (docs/results.md). It grows by one whenever a field changes its meaning or
/// goes away; a new field does not change it.
pub const SCHEMA: u32 = 1;

/// The report as a page, in a run's folder.
pub const PAGE: &str = "report.html";

/// The file a run's folder is known by.
pub const RUN_FILE: &str = "run.json";

/// How a run was made: `run.json`, written before it starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`SCHEMA`] of the pvlab that made it.
    #[serde(default = "first_schema")]
    pub schema: u32,
    /// Where the domains ran.
    pub mode: Mode,
    /// What was run.
    pub plan: Plan,
}

/// Records had no version before the second one.
fn first_schema() -> u32 {
    1
}

/// Where the domains ran, and so what their times mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// On this machine's own Xen: times are real.
    Host,
    /// In the emulator, its pCPUs in parallel: times are the emulator's, counts are those of one run.
    Parallel,
    /// In the emulator, counting instructions: the same run again gives the same figures.
    Repeatable,
    /// By `pvlock-sim`, without a hypervisor: times are virtual.
    Simulated,
}

/// Everything a run found: `results.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The scenario's name.
    pub scenario: String,
    /// Where it ran.
    pub mode: Mode,
    /// What was changed with `--set`, as `key=value`.
    pub settings: Vec<String>,
    /// Whether the guests marked waits and kicks in the trace.
    pub markers: bool,
    /// The versions of everything that could matter.
    pub versions: serde_json::Value,
    /// One entry a policy, in the order they ran.
    pub policies: Vec<PolicyResult>,
}

/// What one policy came to.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyResult {
    /// The policy's name.
    pub policy: String,
    /// How many domains were to run.
    pub planned: usize,
    /// One entry a domain. Fewer than planned if the run was cut short.
    pub domains: Vec<DomainResult>,
    /// Files of domains that are there and cannot be read, and why.
    pub unreadable: Vec<String>,
    /// What the hypervisor's trace shows; `None` if there is no trace that can be read.
    pub trace: Option<kicktrace::Summary>,
    /// Why there is none although it was asked for.
    pub trace_problem: Option<String>,
}

/// What a run means for the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Every domain reported and every check held.
    Good,
    /// A domain crashed, hung or could not do what it was asked.
    Incomplete,
    /// A check failed: mutual exclusion or progress was broken.
    Broken,
}

impl Results {
    /// Reads what a run left in `folder`.
    ///
    /// # Errors
    ///
    /// If it is not a run's folder, or run.json or versions.json is damaged, or anything in it was written by
    /// a later pvlab. A domain's file or a trace that cannot be read is no error: the result says so.
    pub fn read(folder: &Path) -> Result<Results> {
        let record = folder.join(RUN_FILE);
        if !record.is_file() {
            anyhow::bail!("{} is not a run's folder: it has no {RUN_FILE}", folder.display());
        }
        let record: serde_json::Value = read_json(&record)?;
        known_schema(&record, SCHEMA, &folder.join(RUN_FILE))?;
        let RunRecord { mode, plan, .. } = serde_json::from_value(record)
            .with_context(|| format!("{} is damaged", folder.join(RUN_FILE).display()))?;
        let versions = folder.join("versions.json");
        let versions =
            if versions.is_file() { read_json(&versions)? } else { serde_json::Value::Null };
        let policies = plan.policies.iter().map(|policy| PolicyResult::read(folder, &plan, policy));
        Ok(Results {
            schema: SCHEMA,
            scenario: plan.scenario.clone(),
            mode,
            settings: plan
                .settings
                .iter()
                .map(|set| format!("{}={}", set.key, set.value))
                .collect(),
            markers: plan.markers,
            versions,
            policies: policies.collect::<Result<_>>()?,
        })
    }

    /// Writes `results.json` and `report.html` into `folder`.
    ///
    /// # Errors
    ///
    /// If one of them cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        for (name, text) in [("results.json", self.json()?), (PAGE, page(self))] {
            let file = folder.join(name);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// The record as JSON on one line, with a line end.
    ///
    /// # Errors
    ///
    /// If a figure cannot be written as JSON, which no figure of this record is.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string(self).context("cannot write results.json")? + "\n")
    }

    /// The verdict over all policies; the worst counts.
    pub fn verdict(&self) -> Verdict {
        let policies = self.policies.iter().map(PolicyResult::verdict).max();
        let speeds = self.refused_speeds().map_or(Verdict::Good, |_| Verdict::Incomplete);
        policies.unwrap_or(Verdict::Incomplete).max(speeds)
    }

    /// What is wrong, a line each; empty if nothing is.
    pub fn problems(&self) -> Vec<String> {
        let of_policies = self.policies.iter().flat_map(PolicyResult::problems);
        of_policies.chain(self.refused_speeds()).collect()
    }

    /// Where the domains of all policies do not agree how fast their host is, and so did not do the
    /// same work in a time of it. Turns of work are the same at any speed.
    fn speed_doubt(&self) -> Option<String> {
        let domains = self.policies.iter().flat_map(|policy| &policy.domains);
        let reports = domains
            .filter_map(DomainResult::whole)
            .filter(|report| report.parameters.critical_ns > 0 || report.parameters.outside_ns > 0);
        Speeds::of(reports.map(|report| &report.calibration))?.agree().err()
    }

    /// The same, where it can only be a fault: where instructions are counted. A host's clock rate
    /// moves by more than that between two policies, and counts and ratios of kicks stand.
    fn refused_speeds(&self) -> Option<String> {
        let doubt = self.speed_doubt().filter(|_| self.mode == Mode::Repeatable)?;
        Some(format!("{doubt}; run it again, or give the work in turns (critical=125turns)"))
    }
}

impl PolicyResult {
    fn read(folder: &Path, plan: &Plan, policy: &str) -> Result<PolicyResult> {
        let folder = folder.join(policy);
        let (mut domains, mut unreadable) = (Vec::new(), Vec::new());
        for domain in &plan.domains {
            let file = folder.join(format!("{}.json", domain.name));
            if !file.is_file() {
                continue;
            }
            match read_domain(&file) {
                Ok(result) => domains.push(compared(result, plan, policy)),
                Err(error) if error.is::<Later>() => return Err(error),
                Err(error) => unreadable.push(format!("{error:#}")),
            }
        }
        let (trace, trace_problem) = match summary_of(&folder.join("trace.bin")) {
            Ok(summary) => (Some(summary), None),
            // Nobody asked for one.
            Err(_) if !plan.trace => (None, None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let (policy, planned) = (policy.to_owned(), plan.domains.len());
        Ok(PolicyResult { policy, planned, domains, unreadable, trace, trace_problem })
    }

    /// Whether the protected counter of every domain whose run came to its end equals its acquisitions;
    /// `None` if there is no such domain.
    pub fn counter_exact(&self) -> Option<bool> {
        let mut reports = self.domains.iter().filter_map(DomainResult::whole).peekable();
        reports.peek()?;
        Some(reports.all(|report| report.counter == report.acquisitions))
    }

    /// Whether every domain that was to run has run to its end, and has said so.
    pub fn is_whole(&self) -> bool {
        self.planned > 0
            && self.domains.len() == self.planned
            && self.domains.iter().all(|domain| domain.whole().is_some())
    }

    fn verdict(&self) -> Verdict {
        let of = |domain: &DomainResult| {
            let broken = domain.report.as_ref().is_some_and(|report| {
                let lost_wakeup =
                    report.counters.get("pv_poll_timeout").is_some_and(|count| *count > 0);
                matches!(report.outcome, Outcome::Failure(_)) || lost_wakeup
            });
            let broken = broken || counted_wrong(domain).is_some();
            match domain.end {
                _ if broken => Verdict::Broken,
                End::Done => Verdict::Good,
                _ => Verdict::Incomplete,
            }
        };
        let domains = self.domains.iter().map(of).max().unwrap_or(Verdict::Incomplete);
        let trace = if self.trace_doubt().is_some() { Verdict::Incomplete } else { Verdict::Good };
        let missing = self.domains.len() < self.planned;
        let all = if missing { Verdict::Incomplete } else { Verdict::Good };
        domains.max(trace).max(all)
    }

    /// Why the figures from the trace are missing, or not all there.
    fn trace_doubt(&self) -> Option<String> {
        if let Some(problem) = &self.trace_problem {
            return Some(format!("no figures from the trace: {problem}"));
        }
        let cut = self.trace.as_ref()?.reading.truncated?;
        let (at, missing) = (cut.offset, cut.missing);
        Some(format!(
            "trace.bin is cut at byte {at}, {missing} bytes before its last window ends: the figures \
             from the trace count what is before it; run again, with room for the trace"
        ))
    }

    fn problems(&self) -> Vec<String> {
        let policy = &self.policy;
        let mut problems = Vec::new();
        problems.extend(self.unreadable.iter().map(|what| format!("{policy}: {what}")));
        let (found, planned) = (self.domains.len(), self.planned);
        if found == 0 && self.unreadable.is_empty() {
            problems.push(format!("{policy}: no domain has left a result"));
        } else if found < planned {
            let what = format!("results of {found} domains, not of {planned}");
            problems.push(format!("{policy}: {what}: figures are of those that are there"));
        }
        for domain in &self.domains {
            let name = &domain.name;
            if !domain.message.is_empty() {
                problems.push(format!("{policy}: {}", domain.message));
            }
            let Some(report) = &domain.report else { continue };
            if let Some((counter, made)) = counted_wrong(domain) {
                let what =
                    format!("the counter under the lock is {counter} after {made} acquisitions");
                problems.push(format!("{policy}: domain {name}: MUTUAL EXCLUSION BROKEN: {what}"));
            }
            let expired = report.counters.get("pv_poll_timeout").copied().unwrap_or(0);
            if expired > 0 {
                let what = format!("{expired} polls ended by their deadline alone");
                problems.push(format!("{policy}: domain {name}: LOST WAKE-UP: {what}"));
            }
        }
        problems.extend(self.trace_doubt().map(|doubt| format!("{policy}: {doubt}")));
        problems
    }
}

/// Counter and acquisitions of a domain whose run came to its end, if they differ.
fn counted_wrong(domain: &DomainResult) -> Option<(u64, u64)> {
    let report = domain.whole()?;
    (report.counter != report.acquisitions).then_some((report.counter, report.acquisitions))
}

/// A domain that ran something else than it was asked for, or whose result cannot be, has failed,
/// whatever it says.
fn compared(mut result: DomainResult, plan: &Plan, policy: &str) -> DomainResult {
    let name = &result.name;
    let mut told = Vec::from([result.message.clone()]);
    match &result.report {
        None if result.end == End::Done => {
            told.push(format!("domain {name} was done and left no report: its file is damaged"));
        }
        None => {}
        Some(report) => {
            let differences = plan.mismatch(name, policy, report);
            if !differences.is_empty() {
                let differences = differences.join("; ");
                told.push(format!(
                    "domain {name} DID NOT RUN what this column says: {differences}"
                ));
            }
            if result.end == End::Done && report.acquisitions == 0 {
                told.push(format!("domain {name} made no acquisition: nothing was tested"));
            }
            let of_vcpus = report.vcpus.iter().map(|vcpu| vcpu.acquisitions);
            let sum = of_vcpus.fold(0u64, u64::saturating_add);
            if !report.vcpus.is_empty() && sum != report.acquisitions {
                let said = report.acquisitions;
                told.push(format!(
                    "domain {name} reports {said} acquisitions, and {sum} by its vCPUs: its file is damaged"
                ));
            }
        }
    }
    if told.len() > 1 && result.end == End::Done {
        result.end = End::Failed;
    }
    told.retain(|message| !message.is_empty());
    result.message = told.join("; ");
    result
}

fn read_domain(file: &Path) -> Result<DomainResult> {
    let result: serde_json::Value = read_json(file)?;
    known_schema(&result["report"], experiment::record::SCHEMA, file)?;
    serde_json::from_value(result).with_context(|| format!("{} is damaged", file.display()))
}

/// A file that a later pvlab wrote.
#[derive(Debug, thiserror::Error)]
#[error("{}: schema {found}, this pvlab reads up to {known}; use the pvlab that wrote it, or a later one", file.display())]
struct Later {
    file: PathBuf,
    found: u64,
    known: u32,
}

/// Refuses what a later pvlab wrote: what its fields mean is not known.
fn known_schema(document: &serde_json::Value, known: u32, file: &Path) -> Result<()> {
    match document["schema"].as_u64() {
        Some(found) if found > known.into() => {
            Err(Later { file: file.to_owned(), found, known }.into())
        }
        _ => Ok(()),
    }
}

fn summary_of(file: &Path) -> Result<kicktrace::Summary> {
    let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let options = kicktrace::Options::default();
    kicktrace::summarise(BufReader::new(opened), &options)
        .with_context(|| file.display().to_string())
}

fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))
}

#[cfg(test)]
mod tests {
    use experiment::record::DomainReport;

    use super::*;

    /// What is said of a run of one policy without a trace file.
    fn problems_of_a_run_with(trace: bool) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let plan = serde_json::json!({
            "scenario": "s", "policies": ["spin"], "domains": [], "image": "i", "settings": [],
            "markers": false, "trace": trace, "deadline": { "secs": 1, "nanos": 0 },
        });
        let record = serde_json::json!({ "mode": "parallel", "plan": plan }).to_string();
        fs::write(folder.path().join(RUN_FILE), record).unwrap();
        Results::read(folder.path()).unwrap().problems()
    }

    #[test]
    fn a_missing_trace_is_a_problem_only_if_it_was_asked_for() {
        let tell = |problems: &[String]| problems.iter().any(|p| p.contains("from the trace"));
        assert!(tell(&problems_of_a_run_with(true)));
        assert!(!tell(&problems_of_a_run_with(false)));
    }

    #[test]
    fn domains_that_do_not_agree_how_fast_their_host_is_are_told_and_refused_where_nothing_may_differ()
     {
        let domain = |speed, critical_ns| {
            let mut report = DomainReport { acquisitions: 1, counter: 1, ..Default::default() };
            report.elapsed_ns = 1;
            report.calibration.work_turns_per_ms = speed;
            report.parameters.critical_ns = critical_ns;
            report.parameters.outside_ns = 0;
            let (name, message) = ("a".to_owned(), String::new());
            DomainResult { name, domid: 1, end: End::Done, message, report: Some(report) }
        };
        let results = |mode, domains: Vec<DomainResult>| Results {
            schema: SCHEMA,
            scenario: "s".to_owned(),
            mode,
            settings: Vec::new(),
            markers: false,
            versions: serde_json::Value::Null,
            policies: vec![PolicyResult {
                policy: "spin".to_owned(),
                planned: domains.len(),
                domains,
                unreadable: Vec::new(),
                trace: None,
                trace_problem: None,
            }],
        };
        let apart = || vec![domain(62_500, 500), domain(61_500, 500)];
        let refused = results(Mode::Repeatable, apart());
        assert_eq!(refused.verdict(), Verdict::Incomplete);
        let told = "how fast this host is: 61500 to 62500 turns of work in a millisecond; run";
        assert!(refused.problems()[0].contains(told), "{:?}", refused.problems());
        let close = results(Mode::Repeatable, vec![domain(62_500, 500), domain(62_250, 500)]);
        assert_eq!((close.verdict(), close.problems()), (Verdict::Good, Vec::new()));
        let turns = results(Mode::Repeatable, vec![domain(62_500, 0), domain(61_500, 0)]);
        assert_eq!(turns.verdict(), Verdict::Good);
        // Elsewhere it is told, and no more.
        for mode in [Mode::Host, Mode::Parallel] {
            let told = results(mode, apart());
            assert_eq!(told.verdict(), Verdict::Good);
            assert!(table(&told, None).contains("61500 to 62500 turns"), "{}", table(&told, None));
        }
    }

    #[test]
    fn a_trace_that_is_cut_makes_a_run_incomplete_and_keeps_its_figures() {
        // A window that announces 64 bytes and has 4: a record header without its time stamp.
        let words: [u32; 4] = [0x2001_f003, 0, 64, 0x8002_1101];
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), words.map(u32::to_le_bytes).concat()).unwrap();
        let result = PolicyResult {
            policy: "spin".to_owned(),
            planned: 1,
            unreadable: Vec::new(),
            domains: vec![DomainResult {
                name: "a".to_owned(),
                domid: 1,
                end: End::Done,
                message: String::new(),
                report: None,
            }],
            trace: Some(summary_of(file.path()).unwrap()),
            trace_problem: None,
        };
        assert_eq!(result.verdict(), Verdict::Incomplete);
        let problems = result.problems().join("\n");
        assert!(problems.contains("cut at byte 16, 60 bytes before"), "{problems}");
    }
}
