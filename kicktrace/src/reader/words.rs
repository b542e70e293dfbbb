//! A record as words.
//!
//! Owns the layout of a record's header. Knows no event.

use std::ops::Range;

/// The longest record: header, TSC, seven words.
pub(super) const LONGEST: usize = 10;

/// The bits of a header that tell how many words the payload has.
pub(super) const PAYLOAD_WORDS: u32 = 7 << 28;

/// The words of a record with this header.
#[inline]
pub(super) const fn record_words(header: u32) -> u32 {
    1 + (header >> 31) * 2 + ((header >> 28) & 7)
}

/// The words of the payload of a record with this header, from the header on.
#[inline]
pub(super) const fn payload(header: u32) -> Range<usize> {
    let start = 1 + 2 * (header >> 31) as usize;
    start..start + (header >> 28 & 7) as usize
}

/// [`record_words`] of a record that carries a TSC, in one sum less.
#[inline]
pub(super) const fn timed_words(header: u32) -> u32 {
    (header >> 28) - 5
}

/// [`record_words`] of a record that carries none, in one sum less.
#[inline]
pub(super) const fn untimed_words(header: u32) -> u32 {
    (header >> 28) + 1
}

/// The words from the start of a record on, as many as the longest one has; `None` if fewer are
/// left.
#[inline]
pub(super) fn record_at(words: &[u32], at: u32) -> Option<&[u32; LONGEST]> {
    // A sum of 32 bits and a few cannot overflow: one comparison tells.
    let at = at as usize;
    words.get(at..at + LONGEST)?.first_chunk()
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

#[cfg(test)]
mod tests {
    use super::{payload, record_at, record_words, timed_words, untimed_words};

    #[test]
    fn a_records_size_is_the_same_by_every_way() {
        for payload_words in 0..8 {
            for (is_timed, tsc_words) in [(0, 0), (1, 2)] {
                let header = is_timed << 31 | payload_words << 28 | 0x0fff_ffff;
                let size = if is_timed == 1 { timed_words(header) } else { untimed_words(header) };
                assert_eq!(size, 1 + tsc_words + payload_words);
                assert_eq!(size, record_words(header));
                assert_eq!(size as usize, payload(header).end);
            }
        }
    }

    #[test]
    fn a_record_has_room_behind_it_or_there_is_none() {
        let words = [7; 12];
        for (at, is_there) in [(0, true), (2, true), (3, false), (12, false), (u32::MAX, false)] {
            assert_eq!(record_at(&words, at).is_some(), is_there, "{at}");
        }
    }
}
