//! Entries into Xen: what the current vCPU of a pCPU does there.
//!
//! Owns which hypercalls are operations and polls, when they are over, and what a guest's marks say
//! about them.

use crate::analysis::acquisition::Acquired;
use crate::analysis::observe::{AcquisitionStory, Observe};
use crate::analysis::{Analyser, Current, Op, Seen};
use crate::event;
use crate::markers;
use crate::summary::{Certainty, DomainKind};

impl<O: Observe> Analyser<O> {
    /// The current vCPU enters Xen or leaves it: what it did there before is over. Returns who it
    /// is.
    #[inline]
    pub(super) fn close(&mut self, cpu: u32) -> Current {
        let pcpu = self.pcpu(cpu);
        pcpu.seen = Seen::Entered;
        let current = pcpu.current;
        if !matches!(pcpu.op, Op::None) {
            let op = std::mem::take(&mut pcpu.op);
            self.closed(current, op);
        }
        current
    }

    /// Xen served an interrupt: what the operation under way does from here on could not be told
    /// from what the interrupt does.
    pub(super) fn interrupted(&mut self, cpu: u32) {
        if let Op::Evtchn { interrupted, .. } = &mut self.pcpu(cpu).op {
            *interrupted = true;
        }
    }

    /// What `current` did in Xen, `op`, is over.
    #[inline]
    pub(super) fn closed(&mut self, current: Current, op: Op) {
        let Some(index) = current.of_interest() else { return };
        let vcpu = &mut self.vcpus[index as usize];
        match op {
            Op::Evtchn { woke: false, target, .. } => {
                vcpu.raw.kicks_without_wake += 1;
                vcpu.raw.marked_without_wake += u64::from(target.is_some());
            }
            Op::Poll { .. } => {
                let kick = vcpu.back_in_guest();
                self.woke_nobody(kick);
            }
            _ => {}
        }
    }

    /// A PV hypercall of `current`, who is on `cpu`.
    #[inline]
    pub(super) fn pv_hypercall(&mut self, current: Current, cpu: u32, tsc: u64, words: &[u32]) {
        let Some(&first) = words.first() else { return };
        self.classes.pv_hypercalls = true;
        let is_poll = || event::hypercall_arg0(words) == Some(event::SCHEDOP_POLL);
        let op = match first & 0xf_ffff {
            event::HYPERCALL_EVENT_CHANNEL_OP => Some(false),
            event::HYPERCALL_SCHED_OP if is_poll() => Some(true),
            event::HYPERCALL_HVM_OP => {
                self.classes.mark_calls = true;
                None
            }
            _ => None,
        };
        let index = current.of_interest();
        if let Some(index) = index {
            self.vcpus[index as usize].kind = DomainKind::Pv;
        }
        if let Some(is_poll) = op {
            self.enter(index, is_poll, cpu, tsc);
        }
    }

    /// The current vCPU of `cpu` begins a poll or an event channel operation.
    fn enter(&mut self, index: Option<u32>, is_poll: bool, cpu: u32, tsc: u64) {
        match index {
            Some(index) if is_poll => self.poll(index, cpu, tsc),
            Some(index) => self.evtchn_op(index, cpu, tsc),
            None if self.pcpu(cpu).current == Current::Unknown => {
                // Whose it is a later record may tell.
                let pcpu = self.pcpu(cpu);
                pcpu.unattributed += 1;
                let evtchn = Op::evtchn(tsc, None);
                pcpu.op = if is_poll { Op::Poll { tsc } } else { evtchn };
            }
            None => {}
        }
    }

    pub(super) fn evtchn_op(&mut self, index: u32, cpu: u32, tsc: u64) {
        let vcpu = &mut self.vcpus[index as usize];
        vcpu.evtchn_op();
        let target = vcpu.announced.take();
        self.pcpu(cpu).op = Op::evtchn(tsc, target);
    }

    pub(super) fn poll(&mut self, index: u32, cpu: u32, tsc: u64) {
        self.poll_begins(index, tsc);
        self.pcpu(cpu).op = Op::Poll { tsc };
    }

    pub(super) fn poll_begins(&mut self, index: u32, tsc: u64) {
        let vcpu = &mut self.vcpus[index as usize];
        vcpu.poll_begins(tsc, &self.gaps);
        if self.exposed.is_watched() {
            self.exposed.opens(index, vcpu);
        }
    }

    pub(super) fn hvm(&mut self, cpu: u32, tsc: u64, event: u32, words: &[u32]) {
        if event::is_vmexit(event) {
            self.classes.hvm_exits = true;
            self.close(cpu);
            self.pcpu(cpu).exit_tsc = tsc;
            let for_call = words.first().is_some_and(|&of| event::is_call_exit(event, of));
            self.unseen.call_exits += u64::from(for_call);
            if let Some(index) = self.current(cpu) {
                self.vcpus[index as usize].kind = DomainKind::Hvm;
            }
        } else if event::is_vmentry(event) {
            self.close(cpu);
        } else if event & event::GROUP_MASK == event::HVM_HANDLER {
            self.classes.hvm_handlers = true;
            if event != event::VMMCALL {
                return;
            }
            self.classes.hvm_hypercalls = true;
            self.unseen.call_numbers += 1;
            let (index, tsc) = (self.current(cpu), self.pcpu(cpu).exit_tsc);
            match words.first() {
                Some(&event::HYPERCALL_EVENT_CHANNEL_OP) => {
                    self.enter(index, false, cpu, tsc);
                }
                Some(&event::HYPERCALL_SCHED_OP) => self.enter(index, true, cpu, tsc),
                Some(&event::HYPERCALL_HVM_OP) => self.classes.mark_calls = true,
                _ => {}
            }
        }
    }

    #[cold]
    pub(super) fn marker(&mut self, cpu: u32, tsc: u64, event: u32, words: &[u32]) {
        let Some(index) = self.current(cpu) else { return };
        let vcpu = &mut self.vcpus[index as usize];
        let kind = event & 0xfff;
        if !(markers::WAIT_BEGIN..=markers::ACQUIRED_AFTER_BLOCK).contains(&kind) {
            return;
        }
        self.classes.markers = true;
        match (kind, words) {
            // A guest may write what it likes: believe it about itself only.
            (_, &[who, ..]) if who != u32::from(vcpu.id) => self.bad_markers += 1,
            (markers::WAIT_BEGIN, &[_, lock, _, ..]) => {
                vcpu.marked.get_or_insert_default().wait_begin(lock);
            }
            (markers::WAIT_END, &[_, lock, _, ..]) => {
                vcpu.marked.get_or_insert_default().wait_end(lock);
            }
            (markers::KICK, &[_, target, ..]) => {
                vcpu.raw.marked_kicks += 1;
                vcpu.marks_kicks = true;
                vcpu.announced = Some(target);
            }
            (markers::ACQUIRED_AFTER_BLOCK, &[_, lock, waits, kicked, ..]) => {
                let done = vcpu.marked.get_or_insert_default().acquired(lock, waits, kicked);
                if let Some(done) = done {
                    self.acquired(index, lock, tsc, &done);
                }
            }
            _ => self.bad_markers += 1,
        }
    }

    /// An acquisition that blocked, whole and beside no gap, is over.
    fn acquired(&mut self, index: u32, lock: u32, marked: u64, done: &Acquired) {
        let Acquired { episode, blocked, running, slept, longest } = *done;
        let vcpu = &self.vcpus[index as usize];
        self.locks.acquired((vcpu.domain, vcpu.life), lock, &episode);
        let name = |index: u32| self.vcpus[index as usize].name();
        let story = AcquisitionStory {
            vcpu: vcpu.name(),
            lock,
            blocked,
            running,
            marked,
            slept,
            longest,
            waits: episode.waits,
            waking_kicks: episode.waking_kicks,
            first_kicked_by: episode.first_kicker().map(name),
            last_kicked_by: episode.last_kicker().map(name),
            certainty: if episode.unmarked || self.options.read.corrects() {
                Certainty::Inferred
            } else {
                Certainty::Exact
            },
        };
        self.observer.acquisition(&story);
    }
}
