//! What an analyser tells while it reads, for outputs that need every single interval and wait.

use crate::event::Runstate;
use crate::reader::Record;
use crate::summary::Certainty;

/// A vCPU's name: domain and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct VcpuId {
    /// Domain.
    pub domain: u16,
    /// Number within the domain.
    pub vcpu: u16,
}

impl std::fmt::Display for VcpuId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("d{}v{}", self.domain, self.vcpu))
    }
}

/// A time a vCPU spent in one runstate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Interval {
    /// Who.
    pub vcpu: VcpuId,
    /// In which state.
    pub state: Runstate,
    /// The pCPU it ran on, or ran on last.
    pub cpu: u32,
    /// Begin, TSC.
    pub from: u64,
    /// End, TSC.
    pub to: u64,
}

/// A vCPU's runstate changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub vcpu: VcpuId,
    /// The pCPU whose record says so.
    pub cpu: u32,
    /// When, TSC.
    pub tsc: u64,
    /// The state it left, as the record says.
    pub from: Runstate,
    /// Whether it is known to have been in that state since its change before.
    pub follows: bool,
    /// The state it is in now; `None` if records were lost and nobody knows.
    pub to: Option<Runstate>,
}

/// Who is on a pCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Nobody knows: at the start of a trace, or after lost records.
    Unknown,
    /// Xen's idle vCPU.
    Idle,
    /// A vCPU of a domain that was not asked for.
    Other,
    /// This one.
    Vcpu(VcpuId),
}

/// The event channel operation that ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KickStory {
    /// Who kicked.
    pub by: VcpuId,
    /// From which pCPU.
    pub cpu: u32,
    /// When its operation began, TSC.
    pub tsc: u64,
}

/// A poll that blocked and ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WaitStory {
    /// Who waited.
    pub vcpu: VcpuId,
    /// The lock it waited for (low half of its address), if the guest marked that.
    pub lock: Option<u32>,
    /// When it blocked, TSC.
    pub blocked: u64,
    /// When it was woken, TSC.
    pub woken: u64,
    /// When it was on a pCPU again, TSC.
    pub running: u64,
    /// That pCPU.
    pub cpu: u32,
    /// What woke it, if it was a kick.
    pub kick: Option<KickStory>,
    /// Ticks for which the kicker was itself preempted while this vCPU waited.
    pub kicker_stolen: u64,
}

/// An acquisition of a lock that blocked at least once, as the guest marked it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AcquisitionStory {
    /// Who acquired.
    pub vcpu: VcpuId,
    /// Low half of the lock's address.
    pub lock: u32,
    /// When it blocked for the first time, TSC.
    pub blocked: u64,
    /// When it was on a pCPU again after its last wait, TSC.
    pub running: u64,
    /// When the guest said that it had the lock, TSC; a guest may say so after it let go of it.
    pub marked: u64,
    /// Ticks in its waits, from the block to the vCPU on a pCPU again.
    pub slept: u64,
    /// Ticks in the longest of them.
    pub longest: u64,
    /// Polls that blocked and ended.
    pub waits: u32,
    /// Kicks that woke it.
    pub waking_kicks: u32,
    /// Who kicked it awake first.
    pub first_kicked_by: Option<VcpuId>,
    /// Who kicked it awake last.
    pub last_kicked_by: Option<VcpuId>,
    /// How far to trust the figures: exact unless a kick is not marked, or TSCs are corrected.
    pub certainty: Certainty,
}

/// Told by [`Analyser`](super::Analyser) as it goes. Intervals and waits come in order of their
/// ends.
pub trait Observe {
    /// Whether it listens at all: what nobody hears is not told.
    const LISTENS: bool = true;

    /// Whether it wants every single record: see [`record`](Self::record).
    const RECORDS: bool = false;

    /// Every record, before the analyser takes it in, and who is on its pCPU before it. Those of
    /// one pCPU come in their order; of different pCPUs only those that can change what a vCPU
    /// does.
    fn record(&mut self, record: &Record<'_>, on: On) {
        let _ = (record, on);
    }

    /// A vCPU's runstate changed.
    #[inline]
    fn change(&mut self, change: &Change) {
        let _ = change;
    }

    /// A domain begins or ends: from here on the vCPUs of this number are others.
    fn domain_changes(&mut self, domain: u16, tsc: u64) {
        let _ = (domain, tsc);
    }

    /// Nothing was recorded between these TSCs: that is no time of the trace, and nobody knows what
    /// any vCPU does behind it.
    fn silence(&mut self, from: u64, to: u64) {
        let _ = (from, to);
    }

    /// A phase ends at `tsc` and the next one begins; all intervals up to it have been told.
    fn cut(&mut self, tsc: u64) {
        let _ = tsc;
    }

    /// The first record has this TSC.
    fn start(&mut self, tsc: u64) {
        let _ = tsc;
    }

    /// A runstate ended.
    fn interval(&mut self, interval: &Interval) {
        let _ = interval;
    }

    /// A wait ended. Waits that lost records make doubtful are not told.
    fn wait(&mut self, wait: &WaitStory) {
        let _ = wait;
    }

    /// See [`Visit::caught_up`](crate::reader::Visit::caught_up).
    fn caught_up(&mut self) {}

    /// An acquisition that blocked is over, as its guest marked it. Those that began before the
    /// trace, or that lost records make doubtful, are not told. They come in each vCPU's order.
    fn acquisition(&mut self, acquisition: &AcquisitionStory) {
        let _ = acquisition;
    }
}

/// Observes nothing.
impl Observe for () {
    const LISTENS: bool = false;
}

/// Both observe.
impl<A: Observe, B: Observe> Observe for (A, B) {
    const LISTENS: bool = A::LISTENS || B::LISTENS;
    const RECORDS: bool = A::RECORDS || B::RECORDS;

    fn record(&mut self, record: &Record<'_>, on: On) {
        if A::RECORDS {
            self.0.record(record, on);
        }
        if B::RECORDS {
            self.1.record(record, on);
        }
    }

    fn change(&mut self, change: &Change) {
        self.0.change(change);
        self.1.change(change);
    }

    fn domain_changes(&mut self, domain: u16, tsc: u64) {
        self.0.domain_changes(domain, tsc);
        self.1.domain_changes(domain, tsc);
    }

    fn silence(&mut self, from: u64, to: u64) {
        self.0.silence(from, to);
        self.1.silence(from, to);
    }

    fn cut(&mut self, tsc: u64) {
        self.0.cut(tsc);
        self.1.cut(tsc);
    }

    fn start(&mut self, tsc: u64) {
        self.0.start(tsc);
        self.1.start(tsc);
    }

    fn interval(&mut self, interval: &Interval) {
        self.0.interval(interval);
        self.1.interval(interval);
    }

    fn wait(&mut self, wait: &WaitStory) {
        self.0.wait(wait);
        self.1.wait(wait);
    }

    fn caught_up(&mut self) {
        self.0.caught_up();
        self.1.caught_up();
    }

    fn acquisition(&mut self, acquisition: &AcquisitionStory) {
        self.0.acquisition(acquisition);
        self.1.acquisition(acquisition);
    }
}
