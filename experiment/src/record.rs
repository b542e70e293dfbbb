//! The one record a guest writes and pvlab reads.
//!
//! Owns the shape of a domain's result: what ran, what came out, how the waits were distributed,
//! which counters moved; and how it travels ([`framing`]). It never computes a verdict from them (the
//! guest decides [`Outcome`], the report decides what to show).
//!
//! The record travels as one JSON document (see `docs/results.md` for the schema and its version).

pub mod framing;
mod histogram;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

pub use histogram::Histogram;

use crate::keys::Params;
use crate::lock::Lock;
use crate::names::{DomainType, EventAbi, Trace, Workload};
use crate::params::Limit;

/// Version of the JSON document. It grows by one whenever a field changes its meaning or goes away;
/// a new field with a default does not change it.
pub const SCHEMA: u32 = 1;

/// Everything one domain reports about one run of one workload.
///
/// ```
/// use experiment::record::DomainReport;
///
/// let report = DomainReport::default();
/// let text = serde_json::to_string(&report).unwrap();
/// let back: DomainReport = serde_json::from_str(&text).unwrap();
/// assert_eq!(back, report);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DomainReport {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// Domain id as Xen gave it, or 0 where the guest could not learn it.
    pub domid: u16,
    /// How the domain was booted.
    pub domain_type: DomainType,
    /// The event channel ABI it used.
    #[serde(default)]
    pub events: EventAbi,
    /// Version of the guest image (`CARGO_PKG_VERSION`).
    pub image: String,
    /// What was asked for, after defaults were filled in.
    pub parameters: Parameters,
    /// How it ended.
    pub outcome: Outcome,
    /// What the guest measured to turn the times asked for into loops.
    #[serde(default)]
    pub calibration: Calibration,
    /// The window all vCPUs had in common; zeros where the run had none.
    #[serde(default)]
    pub window: Window,
    /// Time from the start line to the end of the last vCPU's share, in nanoseconds; each vCPU measures
    /// its own by its own PV clock.
    pub elapsed_ns: u64,
    /// Value of the non-atomic counters the locks protect, summed over all locks.
    pub counter: u64,
    /// Sum over all vCPUs; equals `counter` exactly when mutual exclusion held.
    pub acquisitions: u64,
    /// One entry per vCPU that took part, in order of its number.
    pub vcpus: Vec<VcpuReport>,
    /// Time from the call of `lock` to owning the lock, in nanoseconds, over all vCPUs.
    pub latency: Histogram,
    /// Sum over all vCPUs of the lock's counters, by the field's names (`pv_kick_unlock`, ...).
    pub counters: BTreeMap<String, u64>,
}

/// One vCPU's share of a [`DomainReport`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VcpuReport {
    /// The vCPU's number, from 0.
    pub id: u32,
    /// How many times it owned a lock.
    pub acquisitions: u64,
    /// How many of these acquisitions blocked in the hypervisor at least once.
    pub blocked_acquisitions: u64,
    /// How often it blocked in the hypervisor in all.
    pub waits: u64,
    /// How many of these waits ended by a kick; the others found their condition gone, were ended by
    /// another event, or ran into the deadline of the poll.
    #[serde(default)]
    pub kicked_waits: u64,
    /// The longest wait for a lock, in nanoseconds.
    pub longest_wait_ns: u64,
    /// How long it could have run and the hypervisor ran somebody else, during the workload, in
    /// nanoseconds: Xen's own account (`RUNSTATE_runnable`).
    #[serde(default)]
    pub stolen_ns: u64,
    /// How many of its acquisitions came after the window's end: asked for before, owned later.
    #[serde(default)]
    pub late_acquisitions: u64,
    /// How long it ran during the workload, in nanoseconds: Xen's account (`RUNSTATE_running`).
    #[serde(default)]
    pub running_ns: u64,
    /// How long it slept in the hypervisor during the workload (`RUNSTATE_blocked`).
    #[serde(default)]
    pub blocked_ns: u64,
}

/// The time in which a run was measured, by Xen's own clock, which all domains of a host share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The start line, in nanoseconds of Xen's system time.
    pub start_ns: u64,
    /// Its end; 0 where the run ended after so many acquisitions.
    pub end_ns: u64,
}

/// How fast the machine under a domain turned out to be; the times in [`Parameters`] become loops by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// Turns of the work loop in a millisecond of a vCPU that runs undisturbed. 0: it could not be
    /// measured, and all work was given in turns.
    pub work_turns_per_ms: u64,
    /// Turns of a waiter's spin loop in a millisecond of a vCPU that runs undisturbed. 0: likewise.
    pub spin_turns_per_ms: u64,
    /// Turns a waiter spins before it blocks: the spin time asked for.
    pub spin_turns: u32,
    /// Turns of work in the critical section.
    #[serde(default)]
    pub critical_turns: u64,
    /// Mean turns of work outside.
    #[serde(default)]
    pub outside_turns: u64,
    /// What one uncontended acquisition costs with no work in it, clock and bookkeeping of the loop around it
    /// included, in nanoseconds. 0: it could not be measured, or the workload is no such loop.
    #[serde(default)]
    pub loop_ns: u64,
}

/// What the guest was asked to do, after defaults were filled in. All times in nanoseconds.
///
/// Of the keys of the command line, those that say what the figures are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// What the lock was used for.
    pub workload: Workload,
    /// The lock under test.
    pub policy: Lock,
    /// vCPUs that took part.
    pub vcpus: u32,
    /// Number of locks they shared.
    pub locks: u32,
    /// Length of the critical section: work, so a preempted holder's time does not count. 0 where it was given
    /// in turns, as the two below: see [`Calibration`].
    pub critical_ns: u64,
    /// Mean time between two acquisitions of one vCPU: work.
    pub outside_ns: u64,
    /// How far the time outside varies around its mean, in percent.
    pub jitter_percent: u32,
    /// How long a waiter spins before it blocks.
    pub spin_ns: u64,
    /// Acquisitions each vCPU had to make, or 0 where `duration_ns` was the limit.
    pub acquisitions: u64,
    /// How long the run lasted, or 0 where `acquisitions` was the limit.
    pub duration_ns: u64,
    /// Seed of the pseudo-random numbers.
    pub seed: u64,
    /// Whether markers were written into the hypervisor's trace.
    pub markers: bool,
}

impl From<&Params> for Parameters {
    fn from(params: &Params) -> Self {
        let (acquisitions, duration_ns) = match params.limit() {
            Limit::Acquisitions(n) => (n, 0),
            Limit::Duration(time) => (0, time.ns()),
        };
        Parameters {
            workload: params.workload,
            policy: params.policy.into(),
            vcpus: params.vcpus,
            locks: params.locks,
            critical_ns: params.critical.ns(),
            outside_ns: params.outside.ns(),
            jitter_percent: params.jitter,
            spin_ns: params.spin.ns(),
            acquisitions,
            duration_ns,
            seed: params.seed,
            markers: params.trace == Trace::Markers,
        }
    }
}

/// Those of an empty command line.
impl Default for Parameters {
    fn default() -> Self {
        Parameters::from(&Params::default())
    }
}

/// How a run ended; of several, the most severe wins, so they are ordered by severity.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", content = "reason")]
pub enum Outcome {
    /// Everything asked for was done and every check held.
    #[default]
    Success,
    /// The run was not possible here, for the reason given.
    Skip(String),
    /// The surroundings failed (a parameter, a hypercall), so nothing is known of the lock.
    Error(String),
    /// A check failed: the lock is broken.
    Failure(String),
}
