//! The vCPU a workload runs on, on a booted machine.
//!
//! Owns what a workload's [`Vcpu`] is on this kernel. In the measured loop it makes no hypercall
//! but for a mark.

use core::sync::atomic::Ordering::Relaxed;

use xen_guest::events::timer;
use xen_guest::glue;
use xen_guest::kernel::machine::Machine;
use xen_guest::markers;
use xen_guest::vcpu::{Area, clock, mask};

use super::orders::Orders;
use crate::locks::platform;
use crate::workload::{Vcpu, WaitCounts};

/// How long a vCPU sleeps between two looks at the start line.
pub(super) const STEP_NS: u64 = 20_000_000;

/// See the module.
pub(super) struct RunningVcpu<'a> {
    pub(super) machine: &'static Machine,
    pub(super) number: u32,
    /// Of the domain, those that take part.
    pub(super) vcpus: u32,
    pub(super) orders: &'a Orders,
}

impl Vcpu for RunningVcpu<'_> {
    #[inline]
    fn number(&self) -> u32 {
        self.number
    }

    #[inline]
    fn now(&self) -> u64 {
        clock::now_on(self.number)
    }

    #[inline]
    fn wait_counts(&self) -> WaitCounts {
        let counts = glue::wait_counts(self.number as usize);
        // A latched kick ends a wait before it blocks: no wait in the sense of the results.
        WaitCounts { waits: counts.polls, kicked: counts.kicked.saturating_sub(counts.latched) }
    }

    #[inline]
    fn waits(&self) -> u64 {
        glue::polls(self.number as usize)
    }

    fn acquired_after_block(&self, lock: u32, waits: WaitCounts) {
        let words = [self.number, lock, waits.waits as u32, waits.kicked as u32];
        self.machine.trace_marker(markers::ACQUIRED_AFTER_BLOCK, &words);
    }

    #[inline]
    fn proceed(&self) -> bool {
        self.orders.obey()
    }

    fn interrupt_in(&self, ns: u64) {
        // It can be set wherever it could be bound.
        let _ = timer::set(self.machine.now() + ns);
    }

    fn uninterrupted<R>(&self, section: impl FnOnce() -> R) -> R {
        mask::without(section)
    }

    fn stolen_from_all(&self, now: Option<u64>) -> u64 {
        let stolen = |vcpu| {
            let runstate = &Area::of(vcpu).runstate;
            // Relaxed: numbers that Xen writes as that vCPU comes and goes. It has the state before
            // the time.
            let since = runstate.state_entry_time.load(Relaxed);
            let is_runnable = runstate.state.load(Relaxed) == 1;
            let going_on = now.filter(|_| is_runnable).map_or(0, |now| now.saturating_sub(since));
            runstate.stolen_ns() + going_on
        };
        (0..self.vcpus).map(stolen).sum()
    }

    fn sleep(&self) {
        self.machine.sleep_until(self.machine.now() + STEP_NS);
        platform::look();
    }
}
