//! Synthetic traces with known truth.
//!
//! Owns a small simulator of a Xen host whose guests fight for a queue lock, and the ring buffers
//! and windows its records go through. It writes the same bytes Xen and `xentrace` would, and
//! counts what happened as it happens, not from the records: so a test can compare. Used by tests,
//! benchmarks and the fuzz target; also the way to try an analysis without a Xen host.

mod emit;
mod ring;
mod schedule;
mod sim;

use std::collections::BTreeMap;
use std::io::{self, Write};

/// How the guests enter Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Guest {
    /// Hypercall records with their first argument.
    Pv,
    /// VM exits with hypercall numbers, Intel's event numbers.
    Pvh,
    /// VM exits with AMD's event numbers since Xen 4.19.
    #[value(skip)]
    PvhAmd419,
}

/// When a waiter is kicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kicks {
    /// When it becomes the head of the queue, and again when the lock is free.
    Twice,
    /// When the lock is free.
    AtUnlock,
}

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything random depends on it alone.
    pub seed: u64,
    /// pCPUs of the host.
    pub pcpus: u32,
    /// Domains 1..=`domains`.
    pub domains: u16,
    /// Locks of each domain; each acquisition is of a random one.
    pub locks: u16,
    /// vCPUs of each domain.
    pub vcpus: u16,
    /// How they enter Xen.
    pub guest: Guest,
    /// When they kick.
    pub kicks: Kicks,
    /// Whether they write pvlock's marks.
    pub markers: bool,
    /// TSC ticks a second.
    pub hz: f64,
    /// Mean time between a vCPU's acquisitions in ns.
    pub outside_ns: u64,
    /// Mean critical section in ns.
    pub critical_ns: u64,
    /// How long a waiter spins before it sleeps, in ns.
    pub spin_ns: u64,
    /// Scheduler slice in ns.
    pub slice_ns: u64,
    /// One in so many sleeping waiters is woken by a timer; 0 for none.
    pub timer_every: u32,
    /// Hypercalls of no interest for each acquisition, so that the trace has its usual volume.
    pub noise: u32,
    /// Bytes of each pCPU's ring.
    pub ring: usize,
    /// Time between two passes of `xentrace` over the rings in ns. A ring that fills up in between
    /// loses records, unless [`Plan::drain_when_half_full`] is set.
    pub drain_ns: u64,
    /// Start a pass as soon as a ring is half full, as Xen asks `xentrace` to.
    pub drain_when_half_full: bool,
    /// Ticks by which each pCPU's TSC is ahead; missing ones are 0.
    pub skew: Vec<i64>,
    /// How much faster each pCPU's TSC runs than the first says, as a part; missing ones are 0.
    pub drift: Vec<f64>,
    /// ns from the start of the trace in which each pCPU's records are not kept, as with `xentrace
    /// -M`; `u64::MAX` for a pCPU that is not traced at all (`-c`). Missing ones are 0.
    pub late: Vec<u64>,
    /// With [`Plan::markers`]: vCPUs from this number on do not mark.
    pub markers_below: u16,
    /// A toolstack pauses and unpauses sleeping vCPUs every so many ns; 0 for never.
    pub pause_ns: u64,
    /// After [`Plan::duration_ns`] all domains end, and new ones with their numbers begin: how
    /// often.
    pub rebirths: u32,
    /// One pCPU of each two writes what the scheduler does on both (`sched-gran=core`).
    pub core_scheduling: bool,
    /// Write padding records with garbage into them, as at the end of a ring.
    pub padding: bool,
    /// Stop after so many ns of simulated time.
    pub duration_ns: u64,
    /// Stop after so many bytes of trace.
    pub max_bytes: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            seed: 1,
            pcpus: 4,
            domains: 2,
            locks: 1,
            vcpus: 4,
            guest: Guest::Pv,
            kicks: Kicks::AtUnlock,
            markers: false,
            hz: 2.8e9,
            outside_ns: 20_000,
            critical_ns: 10_000,
            spin_ns: 5_000,
            slice_ns: 1_000_000,
            timer_every: 0,
            noise: 2,
            ring: 1 << 20,
            drain_ns: 100_000_000,
            drain_when_half_full: true,
            skew: Vec::new(),
            drift: Vec::new(),
            late: Vec::new(),
            markers_below: u16::MAX,
            pause_ns: 0,
            rebirths: 0,
            core_scheduling: false,
            padding: false,
            duration_ns: 30_000_000,
            max_bytes: u64::MAX,
        }
    }
}

/// What really happened to one vCPU. Waits and polls still under way at the end are not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VcpuTruth {
    /// Event channel operations: kicks, all of them.
    pub evtchn_ops: u64,
    /// Kicks that woke their target.
    pub waking_kicks: u64,
    /// Polls that returned at once.
    pub polls_immediate: u64,
    /// Polls that blocked, left the pCPU, and ended.
    pub polls_blocked: u64,
    /// Polls that were woken before they left the pCPU.
    pub polls_aborted: u64,
    /// Waits ended by a kick.
    pub waits_kicked: u64,
    /// Waits ended by a timer.
    pub waits_other: u64,
    /// `[waits][waking kicks]` of each acquisition that waited at least once; 3 is 3 or more.
    pub acquisitions: [[u64; 4]; 4],
    /// ns on a pCPU, from its first to its last change of state.
    pub running_ns: u64,
    /// ns ready without a pCPU.
    pub runnable_ns: u64,
    /// ns blocked.
    pub blocked_ns: u64,
}

impl VcpuTruth {
    /// Adds what a later vCPU of the same name did.
    fn add(&mut self, other: &Self) {
        self.evtchn_ops += other.evtchn_ops;
        self.waking_kicks += other.waking_kicks;
        self.polls_immediate += other.polls_immediate;
        self.polls_blocked += other.polls_blocked;
        self.polls_aborted += other.polls_aborted;
        self.waits_kicked += other.waits_kicked;
        self.waits_other += other.waits_other;
        for (row, of) in self.acquisitions.iter_mut().zip(&other.acquisitions) {
            row.iter_mut().zip(of).for_each(|(cell, of)| *cell += of);
        }
        self.running_ns += other.running_ns;
        self.runnable_ns += other.runnable_ns;
        self.blocked_ns += other.blocked_ns;
    }
}

/// What really happened.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// By domain and vCPU, all domains of a number together.
    pub vcpus: BTreeMap<(u16, u16), VcpuTruth>,
    /// By domain and low half of the lock's address: as [`VcpuTruth::acquisitions`].
    pub locks: BTreeMap<(u16, u32), [[u64; 4]; 4]>,
    /// Records written to the trace, window headers and padding left out.
    pub records: u64,
    /// Records dropped because a ring was full.
    pub lost: u64,
    /// Gaps: runs of dropped records.
    pub gaps: u64,
    /// WAKEs of vCPUs that slept on.
    pub pauses: u64,
    /// Bytes written.
    pub bytes: u64,
}

/// Simulates `plan` and writes its trace.
///
/// # Errors
/// Whatever `out` returns.
///
/// # Example
/// ```
/// use kicktrace::synth::{Plan, generate};
/// let mut trace = Vec::new();
/// let truth = generate(&Plan::default(), &mut trace)?;
/// let summary = kicktrace::summarise(&trace[..], &kicktrace::Options::default()).unwrap();
/// assert_eq!(summary.reading.records, truth.records);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn generate(plan: &Plan, out: impl Write) -> io::Result<Truth> {
    sim::Sim::new(plan, out).run()
}
