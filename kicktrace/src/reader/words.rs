//! A record as words.
//!
//! Owns the layout of a record's header. Knows no event.

use std::ops::Range;

/// The longest record: header, TSC, seven words.
pub(super) const LONGEST: usize = 10;

/// The words of a record with this header.
#[inline]
pub(super) const fn record_words(header: u32) -> usize {
    1 + ((header >> 31) as usize) * 2 + ((header >> 28) & 7) as usize
}

/// The words of the payload of a record with this header, from the header on.
#[inline]
pub(super) const fn payload(header: u32) -> Range<usize> {
    let start = 1 + 2 * (header >> 31) as usize;
    start..start + (header >> 28 & 7) as usize
}

/// The first word of a record's payload, unless it is empty.
#[inline]
pub(super) fn first(record: &[u32; LONGEST]) -> Option<u32> {
    let payload = payload(record[0]);
    (!payload.is_empty()).then_some(record[payload.start])
}

/// A number of 64 bits, lower word first.
#[inline]
pub(super) const fn wide(lo: u32, hi: u32) -> u64 {
    lo as u64 | (hi as u64) << 32
}

/// The words of a number of 64 bits, lower one first.
pub(super) const fn split(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}
