//! A trace cut into phases, or one window of it.
//!
//! Owns the moments at which the analysis is told and begins again. Counts nothing itself. The
//! figures of a phase are those of a trace that the analyser had followed from its very start: who
//! runs, who sleeps and who marks is known when a phase begins.

use crate::analysis::{Analyser, Observe, Options, Whole};
use crate::error::{Error, ErrorKind};
use crate::reader::{PcpuReading, Reading, Record, Silence, Visit};
use crate::summary::{Summary, Window};

/// More phases than this are refused: each costs time and memory, and nobody reads so many.
pub const MAX_PHASES: u64 = 10_000;

/// Which parts of a trace are told, in ticks after its first record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The first phase begins here.
    pub from: u64,
    /// The last phase ends here; `None` at the end of the trace.
    pub to: Option<u64>,
    /// Length of a phase; `None` for a single one.
    pub every: Option<u64>,
}

/// Follows all vCPUs through a trace and hands a [`Summary`] of each phase to a closure, as soon as
/// the phase is over. A [`Visit`]or, as [`Analyser`] is.
///
/// # Example
/// ```
/// use kicktrace::analysis::{Bounds, Options, Phases};
/// # use kicktrace::{reader, synth};
/// # let mut trace = Vec::new();
/// # synth::generate(&synth::Plan::default(), &mut trace).unwrap();
/// let mut waits = Vec::new();
/// // 5 ms each, at the 2.8 GHz of this trace, which lasts 30 ms.
/// let bounds = Bounds { every: Some(14_000_000), ..Bounds::default() };
/// let mut phases = Phases::new(&Options::default(), (), bounds, |phase, _observer: &mut ()| {
///     waits.push(phase.domains.iter().map(|domain| domain.counts.waits.value).sum::<u64>());
/// });
/// let reading = reader::read(&trace[..], &reader::ReadOptions::default(), &mut phases)?;
/// phases.finish(reading);
/// assert!(waits.len() > 3 && waits[1] > 0);
/// # Ok::<(), kicktrace::Error>(())
/// ```
pub struct Phases<O, F> {
    analyser: Analyser<O>,
    bounds: Bounds,
    sink: F,
    /// TSC of the first record.
    start: Option<u64>,
    /// TSC at which the phase under way began.
    began: u64,
    /// TSC at which something changes: a phase ends or the first one begins.
    next: u64,
    stage: Stage,
    /// Phases are of a second, for ever.
    seconds: bool,
    /// Phases begun.
    begun: u64,
    records: u64,
    /// Of each pCPU in this phase; and whether it has written at all.
    pcpus: Vec<(PcpuReading, bool)>,
    /// The latest record so far, and how many came behind it in this phase.
    latest: u64,
    late: u64,
    silences: Vec<Silence>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Before,
    Inside,
    After,
}

impl<O: Observe, F: FnMut(Summary, &mut O)> Phases<O, F> {
    /// Follows a trace and tells `sink` of each phase. `observer` is told of a phase's end
    /// ([`Observe::cut`]) just before.
    pub fn new(options: &Options, observer: O, bounds: Bounds, sink: F) -> Self {
        Self {
            analyser: Analyser::observed(options, observer),
            bounds,
            sink,
            start: None,
            began: 0,
            next: 0,
            stage: Stage::Before,
            seconds: false,
            begun: 0,
            records: 0,
            pcpus: Vec::new(),
            latest: 0,
            late: 0,
            silences: Vec::new(),
        }
    }

    /// Phases of a second each, for as long as the trace goes on: of 2^28 ticks until its frequency
    /// is known.
    pub fn seconds(options: &Options, observer: O, sink: F) -> Self {
        let ticks = options.cpu_hz.map_or(1 << 28, |hz| hz as u64);
        let bounds = Bounds { every: Some(ticks), ..Bounds::default() };
        Self { seconds: true, ..Self::new(options, observer, bounds, sink) }
    }

    /// Tells the phase under way when the trace ends, and returns the observer and what the whole
    /// trace tells (a phase's own clock was measured up to its end). Nothing is told of a trace
    /// that ends before `bounds.from`.
    pub fn finish(mut self, reading: Reading) -> (O, Whole) {
        let end = reading.last_tsc;
        if self.stage == Stage::Inside && (end > self.began || self.records > 0) {
            let whole = self.bounds == Bounds::default();
            self.analyser.end(end.max(self.began));
            self.cut(end.max(self.began), whole.then(|| reading.clone()));
        }
        let (clock, classes) = (self.analyser.clock(reading.ticks()), self.analyser.classes);
        (self.analyser.observer, Whole { reading, clock, classes })
    }

    fn begin(&mut self, tsc: u64) {
        self.start = Some(tsc);
        self.began = tsc;
        self.next = tsc.saturating_add(self.bounds.from);
    }

    #[cold]
    fn boundary(&mut self) {
        let at = self.next;
        match self.stage {
            Stage::After => {}
            Stage::Before => {
                if self.start < Some(at) {
                    self.analyser.cut(at, Reading::default());
                }
                (self.began, self.stage) = (at, Stage::Inside);
                self.reading(at);
            }
            Stage::Inside => self.cut(at, None),
        }
        self.begun += 1;
        let start = self.start.unwrap_or(0);
        let end = self.bounds.to.map_or(u64::MAX, |to| start.saturating_add(to));
        if at >= end {
            (self.stage, self.next) = (Stage::After, u64::MAX);
        } else {
            self.next =
                self.bounds.every.map_or(end, |every| at.saturating_add(every.max(1)).min(end));
        }
    }

    /// What was read since the last phase ended, up to `at`; the next one begins.
    fn reading(&mut self, at: u64) -> Reading {
        // pCPUs that have nothing to write are there all the same.
        let written = self.pcpus.iter_mut().filter(|(_, written)| *written);
        let pcpus = written.map(|(pcpu, _)| {
            let next = PcpuReading { cpu: pcpu.cpu, ..PcpuReading::default() };
            std::mem::replace(pcpu, next)
        });
        Reading {
            records: std::mem::take(&mut self.records),
            first_tsc: self.began,
            last_tsc: at,
            pcpus: pcpus.collect(),
            late_records: std::mem::take(&mut self.late),
            silences: std::mem::take(&mut self.silences),
            ..Reading::default()
        }
    }

    /// Ends the phase under way; `whole` is what was read if it is all of the trace.
    fn cut(&mut self, at: u64, whole: Option<Reading>) {
        let start = self.start.unwrap_or(0);
        let reading = self.reading(at);
        let mut summary = self.analyser.cut(at, whole.unwrap_or(reading));
        // Moments are told from the start of the trace.
        summary.reading.first_tsc = start;
        let whole = self.bounds == Bounds::default();
        let window = Window { from: self.began - start, to: at - start };
        summary.window = (!whole).then_some(window);
        self.began = at;
        if let (true, Some(hz)) = (self.seconds, summary.clock.hz) {
            self.bounds.every = Some(hz as u64);
        }
        (self.sink)(summary, &mut self.analyser.observer);
    }

    fn count(&mut self, record: &Record<'_>) {
        self.records += 1;
        let cpu = record.cpu as usize;
        if self.pcpus.len() <= cpu {
            let more = self.pcpus.len() as u32..=record.cpu;
            let none = |cpu| (PcpuReading { cpu, ..PcpuReading::default() }, false);
            self.pcpus.extend(more.map(none));
        }
        let (pcpu, written) = &mut self.pcpus[cpu];
        *written = true;
        pcpu.records += 1;
        if let Some(lost) = record.lost() {
            pcpu.lost_records += u64::from(lost.records);
            pcpu.gaps += 1;
            let ticks = record.tsc.saturating_sub(lost.first_tsc);
            pcpu.gap_ticks = pcpu.gap_ticks.saturating_add(ticks);
        }
    }
}

impl<O: Observe, F: FnMut(Summary, &mut O)> Visit for Phases<O, F> {
    // Whatever happens must fall into its phase, so every record comes in its place in time.
    fn record(&mut self, record: &Record<'_>) -> Result<(), Error> {
        // A gap is delivered at its start.
        let tsc = record.lost().map_or(record.tsc, |lost| lost.first_tsc.min(record.tsc));
        if self.start.is_none() {
            self.begin(tsc);
        }
        while tsc >= self.next && self.stage != Stage::After {
            if self.seconds && (tsc - self.next) / 64 > self.bounds.every.unwrap_or(u64::MAX) {
                // A live trace that was silent for long goes on now.
                self.next = tsc;
            }
            if self.begun > MAX_PHASES && !self.seconds {
                let (offset, limit) = (record.offset, MAX_PHASES);
                return Err(ErrorKind::TooManyPhases { offset, limit }.into());
            }
            self.boundary();
        }
        if self.stage == Stage::After {
            // The frequency is that of the whole trace, and so is what was captured.
            self.analyser.classes.note(record.event);
            return self.analyser.calibration.record(record);
        }
        self.late += u64::from(tsc < self.latest);
        self.latest = self.latest.max(tsc);
        self.count(record);
        self.analyser.record(record)
    }

    fn silence(&mut self, from: u64, to: u64) {
        if self.silences.is_empty() {
            // Of a phase one is as good as many.
            self.silences.push(Silence { from, to });
        }
        self.analyser.silence(from, to);
    }

    fn caught_up(&mut self) -> Result<(), Error> {
        self.analyser.caught_up()
    }
}

/// Two [`Visit`]ors in one reading.
pub struct Both<'a, A, B>(pub &'a mut A, pub &'a mut B);

impl<A: Visit, B: Visit> Visit for Both<'_, A, B> {
    fn record(&mut self, record: &Record<'_>) -> Result<(), Error> {
        self.0.record(record)?;
        self.1.record(record)
    }

    fn is_local(event: u32, first: Option<u32>) -> bool {
        A::is_local(event, first) && B::is_local(event, first)
    }

    fn is_always_local(event: u32) -> bool {
        A::is_always_local(event) && B::is_always_local(event)
    }

    fn goes_on(&self, before: u32, event: u32, first: Option<u32>) -> bool {
        self.0.goes_on(before, event, first) && self.1.goes_on(before, event, first)
    }

    fn silence(&mut self, from: u64, to: u64) {
        self.0.silence(from, to);
        self.1.silence(from, to);
    }

    fn caught_up(&mut self) -> Result<(), Error> {
        self.0.caught_up()?;
        self.1.caught_up()
    }
}

/// A [`Visit`]or that looks at nothing.
pub struct Nothing;

impl Visit for Nothing {
    fn record(&mut self, _: &Record<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn is_local(_: u32, _: Option<u32>) -> bool {
        true
    }

    fn is_always_local(_: u32) -> bool {
        true
    }

    fn goes_on(&self, _: u32, _: u32, _: Option<u32>) -> bool {
        true
    }
}
