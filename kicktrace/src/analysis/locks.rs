//! Waits and acquisitions lock by lock, as the guests mark them.
//!
//! Owns the memory this may take: a guest can name any number of locks, so from some number on they
//! are told together.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::analysis::acquisition::{Episode, Tally};
use crate::analysis::latency::Latency;
use crate::analysis::observe::WaitStory;
use crate::summary::{Certainty, Lock, LongestWait};

/// Locks told one by one; waits and acquisitions of further ones are told together for each domain.
pub const MAX_LOCKS: usize = 512;

/// The figures of one lock, or of all locks of a domain beyond [`MAX_LOCKS`].
#[derive(Debug, Default)]
struct OfLock {
    tally: Tally,
    wait: Latency,
    kicked: u64,
    /// Waits that ended by a kick that is not marked.
    unmarked: u64,
    longest: Option<WaitStory>,
    vcpus: FxHashSet<u16>,
}

/// A domain, and how many had its number before.
type Life = (u16, u32);

/// By domain and lock; the lock is `None` for all beyond the limit.
#[derive(Debug, Default)]
pub(super) struct Locks(FxHashMap<(Life, Option<u32>), OfLock>);

impl Locks {
    fn get(&mut self, domain: Life, lock: u32) -> &mut OfLock {
        let key = (domain, Some(lock));
        let known = self.0.len() < MAX_LOCKS || self.0.contains_key(&key);
        self.0.entry(if known { key } else { (domain, None) }).or_default()
    }

    /// A wait for `lock` ended, beside no gap.
    pub(super) fn waited(&mut self, life: u32, lock: u32, wait: &WaitStory, marked: bool) {
        let of = self.get((wait.vcpu.domain, life), lock);
        of.unmarked += u64::from(!marked);
        let ticks = |wait: &WaitStory| wait.running.saturating_sub(wait.blocked);
        of.wait.record(ticks(wait));
        of.kicked += u64::from(wait.kick.is_some());
        of.vcpus.insert(wait.vcpu.vcpu);
        if of.longest.as_ref().is_none_or(|longest| ticks(longest) < ticks(wait)) {
            of.longest = Some(*wait);
        }
    }

    /// `lock` was acquired after it had blocked a vCPU.
    pub(super) fn acquired(&mut self, domain: Life, lock: u32, episode: &Episode) {
        self.get(domain, lock).tally.record(episode);
    }

    /// The locks of `domain` as told, the most waited for first, those told together last.
    /// `order` is how far the order of different pCPUs' records is certain.
    pub(super) fn summary(&self, domain: Life, order: Certainty) -> Vec<Lock> {
        let of_domain = self.0.iter().filter(|((of, _), _)| *of == domain);
        let told = of_domain.map(|(&(_, lock), of)| Lock {
            lock,
            vcpus: of.vcpus.len() as u32,
            waits: of.wait.len(),
            waits_kicked: of.kicked,
            certainty: if of.unmarked > 0 { Certainty::Inferred } else { Certainty::Exact }
                .max(order),
            acquisitions: of.tally.of_marks(order),
            wait: of.wait.told(order),
            longest: of.longest.map(|wait| LongestWait {
                vcpu: wait.vcpu.vcpu,
                blocked: wait.blocked,
                ticks: wait.running.saturating_sub(wait.blocked),
                kicked_by: wait.kick.map(|kick| kick.by.vcpu),
                kicker_stolen: wait.kicker_stolen,
            }),
        });
        let mut told: Vec<_> = told.collect();
        told.sort_by_key(|of| (of.lock.is_none(), std::cmp::Reverse(of.waits), of.lock));
        told
    }
}

#[cfg(test)]
mod tests {
    use super::{Locks, MAX_LOCKS};
    use crate::analysis::acquisition::{Episode, Kick};
    use crate::summary::Certainty;

    #[test]
    fn locks_beyond_the_limit_are_told_together() {
        let mut locks = Locks::default();
        let mut once = Episode::default();
        once.wait(Some(Kick { by: 0, cpu: 0, tsc: 0, marked: true }), false);
        for lock in 0..2 * MAX_LOCKS as u32 {
            locks.acquired((1, 0), lock, &once);
            locks.acquired((1, 0), 0, &once);
        }
        let told = locks.summary((1, 0), Certainty::Exact);
        assert_eq!(told.len(), MAX_LOCKS + 1);
        let blocked = |lock| told.iter().find(|of| of.lock == lock).unwrap().acquisitions.blocked;
        assert_eq!(blocked(Some(0)), 1 + 2 * MAX_LOCKS as u64);
        assert_eq!(blocked(None), MAX_LOCKS as u64);
        assert_eq!(told.last().unwrap().lock, None);
        assert!(locks.summary((1, 1), Certainty::Exact).is_empty());
    }
}
