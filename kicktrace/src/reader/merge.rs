//! Blocks to records in time order: the merge.
//!
//! Owns the order. `xentrace` empties the pCPUs' rings one after the other, again and again: a
//! *pass* is a run of windows with rising pCPU numbers. When a pCPU's ring is emptied, every record
//! it held has a TSC below that moment; and every record written to the file before that moment
//! bears witness how late it was at least. So a record is final once every pCPU has been emptied at
//! a moment known to be later: about one pass after it was read. Nothing else is held back.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::Sender;

use crate::error::Error;
use crate::event;
use crate::reader::tournament::{NOTHING, Tournament};
use crate::reader::window::{Block, End, FULL, record_words};
use crate::reader::{PcpuReading, ReadOptions, Reading, Record, Visit};

/// How far ahead of the record under way its stream is fetched, in words: two cache lines.
const AHEAD: usize = 32;

/// Bytes held back below which records wait longer than they must.
const PATIENT_BELOW: usize = 16 << 20;

/// Asks for `words[at]` to be brought into the cache.
#[inline]
fn prefetch(words: &[u32], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(word) = words.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads and writes nothing that a program can observe, and faults on no
        // address; this one is a live reference besides. SSE is part of every x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(word).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (words, at);
}

/// One pCPU's records that were read and not yet delivered.
#[derive(Default)]
struct Stream {
    /// The block under way, and where its records end.
    words: Vec<u32>,
    end: usize,
    /// Where it stands in the input.
    offset: u64,
    /// Word where the next record starts.
    at: usize,
    /// Blocks behind it.
    blocks: VecDeque<Block>,
    /// Sort key of the next record: its TSC, or the start of its gap. [`NOTHING`] if there is none.
    key: u64,
    /// First word of the next record.
    header: u32,
    /// Its corrected TSC, or that of its predecessor if it has none.
    next_tsc: u64,
    /// Correction of this pCPU's TSC.
    tsc_offset: i64,
    /// The last corrected TSC delivered, for records without one.
    tsc: u64,
    reading: PcpuReading,
}

/// When each pCPU was emptied last, as far as the file shows.
#[derive(Default)]
struct Passes {
    /// Windows of the running pass: pCPU and the latest TSC in the file up to the window's end.
    current: Vec<(u32, u64)>,
    previous: Vec<(u32, u64)>,
    /// The latest TSC before the previous pass.
    before: u64,
    latest: u64,
}

impl Passes {
    /// Notes that the window of `cpu` has been read up to `max_tsc`; returns the TSC up to which no
    /// further record can come.
    fn window(&mut self, cpu: u32, max_tsc: u64) -> u64 {
        if self.current.last().is_some_and(|&(last, _)| cpu <= last) {
            if let Some(&(_, tsc)) = self.previous.last() {
                self.before = tsc;
            }
            std::mem::swap(&mut self.previous, &mut self.current);
            self.current.clear();
        }
        self.latest = self.latest.max(max_tsc);
        self.current.push((cpu, self.latest));
        // pCPUs up to `cpu` were emptied in this pass, those above in the previous one, after the
        // windows that stand before theirs.
        let seen = self.previous.partition_point(|&(other, _)| other <= cpu);
        if seen == 0 { self.before } else { self.previous[seen - 1].1 }
    }
}

pub(super) struct Merge<'v, V> {
    streams: Vec<Stream>,
    next: Tournament,
    passes: Passes,
    visitor: &'v mut V,
    offsets: Vec<(u32, i64)>,
    buffer: Buffer,
    buffer_limit: usize,
    /// The highest key delivered.
    delivered: u64,
    reading: Reading,
}

/// The bytes held back, and the way back for empty blocks.
struct Buffer {
    held: usize,
    spare: Sender<Vec<u32>>,
}

impl Buffer {
    fn release(&mut self, words: Vec<u32>) {
        self.held -= words.len() * 4;
        if words.len() == FULL {
            // The reading thread may have ended already.
            let _ = self.spare.send(words);
        }
    }
}

impl<'v, V: Visit> Merge<'v, V> {
    pub(super) fn new(options: &ReadOptions, spare: Sender<Vec<u32>>, visitor: &'v mut V) -> Self {
        Self {
            streams: Vec::new(),
            next: Tournament::default(),
            passes: Passes::default(),
            visitor,
            offsets: options.tsc_offsets.clone(),
            buffer: Buffer { held: 0, spare },
            buffer_limit: options.buffer_limit,
            delivered: 0,
            reading: Reading { first_tsc: u64::MAX, ..Reading::default() },
        }
    }

    /// Takes a block in and delivers what has become final.
    pub(super) fn push(&mut self, block: Block) -> Result<(), Error> {
        let (cpu, last) = (block.cpu, block.last);
        self.grow(cpu);
        let stream = &mut self.streams[cpu as usize];
        let max_tsc = match block.max_tsc {
            0 => 0,
            tsc => tsc.wrapping_add_signed(stream.tsc_offset),
        };
        self.buffer.held += block.words.len() * 4;
        self.reading.peak_buffered = self.reading.peak_buffered.max(self.buffer.held as u64);
        stream.blocks.push_back(block);
        if stream.key == NOTHING {
            stream.find_next(&mut self.buffer);
            self.next.set(cpu, stream.key);
        }
        if last {
            let final_up_to = self.passes.window(cpu, max_tsc);
            // A pCPU can be held up between reading its TSC and writing the record (an emulator's can
            // for milliseconds): wait twice as long while that costs little.
            let lag = self.passes.latest.saturating_sub(final_up_to);
            let patience = if self.buffer.held < PATIENT_BELOW { lag } else { 0 };
            self.deliver(final_up_to.saturating_sub(patience))?;
        } else {
            self.passes.latest = self.passes.latest.max(max_tsc);
        }
        // Too much held back: give up the order rather than the memory.
        while self.buffer.held > self.buffer_limit {
            let (key, _) = self.next.winner();
            if key == NOTHING {
                break;
            }
            self.deliver(key)?;
        }
        Ok(())
    }

    /// Nothing more is there for now.
    pub(super) fn caught_up(&mut self) -> Result<(), Error> {
        self.visitor.caught_up()
    }

    /// Makes sure that `cpu` has a stream.
    fn grow(&mut self, cpu: u32) {
        while self.streams.len() <= cpu as usize {
            let cpu = self.streams.len() as u32;
            let offset = self.offsets.iter().rev().find(|&&(of, _)| of == cpu);
            self.streams.push(Stream {
                key: NOTHING,
                tsc_offset: offset.map_or(0, |&(_, ticks)| ticks),
                reading: PcpuReading { cpu, ..PcpuReading::default() },
                ..Stream::default()
            });
        }
        self.next.grow(self.streams.len());
    }

    /// Delivers everything that is left.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        self.deliver(u64::MAX)
    }

    pub(super) fn into_reading(self, end: End) -> Reading {
        let mut reading = self.reading;
        reading.bytes = end.bytes;
        reading.windows = end.windows;
        reading.truncated = end.truncated;
        for stream in self.streams {
            reading.last_tsc = reading.last_tsc.max(stream.tsc);
            reading.pcpus.push(stream.reading);
        }
        reading.pcpus.retain(|pcpu| pcpu.records > 0);
        reading.records = reading.pcpus.iter().map(|pcpu| pcpu.records).sum();
        if reading.records == 0 {
            reading.first_tsc = 0;
        }
        reading
    }

    /// Delivers all records with a key up to `limit`.
    fn deliver(&mut self, limit: u64) -> Result<(), Error> {
        loop {
            let (key, cpu) = self.next.winner();
            if key > limit || key == NOTHING {
                return Ok(());
            }
            // Stay with this pCPU until another one's record is due.
            let until = self.next.runner_up().min(limit);
            self.reading.first_tsc = self.reading.first_tsc.min(key);
            let stream = &mut self.streams[cpu as usize];
            let done = if key < self.delivered {
                let before = stream.reading.records;
                let done = stream.run(until, &mut self.buffer, self.visitor);
                self.reading.late_records += stream.reading.records - before;
                done
            } else {
                stream.run(until, &mut self.buffer, self.visitor)
            };
            self.delivered = self.delivered.max(until.min(stream.tsc));
            self.next.set(cpu, stream.key);
            done?;
        }
    }
}

impl PcpuReading {
    #[cold]
    fn note_lost(&mut self, record: &Record<'_>, tsc_offset: i64) {
        if let Some(lost) = record.lost() {
            let start = lost.first_tsc.wrapping_add_signed(tsc_offset);
            self.lost_records += u64::from(lost.records);
            self.gaps += 1;
            self.gap_ticks = self.gap_ticks.saturating_add(record.tsc.saturating_sub(start));
        }
    }
}

impl Stream {
    /// Delivers records up to key `until`, at least one.
    fn run<V: Visit>(
        &mut self,
        until: u64,
        buffer: &mut Buffer,
        visitor: &mut V,
    ) -> Result<(), Error> {
        loop {
            // What changes with each record stays in registers while one block lasts.
            let (words, end, cpu) = (&self.words[..], self.end, self.reading.cpu);
            let (mut at, mut header, mut tsc) = (self.at, self.header, self.tsc);
            let (mut next_tsc, mut records, mut backwards) = (self.next_tsc, 0, 0);
            let mut key = self.key;
            let stop = loop {
                let Some(words_of) = words.get(payload(at, header)) else { break Stop::Due };
                backwards += u64::from(next_tsc < tsc);
                tsc = next_tsc;
                records += 1;
                let record = Record {
                    cpu,
                    tsc,
                    event: header & event::EVENT_MASK,
                    timed: header >> 31 != 0,
                    words: words_of,
                    offset: self.offset + 4 * at as u64,
                };
                if record.event == event::LOST_RECORDS {
                    self.reading.note_lost(&record, self.tsc_offset);
                }
                if let Err(error) = visitor.record(&record) {
                    break Stop::Failed(error);
                }
                at += record_words(header);
                // With many pCPUs it is long until this one's turn comes again: have its records
                // ready.
                prefetch(words, at + AHEAD);
                match next(words, &mut at, end, tsc, self.tsc_offset) {
                    Some(next) => Next { header, tsc: next_tsc, key } = next,
                    None => break Stop::EndOfBlock,
                }
                if key > until
                    && !V::is_local(header & event::EVENT_MASK, payload_of(words, at, header))
                {
                    break Stop::Due;
                }
            };
            (self.at, self.header, self.tsc) = (at, header, tsc);
            (self.next_tsc, self.key) = (next_tsc, key);
            self.reading.records += records;
            self.reading.backwards += backwards;
            match stop {
                Stop::Due => return Ok(()),
                Stop::Failed(error) => return Err(error),
                Stop::EndOfBlock => self.find_next(buffer),
            }
            if self.key == NOTHING {
                return Ok(());
            }
            let words = payload_of(&self.words, self.at, self.header);
            if self.key > until && !V::is_local(self.header & event::EVENT_MASK, words) {
                return Ok(());
            }
        }
    }

    /// Decodes the next record that is not padding, in this block or the next, as far as its place
    /// among the others needs.
    fn find_next(&mut self, buffer: &mut Buffer) {
        loop {
            if let Some(next) = next(&self.words, &mut self.at, self.end, self.tsc, self.tsc_offset)
            {
                Next { header: self.header, tsc: self.next_tsc, key: self.key } = next;
                return;
            }
            if !self.next_block(buffer) {
                return;
            }
        }
    }

    /// Goes on to the next block; false if there is none.
    fn next_block(&mut self, buffer: &mut Buffer) -> bool {
        let Some(block) = self.blocks.pop_front() else {
            self.key = NOTHING;
            return false;
        };
        self.offset = block.offset;
        self.at = 0;
        self.end = block.end;
        buffer.release(std::mem::replace(&mut self.words, block.words));
        true
    }
}

/// Why a run of records ends.
enum Stop {
    /// Another pCPU's record comes first.
    Due,
    EndOfBlock,
    Failed(Error),
}

/// The next record, as far as its place among the others needs it.
struct Next {
    header: u32,
    tsc: u64,
    key: u64,
}

/// Finds the next record that is not padding from word `at` on; `None` at the end of the block.
#[inline]
fn next(words: &[u32], at: &mut usize, end: usize, tsc_before: u64, offset: i64) -> Option<Next> {
    while *at < end {
        // A block ends with two words more than its records.
        let &[header, lo, hi, ..] = words.get(*at..)? else { return None };
        let time = (u64::from(lo) | u64::from(hi) << 32).wrapping_add_signed(offset);
        let tsc = if header >> 31 != 0 { time } else { tsc_before };
        let mut key = tsc;
        if header & event::GROUP_MASK == event::GENERAL {
            match header & event::EVENT_MASK {
                event::WRAP_BUFFER => {
                    *at += record_words(header);
                    continue;
                }
                event::LOST_RECORDS => key = gap_start(words, *at, offset).unwrap_or(tsc),
                _ => {}
            }
        }
        return Some(Next { header, tsc, key: key.min(NOTHING - 1) });
    }
    None
}

/// The start of the gap that the lost record at `at` tells of.
#[cold]
fn gap_start(words: &[u32], at: usize, offset: i64) -> Option<u64> {
    let &[_, _, _, _, _, lo, hi, ..] = words.get(at..)? else { return None };
    Some((u64::from(lo) | u64::from(hi) << 32).wrapping_add_signed(offset))
}

#[inline]
fn payload_of(words: &[u32], at: usize, header: u32) -> &[u32] {
    words.get(payload(at, header)).unwrap_or_default()
}

/// The words of the payload of the record at `at`.
#[inline]
fn payload(at: usize, header: u32) -> Range<usize> {
    let start = at + 1 + 2 * (header >> 31) as usize;
    start..start + (header >> 28 & 7) as usize
}
