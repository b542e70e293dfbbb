//! Blocks to records in time order: the merge.
//!
//! Owns the order. `xentrace` empties the pCPUs' rings one after the other, again and again: a
//! *pass* is a run of windows with rising pCPU numbers. When a pCPU's ring is emptied, every record
//! it held has a TSC below that moment; and every record written to the file before that moment
//! bears witness how late it was at least. So a record is final once every pCPU has been emptied at
//! a moment known to be later: about one pass after it was read. Nothing else is held back.

use std::collections::VecDeque;

use crate::error::Error;
use crate::event;
use crate::reader::block::{Block, LINE, PADDING, Spare};
use crate::reader::reading::{PcpuReading, ReadOptions, Reading, Silence};
use crate::reader::record::{Record, Visit};
use crate::reader::time::{FAR, QUIET};
use crate::reader::tournament::{NOTHING, Tournament};
use crate::reader::window::End;
use crate::reader::words::{LONGEST, first, payload, record_at, record_words, wide};

/// How far ahead of the record under way its stream is fetched, in words: two cache lines.
const AHEAD: usize = 32;

/// How many lines are fetched.
const LINES: usize = 3;

/// Bytes held back below which records wait longer than they must.
const PATIENT_BELOW: usize = 16 << 20;

/// Asks for `words[at]` to be brought into the cache, if there is such a word.
#[inline]
fn prefetch(words: &[u32], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let word = words.as_ptr().wrapping_add(at);
        // SAFETY: a prefetch reads and writes nothing that a program can observe, and faults on no
        // address, be it one behind the words. SSE is part of every x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(word.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (words, at);
}

/// One pCPU's records that were read and not yet delivered.
#[derive(Default)]
struct Stream {
    /// The block under way.
    block: Block,
    /// Word where the next record starts.
    at: u32,
    /// Index into the block's stops of the first one behind `at`.
    stop: usize,
    /// Blocks behind it.
    blocks: VecDeque<Block>,
    /// Sort key of the next record: its TSC, or the start of its gap. [`NOTHING`] if there is none.
    key: u64,
    /// The time of the last record delivered, for records without a TSC.
    tsc: u64,
    /// Whether it has had a block.
    begun: bool,
    reading: PcpuReading,
}

/// Where a stream's turn ends.
#[derive(Clone, Copy)]
struct Ahead {
    /// Index of the first stop that is not delivered any more.
    stop: usize,
    /// The key of the record there.
    key: u64,
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

/// Times in which no pCPU wrote anything.
#[derive(Default)]
struct Pauses {
    /// The latest time of a record delivered.
    reach: u64,
    /// The two longest that are no silence.
    longest: [Silence; 2],
    /// Ticks from which on a pause is told: longer than both, and 0 before the first record.
    due: u64,
}

/// Silences told one by one.
const SILENCES: usize = 16;

/// A pause shorter than this (a fraction of a second) is none, however it stands out.
const OUTSTANDING: u64 = QUIET;

/// One that stands out and is longer than this (a second or so) is no pause of a trace that was
/// being taken, however long the trace: `xentrace` itself wakes ten times a second.
const UNEXPLAINED: u64 = 1 << 31;

/// Ticks for which a pCPU may be held up between reading its TSC and writing the record: some
/// milliseconds. Small rings are emptied more often than that.
const HELD_UP: u64 = 1 << 25;

pub(super) struct Merge<'v, V> {
    streams: Vec<Stream>,
    next: Tournament,
    passes: Passes,
    visitor: &'v mut V,
    buffer: Buffer,
    buffer_limit: usize,
    /// The highest key delivered.
    delivered: u64,
    pauses: Pauses,
    reading: Reading,
}

/// The bytes held back, and the blocks that were.
#[derive(Default)]
struct Buffer {
    held: usize,
    spare: Spare,
}

impl Buffer {
    fn release(&mut self, block: Block) {
        self.held -= block.bytes();
        self.spare.put(block);
    }
}

impl<'v, V: Visit> Merge<'v, V> {
    pub(super) fn new(options: &ReadOptions, visitor: &'v mut V) -> Self {
        Self {
            streams: Vec::new(),
            next: Tournament::default(),
            passes: Passes::default(),
            visitor,
            buffer: Buffer::default(),
            buffer_limit: options.buffer_limit,
            delivered: 0,
            pauses: Pauses::default(),
            reading: Reading { first_tsc: u64::MAX, ..Reading::default() },
        }
    }

    /// Takes a block in and delivers what has become final.
    pub(super) fn push(&mut self, block: Block) -> Result<(), Error> {
        let (cpu, last) = (block.cpu, block.last);
        self.grow(cpu);
        let stream = &mut self.streams[cpu as usize];
        let max_tsc = block.max_tsc;
        let reading = &mut stream.reading;
        if reading.records == 0 {
            reading.first_tsc = block.before;
        }
        reading.records += block.records;
        reading.backwards += block.backwards;
        reading.resets += u64::from(block.restarts);
        reading.strays += block.strays;
        self.buffer.held += block.bytes();
        self.reading.peak_buffered = self.reading.peak_buffered.max(self.buffer.held as u64);
        stream.blocks.push_back(block);
        if stream.key == NOTHING {
            stream.settle(&mut self.buffer);
            self.next.set(cpu, stream.key);
        }
        if last {
            let final_up_to = self.passes.window(cpu, max_tsc);
            // A pCPU can be held up between reading its TSC and writing the record (an emulator's
            // can for milliseconds): wait twice as long, and so long at least, while that costs
            // little.
            let lag = self.passes.latest.saturating_sub(final_up_to).max(HELD_UP);
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

    /// Blocks to be filled again.
    pub(super) fn spare(&mut self) -> &mut Spare {
        &mut self.buffer.spare
    }

    /// All that could be delivered has been, and what comes next may not be there yet.
    pub(super) fn caught_up(&mut self) -> Result<(), Error> {
        self.visitor.caught_up()
    }

    /// Makes sure that `cpu` has a stream.
    fn grow(&mut self, cpu: u32) {
        while self.streams.len() <= cpu as usize {
            let cpu = self.streams.len() as u32;
            self.streams.push(Stream {
                key: NOTHING,
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
        for mut stream in self.streams {
            reading.last_tsc = reading.last_tsc.max(stream.tsc);
            stream.reading.last_tsc = stream.tsc;
            reading.pcpus.push(stream.reading);
        }
        reading.pause = self.pauses.outstanding(reading.ticks());
        reading.pcpus.retain(|pcpu| pcpu.records > 0);
        reading.records = reading.pcpus.iter().map(|pcpu| pcpu.records).sum();
        if reading.records == 0 {
            reading.first_tsc = 0;
        }
        reading
    }

    /// Delivers all records with a key up to `limit`.
    fn deliver(&mut self, limit: u64) -> Result<(), Error> {
        let limit = limit.min(NOTHING - 1);
        loop {
            let (key, cpu) = self.next.winner();
            if key > limit {
                return Ok(());
            }
            if key.saturating_sub(self.pauses.reach) >= self.pauses.due {
                self.pause(key);
            }
            let stream = &mut self.streams[cpu as usize];
            let ahead = stream.look_ahead(self.visitor);
            // Set before the visitor sees these records: what is next need not wait for them.
            if let Some(Ahead { key, .. }) = ahead {
                stream.key = key;
                self.next.set(cpu, key);
            }
            let stop = ahead.map_or(stream.stop, |ahead| ahead.stop);
            let records = stream.deliver_to(stop, self.visitor)?;
            if ahead.is_none() {
                stream.settle(&mut self.buffer);
                self.next.set(cpu, stream.key);
            }
            self.pauses.reach = self.pauses.reach.max(stream.tsc);
            if key < self.delivered {
                self.late(key, records);
            } else {
                self.delivered = key;
            }
        }
    }
}

impl<V: Visit> Merge<'_, V> {
    /// So many records came behind one with a later key than theirs.
    #[cold]
    fn late(&mut self, key: u64, records: u64) {
        self.reading.late_records += records;
        self.reading.first_tsc = self.reading.first_tsc.min(key);
    }

    /// Nothing was written from the last record on to `to`, for longer than most of the trace; or
    /// the record at `to` is the first one.
    #[cold]
    fn pause(&mut self, to: u64) {
        if self.pauses.due == 0 {
            (self.reading.first_tsc, self.pauses.due) = (to, 1);
            return;
        }
        let pause = Silence { from: self.pauses.reach, to };
        if pause.ticks() > FAR {
            self.reading.silent_ticks = self.reading.silent_ticks.saturating_add(pause.ticks());
            if self.reading.silences.len() < SILENCES {
                self.reading.silences.push(pause);
            }
            self.visitor.silence(pause.from, pause.to);
            return;
        }
        let longest = &mut self.pauses.longest;
        longest[1] = pause;
        longest.sort_unstable_by_key(|pause| std::cmp::Reverse(pause.ticks()));
        self.pauses.due = longest[1].ticks() + 1;
    }
}

impl Pauses {
    /// The longest pause, if it is so long, beside the trace and all others, that no trace explains
    /// it.
    fn outstanding(&self, ticks: u64) -> Option<Silence> {
        let [first, second] = self.longest.map(|pause| pause.ticks());
        let long = first > OUTSTANDING && first > ticks / 2 || first > UNEXPLAINED;
        (long && first / 8 > second).then_some(self.longest[0])
    }
}

impl Stream {
    /// Where the turn that begins now ends, before any of its records is delivered. `None` where
    /// only the delivery shows it: at the end of a block, or if the record at the next stop has no
    /// key of its own.
    #[inline]
    fn look_ahead<V: Visit>(&self, visitor: &V) -> Option<Ahead> {
        let Block { words, stops, .. } = &self.block;
        let due = record_at(words, self.at)?;
        let mut stop = self.stop;
        let mut at = *stops.get(stop)?;
        let mut next = with_own_key(record_at(words, at)?)?;
        let event_of = |of: &[u32; LONGEST]| of[0] & event::EVENT_MASK;
        let directly_behind = self.at + record_words(due[0]) == at;
        let goes_on = |of: &[u32; LONGEST]| visitor.goes_on(event_of(due), event_of(of), first(of));
        if directly_behind && goes_on(next) {
            stop += 1;
            at = *stops.get(stop)?;
            next = with_own_key(record_at(words, at)?)?;
        }
        Some(Ahead { stop, key: wide(next[1], next[2]).min(NOTHING - 1) })
    }

    /// Delivers the next record, whose key is due, and those behind it up to the stop with this
    /// index. Returns how many.
    #[inline]
    fn deliver_to<V: Visit>(&mut self, stop: usize, visitor: &mut V) -> Result<u64, Error> {
        let Block { cpu, ref words, begin, offset, .. } = self.block;
        let offset = offset.wrapping_sub(4 * begin as u64);
        // The padding behind a block has room for a record of any size, so there are as many words
        // behind each stop: where fewer are left, it has been reached.
        let to = self.block.stop(stop) as usize + PADDING;
        let before_stop = words.get(..to).unwrap_or_default();
        // What changes with each record stays in registers.
        let (mut at, mut tsc, mut records) = (self.at, self.tsc, 0);
        while let Some(of) = record_at(before_stop, at) {
            let (header, payload) = (of[0], payload(of[0]));
            tsc = tsc_of(of, tsc);
            records += 1;
            visitor.record(&Record {
                cpu,
                tsc,
                event: header & event::EVENT_MASK,
                timed: header >> 31 != 0,
                words: &of[payload],
                offset: offset.wrapping_add(4 * u64::from(at)),
            })?;
            at += record_words(header);
        }
        // With many pCPUs it is long until this one's turn comes again: have its records ready.
        for line in 0..LINES {
            prefetch(words, at as usize + AHEAD + line * LINE);
        }
        prefetch(&self.block.stops, stop + AHEAD);
        (self.at, self.tsc) = (at, tsc);
        self.stop = stop + 1;
        Ok(records)
    }

    /// Finds the key of the record at `at`, or of the one behind it if it is padding or the block
    /// ends.
    #[inline]
    fn settle(&mut self, buffer: &mut Buffer) {
        loop {
            let of = record_at(&self.block.words, self.at);
            let Some(of) = of.filter(|_| (self.at as usize) < self.block.end) else {
                if self.next_block(buffer) {
                    continue;
                }
                self.key = NOTHING;
                return;
            };
            let mut key = tsc_of(of, self.tsc);
            if of[0] & event::GROUP_MASK == event::GENERAL {
                match of[0] & event::EVENT_MASK {
                    event::WRAP_BUFFER => {
                        self.move_to(self.at + record_words(of[0]));
                        continue;
                    }
                    event::LOST_RECORDS => key = self.reading.lost(of),
                    _ => {}
                }
            }
            self.key = key.min(NOTHING - 1);
            return;
        }
    }

    /// Goes on to the next block; false if there is none.
    #[cold]
    fn next_block(&mut self, buffer: &mut Buffer) -> bool {
        let Some(block) = self.blocks.pop_front() else { return false };
        if !std::mem::replace(&mut self.begun, true) {
            self.tsc = block.before;
        }
        buffer.release(std::mem::replace(&mut self.block, block));
        self.stop = 0;
        self.move_to(self.block.begin as u32);
        true
    }

    /// Moves to the record at `at`, at which there may be a stop.
    #[cold]
    fn move_to(&mut self, at: u32) {
        self.at = at;
        if self.block.stop(self.stop) == at {
            self.stop += 1;
        }
    }
}

impl PcpuReading {
    /// Notes a gap, and returns its start.
    #[cold]
    fn lost(&mut self, record: &[u32; LONGEST]) -> u64 {
        let &[_, lo, hi, records, _, start_lo, start_hi, ..] = record;
        let (start, end) = (wide(start_lo, start_hi), wide(lo, hi));
        self.lost_records += u64::from(records);
        self.gaps += 1;
        self.gap_ticks = self.gap_ticks.saturating_add(end.saturating_sub(start));
        start
    }
}

/// The record, if its key is its own TSC and nothing else.
#[inline]
fn with_own_key(of: &[u32; LONGEST]) -> Option<&[u32; LONGEST]> {
    (of[0] >> 31 != 0 && of[0] & event::GROUP_MASK != event::GENERAL).then_some(of)
}

/// The time of a record; `before` if it carries none.
#[inline]
fn tsc_of(record: &[u32; LONGEST], before: u64) -> u64 {
    if record[0] >> 31 != 0 { wide(record[1], record[2]) } else { before }
}
