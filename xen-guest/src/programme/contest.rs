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
use spin::mutex::{SpinMutex, TicketMutex};

use super::RunningVcpu;
use crate::glue::XenPlatform;
use crate::locks::TestedLock;
use crate::params::Policy;
use crate::workload::{Guarded, Plan, Share, contend, free_locks};

/// The locks of a run and the workload on them.
pub(super) trait Contest: Send + Sync {
    /// Runs the workload on the calling vCPU, to its end.
    fn take_part(&self, vcpu: &RunningVcpu, plan: &Plan, progress: &AtomicU64) -> Share;

    /// The sum of the counters the locks protect; when every vCPU is done.
    fn counter(&self) -> u64;

    /// The state of every lock, for a person who looks for a hang. Takes no lock.
    fn describe(&self, out: &mut dyn Write) -> fmt::Result;
}

/// `locks` free locks of the type that `policy` names.
pub(super) fn for_policy(policy: Policy, locks: u32) -> Box<dyn Contest> {
    type Pv<K> = pvlock::Mutex<Guarded, XenPlatform, K>;
    match policy {
        Policy::KickTwice => Locks::<Pv<KickTwice>>::boxed(locks),
        Policy::Hybrid => Locks::<Pv<Hybrid>>::boxed(locks),
        Policy::Adaptive => Locks::<Pv<Adaptive>>::boxed(locks),
        // Native and test-and-set are modes of the same lock.
        Policy::KickAtUnlock | Policy::Native | Policy::TestAndSet => {
            Locks::<Pv<KickAtUnlock>>::boxed(locks)
        }
        Policy::Spin => Locks::<SpinMutex<Guarded>>::boxed(locks),
        Policy::SpinTicket => Locks::<TicketMutex<Guarded>>::boxed(locks),
    }
}

struct Locks<L>(Vec<CachePadded<L>>);

impl<L: TestedLock<Guarded> + Send + 'static> Locks<L> {
    fn boxed(locks: u32) -> Box<dyn Contest> {
        Box::new(Locks(free_locks::<L>(locks)))
    }
}

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
