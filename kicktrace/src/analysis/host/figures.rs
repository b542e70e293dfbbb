//! The figures about the hypervisor: plain data, `serde`, certainties.
//!
//! Owns which figure is exact and which is a bound.

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::{Host, OfCause};
use crate::analysis::latency::Latency;
use crate::analysis::observe::VcpuId;
use crate::event;
use crate::reader::PcpuReading;
use crate::summary::{Certainty, Clock, Count, Distribution, DomainKind, SCHEMA, Summary, Window};

/// Why a vCPU wants a pCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Something woke it.
    Woken,
    /// The scheduler took its pCPU away.
    Preempted,
    /// It gave its pCPU up, by `SCHEDOP_yield` or a pause-loop exit.
    Yielded,
    /// It was paused or offline before.
    Unpaused,
}

impl Cause {
    /// All of them, in the order they are told.
    pub const ALL: [Self; 4] = [Self::Woken, Self::Preempted, Self::Yielded, Self::Unpaused];

    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Woken => "woken",
            Self::Preempted => "preempted",
            Self::Yielded => "yielded",
            Self::Unpaused => "unpaused",
        }
    }
}

/// How a guest came into Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// A hypercall; the number is that of Xen public/xen.h.
    Hypercall,
    /// A hypercall inside a multicall of a PV guest.
    MulticallEntry,
    /// A trap of a PV guest; the number is the vector.
    Trap,
    /// Another event of a PV guest: a page fault, an emulation; the number is the event's.
    PvEvent,
    /// An exit of an HVM or PVH guest; the number is the reason, Intel's or AMD's.
    Exit,
}

impl EntryKind {
    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hypercall => "hypercall",
            Self::MulticallEntry => "multicall entry",
            Self::Trap => "trap",
            Self::PvEvent => "PV event",
            Self::Exit => "exit",
        }
    }
}

/// Everything [`Host`] finds. Times are in TSC ticks.
#[derive(Clone, Debug, Serialize)]
pub struct HostSummary {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Ticks to seconds.
    pub clock: Clock,
    /// The part of the trace that is told, if it is not all of it.
    pub window: Option<Window>,
    /// Ticks told.
    pub ticks: u64,
    /// pCPUs that wrote records, by number.
    pub pcpus: Vec<HostPcpu>,
    /// Domains, idle left out, by number.
    pub domains: Vec<HostDomain>,
    /// Records by event number, the most frequent first.
    pub events: Vec<EventCount>,
    /// Entries into Xen before it was known who ran on their pCPU: in no vCPU's figures.
    pub unattributed_entries: u64,
    /// What a reader should know before believing a figure.
    pub warnings: Vec<String>,
}

/// How often an event was recorded.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EventCount {
    /// Its number.
    pub event: u32,
    /// Its name, if this crate has one.
    pub name: Option<&'static str>,
    /// Records.
    pub records: Count,
}

/// One pCPU.
#[derive(Clone, Debug, Serialize)]
pub struct HostPcpu {
    /// Its number.
    pub cpu: u32,
    /// How far to trust its times.
    pub certainty: Certainty,
    /// A vCPU was on it.
    pub busy: u64,
    /// Idle.
    pub idle: u64,
    /// Nobody knows who was on it: before its first change, or after lost records.
    pub unknown: u64,
    /// Times a vCPU came.
    pub runs: Count,
    /// Of these: the vCPU had run on another pCPU before.
    pub migrations: Count,
    /// Records it lost.
    pub lost_records: u64,
    /// Who was on it, the longest first (only domains asked for).
    pub vcpus: Vec<Share>,
}

/// A vCPU's time on a pCPU.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Share {
    /// Who.
    pub vcpu: VcpuId,
    /// How long.
    pub ticks: u64,
}

/// One domain.
#[derive(Clone, Debug, Serialize)]
pub struct HostDomain {
    /// Its number.
    pub id: u16,
    /// How it enters Xen.
    pub kind: DomainKind,
    /// How many of its vCPUs ran at once.
    pub concurrency: Concurrency,
    /// Time in which its vCPUs wanted a pCPU, by cause; in the order of [`Cause::ALL`].
    pub runnable: Vec<Runnable>,
    /// From the block in a poll to the wake.
    pub poll_to_wake: Distribution,
    /// What made its vCPUs enter Xen, the most frequent first.
    pub entries: Vec<Entry>,
    /// Lock by lock, as the guest marks them: its owner off its pCPU while others waited.
    pub owners_off: Vec<OwnerOff>,
    /// Its vCPUs, by number.
    pub vcpus: Vec<HostVcpu>,
}

/// One vCPU.
#[derive(Clone, Debug, Serialize)]
pub struct HostVcpu {
    /// Its number.
    pub id: u16,
    /// Times it came to a pCPU.
    pub runs: Count,
    /// Of these: to another pCPU than the one before.
    pub migrations: Count,
    /// See [`HostDomain::runnable`].
    pub runnable: Vec<Runnable>,
    /// See [`HostDomain::entries`].
    pub entries: Vec<Entry>,
}

/// Intervals in which a vCPU wanted a pCPU for one cause.
#[derive(Clone, Debug, Serialize)]
pub struct Runnable {
    /// Why.
    pub cause: Cause,
    /// How often.
    pub count: Count,
    /// Ticks.
    pub ticks: u64,
    /// How far to trust `ticks`.
    pub ticks_certainty: Certainty,
    /// From runnable to running: of [`Cause::Woken`] wake to run, of every wake.
    pub to_run: Distribution,
}

/// How many vCPUs of a domain run, want to run and sleep at the same time, in ticks. vCPUs that are
/// offline do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Concurrency {
    /// All run.
    pub all_run: u64,
    /// Some run, the others sleep.
    pub some_run: u64,
    /// Some run while others want to and cannot: if one of these owns a lock, those that run may
    /// wait for it in vain (the hazard of lock holder preemption).
    pub hazard: u64,
    /// Some want to run and none does.
    pub none_runs: u64,
    /// All sleep.
    pub none_wants: u64,
    /// The state of a vCPU is not known.
    pub unknown: u64,
    /// Ticks in which exactly so many vCPUs ran: none, one, two and so on.
    pub by_running: Vec<u64>,
    /// How far to trust all of these.
    pub certainty: Certainty,
}

/// One way into Xen.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// What it was.
    pub kind: EntryKind,
    /// Its number; see [`EntryKind`].
    pub number: u32,
    /// Its name, if it has one.
    pub name: Option<&'static str>,
    /// How often.
    pub count: Count,
    /// Exits: ticks in Xen, without those off the pCPU. PV guests leave no record of their return.
    pub in_xen: Option<u64>,
    /// Exits: from the exit to the entry, without time off the pCPU. In domains only.
    pub each: Option<Distribution>,
}

/// A lock's owner off its pCPU, preempted, while others slept for the lock.
#[derive(Clone, Debug, Serialize)]
pub struct OwnerOff {
    /// Low half of the lock's address.
    pub lock: u32,
    /// Times it was handed over by a waking kick.
    pub kicks: u64,
    /// Of these: the owner had been preempted since the one before, while the waiter slept.
    pub off: Count,
    /// For how long, in all.
    pub ticks: u64,
    /// For how long each time.
    pub each: Distribution,
}

pub(super) fn of(host: &Host, summary: &Summary) -> HostSummary {
    let trust = Trust {
        lost: host.lost,
        partial: summary.doubt.partial,
        untold: summary.doubt.untold,
        order: summary.doubt.order,
        who: host.shared_cores || summary.doubt.cores,
        unattributed: host.unattributed > 0,
    };
    let vendor = Vendor::of(host);
    let known = host.vcpus.iter().filter(|(_, vcpu)| vcpu.known);
    let mut ids: Vec<VcpuId> = known.map(|(&id, _)| id).collect();
    ids.sort_unstable();
    let lost = |cpu: u32| {
        let of = |of: &&PcpuReading| of.cpu == cpu;
        summary.reading.pcpus.iter().find(of).map_or(0, |of| of.lost_records)
    };
    let pcpus = host.pcpus.iter().enumerate().filter(|(_, pcpu)| pcpu.seen);
    let pcpus = pcpus.map(|(cpu, pcpu)| {
        let cpu = cpu as u32;
        let ran = |id: &VcpuId| {
            let ran = &host.vcpus[id].ran;
            ran.iter().find(|(of, _)| *of == cpu).map(|&(_, ticks)| Share { vcpu: *id, ticks })
        };
        let mut vcpus: Vec<Share> = ids.iter().filter_map(ran).collect();
        vcpus.sort_by_key(|share| std::cmp::Reverse(share.ticks));
        // Of domains that were not asked for nobody knows where they were before.
        let others = if host.others { Certainty::LowerBound } else { Certainty::Exact };
        HostPcpu {
            cpu,
            certainty: trust.pcpu(pcpu.lost),
            busy: pcpu.busy,
            idle: pcpu.idle,
            unknown: pcpu.unknown,
            runs: Count { value: pcpu.runs, certainty: trust.pcpu(pcpu.lost) },
            migrations: Count {
                value: pcpu.migrations,
                certainty: trust.moves(pcpu.lost).and(others),
            },
            lost_records: lost(cpu),
            vcpus,
        }
    });
    let pcpus = pcpus.collect();
    let domains = ids.chunk_by(|a, b| a.domain == b.domain);
    let domains = domains.map(|ids| domain(host, ids, summary, &trust, vendor)).collect();
    let mut events: Vec<_> = host
        .events
        .iter()
        .map(|(&event, &records)| EventCount {
            event,
            name: event::name(event),
            records: Count { value: records, certainty: trust.records() },
        })
        .collect();
    events.sort_by_key(|of| (std::cmp::Reverse(of.records.value), of.event));
    let mut warnings = summary.warnings.clone();
    if host.unattributed > 0 {
        warnings.push(format!(
            "{} hypercalls, traps and exits came before it was known who ran on their pCPU: they are in \
             no vCPU's figures",
            host.unattributed
        ));
    }
    HostSummary {
        schema: SCHEMA,
        clock: summary.clock.clone(),
        window: summary.window,
        ticks: summary.ticks,
        pcpus,
        domains,
        events,
        unattributed_entries: host.unattributed,
        warnings,
    }
}

/// What makes figures doubtful.
struct Trust {
    /// Records were lost in this phase.
    lost: bool,
    /// Records are missing.
    partial: bool,
    /// Records are missing, and none tells where.
    untold: bool,
    /// The order of different pCPUs' records is not certain.
    order: bool,
    /// Which pCPU a vCPU is on is not certain.
    who: bool,
    unattributed: bool,
}

impl Trust {
    fn counts(&self, lost: bool) -> Certainty {
        if self.who {
            Certainty::Inferred
        } else if lost || self.partial {
            Certainty::LowerBound
        } else {
            Certainty::Exact
        }
    }

    /// Of records, whoever wrote them.
    fn records(&self) -> Certainty {
        if self.lost || self.partial { Certainty::LowerBound } else { Certainty::Exact }
    }

    /// Of what one pCPU's own changes tell; what it lost is in its unknown time.
    fn pcpu(&self, lost: bool) -> Certainty {
        if self.who || self.untold {
            Certainty::Inferred
        } else if lost {
            Certainty::LowerBound
        } else {
            Certainty::Exact
        }
    }

    /// Of vCPUs that came from another pCPU.
    fn moves(&self, lost: bool) -> Certainty {
        let order = if self.order { Certainty::Inferred } else { Certainty::Exact };
        self.counts(lost || self.lost).and(order)
    }

    /// A state may have begun and ended in a gap.
    fn times(&self) -> Certainty {
        let doubt = self.lost || self.partial || self.order || self.who;
        if doubt { Certainty::Inferred } else { Certainty::Exact }
    }

    /// Of entries into Xen, which belong to whoever is on the pCPU.
    fn entries(&self) -> Certainty {
        self.counts(self.lost || self.unattributed)
    }

    /// Of the times a vCPU wanted a pCPU for this cause. A yield whose record is missing seems to
    /// be a preemption.
    fn cause(&self, cause: Cause) -> Certainty {
        match self.counts(self.lost) {
            Certainty::LowerBound if cause == Cause::Preempted => Certainty::Inferred,
            counts => counts,
        }
    }
}

fn domain(
    host: &Host,
    ids: &[VcpuId],
    summary: &Summary,
    trust: &Trust,
    vendor: Vendor,
) -> HostDomain {
    let id = ids.first().map_or(0, |id| id.domain);
    let mut runnable: [OfCause; 4] = Default::default();
    let mut counts: FxHashMap<(EntryKind, u32), u64> = FxHashMap::default();
    let mut stays: FxHashMap<u32, (u64, Latency)> = FxHashMap::default();
    let mut vcpus = Vec::new();
    for id in ids {
        let of = &host.vcpus[id];
        for (sum, of) in runnable.iter_mut().zip(&of.runnable) {
            sum.count += of.count;
            // A sum over vCPUs of a file that lies about its times may exceed any number.
            sum.ticks = sum.ticks.saturating_add(of.ticks);
            sum.to_run.add(&of.to_run);
        }
        for (&key, &count) in &of.entries.counts {
            *counts.entry(key).or_default() += count;
        }
        for (&reason, stay) in &of.entries.stays {
            let (ticks, each) = stays.entry(reason).or_default();
            *ticks = ticks.saturating_add(stay.ticks);
            each.add(&stay.each);
        }
        let of_vcpu = of.entries.counts.iter().map(|(&(kind, number), &count)| Entry {
            kind,
            number,
            name: name(kind, number, vendor),
            count: Count { value: count, certainty: trust.entries() },
            in_xen: (kind == EntryKind::Exit)
                .then(|| of.entries.stays.get(&number).map_or(0, |stay| stay.ticks)),
            each: None,
        });
        let count = |value| Count { value, certainty: trust.counts(trust.lost) };
        vcpus.push(HostVcpu {
            id: id.vcpu,
            runs: count(of.runs),
            migrations: Count { value: of.migrations, certainty: trust.moves(trust.lost) },
            runnable: self::runnable(&of.runnable, trust),
            entries: sorted(of_vcpu.collect()),
        });
    }
    let entries = counts.into_iter().map(|((kind, number), count)| {
        let stay = stays.get(&number).filter(|_| kind == EntryKind::Exit);
        Entry {
            kind,
            number,
            name: name(kind, number, vendor),
            count: Count { value: count, certainty: trust.entries() },
            in_xen: (kind == EntryKind::Exit).then(|| stay.map_or(0, |(ticks, _)| *ticks)),
            each: stay.map(|(_, each)| each.told(trust.entries())),
        }
    });
    let entries = sorted(entries.collect());
    let of = host.domains.get(&id);
    let mut concurrency = of.map(|of| of.concurrent.figures()).unwrap_or_default();
    // A vCPU that is seen first behind the end of a part was there all the time.
    let part = if summary.window.is_some() { Certainty::Inferred } else { Certainty::Exact };
    concurrency.certainty = trust.times().max(part);
    let told = summary.domains.iter().find(|domain| domain.id == id);
    let polls = told.map_or(Certainty::Exact, |domain| domain.latencies.wait.certainty);
    let mut owners: Vec<_> = host
        .owners
        .locks
        .iter()
        .filter(|((domain, _), _)| *domain == id)
        .map(|(&(_, lock), of)| OwnerOff {
            lock,
            kicks: of.kicks,
            // An owner that is preempted while others spin only, or that kicks nobody, is not seen.
            off: Count::at_least(of.off),
            ticks: of.ticks,
            each: of.each.told(Certainty::LowerBound),
        })
        .collect();
    owners.sort_by_key(|of| (std::cmp::Reverse(of.kicks), of.lock));
    HostDomain {
        id,
        kind: told.map_or(DomainKind::Unknown, |domain| domain.kind),
        concurrency,
        runnable: self::runnable(&runnable, trust),
        poll_to_wake: of.map_or_else(Distribution::default, |of| of.poll_to_wake.told(polls)),
        entries,
        owners_off: owners,
        vcpus,
    }
}

fn runnable(of: &[OfCause; 4], trust: &Trust) -> Vec<Runnable> {
    let each = Cause::ALL.iter().zip(of).map(|(&cause, of)| Runnable {
        cause,
        count: Count { value: of.count, certainty: trust.cause(cause) },
        ticks: of.ticks,
        ticks_certainty: trust.times(),
        to_run: of.to_run.told(trust.times()),
    });
    each.collect()
}

fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(|of| (std::cmp::Reverse(of.count.value), of.kind, of.number));
    entries
}

/// Whose reasons an exit has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
}

impl Vendor {
    /// Xen up to 4.18 writes the same event for both. AMD's numbers begin at 0x40 but for accesses
    /// to control registers, and every guest is interrupted (0x60) or halts (0x78); Intel's end
    /// below 0x50.
    fn of(host: &Host) -> Self {
        let amd =
            |key: &(EntryKind, u32)| key.0 == EntryKind::Exit && (0x60..0x500).contains(&key.1);
        if host.vcpus.values().any(|of| of.entries.counts.keys().any(amd)) {
            Self::Amd
        } else {
            Self::Intel
        }
    }
}

fn name(kind: EntryKind, number: u32, vendor: Vendor) -> Option<&'static str> {
    match kind {
        EntryKind::Hypercall | EntryKind::MulticallEntry => event::hypercall_name(number),
        EntryKind::Trap => event::vector_name(number),
        EntryKind::PvEvent => event::name(number),
        EntryKind::Exit if vendor == Vendor::Amd => event::svm_exit_name(number),
        EntryKind::Exit => event::vmx_exit_name(number),
    }
}
