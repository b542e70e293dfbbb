//! What is counted of a cell.
//!
//! Owns the figures, their names and units, and how each comes out of what the domains and the hypervisor's
//! trace say. It judges nothing.

use std::collections::BTreeMap;

use experiment::record::{DomainReport, Histogram};
use experiment::{Lock, Workload};
use serde::{Deserialize, Serialize};

use super::stats::jain;
use crate::host::DomainResult;
use crate::speeds::Speeds;

/// What a Xen host tells of one cell when it is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// One entry a domain.
    pub domains: Vec<DomainResult>,
    /// Counts of the trace by domain number: hypercalls and what they did.
    pub traced: BTreeMap<u32, Traced>,
    /// Why the trace says nothing, where it was asked for.
    pub trace_problem: Option<String>,
    /// What the neighbours that only compute made in this boot with this section and nobody beside them, in turns a
    /// second, or why that is not known; `None` without neighbours.
    #[serde(default)]
    pub neighbour_alone: Option<Result<f64, String>>,
}

/// Work of those of the domains that only compute, in turns a second of the window; `None` if none
/// of them does. They have run well.
pub(super) fn computed(domains: &[DomainResult]) -> Option<f64> {
    let mut hogs = domains
        .iter()
        .filter_map(|domain| domain.report.as_ref())
        .filter(|report| report.parameters.workload == Workload::Hog)
        .peekable();
    hogs.peek()?;
    Some(hogs.map(turns_a_second).sum())
}

fn turns_a_second(hog: &DomainReport) -> f64 {
    let window = hog.window.end_ns.saturating_sub(hog.window.start_ns).max(1);
    hog.acquisitions as f64 * hog.calibration.critical_turns as f64 * 1e9 / window as f64
}

/// What the hypervisor's trace counts of one domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// Event channel operations: kicks, among them those that woke nobody.
    pub evtchn_ops: u64,
    /// Of those: woke a vCPU of the domain.
    pub waking_kicks: u64,
    /// Polls.
    pub polls: u64,
    /// Polls that gave the pCPU away.
    pub polls_blocked: u64,
}

/// The figures of one cell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Acquisitions a second, of all vCPUs at a lock, over the one window they have in common.
    pub rate: f64,
    /// Waits for the lock in nanoseconds: half of them, 99 %, 99.9 %, and all were not longer.
    pub p50_ns: u64,
    /// See above.
    pub p99_ns: u64,
    /// See above.
    pub p999_ns: u64,
    /// See above.
    pub longest_ns: u64,
    /// Jain's index over the vCPUs at a lock.
    pub jain: f64,
    /// Of an acquisition, by the trace: event channel operations and polls.
    pub hypercalls: Option<f64>,
    /// Event channel operations.
    pub kicks: Option<f64>,
    /// Kicks that woke a vCPU.
    pub waking_kicks: Option<f64>,
    /// Polls that blocked.
    pub blocks: Option<f64>,
    /// Waking kicks of an acquisition that blocked, by the guest's count; `None` for Linux, which does not count.
    pub kicks_per_blocked: Option<f64>,
    /// Of the vCPUs' time in the window: running, but neither working nor in the loop around the lock.
    pub spun: Option<f64>,
    /// Asleep in the hypervisor.
    pub blocked: Option<f64>,
    /// Able to run, and another ran.
    pub stolen: Option<f64>,
    /// Work of the neighbour that only computes, in turns a second; `None` without one.
    pub neighbour: Option<f64>,
    /// Of what the neighbour makes with nobody beside it: the part that it lost. `None` without one.
    #[serde(default)]
    pub neighbour_loss: Option<f64>,
    /// Turns of work in a millisecond, of the slowest and of the fastest domain as each measured it.
    pub work_turns_per_ms: (u64, u64),
    /// Turns of work inside and outside.
    pub turns: (u64, u64),
    /// What the loop around the lock costs, in nanoseconds.
    pub loop_ns: u64,
    /// Turns a waiter spins before it sleeps, where the lock counts them.
    pub spin_turns: u32,
    /// How the waits are distributed: lower bound in nanoseconds and count.
    pub latency: Vec<(u64, u64)>,
    /// The handlers of timers, where they take the lock too: all that is above is the tasks'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupts: Option<Interrupts>,
}

/// What handlers of timers got of the tasks' lock, in the domain where they waited longest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interrupts {
    /// Acquisitions, until the last task was done.
    pub acquisitions: u64,
    /// Waits for the lock in nanoseconds: half of them, 99 %, 99.9 %, and all were not longer.
    pub p50_ns: u64,
    /// See above.
    pub p99_ns: u64,
    /// See above.
    pub p999_ns: u64,
    /// See above.
    pub longest_ns: u64,
}

impl Interrupts {
    /// What `report` tells of them; `None` where they do not take the lock.
    fn of(report: &DomainReport) -> Option<Interrupts> {
        let told = |name| report.counters.get(name).copied();
        Some(Interrupts {
            acquisitions: told("interrupt_acquisitions")?,
            p50_ns: told("interrupt_wait_p50_ns")?,
            p99_ns: told("interrupt_wait_p99_ns")?,
            p999_ns: told("interrupt_wait_p999_ns")?,
            longest_ns: told("interrupt_wait_max_ns")?,
        })
    }
}

impl Figures {
    /// The figures of a cell whose domains told of a run of `lock`.
    ///
    /// # Errors
    ///
    /// A sentence about what keeps the cell from having figures: a domain that failed, a window that is not common, a
    /// calibration that disagrees.
    pub fn of(lock: Lock, told: &Told) -> Result<Figures, String> {
        if let Some(bad) = told.domains.iter().find(|domain| !domain.message.is_empty()) {
            return Err(bad.message.clone());
        }
        if let Some(problem) = &told.trace_problem {
            return Err(format!("no figures from the trace: {problem}"));
        }
        let mut figures = Figures::default();
        let mut latency = Histogram::default();
        let (mut shares, mut made, mut late, mut blocked) = (Vec::new(), 0, 0, 0);
        let (mut running, mut asleep, mut stolen, mut work) = (0, 0, 0, 0.0);
        let (mut window, mut speeds) = (None, Vec::new());
        let mut traced = Traced::default();
        for domain in &told.domains {
            let name = &domain.name;
            let report =
                domain.report.as_ref().ok_or_else(|| format!("domain {name} left no report"))?;
            if report.counter != report.acquisitions {
                return Err(format!("domain {name}: mutual exclusion is broken"));
            }
            let own = (report.window.start_ns, report.window.end_ns);
            if own.1 <= own.0 || *window.get_or_insert(own) != own {
                return Err(format!(
                    "domain {name} has no window in common with the others: {own:?} ns"
                ));
            }
            let calibration = report.calibration;
            if calibration.work_turns_per_ms == 0 {
                return Err(format!("domain {name} could not measure how fast its host is"));
            }
            speeds.push(calibration);
            let own_late: u64 = report.vcpus.iter().map(|vcpu| vcpu.late_acquisitions).sum();
            if report.parameters.workload.has_no_lock() {
                continue;
            }
            if report.parameters.policy != lock {
                return Err(format!("domain {name} ran {}, not {lock}", report.parameters.policy));
            }
            made += report.acquisitions;
            late += own_late;
            figures.turns = (calibration.critical_turns, calibration.outside_turns);
            figures.loop_ns = calibration.loop_ns;
            figures.spin_turns = calibration.spin_turns;
            for vcpu in &report.vcpus {
                shares.push(
                    (vcpu.acquisitions - vcpu.late_acquisitions.min(vcpu.acquisitions)) as f64,
                );
                blocked += vcpu.blocked_acquisitions;
                running += vcpu.running_ns;
                asleep += vcpu.blocked_ns;
                stolen += vcpu.stolen_ns;
            }
            let turns = (calibration.critical_turns + calibration.outside_turns) as f64;
            let turn_ns = 1e6 / calibration.work_turns_per_ms as f64;
            work += report.acquisitions as f64 * (turns * turn_ns + calibration.loop_ns as f64);
            latency.merge(&report.latency);
            let own = Interrupts::of(report);
            let longest = |of: &Option<Interrupts>| of.map_or(0, |of| of.longest_ns);
            if own.is_some() && longest(&own) >= longest(&figures.interrupts) {
                figures.interrupts = own;
            }
            if let Some(seen) = told.traced.get(&domain.domid) {
                traced.evtchn_ops += seen.evtchn_ops;
                traced.waking_kicks += seen.waking_kicks;
                traced.polls += seen.polls;
                traced.polls_blocked += seen.polls_blocked;
            }
        }
        figures.neighbour = computed(&told.domains);
        figures.neighbour_loss = match (&told.neighbour_alone, figures.neighbour) {
            (Some(Err(why)), _) => return Err(format!("the neighbour alone: {why}")),
            (Some(Ok(alone)), Some(beside)) => Some(1.0 - beside / alone),
            _ => None,
        };
        if let Some(speeds) = Speeds::of(&speeds) {
            figures.work_turns_per_ms = (speeds.slowest, speeds.fastest);
            speeds.agree()?;
        }
        let Some((start, end)) = window.filter(|_| made > 0) else {
            return Err("nobody got a lock".to_owned());
        };
        figures.rate = (made - late.min(made)) as f64 * 1e9 / (end - start) as f64;
        figures.jain = jain(&shares).unwrap_or(0.0);
        [figures.p50_ns, figures.p99_ns, figures.p999_ns] =
            [0.5, 0.99, 0.999].map(|q| latency.quantile(q));
        figures.longest_ns = latency.max();
        figures.latency = latency.buckets().collect();
        if !told.traced.is_empty() {
            let each = |count: u64| Some(count as f64 / made as f64);
            figures.hypercalls = each(traced.evtchn_ops + traced.polls);
            figures.kicks = each(traced.evtchn_ops);
            figures.waking_kicks = each(traced.waking_kicks);
            figures.blocks = each(traced.polls_blocked);
            figures.kicks_per_blocked =
                (blocked > 0).then(|| traced.waking_kicks as f64 / blocked as f64);
            // The kicks of handlers are among these, their waits not among those.
            figures.kicks_per_blocked.take_if(|_| figures.interrupts.is_some());
        }
        let all = (running + asleep + stolen).max(1) as f64;
        figures.spun = Some(((running as f64 - work) / all).max(0.0));
        figures.blocked = Some(asleep as f64 / all);
        figures.stolen = Some(stolen as f64 / all);
        Ok(figures)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use experiment::record::{Calibration, Parameters, VcpuReport, Window};
    use experiment::{Params, Policy};

    use super::*;
    use crate::host::End;

    pub(crate) fn domain(name: &str, line: &str) -> DomainResult {
        let params = Params::parse(line, 2).unwrap();
        let vcpu = |id| VcpuReport {
            id,
            acquisitions: 51,
            late_acquisitions: 1,
            blocked_acquisitions: 10,
            running_ns: 40_000_000,
            stolen_ns: 50_000_000,
            blocked_ns: 10_000_000,
            ..VcpuReport::default()
        };
        let mut latency = Histogram::default();
        (0..102).for_each(|n| latency.record(n * 1000));
        DomainResult {
            name: name.to_owned(),
            domid: 1,
            end: End::Done,
            message: String::new(),
            report: Some(DomainReport {
                parameters: Parameters::from(&params),
                calibration: Calibration {
                    work_turns_per_ms: 62_500,
                    critical_turns: 1_000,
                    outside_turns: 2_000,
                    loop_ns: 1_000,
                    ..Calibration::default()
                },
                window: Window { start_ns: 5, end_ns: 100_000_005 },
                counter: 102,
                acquisitions: 102,
                vcpus: vec![vcpu(0), vcpu(1)],
                latency,
                ..DomainReport::default()
            }),
        }
    }

    fn told() -> Told {
        let seen = Traced { evtchn_ops: 20, waking_kicks: 20, polls: 30, polls_blocked: 20 };
        Told {
            domains: vec![domain("a", "policy=adaptive duration=100ms")],
            traced: [(1, seen)].into(),
            trace_problem: None,
            neighbour_alone: None,
        }
    }

    const ADAPTIVE: Lock = Lock::Guest(Policy::Adaptive);

    #[test]
    fn late_acquisitions_are_not_of_the_window() {
        let figures = Figures::of(ADAPTIVE, &told()).unwrap();
        assert_eq!(figures.rate, 1000.0);
        assert_eq!((figures.jain, figures.kicks_per_blocked), (1.0, Some(1.0)));
        assert!((figures.hypercalls.unwrap() - 50.0 / 102.0).abs() < 1e-12);
        // 102 times 3,000 turns of 16 ns and 1 us, of 80 ms; of 200 ms in all.
        assert!((figures.spun.unwrap() - (80.0 - 102.0 * 0.049) / 200.0).abs() < 1e-9);
        assert_eq!((figures.blocked, figures.stolen), (Some(0.1), Some(0.5)));
    }

    #[test]
    fn handlers_are_told_apart() {
        let mut told = told();
        let counters = &mut told.domains[0].report.as_mut().unwrap().counters;
        counters.insert("interrupt_acquisitions".into(), 7);
        assert_eq!(Figures::of(ADAPTIVE, &told).unwrap().interrupts, None, "of other locks");
        let counters = &mut told.domains[0].report.as_mut().unwrap().counters;
        for (name, ns) in [("p50_ns", 1), ("p99_ns", 2), ("p999_ns", 3), ("max_ns", 4)] {
            counters.insert(format!("interrupt_wait_{name}"), ns);
        }
        let figures = Figures::of(ADAPTIVE, &told).unwrap();
        let expected =
            Interrupts { acquisitions: 7, p50_ns: 1, p99_ns: 2, p999_ns: 3, longest_ns: 4 };
        assert_eq!((figures.interrupts, figures.kicks_per_blocked), (Some(expected), None));
    }

    #[test]
    fn a_neighbour_counts_for_itself() {
        let mut told = told();
        told.domains.push(domain("hog", "workload=hog duration=100ms"));
        let figures = Figures::of(ADAPTIVE, &told).unwrap();
        assert_eq!((figures.rate, figures.neighbour), (1000.0, Some(1_020_000.0)));
        assert_eq!(figures.neighbour_loss, None, "what it makes alone is not known");
        told.domains.push(domain("idle", "workload=sleeper duration=100ms"));
        assert_eq!(
            Figures::of(ADAPTIVE, &told).unwrap(),
            figures,
            "one that sleeps counts for nothing"
        );
        told.neighbour_alone = Some(Ok(1_360_000.0));
        assert_eq!(Figures::of(ADAPTIVE, &told).unwrap().neighbour_loss, Some(0.25));
    }

    #[test]
    fn what_is_not_one_experiment_has_no_figures() {
        type Spoil = fn(&mut Told);
        let cases: [(Spoil, &str); 7] = [
            (|t| t.domains[0].message = "domain a crashed".to_owned(), "domain a crashed"),
            (|t| t.domains[0].report = None, "no report"),
            (|t| t.domains[0].report.as_mut().unwrap().counter = 101, "exclusion"),
            (|t| t.trace_problem = Some("cut".to_owned()), "cut"),
            (|t| t.neighbour_alone = Some(Err("it crashed".to_owned())), "alone: it crashed"),
            (
                |t| {
                    let mut other = domain("b", "policy=adaptive duration=100ms");
                    other.report.as_mut().unwrap().window.start_ns += 1;
                    t.domains.push(other);
                },
                "window in common",
            ),
            (
                |t| {
                    let mut other = domain("b", "policy=adaptive duration=100ms");
                    other.report.as_mut().unwrap().calibration.work_turns_per_ms = 46_185;
                    t.domains.push(other);
                },
                "do not agree",
            ),
        ];
        for (spoil, what) in cases {
            let mut told = told();
            spoil(&mut told);
            let error = Figures::of(ADAPTIVE, &told).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
        let error = Figures::of(Lock::Guest(Policy::Spin), &told()).unwrap_err();
        assert!(error.contains("ran adaptive, not spin"), "{error}");
    }
}
