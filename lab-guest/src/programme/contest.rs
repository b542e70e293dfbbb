//! The locks of one run, whatever their type.
//!
//! Owns the one place where the name of a policy becomes a lock type, so that the loop behind it is
//! compiled for that type and calls nothing through a table.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use experiment::record::Histogram;
use experiment::{Fault, Limit, Params, Policy, Time, Workload};
use pvlock::{Adaptive, KickAtUnlock, KickTwice, Policy as _};
use xen_guest::vcpu::clock;

use super::vcpu::RunningVcpu;
use crate::locks::platform::TestedPlatform;
use crate::locks::{Family, Pv, Spin, TestedLock, Ticket, heap, variants};
use crate::workload::alloc::{TestedArena, churn};
use crate::workload::handlers::Handlers;
use crate::workload::rng::Around;
use crate::workload::torture::Torture;
use crate::workload::work::{Disturbed, fastest};
use crate::workload::{Guarded, Plan, Share, Vcpu, compute, contend, doze, free_locks};

/// The locks of a run and the workload on them.
pub(super) trait Contest: Send + Sync {
    /// Runs the workload on the calling vCPU, to its end.
    fn take_part(&self, vcpu: &RunningVcpu<'_>, plan: &Plan, progress: &AtomicU64) -> Share;

    /// The sum of the counters the locks protect; when every vCPU is done.
    fn counter(&self) -> u64;

    /// What one uncontended turn of the loop takes on the calling vCPU with no work in it, in nanoseconds; 0 for
    /// workloads that are no such loop.
    fn loop_ns(&self, vcpu: &RunningVcpu<'_>, plan: &Plan) -> Result<u64, Disturbed> {
        let _ = (vcpu, plan);
        Ok(0)
    }

    /// The timer of `vcpu` has interrupted it, and this is the handler.
    fn interrupted(&self, vcpu: &RunningVcpu<'_>, plan: &Plan) {
        let _ = (vcpu, plan);
    }

    /// How often handlers of timers took a lock, checked; when every vCPU is done.
    fn interrupts(&self) -> Result<u64, String> {
        Ok(0)
    }

    /// The waits of these handlers, in nanoseconds, where they wait for the tasks' lock; when every
    /// vCPU is done.
    fn waits_of_interrupts(&self) -> Option<Histogram> {
        None
    }

    /// Tries a lock in an NMI's handler; whether it got it.
    fn try_in_nmi(&self) -> bool {
        false
    }

    /// How often NMIs got the lock, by its own counter; when every vCPU is done.
    fn tried(&self) -> u64 {
        0
    }

    /// The state of every lock, for a person who looks for a hang. Takes no lock.
    fn describe(&self, out: &mut dyn Write) -> fmt::Result;
}

fn tried<L: TestedLock<Guarded>>(locks: &[CachePadded<L>]) -> u64 {
    locks.iter().map(|lock| lock.with(|guarded| guarded.tried())).sum()
}

/// How long a wait may last by the policy's own word, in nanoseconds, if `params` tell how long a
/// wake-up takes.
///
/// From asking to owning: a newcomer's budget; the horizon, for which others may pass it; that of a
/// head that is awake then, and a wake-up more; and a section and a wake-up for each one ahead and
/// for itself. One of all has the lock, so the turns of all hold the wake-up more.
pub(super) fn wait_bound_ns(params: &Params) -> Option<u64> {
    let before_its_turn = match params.policy {
        Policy::KickAtUnlock => params.spin.ns(),
        // What a variant lacks must show as a wait that is too long.
        policy if policy == Policy::Adaptive || Policy::VARIANTS.contains(&policy) => {
            2 * Adaptive::BUDGET + Adaptive::horizon(params.vcpus as usize)?
        }
        // It is kicked twice for a turn, or others may always be faster.
        _ => return None,
    };
    let turn = params.critical.ns() + params.wakeup.ns();
    let bound = before_its_turn + u64::from(params.vcpus) * turn;
    (params.wakeup != Time::ZERO).then_some(bound)
}

/// The locks and the workload that `params` name.
pub(super) fn new(params: &Params) -> Box<dyn Contest> {
    type Xen<K> = Pv<TestedPlatform, K>;
    match params.policy {
        Policy::KickTwice => of_family::<Xen<KickTwice>>(params),
        Policy::Adaptive => of_family::<Xen<Adaptive>>(params),
        // Native and test-and-set are modes of the same lock.
        Policy::KickAtUnlock | Policy::Native | Policy::TestAndSet => {
            of_family::<Xen<KickAtUnlock>>(params)
        }
        Policy::Spin => of_family::<Spin>(params),
        Policy::SpinTicket => of_family::<Ticket>(params),
        Policy::AdaptiveNoBudget => of_family::<Xen<variants::NoBudget>>(params),
        Policy::AdaptiveBudget10us => of_family::<Xen<variants::Budget10us>>(params),
        Policy::AdaptiveBudget200us => of_family::<Xen<variants::Budget200us>>(params),
        Policy::AdaptiveStretches8 => of_family::<Xen<variants::Stretches8>>(params),
        Policy::AdaptiveStretches2 => of_family::<Xen<variants::Stretches2>>(params),
        Policy::AdaptiveHorizon2ms => of_family::<Xen<variants::Horizon2ms>>(params),
        Policy::AdaptiveHorizon4ms => of_family::<Xen<variants::Horizon4ms>>(params),
        Policy::AdaptiveHorizon12ms => of_family::<Xen<variants::Horizon12ms>>(params),
        Policy::AdaptiveNoHorizon => of_family::<Xen<variants::NoHorizon>>(params),
        Policy::AdaptiveNoReservation => of_family::<Xen<variants::NoReservation>>(params),
        Policy::AdaptiveNoThiefBound => of_family::<Xen<variants::NoThiefBound>>(params),
    }
}

fn of_family<F: Family>(params: &Params) -> Box<dyn Contest> {
    match params.workload {
        Workload::Handoff | Workload::Spread => {
            let locks = free_locks::<F::Lock<Guarded>>(params.locks);
            let handlers =
                (params.timer != Time::ZERO).then(|| Handlers::new(params.vcpus, params.seed));
            Box::new(Locks { locks, handlers })
        }
        Workload::Torture => Box::new(Torture::<F>::new(params.locks)),
        Workload::Hog => Box::new(Hog(AtomicU64::new(0))),
        Workload::Sleeper => Box::new(Sleeper),
        Workload::Alloc => {
            // For ever: the global allocator refers to it from now on.
            let arena = Box::leak(Box::new(TestedArena::<F>::new(params.vcpus, clock::now)));
            heap::install_arena(arena);
            Box::new(&*arena)
        }
    }
}

/// No lock: the sum of what the vCPUs have done, each added when it is done.
struct Hog(AtomicU64);

impl Contest for Hog {
    fn take_part(&self, vcpu: &RunningVcpu<'_>, plan: &Plan, progress: &AtomicU64) -> Share {
        let share = compute(vcpu, plan, progress);
        // Relaxed: whoever reads the sum has learned through the shares' locks that all vCPUs are done.
        self.0.fetch_add(share.acquisitions, Ordering::Relaxed);
        share
    }

    fn counter(&self) -> u64 {
        // Relaxed: as above.
        self.0.load(Ordering::Relaxed)
    }

    fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "no lock: workload=hog")
    }
}

struct Sleeper;

impl Contest for Sleeper {
    fn take_part(&self, vcpu: &RunningVcpu<'_>, plan: &Plan, _: &AtomicU64) -> Share {
        doze(vcpu, plan)
    }

    fn counter(&self) -> u64 {
        0
    }

    fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "no lock: workload=sleeper")
    }
}

struct Locks<L> {
    locks: Vec<CachePadded<L>>,
    /// Where timers interrupt the tasks.
    handlers: Option<Handlers>,
}

impl<L: TestedLock<Guarded> + Send> Contest for Locks<L> {
    fn take_part(&self, vcpu: &RunningVcpu<'_>, plan: &Plan, progress: &AtomicU64) -> Share {
        contend(vcpu, plan, &self.locks, progress)
    }

    fn loop_ns(&self, vcpu: &RunningVcpu<'_>, plan: &Plan) -> Result<u64, Disturbed> {
        const TURNS: u64 = 20;
        let empty = Plan {
            critical_turns: 0,
            outside: Around::new(0, 0),
            limit: Limit::Acquisitions(TURNS),
            fault: Fault::Off,
            timer_ns: 0,
            ..plan.clone()
        };
        let own = free_locks::<L>(1);
        let progress = AtomicU64::new(0);
        // The histogram is the loop's, its memory is not.
        let ns = fastest(|| contend(vcpu, &empty, &own, &progress).elapsed_ns)?;
        Ok(ns / TURNS)
    }

    /// Without what handlers added: they are in the section as the tasks are, and one that was in
    /// it beside another is missing here.
    fn counter(&self) -> u64 {
        let all: u64 = self.locks.iter().map(|lock| lock.with(|guarded| guarded.counter())).sum();
        all.saturating_sub(self.handlers.as_ref().map_or(0, |all| all.latency().count()))
    }

    fn interrupted(&self, vcpu: &RunningVcpu<'_>, plan: &Plan) {
        if let Some(handlers) = &self.handlers {
            handlers.interrupted(vcpu, plan, &*self.locks[0]);
        }
    }

    fn interrupts(&self) -> Result<u64, String> {
        Ok(self.waits_of_interrupts().map_or(0, |waits| waits.count()))
    }

    fn waits_of_interrupts(&self) -> Option<Histogram> {
        self.handlers.as_ref().map(Handlers::latency)
    }

    fn try_in_nmi(&self) -> bool {
        Guarded::try_in_handler(&*self.locks[0])
    }

    fn tried(&self) -> u64 {
        tried(&self.locks)
    }

    fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        self.locks.iter().try_for_each(|lock| lock.describe(out))
    }
}

impl<F: Family> Contest for Torture<F> {
    fn take_part(&self, vcpu: &RunningVcpu<'_>, plan: &Plan, progress: &AtomicU64) -> Share {
        Torture::take_part(self, vcpu, plan, progress)
    }

    fn counter(&self) -> u64 {
        Torture::counter(self)
    }

    fn interrupted(&self, _: &RunningVcpu<'_>, plan: &Plan) {
        Torture::interrupted(self, plan.critical_turns);
    }

    fn interrupts(&self) -> Result<u64, String> {
        let (taken, counted) = Torture::interrupts(self);
        if taken == counted {
            return Ok(taken);
        }
        Err(format!(
            "mutual exclusion is broken: {taken} acquisitions in interrupts raised the counter to \
             {counted}"
        ))
    }

    fn try_in_nmi(&self) -> bool {
        Guarded::try_in_handler(&*self.lasting()[0])
    }

    fn tried(&self) -> u64 {
        tried(self.lasting())
    }

    fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        Torture::describe(self, out)
    }
}

impl<F: Family> Contest for &'static TestedArena<F> {
    fn take_part(&self, vcpu: &RunningVcpu<'_>, plan: &Plan, progress: &AtomicU64) -> Share {
        churn(self, vcpu, plan, progress, |on| heap::serve_from_arena(vcpu.number(), on))
    }

    fn counter(&self) -> u64 {
        TestedArena::counter(self)
    }

    fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        TestedArena::describe(self, out)
    }
}
