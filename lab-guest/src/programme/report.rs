//! From what the vCPUs did to the one document about it.
//!
//! Owns the verdict, the making of [`DomainReport`], and its way out: framed on the console, in
//! pieces into xenstore. It measures nothing and runs after the measurement, never during it.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use experiment::record::{
    Calibration, DomainReport, Histogram, Outcome, Parameters, SCHEMA, VcpuReport, framing,
};
use experiment::{Control, DomainType, EventAbi, Key, Limit, Params};
use xen_guest::daemons::xenstore;

use crate::workload::Share;

/// Where a domain and its host talk about a run, below the domain's home in xenstore.
pub mod path {
    /// `booting`, `ready`, `running`, `done`, `failed`, or `late`: told of a start line that had
    /// passed; written by the guest.
    pub const STATE: &str = "data/pvlab/state";
    /// The start line: the host writes `clock`, to be told Xen's time in [`CLOCK`]; the moment to start at, in
    /// nanoseconds of that time; or `1`, to start at once.
    pub const GO: &str = "data/pvlab/go";
    /// Xen's system time when the host asked for it; written by the guest.
    pub const CLOCK: &str = "data/pvlab/clock";
    /// The host writes a number here to be told, while the workload runs with `control=watch`, ...
    pub const COUNT: &str = "data/pvlab/count";
    /// ... that number and the acquisitions since boot, `NUMBER ACQUISITIONS`; written by the guest.
    pub const COUNTED: &str = "data/pvlab/counted";
    /// Why a run could not begin; written by the guest before `failed` and `late`.
    pub const ERROR: &str = "data/pvlab/error";
    /// How many pieces the result has; written after the pieces `data/pvlab/result/0`, `/1`, ...
    pub const RESULT_COUNT: &str = "data/pvlab/result/count";
    /// The parent of the pieces.
    pub const RESULT: &str = "data/pvlab/result";
}

/// What is known of a domain beside what its vCPUs did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Domain {
    /// Its number, 0 if unknown.
    pub domid: u16,
    /// How it was booted.
    pub domain_type: DomainType,
    /// Its event channel ABI.
    pub events: EventAbi,
    /// What was calibrated.
    pub calibration: Calibration,
}

/// The report of a run whose vCPUs all came to their end.
pub fn assemble(
    domain: Domain,
    params: &Params,
    shares: &[Share],
    counter: u64,
    counters: BTreeMap<String, u64>,
) -> DomainReport {
    let mut latency = Histogram::default();
    shares.iter().for_each(|share| latency.merge(&share.latency));
    DomainReport {
        outcome: verdict(params, shares, counter),
        elapsed_ns: shares.iter().map(|share| share.elapsed_ns).max().unwrap_or(0),
        counter,
        acquisitions: shares.iter().map(|share| share.acquisitions).sum(),
        vcpus: shares.iter().zip(0..).map(|(share, id)| vcpu(id, share)).collect(),
        latency,
        counters,
        ..frame(domain, params)
    }
}

/// The report of a run that was broken off: of the vCPUs, only how far they were seen to come.
pub fn broken_off(
    domain: Domain,
    params: &Params,
    outcome: Outcome,
    acquisitions: &[u64],
) -> DomainReport {
    let vcpu = |(id, n): (u32, &u64)| VcpuReport { id, acquisitions: *n, ..VcpuReport::default() };
    DomainReport {
        outcome,
        acquisitions: acquisitions.iter().sum(),
        vcpus: (0..).zip(acquisitions).map(vcpu).collect(),
        ..frame(domain, params)
    }
}

fn frame(domain: Domain, params: &Params) -> DomainReport {
    DomainReport {
        schema: SCHEMA,
        domid: domain.domid,
        domain_type: domain.domain_type,
        events: domain.events,
        calibration: domain.calibration,
        image: env!("CARGO_PKG_VERSION").to_string(),
        parameters: Parameters::from(params),
        ..DomainReport::default()
    }
}

fn vcpu(id: u32, share: &Share) -> VcpuReport {
    VcpuReport {
        id,
        acquisitions: share.acquisitions,
        blocked_acquisitions: share.blocked_acquisitions,
        waits: share.waits.waits,
        kicked_waits: share.waits.kicked,
        longest_wait_ns: share.latency.max(),
        stolen_ns: share.stolen_ns,
        late_acquisitions: share.late_acquisitions,
        running_ns: share.running_ns,
        blocked_ns: share.blocked_ns,
    }
}

/// The checks of every run; the first that fails is the reason.
fn verdict(params: &Params, shares: &[Share], counter: u64) -> Outcome {
    let acquisitions: u64 = shares.iter().map(|share| share.acquisitions).sum();
    if counter != acquisitions {
        return Outcome::Failure(format!(
            "mutual exclusion is broken: {acquisitions} acquisitions raised the counter to \
             {counter}"
        ));
    }
    if let Limit::Acquisitions(wanted) = params.limit() {
        // With control=watch, vCPU 0 takes no part, and the toolstack may end the run before.
        let bound_to = if params.control == Control::Watch { 0 } else { shares.len() };
        for (vcpu, share) in shares[..bound_to].iter().enumerate() {
            if share.acquisitions != wanted {
                let got = share.acquisitions;
                return Outcome::Failure(format!(
                    "vCPU {vcpu} made {got} acquisitions, not {wanted}"
                ));
            }
        }
    }
    if shares.len() != params.vcpus as usize {
        let (ran, wanted) = (shares.len(), params.vcpus);
        return Outcome::Error(format!("{ran} vCPUs ran, not {wanted}"));
    }
    Outcome::Success
}

/// Whether the longest wait that has a bound kept to it.
pub fn verdict_on_waits(longest_ns: u64, bound_ns: u64) -> Outcome {
    if longest_ns <= bound_ns {
        return Outcome::Success;
    }
    Outcome::Failure(format!(
        "a wait lasted {longest_ns} ns in which the vCPUs that could run had a pCPU; the policy says \
         {bound_ns} ns at most, with the wake-ups that {}= promises",
        Key::wakeup
    ))
}

/// The counters that tell how long handlers waited for the tasks' lock, in nanoseconds.
pub fn of_interrupts(waits: &Histogram) -> [(String, u64); 4] {
    [
        ("interrupt_wait_p50_ns", waits.quantile(0.5)),
        ("interrupt_wait_p99_ns", waits.quantile(0.99)),
        ("interrupt_wait_p999_ns", waits.quantile(0.999)),
        ("interrupt_wait_max_ns", waits.max()),
    ]
    .map(|(name, ns)| (name.to_string(), ns))
}

/// The document, compact, without line breaks.
///
/// # Errors
///
/// What `serde_json` says; it has no reason to, for this type.
pub fn to_json(report: &DomainReport) -> Result<String, serde_json::Error> {
    serde_json::to_string(report)
}

/// Writes the document on the console, framed (see [`framing`]), one line a call.
pub fn to_console(document: &str, mut write: impl FnMut(&[u8])) {
    let mut bytes = Vec::with_capacity(framing::MAX_LINE + 1);
    framing::console_lines(document, |line| {
        bytes.clear();
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        write(&bytes);
    });
}

/// The report in one line, for whoever looks at the console.
pub fn sentence(report: &DomainReport) -> String {
    let lock = &report.parameters.policy;
    let reason = match &report.outcome {
        Outcome::Success => None,
        Outcome::Skip(why) => Some(("skipped", why)),
        Outcome::Error(why) => Some(("cannot run", why)),
        Outcome::Failure(why) => Some(("FAILED", why)),
    };
    if let Some((word, why)) = reason {
        return format!("guest: {lock}: {word}: {why}");
    }
    let sum = |of: fn(&VcpuReport) -> u64| report.vcpus.iter().map(of).sum::<u64>();
    let lost = match report.counters.get("pv_poll_timeout") {
        None | Some(0) => String::from("no wake-up lost"),
        Some(n) => format!("{n} wake-ups LOST"),
    };
    format!(
        "guest: {lock}: {} acquisitions by {} vCPUs in {} ms, all of them counted; {} slept, {} times in all; \
         longest wait {} ms; {lost}",
        report.acquisitions,
        report.vcpus.len(),
        milliseconds(report.elapsed_ns),
        sum(|vcpu| vcpu.blocked_acquisitions),
        sum(|vcpu| vcpu.waits),
        milliseconds(report.latency.max()),
    )
}

/// Nanoseconds as milliseconds, to the microsecond.
fn milliseconds(ns: u64) -> String {
    format!("{}.{:03}", ns / 1_000_000, ns / 1_000 % 1_000)
}

/// Writes the document into xenstore: the pieces, then their number.
///
/// # Errors
///
/// The first [`xenstore::Error`]; the number of pieces is not written then.
pub fn to_xenstore<L: xenstore::Link>(
    document: &str,
    store: &mut xenstore::Client<'_, L>,
) -> Result<(), xenstore::Error> {
    let mut count = 0;
    for piece in framing::pieces(document) {
        store.write(&format!("{}/{count}", path::RESULT), piece.as_bytes())?;
        count += 1;
    }
    store.write(path::RESULT_COUNT, count.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::WaitCounts;

    fn share(acquisitions: u64) -> Share {
        let mut share = Share {
            acquisitions,
            blocked_acquisitions: 2,
            waits: WaitCounts { waits: 3, kicked: 2 },
            elapsed_ns: acquisitions * 10,
            ..Share::default()
        };
        (1..=acquisitions).for_each(|ns| share.latency.record(ns));
        share
    }

    fn params(cmdline: &str) -> Params {
        Params::parse(cmdline, 2).unwrap()
    }

    #[test]
    fn a_run_whose_counter_is_exact_is_a_success() {
        let shares = [share(100), share(100)];
        let params = params("acquisitions=100");
        let report = assemble(Domain::default(), &params, &shares, 200, BTreeMap::new());
        assert_eq!(report.outcome, Outcome::Success);
        assert_eq!((report.acquisitions, report.counter, report.elapsed_ns), (200, 200, 1000));
        assert_eq!((report.latency.count(), report.latency.max()), (200, 100));
        assert_eq!(report.vcpus[1].id, 1);
        assert_eq!((report.vcpus[1].waits, report.vcpus[1].kicked_waits), (3, 2));
    }

    #[test]
    fn a_lost_increment_is_a_failure_that_says_both_numbers() {
        let report = assemble(
            Domain::default(),
            &params("duration=1s"),
            &[share(100), share(90)],
            189,
            BTreeMap::new(),
        );
        let Outcome::Failure(why) = report.outcome else { panic!("{:?}", report.outcome) };
        assert!(why.contains("190 acquisitions raised the counter to 189"), "{why}");
    }

    #[test]
    fn a_wait_beyond_its_bound_is_a_failure() {
        assert_eq!(verdict_on_waits(2_400_000, 2_400_000), Outcome::Success);
        let Outcome::Failure(why) = verdict_on_waits(2_400_001, 2_400_000) else { panic!() };
        assert!(why.starts_with("a wait lasted 2400001 ns") && why.contains("wakeup="), "{why}");
    }

    #[test]
    fn a_vcpu_that_fell_short_is_a_failure_only_where_a_number_was_asked_for() {
        let shares = [share(100), share(90)];
        let outcome = verdict(&params("acquisitions=100"), &shares, 190);
        assert_eq!(outcome, Outcome::Failure("vCPU 1 made 90 acquisitions, not 100".into()));
        assert_eq!(verdict(&params("duration=1s"), &shares, 190), Outcome::Success);
        assert!(matches!(verdict(&params("duration=1s"), &shares[..1], 100), Outcome::Error(_)));
    }

    #[test]
    fn what_reaches_the_console_is_the_report() {
        let params = params("acquisitions=3");
        let counters = BTreeMap::from([("pv_kick_unlock".to_string(), 7)]);
        let report = assemble(Domain::default(), &params, &[share(3), share(3)], 6, counters);
        let mut decoder = framing::Decoder::default();
        let mut decoded = None;
        to_console(&to_json(&report).unwrap(), |line| {
            let line = core::str::from_utf8(line).unwrap();
            assert!(line.ends_with('\n') && line.len() <= framing::MAX_LINE + 1);
            decoded = decoder.line(line).unwrap();
        });
        let decoded: DomainReport = serde_json::from_str(&decoded.unwrap()).unwrap();
        assert_eq!(decoded, report);
    }

    #[test]
    fn a_person_reads_one_line() {
        let params = params("acquisitions=100 policy=adaptive");
        let shares = [share(100), share(100)];
        let mut report = assemble(Domain::default(), &params, &shares, 200, BTreeMap::new());
        (report.elapsed_ns, report.latency) = (12_345_678, Histogram::default());
        report.latency.record(7_000_999);
        let line = "guest: adaptive: 200 acquisitions by 2 vCPUs in 12.345 ms, all of them counted; 4 slept, \
                    6 times in all; longest wait ";
        let told = sentence(&report);
        assert!(told.starts_with(line) && told.ends_with(" ms; no wake-up lost"), "{told}");
        report.counters.insert("pv_poll_timeout".into(), 2);
        assert!(sentence(&report).ends_with("2 wake-ups LOST"));
        report.outcome = Outcome::Failure("vCPU 1 is stuck".into());
        assert_eq!(sentence(&report), "guest: adaptive: FAILED: vCPU 1 is stuck");
    }

    #[test]
    fn a_run_broken_off_reports_how_far_it_came() {
        let why = Outcome::Failure("vCPU 1 is stuck".into());
        let report = broken_off(Domain::default(), &params(""), why.clone(), &[12, 7]);
        assert_eq!((report.outcome, report.acquisitions), (why, 19));
        assert_eq!(report.vcpus[1].acquisitions, 7);
    }
}
