//! One record, and whoever takes records.
//!
//! Owns what the merge hands out and the questions it asks ([`Visit`]). Reads no bytes.

use crate::error::Error;
use crate::event;

/// One record, at its place in time.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The pCPU whose ring held it.
    pub cpu: u32,
    /// Host TSC, corrected as [`ReadOptions`](crate::reader::ReadOptions) says. A record without
    /// one has the time of the record before it on the same pCPU; the first of a pCPU, of the next
    /// that has one. Where the TSC started again (the host slept, or a second session follows), it
    /// goes on behind the latest one so far.
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
    #[inline]
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
    /// TSC (but see [`is_local`](Self::is_local)); a [`event::LOST_RECORDS`] record comes at the
    /// *start* of its gap, before other pCPUs' records of that time.
    ///
    /// # Errors
    /// An error ends the reading and is returned by [`read`](crate::reader::read).
    fn record(&mut self, record: &Record<'_>) -> Result<(), Error>;

    /// Whether a record of this event, whose payload begins with `first` unless it is empty, needs
    /// its place among those of *its own* pCPU only. It may then come before earlier records of
    /// other pCPUs, which makes the merge faster. The format's own records ([`event::GENERAL`])
    /// always need their place among all.
    ///
    /// Asked of every record that is not [always local](Self::is_always_local): an answer without
    /// branches is the fastest.
    #[inline]
    #[must_use]
    fn is_local(event: u32, first: Option<u32>) -> bool {
        let _ = (event, first);
        false
    }

    /// Whether every record of this event [`is_local`](Self::is_local), whatever its payload; false
    /// is always right. Asked of every record, so it is to be a comparison or two.
    #[inline]
    #[must_use]
    fn is_always_local(event: u32) -> bool {
        let _ = event;
        false
    }

    /// Whether a record that needs its place may all the same come right behind the one before it on
    /// its pCPU, because what has been visited shows that no other pCPU's record can concern the
    /// same things in between. It is of this event, and its payload begins with `first` unless it
    /// is empty. The one before it is of event `before`, and is visited next: it has not been yet.
    #[inline]
    #[must_use]
    fn goes_on(&self, before: u32, event: u32, first: Option<u32>) -> bool {
        let _ = (before, event, first);
        false
    }

    /// Called before the first record behind a time in which no pCPU wrote anything, from the TSC
    /// of the last record to that of the next one, too long for a trace that was being taken: what
    /// stands before it belongs to another session.
    fn silence(&mut self, from: u64, to: u64) {
        let _ = (from, to);
    }

    /// Called after each window, when all that was read so far has been delivered as far as it is
    /// final, and more may not be there yet: the moment to flush an output, so that a live trace is
    /// seen as it grows.
    ///
    /// # Errors
    /// An error ends the reading and is returned by [`read`](crate::reader::read).
    fn caught_up(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

impl<F: FnMut(&Record<'_>) -> Result<(), Error>> Visit for F {
    fn record(&mut self, record: &Record<'_>) -> Result<(), Error> {
        self(record)
    }
}
