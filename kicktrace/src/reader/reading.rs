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
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { buffer_limit: 256 << 20, strict: false, tsc_offsets: Vec::new() }
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
    /// The most bytes held back at one time.
    pub peak_buffered: u64,
    /// Each pCPU that has records.
    pub pcpus: Vec<PcpuReading>,
}

impl Reading {
    /// Records Xen dropped, over all pCPUs.
    #[must_use]
    pub fn lost_records(&self) -> u64 {
        self.pcpus.iter().map(|p| p.lost_records).sum()
    }
}
