//! Records to meaning: which polls slept, which operation woke them.
//!
//! Owns the rules that join records of different vCPUs. The main one: a WAKE of a vCPU that polls,
//! written on a pCPU whose current vCPU, of the same domain, has an event channel operation open
//! there, is that operation's effect: Xen wakes a poller inside the sender's hypercall, on the
//! sender's pCPU. An operation is open from its hypercall record to the next entry into Xen, exit
//! to the guest, or change of the sender's runstate.

mod acquisition;
mod clock;
mod gaps;
mod observe;
mod skew;
mod tell;
mod vcpu;

use std::io::Read;

use rustc_hash::FxHashMap;

use crate::error::{Error, ErrorKind};
use crate::event::{self, Runstate};
use crate::markers;
use crate::reader::{self, ReadOptions, Record, Visit};
use crate::summary::{Classes, DomainKind, Summary};

use clock::Calibration;
use gaps::Gaps;
use skew::Skew;
use vcpu::{Kick, Poll, Vcpu};

pub use clock::calibrate;
pub use observe::{Interval, KickStory, Observe, VcpuId, WaitStory};

/// More vCPUs than this is a damaged file: each costs memory.
pub const MAX_VCPUS: usize = 4096;

/// How to read and analyse a trace.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How to read it.
    pub read: ReadOptions,
    /// TSC ticks a second; `None` learns it from the trace.
    pub cpu_hz: Option<f64>,
    /// Only these domains; empty for all.
    pub domains: Vec<u16>,
}

/// Reads a trace to its end and tells what the vCPUs in it did.
///
/// # Errors
/// Damaged or unreadable input, with the byte it was seen at. A file that is merely cut is read up
/// to the cut, and [`Reading::truncated`](crate::reader::Reading::truncated) says where, unless
/// [`ReadOptions::strict`] is set.
///
/// # Example
/// ```no_run
/// let file = std::fs::File::open("trace.bin")?;
/// let summary = kicktrace::summarise(file, &kicktrace::Options::default())?;
/// println!("{} records lost", summary.reading.lost_records());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn summarise<R: Read + Send>(input: R, options: &Options) -> Result<Summary, Error> {
    let mut analyser = Analyser::new(options);
    let reading = reader::read(input, &options.read, &mut analyser)?;
    Ok(analyser.finish(reading).0)
}

/// Who is on a pCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Current {
    #[default]
    Unknown,
    Idle,
    /// An index into [`Analyser::vcpus`].
    Vcpu(u32),
}

/// What the current vCPU of a pCPU is doing in Xen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Op {
    /// Nothing that concerns us, or it is in the guest.
    #[default]
    None,
    /// `event_channel_op`, begun at `tsc`.
    Evtchn { tsc: u64, woke: bool, target: Option<u32> },
    /// `sched_op`: a poll.
    Poll,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pcpu {
    current: Current,
    op: Op,
    /// The last exit of the current vCPU: the time of the records without one that follow.
    exit_tsc: u64,
}

/// Follows all vCPUs through a trace. A [`Visit`]or: give it to [`reader::read`], then ask for the
/// summary with [`finish`](Analyser::finish).
#[derive(Debug)]
pub struct Analyser<O = ()> {
    options: Options,
    observer: O,
    started: bool,
    skew: Skew,
    pcpus: Vec<Pcpu>,
    vcpus: Vec<Vcpu>,
    /// `domain << 16 | vcpu` to index.
    index: FxHashMap<u32, u32>,
    /// Direct-mapped in front of `index`.
    cache: Vec<(u32, u32)>,
    gaps: Gaps,
    calibration: Calibration,
    classes: Classes,
    bad_markers: u64,
    shared_cores: u64,
}

/// No vCPU of interest: idle, or of a domain that was not asked for.
const NOBODY: u32 = u32::MAX;
const CACHE: usize = 1024;

impl Analyser {
    /// An analyser that has seen nothing and tells nobody as it goes.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        Self::observed(options, ())
    }
}

impl<O: Observe> Analyser<O> {
    /// An analyser that tells `observer` as it goes.
    #[must_use]
    pub fn observed(options: &Options, observer: O) -> Self {
        Self {
            options: options.clone(),
            observer,
            started: false,
            skew: Skew::default(),
            pcpus: Vec::new(),
            vcpus: Vec::new(),
            index: FxHashMap::default(),
            cache: vec![(u32::MAX, NOBODY); CACHE],
            gaps: Gaps::default(),
            calibration: Calibration::default(),
            classes: Classes::default(),
            bad_markers: 0,
            shared_cores: 0,
        }
    }

    /// The index of a vCPU given as Xen packs it, `domain << 16 | vcpu`; [`NOBODY`] for idle.
    #[inline]
    fn vcpu(&mut self, key: u32, record: &Record<'_>) -> Result<u32, Error> {
        let slot = (key ^ key >> 12) as usize % CACHE;
        let (cached, index) = self.cache[slot];
        if cached == key && key != u32::MAX {
            return Ok(index);
        }
        self.find_vcpu(key, slot, record)
    }

    #[cold]
    fn find_vcpu(&mut self, key: u32, slot: usize, record: &Record<'_>) -> Result<u32, Error> {
        let domain = key >> 16;
        let wanted =
            self.options.domains.is_empty() || self.options.domains.contains(&(domain as u16));
        if domain == event::DOMID_IDLE || !wanted {
            self.cache[slot] = (key, NOBODY);
            return Ok(NOBODY);
        }
        let next = self.vcpus.len();
        let index = *self.index.entry(key).or_insert(next as u32);
        if index as usize == next {
            if next >= MAX_VCPUS {
                let kind = ErrorKind::TooManyVcpus { offset: record.offset, limit: MAX_VCPUS };
                return Err(kind.into());
            }
            self.vcpus.push(Vcpu::new(domain as u16, key as u16));
        }
        self.cache[slot] = (key, index);
        Ok(index)
    }

    /// The vCPU named by two words, domain and vCPU.
    #[inline]
    fn named(&mut self, record: &Record<'_>) -> Result<u32, Error> {
        match *record.words {
            [domain, vcpu, ..] if domain | vcpu <= 0xffff => self.vcpu(domain << 16 | vcpu, record),
            [domain, vcpu, ..] => {
                Err(ErrorKind::AbsurdVcpu { offset: record.offset, domain, vcpu }.into())
            }
            _ => Err(short(record, 2)),
        }
    }

    #[inline]
    fn pcpu(&mut self, cpu: u32) -> &mut Pcpu {
        let cpu = cpu as usize;
        if cpu >= self.pcpus.len() {
            self.pcpus.resize(cpu + 1, Pcpu::default());
        }
        &mut self.pcpus[cpu]
    }

    /// The current vCPU of a pCPU, if it is known and of interest.
    #[inline]
    fn current(&mut self, cpu: u32) -> Option<u32> {
        match self.pcpu(cpu).current {
            Current::Vcpu(index) if index != NOBODY => Some(index),
            _ => None,
        }
    }

    /// What the current vCPU did in Xen is over.
    #[inline]
    fn close(&mut self, cpu: u32) {
        let pcpu = self.pcpu(cpu);
        let op = std::mem::take(&mut pcpu.op);
        let Current::Vcpu(index) = pcpu.current else { return };
        if op == Op::None || index == NOBODY {
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

    fn runstate(&mut self, record: &Record<'_>, old: Runstate, new: Runstate) -> Result<(), Error> {
        let &[key, ..] = record.words else { return Err(short(record, 1)) };
        let index = self.vcpu(key, record)?;
        let idle = key >> 16 == event::DOMID_IDLE;
        let here = if idle { Current::Idle } else { Current::Vcpu(index) };
        if new == Runstate::Running {
            self.close(record.cpu);
            // With core scheduling one pCPU writes its siblings' changes too.
            let foreign = idle && key & 0xffff != record.cpu;
            self.shared_cores += u64::from(foreign);
            self.pcpu(record.cpu).current = here;
        } else if old == Runstate::Running {
            // The hypercall goes on after the switch back, but its effects on others are done.
            let pcpu = self.pcpu(record.cpu);
            if pcpu.current == here {
                if matches!(pcpu.op, Op::Evtchn { .. }) {
                    self.close(record.cpu);
                }
                let pcpu = self.pcpu(record.cpu);
                (pcpu.op, pcpu.current) = (Op::None, Current::Unknown);
            }
        }
        if index == NOBODY {
            return Ok(());
        }
        let vcpu = &mut self.vcpus[index as usize];
        let now = vcpu.compare_clocks(record.cpu, record.tsc, (old, new), &mut self.skew);
        let ended = vcpu.change(record.tsc, Some(old), new, &self.gaps);
        vcpu.state = Some(now);
        tell_interval(&mut self.observer, vcpu, ended, record.tsc);
        match new {
            Runstate::Running => {
                vcpu.cpu = record.cpu;
                self.runs(index, record.tsc);
            }
            Runstate::Blocked => vcpu.descheduled(record.tsc),
            Runstate::Runnable | Runstate::Offline => {}
        }
        Ok(())
    }

    fn continue_running(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let &[key, ..] = record.words else { return Err(short(record, 1)) };
        let index = self.vcpu(key, record)?;
        let idle = key >> 16 == event::DOMID_IDLE;
        let here = if idle { Current::Idle } else { Current::Vcpu(index) };
        if self.pcpu(record.cpu).current != here {
            self.close(record.cpu);
            self.pcpu(record.cpu).current = here;
        }
        if index != NOBODY {
            let vcpu = &mut self.vcpus[index as usize];
            if vcpu.state.is_none() {
                vcpu.change(record.tsc, None, Runstate::Running, &self.gaps);
                vcpu.cpu = record.cpu;
            }
            self.runs(index, record.tsc);
        }
        Ok(())
    }

    /// A vCPU is on its pCPU: its wait, if any, is over.
    #[inline]
    fn runs(&mut self, index: u32, tsc: u64) {
        let vcpu = &mut self.vcpus[index as usize];
        if let Some(wait) = vcpu.runs(tsc, &self.gaps) {
            self.waited(index, tsc, &wait);
        }
    }

    fn waited(&mut self, index: u32, tsc: u64, wait: &vcpu::Wait) {
        let vcpu = &mut self.vcpus[index as usize];
        let by = wait.kick.map(|kick| kick.by);
        vcpu.episode.wait(by, wait.tainted);
        let lock = vcpu.marked.as_mut().and_then(|marked| marked.wait(by, wait.tainted));
        if wait.tainted {
            return;
        }
        let mut story = WaitStory {
            vcpu: vcpu.name(),
            lock,
            blocked: wait.block_tsc,
            woken: wait.wake_tsc,
            running: tsc,
            cpu: vcpu.cpu,
            kick: None,
            kicker_stolen: 0,
        };
        if let Some(Kick { by, cpu, tsc }) = wait.kick {
            let kicker = &self.vcpus[by as usize];
            let stolen = kicker.preempted_between(wait.block_tsc, tsc);
            story.kick = Some(KickStory { by: kicker.name(), cpu, tsc });
            story.kicker_stolen = stolen;
            let vcpu = &mut self.vcpus[index as usize];
            vcpu.raw.kicker_preempted += u64::from(stolen > 0);
            vcpu.times.kicker_stolen = vcpu.times.kicker_stolen.saturating_add(stolen);
        }
        self.observer.wait(&story);
    }

    fn wake(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let target = self.named(record)?;
        if target == NOBODY {
            return Ok(());
        }
        let waker = self.current(record.cpu);
        let (domain, id) = {
            let vcpu = &self.vcpus[target as usize];
            (vcpu.domain, vcpu.id)
        };
        let mut kick = None;
        if let (Some(waker), Op::Evtchn { tsc, woke: false, target: announced }) =
            (waker, self.pcpu(record.cpu).op)
            && self.vcpus[waker as usize].domain == domain
            // A marked kick wakes its target or nobody.
            && announced.is_none_or(|announced| announced == u32::from(id))
        {
            self.pcpu(record.cpu).op = Op::Evtchn { tsc, woke: true, target: announced };
            kick = Some(Kick { by: waker, cpu: record.cpu, tsc });
        }
        let ended_poll = self.vcpus[target as usize].wake(record.tsc, kick);
        if let Some(kick) = kick {
            let raw = &mut self.vcpus[kick.by as usize].raw;
            if ended_poll {
                raw.waking_kicks += 1;
            } else {
                raw.idle_kicks += 1;
            }
        }
        Ok(())
    }

    fn block(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let index = self.named(record)?;
        if index != NOBODY {
            self.vcpus[index as usize].block(record.tsc);
        }
        Ok(())
    }

    fn yields(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let index = self.named(record)?;
        if index != NOBODY {
            let vcpu = &mut self.vcpus[index as usize];
            vcpu.raw.yields += 1;
            // A PVH guest's sched_op without its command looked like a poll.
            if vcpu.poll == Poll::Entered {
                vcpu.poll = Poll::None;
                vcpu.raw.polls -= 1;
                self.pcpu(record.cpu).op = Op::None;
            }
        }
        Ok(())
    }

    fn pv_hypercall(&mut self, record: &Record<'_>) {
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

    fn evtchn_op(&mut self, index: u32, cpu: u32, tsc: u64) {
        let vcpu = &mut self.vcpus[index as usize];
        vcpu.evtchn_op();
        let target = vcpu.announced.take();
        self.pcpu(cpu).op = Op::Evtchn { tsc, woke: false, target };
    }

    fn poll(&mut self, index: u32, cpu: u32, tsc: u64) {
        self.vcpus[index as usize].poll_begins(tsc, &self.gaps);
        self.pcpu(cpu).op = Op::Poll;
    }

    fn hvm(&mut self, record: &Record<'_>) {
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
    fn marker(&mut self, record: &Record<'_>) {
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
                vcpu.announced = Some(target);
            }
            (markers::ACQUIRED_AFTER_BLOCK, &[_, lock, waits, kicked, ..]) => {
                vcpu.marked.get_or_insert_default().acquired(lock, waits, kicked);
            }
            _ => self.bad_markers += 1,
        }
    }

    #[cold]
    fn lost(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let Some(lost) = record.lost() else { return Ok(()) };
        let start = lost.first_tsc.min(record.tsc);
        self.gaps.add(start, record.tsc);
        self.calibration.forget(record.cpu);
        let cpu = record.cpu;
        self.pcpu(cpu).op = Op::None;
        for vcpu in &mut self.vcpus {
            let elsewhere = vcpu.state == Some(Runstate::Running) && vcpu.cpu != cpu;
            if !elsewhere {
                vcpu.taint_episodes();
            }
            if vcpu.state == Some(Runstate::Running) && vcpu.cpu == cpu {
                let ended = vcpu.lose(start, &self.gaps);
                tell_interval(&mut self.observer, vcpu, ended, start);
            }
        }
        let key = u32::from(lost.domain) << 16 | u32::from(lost.vcpu);
        let current = if u32::from(lost.domain) == event::DOMID_IDLE {
            Current::Idle
        } else {
            Current::Vcpu(self.vcpu(key, record)?)
        };
        self.pcpu(cpu).current = current;
        Ok(())
    }

    /// What was found, with the figures of the reading, and the observer.
    #[must_use]
    pub fn finish(mut self, reading: reader::Reading) -> (Summary, O) {
        let last = reading.last_tsc;
        for vcpu in &mut self.vcpus {
            let ended = vcpu.finish(last, &self.gaps);
            tell_interval(&mut self.observer, vcpu, ended, last);
        }
        tell::summary(self, reading)
    }
}

fn tell_interval(
    observer: &mut impl Observe,
    vcpu: &Vcpu,
    ended: Option<(Runstate, u64)>,
    to: u64,
) {
    if let Some((state, from)) = ended {
        observer.interval(&Interval { vcpu: vcpu.name(), state, cpu: vcpu.cpu, from, to });
    }
}

#[cold]
fn short(record: &Record<'_>, needed: u32) -> Error {
    let found = record.words.len() as u32;
    ErrorKind::ShortRecord { offset: record.offset, event: record.event, found, needed }.into()
}

impl<O: Observe> Visit for Analyser<O> {
    /// Between two changes of its runstate a vCPU belongs to its pCPU: what it does there concerns
    /// others only through a wake. So only these need their place among all records.
    #[inline]
    fn is_local(event: u32) -> bool {
        event & event::GROUP_MASK != event::SCHED_MIN
            && !matches!(event, event::WAKE | event::BLOCK | event::LOST_RECORDS)
    }

    #[inline]
    fn record(&mut self, record: &Record<'_>) -> Result<(), Error> {
        if !self.started {
            self.started = true;
            self.observer.start(record.tsc);
        }
        match record.event & event::GROUP_MASK {
            event::SCHED_MIN => {
                if let Some((old, new)) = event::runstate_change(record.event) {
                    self.classes.runstates = true;
                    self.runstate(record, old, new)?;
                } else if record.event == event::CONTINUE_RUNNING {
                    self.continue_running(record)?;
                }
            }
            event::SCHED_VERBOSE => match record.event {
                event::WAKE => {
                    self.classes.wakes = true;
                    self.wake(record)?;
                }
                event::BLOCK => self.block(record)?,
                event::YIELD => self.yields(record)?,
                event if clock::is_scheduler_switch(event) => {
                    if event == event::SWITCH_INFNEXT {
                        self.calibration.came(record);
                    } else {
                        self.calibration.left(record);
                    }
                }
                _ => {}
            },
            // Every entry of a PV guest ends what it did before.
            event::PV_ENTRY => {
                self.close(record.cpu);
                if record.event == event::PV_HYPERCALL {
                    self.pv_hypercall(record);
                }
            }
            event::PV_SUBCALLS => {
                self.close(record.cpu);
                if record.event == event::PV_SUBCALL {
                    self.pv_hypercall(record);
                }
            }
            event::HVM_ENTRY_EXIT | event::HVM_HANDLER => self.hvm(record),
            markers::GUEST => self.marker(record),
            event::GENERAL => self.lost(record)?,
            _ => {}
        }
        Ok(())
    }
}
