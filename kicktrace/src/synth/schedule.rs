//! The simulated scheduler: wakes, switches, slices.
//!
//! Owns which vCPU is on which pCPU. Knows nothing of locks.

use std::io::Write;

use super::emit::STEP;
use super::sim::{Sim, What};
use crate::event::{self, Runstate};

/// ns from a wake to the switch to an idle pCPU's new vCPU.
const WAKE_LATENCY: u64 = 2_000;

impl<W: Write> Sim<'_, W> {
    /// `cpu` wakes a sleeping vCPU.
    pub(super) fn wake(&mut self, at: u64, index: usize, cpu: u32, by_kick: bool) -> u64 {
        let vcpu = &mut self.vcpus[index];
        vcpu.woken = Some(by_kick);
        let (who, blocked) = (vcpu.who, vcpu.state == Runstate::Blocked);
        let home = vcpu.cpu;
        let mut pen = self.pen(cpu, at);
        pen.sched(event::WAKE, who);
        let changed = pen.ns;
        if blocked {
            pen.runstate(who, Runstate::Blocked, Runstate::Runnable);
        }
        let ns = pen.ns;
        self.vcpus[index].ready = ns;
        if blocked {
            self.vcpus[index].enter(changed, Runstate::Runnable);
            // An idle pCPU takes it, its own if that is one.
            let idle = |cpu: &u32| {
                let pcpu = &self.pcpus[*cpu as usize];
                pcpu.current.is_none() && pcpu.queue.is_empty()
            };
            let shift = at as u32 % self.plan.pcpus;
            let others = (0..self.plan.pcpus).map(|n| (n + shift) % self.plan.pcpus);
            let place = std::iter::once(home).chain(others).find(idle).unwrap_or(home);
            self.pcpus[place as usize].queue.push_back(index);
            self.at(ns + WAKE_LATENCY, What::SwitchIn(place));
        }
        ns
    }

    pub(super) fn timer(&mut self, at: u64, index: usize) {
        let vcpu = &self.vcpus[index];
        let still = vcpu.asleep && vcpu.woken.is_none();
        let cpu = vcpu.cpu;
        let pcpu = &self.pcpus[cpu as usize];
        if !still || vcpu.state != Runstate::Blocked {
            return;
        }
        if pcpu.busy > at {
            let again = pcpu.busy;
            self.at(again, What::Timer(index));
            return;
        }
        let ns = self.wake(at, index, cpu, false);
        self.pcpus[cpu as usize].busy = ns;
    }

    pub(super) fn switch_in(&mut self, at: u64, cpu: u32) {
        let pcpu = &self.pcpus[cpu as usize];
        if pcpu.current.is_some() || pcpu.queue.iter().all(|&of| self.vcpus[of].ready > at) {
            return;
        }
        if pcpu.busy > at {
            let again = pcpu.busy;
            self.at(again, What::SwitchIn(cpu));
            return;
        }
        self.switch(at, cpu, Runstate::Runnable);
    }

    pub(super) fn slice_end(&mut self, at: u64, cpu: u32, slice: u32) {
        let pcpu = &self.pcpus[cpu as usize];
        let Some(current) = pcpu.current.filter(|_| pcpu.slice == slice) else { return };
        if pcpu.busy > at || self.vcpus[current].asleep {
            let again = pcpu.busy.max(at + 1_000);
            self.at(again, What::SliceEnd(cpu, slice));
        } else if pcpu.queue.is_empty() {
            let again = at + self.plan.slice_ns;
            self.at(again, What::SliceEnd(cpu, slice));
        } else {
            let vcpu = &mut self.vcpus[current];
            vcpu.turn += 1;
            vcpu.left = vcpu.due.saturating_sub(at);
            self.pcpus[cpu as usize].queue.push_back(current);
            self.switch(at, cpu, Runstate::Runnable);
        }
    }

    /// `cpu` goes from its current vCPU, which enters `to`, to the next of its queue or to idle.
    pub(super) fn switch(&mut self, at: u64, cpu: u32, to: Runstate) {
        let idle = (event::DOMID_IDLE as u16, cpu as u16);
        let pcpu = &mut self.pcpus[cpu as usize];
        let (prev, came) = (pcpu.current, pcpu.came);
        let next = pcpu.queue.iter().position(|&of| self.vcpus[of].ready <= at);
        let next = next.and_then(|place| pcpu.queue.remove(place));
        let name = |of: Option<usize>| of.map_or(idle, |of| self.vcpus[of].who);
        let (prev_who, next_who) = (name(prev), name(next));
        let mut pen = self.pen(cpu, at);
        let left = pen.switch(prev_who, came, to, next_who);
        let ns = pen.ns;
        let pcpu = &mut self.pcpus[cpu as usize];
        (pcpu.current, pcpu.came, pcpu.busy) = (next, at, ns);
        pcpu.slice += 1;
        let slice = pcpu.slice;
        if let Some(prev) = prev {
            self.vcpus[prev].enter(left, to);
        }
        if let Some(next) = next {
            let vcpu = &mut self.vcpus[next];
            vcpu.enter(left + STEP, Runstate::Running);
            vcpu.cpu = cpu;
            if vcpu.asleep {
                vcpu.truth.polls_blocked += 1;
            }
            let (step, left) = (vcpu.step, vcpu.left);
            self.goes_on(next, ns, step, left);
            self.at(ns + self.plan.slice_ns, What::SliceEnd(cpu, slice));
        }
    }
}
