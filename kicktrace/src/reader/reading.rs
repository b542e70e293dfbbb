//! How to read a trace, and what the reading found: plain data.

/// How to read a trace.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Bytes of records held back at most while waiting for other pCPUs' records. When a trace
    /// needs more, records are released early and [`Reading::late_records`] may rise above 0.
    /// Default 256 MiB; a trace needs about one ring (`xentrace -S` pages) for each pCPU.
    pub buffer_limit: usize,
    /// Fail on a cut file instead of reading it up to the cut.
    pub strict: bool,
    /// TSC ticks to add to the records of a pCPU: `(pcpu, ticks)`.
    pub tsc_offsets: Vec<(u32, i64)>,
    /// TSCs that run faster or slower than the others, to be corrected besides.
    pub tsc_drifts: Vec<Drift>,
    /// Ticks by which hand-overs leave those corrections open at most, where they were learned.
    pub tsc_open: u64,
}

impl ReadOptions {
    /// Adds a correction, learned with those here applied, to them.
    pub fn correct(&mut self, of: &Correction) {
        let at = self.tsc_offsets.iter().position(|(cpu, _)| *cpu == of.cpu);
        let at = at.unwrap_or_else(|| {
            self.tsc_offsets.push((of.cpu, 0));
            self.tsc_offsets.len() - 1
        });
        let offset = &mut self.tsc_offsets[at].1;
        if let Some(mut drift) = of.drift {
            // It was learned in corrected time, and is applied to TSCs as recorded.
            drift.since = drift.since.wrapping_add_signed(offset.wrapping_neg());
            match self.tsc_drifts.iter_mut().find(|drift| drift.cpu == of.cpu) {
                Some(known) => {
                    *offset = offset.wrapping_add(drift.ticks(known.since));
                    known.per_tick += drift.per_tick;
                }
                None => self.tsc_drifts.push(drift),
            }
        }
        *offset = offset.wrapping_add(of.ticks);
    }

    /// Whether any TSC is corrected.
    #[must_use]
    pub fn corrects(&self) -> bool {
        !self.tsc_drifts.is_empty() || self.tsc_offsets.iter().any(|&(_, ticks)| ticks != 0)
    }
}

/// How a pCPU's TSC is to be corrected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correction {
    /// The pCPU.
    pub cpu: u32,
    /// Ticks to add.
    pub ticks: i64,
    /// More to add as time goes on.
    pub drift: Option<Drift>,
    /// Hand-overs leave the offset open by so many ticks: from the correction to the largest one
    /// they allow. `None` if they bound it from one side only.
    pub open: Option<u64>,
}

/// A correction that grows with time: the slope of a pCPU's TSC against the others'.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Drift {
    /// The pCPU.
    pub cpu: u32,
    /// Ticks to add for each tick since `since`; negative for a TSC that is fast.
    pub per_tick: f64,
    /// The TSC, as recorded, at which nothing is added.
    pub since: u64,
}

impl Drift {
    /// Ticks to add to a recorded TSC.
    #[must_use]
    pub fn ticks(&self, tsc: u64) -> i64 {
        let since = tsc.wrapping_sub(self.since) as i64;
        (since as f64 * self.per_tick) as i64
    }
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            buffer_limit: 256 << 20,
            strict: false,
            tsc_offsets: Vec::new(),
            tsc_drifts: Vec::new(),
            tsc_open: 0,
        }
    }
}

/// A file that ends before its last window does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Truncation {
    /// Length of the input in bytes.
    pub offset: u64,
    /// Bytes that are known to be missing.
    pub missing: u64,
    /// Bytes of an incomplete record before the cut that were not used.
    pub unused: u64,
}

/// What one pCPU's stream held.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PcpuReading {
    /// The pCPU.
    pub cpu: u32,
    /// Records delivered.
    pub records: u64,
    /// Records Xen dropped because the ring was full.
    pub lost_records: u64,
    /// Number of gaps in the stream.
    pub gaps: u64,
    /// TSC ticks in gaps.
    pub gap_ticks: u64,
    /// Records whose TSC is before that of their predecessor in the same stream.
    pub backwards: u64,
    /// TSC of the first record that carries one, and of the last.
    pub first_tsc: u64,
    /// See `first_tsc`.
    pub last_tsc: u64,
    /// How often the TSC started again from a much lower value: the host slept or rebooted.
    pub resets: u64,
    /// Records whose TSC is far from that of both their neighbours: they got their predecessor's.
    pub strays: u64,
}

/// A time in which no pCPU wrote anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Silence {
    /// TSC of the last record before.
    pub from: u64,
    /// TSC of the first record behind.
    pub to: u64,
}

impl Silence {
    /// How long it was.
    #[must_use]
    pub const fn ticks(&self) -> u64 {
        self.to.saturating_sub(self.from)
    }
}

/// What was read: the format's own figures, all exact.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Reading {
    /// Bytes read.
    pub bytes: u64,
    /// Windows seen.
    pub windows: u64,
    /// Records delivered (window headers and padding left out).
    pub records: u64,
    /// TSC of the first record.
    pub first_tsc: u64,
    /// TSC of the last record.
    pub last_tsc: u64,
    /// Where the input was cut, if it was.
    pub truncated: Option<Truncation>,
    /// Records that came after a record with a later TSC had been delivered: skewed TSCs, or a
    /// buffer limit too small.
    pub late_records: u64,
    /// Times without any record that are too long for a trace that was being taken (2^34 ticks,
    /// some seconds): the first 16 of them.
    pub silences: Vec<Silence>,
    /// Ticks in all such times. They are no part of the trace's length.
    pub silent_ticks: u64,
    /// A shorter time without any record, if it stands out among all others.
    pub pause: Option<Silence>,
    /// The most bytes held back at one time.
    pub peak_buffered: u64,
    /// Each pCPU that has records.
    pub pcpus: Vec<PcpuReading>,
}

impl Reading {
    /// The length of the trace in ticks: from the first record to the last, silences left out.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        self.last_tsc.saturating_sub(self.first_tsc).saturating_sub(self.silent_ticks)
    }

    /// How often a pCPU's TSC started again.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.pcpus.iter().map(|pcpu| pcpu.resets).max().unwrap_or(0)
    }

    /// Records Xen dropped, over all pCPUs.
    #[must_use]
    pub fn lost_records(&self) -> u64 {
        self.pcpus.iter().map(|p| p.lost_records).sum()
    }
}
