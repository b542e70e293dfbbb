//! One run: what all vCPUs share of it, how it is judged and how it ends.
//!
//! Owns the state of the run, from the calibrated plan to the verdict. In which order things happen
//! is the business of [the programme](super), what the toolstack does to the domain meanwhile that
//! of [`control`](super::control).

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use experiment::record::{Calibration, DomainReport, Outcome, Window};
use experiment::{DomainType, EventAbi, Key, Limit, Params, Trace};
use pvlock::Counter;
use spin::{Mutex, Once};
use xen_guest::kernel::machine::{self, Machine, ShutdownReason};
use xen_guest::vcpu::Area;
use xen_guest::{events, glue, markers};

use super::contest::{self, Contest};
use super::host::Host;
use super::orders::{Events, Orders};
use super::report::{self, Domain};
use super::vcpu::RunningVcpu;
use super::watchdog::{Stuck, Watchdog};
use crate::locks::heap;
use crate::locks::platform::TestedPlatform;
use crate::workload::rng::Around;
use crate::workload::work::{Disturbed, Speed, turns_of, work};
use crate::workload::{Plan, Share};

/// One run, shared by all vCPUs.
pub(super) struct Run {
    pub(super) machine: &'static Machine,
    /// The way to the host. Nobody holds it while the workload runs.
    pub(super) host: Mutex<Host>,
    pub(super) domain: Domain,
    pub(super) params: Params,
    pub(super) plan: Plan,
    pub(super) contest: Box<dyn Contest>,
    pub(super) watchdog: Watchdog,
    /// vCPUs that wait at the start line.
    pub(super) arrived: AtomicU32,
    /// When the run starts, by the clock of whoever looks; 0 = not decided.
    pub(super) start_at: AtomicU64,
    /// Whether it is the start of all vCPUs of all domains, by the one clock they share.
    pub(super) common: AtomicBool,
    /// What the loop costs without work, in nanoseconds.
    pub(super) loop_ns: AtomicU64,
    /// What each vCPU did; it puts it there when it is done.
    pub(super) shares: Box<[CachePadded<Mutex<Option<Share>>>]>,
    /// What the toolstack asks of each vCPU.
    pub(super) orders: Box<[CachePadded<Orders>]>,
    /// What happened to the domain on the way.
    pub(super) events: Events,
    /// Somebody is already reporting a failure.
    failing: AtomicBool,
}

pub(super) static RUN: Once<Run> = Once::new();

/// How fast this machine is, and how many turns the times asked for are on it. Nothing else of this
/// domain runs yet; what other domains do is told apart from the loops' own time, or refused.
///
/// # Errors
///
/// A sentence that names what to give in turns, if a speed that a time needs cannot be measured.
pub(super) fn calibrate(machine: &Machine, params: &Params) -> Result<Calibration, String> {
    let now = || machine.now();
    let (work_speed, spin_speed) = (Speed::calibrate(now, work), Speed::calibrate(now, spin));
    let turns = |key, speed, amount| turns_of(speed, amount).map_err(|why| refusal(why, &[key]));
    let spin_turns = turns(Key::spin, spin_speed, params.spin)?;
    Ok(Calibration {
        work_turns_per_ms: work_speed.map_or(0, Speed::turns_per_ms),
        spin_turns_per_ms: spin_speed.map_or(0, Speed::turns_per_ms),
        spin_turns: u32::try_from(spin_turns).unwrap_or(u32::MAX).max(1),
        critical_turns: turns(Key::critical, work_speed, params.critical)?,
        outside_turns: turns(Key::outside, work_speed, params.outside)?,
        // Measured on the locks themselves, which are not there yet.
        loop_ns: 0,
    })
}

/// Why a run cannot begin, and that it could with these keys in turns.
pub(super) fn refusal(why: Disturbed, keys: &[Key]) -> String {
    let names: Vec<String> = keys.iter().map(|key| format!("{key}=125turns")).collect();
    format!("{why}; give it in turns ({}), or a quieter host", names.join(" "))
}

impl Run {
    pub(super) fn prepare(
        machine: &'static Machine,
        host: Host,
        params: Params,
        calibration: Calibration,
    ) -> Run {
        markers::enable(params.trace == Trace::Markers);
        let now = machine.now();
        Run {
            machine,
            domain: Domain {
                domid: host.domid(),
                domain_type: match machine.domain_type() {
                    machine::DomainType::Pv => DomainType::Pv,
                    machine::DomainType::Pvh => DomainType::Pvh,
                },
                events: match events::abi() {
                    events::EventAbi::TwoLevel => EventAbi::TwoLevel,
                    events::EventAbi::Fifo => EventAbi::Fifo,
                },
                calibration,
            },
            plan: Plan {
                critical_turns: calibration.critical_turns,
                outside: Around::new(calibration.outside_turns, params.jitter),
                start_at: None,
                limit: params.limit(),
                seed: params.seed,
                fault: params.fault,
                vcpus: params.vcpus,
                timer_ns: params.timer.ns(),
                wait_bound_ns: contest::wait_bound_ns(&params),
            },
            contest: contest::new(&params),
            watchdog: Watchdog::new(params.vcpus, params.deadline.ns(), now),
            arrived: AtomicU32::new(1),
            start_at: AtomicU64::new(0),
            common: AtomicBool::new(false),
            loop_ns: AtomicU64::new(0),
            shares: (0..params.vcpus).map(|_| CachePadded::default()).collect(),
            orders: (0..params.vcpus).map(|_| CachePadded::default()).collect(),
            events: Events::default(),
            failing: AtomicBool::new(false),
            host: Mutex::new(host),
            params,
        }
    }

    /// The workload, on the vCPU this runs on.
    pub(super) fn take_part(&self, vcpu: u32) {
        let account = || {
            let runstate = &Area::of(vcpu).runstate;
            (self.machine.now(), runstate.stolen_ns(), runstate.blocked_ns())
        };
        let (began, stolen, blocked) = account();
        let plan = Plan { start_at: self.common_start(), ..self.plan.clone() };
        let progress = self.watchdog.progress(vcpu);
        let mut share = self.contest.take_part(&self.vcpu(vcpu), &plan, progress);
        let (ended, stolen_then, blocked_then) = account();
        // A restored domain's account begins again from 0.
        share.stolen_ns = stolen_then.saturating_sub(stolen);
        share.blocked_ns = blocked_then.saturating_sub(blocked);
        share.running_ns =
            ended.saturating_sub(began).saturating_sub(share.stolen_ns + share.blocked_ns);
        *self.shares[vcpu as usize].lock() = Some(share);
        self.watchdog.done(vcpu);
    }

    /// One of the vCPUs, as the workload sees it.
    pub(super) fn vcpu(&self, number: u32) -> RunningVcpu<'_> {
        RunningVcpu {
            machine: self.machine,
            number,
            vcpus: self.params.vcpus,
            orders: &self.orders[number as usize],
        }
    }

    /// The start that all vCPUs of all domains have in common, if there is one.
    fn common_start(&self) -> Option<u64> {
        // Relaxed: written before the start line, which this vCPU has passed.
        let common = self.common.load(Ordering::Relaxed);
        common.then(|| self.start_at.load(Ordering::Relaxed))
    }

    /// The window of the report.
    fn window(&self) -> Window {
        let end = |start| match self.params.limit() {
            Limit::Duration(time) => start + time.ns(),
            Limit::Acquisitions(_) => 0,
        };
        self.common_start()
            .map_or_else(Window::default, |start_ns| Window { start_ns, end_ns: end(start_ns) })
    }

    /// Acquisitions so far, of vCPUs that are done too.
    pub(super) fn acquisitions(&self) -> u64 {
        let of_done = |vcpu: usize| self.shares[vcpu].lock().as_ref().map_or(0, |s| s.acquisitions);
        let counts = self.watchdog.snapshot().enumerate();
        counts.map(|(vcpu, count)| count.unwrap_or_else(|| of_done(vcpu))).sum()
    }

    /// Asks the watchdog, and ends the run if a vCPU is stuck.
    pub(super) fn look(&'static self) {
        if let Some(stuck) = self.watchdog.check(self.machine.now()) {
            // Relaxed: only one gets `false`; it publishes nothing by it.
            if !self.failing.swap(true, Ordering::Relaxed) {
                self.fail(stuck);
            }
        }
    }

    /// Every vCPU is done: the verdict, the report, the end.
    pub(super) fn finish(&'static self) -> ! {
        let mut host = self.host.lock();
        let shares: Vec<Share> =
            self.shares.iter().filter_map(|share| share.lock().take()).collect();
        let mut counters = self.counters();
        let handlers = self.handlers();
        if self.params.interruptible() {
            let named = handlers.iter().flatten().copied().chain(self.events.named());
            counters.extend(named.map(|(name, n)| (name.to_string(), n)));
            if let Some(waits) = self.contest.waits_of_interrupts() {
                counters.extend(report::of_interrupts(&waits));
            }
        }
        let domain = Domain { domid: host.domid(), ..self.domain };
        let mut report =
            report::assemble(domain, &self.params, &shares, self.contest.counter(), counters);
        report.window = self.window();
        // Relaxed: written by this vCPU.
        report.calibration.loop_ns = self.loop_ns.load(Ordering::Relaxed);
        if let Err(why) = handlers {
            report.outcome = report.outcome.max(Outcome::Failure(why));
        }
        if let Some(bound) = self.plan.wait_bound_ns {
            let longest = shares.iter().map(|share| share.longest_bounded_ns).max().unwrap_or(0);
            report.counters.insert("longest_bounded_wait_ns".to_string(), longest);
            report.counters.insert("wait_bound_ns".to_string(), bound);
            report.outcome = report.outcome.max(report::verdict_on_waits(longest, bound));
        }
        let outcome = report.outcome.clone();
        self.publish(&report, &mut host);
        match outcome {
            Outcome::Success | Outcome::Skip(_) => {
                host.set_state("done");
                self.machine.shutdown(self.events.ending())
            }
            Outcome::Error(why) | Outcome::Failure(why) => {
                self.machine.console_write(format!("guest failure: {why}\n").as_bytes());
                host.set_state("failed");
                self.machine.shutdown(ShutdownReason::Crash)
            }
        }
    }

    /// A vCPU is stuck: everything that may say why goes to the console, then a report, then the
    /// end. The dump allocates nothing, since the allocator's lock may be the stuck one.
    fn fail(&'static self, stuck: Stuck) -> ! {
        heap::serve_from_arena(Machine::current_vcpu(), false);
        let mut out = ConsoleLines::new(self.machine);
        // Writing to the console cannot fail.
        let _ = self.describe(&mut out, stuck);
        out.flush();
        let acquisitions: Vec<u64> = self.watchdog.snapshot().map(|n| n.unwrap_or(0)).collect();
        let outcome = Outcome::Failure(stuck.to_string());
        let mut report = report::broken_off(self.domain, &self.params, outcome, &acquisitions);
        report.counters = self.counters();
        // Held only if the stuck vCPU is vCPU 0 and it is not in the workload.
        if let Some(mut host) = self.host.try_lock() {
            self.publish(&report, &mut host);
            host.set_state("failed");
        }
        self.machine.shutdown(ShutdownReason::Crash)
    }

    fn describe(&self, out: &mut dyn Write, stuck: Stuck) -> fmt::Result {
        writeln!(out, "guest failure: {stuck}")?;
        for (vcpu, progress) in self.watchdog.snapshot().enumerate() {
            let after = markers::current_lock(vcpu as u32);
            match progress {
                None => writeln!(out, "vCPU {vcpu}: done")?,
                Some(n) if after == 0 => writeln!(out, "vCPU {vcpu}: {n} acquisitions, outside")?,
                Some(n) => writeln!(out, "vCPU {vcpu}: {n} acquisitions, at lock {after:#010x}")?,
            }
        }
        self.contest.describe(out)?;
        glue::dump_pending(out)
    }

    fn publish(&self, report: &DomainReport, host: &mut Host) {
        let document = match report::to_json(report) {
            Ok(document) => document,
            Err(error) => return log::error!("the report cannot be written: {error}"),
        };
        report::to_console(&document, |line| self.machine.console_write(line));
        self.machine.console_write(format!("{}\n", report::sentence(report)).as_bytes());
        host.publish(&document);
    }

    /// The lock's counters, summed over the vCPUs that took part.
    fn counters(&self) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for vcpu in 0..self.params.vcpus as usize {
            let counts = pvlock::counters::<TestedPlatform>(vcpu);
            for (counter, n) in Counter::ALL.into_iter().zip(counts) {
                *sums.entry(counter.name().to_string()).or_insert(0) += n;
            }
        }
        sums
    }

    /// What handlers counted, and whether they were alone with the locks.
    fn handlers(&self) -> Result<[(&'static str, u64); 2], String> {
        let by_nmi = self.events.nmi_acquisitions.load(Relaxed);
        let tried = self.contest.tried();
        if tried != by_nmi {
            return Err(format!(
                "mutual exclusion is broken: {by_nmi} acquisitions in NMIs raised the counter to \
                 {tried}"
            ));
        }
        let interrupts = self.contest.interrupts()?;
        Ok([("interrupt_acquisitions", interrupts), ("tried_in_nmi", tried)])
    }
}

/// What a waiter does while it spins: look at a word, PAUSE.
fn spin(turns: u64) {
    static WORD: AtomicU32 = AtomicU32::new(0);
    for _ in 0..turns {
        // Relaxed: it is never written; only the time counts.
        core::hint::black_box(WORD.load(Ordering::Relaxed));
        core::hint::spin_loop();
    }
}

/// Whole lines for the console, without an allocation; a longer one is cut.
struct ConsoleLines {
    machine: &'static Machine,
    line: [u8; 256],
    used: usize,
}

impl ConsoleLines {
    fn new(machine: &'static Machine) -> Self {
        ConsoleLines { machine, line: [0; 256], used: 0 }
    }

    fn flush(&mut self) {
        if self.used > 0 {
            self.line[self.used] = b'\n';
            self.machine.console_write(&self.line[..=self.used]);
            self.used = 0;
        }
    }
}

impl Write for ConsoleLines {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.flush();
            } else if self.used < self.line.len() - 1 {
                self.line[self.used] = byte;
                self.used += 1;
            }
        }
        Ok(())
    }
}
