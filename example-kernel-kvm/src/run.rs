//! One run of the experiment, from the command line to the report.
//!
//! Owns the order of things: parameters, calibration, the other vCPUs, the start line, the workload, the
//! report. What the vCPUs do with the lock is `lab-guest`'s.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use experiment::record::{Calibration, Outcome};
use experiment::{DomainType, Key, Params, Policy, Start, Workload};
use lab_guest::locks::{Family, Pv, Spin, Ticket};
use lab_guest::programme::report::{self, Domain};
use lab_guest::workload::rng::Around;
use lab_guest::workload::work::{Speed, turns_of, work};
use lab_guest::workload::{Guarded, Plan, Share, Vcpu, WaitCounts, contend, free_locks};
use pvh::start_info::reader::StartInfoReader;
use pvlock::{Adaptive, Counter, KickAtUnlock, KickTwice, Mode, Platform};
use spin::{Mutex, Once};

use crate::apic;
use crate::boot;
use crate::console::{self, Console};
use crate::cpu::{MAX_VCPUS, current_vcpu};
use crate::kvm::{self, Machine};
use crate::lock::{self, Kernel};

/// What all vCPUs share.
struct Run {
    params: Params,
    plan: Plan,
    contest: Box<dyn Contest>,
    /// What each vCPU did; it puts it there when it is done.
    shares: [Mutex<Option<Share>>; MAX_VCPUS],
    /// Whether a halted vCPU can be woken by a kick.
    can_kick: bool,
}

static RUN: Once<Run> = Once::new();
/// vCPUs at the start line, and those that are done.
static ARRIVED: AtomicU32 = AtomicU32::new(0);
static STARTED: AtomicBool = AtomicBool::new(false);
static DONE: AtomicU32 = AtomicU32::new(0);

/// vCPU 0: everything but its own share of the workload is here.
pub fn first_vcpu(machine: &Machine) -> ! {
    let domain = prepare(machine).unwrap_or_else(|why| {
        // Writing to the console does not fail, here and below.
        let _ = writeln!(Console, "guest error: {why}");
        console::exit(2)
    });
    let run = RUN.get().expect("it was prepared");
    look_before_sleep();
    for vcpu in 1..run.params.vcpus {
        boot::start_vcpu(vcpu);
    }
    // Acquire: pairs with the Release in `other_vcpu`.
    while ARRIVED.load(Ordering::Acquire) + 1 < run.params.vcpus {
        core::hint::spin_loop();
    }
    let _ = writeln!(Console, "ready");
    if run.params.start == Start::Wait {
        console::wait_for_byte();
    }
    // Release: pairs with the Acquire in `other_vcpu`.
    STARTED.store(true, Ordering::Release);
    take_part(run);
    // Acquire: pairs with the Release in `take_part`, and hands over the shares.
    while DONE.load(Ordering::Acquire) < run.params.vcpus {
        // The last one kicks.
        if run.can_kick { apic::halt() } else { core::hint::spin_loop() }
    }
    finish(run, domain)
}

/// A wait whose condition has gone does not sleep: the lock's second look, which this kernel owes it.
fn look_before_sleep() {
    Kernel::wait(|| false);
    assert_eq!(lock::halts(0), 0, "a wait with nothing to wait for went to sleep");
}

/// Any other vCPU.
pub fn other_vcpu() -> ! {
    let run = RUN.get().expect("vCPU 0 prepared it before it started this one");
    // Release: pairs with the Acquire in `first_vcpu`.
    ARRIVED.fetch_add(1, Ordering::Release);
    // Acquire: pairs with the Release in `first_vcpu`.
    while !STARTED.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    take_part(run);
    loop {
        apic::halt();
    }
}

/// Reads the parameters, calibrates, and settles the lock.
fn prepare(machine: &Machine) -> Result<Domain, String> {
    // SAFETY: the loader left its address in ebx, and memory is mapped one to one.
    let info = unsafe { StartInfoReader::from_paddr_identity(boot::start_info() as u32) };
    let line = info.and_then(|info| info.cmdline().and_then(|line| line.to_str().ok()));
    let vcpus = console::qemu_vcpus().unwrap_or(1).min(MAX_VCPUS as u32);
    let params =
        Params::parse(line.unwrap_or_default(), vcpus).map_err(|error| error.to_string())?;
    if !matches!(params.workload, Workload::Handoff | Workload::Spread) {
        return Err(format!(
            "{}={}: accepted here are {} and {}",
            Key::workload,
            params.workload,
            Workload::Handoff,
            Workload::Spread
        ));
    }
    let contest = contest(&params)?;
    let mode = mode(machine, &params)?;
    lock::configure(mode).map_err(|settled| settled.to_string())?;
    let speed = Speed::calibrate(kvm::now, work);
    let spins =
        Speed::calibrate(kvm::now, |turns| (0..turns).for_each(|_| core::hint::spin_loop()));
    let turns = |speed, amount| turns_of(speed, amount).map_err(|why| why.to_string());
    let critical_turns = turns(speed, params.critical)?;
    let outside_turns = turns(speed, params.outside)?;
    let spin_turns = u32::try_from(turns(spins, params.spin)?).unwrap_or(u32::MAX).max(1);
    lock::set_spin_turns(spin_turns);
    let _ = writeln!(Console, "lock: {mode:?} on {machine:?}");
    RUN.call_once(|| Run {
        plan: Plan {
            critical_turns,
            outside: Around::new(outside_turns, params.jitter),
            start_at: None,
            limit: params.limit(),
            seed: params.seed,
            fault: params.fault,
            vcpus: params.vcpus,
            timer_ns: 0,
            wait_bound_ns: None,
        },
        contest,
        shares: [const { Mutex::new(None) }; MAX_VCPUS],
        can_kick: machine.can_kick(),
        params,
    });
    Ok(Domain {
        domain_type: DomainType::Pvh,
        calibration: Calibration {
            work_turns_per_ms: speed.map_or(0, Speed::turns_per_ms),
            spin_turns_per_ms: spins.map_or(0, Speed::turns_per_ms),
            spin_turns,
            critical_turns,
            outside_turns,
            loop_ns: 0,
        },
        ..Domain::default()
    })
}

/// The lock's mode: the policy's own where it names one, else the one that fits the machine. A policy
/// that sleeps is refused where nothing could wake the sleeper: its column would be of another lock.
fn mode(machine: &Machine, params: &Params) -> Result<Mode, String> {
    match params.policy {
        Policy::Native => Ok(Mode::Native),
        Policy::TestAndSet => Ok(Mode::TestAndSet),
        Policy::Spin | Policy::SpinTicket => Ok(machine.mode(params.vcpus)),
        _ if machine.mode(params.vcpus) == Mode::Pv => Ok(Mode::Pv),
        policy => Err(format!(
            "{}={policy}: {machine:?} calls for {:?}; name that policy, or offer kvm-pv-unhalt",
            Key::policy,
            machine.mode(params.vcpus)
        )),
    }
}

/// The locks of a run, whatever their type.
trait Contest: Send + Sync {
    fn take_part(&self, vcpu: &RunningVcpu, plan: &Plan) -> Share;
    fn counter(&self) -> u64;
}

struct Locks<F: Family>(Vec<crossbeam_utils::CachePadded<F::Lock<Guarded>>>);

impl<F: Family> Contest for Locks<F> {
    fn take_part(&self, vcpu: &RunningVcpu, plan: &Plan) -> Share {
        contend(vcpu, plan, &self.0, &AtomicU64::new(0))
    }

    fn counter(&self) -> u64 {
        use lab_guest::locks::TestedLock;
        self.0.iter().map(|lock| lock.with(|guarded| guarded.counter())).sum()
    }
}

fn contest(params: &Params) -> Result<Box<dyn Contest>, String> {
    fn of<F: Family>(params: &Params) -> Box<dyn Contest> {
        Box::new(Locks::<F>(free_locks(params.locks)))
    }
    Ok(match params.policy {
        Policy::KickTwice => of::<Pv<Kernel, KickTwice>>(params),
        Policy::Adaptive => of::<Pv<Kernel, Adaptive>>(params),
        // Native and test-and-set are modes of the same lock.
        Policy::KickAtUnlock | Policy::Native | Policy::TestAndSet => {
            of::<Pv<Kernel, KickAtUnlock>>(params)
        }
        Policy::Spin => of::<Spin>(params),
        Policy::SpinTicket => of::<Ticket>(params),
        variant => return Err(format!("{}={variant}: not in this kernel", Key::policy)),
    })
}

/// The workload, on the vCPU this runs on.
fn take_part(run: &Run) {
    let vcpu = current_vcpu();
    let stolen = kvm::stolen(vcpu);
    let mut share = run.contest.take_part(&RunningVcpu(vcpu), &run.plan);
    share.stolen_ns = kvm::stolen(vcpu) - stolen;
    *run.shares[vcpu].lock() = Some(share);
    // Release: pairs with the Acquire in `first_vcpu`.
    let done = DONE.fetch_add(1, Ordering::Release) + 1;
    if done == run.params.vcpus && vcpu != 0 && run.can_kick {
        kvm::kick(0);
    }
}

/// The vCPU under the workload.
struct RunningVcpu(usize);

impl Vcpu for RunningVcpu {
    fn number(&self) -> u32 {
        self.0 as u32
    }

    fn now(&self) -> u64 {
        kvm::now()
    }

    fn wait_counts(&self) -> WaitCounts {
        WaitCounts { waits: lock::halts(self.0), kicked: lock::kicked(self.0) }
    }

    fn acquired_after_block(&self, _: u32, _: WaitCounts) {}

    fn sleep(&self) {
        apic::halt();
    }
}

/// The verdict, the report, the end.
fn finish(run: &Run, domain: Domain) -> ! {
    let shares: Vec<Share> = run.shares.iter().filter_map(|share| share.lock().take()).collect();
    let mut counters: BTreeMap<String, u64> = BTreeMap::new();
    for vcpu in 0..run.params.vcpus as usize {
        for (counter, n) in Counter::ALL.into_iter().zip(pvlock::counters::<Kernel>(vcpu)) {
            *counters.entry(counter.name().to_string()).or_default() += n;
        }
    }
    let report = report::assemble(domain, &run.params, &shares, run.contest.counter(), counters);
    match report::to_json(&report) {
        Ok(document) => report::to_console(&document, |line| {
            let _ = Console.write_str(&String::from_utf8_lossy(line));
        }),
        Err(error) => panic!("the report cannot be written: {error}"),
    }
    match report.outcome {
        Outcome::Success | Outcome::Skip(_) => console::exit(0),
        Outcome::Error(why) | Outcome::Failure(why) => panic!("{why}"),
    }
}
