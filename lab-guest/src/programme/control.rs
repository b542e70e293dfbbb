//! What the toolstack asks of the domain while its vCPUs are at the locks: end, be saved, other
//! vCPUs.
//!
//! Owns vCPU 0's loop with `control=watch`, and what upcalls and NMIs do on every vCPU. The other
//! vCPUs go on as they are, with two exceptions: a vCPU goes down, or ends, only between two
//! acquisitions; and while the domain is suspended all are held, wherever they are.

use core::sync::atomic::Ordering::Relaxed;

use experiment::{Control, Time};
use xen_guest::events::{timer, upcall};
use xen_guest::glue;
use xen_guest::kernel::machine::{Errno, Machine, Port, ShutdownReason};
use xen_guest::kernel::{smp, suspend};
use xen_guest::xen::hypercall;

use super::host::Order;
use super::orders::{DOWN, STOP};
use super::run::{RUN, Run};
use super::vcpu::STEP_NS;

/// How long a vCPU may take to go down: it finishes what it is at.
const PATIENCE_NS: u64 = 60_000_000_000;

/// Makes `vcpu`, not started yet or this one, one that can be held and interrupted.
pub(super) fn prepare(run: &Run, vcpu: u32) -> Result<(), Errno> {
    suspend::prepare(vcpu)?;
    // With control=watch, vCPU 0 takes no part.
    if run.params.timer != Time::ZERO && !(run.params.control == Control::Watch && vcpu == 0) {
        timer::bind_for(vcpu)?;
    }
    Ok(())
}

/// The handlers of upcalls and NMIs, for every vCPU.
pub(super) fn install_handlers() {
    upcall::set_upcall_handler(on_upcall);
    upcall::set_nmi_handler(on_nmi);
}

fn on_upcall(port: Port) {
    if suspend::upcall(port) || !timer::is_mine(port) {
        return;
    }
    if let Some((run, vcpu)) = at_work() {
        run.contest.interrupted(&run.vcpu(vcpu), &run.plan);
    }
}

fn on_nmi() {
    let Some((run, vcpu)) = at_work() else { return };
    let _nmi = glue::enter_nmi(vcpu);
    let counter = match run.contest.try_in_nmi() {
        true => &run.events.nmi_acquisitions,
        false => &run.events.nmi_refusals,
    };
    // Relaxed: read when every vCPU is done.
    counter.fetch_add(1, Relaxed);
}

/// The run and this vCPU, unless that has said that it is done: from then on its counts stand.
fn at_work() -> Option<(&'static Run, u32)> {
    let run = RUN.get()?;
    let vcpu = Machine::current_vcpu();
    (vcpu < run.params.vcpus && !run.watchdog.is_done(vcpu)).then_some((run, vcpu))
}

impl Run {
    /// vCPU 0 with `control=watch`: does what the toolstack asks until the other vCPUs are done.
    pub(super) fn look_after(&'static self) {
        // It takes no part, so it makes no progress.
        self.watchdog.set_away(0, true);
        self.host.lock().watch_orders();
        let others = 1..self.params.vcpus;
        while !others.clone().all(|vcpu| self.watchdog.is_done(vcpu)) {
            let order = self.host.lock().next_order(self.machine.now() + STEP_NS);
            match order {
                Some(Order::LookAtCpus) => self.follow_cpus(),
                Some(Order::Suspend) => self.suspend(),
                Some(Order::Stop(reason)) => self.stop(reason),
                Some(Order::Count) => {
                    let acquisitions = self.acquisitions();
                    self.host.lock().tell_acquisitions(acquisitions);
                }
                None => {}
            }
            // Who is down cannot end. Back up, when only they are left.
            let left = |vcpu: &u32| !self.watchdog.is_done(*vcpu);
            if others.clone().filter(left).all(|vcpu| self.watchdog.is_away(vcpu)) {
                others.clone().filter(left).for_each(|vcpu| self.bring_back(vcpu));
            }
            self.look();
        }
    }

    fn stop(&self, reason: ShutdownReason) {
        log::info!("control: {reason:?}");
        self.events.reboot.store(reason == ShutdownReason::Reboot, Relaxed);
        for vcpu in 1..self.params.vcpus {
            self.orders[vcpu as usize].give(STOP);
            self.bring_back(vcpu);
        }
    }

    /// Takes vCPUs down and brings them back as xenstore says.
    fn follow_cpus(&self) {
        for vcpu in 1..self.params.vcpus {
            // Not while xenstore is asked: the answer may take its time.
            if self.host.lock().wants(vcpu) {
                self.bring_back(vcpu);
            } else {
                self.take_down(vcpu);
            }
        }
    }

    fn take_down(&self, vcpu: u32) {
        if self.watchdog.is_away(vcpu) || self.watchdog.is_done(vcpu) {
            return;
        }
        self.orders[vcpu as usize].give(DOWN);
        let limit = self.machine.now() + PATIENCE_NS;
        while hypercall::vcpu_is_up(vcpu) != Ok(false) {
            if self.watchdog.is_done(vcpu) {
                // It had ended before it saw the order.
                return self.orders[vcpu as usize].take_back(DOWN);
            }
            assert!(self.machine.now() < limit, "vCPU {vcpu} does not go down");
            self.machine.sleep_until(self.machine.now() + STEP_NS / 10);
        }
        self.watchdog.set_away(vcpu, true);
        self.events.vcpus_down.fetch_add(1, Relaxed);
        // Its last wait is over, and `unbind` lets kicks that were decided before come first.
        let closed = glue::unbind(vcpu)
            .and_then(|()| suspend::forget(vcpu))
            .and_then(|()| timer::unbind(vcpu));
        closed.unwrap_or_else(|errno| panic!("the ports of vCPU {vcpu} cannot be closed: {errno}"));
        log::info!("control: vCPU {vcpu} is down");
    }

    fn bring_back(&self, vcpu: u32) {
        if !self.watchdog.is_away(vcpu) {
            return;
        }
        self.orders[vcpu as usize].take_back(DOWN);
        self.watchdog.set_away(vcpu, false);
        let back =
            glue::bind(vcpu).and_then(|_| prepare(self, vcpu)).and_then(|()| smp::bring_back(vcpu));
        back.unwrap_or_else(|errno| panic!("vCPU {vcpu} cannot be brought back: {errno}"));
        log::info!("control: vCPU {vcpu} is up");
    }

    /// Lets the domain be saved, and takes up everything where it comes back.
    fn suspend(&'static self) {
        let resumed = suspend::suspend(self.machine, |resumed| {
            if resumed == suspend::Resumed::Restored {
                glue::bind_again().expect("a restored domain can have its kickers again");
            }
            // However long it was away, nobody was stuck.
            self.watchdog.restart(self.machine.now());
        });
        match resumed {
            Ok(suspend::Resumed::Restored) => {
                self.events.restores.fetch_add(1, Relaxed);
                let mut host = self.host.lock();
                host.resume();
                host.set_state("running");
                log::info!("control: restored as domain {}", host.domid());
            }
            Ok(suspend::Resumed::Cancelled) => {
                self.events.cancelled_suspends.fetch_add(1, Relaxed);
                log::info!("control: suspended and resumed");
            }
            Err(errno) => log::error!("control: the domain cannot be suspended: {errno}"),
        }
    }
}
