//! What the simulated Xen writes for each thing that happens.
//!
//! Owns the records' payloads. Decides nothing.

use std::io::Write;

use super::ring::Rings;
use super::{Guest, Plan};
use crate::event::{self, Runstate};
use crate::markers;

/// ns between two records of one action.
pub(super) const STEP: u64 = 100;

/// A pen on one pCPU: each record is a little later than the one before.
pub(super) struct Pen<'a, W> {
    rings: &'a mut Rings<W>,
    guest: Guest,
    cpu: u32,
    /// The pCPU that writes what the scheduler does on `cpu`.
    scheduler: u32,
    pub(super) ns: u64,
    current: (u16, u16),
}

impl<'a, W: Write> Pen<'a, W> {
    pub(super) fn new(
        rings: &'a mut Rings<W>,
        plan: &Plan,
        cpu: u32,
        ns: u64,
        current: Option<(u16, u16)>,
    ) -> Self {
        let current = current.unwrap_or((event::DOMID_IDLE as u16, cpu as u16));
        let scheduler = if plan.core_scheduling { cpu & !1 } else { cpu };
        Self { rings, guest: plan.guest, cpu, scheduler, ns, current }
    }

    fn put(&mut self, event: u32, timed: bool, payload: &[u32]) {
        let switches = matches!(
            event,
            event::SWITCH_INFPREV | event::SWITCH_INFNEXT | event::SWITCH | event::CONTINUE_RUNNING
        );
        let running = event::runstate_change(event)
            .is_some_and(|(old, new)| old == Runstate::Running || new == Runstate::Running);
        let cpu = if switches || running { self.scheduler } else { self.cpu };
        self.rings.put(cpu, self.ns, event, timed, payload, self.current);
        self.ns += STEP;
    }

    /// The current vCPU enters Xen for hypercall `number` with first argument `arg0`.
    pub(super) fn hypercall(&mut self, number: u32, arg0: Option<u32>) {
        match (self.guest, arg0) {
            (Guest::Pv, Some(arg0)) => {
                self.put(event::PV_HYPERCALL, true, &[number | 1 << 20, arg0]);
            }
            (Guest::Pv, None) => self.put(event::PV_HYPERCALL, true, &[number]),
            (guest, _) => {
                let (exit, reason) = match guest {
                    Guest::PvhAmd419 => (0x0008_1103, 0x81),
                    _ => (0x0008_1102, 18),
                };
                self.put(exit, true, &[reason, 0x0100_2000, 0]);
                self.put(event::VMMCALL, false, &[number]);
            }
        }
    }

    /// ... and goes back to the guest.
    pub(super) fn back(&mut self) {
        if self.guest != Guest::Pv {
            self.put(event::VMENTRY, true, &[]);
        }
    }

    /// The guest marks something.
    pub(super) fn mark(&mut self, kind: u32, payload: &[u32]) {
        self.hypercall(event::HYPERCALL_HVM_OP, Some(11));
        self.put(markers::GUEST | kind, false, payload);
        self.back();
    }

    pub(super) fn sched(&mut self, event: u32, who: (u16, u16)) {
        self.put(event, true, &[u32::from(who.0), u32::from(who.1)]);
    }

    /// A domain begins or ends.
    pub(super) fn domain(&mut self, event: u32, domain: u16) {
        self.put(event, true, &[u32::from(domain)]);
    }

    pub(super) fn runstate(&mut self, who: (u16, u16), old: Runstate, new: Runstate) {
        let event = event::RUNSTATE_CHANGE | (old as u32) << 8 | (new as u32) << 4;
        self.put(event, true, &[packed(who)]);
    }

    pub(super) fn continues(&mut self, who: (u16, u16)) {
        self.put(event::CONTINUE_RUNNING, true, &[packed(who)]);
    }

    /// A switch from `prev`, which came at `came_ns` and goes to state `to`, to `next`. Returns
    /// when `prev` changes its state; `next` does one [`STEP`] later.
    pub(super) fn switch(
        &mut self,
        prev: (u16, u16),
        came_ns: u64,
        to: Runstate,
        next: (u16, u16),
    ) -> u64 {
        let ran = self.ns.saturating_sub(came_ns) as u32;
        let words = |who: (u16, u16)| [u32::from(who.0), u32::from(who.1)];
        let ([pd, pv], [nd, nv]) = (words(prev), words(next));
        let now = self.ns;
        self.put(event::SWITCH_INFPREV, true, &[pd, pv, ran]);
        // The scheduler reads the clock once for both.
        self.ns = now;
        self.put(event::SWITCH_INFNEXT, true, &[nd, nv, 0, 0]);
        self.put(event::SWITCH, true, &[pd, pv, nd, nv]);
        let left = self.ns;
        self.runstate(prev, Runstate::Running, to);
        self.current = next;
        self.runstate(next, Runstate::Runnable, Runstate::Running);
        if self.current.0 != event::DOMID_IDLE as u16 {
            self.back();
        }
        left
    }
}

fn packed(who: (u16, u16)) -> u32 {
    u32::from(who.0) << 16 | u32::from(who.1)
}
