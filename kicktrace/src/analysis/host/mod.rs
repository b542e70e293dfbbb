//! What the hypervisor did with its pCPUs, beside locks: who ran where, how long every woken vCPU
//! waited for a pCPU, how many of a domain's vCPUs ran at once, and what made guests enter Xen.
//!
//! Owns the observer a command asks for when it wants this; an analysis without it pays nothing.
//! What a runstate change means is the analyser's to say, as for all observers.

mod concurrency;
mod entries;
mod figures;
mod owners;

use rustc_hash::FxHashMap;

use crate::analysis::latency::Latency;
use crate::analysis::observe::{Change, Observe, On, VcpuId, WaitStory};
use crate::event::{self, Runstate};
use crate::reader::Record;
use crate::summary::Summary;

use concurrency::Concurrent;
use entries::Entries;
use owners::Owners;

pub use figures::{
    Cause, Concurrency, Entry, EntryKind, EventCount, HostDomain, HostPcpu, HostSummary, HostVcpu,
    OwnerOff, Runnable, Share,
};

/// Follows the vCPUs over the pCPUs. An [`Observe`]r: give it to an
/// [`Analyser`](crate::analysis::Analyser) or to [`Phases`](crate::analysis::Phases), and its
/// figures with [`figures`](Self::figures) to an output.
///
/// # Example
/// ```
/// use kicktrace::analysis::{Analyser, Host, Options};
/// # use kicktrace::{reader, synth};
/// # let mut trace = Vec::new();
/// # synth::generate(&synth::Plan::default(), &mut trace).unwrap();
/// let mut analyser = Analyser::observed(&Options::default(), Host::default());
/// let reading = reader::read(&trace[..], &reader::ReadOptions::default(), &mut analyser)?;
/// let (summary, mut host) = analyser.finish(reading);
/// let told = host.figures(&summary);
/// assert!(told.pcpus.iter().all(|pcpu| pcpu.busy <= summary.ticks));
/// # Ok::<(), kicktrace::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Host {
    /// TSC at which the phase began.
    began: u64,
    pcpus: Vec<Pcpu>,
    vcpus: FxHashMap<VcpuId, Vcpu>,
    domains: FxHashMap<u16, Domain>,
    owners: Owners,
    events: FxHashMap<u32, u64>,
    /// Entries into Xen of vCPUs that nobody knows.
    unattributed: u64,
    /// Idle vCPUs were seen on pCPUs that are not theirs: core scheduling.
    shared_cores: bool,
    /// Any record was lost in this phase.
    lost: bool,
    /// The last gap ends here.
    lost_to: u64,
    /// vCPUs of domains that were not asked for were on a pCPU.
    others: bool,
    /// Ticks of this phase before `began`, which a silence moved.
    before: u64,
    /// What the last phase held, for [`figures`](Self::figures) after a cut.
    ended: Option<u64>,
}

/// A pCPU.
#[derive(Debug, Default)]
struct Pcpu {
    on: Who,
    since: u64,
    busy: u64,
    idle: u64,
    unknown: u64,
    /// Times a vCPU came.
    runs: u64,
    /// Of these: vCPUs that had run on another pCPU before.
    migrations: u64,
    seen: bool,
    lost: bool,
    lost_to: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Who {
    #[default]
    Unknown,
    Idle,
    Busy,
}

impl Pcpu {
    fn account(&mut self, tsc: u64) {
        let tsc = tsc.max(self.since);
        let ticks = tsc - self.since;
        match self.on {
            Who::Unknown => self.unknown += ticks,
            Who::Idle => self.idle += ticks,
            Who::Busy => self.busy += ticks,
        }
        self.since = tsc;
    }
}

#[derive(Debug, Default)]
struct Vcpu {
    /// Whether the analysis ever told of it: of a domain that was not asked for it never does.
    known: bool,
    /// Its state was told since its domain began, or since a silence.
    seen: bool,
    /// It was there before a silence.
    stayed: bool,
    state: Option<Runstate>,
    since: u64,
    cause: Option<Cause>,
    /// When it became runnable, if it is.
    runnable_since: Option<u64>,
    /// It wrote YIELD and has not left its pCPU yet.
    yields: bool,
    /// The pCPU it ran on last.
    ran_on: Option<u32>,
    migrations: u64,
    runs: u64,
    runnable: [OfCause; Cause::ALL.len()],
    /// Ticks on each pCPU.
    ran: Vec<(u32, u64)>,
    entries: Entries,
}

#[derive(Clone, Debug, Default)]
struct OfCause {
    count: u64,
    ticks: u64,
    /// Until it ran; intervals that ended otherwise are in `ticks` alone.
    to_run: Latency,
}

#[derive(Debug, Default)]
struct Domain {
    concurrent: Concurrent,
    /// Its vCPUs that were seen since it began.
    living: Vec<VcpuId>,
    /// From the block in a poll to the wake.
    poll_to_wake: Latency,
}

impl Host {
    fn pcpu(&mut self, cpu: u32) -> &mut Pcpu {
        let at = cpu as usize;
        if at >= self.pcpus.len() {
            let (since, unknown) = (self.began, self.before);
            self.pcpus.resize_with(at + 1, || Pcpu { since, unknown, ..Pcpu::default() });
        }
        &mut self.pcpus[at]
    }

    /// Accounts the time of `vcpu` up to `tsc` to the state it is in.
    fn account(vcpu: &mut Vcpu, tsc: u64) {
        let tsc = tsc.max(vcpu.since);
        let ticks = tsc - vcpu.since;
        match (vcpu.state, vcpu.cause, vcpu.ran_on) {
            (Some(Runstate::Runnable), Some(cause), _) => {
                vcpu.runnable[cause as usize].ticks += ticks;
            }
            (Some(Runstate::Running), _, Some(cpu)) => {
                match vcpu.ran.iter_mut().find(|(of, _)| *of == cpu) {
                    Some((_, sum)) => *sum += ticks,
                    None => vcpu.ran.push((cpu, ticks)),
                }
            }
            _ => {}
        }
        vcpu.entries.account(vcpu.state, ticks);
        vcpu.since = tsc;
    }

    /// The figures of the phase that ended last, or of all so far; `summary` is of the same time.
    pub fn figures(&mut self, summary: &Summary) -> HostSummary {
        self.settle(self.ended.unwrap_or(summary.reading.last_tsc));
        figures::of(self, summary)
    }

    fn settle(&mut self, tsc: u64) {
        self.pcpus.iter_mut().for_each(|pcpu| pcpu.account(tsc));
        self.vcpus.values_mut().for_each(|vcpu| Self::account(vcpu, tsc));
        self.domains.values_mut().for_each(|domain| domain.concurrent.account(tsc));
    }

    /// Nothing is known any more of the vCPUs of a domain from `from` on. At `to` the same ones go
    /// on, if they stay, or another domain of this number begins.
    fn restart(&mut self, domain: u16, (from, to): (u64, u64), stay: bool) {
        let domain = self.domains.entry(domain).or_default();
        let living = if stay { domain.living.clone() } else { std::mem::take(&mut domain.living) };
        domain.concurrent.restart(from, to, domain.living.len());
        for id in living {
            self.owners.forget(id);
            let Some(vcpu) = self.vcpus.get_mut(&id) else { continue };
            Self::account(vcpu, from);
            vcpu.entries.forget();
            let known = std::mem::take(vcpu);
            *vcpu = Vcpu {
                known: known.known,
                stayed: stay,
                since: to.max(known.since),
                migrations: known.migrations,
                runs: known.runs,
                runnable: known.runnable,
                ran: known.ran,
                entries: known.entries,
                ..Vcpu::default()
            };
        }
    }

    /// Begins the phase that follows the one that has ended, if one has.
    fn go_on(&mut self) {
        if let Some(tsc) = self.ended {
            self.begin_again(tsc);
        }
    }

    /// Forgets all figures: a new phase.
    fn begin_again(&mut self, tsc: u64) {
        // A silence may have moved it beyond.
        self.began = tsc.max(self.began);
        self.before = 0;
        let since = self.began;
        for pcpu in &mut self.pcpus {
            let &mut Pcpu { on, seen, lost_to, .. } = pcpu;
            *pcpu = Pcpu { on, since, seen, lost_to, lost: lost_to > tsc, ..Pcpu::default() };
        }
        for vcpu in self.vcpus.values_mut() {
            vcpu.runnable = Default::default();
            vcpu.ran.clear();
            vcpu.entries.begin_again();
            (vcpu.migrations, vcpu.runs) = (0, 0);
        }
        for domain in self.domains.values_mut() {
            domain.concurrent.begin_again(tsc);
            domain.poll_to_wake = Latency::default();
        }
        self.owners.begin_again();
        self.events.clear();
        (self.unattributed, self.lost, self.ended) = (0, self.lost_to > tsc, None);
    }
}

impl Observe for Host {
    const RECORDS: bool = true;

    fn start(&mut self, tsc: u64) {
        self.began = tsc;
    }

    fn record(&mut self, record: &Record<'_>, on: On) {
        self.go_on();
        self.others |= on == On::Other;
        *self.events.entry(record.event).or_default() += 1;
        let pcpu = self.pcpu(record.cpu);
        pcpu.seen = true;
        if let Some((old, new)) = event::runstate_change(record.event) {
            let &[key, ..] = record.words else { return };
            let idle = key >> 16 == event::DOMID_IDLE;
            let foreign = idle && new == Runstate::Running && key & 0xffff != record.cpu;
            let who = if idle { Who::Idle } else { Who::Busy };
            if new == Runstate::Running {
                pcpu.account(record.tsc);
                pcpu.runs += u64::from(who == Who::Busy);
                pcpu.on = who;
            } else if old == Runstate::Running && pcpu.on == who {
                pcpu.account(record.tsc);
                pcpu.on = Who::Unknown;
            }
            self.shared_cores |= foreign;
            return;
        }
        match (record.event, record.words) {
            (event::CONTINUE_RUNNING, &[key, ..]) => {
                let who = if key >> 16 == event::DOMID_IDLE { Who::Idle } else { Who::Busy };
                if pcpu.on != who {
                    pcpu.account(record.tsc);
                    pcpu.on = who;
                }
                let id = VcpuId { domain: (key >> 16) as u16, vcpu: key as u16 };
                if let Some(vcpu) = self.vcpus.get_mut(&id) {
                    vcpu.yields = false;
                }
            }
            (event::YIELD, &[domain, vcpu, ..]) => {
                let id = VcpuId { domain: domain as u16, vcpu: vcpu as u16 };
                self.vcpus.entry(id).or_default().yields = true;
            }
            (event::LOST_RECORDS, _) => {
                let start = record.lost().map_or(record.tsc, |lost| lost.first_tsc.min(record.tsc));
                pcpu.account(start);
                (pcpu.on, pcpu.lost) = (Who::Unknown, true);
                pcpu.lost_to = pcpu.lost_to.max(record.tsc);
                (self.lost, self.lost_to) = (true, self.lost_to.max(record.tsc));
            }
            _ => {
                let Some(entered) = entries::entered(record) else { return };
                match on {
                    On::Vcpu(id) => {
                        let vcpu = self.vcpus.entry(id).or_default();
                        vcpu.known = true;
                        vcpu.entries.enter(entered, record.tsc);
                    }
                    On::Unknown => self.unattributed += u64::from(entered.counts()),
                    On::Idle | On::Other => {}
                }
            }
        }
    }

    fn change(&mut self, change: &Change) {
        self.go_on();
        let &Change { vcpu: id, cpu, tsc, from, follows, to } = change;
        let vcpu = self.vcpus.entry(id).or_default();
        let first = !std::mem::replace(&mut vcpu.seen, true);
        let stayed = std::mem::take(&mut vcpu.stayed);
        vcpu.known = true;
        let (before, came) = (vcpu.state, vcpu.since);
        let known = before == Some(from) && follows;
        if known {
            Self::account(vcpu, tsc);
        } else {
            vcpu.since = tsc.max(vcpu.since);
            vcpu.entries.forget();
        }
        if let (true, Some(Runstate::Running), Some(cause)) = (known, to, vcpu.cause) {
            let of = &mut vcpu.runnable[cause as usize];
            // Since it became runnable, whatever phases ended meanwhile.
            of.to_run.record(tsc.saturating_sub(vcpu.runnable_since.unwrap_or(came)));
        }
        let cause = match (from, to) {
            (Runstate::Blocked, Some(Runstate::Runnable)) => Some(Cause::Woken),
            (Runstate::Offline, Some(Runstate::Runnable)) => Some(Cause::Unpaused),
            (Runstate::Running, Some(Runstate::Runnable)) if vcpu.yields => Some(Cause::Yielded),
            (Runstate::Running, Some(Runstate::Runnable)) => Some(Cause::Preempted),
            _ => None,
        };
        if let Some(cause) = cause {
            vcpu.runnable[cause as usize].count += 1;
        }
        if from == Runstate::Running && to == Some(Runstate::Runnable) {
            self.owners.preempted(id, tsc);
        }
        vcpu.runnable_since = cause.map(|_| tsc);
        (vcpu.cause, vcpu.state) = (cause, to);
        if to == Some(Runstate::Running) {
            vcpu.yields = false;
            let moved = vcpu.ran_on.is_some_and(|last| last != cpu);
            // The record that first tells of it may be of a vCPU that ran all the time.
            if from != Runstate::Running {
                vcpu.runs += 1;
                vcpu.migrations += u64::from(moved);
            }
            vcpu.ran_on = Some(cpu);
            self.owners.runs(id, tsc);
            self.pcpu(cpu).migrations += u64::from(moved);
        } else {
            if from == Runstate::Running {
                vcpu.yields = false;
            }
            // Whoever is first seen leaving a pCPU ran there.
            vcpu.ran_on = vcpu.ran_on.or((from == Runstate::Running).then_some(cpu));
        }
        let began = self.began;
        let domain = self.domains.entry(id.domain).or_default();
        if first && !stayed {
            domain.living.push(id);
        }
        domain.concurrent.change(began, tsc, first.then_some(from), stayed, before, to);
    }

    fn domain_changes(&mut self, domain: u16, tsc: u64) {
        self.go_on();
        // The time before it began is none of its own, though none of its vCPUs was seen yet.
        self.restart(domain, (tsc, tsc), false);
    }

    fn silence(&mut self, from: u64, to: u64) {
        self.go_on();
        for pcpu in &mut self.pcpus {
            pcpu.account(from);
            (pcpu.on, pcpu.since) = (Who::Unknown, to.max(pcpu.since));
        }
        let all: Vec<_> = self.domains.keys().copied().collect();
        for domain in all {
            self.restart(domain, (from, to), true);
        }
        // Nothing is known of calls and exits either, whoever made them.
        self.vcpus.values_mut().for_each(|vcpu| vcpu.entries.forget());
        self.before += from.saturating_sub(self.began);
        self.began = to.max(self.began);
    }

    fn wait(&mut self, wait: &WaitStory) {
        let domain = self.domains.entry(wait.vcpu.domain).or_default();
        domain.poll_to_wake.record(wait.woken.saturating_sub(wait.blocked));
        self.owners.waited(wait);
    }

    fn cut(&mut self, tsc: u64) {
        self.go_on();
        self.settle(tsc);
        self.ended = Some(tsc);
    }
}
