//! How long a lock's owner was off its pCPU while others waited for it.
//!
//! Owns the join of preemptions and waits: the vCPU whose kick ends a wait is the owner that lets
//! go, and from the kick before to this one the lock was its own. So the times of one lock do not
//! overlap.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::analysis::latency::Latency;
use crate::analysis::locks::MAX_LOCKS;
use crate::analysis::observe::{VcpuId, WaitStory};

/// Preemptions remembered of each vCPU.
const RECENT: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Owners {
    vcpus: FxHashMap<VcpuId, Preempted>,
    pub(super) locks: FxHashMap<(u16, u32), OfLock>,
    last_kick: FxHashMap<(u16, u32), u64>,
}

#[derive(Debug, Default)]
struct Preempted {
    since: Option<u64>,
    recent: VecDeque<(u64, u64)>,
}

#[derive(Debug, Default)]
pub(super) struct OfLock {
    /// Hand-overs by a kick.
    pub(super) kicks: u64,
    /// Of these: the owner had been off its pCPU.
    pub(super) off: u64,
    pub(super) ticks: u64,
    pub(super) each: Latency,
}

impl Owners {
    pub(super) fn preempted(&mut self, id: VcpuId, tsc: u64) {
        self.vcpus.entry(id).or_default().since = Some(tsc);
    }

    pub(super) fn runs(&mut self, id: VcpuId, tsc: u64) {
        let Some(of) = self.vcpus.get_mut(&id) else { return };
        if let Some(since) = of.since.take() {
            if of.recent.len() == RECENT {
                of.recent.pop_front();
            }
            of.recent.push_back((since, tsc));
        }
    }

    pub(super) fn waited(&mut self, wait: &WaitStory) {
        let (Some(lock), Some(kick)) = (wait.lock, wait.kick) else { return };
        let key = (wait.vcpu.domain, lock);
        if self.locks.len() >= MAX_LOCKS && !self.locks.contains_key(&key) {
            return;
        }
        let last = self.last_kick.entry(key).or_default();
        let from = wait.blocked.max(*last);
        *last = kick.tsc.max(*last);
        let off = self.vcpus.get(&kick.by).map_or(0, |of| {
            let overlap =
                |&(start, end): &(u64, u64)| end.min(kick.tsc).saturating_sub(start.max(from));
            of.recent.iter().rev().take_while(|&&(_, end)| end > from).map(overlap).sum::<u64>()
        });
        let of = self.locks.entry(key).or_default();
        of.kicks += 1;
        if off > 0 {
            of.off += 1;
            of.ticks = of.ticks.saturating_add(off);
            of.each.record(off);
        }
    }

    /// Nothing is known of this vCPU any more.
    pub(super) fn forget(&mut self, id: VcpuId) {
        self.vcpus.remove(&id);
    }

    pub(super) fn begin_again(&mut self) {
        self.locks.clear();
    }
}
