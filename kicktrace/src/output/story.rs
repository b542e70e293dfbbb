//! Intervals and waits kept in memory, for outputs that need them all at once.

use crate::analysis::{Interval, Observe, VcpuId, WaitStory};

/// A time in which a pCPU lost records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The pCPU.
    pub cpu: u32,
    /// Begin, TSC.
    pub from: u64,
    /// End, TSC.
    pub to: u64,
}

/// Keeps intervals and waits, up to a limit.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// In order of their ends.
    pub intervals: Vec<Interval>,
    /// In order of their ends.
    pub waits: Vec<WaitStory>,
    /// Where records were lost.
    pub gaps: Vec<Gap>,
    /// How many of each there is room for.
    limit: usize,
    /// How many found no room.
    pub dropped: u64,
}

impl Story {
    /// Notes that records were lost.
    pub fn gap(&mut self, gap: Gap) {
        if self.gaps.len() < self.limit {
            self.gaps.push(gap);
        }
    }

    /// Room for `limit` intervals, waits and gaps each.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// First and last TSC, if there is anything.
    #[must_use]
    pub fn span(&self) -> Option<(u64, u64)> {
        let from = self.intervals.iter().map(|interval| interval.from).min()?;
        let to = self.intervals.iter().map(|interval| interval.to).max()?;
        Some((from, to))
    }

    /// Every vCPU, in order.
    #[must_use]
    pub fn vcpus(&self) -> Vec<VcpuId> {
        let mut vcpus: Vec<_> = self.intervals.iter().map(|interval| interval.vcpu).collect();
        vcpus.sort_unstable();
        vcpus.dedup();
        vcpus
    }

    /// Every pCPU something ran on, in order.
    #[must_use]
    pub fn pcpus(&self) -> Vec<u32> {
        let mut pcpus: Vec<_> = self.intervals.iter().map(|interval| interval.cpu).collect();
        pcpus.sort_unstable();
        pcpus.dedup();
        pcpus
    }
}

impl Observe for Story {
    fn interval(&mut self, interval: &Interval) {
        if self.intervals.len() < self.limit {
            self.intervals.push(*interval);
        } else {
            self.dropped += 1;
        }
    }

    fn wait(&mut self, wait: &WaitStory) {
        if self.waits.len() < self.limit {
            self.waits.push(*wait);
        } else {
            self.dropped += 1;
        }
    }
}
