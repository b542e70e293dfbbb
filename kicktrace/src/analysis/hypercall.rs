//! Entries into Xen: what the current vCPU of a pCPU does there.
//!
//! Owns which hypercalls are operations and polls, when they are over, and what a guest's marks say
//! about them.

use crate::analysis::acquisition::Acquired;
use crate::analysis::observe::{AcquisitionStory, Observe};
use crate::analysis::{Analyser, Current, NOBODY, Op};
use crate::event;
use crate::markers;
use crate::reader::Record;
use crate::summary::DomainKind;

impl<O: Observe> Analyser<O> {
    /// What the current vCPU did in Xen is over.
    #[inline]
    pub(super) fn close(&mut self, cpu: u32) {
        if !matches!(self.pcpu(cpu).op, Op::None) {
            self.close_op(cpu);
        }
    }

    fn close_op(&mut self, cpu: u32) {
        let pcpu = self.pcpu(cpu);
        let op = std::mem::take(&mut pcpu.op);
        let Current::Vcpu(index) = pcpu.current else { return };
        if index == NOBODY {
            return;
        }
        let vcpu = &mut self.vcpus[index as usize];
        match op {
            Op::Evtchn { woke: false, target, .. } => {
                vcpu.raw.kicks_without_wake += 1;
                vcpu.raw.marked_without_wake += u64::from(target.is_some());
            }
            Op::Poll => vcpu.back_in_guest(),
            _ => {}
        }
    }

    pub(super) fn pv_hypercall(&mut self, record: &Record<'_>) {
        self.classes.pv_hypercalls = true;
        let Some(index) = self.current(record.cpu) else { return };
        let Some(&first) = record.words.first() else { return };
        self.vcpus[index as usize].kind = DomainKind::Pv;
        match first & 0xf_ffff {
            event::HYPERCALL_EVENT_CHANNEL_OP => self.evtchn_op(index, record.cpu, record.tsc),
            event::HYPERCALL_SCHED_OP
                if event::hypercall_arg0(record.words) == Some(event::SCHEDOP_POLL) =>
            {
                self.poll(index, record.cpu, record.tsc);
            }
            _ => {}
        }
    }

    pub(super) fn evtchn_op(&mut self, index: u32, cpu: u32, tsc: u64) {
        let vcpu = &mut self.vcpus[index as usize];
        vcpu.evtchn_op();
        let target = vcpu.announced.take();
        self.pcpu(cpu).op = Op::Evtchn { tsc, woke: false, target };
    }

    pub(super) fn poll(&mut self, index: u32, cpu: u32, tsc: u64) {
        self.vcpus[index as usize].poll_begins(tsc, &self.gaps);
        self.pcpu(cpu).op = Op::Poll;
    }

    pub(super) fn hvm(&mut self, record: &Record<'_>) {
        let event = record.event;
        if event::is_vmexit(event) {
            self.classes.hvm_exits = true;
            self.close(record.cpu);
            self.pcpu(record.cpu).exit_tsc = record.tsc;
            if let Some(index) = self.current(record.cpu) {
                self.vcpus[index as usize].kind = DomainKind::Hvm;
            }
        } else if event == event::VMENTRY {
            self.close(record.cpu);
        } else if event == event::VMMCALL {
            self.classes.hvm_hypercalls = true;
            let Some(index) = self.current(record.cpu) else { return };
            let tsc = self.pcpu(record.cpu).exit_tsc;
            match record.words.first() {
                Some(&event::HYPERCALL_EVENT_CHANNEL_OP) => self.evtchn_op(index, record.cpu, tsc),
                Some(&event::HYPERCALL_SCHED_OP) => self.poll(index, record.cpu, tsc),
                _ => {}
            }
        }
    }

    #[cold]
    pub(super) fn marker(&mut self, record: &Record<'_>) {
        let Some(index) = self.current(record.cpu) else { return };
        let vcpu = &mut self.vcpus[index as usize];
        let kind = record.event & 0xfff;
        if !(markers::WAIT_BEGIN..=markers::ACQUIRED_AFTER_BLOCK).contains(&kind) {
            return;
        }
        self.classes.markers = true;
        match (kind, record.words) {
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
                    self.acquired(index, lock, record.tsc, &done);
                }
            }
            _ => self.bad_markers += 1,
        }
    }

    /// An acquisition that blocked, whole and beside no gap, is over.
    fn acquired(&mut self, index: u32, lock: u32, marked: u64, done: &Acquired) {
        let Acquired { episode, blocked, running, slept, longest } = *done;
        let vcpu = &self.vcpus[index as usize];
        self.locks.acquired(vcpu.domain, lock, &episode);
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
        };
        self.observer.acquisition(&story);
    }
}
