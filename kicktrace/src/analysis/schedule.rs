//! Runstate changes, wakes, blocks and gaps: what they mean for the vCPUs they name.
//!
//! Owns the rule that joins a wake to the operation that caused it, and what a gap makes doubtful.

use crate::analysis::acquisition::{Kick, Slept};
use crate::analysis::observe::{Change, KickStory, Observe, WaitStory};
use crate::analysis::vcpu::{self, Poll, Woke, report_interval};
use crate::analysis::{Analyser, Current, EMPTY, NOBODY, Op, Pcpu, Seen, Wake, short};
use crate::error::Error;
use crate::event::{self, Runstate};
use crate::reader::Lost;
use crate::summary::DomainKind;

/// An event channel operation is over after so many ticks (a few milliseconds), whatever the trace
/// shows: a kick takes microseconds, some more in an emulator. Only a marked kick of a vCPU that
/// slept before it began is not, however long its pCPU is held up: that kick wakes it.
const LONGEST_OPERATION: u64 = 1 << 22;

impl Pcpu {
    /// A WAKE is written here at `tsc`, and nobody knows who is on the pCPU. Whether it is sure
    /// that no operation is under way: none that the trace shows, and none from before it. So it is
    /// on a pCPU that is idle ever since the trace began.
    fn is_quiet(&mut self, tsc: u64) -> bool {
        let since = *self.unknown_since.get_or_insert(tsc);
        let begun = match self.op {
            Op::Evtchn { tsc: begun, .. } => begun.max(since),
            _ => since,
        };
        tsc.saturating_sub(begun) >= LONGEST_OPERATION
    }
}

impl<O: Observe> Analyser<O> {
    /// The vCPU `key` changes its state. Nearly all changes are of four kinds: each has its own
    /// copy of what follows, in which the states decide nothing any more.
    pub(super) fn runstate(&mut self, cpu: u32, tsc: u64, key: u32, change: (Runstate, Runstate)) {
        use Runstate::{Blocked, Runnable, Running};
        match change {
            (Runnable, Running) => self.change_of(cpu, tsc, key, (Runnable, Running)),
            (Running, Runnable) => self.change_of(cpu, tsc, key, (Running, Runnable)),
            (Running, Blocked) => self.change_of(cpu, tsc, key, (Running, Blocked)),
            (Blocked, Runnable) => self.change_of(cpu, tsc, key, (Blocked, Runnable)),
            _ => self.seldom_change(cpu, tsc, key, change),
        }
    }

    #[cold]
    fn seldom_change(&mut self, cpu: u32, tsc: u64, key: u32, change: (Runstate, Runstate)) {
        self.change_of(cpu, tsc, key, change);
    }

    #[inline(always)]
    fn change_of(&mut self, cpu: u32, tsc: u64, key: u32, (old, new): (Runstate, Runstate)) {
        let index = self.vcpu(key);
        let idle = key >> 16 == event::DOMID_IDLE;
        let here = if idle { Current::Idle } else { Current::Vcpu(index) };
        if new == Runstate::Running {
            self.comes(cpu, key, here);
        } else if old == Runstate::Running {
            self.leaves(cpu, key, here, index);
        }
        if index != NOBODY {
            self.changes(cpu, tsc, index, (old, new));
        }
    }

    /// The vCPU at `index` changes its state.
    #[inline(always)]
    fn changes(&mut self, cpu: u32, tsc: u64, index: u32, (old, new): (Runstate, Runstate)) {
        // Xen writes the WAKE just before the change it makes, on the same pCPU.
        let pcpu = self.pcpu(cpu);
        let scheduled = pcpu.scheduled;
        // Asked first, because there mostly is none.
        let wake = if pcpu.wake.is_some() { pcpu.take_wake() } else { None };
        let wake = wake.filter(|wake| wake.target == index);
        let vcpu = &mut self.vcpus[index as usize];
        let announced = std::mem::take(&mut vcpu.blocking) || !vcpu.announces;
        let sleeps = (old, new) == (Runstate::Running, Runstate::Blocked);
        self.unseen.blocks += u64::from(sleeps && !announced && vcpu.state == Some(old));
        let now = vcpu.compare_clocks(cpu, tsc, (old, new), &mut self.skew);
        if old == Runstate::Blocked && matches!(new, Runstate::Runnable | Runstate::Offline) {
            self.unseen.wakes += u64::from(wake.is_none() && scheduled);
            self.woken(index, wake, tsc);
        }
        let vcpu = &mut self.vcpus[index as usize];
        let ended = vcpu.change(tsc, Some(old), new, &self.gaps);
        vcpu.state = Some(now);
        report_interval(&mut self.observer, vcpu, ended, tsc);
        self.observer.change(&Change {
            vcpu: vcpu.name(),
            cpu,
            tsc,
            from: old,
            follows: ended.is_some(),
            to: Some(now),
        });
        match (old, new) {
            (_, Runstate::Running) => {
                vcpu.cpu = cpu;
                self.runs(index, tsc);
            }
            (_, Runstate::Blocked) => {
                let kick = vcpu.descheduled(tsc);
                self.woke_nobody(kick);
            }
            (Runstate::Running, _) => {
                if let Some(wake) = vcpu.stays_awake() {
                    self.polls_no_more(&wake);
                }
            }
            _ => {}
        }
    }

    /// A vCPU is set running by `cpu`.
    #[inline]
    fn comes(&mut self, cpu: u32, key: u32, here: Current) {
        let before = self.close(cpu);
        let idle = here == Current::Idle;
        // With core scheduling one pCPU writes its siblings' changes too: those of the idle vCPU of
        // another pCPU, and that of a vCPU beside one that stays.
        let foreign = match before {
            Current::Vcpu(other) if other != NOBODY && before != here => {
                self.comes_beside(cpu, key, here, other)
            }
            _ => idle && key & 0xffff != cpu,
        };
        if foreign {
            self.shared_cores += 1;
            return;
        }
        let pcpu = self.pcpu(cpu);
        (pcpu.current, pcpu.unattributed) = (here, 0);
        pcpu.seen = Seen::Came;
    }

    /// The vCPU `key` is set running by `cpu`, where the vCPU at `other` is current. Returns
    /// whether it runs on another pCPU.
    #[cold]
    fn comes_beside(&mut self, cpu: u32, key: u32, here: Current, other: u32) -> bool {
        let stays = self.runs_on(cpu, other);
        let foreign = if here == Current::Idle { key & 0xffff != cpu } else { stays };
        let stray = if foreign { here.of_interest() } else { stays.then_some(other) };
        if let Some(index) = stray {
            self.exposed.strays(index, &mut self.vcpus[index as usize]);
        }
        foreign
    }

    fn runs_on(&self, cpu: u32, index: u32) -> bool {
        let vcpu = &self.vcpus[index as usize];
        vcpu.is_running() && vcpu.cpu == cpu
    }

    /// The vCPU `key` is set running no more by `cpu`.
    #[inline]
    fn leaves(&mut self, cpu: u32, key: u32, here: Current, index: u32) {
        let pcpu = self.pcpu(cpu);
        let scheduled = std::mem::replace(&mut pcpu.scheduled, true);
        if pcpu.current == here {
            // The hypercall goes on after the switch back, but its effects on others are done.
            let op = std::mem::take(&mut pcpu.op);
            pcpu.current = Current::Unknown;
            if matches!(op, Op::Evtchn { .. }) {
                pcpu.seen = Seen::Entered;
                self.closed_by_leaving(here, op);
            }
        } else if pcpu.current == Current::Unknown && key >> 16 != event::DOMID_IDLE {
            pcpu.began_mid |= !scheduled;
            let missed = std::mem::take(&mut pcpu.unattributed) > 0;
            if missed && index != NOBODY {
                // What was seen of it before is in no count.
                self.vcpus[index as usize].missed = true;
            }
        }
    }

    /// A sender that leaves its pCPU inside an operation is seldom.
    #[cold]
    fn closed_by_leaving(&mut self, current: Current, op: Op) {
        self.closed(current, op);
    }

    pub(super) fn continue_running(&mut self, cpu: u32, tsc: u64, key: u32) {
        let index = self.vcpu(key);
        let idle = key >> 16 == event::DOMID_IDLE;
        let here = if idle { Current::Idle } else { Current::Vcpu(index) };
        let pcpu = self.pcpu(cpu);
        pcpu.scheduled = true;
        if pcpu.current != here {
            let missed = pcpu.current == Current::Unknown && pcpu.unattributed > 0;
            if let Some(other) = self.close(cpu).of_interest() {
                self.exposed.strays(other, &mut self.vcpus[other as usize]);
            }
            let pcpu = self.pcpu(cpu);
            (pcpu.current, pcpu.unattributed, pcpu.op) = (here, 0, Op::None);
            if missed && index != NOBODY {
                self.vcpus[index as usize].missed = true;
            }
        }
        if index != NOBODY {
            let vcpu = &mut self.vcpus[index as usize];
            if vcpu.state.is_none() {
                vcpu.change(tsc, None, Runstate::Running, &self.gaps);
                vcpu.cpu = cpu;
                self.observer.change(&Change {
                    vcpu: vcpu.name(),
                    cpu,
                    tsc,
                    from: Runstate::Running,
                    follows: false,
                    to: Some(Runstate::Running),
                });
            }
            vcpu.blocking = false;
            if let Some(wake) = vcpu.stays_awake() {
                self.polls_no_more(&wake);
            }
            self.runs(index, tsc);
        }
    }

    /// A vCPU is on its pCPU: its wait, if any, is over.
    #[inline]
    pub(super) fn runs(&mut self, index: u32, tsc: u64) {
        let vcpu = &mut self.vcpus[index as usize];
        if let Some(wait) = vcpu.runs(tsc, &self.gaps) {
            self.unseen.wakes += u64::from(wait.unwoken);
            self.waited(index, tsc, &wait);
        }
    }

    pub(super) fn waited(&mut self, index: u32, tsc: u64, wait: &vcpu::Wait) {
        let vcpu = &mut self.vcpus[index as usize];
        vcpu.episode.wait(wait.kick, wait.tainted);
        if self.exposed.is_watched() {
            self.exposed.opens(index, vcpu);
        }
        let (blocked, kicked) = (wait.block_tsc, wait.kick);
        let slept = Slept { blocked, running: tsc, kicked, tainted: wait.tainted };
        let lock = vcpu.marked.as_mut().and_then(|marked| marked.wait(&slept));
        if wait.tainted {
            return;
        }
        let mut kicker_stolen = 0;
        if let Some(Kick { by, tsc, .. }) = wait.kick {
            let (stolen, all) = self.vcpus[by as usize].preempted_between(wait.block_tsc, tsc);
            let vcpu = &mut self.vcpus[index as usize];
            vcpu.raw.kicker_preempted += u64::from(stolen > 0);
            vcpu.kicker_stolen_more |= !all;
            vcpu.times.kicker_stolen = vcpu.times.kicker_stolen.saturating_add(stolen);
            kicker_stolen = stolen;
        }
        if lock.is_none() && !O::LISTENS {
            return;
        }
        let vcpu = &self.vcpus[index as usize];
        let life = vcpu.life;
        let kick = wait.kick.map(|Kick { by, cpu, tsc, .. }| {
            let by = self.vcpus[by as usize].name();
            KickStory { by, cpu: cpu.into(), tsc }
        });
        let story = WaitStory {
            vcpu: vcpu.name(),
            lock,
            blocked: wait.block_tsc,
            woken: wait.wake_tsc,
            running: tsc,
            cpu: vcpu.cpu,
            kick,
            kicker_stolen,
        };
        if let Some(lock) = lock {
            self.locks.waited(life, lock, &story, wait.kick.is_none_or(|kick| kick.marked));
        }
        self.observer.wait(&story);
    }

    /// A WAKE: what it does to its target is seen by the change of its runstate that follows.
    pub(super) fn wake(&mut self, cpu: u32, tsc: u64, target: u32) {
        if target == NOBODY {
            return;
        }
        let (by, is_kick) = self.waker(cpu, tsc, target);
        let pcpu = self.pcpu(cpu);
        let seen = pcpu.current != Current::Unknown || pcpu.is_quiet(tsc);
        let wake = Wake { target, tsc, by, is_kick, seen };
        // Not copied blindly: there mostly is none.
        if pcpu.wake.is_some() || pcpu.outer_wake.is_some() {
            pcpu.outer_wake = pcpu.wake.filter(|outer| outer.target != target);
        }
        pcpu.wake = Some(wake);
        let (open, known) = self.vcpus[target as usize].wake_early(&wake);
        if open && by.is_some() {
            self.op_wakes(cpu);
        }
        if known {
            self.polls_no_more(&wake);
        }
    }

    /// The operation that a wake of `target`, written now on `cpu`, is the effect of, and whether
    /// that is a kick.
    fn waker(&mut self, cpu: u32, tsc: u64, target: u32) -> (Option<Kick>, bool) {
        let waker = self.current(cpu);
        let op = self.pcpu(cpu).op;
        let (Some(by), Op::Evtchn { tsc: begun, woke: false, interrupted, target: announced }) =
            (waker, op)
        else {
            return (None, false);
        };
        let (waker, target) = (&self.vcpus[by as usize], &self.vcpus[target as usize]);
        let in_time = !interrupted && tsc.saturating_sub(begun) < LONGEST_OPERATION
            || announced.is_some() && target.sleeps_since(begun);
        if !in_time || waker.domain != target.domain {
            return (None, false);
        }
        // A marked kick wakes its target or nobody.
        if announced.is_some_and(|announced| announced != u32::from(target.id)) {
            self.mistaken_marks += 1;
            return (None, false);
        }
        let marked = announced.is_some();
        // What a vCPU that marks its kicks does not mark is none.
        let counts = marked || !waker.marks_kicks;
        (Some(Kick { tsc: begun, by, cpu: cpu as u16, marked }), counts)
    }

    /// The operation under way on `cpu` has woken somebody.
    fn op_wakes(&mut self, cpu: u32) {
        if let Op::Evtchn { woke, .. } = &mut self.pcpu(cpu).op {
            *woke = true;
        }
    }

    /// A vCPU is blocked no more; `wake` is the WAKE that says why.
    fn woken(&mut self, index: u32, wake: Option<Wake>, tsc: u64) {
        let (kick, by, seen) = wake.map_or((None, None, false), |of| (of.kick(), of.by, of.seen));
        let woken = wake.map_or(tsc, |of| of.tsc);
        if let (true, Some(Wake { by: Some(by), .. })) = (by.is_some(), wake) {
            self.op_wakes(by.cpu.into());
        }
        match (self.vcpus[index as usize].woken((woken, tsc), kick, seen), by) {
            (Woke::Poll, _) => {
                if let Some(wake) = wake {
                    self.polls_no_more(&wake);
                }
            }
            (Woke::Idle, Some(by)) => self.vcpus[by.by as usize].raw.idle_kicks += 1,
            (Woke::Unknown, Some(by)) => {
                // What a marking guest does not mark is no kick.
                self.vcpus[by.by as usize].raw.woke_unknown += u64::from(kick.is_some());
            }
            (_, None) => {}
        }
    }

    /// `wake` woke its target out of a poll.
    #[inline]
    fn polls_no_more(&mut self, wake: &Wake) {
        let Some(Kick { by, marked, .. }) = wake.by else { return };
        let raw = &mut self.vcpus[by as usize].raw;
        if wake.is_kick {
            raw.waking_kicks += 1;
            raw.unmarked_waking += u64::from(!marked);
        } else {
            // Not a kick by its guest's word, as it marks its kicks and did not mark this one.
            raw.unmarked_late += 1;
            self.vcpus[wake.target as usize].raw.woken_unmarked += 1;
        }
    }

    /// `kick` seemed to wake its target, which did not sleep or sleeps on.
    pub(super) fn woke_nobody(&mut self, kick: Option<Kick>) {
        if let Some(Kick { by, marked, .. }) = kick {
            let raw = &mut self.vcpus[by as usize].raw;
            raw.kicks_without_wake += 1;
            raw.marked_without_wake += u64::from(marked);
        }
    }

    pub(super) fn block(&mut self, cpu: u32, tsc: u64, index: u32) {
        let pcpu = self.pcpu(cpu);
        let seen = pcpu.seen;
        if pcpu.current == Current::Unknown {
            // Whoever blocks is on the pCPU, and so is what was begun there.
            pcpu.current = Current::Vcpu(index);
            if let (Op::Poll { tsc: begun }, true) = (pcpu.op, index != NOBODY) {
                pcpu.unattributed = pcpu.unattributed.saturating_sub(1);
                self.poll_begins(index, begun);
            }
            let missed = std::mem::take(&mut self.pcpu(cpu).unattributed) > 0;
            if missed && index != NOBODY {
                self.vcpus[index as usize].missed = true;
            }
        }
        if index != NOBODY {
            // Where the trace shows no call of it at all, nobody knows in which one it blocks.
            let vcpu = &mut self.vcpus[index as usize];
            let calls = vcpu.kind != DomainKind::Unknown;
            self.unseen.entries += u64::from(calls && seen == Seen::Came);
            let off = vcpu.state.is_some_and(|state| state != Runstate::Running);
            self.unseen.changes += u64::from(off || vcpu.blocking);
            vcpu.block(tsc, calls && seen == Seen::Entered);
        }
    }

    pub(super) fn yields(&mut self, cpu: u32, index: u32) {
        if index != NOBODY {
            let vcpu = &mut self.vcpus[index as usize];
            vcpu.raw.yields += 1;
            // A PVH guest's sched_op without its command looked like a poll.
            if vcpu.poll == Poll::Entered {
                vcpu.poll = Poll::None;
                vcpu.raw.polls = vcpu.raw.polls.saturating_sub(1);
                self.pcpu(cpu).op = Op::None;
            }
        }
    }

    /// A domain begins or ends.
    #[cold]
    pub(super) fn lives(
        &mut self,
        tsc: u64,
        event: u32,
        words: &[u32],
        offset: u64,
    ) -> Result<(), Error> {
        let &[domain, ..] = words else { return Err(short(event, words, offset, 1)) };
        let domain = domain as u16;
        // Xen writes both records of each class, one after the other.
        let begins = matches!(event, event::DOM_ADD | event::DOMAIN_CREATE);
        let again = event == event::DOMAIN_CREATE && self.began.contains(&domain);
        if !again {
            self.end_domain(domain, tsc);
            self.observer.domain_changes(domain, tsc);
        }
        if begins {
            self.began.insert(domain);
        } else {
            self.began.remove(&domain);
        }
        Ok(())
    }

    /// The vCPUs of `domain` are no more; a domain that gets its number later has others.
    fn end_domain(&mut self, domain: u16, tsc: u64) {
        let Some(mut ended) = self.living.remove(&domain) else { return };
        for &index in &ended {
            let key = u32::from(domain) << 16 | u32::from(self.vcpus[index as usize].id);
            self.index.remove(&key);
        }
        *self.lives.entry(domain).or_default() += 1;
        *self.cache = EMPTY;
        ended.sort_unstable();
        for &index in &ended {
            let vcpu = &mut self.vcpus[index as usize];
            let interval = vcpu.end(tsc, &self.gaps);
            report_interval(&mut self.observer, vcpu, interval, tsc);
        }
        for pcpu in &mut self.pcpus {
            let is_over = |index: u32| ended.binary_search(&index).is_ok();
            if matches!(pcpu.current, Current::Vcpu(index) if is_over(index)) {
                (pcpu.current, pcpu.op) = (Current::Unknown, Op::None);
            }
            // That of another domain's vCPU still makes its change.
            let lasts = |wake: &Wake| !is_over(wake.target);
            pcpu.outer_wake = pcpu.outer_wake.filter(lasts);
            pcpu.wake = pcpu.wake.filter(lasts).or_else(|| pcpu.outer_wake.take());
        }
    }

    /// Nothing was recorded for long: what was known is so no more.
    #[cold]
    pub(super) fn fall_silent(&mut self, from: u64, to: u64) {
        for vcpu in self.vcpus.iter_mut().filter(|vcpu| !vcpu.is_over()) {
            let ended = vcpu.silence(from, to, &self.gaps);
            report_interval(&mut self.observer, vcpu, ended, from);
        }
        self.observer.silence(from, to);
        for cpu in 0..self.pcpus.len() {
            let pcpu = &mut self.pcpus[cpu];
            *pcpu =
                Pcpu { began_mid: pcpu.began_mid, scheduled: pcpu.scheduled, ..Pcpu::default() };
            self.calibration.forget(cpu as u32);
        }
    }

    #[cold]
    pub(super) fn lost(&mut self, cpu: u32, tsc: u64, lost: Lost) {
        let start = lost.first_tsc.min(tsc);
        self.gaps.add(start, tsc);
        self.calibration.forget(cpu);
        let pcpu = self.pcpu(cpu);
        (pcpu.op, pcpu.wake, pcpu.outer_wake) = (Op::None, None, None);
        (pcpu.seen, pcpu.scheduled) = (Seen::Nothing, true);
        let current = self.current(cpu);
        for index in self.exposed.taint(cpu, current, &mut self.vcpus) {
            let vcpu = &mut self.vcpus[index as usize];
            let ended = vcpu.lose(start, &self.gaps);
            report_interval(&mut self.observer, vcpu, ended, start);
            self.observer.change(&Change {
                vcpu: vcpu.name(),
                cpu,
                tsc: start,
                from: Runstate::Running,
                follows: true,
                to: None,
            });
        }
        let key = u32::from(lost.domain) << 16 | u32::from(lost.vcpu);
        let current = if u32::from(lost.domain) == event::DOMID_IDLE {
            Current::Idle
        } else {
            Current::Vcpu(self.vcpu(key))
        };
        self.pcpu(cpu).current = current;
    }
}
