//! What the guest does once it has booted: one run of one workload, from the parameters to the end
//! of the domain.
//!
//! Owns the order of things: read the parameters, calibrate, bring up the vCPUs, wait for the start
//! line, run, check, report, shut down. It measures nothing itself (that is `workload`), and while
//! the vCPUs run it touches neither console nor xenstore. Nobody polls busily: a vCPU that waits
//! for the start or for the others sleeps in the hypervisor.

mod contest;
mod control;
mod host;
mod orders;
pub mod report;
mod run;
mod vcpu;
pub mod watchdog;

use alloc::format;
use alloc::string::{String, ToString};
use core::sync::atomic::Ordering;

use experiment::{Control, Key, Params, Policy, Start};
use xen_guest::events::{self, Wanted};
use xen_guest::glue;
use xen_guest::kernel::machine::{Machine, ShutdownReason};
use xen_guest::vcpu::mask;

use self::host::{Go, Host};
use self::run::{RUN, Run};
use self::vcpu::STEP_NS;
use crate::locks::platform;
use crate::workload::Share;

// What a person may ask for is what the kernel has room for.
const _: () = assert!(experiment::MAX_VCPUS as usize == xen_guest::vcpu::MAX_VCPUS);

/// How long the vCPUs may take to come up, on a host that is crowded.
const BRING_UP_S: u64 = 300;

/// Runs what the command line asks for, and ends the domain: with `poweroff` after a success, with
/// `crash` after anything else.
pub fn run(machine: &'static Machine) -> ! {
    let params = Params::parse(machine.cmdline(), machine.vcpus())
        .map_err(|error| error.to_string())
        .and_then(|params| choose_events(machine, params));
    let mut host = Host::connect(machine);
    host.set_state("booting");
    let params = params.unwrap_or_else(|why| fail_to_begin(machine, &mut host, why.into()));
    let calibration = run::calibrate(machine, &params)
        .unwrap_or_else(|why| fail_to_begin(machine, &mut host, why.into()));
    let run = RUN.call_once(|| Run::prepare(machine, host, params, calibration));
    let line = run
        .to_the_start_line()
        .unwrap_or_else(|why| fail_to_begin(machine, &mut run.host.lock(), why));
    run.race(line);
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
    match events::choose(machine.vcpus(), wanted) {
        Ok(_) => Ok(params),
        Err(errno) => Err(format!(
            "{}={wanted}: Xen refuses FIFO event channels ({errno}); \
             accepted here: {Auto}, {TwoLevel}",
            Key::events,
            wanted = params.events,
        )),
    }
}

/// Why a run does not begin.
enum NoRun {
    /// Something that another attempt would meet again.
    Failed(String),
    /// The start line had passed when it came.
    Late(String),
}

impl From<String> for NoRun {
    fn from(why: String) -> Self {
        NoRun::Failed(why)
    }
}

/// One line on the console, the same in xenstore, and the end.
fn fail_to_begin(machine: &Machine, host: &mut Host, why: NoRun) -> ! {
    let (state, why) = match why {
        NoRun::Failed(why) => ("failed", why),
        NoRun::Late(why) => ("late", why),
    };
    machine.console_write(format!("guest error: {why}\n").as_bytes());
    host.set_error(&why);
    host.set_state(state);
    machine.shutdown(ShutdownReason::Crash)
}

/// Where a run begins.
#[derive(Clone, Copy)]
struct Line {
    /// By Xen's system time, in nanoseconds.
    at: u64,
    /// Whether the host gave it to all its domains.
    common: bool,
}

impl Run {
    /// Everything before the measurement; answers when it begins.
    fn to_the_start_line(&'static self) -> Result<Line, NoRun> {
        self.bring_up()?;
        let loop_ns = match self.contest.loop_ns(&self.vcpu(0), &self.plan) {
            Ok(ns) => ns,
            // What the loop adds to turns of work is no part of them.
            Err(_) if self.params.work_is_in_turns() => 0,
            Err(why) => return Err(run::refusal(why, &[Key::critical, Key::outside]).into()),
        };
        // Relaxed: read by this vCPU alone.
        self.loop_ns.store(loop_ns, Ordering::Relaxed);
        let mut host = self.host.lock();
        host.set_state("ready");
        let wait = self.params.start == Start::Wait;
        let go = if wait { host.wait_for_go()? } else { Go::Now };
        let now = self.machine.now();
        let line = match go {
            Go::Now => Line { at: now + 2 * STEP_NS, common: false },
            Go::At(at) if at > now => Line { at, common: true },
            Go::At(at) => {
                return Err(NoRun::Late(format!(
                    "the start line ({at} ns of Xen's time) was {} us in the past when it came: \
                     this host needs it later",
                    (now - at) / 1_000
                )));
            }
        };
        host.set_state("running");
        Ok(line)
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
        let deadline = self.machine.now() + BRING_UP_S * 1_000_000_000;
        loop {
            // Acquire: pairs with the Release in `other_vcpu`.
            let arrived = self.arrived.load(Ordering::Acquire);
            if arrived == self.params.vcpus {
                return Ok(());
            }
            let now = self.machine.now();
            if now > deadline {
                let wanted = self.params.vcpus;
                return Err(format!("{arrived} of {wanted} vCPUs came up within {BRING_UP_S} s"));
            }
            self.machine.sleep_until(now + STEP_NS / 10);
        }
    }

    /// vCPU 0's part: gives the start, takes part, and waits for the others.
    fn race(&'static self, line: Line) {
        let start_at = line.at;
        // Relaxed: the Release below publishes it.
        self.common.store(line.common, Ordering::Relaxed);
        self.watchdog.restart(start_at);
        platform::on_poll_expiry(|| {
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
            mask::disable();
        }
        while !self.watchdog.all_done() {
            self.look();
            self.machine.sleep_until(self.machine.now() + STEP_NS);
        }
    }

    /// Lets upcalls come, where somebody wants to interrupt this vCPU.
    fn be_interruptible(&self) {
        if self.params.interruptible() {
            mask::enable();
        }
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
        _ => pvlock::Mode::Pv,
    }
}
