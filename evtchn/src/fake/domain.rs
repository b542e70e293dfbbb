//! The fake hypervisor's view of its domain: ports, vCPUs, and the rules between them.
//!
//! This file owns the semantics, under one lock that stands for all of Xen's. It must never sleep
//! and never touch a thread: it only says which vCPUs run.

use std::time::Duration;
use std::vec::Vec;

use xen_sys as sys;

use super::Seen;
use super::clock::Clock;
use crate::{Abi, DomId, Errno, EventChannelOp, Port, TwoLevel, VcpuInfo, Virq};

/// What a port is, to Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Closed,
    /// Attached to Xen itself; off limits for the guest.
    Xen,
    Unbound(DomId),
    /// Connected to this port of the same domain.
    Interdomain(u32),
    Virq(u32),
    Ipi,
}

#[derive(Clone, Copy, Debug)]
struct Channel {
    kind: Kind,
    /// The vCPU its events go to.
    vcpu: u32,
}

const CLOSED: Channel = Channel { kind: Kind::Closed, vcpu: 0 };

/// What a vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Running,
    Polling { port: u32, deadline_ns: u64 },
    Blocked,
    Down,
}

#[derive(Debug)]
pub(super) struct Domain {
    two_level: TwoLevel,
    infos: Vec<VcpuInfo>,
    channels: Vec<Channel>,
    runs: Vec<Run>,
    /// vCPUs made runnable since the last `take_woken`.
    woken: Vec<usize>,
    clock: Clock,
    deadlock: bool,
    pub(super) seen: Seen,
}

impl Domain {
    pub(super) fn new(two_level: TwoLevel, infos: Vec<VcpuInfo>, clock: Clock) -> Self {
        let runs = std::vec![Run::Running; infos.len()];
        Self {
            two_level,
            infos,
            channels: std::vec![CLOSED],
            runs,
            woken: Vec::new(),
            clock,
            deadlock: false,
            seen: Seen::default(),
        }
    }

    pub(super) fn event_channel_op(&mut self, op: EventChannelOp<'_>) -> Result<(), Errno> {
        match op {
            EventChannelOp::BindIpi(op) => {
                self.check_vcpu(op.vcpu)?;
                op.port = self.allocate(Kind::Ipi, op.vcpu)?;
            }
            EventChannelOp::BindVirq(op) => op.port = self.bind_virq(op.virq, op.vcpu)?,
            EventChannelOp::AllocUnbound(op) => {
                check_self(op.dom)?;
                op.port = self.allocate(Kind::Unbound(DomId(op.remote_dom)), 0)?;
            }
            EventChannelOp::BindInterdomain(op) => {
                op.local_port = self.bind_interdomain(op.remote_dom, op.remote_port)?;
            }
            EventChannelOp::BindVcpu(op) => self.bind_vcpu(op.port, op.vcpu)?,
            EventChannelOp::Close(op) => self.close(op.port)?,
            EventChannelOp::Send(op) => self.send(op.port)?,
            EventChannelOp::Unmask(op) => {
                self.usable(op.port)?;
                self.unmask(op.port);
            }
            EventChannelOp::Status(op) => self.status(op)?,
            EventChannelOp::Reset(op) => {
                check_self(op.dom)?;
                for port in 1..self.channels.len() as u32 {
                    if self.usable(port).is_ok() {
                        self.close(port)?;
                    }
                }
            }
            // A Xen built or told not to offer the FIFO ABI answers so.
            EventChannelOp::InitControl(_)
            | EventChannelOp::ExpandArray(_)
            | EventChannelOp::SetPriority(_) => return Err(Errno::ENOSYS),
        }
        Ok(())
    }

    // --- Ports ---------------------------------------------------------------------------------

    fn check_vcpu(&self, vcpu: u32) -> Result<(), Errno> {
        if (vcpu as usize) < self.infos.len() { Ok(()) } else { Err(Errno::ENOENT) }
    }

    fn allocate(&mut self, kind: Kind, vcpu: u32) -> Result<u32, Errno> {
        let free = (1..self.channels.len()).find(|&p| self.channels[p].kind == Kind::Closed);
        let port = match free {
            Some(port) => port,
            None if self.channels.len() < TwoLevel::PORTS as usize => {
                self.channels.push(CLOSED);
                self.channels.len() - 1
            }
            None => return Err(Errno::ENOSPC),
        };
        self.channels[port] = Channel { kind, vcpu };
        Ok(port as u32)
    }

    /// The channel, if the guest may use it.
    fn usable(&self, port: u32) -> Result<Channel, Errno> {
        match self.channels.get(port as usize) {
            Some(channel) if !matches!(channel.kind, Kind::Closed | Kind::Xen) => Ok(*channel),
            _ => Err(Errno::EINVAL),
        }
    }

    fn bind_virq(&mut self, virq: u32, vcpu: u32) -> Result<u32, Errno> {
        if virq >= sys::NR_VIRQS || (!Virq(virq).is_per_vcpu() && vcpu != 0) {
            return Err(Errno::EINVAL);
        }
        self.check_vcpu(vcpu)?;
        if self.virq_port(vcpu, Virq(virq)).is_some() {
            return Err(Errno::EEXIST);
        }
        self.allocate(Kind::Virq(virq), vcpu)
    }

    fn virq_port(&self, vcpu: u32, virq: Virq) -> Option<u32> {
        let wanted =
            |c: &Channel| c.kind == Kind::Virq(virq.0) && (c.vcpu == vcpu || !virq.is_per_vcpu());
        self.channels.iter().position(wanted).map(|port| port as u32)
    }

    pub(super) fn raise_virq(&mut self, vcpu: u32, virq: Virq) {
        if let Some(port) = self.virq_port(vcpu, virq) {
            self.set_pending(port);
        }
    }

    pub(super) fn xen_owned_port(&mut self) -> Port {
        let port = self.allocate(Kind::Xen, 0).expect("a free port");
        Port::new(port).expect("no port is 0")
    }

    fn bind_interdomain(&mut self, remote: u16, remote_port: u32) -> Result<u32, Errno> {
        if DomId(remote) != DomId::SELF {
            return Err(Errno::ESRCH);
        }
        match self.channels.get(remote_port as usize) {
            Some(Channel { kind: Kind::Unbound(allowed), .. }) if *allowed == DomId::SELF => {}
            _ => return Err(Errno::EINVAL),
        }
        let local = self.allocate(Kind::Interdomain(remote_port), 0)?;
        self.channels[remote_port as usize].kind = Kind::Interdomain(local);
        // The peer may have sent before the connection stood.
        self.set_pending(local);
        Ok(local)
    }

    fn bind_vcpu(&mut self, port: u32, vcpu: u32) -> Result<(), Errno> {
        self.check_vcpu(vcpu)?;
        let channel = self.usable(port)?;
        match channel.kind {
            Kind::Ipi => Err(Errno::EINVAL),
            Kind::Virq(virq) if Virq(virq).is_per_vcpu() => Err(Errno::EINVAL),
            _ => {
                self.channels[port as usize].vcpu = vcpu;
                Ok(())
            }
        }
    }

    fn close(&mut self, port: u32) -> Result<(), Errno> {
        let channel = self.usable(port)?;
        if let Kind::Interdomain(peer) = channel.kind {
            self.channels[peer as usize].kind = Kind::Unbound(DomId::SELF);
        }
        self.channels[port as usize] = CLOSED;
        self.clear_pending(port);
        Ok(())
    }

    fn send(&mut self, port: u32) -> Result<(), Errno> {
        self.seen.sends += 1;
        match self.usable(port)?.kind {
            Kind::Ipi => self.set_pending(port),
            Kind::Interdomain(peer) => self.set_pending(peer),
            Kind::Unbound(_) => {} // dropped: nobody is there yet
            Kind::Virq(_) | Kind::Closed | Kind::Xen => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn status(&self, op: &mut sys::evtchn_status) -> Result<(), Errno> {
        check_self(op.dom)?;
        if op.port >= TwoLevel::PORTS {
            return Err(Errno::EINVAL);
        }
        let channel = self.channels.get(op.port as usize).copied().unwrap_or(CLOSED);
        op.vcpu = channel.vcpu;
        op.status = match channel.kind {
            Kind::Closed => sys::EVTCHNSTAT_closed,
            Kind::Unbound(dom) => {
                op.u.unbound = sys::evtchn_status__bindgen_ty_1__bindgen_ty_1 { dom: dom.0 };
                sys::EVTCHNSTAT_unbound
            }
            Kind::Xen => {
                op.u.unbound = sys::evtchn_status__bindgen_ty_1__bindgen_ty_1 { dom: 0 };
                sys::EVTCHNSTAT_unbound
            }
            Kind::Interdomain(port) => {
                op.u.interdomain =
                    sys::evtchn_status__bindgen_ty_1__bindgen_ty_2 { dom: DomId::SELF.0, port };
                sys::EVTCHNSTAT_interdomain
            }
            Kind::Virq(virq) => {
                op.u.virq = virq;
                sys::EVTCHNSTAT_virq
            }
            Kind::Ipi => sys::EVTCHNSTAT_ipi,
        };
        Ok(())
    }

    // --- Events --------------------------------------------------------------------------------

    fn set_pending(&mut self, port: u32) {
        let raised = self.two_level.hypervisor_set_pending(number(port));
        if !raised {
            return; // latched already: no upcall, no wake
        }
        self.raise_upcall_unless_masked(port);
        for vcpu in 0..self.runs.len() {
            if matches!(self.runs[vcpu], Run::Polling { port: polled, .. } if polled == port) {
                self.seen.waking_sends += 1;
                self.unblock(vcpu);
            }
        }
    }

    fn raise_upcall_unless_masked(&mut self, port: u32) {
        let vcpu = self.channels[port as usize].vcpu as usize;
        let info = self.infos[vcpu];
        if !self.two_level.is_masked(number(port))
            && TwoLevel::hypervisor_select(&info, number(port))
            && !info.set_upcall_pending()
        {
            // The edge, and only the edge, wakes a vCPU that polls something else. Its upcall
            // mask plays no part.
            self.unblock(vcpu);
        }
    }

    fn clear_pending(&mut self, port: u32) {
        self.two_level.clear(number(port));
    }

    fn unmask(&mut self, port: u32) {
        let was_masked = self.two_level.hypervisor_unmask(number(port));
        if was_masked && self.two_level.is_pending(number(port)) {
            self.raise_upcall_unless_masked(port);
        }
    }

    // --- vCPUs ---------------------------------------------------------------------------------

    /// Starts a poll; whether the vCPU goes to sleep.
    pub(super) fn poll(&mut self, vcpu: u32, port: Port, deadline_ns: u64) -> Result<bool, Errno> {
        self.assert_running(vcpu);
        self.seen.polls += 1;
        if self.upcall_is_due(vcpu) {
            return Ok(false);
        }
        self.usable(port.get())?;
        if self.two_level.is_pending(port) {
            return Ok(false);
        }
        if deadline_ns != 0 && deadline_ns <= self.now_ns() {
            self.seen.blocked_polls += 1;
            self.seen.expired_polls += 1;
            return Ok(false);
        }
        self.seen.blocked_polls += 1;
        self.runs[vcpu as usize] = Run::Polling { port: port.get(), deadline_ns };
        Ok(true)
    }

    /// Unmasks upcalls and blocks; whether the vCPU goes to sleep.
    pub(super) fn block(&mut self, vcpu: u32) -> bool {
        self.assert_running(vcpu);
        if self.infos[vcpu as usize].unmask_upcalls() {
            return false;
        }
        self.runs[vcpu as usize] = Run::Blocked;
        true
    }

    pub(super) fn take_down(&mut self, vcpu: u32) {
        self.assert_running(vcpu);
        self.runs[vcpu as usize] = Run::Down;
    }

    fn assert_running(&self, vcpu: u32) {
        let run = self.runs[vcpu as usize];
        assert!(run == Run::Running, "a hypercall of vCPU {vcpu}, which is {run:?}");
    }

    fn upcall_is_due(&self, vcpu: u32) -> bool {
        let info = self.infos[vcpu as usize];
        info.upcall_pending() && !info.upcalls_masked()
    }

    fn unblock(&mut self, vcpu: usize) {
        if matches!(self.runs[vcpu], Run::Polling { .. } | Run::Blocked) {
            self.runs[vcpu] = Run::Running;
            self.woken.push(vcpu);
        }
    }

    pub(super) fn is_running(&self, vcpu: u32) -> bool {
        self.runs[vcpu as usize] == Run::Running
    }

    pub(super) fn take_woken(&mut self) -> Vec<usize> {
        core::mem::take(&mut self.woken)
    }

    // --- Time ----------------------------------------------------------------------------------

    pub(super) fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    pub(super) fn host_time_left(&self, vcpu: u32) -> Option<Duration> {
        match self.runs[vcpu as usize] {
            Run::Polling { deadline_ns, .. } => self.clock.host_time_until(deadline_ns),
            _ => None,
        }
    }

    /// Ends the vCPU's poll if its deadline has passed.
    pub(super) fn expire(&mut self, vcpu: u32) {
        if let Run::Polling { deadline_ns, .. } = self.runs[vcpu as usize]
            && deadline_ns != 0
            && deadline_ns <= self.now_ns()
        {
            self.seen.expired_polls += 1;
            self.unblock(vcpu as usize);
        }
    }

    /// On a virtual clock, when nobody runs: jumps to the next deadline.
    pub(super) fn let_virtual_time_pass(&mut self) {
        let Clock::Virtual(_) = self.clock else { return };
        if self.runs.contains(&Run::Running) {
            return;
        }
        let deadline = |run: &Run| match run {
            Run::Polling { deadline_ns, .. } if *deadline_ns != 0 => Some(*deadline_ns),
            _ => None,
        };
        match self.runs.iter().filter_map(deadline).min() {
            Some(next) => {
                self.clock = Clock::Virtual(next);
                for vcpu in 0..self.runs.len() as u32 {
                    self.expire(vcpu);
                }
            }
            None => {
                self.deadlock = self.runs.iter().any(|run| *run != Run::Down);
                self.woken.extend(0..self.runs.len());
                self.check_deadlock();
            }
        }
    }

    pub(super) fn check_deadlock(&self) {
        assert!(
            !self.deadlock,
            "deadlock: every vCPU sleeps and none has a deadline: {:?}; pending ports {:?}",
            self.runs,
            self.two_level.pending_ports().collect::<Vec<_>>()
        );
    }
}

fn check_self(dom: u16) -> Result<(), Errno> {
    if DomId(dom) == DomId::SELF { Ok(()) } else { Err(Errno::EPERM) }
}

fn number(port: u32) -> Port {
    Port::new(port).expect("the fake hands out ports from 1 on")
}
