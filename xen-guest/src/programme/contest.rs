//! The locks of one run, whatever their type.
//!
//! Owns the one place where the name of a policy becomes a lock type, so that the loop behind it is
//! compiled for that type and calls nothing through a table.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::AtomicU64;

use crossbeam_utils::CachePadded;
use pvlock::{Adaptive, Hybrid, KickAtUnlock, KickTwice};

use super::RunningVcpu;
use crate::glue::XenPlatform;
use crate::locks::{Family, Pv, Spin, TestedLock, Ticket};
use crate::params::{Params, Policy, Workload};
use crate::workload::alloc::{TestedArena, churn};
use crate::workload::torture::Torture;
use crate::workload::{Guarded, Plan, Share, Vcpu, contend, free_locks};
use crate::{clock, heap};

/// The locks of a run and the workload on them.
pub(super) trait Contest: Send + Sync {
    /// Runs the workload on the calling vCPU, to its end.
    fn take_part(&self, vcpu: &RunningVcpu, plan: &Plan, progress: &AtomicU64) -> Share;

    /// The sum of the counters the locks protect; when every vCPU is done.
    fn counter(&self) -> u64;

    /// The state of every lock, for a person who looks for a hang. Takes no lock.
    fn describe(&self, out: &mut dyn Write) -> fmt::Result;
}

/// The locks and the workload that `params` name.
pub(super) fn new(params: &Params) -> Box<dyn Contest> {
    type Xen<K> = Pv<XenPlatform, K>;
    match params.policy {
        Policy::KickTwice => of_family::<Xen<KickTwice>>(params),
        Policy::Hybrid => of_family::<Xen<Hybrid>>(params),
        Policy::Adaptive => of_family::<Xen<Adaptive>>(params),
        // Native and test-and-set are modes of the same lock.
        Policy::KickAtUnlock | Policy::Native | Policy::TestAndSet => {
            of_family::<Xen<KickAtUnlock>>(params)
        }
        Policy::Spin => of_family::<Spin>(params),
        Policy::SpinTicket => of_family::<Ticket>(params),
    }
}

fn of_family<F: Family>(params: &Params) -> Box<dyn Contest> {
    match params.workload {
        Workload::Handoff | Workload::Spread => {
            Box::new(Locks(free_locks::<F::Lock<Guarded>>(params.locks)))
        }
        Workload::Torture => Box::new(Torture::<F>::new(params.locks)),
        Workload::Alloc => {
            // For ever: the global allocator refers to it from now on.
            let arena = Box::leak(Box::new(TestedArena::<F>::new(params.vcpus, clock::now)));
            heap::install_arena(arena);
            Box::new(&*arena)
        }
    }
}

struct Locks<L>(Vec<CachePadded<L>>);

impl<L: TestedLock<Guarded> + Send> Contest for Locks<L> {
    fn take_part(&self, vcpu: &RunningVcpu, plan: &Plan, progress: &AtomicU64) -> Share {
        contend(vcpu, plan, &self.0, progress)
    }

    fn counter(&self) -> u64 {
        self.0.iter().map(|lock| lock.with(|guarded| guarded.counter())).sum()
    }

    fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        self.0.iter().try_for_each(|lock| lock.describe(out))
    }
}

impl<F: Family> Contest for Torture<F> {
    fn take_part(&self, vcpu: &RunningVcpu, plan: &Plan, progress: &AtomicU64) -> Share {
        Torture::take_part(self, vcpu, plan, progress)
    }

    fn counter(&self) -> u64 {
        Torture::counter(self)
    }

    fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        Torture::describe(self, out)
    }
}

impl<F: Family> Contest for &'static TestedArena<F> {
    fn take_part(&self, vcpu: &RunningVcpu, plan: &Plan, progress: &AtomicU64) -> Share {
        churn(self, vcpu, plan, progress, |on| heap::serve_from_arena(vcpu.number(), on))
    }

    fn counter(&self) -> u64 {
        TestedArena::counter(self)
    }

    fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        TestedArena::describe(self, out)
    }
}
