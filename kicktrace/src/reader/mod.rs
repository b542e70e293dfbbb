//! From bytes to records in time order, in one pass and bounded memory.
//!
//! Owns the file format (Xen public/trace.h and what `xentrace` writes around it): windows, record
//! headers, padding, lost records, cut files, the merge of the pCPUs' streams by TSC. Must never
//! interpret an event beyond what the format itself needs, and never panic on any input.
//!
//! Windows are read and checked as blocks of whole records (`window.rs`), which are merged and
//! handed to the [`Visit`]or (`merge.rs`). Both are done by the caller's thread: a block that goes
//! from one core to another costs more than a thread wins.

mod block;
mod merge;
mod reading;
mod record;
mod time;
mod tournament;
mod window;
mod words;

use std::io::Read;

use crate::error::{Error, ErrorKind};

pub use reading::{Correction, Drift, PcpuReading, ReadOptions, Reading, Silence, Truncation};
pub use record::{Lost, Record, Visit};

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
pub fn read<R: Read, V: Visit>(
    input: R,
    options: &ReadOptions,
    visitor: &mut V,
) -> Result<Reading, Error> {
    let mut windows = window::Windows::<R, V>::new(input, options);
    let mut merge = merge::Merge::new(options, visitor);
    while let Some(block) = windows.next_block(merge.spare()) {
        let last = block.last;
        merge.push(block)?;
        if last {
            // The next window of a live trace may be some time away.
            merge.caught_up()?;
        }
    }
    merge.finish()?;
    let end = windows.end()?;
    if let (true, Some(cut)) = (options.strict, end.truncated) {
        return Err(ErrorKind::Truncated { offset: cut.offset, missing: cut.missing }.into());
    }
    Ok(merge.into_reading(end))
}
