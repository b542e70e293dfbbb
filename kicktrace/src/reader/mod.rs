//! From bytes to records in time order, in one pass and bounded memory.
//!
//! Owns the file format (Xen public/trace.h and what `xentrace` writes around it): windows, record
//! headers, padding, lost records, cut files, the merge of the pCPUs' streams by TSC. Must never
//! interpret an event beyond what the format itself needs, and never panic on any input.
//!
//! A thread reads and checks blocks of whole records (`window.rs`); the caller's thread merges them
//! and calls the [`Visit`]or (`merge.rs`).

mod merge;
mod tournament;
mod window;

use std::io::Read;
use std::sync::mpsc;

use crate::error::{Error, ErrorKind};
use crate::event;

/// One more than the highest pCPU number accepted: Xen's own limit (NR_CPUS is at most 16383).
pub const MAX_PCPUS: u32 = 16384;

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

/// One record, at its place in time.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The pCPU whose ring held it.
    pub cpu: u32,
    /// Host TSC, corrected by [`ReadOptions::tsc_offsets`]. A record without one has the time of the
    /// record before it on the same pCPU.
    pub tsc: u64,
    /// The event with all its class bits.
    pub event: u32,
    /// Whether the record carried a TSC of its own.
    pub timed: bool,
    /// Payload, 0 to 7 words.
    pub words: &'a [u32],
    /// Where the record starts, in bytes from the start of the input.
    pub offset: u64,
}

/// Payload of [`event::LOST_RECORDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// How many records did not fit into the ring.
    pub records: u32,
    /// The domain that ran on the pCPU when there was room again.
    pub domain: u16,
    /// Its vCPU.
    pub vcpu: u16,
    /// TSC of the first lost record; the gap ends at the record's own TSC.
    pub first_tsc: u64,
}

impl Record<'_> {
    /// Decodes a [`event::LOST_RECORDS`] record; `None` for another event.
    #[must_use]
    pub fn lost(&self) -> Option<Lost> {
        match (self.event, self.words) {
            (event::LOST_RECORDS, &[records, who, lo, hi, ..]) => Some(Lost {
                records,
                domain: who as u16,
                vcpu: (who >> 16) as u16,
                first_tsc: u64::from(lo) | u64::from(hi) << 32,
            }),
            _ => None,
        }
    }
}

/// Consumes records in time order.
pub trait Visit {
    /// Called for every record but window headers and ring padding. Records come in order of their
    /// TSC (but see [`is_local`](Self::is_local)); a [`event::LOST_RECORDS`] record comes at the *start* of its gap, before other pCPUs'
    /// records of that time.
    ///
    /// # Errors
    /// An error ends the reading and is returned by [`read`].
    fn record(&mut self, record: &Record<'_>) -> Result<(), Error>;

    /// Whether a record of this event with this payload needs its place among those of *its own*
    /// pCPU only. It may then come before earlier records of other pCPUs, which makes the merge
    /// faster.
    #[inline]
    #[must_use]
    fn is_local(event: u32, words: &[u32]) -> bool {
        let _ = (event, words);
        false
    }

    /// Whether a record that needs its place may come right now all the same, because what has been
    /// visited shows that no other pCPU's record can concern the same things in between. It directly
    /// follows, on its pCPU, one of event `before`, which was the last one visited.
    #[inline]
    #[must_use]
    fn goes_on(&self, before: u32, event: u32, words: &[u32]) -> bool {
        let _ = (before, event, words);
        false
    }

    /// Called when all that could be read so far has been delivered, as far as it is final, and more
    /// is not there yet: the moment to flush an output, so that a live trace is seen as it grows.
    ///
    /// # Errors
    /// An error ends the reading and is returned by [`read`].
    fn caught_up(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

impl<F: FnMut(&Record<'_>) -> Result<(), Error>> Visit for F {
    fn record(&mut self, record: &Record<'_>) -> Result<(), Error> {
        self(record)
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

/// Reads a whole trace and hands its records to `visitor` in time order.
///
/// `input` may be a pipe: nothing is read twice. Memory is bounded by
/// [`ReadOptions::buffer_limit`].
///
/// # Errors
/// Damaged input, an input that cannot be read, or whatever `visitor` returns. Records before the
/// damage have been visited by then.
///
/// # Example
/// ```
/// # use kicktrace::reader::{read, ReadOptions, Record};
/// let mut trace = Vec::new();
/// trace.extend_from_slice(&0x2001_f003u32.to_le_bytes()); // a window
/// trace.extend_from_slice(&0u32.to_le_bytes()); //            of pCPU 0
/// trace.extend_from_slice(&20u32.to_le_bytes()); //           with 20 bytes
/// for word in [0xa002_8004u32, 7, 0, 1, 3] {
///     trace.extend_from_slice(&word.to_le_bytes()); // wake d1v3 at TSC 7
/// }
/// let mut wakes = Vec::new();
/// let reading = read(&trace[..], &ReadOptions::default(), &mut |record: &Record<'_>| {
///     wakes.push((record.tsc, record.words[1]));
///     Ok(())
/// })?;
/// assert_eq!(wakes, [(7, 3)]);
/// assert_eq!(reading.records, 1);
/// # Ok::<(), kicktrace::Error>(())
/// ```
pub fn read<R: Read + Send, V: Visit>(
    input: R,
    options: &ReadOptions,
    visitor: &mut V,
) -> Result<Reading, Error> {
    // Deep enough to keep the reading thread busy, small beside the merge's own buffers.
    let (full, blocks) = mpsc::sync_channel(16);
    let (empties, spare) = mpsc::channel();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || window::Windows::<R, V>::new(input, full, spare).run());
        let mut merge = merge::Merge::new(options, empties, visitor);
        let visited = loop {
            let block = match blocks.try_recv() {
                Ok(block) => block,
                Err(mpsc::TryRecvError::Disconnected) => break Ok(()),
                Err(mpsc::TryRecvError::Empty) => {
                    if let Err(error) = merge.caught_up() {
                        break Err(error);
                    }
                    match blocks.recv() {
                        Ok(block) => block,
                        Err(mpsc::RecvError) => break Ok(()),
                    }
                }
            };
            if let Err(error) = merge.push(block) {
                break Err(error);
            }
        };
        // The thread's next send fails and it ends.
        drop(blocks);
        let end = match reader.join() {
            Ok(end) => end,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        visited?;
        merge.finish()?;
        let end = end?;
        if let (true, Some(cut)) = (options.strict, end.truncated) {
            return Err(ErrorKind::Truncated { offset: cut.offset, missing: cut.missing }.into());
        }
        Ok(merge.into_reading(end))
    })
}
