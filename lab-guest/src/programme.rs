//! What the guest does once it has booted: one run of one workload, from the parameters to the end
//! of the domain.
//!
//! Owns the order of things: read the parameters, calibrate, bring up the vCPUs, wait for the start
//! line, run, check, report, shut down. It measures nothing itself (that is `workload`), and while the
//! vCPUs run it touches neither console nor xenstore. Nobody polls busily: a vCPU that waits for
//! the start or for the others sleeps in the hypervisor.

mod contest;
mod control;
mod host;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use experiment::record::{Calibration, DomainReport, Outcome};
use experiment::{Control, DomainType, EventAbi, Key, Params, Policy, Start, Trace};
use pvlock::Counter;
use spin::{Mutex, Once};
use xen_guest::events::{self, Wanted};
use xen_guest::glue;
use xen_guest::machine::{self, Machine, ShutdownReason};
use xen_guest::percpu::PerCpu;
use xen_guest::{timer, upcall};

use crate::hooks::TestedPlatform;
use crate::report::{self, Domain};
use crate::watchdog::{self, Stuck, Watchdog};
use crate::work::{Speed, work};
use crate::workload::{Plan, Share, Vcpu, WaitCounts};
use crate::{heap, markers};

use contest::Contest;
use control::{Events, Orders};
use host::Host;

/// How long a vCPU sleeps between two looks at the start line.
const STEP_NS: u64 = 20_000_000;
/// How long the vCPUs may take to come up.
const BRING_UP_NS: u64 = 30_000_000_000;

// What a person may ask for is what the kernel has room for.
const _: () = assert!(experiment::MAX_VCPUS as usize == xen_guest::percpu::MAX_VCPUS);

/// One run, shared by all vCPUs.
struct Run {
    machine: &'static Machine,
    /// The way to the host. Nobody holds it while the workload runs.
    host: Mutex<Host>,
    domain: Domain,
    params: Params,
    plan: Plan,
    contest: Box<dyn Contest>,
    watchdog: Watchdog,
    /// vCPUs that wait at the start line.
    arrived: AtomicU32,
    /// When the run starts, by the clock of whoever looks; 0 = not decided.
    start_at: AtomicU64,
    /// What each vCPU did; it puts it there when it is done.
    shares: Box<[CachePadded<Mutex<Option<Share>>>]>,
    /// What the toolstack asks of each vCPU.
    orders: Box<[CachePadded<Orders>]>,
    /// What happened to the domain on the way.
    events: Events,
    /// Somebody is already reporting a failure.
    failing: AtomicBool,
}

static RUN: Once<Run> = Once::new();

/// Runs what the command line asks for, and ends the domain: with `poweroff` after a success, with
/// `crash` after anything else.
pub fn run(machine: &'static Machine) -> ! {
    let params = Params::parse(machine.cmdline(), machine.vcpus())
        .map_err(|error| error.to_string())
        .and_then(|params| choose_events(machine, params));
    let mut host = Host::connect(machine);
    host.set_state("booting");
    let params = params.unwrap_or_else(|why| fail_to_begin(machine, &mut host, &why));
    let run = RUN.call_once(|| Run::prepare(machine, host, params));
    if let Err(why) = run.to_the_start_line() {
        fail_to_begin(machine, &mut run.host.lock(), &why);
    }
    run.race();
    run.finish()
}

/// Settles how events come, before there is a port that it matters for.
fn choose_events(machine: &Machine, params: Params) -> Result<Params, String> {
    use experiment::Events::{Auto, Fifo, TwoLevel};
    let wanted = match params.events {
        Auto => Wanted::Auto,
        TwoLevel => Wanted::TwoLevel,
        Fifo => Wanted::Fifo,
    };
    match events::choose(machine, wanted) {
        Ok(_) => Ok(params),
        Err(errno) => Err(format!(
            "{}={wanted}: Xen refuses FIFO event channels ({errno}); accepted here: {Auto}, {TwoLevel}",
            Key::events,
            wanted = params.events,
        )),
    }
}

/// One line on the console, the same in xenstore, and the end.
fn fail_to_begin(machine: &Machine, host: &mut Host, why: &str) -> ! {
    machine.console_write(format!("guest error: {why}\n").as_bytes());
    host.set_error(why);
    host.set_state("failed");
    machine.shutdown(ShutdownReason::Crash)
}

impl Run {
    fn prepare(machine: &'static Machine, host: Host, params: Params) -> Run {
        let work_speed = Speed::calibrate(|| machine.now(), work);
        let spin_speed = Speed::calibrate_among_others(|| machine.now(), spin);
        let spin_turns =
            u32::try_from(spin_speed.turns(params.spin.ns())).unwrap_or(u32::MAX).max(1);
        markers::enable(params.trace == Trace::Markers);
        let calibration = Calibration {
            work_turns_per_ms: work_speed.turns_per_ms(),
            spin_turns_per_ms: spin_speed.turns_per_ms(),
            spin_turns,
        };
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
                critical_turns: work_speed.turns(params.critical.ns()),
                outside_turns: work_speed.turns(params.outside.ns()),
                jitter_percent: params.jitter,
                limit: params.limit(),
                seed: params.seed,
                fault: params.fault,
                vcpus: params.vcpus,
                timer_ns: params.timer.ns(),
            },
            contest: contest::new(&params),
            watchdog: Watchdog::new(params.vcpus, params.deadline.ns(), now),
            arrived: AtomicU32::new(1),
            start_at: AtomicU64::new(0),
            shares: (0..params.vcpus).map(|_| CachePadded::default()).collect(),
            orders: (0..params.vcpus).map(|_| CachePadded::default()).collect(),
            events: Events::default(),
            failing: AtomicBool::new(false),
            host: Mutex::new(host),
            params,
        }
    }

    /// Everything before the measurement.
    fn to_the_start_line(&'static self) -> Result<(), String> {
        self.bring_up()?;
        let mut host = self.host.lock();
        host.set_state("ready");
        if self.params.start == Start::Wait {
            host.wait_for_go()?;
        }
        host.set_state("running");
        Ok(())
    }

    /// Settles the lock, starts the other vCPUs and waits until each has come to the start line.
    fn bring_up(&'static self) -> Result<(), String> {
        glue::configure(mode(self.params.policy), self.domain.calibration.spin_turns)
            .map_err(|settled| format!("{}={}: {settled}", Key::policy, self.params.policy))?;
        for vcpu in 0..self.params.vcpus {
            glue::bind(vcpu)
                .map_err(|errno| format!("vCPU {vcpu} got no event channel: {errno:?}"))?;
        }
        if self.params.interruptible() {
            control::install_handlers();
            for vcpu in 0..self.params.vcpus {
                control::prepare(self, vcpu)
                    .map_err(|errno| format!("vCPU {vcpu} got no event channel: {errno:?}"))?;
            }
        }
        for vcpu in 1..self.params.vcpus {
            self.machine
                .start_vcpu(vcpu, other_vcpu)
                .map_err(|errno| format!("vCPU {vcpu} could not be started: {errno:?}"))?;
        }
        let deadline = self.machine.now() + BRING_UP_NS;
        loop {
            // Acquire: pairs with the Release in `other_vcpu`.
            let arrived = self.arrived.load(Ordering::Acquire);
            if arrived == self.params.vcpus {
                return Ok(());
            }
            let now = self.machine.now();
            if now > deadline {
                let wanted = self.params.vcpus;
                return Err(format!("{arrived} of {wanted} vCPUs came up within 30 s"));
            }
            self.machine.sleep_until(now + STEP_NS / 10);
        }
    }

    /// vCPU 0's part: gives the start, takes part, and waits for the others.
    fn race(&'static self) {
        let start_at = self.machine.now() + 2 * STEP_NS;
        self.watchdog.restart(start_at);
        watchdog::on_poll_expiry(|| {
            if let Some(run) = RUN.get() {
                run.look();
            }
        });
        // Release: pairs with the Acquire in `other_vcpu`.
        self.start_at.store(start_at, Ordering::Release);
        self.machine.sleep_until(start_at);
        if self.params.control == Control::Watch {
            self.look_after();
            *self.shares[0].lock() = Some(Share::default());
            self.watchdog.done(0);
        } else {
            self.be_interruptible();
            self.take_part(0);
            upcall::disable();
        }
        while !self.watchdog.all_done() {
            self.look();
            self.machine.sleep_until(self.machine.now() + STEP_NS);
        }
    }

    /// Lets upcalls come, where somebody wants to interrupt this vCPU.
    fn be_interruptible(&self) {
        if self.params.interruptible() {
            upcall::enable();
        }
    }

    /// The workload, on the vCPU this runs on.
    fn take_part(&self, vcpu: u32) {
        let stolen = PerCpu::of(vcpu).runstate.stolen_ns();
        let mut share = self.contest.take_part(
            &RunningVcpu {
                machine: self.machine,
                number: vcpu,
                orders: &self.orders[vcpu as usize],
            },
            &self.plan,
            self.watchdog.progress(vcpu),
        );
        // A restored domain's account begins again from 0.
        share.stolen_ns = PerCpu::of(vcpu).runstate.stolen_ns().saturating_sub(stolen);
        *self.shares[vcpu as usize].lock() = Some(share);
        self.watchdog.done(vcpu);
    }

    /// Asks the watchdog, and ends the run if a vCPU is stuck.
    fn look(&'static self) {
        if let Some(stuck) = self.watchdog.check(self.machine.now()) {
            // Relaxed: only one gets `false`; it publishes nothing by it.
            if !self.failing.swap(true, Ordering::Relaxed) {
                self.fail(stuck);
            }
        }
    }

    /// Every vCPU is done: the verdict, the report, the end.
    fn finish(&'static self) -> ! {
        let mut host = self.host.lock();
        let shares: Vec<Share> =
            self.shares.iter().filter_map(|share| share.lock().take()).collect();
        let mut counters = self.counters();
        let handlers = self.handlers();
        if self.params.interruptible() {
            let named = handlers.iter().flatten().copied().chain(self.events.named());
            counters.extend(named.map(|(name, n)| (name.to_string(), n)));
        }
        let domain = Domain { domid: host.domid(), ..self.domain };
        let mut report =
            report::assemble(domain, &self.params, &shares, self.contest.counter(), counters);
        if let Err(why) = handlers {
            report.outcome = report.outcome.max(Outcome::Failure(why));
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
            let after = markers::current_lock(vcpu);
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
}

/// What a vCPU other than 0 does from its start to the end of the domain.
fn other_vcpu(vcpu: u32) {
    // The run exists: vCPU 0 made it before it started this one.
    let Some(run) = RUN.get() else { return };
    // Release: pairs with the Acquire in `bring_up`.
    run.arrived.fetch_add(1, Ordering::Release);
    let start_at = loop {
        // Acquire: pairs with the Release in `race`.
        match run.start_at.load(Ordering::Acquire) {
            0 => run.machine.sleep_until(run.machine.now() + STEP_NS),
            at => break at,
        }
    };
    run.machine.sleep_until(start_at);
    run.be_interruptible();
    run.take_part(vcpu);
    // Done. Should vCPU 0 be stuck, somebody else has to notice: look now and then.
    loop {
        run.machine.sleep_until(run.machine.now() + run.params.deadline.ns());
        run.look();
    }
}

/// The mode in which the queue lock is this policy's lock.
fn mode(policy: Policy) -> pvlock::Mode {
    match policy {
        Policy::Native => pvlock::Mode::Native,
        Policy::TestAndSet => pvlock::Mode::TestAndSet,
        Policy::KickTwice
        | Policy::KickAtUnlock
        | Policy::Hybrid
        | Policy::Adaptive
        | Policy::Spin
        | Policy::SpinTicket => pvlock::Mode::Pv,
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

/// The vCPU a workload runs on, on a booted machine.
struct RunningVcpu<'a> {
    machine: &'static Machine,
    number: u32,
    orders: &'a Orders,
}

impl Vcpu for RunningVcpu<'_> {
    #[inline]
    fn number(&self) -> u32 {
        self.number
    }

    #[inline]
    fn now(&self) -> u64 {
        self.machine.now()
    }

    #[inline]
    fn wait_counts(&self) -> WaitCounts {
        let counts = glue::wait_counts(self.number as usize);
        // A latched kick ends a wait before it blocks: no wait in the sense of the results.
        WaitCounts { waits: counts.polls, kicked: counts.kicked.saturating_sub(counts.latched) }
    }

    fn acquired_after_block(&self, lock: u32, waits: WaitCounts) {
        let words = [self.number, lock, waits.waits as u32, waits.kicked as u32];
        self.machine.trace_marker(markers::ACQUIRED_AFTER_BLOCK, &words);
    }

    #[inline]
    fn proceed(&self) -> bool {
        self.orders.obey()
    }

    fn interrupt_in(&self, ns: u64) {
        // It can be set wherever it could be bound.
        let _ = timer::set(self.machine.now() + ns);
    }

    fn uninterrupted<R>(&self, section: impl FnOnce() -> R) -> R {
        upcall::without(section)
    }

    fn sleep(&self) {
        self.machine.sleep_until(self.machine.now() + STEP_NS);
        if let Some(run) = RUN.get() {
            run.look();
        }
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
