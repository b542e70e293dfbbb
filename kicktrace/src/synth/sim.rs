//! The simulated host: pCPUs with run queues, vCPUs that fight for their domain's queue lock.
//!
//! Owns what the vCPUs do and when, and the truth about it; who is on which pCPU is decided in
//! `schedule.rs`. Time is in ns. Every action of a pCPU takes
//! its pCPU's time, so records of one pCPU never overlap.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, Write};

use super::emit::Pen;
use super::ring::Rings;
use super::{Kicks, Plan, Truth, VcpuTruth};
use crate::event::{self, Runstate};
use crate::markers;

/// ns from BLOCK to the switch away.
const DESCHEDULE: u64 = 3_000;
/// ns a kick takes to reach its wake.
const KICK: u64 = 200;

type Who = (u16, u16);

/// Where a vCPU's programme stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Wants the lock.
    Acquire,
    /// In the queue, spinning until this time.
    Spin(u64),
    /// Decided to sleep: checks the port, then polls.
    Poll,
    /// Has blocked; leaves the pCPU next.
    Deschedule,
    /// Back from a poll.
    Returned,
    /// Owns the lock; lets it go next.
    Release,
}

#[derive(Debug)]
pub(super) struct Vcpu {
    pub(super) who: Who,
    pub(super) state: Runstate,
    pub(super) since: u64,
    /// The pCPU it is on, or was on last.
    pub(super) cpu: u32,
    pub(super) step: Step,
    /// Which of its domain's locks it wants or has.
    lock: u16,
    /// Makes events of a time before a preemption void.
    pub(super) turn: u32,
    /// Time left of what it does, when preempted.
    pub(super) left: u64,
    pub(super) due: u64,
    /// Its port's pending bit.
    pub(super) pending: bool,
    /// Between BLOCK and the end of the wait.
    pub(super) asleep: bool,
    /// When the wake under way is written to the trace.
    pub(super) ready: u64,
    /// Woken by a kick (true) or a timer (false).
    pub(super) woken: Option<bool>,
    /// Waits and waking kicks of this acquisition, and polls and kicks as the guest counts them.
    pub(super) waits: u32,
    pub(super) kicks: u32,
    pub(super) polls: u32,
    pub(super) kicked_waits: u32,
    pub(super) truth: VcpuTruth,
}

#[derive(Debug, Default)]
pub(super) struct Pcpu {
    pub(super) current: Option<usize>,
    pub(super) came: u64,
    pub(super) queue: VecDeque<usize>,
    /// It cannot do anything else before.
    pub(super) busy: u64,
    pub(super) slice: u32,
}

#[derive(Debug, Default)]
struct Lock {
    owner: Option<usize>,
    queue: VecDeque<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// A vCPU's next step, void when its turn has passed.
    Step(usize, u32),
    /// A pCPU that idles takes its next vCPU.
    SwitchIn(u32),
    /// A pCPU's slice ends, void when another one has begun.
    SliceEnd(u32, u32),
    /// A timer wakes a vCPU if it sleeps.
    Timer(usize),
    /// The toolstack pauses and unpauses a vCPU that sleeps.
    Pause,
    Drain,
}

/// ns from the end of all domains to the begin of those that get their numbers.
const BETWEEN_LIVES: u64 = 5_000_000;

pub(super) struct Sim<'p, W> {
    pub(super) plan: &'p Plan,
    rings: Rings<W>,
    events: BinaryHeap<Reverse<(u64, u64, What)>>,
    sequence: u64,
    random: u64,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) pcpus: Vec<Pcpu>,
    locks: Vec<Lock>,
    /// Domains of each number so far, but one.
    reborn: u32,
}

impl<'p, W: Write> Sim<'p, W> {
    pub(super) fn new(plan: &'p Plan, out: W) -> Self {
        let mut sim = Self {
            plan,
            rings: Rings::new(plan, out),
            events: BinaryHeap::new(),
            sequence: 0,
            random: plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            vcpus: Vec::new(),
            pcpus: (0..plan.pcpus).map(|_| Pcpu::default()).collect(),
            locks: Vec::new(),
            reborn: 0,
        };
        sim.populate(0);
        sim
    }

    /// All domains begin, a little after `start`.
    fn populate(&mut self, start: u64) {
        let plan = self.plan;
        self.vcpus.clear();
        self.locks = (0..plan.domains * plan.locks).map(|_| Lock::default()).collect();
        for domain in 1..=plan.domains {
            for vcpu in 0..plan.vcpus {
                let index = self.vcpus.len();
                let cpu = index as u32 % plan.pcpus;
                self.vcpus.push(Vcpu::new((domain, vcpu), cpu));
                self.pcpus[cpu as usize].queue.push_back(index);
            }
        }
        for cpu in 0..plan.pcpus {
            let at = start + 1_000 + u64::from(cpu) * 37;
            self.pcpus[cpu as usize].came = at;
            self.at(at, What::SwitchIn(cpu));
        }
        self.at(start + plan.drain_ns, What::Drain);
        if plan.pause_ns > 0 {
            self.at(start + plan.pause_ns, What::Pause);
        }
    }

    pub(super) fn run(mut self) -> io::Result<Truth> {
        let (mut now, mut end) = (0, self.plan.duration_ns);
        while let Some(Reverse((at, _, what))) = self.events.pop() {
            if at > end && self.reborn < self.plan.rebirths {
                self.reborn += 1;
                let begin = self.end_domains(now.max(end));
                end = begin.saturating_add(self.plan.duration_ns);
                continue;
            }
            if at > end || self.rings.truth.bytes >= self.plan.max_bytes {
                break;
            }
            now = at;
            match what {
                What::Step(vcpu, turn) => self.step(at, vcpu, turn),
                What::SwitchIn(cpu) => self.switch_in(at, cpu),
                What::SliceEnd(cpu, slice) => self.slice_end(at, cpu, slice),
                What::Timer(vcpu) => self.timer(at, vcpu),
                What::Pause => self.pause(at),
                What::Drain => {
                    self.rings.drain(at)?;
                    self.at(at + self.plan.drain_ns, What::Drain);
                }
            }
            if self.rings.wants_draining() {
                self.rings.drain(at)?;
            }
        }
        self.account(now);
        self.rings.finish()
    }

    /// Adds what the vCPUs did to the truth.
    fn account(&mut self, now: u64) {
        for vcpu in &mut self.vcpus {
            vcpu.enter(now, vcpu.state);
            let of = self.rings.truth.vcpus.entry(vcpu.who).or_default();
            of.add(&std::mem::take(&mut vcpu.truth));
        }
    }

    /// All domains end, those with their numbers begin; returns when.
    fn end_domains(&mut self, at: u64) -> u64 {
        // Every pCPU finishes what it does.
        let at = self.pcpus.iter().map(|pcpu| pcpu.busy).fold(at, u64::max) + 1_000;
        self.account(at);
        for cpu in 0..self.plan.pcpus {
            let pcpu = &mut self.pcpus[cpu as usize];
            pcpu.queue.clear();
            if pcpu.current.is_some() {
                self.switch(at, cpu, Runstate::Offline);
            }
            let pcpu = &mut self.pcpus[cpu as usize];
            (pcpu.current, pcpu.busy) = (None, 0);
        }
        self.events.clear();
        let begin = at + BETWEEN_LIVES;
        for domain in 1..=self.plan.domains {
            let mut pen = self.pen(0, at + 10_000 + u64::from(domain) * 1_000);
            pen.domain(event::DOM_REM, domain);
            pen.domain(event::DOMAIN_DESTROY, domain);
        }
        for domain in 1..=self.plan.domains {
            let mut pen = self.pen(0, begin - 1_000_000 + u64::from(domain) * 1_000);
            pen.domain(event::DOM_ADD, domain);
            pen.domain(event::DOMAIN_CREATE, domain);
        }
        self.populate(begin);
        begin
    }

    /// Pauses and unpauses a sleeping vCPU: Xen writes SLEEP and WAKE, and it sleeps on.
    fn pause(&mut self, at: u64) {
        self.at(at + self.plan.pause_ns, What::Pause);
        let count = self.vcpus.len() as u64;
        let index = self.below(count) as usize;
        let cpu = self.below(u64::from(self.plan.pcpus)) as u32;
        let vcpu = &self.vcpus[index];
        if !vcpu.asleep || vcpu.woken.is_some() || self.pcpus[cpu as usize].busy > at {
            return;
        }
        let who = vcpu.who;
        let mut pen = self.pen(cpu, at);
        pen.sched(event::SLEEP, who);
        pen.sched(event::WAKE, who);
        self.pcpus[cpu as usize].busy = pen.ns;
        self.rings.truth.pauses += 1;
    }

    pub(super) fn at(&mut self, ns: u64, what: What) {
        self.sequence += 1;
        self.events.push(Reverse((ns, self.sequence, what)));
    }

    /// A random number below `n` (xorshift64*).
    fn below(&mut self, n: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n.max(1)
    }

    /// A time around `mean`: half to one and a half of it.
    pub(super) fn about(&mut self, mean: u64) -> u64 {
        mean / 2 + self.below(mean + 1)
    }

    pub(super) fn pen(&mut self, cpu: u32, ns: u64) -> Pen<'_, W> {
        let current = self.pcpus[cpu as usize].current.map(|vcpu| self.vcpus[vcpu].who);
        Pen::new(&mut self.rings, self.plan, cpu, ns, current)
    }

    /// The vCPU's pCPU is busy up to `ns`; then the vCPU goes on with `step` after `delay`.
    pub(super) fn goes_on(&mut self, index: usize, ns: u64, step: Step, delay: u64) {
        let vcpu = &mut self.vcpus[index];
        self.pcpus[vcpu.cpu as usize].busy = ns;
        vcpu.step = step;
        vcpu.due = ns + delay;
        let what = What::Step(index, vcpu.turn);
        self.at(ns + delay, what);
    }

    fn step(&mut self, at: u64, index: usize, turn: u32) {
        let vcpu = &self.vcpus[index];
        if vcpu.turn != turn {
            return;
        }
        match vcpu.step {
            Step::Acquire => self.acquire(at, index),
            Step::Spin(until) => self.spin(at, index, until),
            Step::Poll => self.poll(at, index),
            Step::Deschedule => self.deschedule(at, index),
            Step::Returned => self.returned(at, index),
            Step::Release => self.release(at, index),
        }
    }

    /// Whether the vCPU marks what it does.
    fn marks(&self, index: usize) -> bool {
        self.plan.markers && self.vcpus[index].who.1 < self.plan.markers_below
    }

    fn lock_of(&mut self, index: usize) -> &mut Lock {
        let vcpu = &self.vcpus[index];
        let at = (vcpu.who.0 - 1) * self.plan.locks + vcpu.lock;
        &mut self.locks[usize::from(at)]
    }

    fn acquire(&mut self, at: u64, index: usize) {
        let mut at = at;
        if self.plan.locks > 1 {
            self.vcpus[index].lock = self.below(u64::from(self.plan.locks)) as u16;
        }
        for _ in 0..self.plan.noise {
            let cpu = self.vcpus[index].cpu;
            let mut pen = self.pen(cpu, at);
            pen.hypercall(3, None);
            pen.back();
            at = pen.ns;
        }
        let lock = self.lock_of(index);
        if lock.owner.is_none() && lock.queue.is_empty() {
            lock.owner = Some(index);
            self.owns(at, index);
        } else {
            lock.queue.push_back(index);
            let until = at + self.plan.spin_ns;
            self.goes_on(index, at, Step::Spin(until), 200);
        }
    }

    /// Whether the vCPU may take the lock now.
    fn is_next(&mut self, index: usize) -> bool {
        let lock = self.lock_of(index);
        lock.owner.is_none() && lock.queue.front() == Some(&index)
    }

    fn spin(&mut self, at: u64, index: usize, until: u64) {
        if self.is_next(index) {
            let lock = self.lock_of(index);
            lock.queue.pop_front();
            lock.owner = Some(index);
            self.owns(at, index);
        } else if at >= until {
            self.wait(at, index);
        } else {
            // Look again soon; a real spin looks all the time.
            let pause = (until - at).min(1_000);
            self.goes_on(index, at, Step::Spin(until), pause);
        }
    }

    /// Goes to sleep, unless its port is pending already.
    fn wait(&mut self, at: u64, index: usize) {
        let vcpu = &mut self.vcpus[index];
        let (cpu, who, lock) = (vcpu.cpu, vcpu.who, vcpu.lock_address());
        let pending = std::mem::take(&mut vcpu.pending);
        let mut ns = at;
        if self.marks(index) {
            let mut pen = self.pen(cpu, at);
            pen.mark(markers::WAIT_BEGIN, &[u32::from(who.1), lock, 0]);
            ns = pen.ns;
        }
        if pending {
            self.ends_wait(ns, index, true);
        } else {
            self.goes_on(index, ns, Step::Poll, 300);
        }
    }

    fn poll(&mut self, at: u64, index: usize) {
        let vcpu = &mut self.vcpus[index];
        vcpu.polls += 1;
        let (cpu, who, pending) = (vcpu.cpu, vcpu.who, vcpu.pending);
        let mut pen = self.pen(cpu, at);
        pen.hypercall(event::HYPERCALL_SCHED_OP, Some(event::SCHEDOP_POLL));
        if pending {
            pen.back();
            let ns = pen.ns;
            let vcpu = &mut self.vcpus[index];
            vcpu.truth.polls_immediate += 1;
            vcpu.pending = false;
            self.ends_wait(ns, index, true);
            return;
        }
        pen.sched(event::BLOCK, who);
        let ns = pen.ns;
        let vcpu = &mut self.vcpus[index];
        vcpu.asleep = true;
        vcpu.woken = None;
        self.goes_on(index, ns, Step::Deschedule, DESCHEDULE);
        let every = self.plan.timer_every;
        if every > 0 && self.below(u64::from(every)) == 0 {
            let after = self.about(50_000);
            self.at(ns + after, What::Timer(index));
        }
    }

    fn deschedule(&mut self, at: u64, index: usize) {
        let vcpu = &mut self.vcpus[index];
        if vcpu.woken.is_some() && vcpu.ready > at {
            let again = vcpu.ready;
            let what = What::Step(index, vcpu.turn);
            self.at(again, what);
        } else if vcpu.woken.is_some() {
            let (cpu, who) = (vcpu.cpu, vcpu.who);
            vcpu.truth.polls_aborted += 1;
            let mut pen = self.pen(cpu, at);
            pen.continues(who);
            pen.back();
            let ns = pen.ns;
            self.goes_on(index, ns, Step::Returned, 0);
        } else {
            vcpu.turn += 1;
            vcpu.step = Step::Returned;
            vcpu.left = 200;
            let cpu = vcpu.cpu;
            self.switch(at, cpu, Runstate::Blocked);
        }
    }

    /// A wait is over, by a sleep or without one.
    fn returned(&mut self, at: u64, index: usize) {
        let vcpu = &mut self.vcpus[index];
        vcpu.asleep = false;
        vcpu.waits += 1;
        let kicked = vcpu.woken.take() == Some(true);
        if kicked {
            vcpu.kicks += 1;
            vcpu.truth.waits_kicked += 1;
        } else {
            vcpu.truth.waits_other += 1;
        }
        vcpu.pending = false;
        self.ends_wait(at, index, kicked);
    }

    fn ends_wait(&mut self, at: u64, index: usize, kicked: bool) {
        let vcpu = &mut self.vcpus[index];
        vcpu.kicked_waits += u32::from(kicked);
        let (cpu, who, lock) = (vcpu.cpu, vcpu.who, vcpu.lock_address());
        let mut ns = at;
        if self.marks(index) {
            let outcome = if kicked { markers::outcome::KICKED } else { markers::outcome::EARLY };
            let mut pen = self.pen(cpu, at);
            pen.mark(markers::WAIT_END, &[u32::from(who.1), lock, outcome]);
            ns = pen.ns;
        }
        let until = ns + self.plan.spin_ns;
        self.goes_on(index, ns, Step::Spin(until), 200);
    }

    fn owns(&mut self, at: u64, index: usize) {
        let vcpu = &mut self.vcpus[index];
        let (cpu, who, lock) = (vcpu.cpu, vcpu.who, vcpu.lock_address());
        let (waits, kicks) = (std::mem::take(&mut vcpu.waits), std::mem::take(&mut vcpu.kicks));
        let (polls, kicked) =
            (std::mem::take(&mut vcpu.polls), std::mem::take(&mut vcpu.kicked_waits));
        if waits > 0 {
            let (row, column) = (waits.min(3) as usize, kicks.min(3) as usize);
            vcpu.truth.acquisitions[row][column] += 1;
            let of_lock = self.rings.truth.locks.entry((who.0, lock)).or_default();
            of_lock[row][column] += 1;
        }
        let mut ns = at;
        if self.marks(index) && polls > 0 {
            let mut pen = self.pen(cpu, at);
            let words = [u32::from(who.1), lock, polls, kicked];
            pen.mark(markers::ACQUIRED_AFTER_BLOCK, &words);
            ns = pen.ns;
        }
        if self.plan.kicks == Kicks::Twice {
            ns = self.kick_head(ns, index);
        }
        let critical = self.about(self.plan.critical_ns);
        self.goes_on(index, ns, Step::Release, critical);
    }

    fn release(&mut self, at: u64, index: usize) {
        self.lock_of(index).owner = None;
        let ns = self.kick_head(at, index);
        let outside = self.about(self.plan.outside_ns);
        self.goes_on(index, ns, Step::Acquire, outside);
    }

    /// Kicks the head of the queue if it sleeps; returns when that is done.
    fn kick_head(&mut self, at: u64, by: usize) -> u64 {
        let Some(&target) = self.lock_of(by).queue.front() else { return at };
        if !self.vcpus[target].asleep && self.vcpus[target].step != Step::Poll {
            return at;
        }
        let (cpu, who) = (self.vcpus[by].cpu, self.vcpus[by].who);
        let to = self.vcpus[target].who;
        let mut ns = at;
        if self.marks(by) {
            let mut pen = self.pen(cpu, at);
            pen.mark(markers::KICK, &[u32::from(who.1), u32::from(to.1)]);
            ns = pen.ns;
        }
        self.vcpus[by].truth.evtchn_ops += 1;
        let mut pen = self.pen(cpu, ns);
        pen.hypercall(event::HYPERCALL_EVENT_CHANNEL_OP, None);
        ns = pen.ns + KICK;
        let vcpu = &mut self.vcpus[target];
        vcpu.pending = true;
        if vcpu.asleep && vcpu.woken.is_none() {
            self.vcpus[by].truth.waking_kicks += 1;
            ns = self.wake(ns, target, cpu, true);
        }
        let mut pen = self.pen(cpu, ns);
        pen.back();
        // Nothing ends a PV hypercall in the trace but the next entry.
        pen.hypercall(3, None);
        pen.back();
        pen.ns
    }
}

impl Vcpu {
    fn new(who: Who, cpu: u32) -> Self {
        Self {
            who,
            state: Runstate::Runnable,
            since: 0,
            cpu,
            step: Step::Acquire,
            lock: 0,
            turn: 0,
            left: 1_000,
            due: 0,
            pending: false,
            asleep: false,
            ready: 0,
            woken: None,
            waits: 0,
            kicks: 0,
            polls: 0,
            kicked_waits: 0,
            truth: VcpuTruth::default(),
        }
    }

    /// The address of its lock, as the marks tell it.
    fn lock_address(&self) -> u32 {
        0x10_0000 + u32::from(self.who.0) * 0x1_0000 + u32::from(self.lock) * 64
    }

    /// Accounts the state that ends and enters `state`.
    pub(super) fn enter(&mut self, ns: u64, state: Runstate) {
        let time = ns.saturating_sub(self.since);
        match self.state {
            // Before its first run the trace does not know it.
            Runstate::Runnable if self.since == 0 => {}
            Runstate::Running => self.truth.running_ns += time,
            Runstate::Runnable => self.truth.runnable_ns += time,
            Runstate::Blocked | Runstate::Offline => self.truth.blocked_ns += time,
        }
        (self.state, self.since) = (state, ns);
    }
}
