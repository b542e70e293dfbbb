//! What is counted while a simulation runs.
//!
//! Owns the counts. What they come to is [`report`](crate::report)'s.

use hdrhistogram::Histogram;

use crate::dist::NEVER;

/// What the vCPUs note about their acquisitions.
pub(crate) struct Tally {
    /// Nanoseconds from wanting a lock to owning it.
    pub(crate) waits: Histogram<u64>,
    /// Acquisitions of each vCPU.
    pub(crate) by_vcpu: Vec<u64>,
    pub(crate) acquisitions: u64,
    /// When the last one was.
    pub(crate) last: u64,
    /// (acquisitions, kicks that ended their sleeps) of acquisitions that slept, and of those that
    /// slept twice or more.
    pub(crate) slept: (u64, u64),
    pub(crate) slept_twice: (u64, u64),
}

impl Tally {
    /// Nothing yet, of so many vCPUs.
    pub(crate) fn new(vcpus: usize) -> Self {
        Self {
            waits: Histogram::new_with_max(NEVER, 3).expect("three digits are possible"),
            by_vcpu: vec![0; vcpus],
            acquisitions: 0,
            last: 0,
            slept: (0, 0),
            slept_twice: (0, 0),
        }
    }

    /// An acquisition of `vcpu` at `now`, after it waited, slept and was woken so long and so often.
    pub(crate) fn add(&mut self, vcpu: usize, now: u64, waited: u64, slept: u64, woken: u64) {
        self.acquisitions += 1;
        self.by_vcpu[vcpu] += 1;
        self.last = now;
        self.waits.record(waited).expect("no run lasts so long");
        if slept > 0 {
            self.slept = (self.slept.0 + 1, self.slept.1 + woken);
        }
        if slept > 1 {
            self.slept_twice = (self.slept_twice.0 + 1, self.slept_twice.1 + woken);
        }
    }
}

/// How often the scheduler did what.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Switches {
    /// Time slices that ended while others were waiting, or were cut short for a vCPU that woke up.
    pub(crate) preempted: u64,
    /// pCPUs taken away by something else.
    pub(crate) taken: u64,
}
