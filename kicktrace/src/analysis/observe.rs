//! What an analyser tells while it reads, for outputs that need every single interval and wait.

use crate::event::Runstate;

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

/// Told by [`Analyser`](super::Analyser) as it goes. Intervals and waits come in order of their
/// ends.
pub trait Observe {
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
}

/// Observes nothing.
impl Observe for () {}
