//! One vCPU: its runstate, its poll, its counts.
//!
//! Owns what one vCPU's own records mean for it. Which vCPU a record concerns, and who kicked whom,
//! is decided in the parent module.

use std::collections::VecDeque;

use crate::analysis::Wake;
use crate::analysis::acquisition::{Episode, Kick, Marked, Tally};
use crate::analysis::gaps::Gaps;
use crate::analysis::latency::Latency;
use crate::analysis::observe::{Interval, Observe, VcpuId};
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

/// What a wake of a vCPU that was off its pCPU ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woke {
    /// A poll that slept.
    Poll,
    /// Another sleep: idle.
    Idle,
    /// A sleep that began before the trace tells of it, or none that it tells of.
    Unknown,
}

/// Raw counts; see [`crate::summary::Counts`] for their meaning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Raw {
    pub(super) evtchn_ops: u64,
    pub(super) waking_kicks: u64,
    pub(super) idle_kicks: u64,
    /// Kicks that woke a vCPU of which nobody knows whether it polled.
    pub(super) woke_unknown: u64,
    pub(super) kicks_without_wake: u64,
    pub(super) marked_kicks: u64,
    pub(super) marked_without_wake: u64,
    /// Of `waking_kicks`: not marked, by a vCPU that had not marked any kick yet.
    pub(super) unmarked_waking: u64,
    pub(super) polls: u64,
    pub(super) polls_blocked: u64,
    pub(super) polls_aborted: u64,
    pub(super) polls_immediate: u64,
    pub(super) polls_unresolved: u64,
    pub(super) idle_blocks: u64,
    pub(super) blocks_unknown: u64,
    pub(super) yields: u64,
    pub(super) waits: u64,
    pub(super) waits_kicked: u64,
    /// Of `waits_kicked`: by a kick that is not marked.
    pub(super) kicked_unmarked: u64,
    /// Operations that woke a poller and are not marked, by a vCPU that had marked a kick before.
    pub(super) unmarked_late: u64,
    /// Polls that such an operation ended.
    pub(super) woken_unmarked: u64,
    pub(super) waits_tainted: u64,
    pub(super) spurious_wakes: u64,
    pub(super) kicker_preempted: u64,
    pub(super) inconsistent: u64,
    /// Of `inconsistent`: no change that came early explains it, so one is missing.
    pub(super) skipped: u64,
}

/// One in so many: where a guest that marks its kicks wakes pollers without a mark more often than
/// other interrupts explain, it does not mark all of its kicks.
const SELDOM: u64 = 10;

/// So many of them may be interrupts, however few marks there are.
const SOME: u64 = 3;

impl Raw {
    /// Whether a vCPU that marks its kicks seems to leave some unmarked.
    pub(super) const fn marks_in_part(&self) -> bool {
        self.unmarked_late > SOME && self.unmarked_late * SELDOM > self.marked_kicks
    }

    /// Whether some of what ended its waits seem to be kicks that are not marked.
    pub(super) const fn woken_in_part(&self) -> bool {
        self.woken_unmarked > SOME && self.woken_unmarked * SELDOM > self.waits_kicked
    }
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
    /// How many domains had its domain's number before.
    pub(super) life: u32,
    /// When its domain ended.
    ended: Option<u64>,
    pub(super) kind: DomainKind,

    pub(super) state: Option<Runstate>,
    /// The pCPU of the last change to running.
    pub(super) cpu: u32,
    odd: Option<Early>,
    since: u64,
    gaps_at_since: u64,
    first: Option<u64>,
    /// Ticks in silences since.
    silent: u64,
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
    /// When its runstate changed for the wake: Xen may be held up in between.
    unblocked_tsc: u64,
    aborted: bool,
    /// A wake of the vCPU on its pCPU, between its poll and its leaving: whether it woke it is seen
    /// by what follows. Xen writes WAKE for a vCPU that stays blocked too (a domain is unpaused).
    early_wake: Option<Wake>,
    kicked_by: Option<Kick>,
    /// What woke it is not in the trace.
    wake_unseen: bool,
    /// It has written BLOCK and is still on its pCPU.
    pub(super) blocking: bool,
    /// It has written BLOCK before.
    pub(super) announces: bool,
    /// It blocked, and the trace begins after it entered Xen for that: in a poll or otherwise.
    unknown_block: bool,
    /// It entered Xen before the trace says that it was on its pCPU.
    pub(super) missed: bool,
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
    /// Whether [`Exposed`](super::exposed::Exposed) has noted it, for either reason.
    pub(super) exposed: bool,
    pub(super) stray: bool,
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
    /// It never left its pCPU, and no record wakes it: Xen always writes one.
    pub(super) unwoken: bool,
}

impl Vcpu {
    pub(super) fn new(domain: u16, id: u16, life: u32) -> Self {
        Self { domain, id, life, ..Self::default() }
    }

    /// Accounts the time up to `tsc` to the state that ends, and enters `new`.
    /// Returns the state that ended and since when it held, if that is known.
    #[inline(always)]
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
    #[inline]
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
        let ended = self.close_account(tsc, gaps);
        self.raw.waits_tainted += u64::from(self.poll != Poll::None);
        self.forget();
        ended
    }

    /// Nothing is known of it any more: neither its state nor what it does.
    fn forget(&mut self) {
        self.leave_poll();
        self.state = None;
        self.odd = None;
        (self.early_wake, self.unknown_block) = (None, false);
        self.blocking = false;
        self.ran_at_wait_end = None;
    }

    /// Nothing was recorded from `from` to `to`: that is no time of the trace.
    pub(super) fn silence(&mut self, from: u64, to: u64, gaps: &Gaps) -> Option<(Runstate, u64)> {
        let ended = self.close_account(from, gaps);
        self.forget();
        self.taint_episodes();
        if self.first.is_some() {
            self.silent = self.silent.saturating_add(to.saturating_sub(from.max(self.since)));
            self.since = self.since.max(to);
        }
        ended
    }

    /// Its domain ends.
    pub(super) fn end(&mut self, tsc: u64, gaps: &Gaps) -> Option<(Runstate, u64)> {
        let ended = self.end_life(tsc, gaps);
        self.ended = Some(tsc.max(self.since));
        ended
    }

    /// Ends the account, at the end of the trace or of its domain.
    pub(super) fn end_life(&mut self, tsc: u64, gaps: &Gaps) -> Option<(Runstate, u64)> {
        let ended = self.end_phase(tsc, gaps);
        self.leave_poll();
        self.state = None;
        ended
    }

    /// Whether its domain is there no more.
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    pub(super) fn is_running(&self) -> bool {
        !self.is_over() && self.state == Some(Runstate::Running)
    }

    fn close_account(&mut self, tsc: u64, gaps: &Gaps) -> Option<(Runstate, u64)> {
        let state = self.state?;
        self.change(tsc, Some(state), state, gaps)
    }

    /// Accounts the time up to `tsc`, the end of a phase, for a vCPU that goes on.
    pub(super) fn end_phase(&mut self, tsc: u64, gaps: &Gaps) -> Option<(Runstate, u64)> {
        let woken = self.woken;
        let ended = self.close_account(tsc, gaps);
        self.woken = woken;
        // However many phases it spans, it is one preemption to remember.
        let behind = self.preempted.pop_back();
        match (self.preempted.back_mut(), behind) {
            (Some((_, end)), Some((start, to))) if *end == start => *end = to,
            (_, behind) => self.preempted.extend(behind),
        }
        // Its sleep in a poll counts where it is spent.
        let blocked_to = match self.poll {
            Poll::Blocked => tsc,
            Poll::Woken if !self.aborted => self.unblocked_tsc,
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
        (self.tainted, self.silent, self.kicker_stolen_more) = (0, 0, false);
        self.first = self.first.map(|_| tsc);
        if let Some(marked) = &mut self.marked {
            (marked.tally, marked.waits) = (Tally::default(), 0);
        }
    }

    /// A poll under way, if there is one, will not be seen to end.
    fn leave_poll(&mut self) {
        self.raw.polls_unresolved += u64::from(self.poll != Poll::None);
        self.poll = Poll::None;
    }

    pub(super) fn name(&self) -> VcpuId {
        VcpuId { domain: self.domain, vcpu: self.id }
    }

    /// A runstate change on `cpu`: notes what it proves about the pCPUs' TSCs. Returns the state
    /// the vCPU is really in afterwards.
    #[inline]
    pub(super) fn compare_clocks(
        &mut self,
        cpu: u32,
        tsc: u64,
        change: (Runstate, Runstate),
        skew: &mut Skew,
    ) -> Runstate {
        match self.state {
            Some(state) if state != change.0 || self.odd.is_some() => {
                self.contradicted(cpu, tsc, state, change, skew)
            }
            _ => change.1,
        }
    }

    /// A change on `cpu` leaves another state than `state`, in which it seems to be, or the one
    /// before did.
    #[cold]
    fn contradicted(
        &mut self,
        cpu: u32,
        tsc: u64,
        state: Runstate,
        (old, new): (Runstate, Runstate),
        skew: &mut Skew,
    ) -> Runstate {
        match self.odd.take() {
            // The change that came too early follows this one. What leaves a pCPU does so on it.
            Some(early)
                if (old, new) == (early.before, early.old)
                    && (old != Runstate::Running || cpu != early.cpu) =>
            {
                skew.note(early.cpu, early.tsc, cpu, tsc);
                state
            }
            Some(_) if state == old => {
                self.raw.skipped += 1;
                new
            }
            // A vCPU comes to a pCPU and leaves it in that pCPU's order: what leaves it without
            // having come was lost on the way, not early.
            unexplained => {
                let early = Early { cpu, tsc, old, before: state };
                self.odd = Some(early).filter(|_| old != Runstate::Running);
                self.raw.skipped += u64::from(unexplained.is_some());
                self.raw.skipped += u64::from(self.odd.is_none());
                new
            }
        }
    }

    /// Ticks that no gap makes doubtful, of how many. Wide, because domains and hosts add them up.
    pub(super) fn coverage(&self, last: u64) -> (u128, u128) {
        let observed = self.observed(last);
        (observed.saturating_sub(self.tainted).into(), observed.into())
    }

    /// Ticks from its first record to the end of its domain, or of the trace at `last`.
    pub(super) fn observed(&self, last: u64) -> u64 {
        let end = self.ended.unwrap_or(last);
        self.first.map_or(0, |first| end.saturating_sub(first).saturating_sub(self.silent))
    }

    /// When the trace tells of it first, and when its domain ended.
    pub(super) fn life_span(&self) -> (Option<u64>, Option<u64>) {
        (self.first, self.ended)
    }

    /// Whether some of what it did may not be in the trace.
    pub(super) fn is_partial(&self) -> bool {
        // The first block may be in a call from before the trace.
        self.missed || self.is_tainted() || self.raw.blocks_unknown > 1
    }

    /// Whether a part of its time is doubtful.
    pub(super) fn is_tainted(&self) -> bool {
        self.tainted > 0
    }

    fn ran(&self, tsc: u64) -> u64 {
        let now = match self.state {
            Some(Runstate::Running) => tsc.saturating_sub(self.since),
            _ => 0,
        };
        self.ran_before.saturating_add(self.times.running).saturating_add(now)
    }

    /// Ticks of `from..to` in which this vCPU was preempted, and whether all of them are
    /// remembered.
    pub(super) fn preempted_between(&self, from: u64, to: u64) -> (u64, bool) {
        let overlap = |&(start, end): &(u64, u64)| end.min(to).saturating_sub(start.max(from));
        let ticks =
            self.preempted.iter().rev().take_while(|&&(_, end)| end > from).map(overlap).sum();
        let forgotten = self.preempted.len() == RECENT
            && self.preempted.front().is_some_and(|&(start, _)| start > from);
        (ticks, !forgotten)
    }

    pub(super) fn poll_begins(&mut self, tsc: u64, gaps: &Gaps) {
        let in_gap = self.poll != Poll::None && gaps.up_to(tsc) > self.gaps_at_poll;
        self.raw.waits_tainted += u64::from(in_gap);
        self.leave_poll();
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
        self.wake_unseen = false;
        if let Some(ran) = self.ran_at_wait_end.take() {
            let spun = self.ran(tsc).saturating_sub(ran);
            self.times.spinning = self.times.spinning.saturating_add(spun);
            self.raw.spurious_wakes += u64::from(!self.last_wait_was_kicked);
        }
    }

    /// The vCPU runs guest code again after a hypercall. Returns a kick that came while it decided
    /// not to sleep: it woke nobody.
    #[inline]
    pub(super) fn back_in_guest(&mut self) -> Option<Kick> {
        if self.poll != Poll::Entered {
            return None;
        }
        self.poll = Poll::None;
        self.raw.polls_immediate += 1;
        self.woken_in_vain()
    }

    /// The kick of an early wake, if there was one.
    #[inline]
    fn woken_in_vain(&mut self) -> Option<Kick> {
        // Asked first, because there mostly is none.
        if self.early_wake.is_some() { self.take_early_kick() } else { None }
    }

    #[cold]
    fn take_early_kick(&mut self) -> Option<Kick> {
        self.early_wake.take()?.kick()
    }

    /// It blocks; `seen` if the trace shows how it entered Xen.
    pub(super) fn block(&mut self, tsc: u64, seen: bool) {
        (self.blocking, self.announces) = (true, true);
        if self.poll == Poll::Entered {
            self.poll = Poll::Blocking;
            // Until it leaves its pCPU, which may be told late or never.
            (self.block_tsc, self.left_tsc) = (tsc, tsc);
        } else if seen {
            self.raw.idle_blocks += 1;
        } else {
            self.raw.blocks_unknown += 1;
            self.unknown_block = true;
        }
    }

    /// A WAKE that names it while it is on its pCPU, or has left it without blocking. Returns
    /// whether it may have kept it from sleeping in a poll, and whether that is known.
    #[inline]
    pub(super) fn wake_early(&mut self, wake: &Wake) -> (bool, bool) {
        match self.poll {
            Poll::Entered | Poll::Blocking => self.wake_polling(wake),
            _ => (false, false),
        }
    }

    #[cold]
    fn wake_polling(&mut self, wake: &Wake) -> (bool, bool) {
        match (self.poll, self.state) {
            (Poll::Blocking, Some(Runstate::Runnable | Runstate::Offline)) => {
                self.abort(wake);
                (true, true)
            }
            // One that is an operation's is sure to be meant.
            (Poll::Entered | Poll::Blocking, _)
                if self
                    .early_wake
                    .is_none_or(|early| early.kick().is_none() && wake.kick().is_some()) =>
            {
                self.early_wake = Some(*wake);
                (true, false)
            }
            _ => (false, false),
        }
    }

    /// It goes on without having left its pCPU, or leaves it ready to run: an early wake woke it.
    /// Returns that.
    #[inline]
    pub(super) fn stays_awake(&mut self) -> Option<Wake> {
        if self.poll != Poll::Blocking {
            return None;
        }
        self.take_early_wake()
    }

    #[cold]
    fn take_early_wake(&mut self) -> Option<Wake> {
        let wake = self.early_wake.take()?;
        self.abort(&wake);
        Some(wake)
    }

    fn abort(&mut self, wake: &Wake) {
        self.aborted = true;
        self.poll = Poll::Woken;
        self.wake_tsc = wake.tsc.max(self.block_tsc);
        self.kicked_by = wake.kick();
        self.wake_unseen = !wake.seen;
    }

    /// It is blocked no more: when it was woken and when its runstate changed; `kick` if it was
    /// one, and whether the WAKE was `seen`.
    pub(super) fn woken(
        &mut self,
        (tsc, changed): (u64, u64),
        kick: Option<Kick>,
        seen: bool,
    ) -> Woke {
        match self.poll {
            Poll::Blocking | Poll::Blocked => {
                self.poll = Poll::Woken;
                (self.wake_tsc, self.unblocked_tsc) = (tsc, changed);
                self.kicked_by = kick;
                self.wake_unseen = !seen;
                self.early_wake = None;
                Woke::Poll
            }
            Poll::None if std::mem::take(&mut self.unknown_block) => Woke::Unknown,
            Poll::None if self.state == Some(Runstate::Blocked) => Woke::Idle,
            _ => Woke::Unknown,
        }
    }

    /// On a pCPU (again). Returns the wait this ends, if it does.
    // Always, because a wait that is handed on through memory costs more than all that is done
    // here.
    #[inline(always)]
    pub(super) fn runs(&mut self, tsc: u64, gaps: &Gaps) -> Option<Wait> {
        match self.poll {
            Poll::Woken => {}
            Poll::Blocked => {
                // Its wake is not in the trace.
                self.poll = Poll::None;
                self.raw.polls_blocked += 1;
                self.raw.waits_tainted += 1;
                return Some(self.ended_unseen(tsc, false));
            }
            Poll::Blocking => {
                // Nor is this one, which came before it had left its pCPU.
                self.poll = Poll::None;
                self.raw.polls_aborted += 1;
                self.raw.waits_tainted += 1;
                return Some(self.ended_unseen(tsc, true));
            }
            _ => return None,
        }
        self.poll = Poll::None;
        if self.aborted {
            self.raw.polls_aborted += 1;
        } else {
            self.raw.polls_blocked += 1;
            let blocked = self.unblocked_tsc.saturating_sub(self.left_tsc);
            self.times.blocked_in_poll = self.times.blocked_in_poll.saturating_add(blocked);
        }
        // A wait that ends before it begins is a length of nothing.
        let backwards = tsc < self.block_tsc;
        let tainted = self.wake_unseen || backwards || gaps.up_to(tsc) > self.gaps_at_poll;
        let (block_tsc, wake_tsc) = (self.block_tsc, self.wake_tsc);
        let wait = Wait { kick: self.kicked_by, block_tsc, wake_tsc, tainted, unwoken: false };
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
            self.raw.kicked_unmarked += u64::from(!kick.marked);
            self.latencies.kick_to_wake.record(self.wake_tsc.saturating_sub(kick.tsc));
            self.latencies.kick_to_run.record(tsc.saturating_sub(kick.tsc));
        }
        self.latencies.wake_to_run.record(tsc.saturating_sub(self.wake_tsc));
        self.latencies.wait.record(tsc.saturating_sub(self.block_tsc));
        Some(wait)
    }

    /// Whether it has slept in a poll, off its pCPU, since before `tsc`.
    pub(super) fn sleeps_since(&self, tsc: u64) -> bool {
        self.poll == Poll::Blocked && self.block_tsc <= tsc
    }

    /// A wait that ended, and nobody knows by what.
    fn ended_unseen(&self, tsc: u64, unwoken: bool) -> Wait {
        Wait { kick: None, block_tsc: self.block_tsc, wake_tsc: tsc, tainted: true, unwoken }
    }

    /// It left its pCPU to block. Returns the kick of a wake that came before, which woke nobody:
    /// it sleeps.
    pub(super) fn descheduled(&mut self, tsc: u64) -> Option<Kick> {
        if self.poll != Poll::Blocking {
            return None;
        }
        self.poll = Poll::Blocked;
        self.left_tsc = tsc;
        self.woken_in_vain()
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

/// Tells the observer of a state of `vcpu` that ended at `to`.
pub(super) fn report_interval(
    observer: &mut impl Observe,
    vcpu: &Vcpu,
    ended: Option<(Runstate, u64)>,
    to: u64,
) {
    if let Some((state, from)) = ended {
        // Skewed TSCs may put the end before the begin.
        let to = to.max(from);
        observer.interval(&Interval { vcpu: vcpu.name(), state, cpu: vcpu.cpu, from, to });
    }
}
