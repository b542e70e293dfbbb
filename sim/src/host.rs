//! The host's side: pCPUs, time slices, sleep and wake-up, and the order of all events.
//!
//! Owns virtual time and who runs. Knows vCPUs by number and nothing of what they do; never runs
//! their code, that is [`run`](crate::run).
//!
//! Two events of the same moment happen in the order in which they were decided, so nothing depends
//! on how a container orders equals.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

use evtchn::Port;

use crate::config::{Config, Fault, WakeOrder};
use crate::dist::{NEVER, Random};
use crate::guest::{Event, Guest, port_of, vcpu_of};
use crate::tally::Switches;

/// What a vCPU does, to the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// On this pCPU.
    Running(usize),
    /// In the run queue.
    Ready,
    /// In a poll since this moment.
    Polling(u64),
    /// A kick has ended its poll; the wake-up is under way.
    Waking,
    /// It has nothing to do.
    Idle,
    Done,
}

struct Vcpu {
    task: Task,
    /// What it still has to do before its code goes on, in nanoseconds on a pCPU.
    owed: u64,
}

struct Pcpu {
    vcpu: usize,
    /// When the vCPU's code goes on, if nothing comes between.
    goes_on: u64,
    slice_begin: u64,
    slice_end: u64,
    /// When something else takes the pCPU away.
    taken_at: u64,
    /// Something else has it, and will give it back at this moment, after so many nanoseconds.
    taken: Option<(u64, u64)>,
    /// Of several events for this pCPU, only the one with this number counts.
    ticket: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// Something happens on this pCPU, if the ticket is still the pCPU's.
    Pcpu(usize, u64),
    /// This vCPU can run from now on.
    Wakes(usize),
    /// An upcall ends the poll of this vCPU, if it sleeps since this moment.
    Upcall(usize, u64),
}

/// What happens next.
#[derive(Debug)]
pub(crate) enum Next {
    /// The code of this vCPU goes on.
    Runs(usize),
    /// Nothing, until the limit.
    Limit,
    /// Nothing, ever again.
    Nothing,
}

pub(crate) struct Host {
    now: u64,
    /// (when, in which order it was decided, what).
    due: BinaryHeap<Reverse<(u64, u64, Due)>>,
    decided: u64,
    pcpus: Vec<Option<Pcpu>>,
    idle: BTreeSet<usize>,
    /// pCPUs whose slice may be cut short, by the moment it began.
    preemptible: BTreeSet<(u64, usize)>,
    ready: VecDeque<usize>,
    vcpus: Vec<Vcpu>,
    random: Random,
    guest: &'static Guest,
    config: Config,
    pub(crate) switches: Switches,
}

impl Host {
    pub(crate) fn new(config: &Config, guest: &'static Guest, random: Random) -> Self {
        let mut host = Self {
            now: 0,
            due: BinaryHeap::new(),
            decided: 0,
            pcpus: (0..config.pcpus).map(|_| None).collect(),
            idle: (0..config.pcpus).collect(),
            preemptible: BTreeSet::new(),
            ready: VecDeque::new(),
            vcpus: (0..config.vcpus).map(|_| Vcpu { task: Task::Ready, owed: 0 }).collect(),
            random,
            guest,
            config: config.clone(),
            switches: Switches::default(),
        };
        for vcpu in 0..config.vcpus {
            host.make_ready(vcpu, WakeOrder::Back);
        }
        host
    }

    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    pub(crate) fn task(&self, vcpu: usize) -> Task {
        self.vcpus[vcpu].task
    }

    /// Lets time pass until a vCPU's code goes on, but not beyond `limit`.
    pub(crate) fn next(&mut self, limit: u64) -> Next {
        while let Some(&Reverse((at, _, due))) = self.due.peek() {
            if at > limit {
                self.now = limit;
                return Next::Limit;
            }
            self.due.pop();
            match due {
                Due::Wakes(vcpu) => {
                    self.now = at;
                    if self.vcpus[vcpu].task == Task::Waking {
                        self.guest.note(at, vcpu, Event::Wakes);
                    }
                    self.make_ready(vcpu, self.config.wake_order);
                }
                Due::Upcall(vcpu, since) => {
                    if self.vcpus[vcpu].task == Task::Polling(since) {
                        self.now = at;
                        self.make_ready(vcpu, self.config.wake_order);
                    }
                }
                Due::Pcpu(number, ticket) => {
                    let valid = |pcpu: &&mut Pcpu| pcpu.ticket == ticket;
                    let Some(pcpu) = self.pcpus[number].as_mut().filter(valid) else { continue };
                    self.now = at;
                    if let Some((back, length)) = pcpu.taken
                        && back == at
                    {
                        self.give_back(number, length);
                    } else if pcpu.taken_at == at {
                        self.take_away(number);
                    } else if pcpu.goes_on == at {
                        return Next::Runs(pcpu.vcpu);
                    } else {
                        self.end_slice(number);
                    }
                }
            }
        }
        Next::Nothing
    }

    /// Up to when the running `vcpu` is alone: nothing else happens before.
    pub(crate) fn horizon(&self, vcpu: usize) -> u64 {
        let pcpu = self.pcpu_of(vcpu);
        let own = pcpu.slice_end.min(pcpu.taken_at);
        self.due.peek().map_or(own, |Reverse((at, ..))| own.min(*at))
    }

    // --- What the vCPU that runs asks for ------------------------------------------------------

    /// Its code goes on at `at`.
    pub(crate) fn go_on(&mut self, vcpu: usize, at: u64) {
        let number = self.number_of(vcpu);
        self.pcpu_mut(number).goes_on = at;
        self.arrange(number);
    }

    /// `SCHEDOP_poll` at `at`: sleeps, unless an event is latched.
    pub(crate) fn poll(&mut self, vcpu: usize, port: Port, at: u64) {
        if self.guest.is_latched(port) {
            return self.go_on(vcpu, at);
        }
        self.guest.slept[vcpu].update(|slept| slept + 1);
        self.guest.note(at, vcpu, Event::Sleeps);
        let upcall_at = self.guest.upcall_at[vcpu].get();
        // Only every other time: an upcall that ends each poll in the end would make good for a
        // kick that was lost.
        if upcall_at < NEVER && self.random.one_in(2) {
            self.decide(at.max(upcall_at), Due::Upcall(vcpu, at));
        }
        self.leave_pcpu(vcpu, at, Task::Polling(at));
    }

    /// `EVTCHNOP_send` by `vcpu` at `at`.
    pub(crate) fn send(&mut self, vcpu: usize, port: Port, at: u64) {
        let target = vcpu_of(port);
        let polling = matches!(self.vcpus[target].task, Task::Polling(_));
        let lost = match self.config.fault {
            Fault::None | Fault::NestedClears => false,
            Fault::LoseKick(one_in) => self.random.one_in(one_in),
            Fault::NoLatch => !polling,
        };
        let event = if lost { Event::LosesKick(target) } else { Event::Kicks(target) };
        self.guest.note(at, vcpu, event);
        if !lost && self.guest.latch(port) && polling {
            self.guest.woken[target].update(|woken| woken + 1);
            self.vcpus[target].task = Task::Waking;
            let latency = self.config.wake.sample(&mut self.random);
            self.decide(at + latency, Due::Wakes(target));
        }
    }

    /// Something else takes its pCPU away at `at`, in the middle of what it does.
    pub(crate) fn preempt(&mut self, vcpu: usize, at: u64) {
        let number = self.number_of(vcpu);
        let pcpu = self.pcpu_mut(number);
        pcpu.goes_on = at;
        pcpu.taken_at = at;
        self.arrange(number);
    }

    /// It has nothing to do from `at` on, for so many nanoseconds.
    pub(crate) fn idle(&mut self, vcpu: usize, nanoseconds: u64, at: u64) {
        self.decide(at + nanoseconds, Due::Wakes(vcpu));
        self.leave_pcpu(vcpu, at, Task::Idle);
    }

    /// It is done at `at`.
    pub(crate) fn finish(&mut self, vcpu: usize, at: u64) {
        self.guest.note(at, vcpu, Event::Done);
        self.leave_pcpu(vcpu, at, Task::Done);
    }

    // --- pCPUs ---------------------------------------------------------------------------------

    fn number_of(&self, vcpu: usize) -> usize {
        match self.vcpus[vcpu].task {
            Task::Running(number) => number,
            task => unreachable!("vCPU {vcpu} is {task:?} and its code runs"),
        }
    }

    fn pcpu_of(&self, vcpu: usize) -> &Pcpu {
        self.pcpus[self.number_of(vcpu)].as_ref().expect("its vCPU runs there")
    }

    fn pcpu_mut(&mut self, number: usize) -> &mut Pcpu {
        self.pcpus[number].as_mut().expect("a vCPU is there")
    }

    fn decide(&mut self, at: u64, due: Due) {
        self.decided += 1;
        self.due.push(Reverse((at, self.decided, due)));
    }

    /// Decides what happens next on a pCPU.
    fn arrange(&mut self, number: usize) {
        self.decided += 1;
        let ticket = self.decided;
        let now = self.now;
        let pcpu = self.pcpu_mut(number);
        pcpu.ticket = ticket;
        let at = match pcpu.taken {
            Some((back, _)) => back,
            None => pcpu.goes_on.min(pcpu.slice_end).min(pcpu.taken_at).max(now),
        };
        self.due.push(Reverse((at, ticket, Due::Pcpu(number, ticket))));
    }

    /// Puts a vCPU that is in nobody's hands on an idle pCPU, or into the run queue.
    fn make_ready(&mut self, vcpu: usize, order: WakeOrder) {
        self.vcpus[vcpu].task = Task::Ready;
        if let Some(number) = self.idle.pop_first() {
            return self.dispatch(number, vcpu);
        }
        match order {
            WakeOrder::Back => self.ready.push_back(vcpu),
            WakeOrder::Front => self.ready.push_front(vcpu),
            WakeOrder::Preempt => {
                self.ready.push_front(vcpu);
                // Its end comes at once, or when it has run for the rate limit.
                if let Some((begin, number)) = self.preemptible.pop_first() {
                    let end = self.now.max(begin + self.config.ratelimit.0);
                    let pcpu = self.pcpu_mut(number);
                    pcpu.slice_end = pcpu.slice_end.min(end);
                    self.arrange(number);
                }
            }
        }
    }

    fn dispatch(&mut self, number: usize, vcpu: usize) {
        let slice = self.config.slice.sample(&mut self.random).max(1);
        let until_taken = self.config.preempt_every.sample(&mut self.random).max(1);
        self.vcpus[vcpu].task = Task::Running(number);
        self.pcpus[number] = Some(Pcpu {
            vcpu,
            goes_on: self.now + std::mem::take(&mut self.vcpus[vcpu].owed),
            slice_begin: self.now,
            slice_end: self.now + slice,
            taken_at: self.now + until_taken,
            taken: None,
            ticket: 0,
        });
        self.preemptible.insert((self.now, number));
        self.arrange(number);
    }

    fn end_slice(&mut self, number: usize) {
        let (now, slice) = (self.now, self.config.slice.sample(&mut self.random).max(1));
        let pcpu = self.pcpu_mut(number);
        let begin = std::mem::replace(&mut pcpu.slice_begin, now);
        pcpu.slice_end = now + slice;
        let (vcpu, owed) = (pcpu.vcpu, pcpu.goes_on - now);
        self.preemptible.remove(&(begin, number));
        if self.ready.is_empty() {
            self.preemptible.insert((now, number));
            return self.arrange(number);
        }
        self.switches.preempted += 1;
        self.guest.note(now, vcpu, Event::Preempted);
        self.vcpus[vcpu].owed = owed;
        self.vcpus[vcpu].task = Task::Ready;
        self.ready.push_back(vcpu);
        let next = self.ready.pop_front().expect("somebody is ready");
        self.dispatch(number, next);
    }

    fn take_away(&mut self, number: usize) {
        let (now, length) = (self.now, self.config.preempt_for.sample(&mut self.random));
        let pcpu = self.pcpu_mut(number);
        pcpu.taken = Some((now + length, length));
        let (vcpu, begin) = (pcpu.vcpu, pcpu.slice_begin);
        self.preemptible.remove(&(begin, number));
        self.switches.taken += 1;
        self.guest.note(now, vcpu, Event::Preempted);
        self.arrange(number);
    }

    fn give_back(&mut self, number: usize, length: u64) {
        let (now, again) = (self.now, self.config.preempt_every.sample(&mut self.random).max(1));
        let pcpu = self.pcpu_mut(number);
        pcpu.taken = None;
        pcpu.taken_at = now + again;
        pcpu.goes_on += length;
        pcpu.slice_end += length;
        let (vcpu, begin) = (pcpu.vcpu, pcpu.slice_begin);
        self.preemptible.insert((begin, number));
        self.guest.note(now, vcpu, Event::GoesOn);
        self.arrange(number);
    }

    fn leave_pcpu(&mut self, vcpu: usize, at: u64, task: Task) {
        // Nothing else happens between the last event and `at`: that is what the horizon is for.
        self.now = self.now.max(at);
        let number = self.number_of(vcpu);
        let pcpu = self.pcpus[number].take().expect("its vCPU runs there");
        self.preemptible.remove(&(pcpu.slice_begin, number));
        self.vcpus[vcpu].task = task;
        match self.ready.pop_front() {
            Some(next) => self.dispatch(number, next),
            None => drop(self.idle.insert(number)),
        }
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Host at {} ns", self.now)
    }
}

/// What a vCPU does, for a person who looks for a hang.
pub(crate) fn describe(host: &Host, guest: &Guest, vcpu: usize) -> String {
    let latched = if guest.is_latched(port_of(vcpu)) { ", a kick is latched" } else { "" };
    let wants = match guest.wants[vcpu].get() {
        Some(lock) => format!("waits for lock {lock}"),
        None => "waits for no lock".into(),
    };
    let task = match host.task(vcpu) {
        Task::Running(pcpu) => format!("runs on pCPU {pcpu}"),
        Task::Ready => "is ready to run".into(),
        Task::Polling(since) => format!("sleeps in a poll since {since} ns"),
        Task::Waking => "wakes up".into(),
        Task::Idle => "is idle".into(),
        Task::Done => "is done".into(),
    };
    format!("vCPU {vcpu} {wants} and {task}{latched}")
}
