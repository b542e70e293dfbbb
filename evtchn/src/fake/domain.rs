//! The fake hypervisor's view of its domain: ports, vCPUs, and the rules between them.
//!
//! This file owns the semantics, under one lock that stands for all of Xen's. It must never sleep
//! and never touch a thread: it only says which vCPUs run.

use std::time::Duration;
use std::vec::Vec;

use xen_sys as sys;

use super::Seen;
use super::clock::Clock;
use super::fifo::{FifoDomain, Frames, Queue};
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
    /// FIFO only.
    priority: u32,
    /// FIFO only: where its last event was queued.
    last: Queue,
}

const CLOSED: Channel = Channel {
    kind: Kind::Closed,
    vcpu: 0,
    priority: sys::EVTCHN_FIFO_PRIORITY_DEFAULT,
    last: (0, 0),
};

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
    /// Once the domain has switched to the FIFO ABI.
    fifo: Option<FifoDomain>,
    pub(super) frames: Frames,
    /// Whether this Xen offers the FIFO ABI.
    pub(super) offers_fifo: bool,
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
            fifo: None,
            frames: Frames::default(),
            offers_fifo: true,
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
                self.fifo = None;
            }
            EventChannelOp::InitControl(_)
            | EventChannelOp::ExpandArray(_)
            | EventChannelOp::SetPriority(_)
                if !self.offers_fifo =>
            {
                return Err(Errno::ENOSYS);
            }
            EventChannelOp::InitControl(op) => self.init_control(op)?,
            EventChannelOp::ExpandArray(op) => {
                let fifo = self.fifo.as_mut().ok_or(Errno::EOPNOTSUPP)?;
                for port in fifo.expand(&self.frames, op.array_gfn)? {
                    self.set_pending(port);
                }
            }
            EventChannelOp::SetPriority(op) => self.set_priority(op.port, op.priority)?,
        }
        Ok(())
    }

    // --- Ports ---------------------------------------------------------------------------------

    fn check_vcpu(&self, vcpu: u32) -> Result<(), Errno> {
        if (vcpu as usize) < self.infos.len() { Ok(()) } else { Err(Errno::ENOENT) }
    }

    fn allocate(&mut self, kind: Kind, vcpu: u32) -> Result<u32, Errno> {
        let free = (1..self.channels.len()).find(|&p| {
            self.channels[p].kind == Kind::Closed
                && !self.fifo.as_ref().is_some_and(|fifo| fifo.is_linked(p as u32))
        });
        let port = match free {
            Some(port) => port,
            None if self.channels.len() < self.max_ports() as usize => {
                self.channels.push(CLOSED);
                self.channels.len() - 1
            }
            None => return Err(Errno::ENOSPC),
        };
        // A number used before keeps its last queue: Xen may have it as a tail there.
        self.channels[port] = Channel { kind, vcpu, last: self.channels[port].last, ..CLOSED };
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
        self.channels[port as usize] = Channel { last: channel.last, ..CLOSED };
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
        if op.port >= self.max_ports() {
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
        let channel = &mut self.channels[port as usize];
        let vcpu = channel.vcpu as usize;
        let (latched, upcall) = match &mut self.fifo {
            Some(fifo) => {
                let to = (channel.vcpu, channel.priority);
                let raised = fifo.set_pending(port, to, &mut channel.last);
                (raised.latched, raised.upcall)
            }
            None => {
                let latched = self.two_level.hypervisor_set_pending(number(port));
                (latched, latched && self.select(port))
            }
        };
        if upcall {
            self.raise_upcall(vcpu);
        }
        if latched {
            self.wake_pollers(port);
        }
    }

    /// 2-level: tells the port's vCPU about it; whether that is news.
    fn select(&self, port: u32) -> bool {
        let info = self.infos[self.channels[port as usize].vcpu as usize];
        !self.two_level.is_masked(number(port)) && TwoLevel::hypervisor_select(&info, number(port))
    }

    fn raise_upcall(&mut self, vcpu: usize) {
        // The edge, and only the edge, wakes a vCPU that polls something else. Its upcall mask
        // plays no part.
        if !self.infos[vcpu].set_upcall_pending() {
            self.unblock(vcpu);
        }
    }

    fn wake_pollers(&mut self, port: u32) {
        for vcpu in 0..self.runs.len() {
            if matches!(self.runs[vcpu], Run::Polling { port: polled, .. } if polled == port) {
                self.seen.waking_sends += 1;
                self.unblock(vcpu);
            }
        }
    }

    fn is_pending(&self, port: Port) -> bool {
        match &self.fifo {
            Some(fifo) => fifo.is_pending(port.get()),
            None => self.two_level.is_pending(port),
        }
    }

    fn clear_pending(&mut self, port: u32) {
        match &mut self.fifo {
            Some(fifo) => fifo.clear_pending(port),
            None => {
                self.two_level.clear(number(port));
            }
        }
    }

    fn unmask(&mut self, port: u32) {
        match &mut self.fifo {
            Some(fifo) => {
                if fifo.unmask(port) {
                    self.set_pending(port);
                }
            }
            None => {
                let was_masked = self.two_level.hypervisor_unmask(number(port));
                if was_masked && self.two_level.is_pending(number(port)) && self.select(port) {
                    self.raise_upcall(self.channels[port as usize].vcpu as usize);
                }
            }
        }
    }

    // --- FIFO ----------------------------------------------------------------------------------

    fn max_ports(&self) -> u32 {
        if self.fifo.is_some() { sys::EVTCHN_FIFO_NR_CHANNELS } else { TwoLevel::PORTS }
    }

    fn init_control(&mut self, op: &mut sys::evtchn_init_control) -> Result<(), Errno> {
        if let Some(fifo) = &mut self.fifo {
            return fifo.init_control(&self.frames, op);
        }
        let mut fifo = FifoDomain::new(self.infos.len());
        fifo.init_control(&self.frames, op)?;
        for port in 1..self.channels.len() as u32 {
            if self.two_level.is_pending(number(port)) {
                fifo.save(port);
            }
        }
        self.fifo = Some(fifo);
        Ok(())
    }

    fn set_priority(&mut self, port: u32, priority: u32) -> Result<(), Errno> {
        if port as usize >= self.channels.len() {
            return Err(Errno::EINVAL);
        }
        if self.fifo.is_none() {
            return Err(Errno::ENOSYS);
        }
        self.usable(port).map_err(|_| Errno::EACCES)?;
        if priority > sys::EVTCHN_FIFO_PRIORITY_MIN {
            return Err(Errno::EINVAL);
        }
        self.channels[port as usize].priority = priority;
        Ok(())
    }

    /// For tests: marks a port's word as if Xen were linking it, or no longer.
    #[cfg(test)]
    pub(super) fn set_busy(&self, port: u32, busy: bool) {
        self.fifo.as_ref().expect("the FIFO ABI").set_busy(port, busy);
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
        if self.is_pending(port) {
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
        match self.runs[vcpu as usize] {
            Run::Polling { deadline_ns, .. }
                if deadline_ns != 0 && deadline_ns <= self.now_ns() =>
            {
                self.seen.expired_polls += 1;
                self.unblock(vcpu as usize);
            }
            _ => {}
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
