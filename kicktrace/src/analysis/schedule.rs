//! Runstate changes, wakes, blocks and gaps: what they mean for the vCPUs they name.
//!
//! Owns the rule that joins a wake to the operation that caused it, and what a gap makes doubtful.

use crate::analysis::acquisition::Slept;
use crate::analysis::observe::{Change, Interval, KickStory, Observe, WaitStory};
use crate::analysis::vcpu::{self, Kick, Poll, Vcpu};
use crate::analysis::{Analyser, Current, NOBODY, Op, short};
use crate::error::Error;
use crate::event::{self, Runstate};
use crate::reader::Record;

impl<O: Observe> Analyser<O> {
    pub(super) fn runstate(
        &mut self,
        record: &Record<'_>,
        old: Runstate,
        new: Runstate,
    ) -> Result<(), Error> {
        let &[key, ..] = record.words else { return Err(short(record, 1)) };
        let index = self.vcpu(key, record)?;
        let idle = key >> 16 == event::DOMID_IDLE;
        let here = if idle { Current::Idle } else { Current::Vcpu(index) };
        if new == Runstate::Running {
            self.close(record.cpu);
            // With core scheduling one pCPU writes its siblings' changes too.
            let foreign = idle && key & 0xffff != record.cpu;
            self.shared_cores += u64::from(foreign);
            self.pcpu(record.cpu).current = here;
        } else if old == Runstate::Running {
            // The hypercall goes on after the switch back, but its effects on others are done.
            let pcpu = self.pcpu(record.cpu);
            if pcpu.current == here {
                if matches!(pcpu.op, Op::Evtchn { .. }) {
                    self.close(record.cpu);
                }
                let pcpu = self.pcpu(record.cpu);
                (pcpu.op, pcpu.current) = (Op::None, Current::Unknown);
            }
        }
        if index == NOBODY {
            return Ok(());
        }
        let vcpu = &mut self.vcpus[index as usize];
        let now = vcpu.compare_clocks(record.cpu, record.tsc, (old, new), &mut self.skew);
        let ended = vcpu.change(record.tsc, Some(old), new, &self.gaps);
        vcpu.state = Some(now);
        tell_interval(&mut self.observer, vcpu, ended, record.tsc);
        self.observer.change(&Change {
            vcpu: vcpu.name(),
            cpu: record.cpu,
            tsc: record.tsc,
            from: old,
            follows: ended.is_some(),
            to: Some(now),
        });
        match new {
            Runstate::Running => {
                vcpu.cpu = record.cpu;
                self.runs(index, record.tsc);
            }
            Runstate::Blocked => vcpu.descheduled(record.tsc),
            Runstate::Runnable | Runstate::Offline => {}
        }
        Ok(())
    }

    pub(super) fn continue_running(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let &[key, ..] = record.words else { return Err(short(record, 1)) };
        let index = self.vcpu(key, record)?;
        let idle = key >> 16 == event::DOMID_IDLE;
        let here = if idle { Current::Idle } else { Current::Vcpu(index) };
        if self.pcpu(record.cpu).current != here {
            self.close(record.cpu);
            self.pcpu(record.cpu).current = here;
        }
        if index != NOBODY {
            let vcpu = &mut self.vcpus[index as usize];
            if vcpu.state.is_none() {
                vcpu.change(record.tsc, None, Runstate::Running, &self.gaps);
                vcpu.cpu = record.cpu;
                self.observer.change(&Change {
                    vcpu: vcpu.name(),
                    cpu: record.cpu,
                    tsc: record.tsc,
                    from: Runstate::Running,
                    follows: false,
                    to: Some(Runstate::Running),
                });
            }
            self.runs(index, record.tsc);
        }
        Ok(())
    }

    /// A vCPU is on its pCPU: its wait, if any, is over.
    #[inline]
    pub(super) fn runs(&mut self, index: u32, tsc: u64) {
        let vcpu = &mut self.vcpus[index as usize];
        if let Some(wait) = vcpu.runs(tsc, &self.gaps) {
            self.waited(index, tsc, &wait);
        }
    }

    pub(super) fn waited(&mut self, index: u32, tsc: u64, wait: &vcpu::Wait) {
        let vcpu = &mut self.vcpus[index as usize];
        let by = wait.kick.map(|kick| kick.by);
        vcpu.episode.wait(by, wait.tainted);
        let (blocked, kicked) = (wait.block_tsc, by);
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
        let kick = wait.kick.map(|Kick { by, cpu, tsc }| {
            let by = self.vcpus[by as usize].name();
            KickStory { by, cpu, tsc }
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
            self.locks.waited(lock, &story);
        }
        self.observer.wait(&story);
    }

    pub(super) fn wake(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let target = self.named(record)?;
        if target == NOBODY {
            return Ok(());
        }
        let waker = self.current(record.cpu);
        let (domain, id) = {
            let vcpu = &self.vcpus[target as usize];
            (vcpu.domain, vcpu.id)
        };
        let (mut by, mut kick) = (None, None);
        if let (Some(waker), Op::Evtchn { tsc, woke: false, target: announced }) =
            (waker, self.pcpu(record.cpu).op)
            && self.vcpus[waker as usize].domain == domain
            // A marked kick wakes its target or nobody.
            && announced.is_none_or(|announced| announced == u32::from(id))
        {
            self.pcpu(record.cpu).op = Op::Evtchn { tsc, woke: true, target: announced };
            by = Some(Kick { by: waker, cpu: record.cpu, tsc });
            // What a guest that marks its kicks does not mark is none.
            let marks = self.vcpus[waker as usize].marks_kicks;
            kick = by.filter(|_| announced.is_some() || !marks);
        }
        let ended_poll = self.vcpus[target as usize].wake(record.tsc, kick);
        if let Some(Kick { by, .. }) = by {
            let raw = &mut self.vcpus[by as usize].raw;
            raw.waking_kicks += u64::from(ended_poll && kick.is_some());
            raw.idle_kicks += u64::from(!ended_poll);
        }
        Ok(())
    }

    pub(super) fn block(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let index = self.named(record)?;
        if index != NOBODY {
            let kick = self.vcpus[index as usize].block(record.tsc);
            if let Some(Kick { by, .. }) = kick {
                // When it came, it seemed to wake nobody's poll.
                let raw = &mut self.vcpus[by as usize].raw;
                raw.idle_kicks = raw.idle_kicks.saturating_sub(1);
                raw.waking_kicks += 1;
            }
        }
        Ok(())
    }

    pub(super) fn yields(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let index = self.named(record)?;
        if index != NOBODY {
            let vcpu = &mut self.vcpus[index as usize];
            vcpu.raw.yields += 1;
            // A PVH guest's sched_op without its command looked like a poll.
            if vcpu.poll == Poll::Entered {
                vcpu.poll = Poll::None;
                vcpu.raw.polls = vcpu.raw.polls.saturating_sub(1);
                self.pcpu(record.cpu).op = Op::None;
            }
        }
        Ok(())
    }
    #[cold]
    pub(super) fn lost(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let Some(lost) = record.lost() else { return Ok(()) };
        let start = lost.first_tsc.min(record.tsc);
        self.gaps.add(start, record.tsc);
        self.calibration.forget(record.cpu);
        let cpu = record.cpu;
        self.pcpu(cpu).op = Op::None;
        for vcpu in &mut self.vcpus {
            let elsewhere = vcpu.state == Some(Runstate::Running) && vcpu.cpu != cpu;
            if !elsewhere {
                vcpu.taint_episodes();
            }
            if vcpu.state == Some(Runstate::Running) && vcpu.cpu == cpu {
                let ended = vcpu.lose(start, &self.gaps);
                tell_interval(&mut self.observer, vcpu, ended, start);
                self.observer.change(&Change {
                    vcpu: vcpu.name(),
                    cpu,
                    tsc: start,
                    from: Runstate::Running,
                    follows: true,
                    to: None,
                });
            }
        }
        let key = u32::from(lost.domain) << 16 | u32::from(lost.vcpu);
        let current = if u32::from(lost.domain) == event::DOMID_IDLE {
            Current::Idle
        } else {
            Current::Vcpu(self.vcpu(key, record)?)
        };
        self.pcpu(cpu).current = current;
        Ok(())
    }
}

pub(super) fn tell_interval(
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
