//! Records to meaning: which polls slept, which operation woke them.
//!
//! Owns the rules that join records of different vCPUs (`hypercall.rs`: what the current vCPU of a
//! pCPU does in Xen; `schedule.rs`: who wakes, runs and blocks). The main one: a WAKE of a vCPU
//! that polls, written on a pCPU whose current vCPU, of the same domain, has an event channel
//! operation open there, is that operation's effect: Xen wakes a poller inside the sender's
//! hypercall, on the sender's pCPU. An operation is open from its hypercall record to the next
//! entry into Xen, exit to the guest, or change of the sender's runstate.

mod acquisition;
mod clock;
mod exposed;
mod gaps;
mod host;
mod hypercall;
mod latency;
mod locks;
mod observe;
mod phases;
mod schedule;
mod skew;
mod summarise;
mod vcpu;
mod verdict;

use std::io::Read;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::error::{Error, ErrorKind};
use crate::event::{self, Runstate};
use crate::markers;
use crate::reader::{self, ReadOptions, Record, Visit};
use crate::summary::{Classes, Clock, Summary};

use clock::Calibration;
use exposed::Exposed;
use gaps::Gaps;
use locks::Locks;
use skew::{STEEPEST, Skew};
use vcpu::{Vcpu, report_interval};

pub use clock::calibrate;
pub use host::{
    Cause, Concurrency, Entry, EntryKind, EventCount, Host, HostDomain, HostPcpu, HostSummary,
    HostVcpu, OwnerOff, Runnable, Share,
};
pub use locks::MAX_LOCKS;
pub use observe::{AcquisitionStory, Change, Interval, KickStory, Observe, On, VcpuId, WaitStory};
pub use phases::{Both, Bounds, MAX_PHASES, Nothing, Phases};
pub use skew::{Fixed, fix_skew};
pub(crate) use verdict::WHOLE_ONLY;
pub use verdict::{Whole, complete};

/// vCPUs told one by one, those of ended domains too: each costs memory.
pub const MAX_VCPUS: usize = 65_536;

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
pub fn summarise<R: Read>(input: R, options: &Options) -> Result<Summary, Error> {
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

impl Current {
    /// The vCPU, if it is known and of interest.
    #[inline]
    fn of_interest(self) -> Option<u32> {
        match self {
            Self::Vcpu(index) if index != NOBODY => Some(index),
            _ => None,
        }
    }
}

/// What the current vCPU of a pCPU is doing in Xen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Op {
    /// Nothing that concerns us, or it is in the guest.
    #[default]
    None,
    /// `event_channel_op`, begun at `tsc`.
    Evtchn { tsc: u64, woke: bool, interrupted: bool, target: Option<u32> },
    /// `sched_op`: a poll, begun at `tsc`.
    Poll { tsc: u64 },
}

impl Op {
    /// An event channel operation that begins; a kick of `target`, if it is marked.
    const fn evtchn(tsc: u64, target: Option<u32>) -> Self {
        Self::Evtchn { tsc, woke: false, interrupted: false, target }
    }
}

/// What the trace shows of the current vCPU of a pCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Seen {
    /// Not even how it came.
    #[default]
    Nothing,
    /// How it came, and no call or exit since: it runs guest code.
    Came,
    /// How it entered Xen last.
    Entered,
}

/// What Xen did as other records prove, and no record tells though Xen always writes one. How
/// often.
#[derive(Clone, Copy, Debug, Default)]
struct Unseen {
    /// A vCPU was woken without a WAKE.
    wakes: u64,
    /// One that had written BLOCK before left its pCPU to sleep without one.
    blocks: u64,
    /// One that ran guest code blocked without a call or an exit.
    entries: u64,
    /// One blocked that was not running, or had blocked before and not left.
    changes: u64,
    /// A guest exited for a hypercall.
    call_exits: u64,
    /// A record told the number of one.
    call_numbers: u64,
}

impl Unseen {
    /// Hypercalls whose number no record tells: each of so many pCPUs may be between exit and
    /// number at either end.
    fn calls(&self, pcpus: usize) -> u64 {
        let less = self.call_exits.saturating_sub(self.call_numbers);
        if less > pcpus as u64 { less } else { 0 }
    }
}

/// A WAKE whose effect is not seen yet.
#[derive(Clone, Copy, Debug)]
struct Wake {
    target: u32,
    tsc: u64,
    /// The operation it is the effect of, and whether that is a kick.
    by: Option<acquisition::Kick>,
    is_kick: bool,
    /// Whether the trace shows what its pCPU did.
    seen: bool,
}

impl Wake {
    /// The kick it is the effect of.
    fn kick(&self) -> Option<acquisition::Kick> {
        self.by.filter(|_| self.is_kick)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Pcpu {
    current: Current,
    op: Op,
    /// The last exit of the current vCPU: the time of the records without one that follow.
    exit_tsc: u64,
    /// The last WAKE written here, until the change it makes.
    wake: Option<Wake>,
    /// The WAKE before it, whose change an interrupt that wakes another vCPU keeps waiting; there
    /// is none without a `wake`.
    outer_wake: Option<Wake>,
    seen: Seen,
    /// The first WAKE that was written here while nobody knew who is on the pCPU.
    unknown_since: Option<u64>,
    /// Operations and polls of a current vCPU that is not known.
    unattributed: u64,
    /// Whether the scheduler has written here, and whether its first record shows that a guest was
    /// running before.
    scheduled: bool,
    began_mid: bool,
}

impl Pcpu {
    /// The WAKE whose change comes now; the one before it waits for its own.
    fn take_wake(&mut self) -> Option<Wake> {
        let wake = self.wake.take();
        // Not copied blindly: there mostly is none.
        if self.outer_wake.is_some() {
            self.wake = self.outer_wake.take();
        }
        wake
    }
}

/// Follows all vCPUs through a trace. A [`Visit`]or: give it to [`reader::read`], then ask for the
/// summary with [`finish`](Analyser::finish).
#[derive(Debug)]
pub struct Analyser<O = ()> {
    options: Options,
    observer: O,
    started: bool,
    skew: Skew,
    /// The largest contradiction of all phases, in ticks.
    worst_skew: u64,
    pcpus: Vec<Pcpu>,
    vcpus: Vec<Vcpu>,
    /// `domain << 16 | vcpu` to index.
    index: FxHashMap<u32, u32>,
    /// The vCPUs in `index`, by domain.
    living: FxHashMap<u16, Vec<u32>>,
    /// Direct-mapped in front of `index`.
    cache: Box<[(u32, u32); CACHE]>,
    gaps: Gaps,
    exposed: Exposed,
    calibration: Calibration,
    locks: Locks,
    classes: Classes,
    bad_markers: u64,
    /// Changes that one pCPU wrote for another.
    shared_cores: u64,
    unseen: Unseen,
    /// Operations marked as a kick of one vCPU that woke another.
    mistaken_marks: u64,
    /// Domains whose begin is in the trace, and that have not ended.
    began: FxHashSet<u16>,
    /// How many domains of each number have ended.
    lives: FxHashMap<u16, u32>,
    /// vCPUs beyond [`MAX_VCPUS`]: nothing of them is told.
    beyond_limit: u64,
}

/// No vCPU of interest: idle, or of a domain that was not asked for.
const NOBODY: u32 = u32::MAX;
const CACHE: usize = 1024;

/// An [`Analyser::cache`] that holds nothing: no slot is of the key in it.
const EMPTY: [(u32, u32); CACHE] = {
    let mut cache = [(0, NOBODY); CACHE];
    cache[cache_slot(0)].0 = 1;
    assert!(cache_slot(1) != cache_slot(0));
    cache
};

/// Where [`Analyser::cache`] may hold a vCPU.
#[inline]
const fn cache_slot(key: u32) -> usize {
    (key ^ key >> 12) as usize % CACHE
}

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
            worst_skew: 0,
            pcpus: Vec::new(),
            vcpus: Vec::new(),
            index: FxHashMap::default(),
            living: FxHashMap::default(),
            cache: Box::new(EMPTY),
            gaps: Gaps::default(),
            exposed: Exposed::default(),
            calibration: Calibration::default(),
            locks: Locks::default(),
            classes: Classes::default(),
            bad_markers: 0,
            shared_cores: 0,
            unseen: Unseen::default(),
            mistaken_marks: 0,
            began: FxHashSet::default(),
            lives: FxHashMap::default(),
            beyond_limit: 0,
        }
    }

    /// The index of a vCPU given as Xen packs it, `domain << 16 | vcpu`; [`NOBODY`] for idle.
    #[inline]
    fn vcpu(&mut self, key: u32) -> u32 {
        let slot = cache_slot(key);
        let (cached, index) = self.cache[slot];
        if cached == key {
            return index;
        }
        self.find_vcpu(key, slot)
    }

    #[cold]
    fn find_vcpu(&mut self, key: u32, slot: usize) -> u32 {
        let domain = key >> 16;
        let wanted =
            self.options.domains.is_empty() || self.options.domains.contains(&(domain as u16));
        if domain == event::DOMID_IDLE || !wanted {
            self.cache[slot] = (key, NOBODY);
            return NOBODY;
        }
        let next = self.vcpus.len();
        let index = *self.index.entry(key).or_insert(next as u32);
        if index as usize == next {
            if next >= MAX_VCPUS {
                self.index.remove(&key);
                self.beyond_limit += 1;
                return NOBODY;
            }
            let life = self.lives.get(&(domain as u16)).copied().unwrap_or(0);
            self.vcpus.push(Vcpu::new(domain as u16, key as u16, life));
            self.living.entry(domain as u16).or_default().push(index);
        }
        self.cache[slot] = (key, index);
        index
    }

    /// The vCPU named by two words, domain and vCPU.
    #[inline]
    fn named(&mut self, event: u32, words: &[u32], offset: u64) -> Result<u32, Error> {
        match *words {
            [domain, vcpu, ..] if domain | vcpu <= 0xffff => Ok(self.vcpu(domain << 16 | vcpu)),
            [domain, vcpu, ..] => Err(ErrorKind::AbsurdVcpu { offset, domain, vcpu }.into()),
            _ => Err(short(event, words, offset, 2)),
        }
    }

    #[inline]
    fn pcpu(&mut self, cpu: u32) -> &mut Pcpu {
        if cpu as usize >= self.pcpus.len() {
            return self.more_pcpus(cpu);
        }
        &mut self.pcpus[cpu as usize]
    }

    #[cold]
    fn more_pcpus(&mut self, cpu: u32) -> &mut Pcpu {
        self.pcpus.resize(cpu as usize + 1, Pcpu::default());
        &mut self.pcpus[cpu as usize]
    }

    /// Who is on a pCPU, as an observer is told.
    fn on(&mut self, cpu: u32) -> On {
        match self.pcpu(cpu).current {
            Current::Unknown => On::Unknown,
            Current::Idle => On::Idle,
            Current::Vcpu(NOBODY) => On::Other,
            Current::Vcpu(index) => On::Vcpu(self.vcpus[index as usize].name()),
        }
    }

    /// The current vCPU of a pCPU, if it is known and of interest.
    #[inline]
    fn current(&mut self, cpu: u32) -> Option<u32> {
        self.pcpu(cpu).current.of_interest()
    }

    /// What was found, with the figures of the reading, and the observer.
    #[must_use]
    pub fn finish(mut self, reading: reader::Reading) -> (Summary, O) {
        self.end(reading.last_tsc);
        (summarise::summary(&self, reading), self.observer)
    }

    /// The trace ends at `tsc`: what is under way is not seen to end.
    fn end(&mut self, tsc: u64) {
        for vcpu in self.vcpus.iter_mut().filter(|vcpu| !vcpu.is_over()) {
            let ended = vcpu.end_life(tsc, &self.gaps);
            report_interval(&mut self.observer, vcpu, ended, tsc);
        }
    }

    /// Ends a phase at `tsc`: tells what was found since the last one, and begins again with all
    /// that is under way. What has an end (a wait, an acquisition, a latency) counts in the phase
    /// it ends in; time counts where it is spent.
    fn cut(&mut self, tsc: u64, reading: reader::Reading) -> Summary {
        for vcpu in self.vcpus.iter_mut().filter(|vcpu| !vcpu.is_over()) {
            let ended = vcpu.end_phase(tsc, &self.gaps);
            report_interval(&mut self.observer, vcpu, ended, tsc);
        }
        self.observer.cut(tsc);
        let summary = summarise::summary(self, reading);
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.begin_again(tsc));
        self.locks = Locks::default();
        self.worst_skew = self.worst_skew.max(self.skew.worst());
        self.skew = Skew::default();
        (self.bad_markers, self.shared_cores) = (0, 0);
        (self.unseen, self.mistaken_marks) = (Unseen::default(), 0);
        summary
    }
}

impl<O> Analyser<O> {
    /// The clock, after `ticks` of the trace. TSCs that are out of step may run at different rates:
    /// where pCPUs have no runs of their own to tell theirs, that is part of its error.
    fn clock(&self, ticks: u64) -> Clock {
        let mut clock = self.calibration.clock(self.options.cpu_hz);
        let scheduled = self.pcpus.iter().zip(0..).filter(|(pcpu, _)| pcpu.scheduled);
        let all_known = scheduled.into_iter().all(|(_, cpu)| self.calibration.knows(cpu));
        let part = |apart: u64| apart as f64 / ticks.max(1) as f64;
        if let (Some(error), false) = (&mut clock.error_ppm, all_known) {
            let contradicted = self.worst_skew.max(self.skew.worst());
            // More than any drift is an offset.
            let apart = Some(part(contradicted)).filter(|&part| part < STEEPEST).unwrap_or(0.0);
            *error += apart.max(part(self.options.read.tsc_open)) * 1e6;
            // The largest contradiction of one vCPU is no bound of a drift.
            clock.error_open = contradicted > 0;
        }
        clock
    }
}

#[cold]
fn short(event: u32, words: &[u32], offset: u64, needed: u32) -> Error {
    ErrorKind::ShortRecord { offset, event, found: words.len() as u32, needed }.into()
}

impl<O: Observe> Visit for Analyser<O> {
    /// Between two changes of its runstate a vCPU belongs to its pCPU: what it does there concerns
    /// others only through a wake. So only these need their place among all records. What an idle
    /// vCPU does concerns its own pCPU alone.
    #[inline]
    fn is_local(event: u32, first: Option<u32>) -> bool {
        // `|` and `&`, because nobody could predict the branches.
        let changes = event & event::GROUP_MASK == event::SCHED_MIN;
        let idle = first.is_some_and(|key| key >> 16 == event::DOMID_IDLE);
        // Both hold some that are seldom and would need no place, and are fewer comparisons.
        let concerns_others = (event::DOM_ADD..=event::WAKE).contains(&event)
            | (event & event::DOMAINS & event::CLASS_MASK != 0);
        !(concerns_others | (changes & !idle))
    }

    /// All but those from the changes on up to the last of the others: one comparison.
    #[inline]
    fn is_always_local(event: u32) -> bool {
        const { assert!(event::SCHED_MIN < event::DOM_ADD && event::DOM_ADD <= event::WAKE) };
        let is_domain = event & event::DOMAINS & event::CLASS_MASK != 0;
        !is_domain && !(event::SCHED_MIN..=event::WAKE).contains(&event)
    }

    /// Xen writes a WAKE and the change that follows it, and the two changes of a switch, with the
    /// second vCPU already in its hands: a vCPU known to be blocked cannot change but by this WAKE,
    /// and one known to be runnable was chosen before the other one left.
    #[inline]
    fn goes_on(&self, before: u32, event: u32, first: Option<u32>) -> bool {
        // An observer is told everything in the order of time.
        if O::LISTENS {
            return false;
        }
        let (Some((old, _)), Some(key)) = (event::runstate_change(event), first) else {
            return false;
        };
        let due = match old {
            Runstate::Blocked => before == event::WAKE,
            Runstate::Runnable => {
                matches!(event::runstate_change(before), Some((Runstate::Running, _)))
            }
            _ => false,
        };
        let (cached, index) = self.cache[cache_slot(key)];
        due && cached == key
            && self.vcpus.get(index as usize).is_some_and(|vcpu| vcpu.state == Some(old))
    }

    fn silence(&mut self, from: u64, to: u64) {
        self.fall_silent(from, to);
    }

    fn caught_up(&mut self) -> Result<(), Error> {
        self.observer.caught_up();
        Ok(())
    }

    /// A handler gets the parts it needs, and none gets the record: one whose address nobody takes
    /// stays in registers. So it has to be inline in the merge, which costs a tenth of all time
    /// where the compiler decides otherwise.
    #[inline(always)]
    fn record(&mut self, record: &Record<'_>) -> Result<(), Error> {
        if O::LISTENS && !self.started {
            self.started = true;
            self.observer.start(record.tsc);
        }
        if O::RECORDS {
            let on = self.on(record.cpu);
            self.observer.record(record, on);
        }
        let &Record { cpu, tsc, event, words, offset, .. } = record;
        // Few cases, so few branches: these are nearly all records.
        match event & event::GROUP_MASK {
            event::PV_ENTRY => {
                self.classes.pv_entries = true;
                // Every entry of a PV guest ends what it did before.
                let current = self.close(cpu);
                if event == event::PV_HYPERCALL {
                    self.pv_hypercall(current, cpu, tsc, words);
                }
            }
            event::SCHED_MIN => {
                let change = event::runstate_change(event);
                if change.is_none() && event != event::CONTINUE_RUNNING {
                    return Ok(());
                }
                let &[key, ..] = words else { return Err(short(event, words, offset, 1)) };
                match change {
                    Some(change) => {
                        self.classes.runstates = true;
                        self.runstate(cpu, tsc, key, change);
                    }
                    None => self.continue_running(cpu, tsc, key),
                }
            }
            event::SCHED_VERBOSE => {
                self.classes.scheduler = true;
                match event {
                    event::WAKE => {
                        self.classes.wakes = true;
                        let target = self.named(event, words, offset)?;
                        self.wake(cpu, tsc, target);
                    }
                    event::BLOCK => {
                        let index = self.named(event, words, offset)?;
                        self.block(cpu, tsc, index);
                    }
                    event::YIELD => {
                        let index = self.named(event, words, offset)?;
                        self.yields(cpu, index);
                    }
                    event::SWITCH_INFNEXT => self.calibration.came(cpu, tsc, words),
                    event::SWITCH_INFPREV => self.calibration.left(cpu, tsc, words),
                    event::DOM_ADD | event::DOM_REM => self.lives(tsc, event, words, offset)?,
                    _ => {}
                }
            }
            _ => return self.other_record(&Record { ..*record }),
        }
        Ok(())
    }
}

impl<O: Observe> Analyser<O> {
    /// A record of none of the most frequent groups.
    #[inline(never)]
    fn other_record(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let &Record { cpu, tsc, event, words, offset, .. } = record;
        match event & event::GROUP_MASK {
            event::HVM_ENTRY_EXIT | event::HVM_HANDLER => self.hvm(cpu, tsc, event, words),
            event::PV_SUBCALLS => {
                self.classes.pv_entries = true;
                let current = self.close(cpu);
                if event == event::PV_SUBCALL {
                    self.pv_hypercall(current, cpu, tsc, words);
                }
            }
            markers::GUEST => self.marker(cpu, tsc, event, words),
            event::GENERAL => {
                if let Some(lost) = record.lost() {
                    self.lost(cpu, tsc, lost);
                }
            }
            event::DOMAINS => {
                if matches!(event, event::DOMAIN_CREATE | event::DOMAIN_DESTROY) {
                    self.lives(tsc, event, words, offset)?;
                }
            }
            // What an interrupt does is not the effect of the operation it came into.
            event::INTERRUPTS if event == event::IRQ_HANDLED => self.interrupted(cpu),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Analyser, Options};
    use crate::event;
    use crate::reader::{ReadOptions, Record, Visit, read};
    use crate::summary::Classes;
    use crate::synth::{Guest, Plan, generate};

    /// What the analysis notes on its way, [`Classes::note`] says of events alone: where a part of
    /// a trace is analysed and the rest is not.
    #[test]
    fn both_ways_to_note_a_class_agree() {
        for guest in [Guest::Pv, Guest::Pvh, Guest::PvhAmd419] {
            let mut trace = Vec::new();
            generate(&Plan { guest, ..Plan::default() }, &mut trace).expect("a Vec takes all");
            let mut analyser = Analyser::new(&Options::default());
            read(&trace[..], &ReadOptions::default(), &mut analyser).expect("a sound trace");
            let mut noted = Classes::default();
            let mut note = |record: &Record<'_>| {
                noted.note(record.event);
                Ok(())
            };
            read(&trace[..], &ReadOptions::default(), &mut note).expect("a sound trace");
            // What a guest marks is in its words, and judged of no part.
            let Classes { markers, mark_calls, .. } = analyser.classes;
            assert_eq!(Classes { markers, mark_calls, ..noted }, analyser.classes, "{guest:?}");
            assert!(noted.wakes && noted.runstates, "{guest:?}");
        }
    }

    #[test]
    fn what_is_always_local_is_local_whatever_its_payload() {
        let firsts = [None, Some(0), Some(1 << 16), Some(event::DOMID_IDLE << 16 | 3), Some(!0)];
        // Every event of every class, and of some pairs of classes.
        let classes = (16..28).flat_map(|bit| [1 << bit, 1 << bit | 1 << 16, 1 << bit | 1 << 18]);
        let mut always = 0_u32;
        for event in classes.flat_map(|class| (0..=0xffff).map(move |low| class | low)) {
            let is_always = <Analyser>::is_always_local(event);
            always += u32::from(is_always);
            let is_local = firsts.iter().all(|&first| <Analyser>::is_local(event, first));
            assert!(!is_always || is_local, "{event:#x}");
        }
        assert!(always > 1 << 20, "{always}");
        // The worth of it is in the guests' entries, which are most of a trace.
        assert!(<Analyser>::is_always_local(event::PV_HYPERCALL));
        assert!(<Analyser>::is_always_local(event::VMENTRY));
    }
}
