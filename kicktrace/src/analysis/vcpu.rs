//! One vCPU: its runstate, its poll, its counts.
//!
//! Owns what one vCPU's own records mean for it. Which vCPU a record concerns, and who kicked whom,
//! is decided in the parent module.

use std::collections::VecDeque;

use crate::analysis::acquisition::{Episode, Marked, Tally};
use crate::analysis::gaps::Gaps;
use crate::analysis::latency::Latency;
use crate::analysis::observe::VcpuId;
use crate::analysis::skew::Skew;
use crate::event::Runstate;
use crate::summary::{DomainKind, Times};

/// Preemptions remembered of each vCPU, to tell whether a kicker was preempted while its target
/// waited.
const RECENT: usize = 32;

/// Where a poll stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Poll {
    /// No poll is under way.
    #[default]
    None,
    /// The hypercall began.
    Entered,
    /// It decided to block; the vCPU is still on its pCPU.
    Blocking,
    /// The vCPU left its pCPU.
    Blocked,
    /// Something woke it; it is not running yet.
    Woken,
}

/// The kick that ended a wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kick {
    /// Index of the vCPU that kicked.
    pub(super) by: u32,
    pub(super) cpu: u32,
    pub(super) tsc: u64,
}

/// Raw counts; see [`crate::summary::Counts`] for their meaning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Raw {
    pub(super) evtchn_ops: u64,
    pub(super) waking_kicks: u64,
    pub(super) idle_kicks: u64,
    pub(super) kicks_without_wake: u64,
    pub(super) marked_kicks: u64,
    pub(super) marked_without_wake: u64,
    pub(super) polls: u64,
    pub(super) polls_blocked: u64,
    pub(super) polls_aborted: u64,
    pub(super) polls_immediate: u64,
    pub(super) idle_blocks: u64,
    pub(super) yields: u64,
    pub(super) waits: u64,
    pub(super) waits_kicked: u64,
    pub(super) waits_tainted: u64,
    pub(super) spurious_wakes: u64,
    pub(super) kicker_preempted: u64,
    pub(super) inconsistent: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct LatencySet {
    pub(super) kick_to_wake: Latency,
    pub(super) wake_to_run: Latency,
    pub(super) kick_to_run: Latency,
    pub(super) wait: Latency,
}

#[derive(Debug, Default)]
pub(super) struct Vcpu {
    pub(super) domain: u16,
    pub(super) id: u16,
    pub(super) kind: DomainKind,

    pub(super) state: Option<Runstate>,
    /// The pCPU of the last change to running.
    pub(super) cpu: u32,
    odd: Option<Early>,
    since: u64,
    gaps_at_since: u64,
    first: Option<u64>,
    woken: bool,
    /// The last intervals in which it was runnable after it had been running, oldest first.
    preempted: VecDeque<(u64, u64)>,
    pub(super) times: Times,
    tainted: u64,
    /// `times.kicker_stolen` misses preemptions that were no longer remembered.
    pub(super) kicker_stolen_more: bool,

    pub(super) poll: Poll,
    poll_tsc: u64,
    gaps_at_poll: u64,
    block_tsc: u64,
    left_tsc: u64,
    wake_tsc: u64,
    aborted: bool,
    /// A wake between the poll and its block: Xen lets the vCPU be woken just before it writes BLOCK.
    early_wake: Option<(u64, Option<Kick>)>,
    kicked_by: Option<Kick>,
    /// Running time when the last wait ended.
    ran_at_wait_end: Option<u64>,
    last_wait_was_kicked: bool,

    pub(super) raw: Raw,
    pub(super) latencies: LatencySet,
    pub(super) episode: Episode,
    pub(super) inferred: Tally,
    pub(super) marked: Option<Box<Marked>>,
    /// The target of a marked kick whose operation is still to come.
    pub(super) announced: Option<u32>,
    /// It has marked a kick.
    pub(super) marks_kicks: bool,
    /// Ticks it ran in the phases before.
    ran_before: u64,
}

/// A runstate change that came too early.
#[derive(Clone, Copy, Debug)]
struct Early {
    cpu: u32,
    tsc: u64,
    /// The state it left, and the state the vCPU seemed to be in.
    old: Runstate,
    before: Runstate,
}

/// A wait that ended.
pub(super) struct Wait {
    pub(super) kick: Option<Kick>,
    pub(super) block_tsc: u64,
    pub(super) wake_tsc: u64,
    pub(super) tainted: bool,
}

impl Vcpu {
    pub(super) fn new(domain: u16, id: u16) -> Self {
        Self { domain, id, ..Self::default() }
    }

    /// Accounts the time up to `tsc` to the state that ends, and enters `new`.
    /// Returns the state that ended and since when it held, if that is known.
    #[inline]
    pub(super) fn change(
        &mut self,
        tsc: u64,
        old: Option<Runstate>,
        new: Runstate,
        gaps: &Gaps,
    ) -> Option<(Runstate, u64)> {
        let known = old.is_none() || self.state == old;
        // Its time never runs backwards, whatever the TSCs do: the sum of its intervals stays below
        // the trace's length.
        let tsc = tsc.max(self.since);
        let ticks = tsc - self.since;
        let gaps = gaps.up_to(tsc);
        let mut ended = None;
        if self.first.is_none() {
            self.first = Some(tsc);
        } else if known {
            ended = self.state.map(|state| (state, self.since));
            self.account(ticks, tsc, gaps);
        } else {
            self.times.unknown += ticks;
            self.tainted += ticks;
            self.raw.inconsistent += u64::from(self.state.is_some());
        }
        self.woken = new == Runstate::Runnable && old == Some(Runstate::Blocked);
        self.state = Some(new);
        self.since = tsc;
        self.gaps_at_since = gaps;
        ended
    }

    /// `gaps` are the ticks inside gaps up to `tsc`.
    fn account(&mut self, ticks: u64, tsc: u64, gaps: u64) {
        let Some(state) = self.state else {
            self.times.unknown += ticks;
            self.tainted += ticks;
            return;
        };
        match state {
            // A vCPU whose pCPU lost nothing ran, whatever other pCPUs lost.
            Runstate::Running => return self.times.running += ticks,
            Runstate::Runnable => {
                self.times.stolen += ticks;
                if std::mem::take(&mut self.woken) {
                    self.times.stolen_after_wake += ticks;
                } else {
                    if self.preempted.len() == RECENT {
                        self.preempted.pop_front();
                    }
                    self.preempted.push_back((self.since, tsc));
                }
            }
            Runstate::Blocked => self.times.blocked += ticks,
            Runstate::Offline => self.times.offline += ticks,
        }
        let doubtful = gaps.saturating_sub(self.gaps_at_since);
        self.tainted = self.tainted.saturating_add(doubtful.min(ticks));
    }

    /// The pCPU it ran on lost records from `tsc` on: what it does then is unknown.
    pub(super) fn lose(&mut self, tsc: u64, gaps: &Gaps) -> Option<(Runstate, u64)> {
        let ended = self.finish(tsc, gaps);
        self.state = None;
        self.poll = Poll::None;
        ended
    }

    /// Ends the account, at the end of the trace.
    pub(super) fn finish(&mut self, tsc: u64, gaps: &Gaps) -> Option<(Runstate, u64)> {
        let state = self.state?;
        self.change(tsc, Some(state), state, gaps)
    }

    /// Accounts the time up to `tsc`, the end of a phase, as [`finish`](Self::finish) does, for a
    /// vCPU that goes on.
    pub(super) fn end_phase(&mut self, tsc: u64, gaps: &Gaps) -> Option<(Runstate, u64)> {
        let woken = self.woken;
        let ended = self.finish(tsc, gaps);
        self.woken = woken;
        // Its sleep in a poll counts where it is spent.
        let blocked_to = match self.poll {
            Poll::Blocked => tsc,
            Poll::Woken if !self.aborted => self.wake_tsc,
            _ => self.left_tsc,
        };
        let blocked = blocked_to.saturating_sub(self.left_tsc);
        self.times.blocked_in_poll = self.times.blocked_in_poll.saturating_add(blocked);
        self.left_tsc = self.left_tsc.max(blocked_to);
        ended
    }

    /// Begins a phase at `tsc`: no figure yet, and all that is under way goes on.
    pub(super) fn begin_again(&mut self, tsc: u64) {
        self.ran_before = self.ran_before.saturating_add(self.times.running);
        self.times = Times::default();
        self.raw = Raw::default();
        self.latencies = LatencySet::default();
        self.inferred = Tally::default();
        (self.tainted, self.kicker_stolen_more) = (0, false);
        self.first = self.first.map(|_| tsc);
        if let Some(marked) = &mut self.marked {
            (marked.tally, marked.waits) = (Tally::default(), 0);
        }
    }

    pub(super) fn name(&self) -> VcpuId {
        VcpuId { domain: self.domain, vcpu: self.id }
    }

    /// A runstate change on `cpu`: notes what it proves about the pCPUs' TSCs. Returns the state the
    /// vCPU is really in afterwards.
    pub(super) fn compare_clocks(
        &mut self,
        cpu: u32,
        tsc: u64,
        (old, new): (Runstate, Runstate),
        skew: &mut Skew,
    ) -> Runstate {
        let Some(state) = self.state.filter(|&state| state != old) else {
            self.odd = None;
            return new;
        };
        match self.odd.take() {
            // The change that came too early follows this one.
            Some(early) if (old, new) == (early.before, early.old) => {
                skew.note(early.cpu, early.tsc, cpu, tsc);
                state
            }
            // A vCPU comes to a pCPU and leaves it in that pCPU's order: what leaves it without having
            // come was lost on the way, not early.
            _ => {
                let early = Early { cpu, tsc, old, before: state };
                self.odd = Some(early).filter(|_| old != Runstate::Running);
                new
            }
        }
    }

    /// Ticks that no gap makes doubtful, of how many. Wide, because domains and hosts add them up.
    pub(super) fn coverage(&self, last: u64) -> (u128, u128) {
        let observed = self.first.map_or(0, |first| last.saturating_sub(first));
        (observed.saturating_sub(self.tainted).into(), observed.into())
    }

    fn ran(&self, tsc: u64) -> u64 {
        let now = match self.state {
            Some(Runstate::Running) => tsc.saturating_sub(self.since),
            _ => 0,
        };
        self.ran_before.saturating_add(self.times.running).saturating_add(now)
    }

    /// Ticks of `from..to` in which this vCPU was preempted, and whether all of them are remembered.
    pub(super) fn preempted_between(&self, from: u64, to: u64) -> (u64, bool) {
        let overlap = |&(start, end): &(u64, u64)| end.min(to).saturating_sub(start.max(from));
        let ticks =
            self.preempted.iter().rev().take_while(|&&(_, end)| end > from).map(overlap).sum();
        let forgotten = self.preempted.len() == RECENT
            && self.preempted.front().is_some_and(|&(start, _)| start > from);
        (ticks, !forgotten)
    }

    pub(super) fn poll_begins(&mut self, tsc: u64, gaps: &Gaps) {
        self.back_in_guest();
        self.raw.polls += 1;
        self.poll = Poll::Entered;
        if let Some(marked) = &mut self.marked {
            marked.poll();
        }
        self.poll_tsc = tsc;
        self.gaps_at_poll = gaps.up_to(tsc);
        self.kicked_by = None;
        self.aborted = false;
        self.early_wake = None;
        if let Some(ran) = self.ran_at_wait_end.take() {
            let spun = self.ran(tsc).saturating_sub(ran);
            self.times.spinning = self.times.spinning.saturating_add(spun);
            self.raw.spurious_wakes += u64::from(!self.last_wait_was_kicked);
        }
    }

    /// The vCPU runs guest code again after a hypercall.
    #[inline]
    pub(super) fn back_in_guest(&mut self) {
        if self.poll == Poll::Entered {
            self.poll = Poll::None;
            self.raw.polls_immediate += 1;
        }
    }

    /// It blocks. Returns the kick that had woken it just before, if one had.
    pub(super) fn block(&mut self, tsc: u64) -> Option<Kick> {
        if self.poll != Poll::Entered {
            self.raw.idle_blocks += 1;
            return None;
        }
        self.poll = Poll::Blocking;
        self.block_tsc = tsc;
        let (woken, kick) = self.early_wake.take()?;
        self.wake(woken.max(tsc), kick);
        kick
    }

    /// Woken, by `kick` if it was one; returns whether that ended a poll.
    pub(super) fn wake(&mut self, tsc: u64, kick: Option<Kick>) -> bool {
        match self.poll {
            Poll::Blocking => self.aborted = true,
            Poll::Blocked => {}
            Poll::Entered => {
                self.early_wake = Some((tsc, kick));
                return false;
            }
            Poll::None | Poll::Woken => return false,
        }
        self.poll = Poll::Woken;
        self.wake_tsc = tsc;
        self.kicked_by = kick;
        true
    }

    /// On a pCPU (again). Returns the wait this ends, if it does.
    #[inline]
    pub(super) fn runs(&mut self, tsc: u64, gaps: &Gaps) -> Option<Wait> {
        match self.poll {
            Poll::Woken => {}
            Poll::Blocked => {
                // Its wake is not in the trace.
                self.poll = Poll::None;
                self.raw.polls_blocked += 1;
                self.raw.waits_tainted += 1;
                let (block_tsc, wake_tsc) = (self.block_tsc, tsc);
                return Some(Wait { kick: None, block_tsc, wake_tsc, tainted: true });
            }
            _ => return None,
        }
        self.poll = Poll::None;
        if self.aborted {
            self.raw.polls_aborted += 1;
        } else {
            self.raw.polls_blocked += 1;
            let blocked = self.wake_tsc.saturating_sub(self.left_tsc);
            self.times.blocked_in_poll = self.times.blocked_in_poll.saturating_add(blocked);
        }
        let tainted = gaps.up_to(tsc) > self.gaps_at_poll;
        let (block_tsc, wake_tsc) = (self.block_tsc, self.wake_tsc);
        let wait = Wait { kick: self.kicked_by, block_tsc, wake_tsc, tainted };
        if tainted {
            self.raw.waits_tainted += 1;
            self.ran_at_wait_end = None;
            return Some(wait);
        }
        self.raw.waits += 1;
        self.last_wait_was_kicked = wait.kick.is_some();
        self.ran_at_wait_end = Some(self.ran(tsc));
        if let Some(kick) = wait.kick {
            self.raw.waits_kicked += 1;
            self.latencies.kick_to_wake.record(self.wake_tsc.saturating_sub(kick.tsc));
            self.latencies.kick_to_run.record(tsc.saturating_sub(kick.tsc));
        }
        self.latencies.wake_to_run.record(tsc.saturating_sub(self.wake_tsc));
        self.latencies.wait.record(tsc.saturating_sub(self.block_tsc));
        Some(wait)
    }

    /// It left its pCPU to block.
    pub(super) fn descheduled(&mut self, tsc: u64) {
        if self.poll == Poll::Blocking {
            self.poll = Poll::Blocked;
            self.left_tsc = tsc;
        }
    }

    /// It did an event channel operation: what it waited for before is over.
    pub(super) fn evtchn_op(&mut self) {
        self.raw.evtchn_ops += 1;
        self.ran_at_wait_end = None;
        if self.episode.waits > 0 {
            self.inferred.record(&self.episode);
            self.episode = Episode::default();
        }
    }

    pub(super) fn taint_episodes(&mut self) {
        self.episode.tainted |= self.episode.waits > 0;
        if let Some(marked) = &mut self.marked {
            marked.taint();
        }
    }
}
