//! What is told about a trace: plain data, `serde`, a version.
//!
//! Owns the JSON schema (docs/kicktrace.md describes it). Times are in TSC ticks unless the name
//! ends in `_ns` or `_s`; nanoseconds are there when the frequency is known.

use serde::Serialize;

use crate::event;
use crate::reader::Reading;

/// Version of the JSON schema: it grows when a field is removed or changes its meaning.
pub const SCHEMA: u32 = 1;

/// How far a figure can be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certainty {
    /// Counted: every single one is in the trace.
    #[default]
    Exact,
    /// Concluded from the order of records; the rule is in the book.
    Inferred,
    /// At most this many.
    UpperBound,
    /// At least this many.
    LowerBound,
}

impl Certainty {
    /// That of a sum: a bound from above and one from below make none.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::UpperBound, Self::LowerBound) | (Self::LowerBound, Self::UpperBound) => {
                Self::Inferred
            }
            (Self::Inferred, bound) | (bound, Self::Inferred) if bound != Self::Exact => {
                Self::Inferred
            }
            (one, other) => one.max(other),
        }
    }

    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Inferred => "inferred",
            Self::UpperBound => "upper-bound",
            Self::LowerBound => "lower-bound",
        }
    }
}

/// A count and how far to trust it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// The count.
    pub value: u64,
    /// How far to trust it.
    pub certainty: Certainty,
}

impl Count {
    /// A count of records.
    #[must_use]
    pub const fn exact(value: u64) -> Self {
        Self { value, certainty: Certainty::Exact }
    }

    /// A count concluded from the order of records.
    #[must_use]
    pub const fn inferred(value: u64) -> Self {
        Self { value, certainty: Certainty::Inferred }
    }

    /// At most this many.
    #[must_use]
    pub const fn at_most(value: u64) -> Self {
        Self { value, certainty: Certainty::UpperBound }
    }

    /// At least this many.
    #[must_use]
    pub const fn at_least(value: u64) -> Self {
        Self { value, certainty: Certainty::LowerBound }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.value += other.value;
        self.certainty = self.certainty.and(other.certainty);
    }
}

/// What speaks for a trace, or against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Looked at, and as it should be.
    Good,
    /// Nothing is wrong, but a reader should know it.
    Note,
    /// Figures may be wrong, or not be all.
    Doubtful,
    /// What a kick count needs is not there.
    Missing,
}

impl Verdict {
    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Doubtful => "doubtful",
            Self::Missing => "missing",
        }
    }
}

/// One thing looked at to judge a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it means.
    pub verdict: Verdict,
    /// What was looked at: one word that stays the same.
    pub topic: &'static str,
    /// What was found.
    pub what: String,
    /// What to do about it; empty when there is nothing to do.
    pub remedy: String,
    /// The bits of `xentrace -e` that bring what is missing.
    pub mask: Option<u32>,
    /// A class of events is not there, and nothing shows that anything of it happened: in a part of
    /// a trace it may have been captured all the same.
    #[serde(skip)]
    pub(crate) unproved: bool,
}

/// Everything [`summarise`](crate::summarise) finds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What the file held.
    pub reading: Reading,
    /// Ticks to seconds.
    pub clock: Clock,
    /// The part of the trace that is told, if it is not all of it.
    pub window: Option<Window>,
    /// Ticks told: last TSC minus first TSC without the times in which nothing
    /// was recorded, or the length of `window`.
    pub ticks: u64,
    /// The same in seconds, when the frequency is known.
    pub seconds: Option<f64>,
    /// Percent of the vCPUs' time that no lost record makes doubtful, over all domains.
    pub coverage_percent: f64,
    /// Which classes of events the trace holds.
    pub classes: Classes,
    /// Domains, idle left out, by number.
    pub domains: Vec<Domain>,
    /// Corrections of pCPUs' TSCs, in ticks to add, that contradictions in the trace call for, on
    /// top of those given; empty when the TSCs are in step.
    pub tsc_offsets: Vec<(u32, i64)>,
    /// The worst of `findings`.
    pub verdict: Verdict,
    /// Everything the trace was judged by, good or bad.
    pub findings: Vec<Finding>,
    /// What a reader should know before believing a figure: the findings that are doubtful or
    /// worse, as sentences.
    pub warnings: Vec<String>,
    /// What figures beside these must heed too.
    #[serde(skip)]
    pub(crate) doubt: Doubt,
}

/// Doubts that concern figures of every domain.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Doubt {
    /// The order of different pCPUs' records is not certain: nothing that spans pCPUs is exact.
    pub(crate) order: bool,
    /// Records of some pCPUs are missing: every count is a lower bound.
    pub(crate) partial: bool,
    /// Some are missing where no record tells of it, so what lacks them cannot be left out.
    pub(crate) untold: bool,
    /// Which pCPU a vCPU is on is not always known.
    pub(crate) cores: bool,
}

impl Doubt {
    /// How far figures that span pCPUs can be trusted at best.
    pub(crate) fn order(self) -> Certainty {
        if self.order || self.cores { Certainty::Inferred } else { Certainty::Exact }
    }

    /// How far values can be trusted from which those beside lost records are left out.
    pub(crate) fn values(self) -> Certainty {
        if self.untold { Certainty::Inferred } else { self.order() }
    }
}

impl Summary {
    /// The findings with this verdict.
    pub fn found(&self, verdict: Verdict) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.verdict == verdict)
    }
}

/// A part of a trace, in ticks after its first record. What has an end (a wait, an acquisition, a
/// latency) is told in the window it ends in; time is told where it was spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// Begin.
    pub from: u64,
    /// End; what happens at this very tick is not in it.
    pub to: u64,
}

/// Ticks to seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Clock {
    /// TSC ticks a second, if known.
    pub hz: Option<f64>,
    /// Where the frequency comes from.
    pub source: ClockSource,
    /// How far the frequency may be off, in parts per million: the largest of half the distance of
    /// the quartiles of its runs, each weighed by its length, of what the ends of the longest run
    /// leave open, and of the distance of pCPUs that disagree; and besides what TSCs that are out
    /// of step, or the corrections of them, leave open. Never 0.
    pub error_ppm: Option<f64>,
    /// The error may be larger: TSCs are out of step, and some pCPUs have no runs that would tell
    /// how fast theirs is.
    pub error_open: bool,
    /// Runs of vCPUs the calibration could choose from.
    pub runs: u64,
    /// pCPUs whose system time runs at another rate than the others', in parts per million.
    pub disagreeing: Vec<(u32, f64)>,
}

impl Clock {
    /// A clock of a given frequency, or none.
    #[must_use]
    pub const fn known(hz: Option<f64>) -> Self {
        let source = if hz.is_some() { ClockSource::Given } else { ClockSource::None };
        Self { hz, source, error_ppm: None, error_open: false, runs: 0, disagreeing: Vec::new() }
    }

    /// The error as people read it: whole parts per million, rounded up.
    #[must_use]
    pub fn error_text(&self) -> Option<String> {
        let more = if self.error_open { " or more" } else { "" };
        self.error_ppm.map(|ppm| format!("{:.0} ppm{more}", ppm.ceil().max(1.0)))
    }

    /// Ticks to nanoseconds, when the frequency is known.
    #[must_use]
    pub fn ns(&self, ticks: u64) -> Option<f64> {
        self.hz.map(|hz| ticks as f64 * 1e9 / hz)
    }
}

/// Where a frequency comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockSource {
    /// The caller gave it.
    Given,
    /// Measured on the trace's own scheduler records.
    Calibrated,
    /// Unknown: all times stay in ticks.
    None,
}

/// Which classes of events were seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Classes {
    /// Runstate changes.
    pub runstates: bool,
    /// Wake and block.
    pub wakes: bool,
    /// Hypercalls of PV domains.
    pub pv_hypercalls: bool,
    /// Exits of HVM and PVH domains.
    pub hvm_exits: bool,
    /// Hypercalls of HVM and PVH domains.
    pub hvm_hypercalls: bool,
    /// The guest's marks of pvlock (see [`crate::markers`]).
    pub markers: bool,
    /// Any event of the group of wakes and blocks, which shows that the group was captured: Xen
    /// selects groups, not events.
    pub scheduler: bool,
    /// Any entry of a PV domain into Xen, likewise.
    pub pv_entries: bool,
    /// Anything done between an exit of an HVM or PVH domain and its next entry, likewise.
    pub hvm_handlers: bool,
    /// A guest called `hvm_op`, as it does to mark.
    pub mark_calls: bool,
}

impl Classes {
    /// Notes the class of an event, as the analysis does on its way (a test holds them together).
    pub(crate) fn note(&mut self, event: u32) {
        match event & event::GROUP_MASK {
            event::SCHED_MIN => self.runstates |= event::runstate_change(event).is_some(),
            event::SCHED_VERBOSE => {
                self.scheduler = true;
                self.wakes |= event == event::WAKE;
            }
            event::PV_ENTRY | event::PV_SUBCALLS => {
                self.pv_entries = true;
                self.pv_hypercalls |= matches!(event, event::PV_HYPERCALL | event::PV_SUBCALL);
            }
            event::HVM_ENTRY_EXIT => self.hvm_exits |= event::is_vmexit(event),
            event::HVM_HANDLER => {
                self.hvm_handlers = true;
                self.hvm_hypercalls |= event == event::VMMCALL;
            }
            _ => {}
        }
    }

    /// Whether wakes and blocks were captured, though none may have happened.
    #[must_use]
    pub const fn knows_wakes(&self) -> bool {
        self.wakes || self.scheduler
    }

    /// Whether hypercalls were captured, though none may have happened.
    #[must_use]
    pub const fn knows_hypercalls(&self) -> bool {
        self.pv_hypercalls || self.hvm_hypercalls || self.pv_entries || self.hvm_handlers
    }
}

/// How a domain enters Xen, as its records show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainKind {
    /// No hypercall and no exit was seen.
    #[default]
    Unknown,
    /// PV hypercalls.
    Pv,
    /// VM exits: HVM or PVH.
    Hvm,
}

/// One domain.
#[derive(Clone, Debug, Serialize)]
pub struct Domain {
    /// Its number.
    pub id: u16,
    /// How many domains of the trace had this number before it.
    pub life: u32,
    /// When it ended, TSC, if the trace tells of it.
    pub ended: Option<u64>,
    /// Ticks its vCPUs lived in the trace, added up: what `times` are shares of.
    pub ticks: u64,
    /// How it enters Xen.
    pub kind: DomainKind,
    /// Percent of its vCPUs' time that no lost record makes doubtful.
    pub coverage_percent: f64,
    /// Sums over its vCPUs.
    pub counts: Counts,
    /// Sums over its vCPUs.
    pub times: Times,
    /// How far to trust each of `times`, its vCPUs' too.
    pub times_certainty: TimesCertainty,
    /// Over all its waits.
    pub latencies: Latencies,
    /// Acquisitions as the guest marked them; absent when it marked none.
    pub marked: Option<Acquisitions>,
    /// Acquisitions as the order of waits and event channel operations suggests them.
    pub inferred: Acquisitions,
    /// Lock by lock, as the guest marked, the most waited for first; empty when it marked none.
    pub locks: Vec<Lock>,
    /// Its vCPUs, by number.
    pub vcpus: Vec<Vcpu>,
}

/// One lock of a domain, as the guest's marks name it.
#[derive(Clone, Debug, Serialize)]
pub struct Lock {
    /// How far to trust the figures: exact unless a kick is not marked, or the order of different
    /// pCPUs' records is not certain.
    pub certainty: Certainty,
    /// Low half of its address; `None` for all locks beyond the first
    /// [`MAX_LOCKS`](crate::analysis::MAX_LOCKS) of the trace, told together.
    pub lock: Option<u32>,
    /// vCPUs that waited for it.
    pub vcpus: u32,
    /// Waits for it.
    pub waits: u64,
    /// Of those: ended by a waking kick.
    pub waits_kicked: u64,
    /// Acquisitions of it that blocked.
    pub acquisitions: Acquisitions,
    /// From the block to the vCPU on a pCPU again, over its waits.
    pub wait: Distribution,
    /// The longest of its waits.
    pub longest: Option<LongestWait>,
}

/// The longest wait for a lock.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LongestWait {
    /// Who waited.
    pub vcpu: u16,
    /// When it blocked, TSC.
    pub blocked: u64,
    /// Ticks until it was on a pCPU again.
    pub ticks: u64,
    /// The vCPU that kicked it awake, if one did.
    pub kicked_by: Option<u16>,
    /// Ticks for which that vCPU was itself preempted meanwhile.
    pub kicker_stolen: u64,
}

/// One vCPU.
#[derive(Clone, Debug, Serialize)]
pub struct Vcpu {
    /// Its number.
    pub id: u16,
    /// Ticks from its first record to its domain's end or the trace's: what `times` are shares of.
    pub ticks: u64,
    /// Percent of its time that no lost record makes doubtful.
    pub coverage_percent: f64,
    /// Its counts.
    pub counts: Counts,
    /// Its times.
    pub times: Times,
    /// Its waits.
    pub latencies: Latencies,
    /// See [`Domain::marked`].
    pub marked: Option<Acquisitions>,
    /// See [`Domain::inferred`].
    pub inferred: Acquisitions,
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened how often. "Wait" is a poll that blocked and ended.
        #[derive(Clone, Copy, Debug, Serialize)]
        pub struct Counts {
            $($(#[$doc])* pub $name: Count,)*
        }

        impl Default for Counts {
            fn default() -> Self {
                Self { $($name: Count::exact(0),)* }
            }
        }

        impl Counts {
            pub(crate) fn add(&mut self, other: &Self) {
                $(self.$name.add(other.$name);)*
            }

            /// Every count with its name, in the order they are told.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, Count)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counts! {
    /// Event channel operations by this vCPU, of any kind and to any port.
    evtchn_ops,
    /// Of those: woke a vCPU of the same domain out of a poll.
    waking_kicks,
    /// Of those: woke a vCPU of the same domain that was idle, not polling.
    idle_kicks,
    /// Of those: woke nobody. At most this many kicks were in vain; with markers, exactly.
    kicks_without_wake,
    /// Kicks the guest marked.
    marked_kicks,
    /// Polls of this vCPU.
    polls,
    /// Of those: blocked.
    polls_blocked,
    /// Of those: woken after they decided to block and before they left the pCPU.
    polls_aborted,
    /// Of those: returned at once.
    polls_immediate,
    /// Of those: how they ended is not in the trace (a gap, the end of the trace or of the domain).
    polls_unresolved,
    /// Blocked otherwise: idle, not a lock.
    idle_blocks,
    /// Blocked in a call begun before the trace, or in a gap: in none of the figures of polls and
    /// idling.
    blocks_unknown,
    /// Gave up the pCPU.
    yields,
    /// Waits of this vCPU that ended, aborted ones included.
    waits,
    /// Of those: for a lock, as the guest marked.
    marked_waits,
    /// Of `waits`: ended by a waking kick.
    waits_kicked,
    /// Of `waits`: ended by something else (a timer, a device, another domain).
    waits_other,
    /// Waits in or beside a gap of the trace; in none of the other figures.
    waits_tainted,
    /// Waits that ended without a kick and were followed by another poll with no event channel
    /// operation in between.
    spurious_wakes,
    /// Waits during which the vCPU that ended them had itself been preempted.
    kicker_preempted,
    /// Runstate changes whose old state is not the one before: skewed TSCs or missing records.
    inconsistent,
}

macro_rules! times {
    ($($(#[$doc:meta])* $name:ident: $certainty:ident,)*) => {
        /// Where time went, in TSC ticks.
        #[derive(Clone, Copy, Debug, Default, Serialize)]
        pub struct Times {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// How far to trust each of [`Times`].
        #[derive(Clone, Copy, Debug, Serialize)]
        pub struct TimesCertainty {
            $(/// See [`Times`].
            pub $name: Certainty,)*
        }

        impl Default for TimesCertainty {
            fn default() -> Self {
                Self { $($name: Certainty::$certainty,)* }
            }
        }

        impl Times {
            pub(crate) fn add(&mut self, other: &Self) {
                // A sum over vCPUs of a file that lies about its times may exceed any number.
                $(self.$name = self.$name.saturating_add(other.$name);)*
            }

            /// Every time with its name and certainty, in the order they are told.
            #[must_use]
            pub fn named(&self, of: &TimesCertainty) -> Vec<(&'static str, u64, Certainty)> {
                vec![$((stringify!($name), self.$name, of.$name),)*]
            }
        }
    };
}

times! {
    /// On a pCPU.
    running: Exact,
    /// Ready to run without a pCPU: stolen.
    stolen: Exact,
    /// Of `stolen`: between a wake and running.
    stolen_after_wake: Exact,
    /// Waiting for an event, a lock or idle.
    blocked: Exact,
    /// Of `blocked`: in a poll.
    blocked_in_poll: Exact,
    /// Down or paused.
    offline: Exact,
    /// Running between two waits of one acquisition: at least so long spinning.
    spinning: LowerBound,
    /// Over all waits: how long their kicker was itself off its pCPU, preempted, between the
    /// waiter's block and the kick.
    kicker_stolen: Inferred,
    /// Time in no known state.
    unknown: Exact,
}

/// Distributions over waits.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Latencies {
    /// From the waker's event channel operation to the wake.
    pub kick_to_wake: Distribution,
    /// From the wake to the vCPU on a pCPU.
    pub wake_to_run: Distribution,
    /// From the waker's event channel operation to the vCPU on a pCPU.
    pub kick_to_run: Distribution,
    /// From the block to the vCPU on a pCPU again.
    pub wait: Distribution,
}

/// Quantiles of one distribution, in TSC ticks; within 1 % of the true value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// Whether the values are measured between records that leave no doubt, or between records
    /// joined by inference.
    pub certainty: Certainty,
    /// Number of values.
    pub count: u64,
    /// Smallest.
    pub min: u64,
    /// Half are at most this.
    pub p50: u64,
    /// 90 % are at most this.
    pub p90: u64,
    /// 99 % are at most this.
    pub p99: u64,
    /// 99.9 % are at most this.
    pub p999: u64,
    /// Largest.
    pub max: u64,
    /// Mean.
    pub mean: f64,
    /// Non-empty classes of an HDR histogram: highest value of the class, values in it.
    pub histogram: Vec<(u64, u64)>,
}

impl Default for Distribution {
    fn default() -> Self {
        Self {
            certainty: Certainty::Exact,
            count: 0,
            min: 0,
            p50: 0,
            p90: 0,
            p99: 0,
            p999: 0,
            max: 0,
            mean: 0.0,
            histogram: Vec::new(),
        }
    }
}

/// Waits and waking kicks per acquisition of a lock that blocked at least once.
#[derive(Clone, Debug, Serialize)]
pub struct Acquisitions {
    /// How far to trust all of these.
    pub certainty: Certainty,
    /// Acquisitions that blocked at least once.
    pub blocked: u64,
    /// Their waits.
    pub waits: u64,
    /// Their waking kicks.
    pub waking_kicks: u64,
    /// How many waited once, twice, three times or more.
    pub by_waits: [u64; 3],
    /// How many were kicked awake never, once, twice, three times or more.
    pub by_waking_kicks: [u64; 4],
    /// `table[w][k]`: acquisitions with `w` waits and `k` waking kicks; 3 means 3 or more.
    pub table: [[u64; 4]; 4],
    /// Waking kicks for each of `blocked`.
    pub waking_kicks_per_blocked: Option<f64>,
    /// Standard deviation of the waking kicks of one acquisition.
    pub waking_kicks_sd: Option<f64>,
    /// Acquisitions that waited twice or more.
    pub slept_twice: u64,
    /// Waking kicks for each of `slept_twice`.
    pub waking_kicks_per_slept_twice: Option<f64>,
    /// Kicked awake twice or more, always by the same vCPU.
    pub kicked_again_by_same_sender: u64,
    /// Kicked awake twice or more, by different vCPUs.
    pub kicked_again_by_other_sender: u64,
    /// Acquisitions in none of these figures: begun before the trace, or beside a gap.
    pub excluded: u64,
    /// Acquisitions for which the guest counted fewer polls or kicks than the hypervisor saw.
    pub disagreements: u64,
}
